"""Opening hours: when a site receives and ships; times are seconds since 1970, local = UTC."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from trail.scan import Op

Float64 = npt.NDArray[np.float64]

HOUR_S: Final = 3600.0
DAY_S: Final = 86400.0
SUNDAY: Final = 6

OPEN_HOURS: Final = dict.fromkeys(Op, (8.0, 20.0)) | {
    Op.RETAIL_IN: (9.0, 21.0),
    Op.RETAIL_OUT: (9.0, 21.0),
    Op.SALE: (10.0, 21.0),
}
"""Local hours (open, close) in which an operation happens."""

QUEUE_MEAN_H: Final = 1.0
"""Lorries that come at night are unloaded one after the other in the morning."""
SHIFT_SHAPE: Final = (1.2, 2.2)
"""Beta shape of a departure in the opening hours: mostly in the first half."""
SALE_SHAPE: Final = (1.8, 1.5)
"""Beta shape of a sale: mostly in the afternoon."""


def weekday(time_s: Float64) -> npt.NDArray[np.int64]:
    """Day of the week, Monday is 0 (1970-01-01 was a Thursday)."""
    return (np.floor(time_s / DAY_S).astype(np.int64) + 3) % 7


def arrive(time_s: Float64, op: Op, rng: np.random.Generator) -> Float64:
    """When goods that come at `time_s` are read: at once, or in the queue of the next opening."""
    opens, closes = OPEN_HOURS[op]
    day = np.floor(time_s / DAY_S)
    hour = (time_s - day * DAY_S) / HOUR_S
    day = day + (hour >= closes)
    closed = (hour < opens) | (hour >= closes)
    if op != Op.SALE:
        on_sunday = weekday(day * DAY_S) == SUNDAY
        closed |= on_sunday
        day = day + on_sunday
    queue = np.minimum(rng.exponential(QUEUE_MEAN_H, len(time_s)), closes - opens - 0.1)
    return np.where(closed, day * DAY_S + (opens + queue) * HOUR_S, time_s)


def depart(
    after_s: Float64, dwell_s: Float64, op: Op, rng: np.random.Generator, least_s: float = 1800.0
) -> Float64:
    """When goods that came at `after_s` leave: on the day their dwell ends, in opening hours."""
    opens, closes = OPEN_HOURS[op]
    day = np.floor((after_s + dwell_s) / DAY_S)
    shape = SALE_SHAPE if op == Op.SALE else SHIFT_SHAPE
    in_day = (opens + (closes - opens) * rng.beta(*shape, len(after_s))) * HOUR_S
    day = day + (day * DAY_S + in_day < after_s + least_s)
    if op != Op.SALE:
        day = day + (weekday(day * DAY_S) == SUNDAY)
    return day * DAY_S + in_day
