"""Verdicts on a file as a table: one row a scan, in input order, written slice by slice."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from models.scoring import Scored
from trail.scan import ANOMALIES, Scans

SUFFIXES: Final = (".csv", ".parquet")
SLICE_ROWS: Final = 1 << 20
"""Rows that are text in memory at a time; also the rows of a row group."""


def tables(
    scans: Scans, event_id: pa.StringArray | None, scored: Scored, rows: int = SLICE_ROWS
) -> Iterator[pa.Table]:
    """One row a scan, in input order, at most `rows` of them at a time; at least one table.

    Args:
        scans: n scans.
        event_id: string (n,), or None where the input has no such column.
        scored: the verdicts on them.
        rows: scans a table.
    """
    for start in range(0, max(len(scans), 1), rows):
        yield _table(scans, event_id, scored, slice(start, min(start + rows, len(scans))))


def _table(scans: Scans, event_id: pa.StringArray | None, scored: Scored, part: slice) -> pa.Table:
    columns: dict[str, pa.Array] = {"row": pa.array(scans.row[part])}
    if event_id is not None:
        columns["event_id"] = event_id[part]
    columns["epc_code"] = scans.codes.text.take(pa.array(scans.epc[part]))
    for k, name in enumerate(ANOMALIES):
        columns[name] = pa.array(scored.flag[part, k])
    for k, name in enumerate(ANOMALIES):
        columns[f"{name}Score"] = pa.array(np.round(scored.score[part, k].astype(np.float64), 1))
    columns["source"] = pa.array(scored.source[part], pa.string())
    columns["evidence"] = pa.array(scored.evidence[part], pa.string())
    return pa.table(columns)


def write(
    out: Path,
    parts: Iterator[pa.Table],
    progress: Callable[[int], object] | None = None,
) -> None:
    """Write tables of one schema, one after another; the file appears as a whole or not at all.

    Args:
        out: ends in .csv or .parquet.
        parts: at least one table.
        progress: called with the number of rows written since the last call.

    Raises:
        ValueError: `out` ends in something else.
        OSError: the file cannot be written.
    """
    if out.suffix not in SUFFIXES:
        raise ValueError(f"{str(out)!r} must end in .csv or .parquet")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        fresh = Path(folder) / out.name
        first = next(parts)
        with _writer(fresh, first.schema) as writer:
            part: pa.Table | None = first
            while part is not None:
                writer.write_table(part)
                if progress is not None:
                    progress(len(part))
                part = next(parts, None)
        os.replace(fresh, out)


def _writer(path: Path, schema: pa.Schema) -> pa.csv.CSVWriter | pq.ParquetWriter:
    if path.suffix == ".parquet":
        return pq.ParquetWriter(str(path), schema)
    return pyarrow.csv.CSVWriter(str(path), schema)


def quarantine_path(out: Path) -> Path:
    """Where rows that cannot be read go: `verdicts.quarantine.csv` beside `verdicts.csv`."""
    return out.with_name(f"{out.stem}.quarantine.csv")
