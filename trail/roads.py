"""Roads: how long the loads of a lot have been on the road so far, against what the network knows.

Where the loads of a lot keep the network's times, one that does not is strange; where none does,
the network knows other roads than these, and its times say little. A *load* is a move of goods that
travelled together from an outbound scan to the next inbound elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from trail.mates import LotTable
from trail.network import BoundNetwork
from trail.order import Index, changes, numbered
from trail.scan import HOUR_US, OP_DIRECTION, Float32, Float64, Int64

LOAD: Final = 4
"""So many items that moved together are a load."""
MOST: Final = 3.0
"""A load counts as no more than e^3 times, and no less than e^-3 times, as long as usual."""
_SLACK_H: Final = 0.05
_UNIT: Final = 1e-6
"""Logarithms are added up as whole millionths: sums are then the same in any order."""


@dataclass(frozen=True, slots=True)
class Roads:
    """Loads of each scan's lot that had arrived before it; columns of length n.

    Attributes:
        loads: how many there were whose usual time the network knows.
        pace: mean of log(hours / usual hours), 0 without any.
        off: mean of its absolute value.
    """

    loads: Int64
    pace: Float32
    off: Float32


def roads(table: LotTable, group: Index, network: BoundNetwork) -> Roads:
    """Roads of some scans.

    Args:
        table: counters of their lots.
        group: intp (n,), the group of each scan.
        network: what is known of usual times.
    """
    lot = numbered(changes(table.lot))
    moment = numbered(changes(table.lot, table.time_us))
    arrived, pace = _loads(table, network)
    moments = int(moment[-1]) + 1 if len(moment) else 0
    first = np.searchsorted(lot, lot[group])

    def before(values: Float64 | None) -> Float64:
        """Sum of the loads' values, or their number, before each scan within its lot."""
        total = np.bincount(moment[arrived], weights=values, minlength=moments).cumsum()
        upto = np.concatenate(([0.0], total))
        return upto[moment[group]] - upto[moment[first]]

    loads = before(None)
    number = np.maximum(loads, 1.0) / _UNIT
    return Roads(
        loads=loads.astype(np.int64),
        pace=(before(pace) / number).astype(np.float32),
        off=(before(np.abs(pace)) / number).astype(np.float32),
    )


def _loads(table: LotTable, network: BoundNetwork) -> tuple[Index, Float64]:
    """The group that each load arrived in, and its pace in millionths."""
    start, end = table.start, table.end
    op_was, op = table.op[start], table.op[end]
    leg = (table.moved >= LOAD) & (OP_DIRECTION[op_was] == -1) & (op == op_was + 1)
    at = np.flatnonzero(leg & (table.site[start] != table.site[end]))
    start, end = start[at], end[at]
    usual_h = network.usual_h(table.site[start], table.op[start], table.site[end], table.op[end])
    known = np.flatnonzero(usual_h > 0)
    start, end, usual_h = start[known], end[known], usual_h[known]
    # What would have been normal may let a box arrive before the rest of its load has left.
    hours = np.maximum(table.time_us[end] - table.time_us[start], 0) / HOUR_US
    pace = np.log((hours + _SLACK_H) / (usual_h + _SLACK_H))
    return end, np.rint(np.clip(pace, -MOST, MOST) / _UNIT)
