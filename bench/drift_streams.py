"""Streams with and without drift, for the drift benchmark: eight features of goods that move in
boxes, an operation, twenty sites, 2,000 scans a day.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from monitoring.reference import Batch, Column
from trail.scan import DAY_US

RATE: Final = 2000
FEATURES: Final = 8
SITES: Final = 20
OPS: Final = 10
COLUMNS: Final = (
    *(Column(f"x{i}", "numeric", "a feature") for i in range(FEATURES)),
    Column("op", "categorical", "operation"),
)
REFERENCE_DAYS: Final = 28
WARM_UP: Final = 7
DAYS: Final = 30


@dataclass(frozen=True, slots=True)
class Traffic:
    """How scans of one kind vary.

    Attributes:
        box: scans that come together.
        alike: share of a feature's variance that a box has in common.
        weekly: sd of a cycle over the weekdays.
        day: share of the variance that a day has in common.
    """

    box: int = 1
    alike: float = 0.0
    weekly: float = 0.0
    day: float = 0.0


KINDS: Final = {
    "iid": Traffic(),
    "boxes": Traffic(40, 0.3),
    "weekly": Traffic(weekly=0.5),
    "boxes+weekly": Traffic(40, 0.3, 0.5),
    "boxes+weekly+day": Traffic(40, 0.3, 0.5, 0.05),
}

Drift = Callable[[Batch, float, np.random.Generator], Batch]
"""Changes a day's scans; the second argument is the days since it began, 0 on its first day."""


def day(kind: Traffic, number: int, rng: np.random.Generator) -> Batch:
    """The scans of one day, by time."""
    boxes = RATE // kind.box
    phase = number % 7 / 7 + np.arange(FEATURES) / FEATURES
    centre = kind.weekly * np.sqrt(2) * np.sin(2 * np.pi * phase)
    centre = centre + np.sqrt(kind.day) * rng.normal(size=FEATURES)
    common = centre + np.sqrt(kind.alike) * rng.normal(size=(boxes, FEATURES))
    own = np.sqrt(1 - kind.alike - kind.day) * rng.normal(size=(RATE, FEATURES))
    box = np.repeat(np.arange(boxes), kind.box)
    columns = np.empty((RATE, len(COLUMNS)), np.float32)
    columns[:, :FEATURES] = common[box] + own
    columns[:, FEATURES] = rng.integers(0, OPS, boxes)[box]
    site = rng.integers(0, SITES, boxes).astype(np.int32)[box]
    time_us = np.sort(rng.integers(0, DAY_US, boxes))[box] + number * DAY_US
    names = tuple(f"S{i}" for i in range(SITES))
    return Batch(columns, site, names, box + number * RATE, time_us)


def joined(batches: list[Batch]) -> Batch:
    """Batches one after the other."""
    return replace(
        batches[0],
        columns=np.concatenate([b.columns for b in batches]),
        site=np.concatenate([b.site for b in batches]),
        box=np.concatenate([b.box for b in batches]),
        time_us=np.concatenate([b.time_us for b in batches]),
    )


def reference_of(kind: Traffic, rng: np.random.Generator) -> Batch:
    """The scans that a reference is made from."""
    return joined([day(kind, number, rng) for number in range(REFERENCE_DAYS)])


def stream_of(
    kind: Traffic, rng: np.random.Generator, drift: Drift | None = None, began: int = WARM_UP
) -> list[Batch]:
    """WARM_UP + DAYS days after the reference; drift begins after so many of them."""
    days = []
    for i in range(WARM_UP + DAYS):
        batch = day(kind, REFERENCE_DAYS + i, rng)
        days.append(batch if drift is None or i < began else drift(batch, i - began, rng))
    return days


def shifted(sd: float) -> Drift:
    """The mean of one feature moves."""
    return lambda batch, _, rng: _with(batch, 0, batch.columns[:, 0] + np.float32(sd))


def wider(batch: Batch, _: float, rng: np.random.Generator) -> Batch:
    """The variance of one feature is half as large again."""
    return _with(batch, 0, batch.columns[:, 0] * np.float32(np.sqrt(1.5)))


def new_category(share: float) -> Drift:
    """An operation never seen, in a share of the boxes."""
    return lambda batch, _, rng: _with(
        batch,
        FEATURES,
        np.where(_boxes(batch, share, rng), np.float32(OPS), batch.columns[:, FEATURES]),
    )


def missing(batch: Batch, since: float, rng: np.random.Generator) -> Batch:
    """One feature is missing in a third of the boxes, for three days."""
    absent = _boxes(batch, 0.33, rng) & (since < 3)
    return _with(batch, 0, np.where(absent, np.float32(np.nan), batch.columns[:, 0]))


def new_factory(share: float) -> Drift:
    """A site never seen takes a share of the boxes."""

    def change(batch: Batch, _: float, rng: np.random.Generator) -> Batch:
        site = np.where(_boxes(batch, share, rng), SITES, batch.site).astype(np.int32)
        return replace(batch, site=site, sites=(*batch.sites, "F9"))

    return change


def ramp(batch: Batch, since: float, rng: np.random.Generator) -> Batch:
    """The mean of one feature moves by 0.05 sd a day."""
    return _with(batch, 0, batch.columns[:, 0] + np.float32(0.05 * (since + 1)))


def longer(batch: Batch, _: float, rng: np.random.Generator) -> Batch:
    """A dwell, lognormal with sigma 0.9 as in real freight, takes half as long again."""
    return _with(batch, 0, batch.columns[:, 0] + np.float32(np.log(1.5) / 0.9))


DRIFTS: Final[dict[str, Drift]] = {
    "mean +0.25 sd": shifted(0.25),
    "mean +0.5 sd": shifted(0.5),
    "mean +1 sd": shifted(1.0),
    "variance x1.5": wider,
    "new category 1 %": new_category(0.01),
    "new category 5 %": new_category(0.05),
    "new category 20 %": new_category(0.20),
    "missing burst": missing,
    "new factory 5 %": new_factory(0.05),
    "new factory 25 %": new_factory(0.25),
    "ramp 0.05 sd/day": ramp,
    "dwell x1.5": longer,
}


def _with(batch: Batch, column: int, values: np.ndarray) -> Batch:
    columns = batch.columns.copy()
    columns[:, column] = values
    return replace(batch, columns=columns)


def _boxes(batch: Batch, share: float, rng: np.random.Generator) -> np.ndarray:
    """Mask of the scans of randomly drawn boxes."""
    box, code = np.unique(batch.box, return_inverse=True)
    return (rng.random(len(box)) < share)[code]
