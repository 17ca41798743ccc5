"""Logged scans as a table, for the next training: each scan once, with what is said of it now."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import pyarrow as pa

from logbook import Kind, PredictionLog, Record
from trail.rules import FLAG
from trail.scan import ANOMALIES, EVENT_TYPES

PAGE: Final = 5_000
SCHEMA: Final = pa.schema(
    [
        ("id", pa.int64()),
        ("event_id", pa.int64()),
        ("epc_code", pa.string()),
        ("location_id", pa.string()),
        ("event_type", pa.string()),
        ("event_time", pa.timestamp("us", "UTC")),
        ("received", pa.timestamp("us", "UTC")),
        *((f"flag_{name}", pa.bool_()) for name in ANOMALIES),
    ]
)
"""A logged scan: its number in the log, the columns that `intake` reads, when it was asked about,
and whether the latest verdict on it flags each type. `event_id` is null where there was none."""


def scans(log: PredictionLog, upto: int, after: int = 0) -> pa.Table:
    """Logged scans with ids above `after` and up to `upto`, in the order of the log.

    Returns:
        A table of `SCHEMA`; 0.1 KB of memory a scan.

    Raises:
        LogError: the log cannot be read.
    """
    return pa.Table.from_batches(list(_batches(log, upto, after)), schema=SCHEMA)


def _batches(log: PredictionLog, upto: int, after: int) -> Iterator[pa.RecordBatch]:
    last = after
    while last < upto:
        page = log.since(last, PAGE)
        if not page:
            return
        last = page[-1].id
        yield _batch([record for record in page if record.id <= upto])


def _batch(page: list[Record]) -> pa.RecordBatch:
    asked = [record.scan for record in page]
    flags = np.array([_flags(record) for record in page], dtype=bool).reshape(-1, len(ANOMALIES))
    times = [[scan.time_us for scan in asked], [record.received_us for record in page]]
    columns = [
        pa.array([record.id for record in page], pa.int64()),
        pa.array([s.event_id if s.event_id >= 0 else None for s in asked], pa.int64()),
        pa.array([scan.epc for scan in asked], pa.string()),
        pa.array([scan.location_id for scan in asked], pa.string()),
        pa.array([EVENT_TYPES[scan.op] for scan in asked], pa.string()),
        *(pa.array(np.array(t, np.int64), pa.int64()).cast(SCHEMA.types[5]) for t in times),
        *(pa.array(flags[:, k]) for k in range(len(ANOMALIES))),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _flags(record: Record) -> list[bool]:
    said = [verdict for _, _, verdict in record.verdicts if verdict.kind != Kind.SHADOW]
    if not said:
        return [False] * len(ANOMALIES)
    return [score >= FLAG for score in said[-1].score]
