"""A small reference, a real log that fills, and an evaluator over both."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np

from logbook import Entry, Kind, LoggedScan, LoggedVerdict, PredictionLog, Request
from monitoring.policy import DAY
from monitoring.reference import WINDOWS, Batch, Calibration, Column, Reference, box_key
from monitoring.relay import Relay
from monitoring.store import Store
from monitoring.watch import Champion, Pace, Watch

START = 1_750_000_000_000_000 // DAY * DAY
SITES = ("F1", "W1", "R1")
COLUMNS = (
    Column("gap_h", "numeric", "hours since the previous scan"),
    Column("op", "categorical", "operation"),
)
NAMES = [column.name for column in COLUMNS]
DIGEST = {"7": "a" * 64, "8": "b" * 64}
A_DAY = 400
"""Scans a day."""

_receipts = itertools.count()


def values(random: np.random.Generator, n: int, shift: float = 0.0) -> np.ndarray:
    """Columns of n scans; `shift` moves the numeric one by so many deviations."""
    gap = random.normal(10 + shift, 1, n)
    return np.column_stack([gap, random.integers(0, 4, n)]).astype(np.float32)


def reference(calibrated: bool = True, seed: int = 1) -> Reference:
    """Of 4,000 scans over 28 days, with fixed thresholds."""
    random, n = np.random.default_rng(seed), 4000
    time_us = START + np.sort(random.integers(0, 28 * DAY, n))
    batch = Batch.of(
        values(random, n),
        [SITES[i] for i in random.integers(0, 3, n)],
        box_key(np.arange(n) // 40, time_us // DAY),
        time_us,
    )
    made = Reference.make(batch, COLUMNS)
    measured = len(made.measured)
    calibration = Calibration(
        status="calibrated" if calibrated else "insufficient_reference",
        reason="" if calibrated else "made for a test",
        unit="box",
        block_days=1,
        blocks=100,
        replicates=200,
        target=0.1,
        estimate=0.05 if calibrated else None,
        ci95=(0.01, 0.17) if calibrated else None,
        estimate_warn=0.05,
        thresholds={window.name: (0.15,) * measured for window in WINDOWS},
        usual={window.name: A_DAY for window in WINDOWS},
    )
    return replace(made, calibration=calibration)


def saved(folder: Path, made: Reference) -> Path:
    """The reference in a folder of its own."""
    folder.mkdir(parents=True)
    made.save(folder)
    return folder


class Site:
    """A site that scans: appends to a log, day by day of event time, ten scans a request."""

    def __init__(self, log: PredictionLog, seed: int = 2) -> None:
        self.log = log
        self.random = np.random.default_rng(seed)
        self.at_us = START + 28 * DAY
        self.n = 0

    def days(
        self,
        count: float,
        shift: float = 0.0,
        version: str = "7",
        places: tuple[str, ...] = SITES,
        received_us: int | None = None,
        monitored: bool = True,
    ) -> int:
        """Log so many days; returns the scans."""
        n = int(A_DAY * count)
        columns = values(self.random, n, shift).astype("<f4")
        step = int(count * DAY / max(n, 1))
        for first in range(0, n, 100):
            part = range(first, min(first + 100, n))
            scans = [self._scan(self.at_us + i * step, places) for i in part]
            verdicts = [_verdict(version)] * len(scans)
            blobs = [columns[i].tobytes() if monitored else None for i in part]
            at = scans[-1].time_us if received_us is None else received_us
            request = Request(f"r{next(_receipts)}", at, "/score")
            self.log.append(Entry(request, scans, verdicts, monitored=blobs))
        self.at_us += int(count * DAY)
        return n

    def _scan(self, time_us: int, places: tuple[str, ...]) -> LoggedScan:
        self.n += 1
        place = places[int(self.random.integers(len(places)))]
        return LoggedScan(f"001.{self.n}", self.n // 40, self.n, place, 1, time_us)


def _verdict(version: str) -> LoggedVerdict:
    five = (0.0,) * 5
    return LoggedVerdict(
        Kind.GIVEN, version, DIGEST.get(version, ""), "model", "high", five, five, five
    )


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self, now: float = START / 1e6) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def watching(
    log: PredictionLog,
    store: Store,
    folder: Path,
    clock: Clock,
    version: str = "7",
    event_clock: bool = True,
    **other: object,
) -> Watch:
    """An evaluator that evaluates at every step, and knows the champion."""
    relay = other.pop("relay", None) or Relay(store, None, clock=clock)
    watch = Watch(
        log, store, relay, pace=Pace(0.0, 300.0), event_clock=event_clock, clock=clock, **other
    )
    watch.tell(Champion(version, DIGEST[version], folder))
    return watch


def through(watch: Watch, clock: Clock, rounds: int = 50) -> None:
    """Step until there is nothing more to read, and once more."""
    for _ in range(rounds):
        clock.now += 1
        if not watch.step():
            return
    raise AssertionError("there was always more to read")
