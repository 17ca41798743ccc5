"""Small streams of scans for tests of the statistics."""

from __future__ import annotations

import numpy as np

from monitoring.reference import Batch, Column
from trail.scan import DAY_US

COLUMNS = (
    Column("x", "numeric", "a feature"),
    Column("y", "numeric", "another"),
    Column("op", "categorical", "an operation"),
)
SITES = ("A", "B", "C")
MONDAY = 18_268
"""Day number of a Monday, since 1970."""


def days_of(
    days: int,
    seed: int = 0,
    first: int = MONDAY,
    boxes: int = 40,
    size: int = 10,
    alike: float = 0.3,
    weekly: float = 0.0,
    daily: float = 0.0,
    lasting: float = 0.0,
) -> Batch:
    """Boxes of scans, as many each day, by time.

    Args:
        days: how many.
        seed: of the numbers.
        first: number of the first day.
        boxes: boxes a day.
        size: scans a box.
        alike: share of a feature's variance that a box has in common.
        weekly: sd of a cycle over the weekdays.
        daily: sd of what a day has in common.
        lasting: share of that which the next day keeps.
    """
    rng = np.random.default_rng(seed)
    n, day = days * boxes, np.repeat(np.arange(days), boxes)
    common = np.zeros((days, 2))
    for i in range(days):
        fresh = np.sqrt(1 - lasting**2) * daily * rng.normal(size=2)
        common[i] = lasting * common[i - 1] + fresh if i else daily * rng.normal(size=2)
    cycle = weekly * np.sqrt(2) * np.sin(2 * np.pi * (np.arange(days) + first) / 7)
    centre = (common + cycle[:, None])[day] + np.sqrt(alike) * rng.normal(size=(n, 2))
    columns = np.empty((n * size, 3), np.float32)
    columns[:, :2] = np.repeat(centre, size, axis=0)
    columns[:, :2] += np.sqrt(1 - alike) * rng.normal(size=(n * size, 2))
    columns[:, 2] = np.repeat(rng.integers(0, 4, n), size)
    time_us = (first + day) * DAY_US + np.sort(rng.integers(0, DAY_US, (days, boxes))).ravel()
    return Batch(
        columns,
        np.repeat(rng.integers(0, len(SITES), n), size).astype(np.int32),
        SITES,
        np.repeat(np.arange(n) + first * 1_000_000, size),
        np.repeat(time_us, size),
    )
