"""What tampering physically changes, as features: the causes that an explanation should name.

A feature counts where it reads off what the tampering changed, be it from the scan's own trail, its
code, its mates or the network. What merely goes along does not: no operation, no position, not
that a counterfeit was first seen in mid-chain (`first_op`, `is_first`), as honest goods with missed
scans are, and not that an item was read alone (`group_log`), as honest single items are. Of the
rules the one of the type counts, since it checks for nothing but such changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from trail.features import FEATURES
from trail.scan import Bool

_LOT: Final = ("lot_log", "lot_at_op_log", "lot_at_site_log", "lot_op_share")
"""Nobody made the lot that the code names, so that nothing else of it was ever scanned."""

_BOX: Final = (
    "together_share",
    "departed_share",
    "left_behind_log",
    "departed_here_log",
    "departed_elsewhere_log",
    "lag_h_log",
)
"""An item that is elsewhere, or there at another time, is without its box: which of the others came
along, and where and when they were seen."""

_TIME: Final = (
    "gap_h_log",
    "speed_kmh_log",
    "two_speed_kmh_log",
    "step_z",
    "step_low_ratio",
)
"""The time of the arrival was changed: how long the step took, by itself, for its distance, and
against what the network knows of such steps. The distance itself is as it was."""

_FAR: Final = ("km_log", "two_km_log")
"""The scan was put to another place: how far that is."""

_EDGE: Final = ("edge_unused", "edge_used_log", "edge_share", "region_used_log")
"""The leg is another one: how the network uses it."""

_MARKET: Final = ("market_share", "off_market")
"""The region is another one: whether the product is sold there."""

_AGAIN: Final = ("op_before", "op_step", "repeated_here", "repeat_gap_h_log")
"""An operation was done a second time: that it was, here or elsewhere, and when."""

_ORDER: Final = (
    "op_step",
    "op_drop",
    "in_after_out",
    "again_here",
    "out_elsewhere",
    "in_without_out",
    "step_support_log",
)
"""Operations follow each other as they cannot: steps back, arrivals without a departure and
departures without an arrival, and how often the network has seen such a step."""

_CROSSED: Final = (*_ORDER, "tier_step", "back_and_forth", *_EDGE)
"""The same across two sites, so that the trail goes back to the first over a leg that goods never
take."""

_SOLD: Final = ("sold_before", "sold_elsewhere", "since_sale_h_log")
"""There was a sale before."""

_FAKE, _DUP, _LOC, _WRONG_ORDER, _JUMP = (
    ("rule_epcFake",),
    ("rule_epcDup",),
    ("rule_locErr",),
    ("rule_evtOrderErr",),
    ("rule_jump",),
)

CAUSES: Final[Mapping[str, frozenset[str]]] = {
    name: frozenset(features)
    for name, features in {
        # The text of the code: its shape, its date, its lot.
        "fake_malformed": ("malformed", "age_d_log", *_LOT, *_FAKE),
        "fake_unknown_product": ("company_unknown", "product_unknown", *_LOT, *_FAKE),
        "fake_unknown_lot": (*_LOT, *_FAKE),
        "fake_serial_beyond": ("serial_outside_log", *_FAKE),
        # Here it is the cause itself that the line never saw the code.
        "fake_never_commissioned": ("commissioned", "uncommissioned", *_FAKE),
        # Made hours after its lot, alone, and put into a box later.
        "fake_commissioned_late": (
            "commission_gap_h_log",
            "age_d_log",
            "joined_share",
            *_FAKE,
        ),
        # One more scan, far away, too soon, and without the box.
        "dup_far_at_once": (*_FAR, *_TIME, *_AGAIN, *_EDGE, *_BOX, *_DUP),
        "dup_far_in_hours": (*_FAR, *_TIME, *_AGAIN, *_EDGE, *_BOX, *_DUP),
        # Two lawful trails under one code: each goes on where the other one was not.
        "dup_at_shop_already": (
            *_ORDER,
            "tier_step",
            "back_and_forth",
            "op_before",
            *_SOLD,
            *_BOX,
            *_DUP,
        ),
        "dup_second_sale": (*_SOLD, *_AGAIN, *_DUP),
        # The site of a scan, and with it all that the trail says of sites.
        "loc_tier_mismatch": (
            "tier_mismatch",
            "tier_step",
            "same_site",
            "out_elsewhere",
            "in_without_out",
            *_FAR,
            *_EDGE,
            *_BOX,
            *_LOC,
        ),
        "loc_unused_edge": (*_FAR, *_EDGE, *_BOX, *_LOC),
        "loc_wrong_market": (*_MARKET, "region_used_log", *_BOX, *_LOC),
        "loc_strays": (*_BOX, *_LOC),
        "loc_backwards": ("tier_step", "op_step", "op_drop", "back_and_forth", *_EDGE, *_LOC),
        "order_swapped": (*_ORDER, *_BOX, *_WRONG_ORDER),
        "order_second_inbound": (*_AGAIN, "again_here", *_BOX, *_WRONG_ORDER),
        "order_before_leaving": (*_CROSSED, *_BOX, *_WRONG_ORDER),
        "order_left_before_arrival": (*_ORDER, *_BOX, *_WRONG_ORDER),
        "order_just_before_leaving": (*_CROSSED, *_BOX, *_WRONG_ORDER),
        "order_after_sale": (*_SOLD, "op_step", "op_drop", *_WRONG_ORDER),
        "jump_minute": (*_TIME, *_BOX, *_JUMP),
        "jump_fast": (*_TIME, *_BOX, *_JUMP),
        "jump_route_share": (*_TIME, *_BOX, *_JUMP),
        "jump_before_pallet": (*_TIME, *_BOX, *_JUMP),
    }.items()
}
"""Features of the cause, by the name of the kind of tampering; controls have none."""


def named(subtype: str) -> Bool:
    """Which features belong to the cause of a kind of tampering, bool (F,).

    Raises:
        KeyError: it is a control, or no kind of tampering.
    """
    causes = CAUSES[subtype]
    return np.array([feature in causes for feature in FEATURES])
