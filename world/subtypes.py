"""The list of subtypes: what physically happens, how hard it is to tell, to whom it happens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from trail.scan import Anomaly
from world import cloning, forging, hurrying, ordering, straying
from world.case import Case, Plan

CONTROL_GRADE: Final = -1


@dataclass(frozen=True)
class Subtype:
    """One way of tampering.

    Attributes:
        name: unique.
        anomaly: which of the five it is.
        grade: 0 blatant to 3 only context can tell; -1 for a control.
        plan: makes the plan of a case, None where the trail does not allow it.
        scope: "item", "box", or "both".
        candidates: cases proposed for each that is wanted; more where the times it makes are
            unlike honest ones.
        box_share: share of its EPCs that are tampered with as whole boxes, in a mix.
        natural_only: hidden in worlds, never injected for training unless asked for by name.
    """

    name: str
    anomaly: Anomaly
    grade: int
    plan: Callable[[Case], Plan | None]
    scope: str = "both"
    candidates: int = 4
    box_share: float = 0.2
    natural_only: bool = False

    @property
    def control(self) -> bool:
        """It cannot be told from what is honest (a cloned box: until its tracks conflict)."""
        return self.grade == CONTROL_GRADE

    @property
    def docline(self) -> str:
        """What physically happens, one line."""
        return (self.plan.__doc__ or "").strip().splitlines()[0]


_F, _D, _L, _O, _J = Anomaly
SUBTYPES: Final = (
    Subtype("fake_malformed", _F, 0, forging.malformed),
    Subtype("fake_unknown_product", _F, 1, forging.unknown_product),
    Subtype("fake_serial_beyond", _F, 2, forging.serial_beyond),
    Subtype("fake_never_commissioned", _F, 3, forging.never_commissioned, "item"),
    Subtype("fake_commissioned_late", _F, 3, forging.commissioned_late, "item"),
    Subtype("fake_in_quota", _F, CONTROL_GRADE, forging.in_quota, "item"),
    Subtype("fake_unknown_lot", _F, 1, forging.unknown_lot, natural_only=True),
    Subtype("dup_far_at_once", _D, 0, cloning.far_at_once, candidates=12),
    Subtype("dup_far_in_hours", _D, 1, cloning.far_in_hours, candidates=12),
    Subtype("dup_at_shop_already", _D, 2, cloning.at_shop_already, "item"),
    Subtype("dup_second_sale", _D, 3, cloning.second_sale, "item"),
    Subtype("dup_whole_box", _D, CONTROL_GRADE, cloning.whole_box, "box"),
    Subtype("loc_tier_mismatch", _L, 0, straying.tier_mismatch),
    Subtype("loc_unused_edge", _L, 1, straying.unused_edge),
    Subtype("loc_wrong_market", _L, 2, straying.wrong_market),
    Subtype("loc_strays", _L, 3, straying.strays, "item"),
    Subtype("loc_box_diverted", _L, CONTROL_GRADE, straying.box_diverted, "box"),
    Subtype("loc_backwards", _L, 1, straying.backwards, natural_only=True),
    Subtype("order_swapped", _O, 0, ordering.swapped, candidates=12),
    Subtype("order_second_inbound", _O, 1, ordering.second_inbound),
    Subtype("order_before_leaving", _O, 2, ordering.before_leaving, candidates=32),
    Subtype("order_left_before_arrival", _O, 2, ordering.left_before_arrival, box_share=0.6),
    Subtype(
        "order_just_before_leaving", _O, 3, ordering.just_before_leaving, "item", candidates=12
    ),
    Subtype("order_below_skew", _O, CONTROL_GRADE, ordering.below_skew, "item"),
    Subtype("order_after_sale", _O, 0, ordering.after_sale, "item", natural_only=True),
    Subtype("jump_minute", _J, 0, hurrying.minute),
    Subtype("jump_fast", _J, 1, hurrying.fast),
    Subtype("jump_route_share", _J, 2, hurrying.route_share),
    Subtype("jump_before_pallet", _J, 3, hurrying.before_pallet, "item", candidates=12),
    Subtype("jump_plausible", _J, CONTROL_GRADE, hurrying.plausible, "box", candidates=24),
    Subtype("jump_long_rest", _J, CONTROL_GRADE, hurrying.long_rest, "box"),
)
"""Every subtype; a truth column refers to it by position."""

NAMES: Final = tuple(subtype.name for subtype in SUBTYPES)
"""Names by position."""


def chosen(names: object, natural: bool) -> tuple[int, ...]:
    """Positions of the named subtypes, or of all that are not `natural_only` unless `natural`.

    Raises:
        ValueError: a name is unknown.
    """
    if names is None:
        return tuple(i for i, s in enumerate(SUBTYPES) if natural or not s.natural_only)
    wanted = set(names)  # type: ignore[call-overload]
    unknown = sorted(wanted - set(NAMES))
    if unknown:
        raise ValueError(f"subtype {unknown[0]!r} is not known; give some of {', '.join(NAMES)}")
    return tuple(i for i, name in enumerate(NAMES) if name in wanted)
