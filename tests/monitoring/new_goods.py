"""Sales that a log holds already, and goods of another kind that the service is asked about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from logbook import Entry, Kind, LoggedScan, LoggedVerdict, PredictionLog, Request
from models.bundle import seal
from monitoring.policy import DAY
from monitoring.reference import MONITORED, WINDOWS, Batch, Calibration, Reference, box_key
from tests.monitoring.watched import START
from trail.scan import EVENT_TYPES

A_DAY = 400
BOX = 100
REFERENCE_DAYS = 28
FIRST_EVENT = 10**6


def sales(random: np.random.Generator, n: int) -> np.ndarray:
    """Monitored columns of n sales, float32."""
    columns = random.normal(10, 1, (n, len(MONITORED))).astype(np.float32)
    for i, column in enumerate(MONITORED):
        if column.kind == "categorical":
            columns[:, i] = 9 if column.name == "op" else 0
    return columns


def of_sales(folder: Path) -> Path:
    """Give a bundle the reference of a shop: sales, and nothing else."""
    n = REFERENCE_DAYS * A_DAY
    return of_columns(folder, sales(np.random.default_rng(1), n))


def of_columns(folder: Path, columns: np.ndarray) -> Path:
    """Give a bundle the reference of n scans, spread over its days, with fixed thresholds."""
    n = len(columns)
    time_us = START + np.arange(n) * (REFERENCE_DAYS * DAY // n)
    batch = Batch.of(columns, ["101"] * n, box_key(np.arange(n) // BOX, time_us), time_us)
    made = Reference.make(batch)
    fixed = {window.name: (0.3,) * len(made.measured) for window in WINDOWS}
    usual = {window.name: A_DAY for window in WINDOWS}
    calibration = Calibration(
        "calibrated", "", "box", 1, 100, 200, 0.1, 0.05, (0.01, 0.17), 0.05, fixed, usual
    )
    replace(made, calibration=calibration).save(folder)
    seal(folder)
    return folder


def log_sales(log: PredictionLog, days: int, version: str, digest: str) -> int:
    """Log days of sales after those of the reference, as the service does; returns the scans."""
    five = (0.0,) * 5
    verdict = LoggedVerdict(Kind.GIVEN, version, digest, "model", "high", five, five, five)
    blobs = sales(np.random.default_rng(2), days * A_DAY).astype("<f4")
    for first in range(0, len(blobs), A_DAY):
        rows = range(first, first + A_DAY)
        scans = [
            LoggedScan(f"001.{i}", i // 40, i, "101", 9, _time_us(0) + i * (DAY // A_DAY))
            for i in rows
        ]
        request = Request(f"sales{first}", scans[-1].time_us, "/score")
        mine = [blobs[i].tobytes() for i in rows]
        log.append(Entry(request, scans, [verdict] * A_DAY, monitored=mine))
    return len(blobs)


def boxes(first_day: int, days: int) -> Sequence[dict[str, object]]:
    """Bodies of requests, each a box of goods that is commissioned in one second.

    Args:
        first_day: days after those of the reference.
        days: how many.
    """
    return [_box(first_day * (A_DAY // BOX) + i) for i in range(days * (A_DAY // BOX))]


def _box(number: int) -> dict[str, object]:
    when = np.datetime64(_time_us(number * BOX), "us")
    made = str(when)[:10].replace("-", "")
    return {
        "data": [
            {
                "event_id": FIRST_EVENT + number * BOX + i,
                "location_id": 101,
                "epc_code": f"001.8804823.1293291.{number:06d}.{made}.{number * BOX + i:09d}",
                "event_type": EVENT_TYPES[0],
                "event_time": f"{when}Z",
            }
            for i in range(BOX)
        ]
    }


def _time_us(scan: int) -> int:
    return START + REFERENCE_DAYS * DAY + scan * (DAY // A_DAY)
