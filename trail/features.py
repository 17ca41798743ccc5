"""FEATURES, the one list, and encode(): the same code for training and for serving."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trail.facts import BoundContext, Context, Facts, facts_of
from trail.mates import LotTable
from trail.roads import Roads
from trail.rules import ENOUGH_COMMISSIONED, Findings, judge
from trail.scan import ANOMALIES, EVENT_TYPES, Float32, Int64, Op, Scans
from trail.trails import Trails, sort

VERSION: Final = 1
"""Changes whenever a feature changes its meaning; a bundle of another version is refused."""

Column = npt.NDArray[Any]

_LINE: Final = 16
"""Numbers of 32 bits in a cache line."""


def _f32(value: Column) -> Float32:
    return value.astype(np.float32, copy=False)


def _log(value: Column) -> Column:
    return np.log1p(np.maximum(_f32(value), 0))


def _hours(seconds: Column) -> Column:
    return np.log1p(_f32(np.maximum(seconds, 0) * np.float32(1 / 3600)))


def _share(part: Column, whole: Column) -> Column:
    """Part of the whole, 0 of none; counts below 2^24 lose nothing by being float32."""
    of = _f32(whole)
    return np.where(of > 0, _f32(part) / np.maximum(of, 1), np.float32(0))


def _speed(km: Column, gap_s: Column) -> Column:
    """log(1 + km/h); a distance in less than a second counts as one second."""
    return np.log1p(_f32(km * np.float32(3600) / np.maximum(gap_s, 1.0)))


def _recorded(f: Facts) -> Column:
    return f.mates.lot_commissioned >= ENOUGH_COMMISSIONED


def _serial_outside(f: Facts) -> Column:
    beyond = np.maximum(f.mates.serial_low - f.serial, f.serial - f.mates.serial_high)
    return np.where(_recorded(f), _log(beyond), 0)


def _low_ratio(f: Facts) -> Column:
    """log of (time of the step / the quickest 1 % of such steps), between -4 and 4."""
    if f.steps is None:
        return np.zeros(len(f.op), np.float32)
    ratio = np.log((f.gap_s / 3600 + 1e-3) / (f.steps.low_h + 1e-3))
    return np.where(f.steps.low_h > 0, np.clip(ratio, -4, 4), 0)


def _with_steps(read: Callable[[Facts], Column]) -> Callable[[Facts], Column]:
    """A column that is 0 where there is no network to ask."""
    return lambda f: np.zeros(len(f.op), np.float32) if f.steps is None else read(f)


def _with_roads(read: Callable[[Roads], Column]) -> Callable[[Facts], Column]:
    """A column of what the lot's loads say, 0 where there is no network to compare them with."""
    return lambda f: np.zeros(len(f.op), np.float32) if f.roads is None else read(f.roads)


def _is_op(op: int) -> Callable[[Facts], Column]:
    return lambda f: f.op == op


_OWN: Final[dict[str, Callable[[Facts], Column]]] = {
    **{f"op_{name}": _is_op(i) for i, name in enumerate(EVENT_TYPES)},
    "op_place": lambda f: f.op / np.float32(9),
    "direction": lambda f: f.direction,
    "is_first": lambda f: f.previous < 0,
    "position_log": lambda f: _log(np.minimum(f.position, 15)),
    "first_op": lambda f: f.first_op / np.float32(9),
    "gap_h_log": lambda f: _hours(f.gap_s),
    "km_log": lambda f: _log(f.km),
    "km_known": lambda f: f.km_known,
    "speed_kmh_log": lambda f: _speed(f.km, f.gap_s),
    "same_site": lambda f: f.same_site,
    "same_second_elsewhere": lambda f: (f.previous >= 0) & ~f.same_site & (f.gap_s == 0),
    "op_step": lambda f: f.op_step / np.float32(3),
    "op_drop": lambda f: f.op_drop / np.float32(3),
    "tier_step": lambda f: f.tier_step,
    "tier_mismatch": lambda f: f.tier_mismatch,
    "site_known": lambda f: f.site_known,
    "again_here": lambda f: f.again_here,
    "in_after_out": lambda f: f.in_after_out,
    "out_elsewhere": lambda f: f.out_elsewhere,
    "in_without_out": lambda f: f.in_without_out,
    "sold_before": lambda f: _log(f.sold_before),
    "sold_elsewhere": lambda f: f.sold_elsewhere,
    "since_sale_h_log": lambda f: _hours(f.since_sale_s),
    "op_before": lambda f: _log(f.op_before),
    "repeated_here": lambda f: f.repeat_gap_s >= 0,
    "repeat_gap_h_log": lambda f: _hours(f.repeat_gap_s),
    "two_km_log": lambda f: _log(f.two_km),
    "two_speed_kmh_log": lambda f: _speed(f.two_km, f.two_gap_s),
    "back_and_forth": lambda f: f.back_and_forth,
}

