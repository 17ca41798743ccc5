"""What must not change a verdict: the names of sites, whole weeks, where serial numbers begin."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.bundle import Bundle
from tests.behaviour.judged import World
from tests.serving.champion import small_champion
from trail.scan import DAY_US
from trail.sites import Sites


@pytest.fixture(scope="module")
def world() -> World:
    return World.of(Bundle(small_champion().home / "work" / "bundle"), lots=12)


@pytest.fixture(scope="module")
def honest(world):
    return world.judge()


def test_the_names_and_the_order_of_sites_change_nothing(world, honest):
    s, k = world.sites, len(world.sites)
    order = np.random.default_rng(1).permutation(k)
    new = {s.ids[i]: str(9000 + n) for n, i in enumerate(order)}
    sites = Sites.of(
        [new[s.ids[i]] for i in order],
        [f"site {n}" for n in range(k)],
        s.tier[order],
        s.latitude[order],
        s.longitude[order],
        s.known[order],
    )
    place = np.argsort(order).astype(np.int32)
    scans = replace(world.scans, site=place[world.scans.site])
    network = world.bundle.network
    named = replace(network, site_ids=tuple(new[i] for i in network.site_ids))
    found = world.judge(scans, sites, named)
    np.testing.assert_allclose(found, honest, atol=0.01)


@pytest.mark.parametrize("weeks", [-53, 1, 26])
def test_whole_weeks_earlier_or_later_change_nothing(world, honest, weeks):
    shifted = replace(world.scans, time_us=world.scans.time_us + weeks * 7 * DAY_US)
    codes = shifted.codes
    made = np.where(codes.made_day >= 0, codes.made_day + 7 * weeks, codes.made_day)
    shifted = replace(shifted, codes=replace(codes, made_day=made.astype(np.int32)))
    np.testing.assert_allclose(world.judge(shifted), honest, atol=0.01)


@pytest.mark.parametrize("offset", [1, 48, 1_000_000])
def test_serial_numbers_may_begin_anywhere(world, honest, offset):
    codes = [
        f"{code[:-9]}{int(code[-9:]) + offset:09d}" for code in world.scans.codes.text.to_pylist()
    ]
    np.testing.assert_allclose(world.judge(world.recoded(codes)), honest, atol=0.01)
