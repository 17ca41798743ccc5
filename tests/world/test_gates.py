import os
from dataclasses import replace

import numpy as np
import pytest

from tests.world.small import honest, tampered
from trail.scan import HOUR_US
from world.gates import LIMIT, measure, measure_all
from world.tampering import NAMES

FULL = bool(os.environ.get("TRAILWATCH_FULL"))
QUICK = (
    "fake_never_commissioned",
    "fake_commissioned_late",
    "dup_far_in_hours",
    "dup_second_sale",
    "loc_strays",
    "order_swapped",
    "order_before_leaving",
    "order_left_before_arrival",
    "jump_route_share",
    "jump_before_pallet",
)


@pytest.mark.parametrize("name", NAMES if FULL else QUICK)
def test_hours_and_seconds_do_not_give_a_subtype_away(name):
    one = measure_all(200 if FULL else 50, 0.02 if FULL else 0.04, (name,))[name]
    assert one.scans > 30
    if name != "jump_plausible":  # too few short legs for a figure, except in a larger world
        assert one.auc - 2 * one.error <= LIMIT
        assert one.error < 0.05


def test_the_gate_sees_tampering_at_night():
    after = tampered("jump_route_share", share=0.1)
    scans, _ = honest()
    shifted = after.scans.time_us.copy()
    shifted[after.truth.synthetic] += 9 * HOUR_US
    moved = replace(after.scans, time_us=shifted)
    place = NAMES.index("jump_route_share")
    assert measure(moved, after.truth, place).auc > 0.75
    assert not np.isnan(measure(after.scans, after.truth, place).auc) and len(scans)