_CODE: Final[dict[str, Callable[[Facts], Column]]] = {
    "malformed": lambda f: f.fault > 0,
    "company_unknown": lambda f: f.company_unknown,
    "product_unknown": lambda f: f.product_unknown,
    "registry": lambda f: np.full(len(f.op), f.registry),
    "made_later": lambda f: f.age_days < -1,
    "age_d_log": lambda f: _log(f.age_days),
}

_MATES: Final[dict[str, Callable[[Facts], Column]]] = {
    "group_log": lambda f: _log(f.mates.group),
    "group_before_log": lambda f: _log(f.mates.group_before),
    "together_share": lambda f: _share(f.mates.together, f.mates.group_before),
    "departed_share": lambda f: _share(f.mates.departed, f.mates.group_before),
    "left_behind_log": lambda f: _log(f.mates.group_before - f.mates.departed),
    "departed_elsewhere_log": lambda f: _log(f.mates.departed - f.mates.departed_here),
    "departed_here_log": lambda f: _log(f.mates.departed_here),
    "joined_share": lambda f: _share(f.mates.group - f.mates.together, f.mates.group),
    "lag_h_log": lambda f: _hours(f.mates.lag_s),
    "lot_log": lambda f: _log(f.mates.lot_commissioned),
    "commissioned": lambda f: f.commissioned,
    "uncommissioned": lambda f: _recorded(f) & ~f.commissioned,
    "serial_outside_log": _serial_outside,
    "commission_gap_h_log": lambda f: _hours(f.mates.commission_gap_s),
    "lot_at_op_log": lambda f: _log(f.mates.lot_at_op),
    "lot_at_site_log": lambda f: _log(f.mates.lot_at_site),
    "lot_op_share": lambda f: np.minimum(_share(f.mates.lot_at_op, f.mates.lot_commissioned), 2),
}

_NETWORK: Final[dict[str, Callable[[Facts], Column]]] = {
    "network": lambda f: np.full(len(f.op), f.steps is not None),
    "edge_known": _with_steps(lambda f: f.steps.known),  # type: ignore[union-attr]
    "edge_unused": _with_steps(lambda f: f.steps.known & (f.steps.edge_used == 0)),  # type: ignore[union-attr]
    "edge_used_log": _with_steps(lambda f: _log(f.steps.edge_used)),  # type: ignore[union-attr]
    "edge_share": _with_steps(lambda f: f.steps.edge_share),  # type: ignore[union-attr]
    "region_used_log": _with_steps(lambda f: _log(f.steps.region_used)),  # type: ignore[union-attr]
    "step_z": _with_steps(lambda f: np.clip(f.steps.z, -10, 10)),  # type: ignore[union-attr]
    "step_low_ratio": _low_ratio,
    "step_support_log": _with_steps(lambda f: _log(f.steps.support)),  # type: ignore[union-attr]
    "expected_h_log": _with_steps(lambda f: _log(f.steps.expected_h)),  # type: ignore[union-attr]
    "market_known": _with_steps(lambda f: f.steps.market_known),  # type: ignore[union-attr]
    "market_share": _with_steps(lambda f: f.steps.market_share),  # type: ignore[union-attr]
    "off_market": _with_steps(
        lambda f: f.steps.market_known & (f.steps.market_share < 0.01) & (f.op >= Op.WHOLESALE_IN)  # type: ignore[union-attr]
    ),
}

_ROADS: Final[dict[str, Callable[[Facts], Column]]] = {
    "lot_loads_log": _with_roads(lambda r: _log(r.loads)),
    "lot_pace": _with_roads(lambda r: r.pace),
    "lot_off_pace": _with_roads(lambda r: r.off),
}

_COLUMNS: Final = {**_OWN, **_CODE, **_MATES, **_NETWORK, **_ROADS}

RULE_FEATURES: Final = tuple(f"rule_{name}" for name in ANOMALIES)

FEATURES: Final = (*_COLUMNS, *RULE_FEATURES)
"""Names of the columns of every feature matrix, in order."""

CONTEXT_OF: Final = {
    **dict.fromkeys(_OWN, "own trail"),
    **dict.fromkeys(_CODE, "code"),
    **dict.fromkeys(_MATES, "box and lot"),
    **dict.fromkeys((*_NETWORK, *_ROADS), "network"),
    **dict.fromkeys(RULE_FEATURES, "rules"),
}
"""Which context each feature comes from."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Features and rule findings of n scans in trail order.

    Attributes:
        trails: the scans in trail order, with their place in the input.
        features: float32 (n, F), columns as in `FEATURES`.
        findings: scores and reasons of the five rules.
    """

    trails: Trails
    features: Float32
    findings: Findings

    @property
    def offsets(self) -> Int64:
        """Boundaries of the trails, int64 (trails + 1,)."""
        return self.trails.offsets

    @property
    def rules(self) -> Float32:
        """Rule scores, float32 (n, 5), 0-100."""
        return self.findings.score


def encode(
    scans: Scans,
    context: Context | BoundContext,
    table: LotTable | None = None,
    progress: Callable[[int], object] | None = None,
) -> Encoded:
    """Features and rule findings of scans.

    Args:
        scans: n scans in any order; whole lots, or with `table` any whole trails.
        context: sites, network and registry.
        table: counters of the lots with these scans counted in (`trail.mates.table_of`, merged);
            None takes the scans for all there is of their lots.
        progress: called with the number of scans done since the last call.

    Returns:
        The matrix in trail order; `trails.order` leads back to the input.
    """
    trails = sort(scans)
    n = len(scans)
    features = np.empty((n, len(FEATURES)), dtype=np.float32)
    score = np.empty((n, len(ANOMALIES)), dtype=np.float32)
    reason = np.empty((n, len(ANOMALIES)), dtype=np.int8)
    for part, known in facts_of(trails, context, table):
        found = judge(known)
        matrix(known, found, out=features[part])
        score[part], reason[part] = found.score, found.reason
        if progress is not None:
            progress(part.stop - part.start)
    return Encoded(trails, features, Findings(score, reason))


def matrix(known: Facts, findings: Findings, out: Float32 | None = None) -> Float32:
    """Features of one chunk of facts, float32 (n, F); written into `out` where it is given."""
    # Columns are written contiguously and turned once: a strided write would cost a cache line.
    # An odd number of cache lines apart, they do not push each other out of the cache.
    n = len(known.op)
    odd_lines = (n // (2 * _LINE) * 2 + 3) * _LINE
    columns = np.empty((len(FEATURES), odd_lines), dtype=np.float32)[:, :n]
    for i, read in enumerate(_COLUMNS.values()):
        columns[i] = read(known)
    np.divide(findings.score.T, 100, out=columns[len(_COLUMNS) :])
    if out is None:
        return np.ascontiguousarray(columns.T)
    out[:] = columns.T
    return out
