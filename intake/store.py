"""Scans as one Parquet file between stages: quick to read, the same bytes for the same scans."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from intake.errors import IntakeError
from intake.table import QUARANTINE_SCHEMA, Intake
from trail import epc
from trail.scan import EVENT_TYPES, Scans
from trail.sites import Sites

_ROW_GROUP: Final = 1 << 20
_DICTIONARY_BYTES: Final = 1 << 30
"""Codes stay one dictionary in the file whatever their number, so that reading hashes nothing."""


def write_scans(intake: Intake, path: str | Path) -> None:
    """Write the scans to a Parquet file.

    Columns: row, event_id?, file_id?, epc_code, location_id, event_type (these three
    dictionary-coded), event_time (microseconds, UTC, without zone).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    n = len(intake.scans)
    writer = None
    try:
        for start in range(0, max(n, 1), _ROW_GROUP):
            group = to_table(intake, slice(start, min(start + _ROW_GROUP, n)))
            if writer is None:
                writer = pq.ParquetWriter(
                    path,
                    group.schema,
                    compression="zstd",
                    compression_level=1,
                    dictionary_pagesize_limit=_DICTIONARY_BYTES,
                    use_dictionary=["epc_code", "location_id", "event_type"],
                )
            writer.write_table(group, row_group_size=_ROW_GROUP)
    finally:
        if writer is not None:
            writer.close()


def to_table(intake: Intake, rows: slice = slice(None)) -> pa.Table:
    """The scans at some rows as the table that `write_scans` writes."""
    scans = intake.scans
    columns = {"row": pa.array(scans.row[rows])}
    for name in ("event_id", "file_id"):
        values = getattr(intake, name)
        if values is not None:
            columns[name] = values[rows]
    sites, ops = pa.array(intake.sites.ids, pa.string()), pa.array(EVENT_TYPES, pa.string())
    columns["epc_code"] = _coded(scans.epc[rows], scans.codes.text)
    columns["location_id"] = _coded(scans.site[rows], sites)
    columns["event_type"] = _coded(scans.op[rows], ops)
    columns["event_time"] = pa.array(scans.time_us[rows], pa.timestamp("us"))
    return pa.table(columns)


def _coded(place: npt.NDArray[np.integer], values: pa.StringArray) -> pa.DictionaryArray:
    """Dictionary-coded with the values that occur: each row group stores its dictionary whole."""
    used = np.bincount(place, minlength=len(values)) > 0
    local = (np.cumsum(used) - 1).astype(np.int32)[place]
    return pa.DictionaryArray.from_arrays(pa.array(local), values.filter(pa.array(used)))


def load_scans(path: str | Path, sites: Sites | None = None) -> Intake:
    """Scans that `write_scans` wrote.

    Args:
        path: the Parquet file.
        sites: the sites that the scans refer to; sites it lacks are added as unknown.

    Returns:
        The scans with their original row numbers; the quarantine is empty.

    Raises:
        IntakeError: the file is missing or not of this kind.
    """
    try:
        file = pq.ParquetFile(path)
        groups = [file.read_row_group(i, use_threads=False) for i in range(file.num_row_groups)]
        table = pa.concat_tables(groups) if groups else file.schema_arrow.empty_table()
        row, time = table["row"], table["event_time"].cast(pa.int64())
        place, codes = _decoded(table["epc_code"])
        site_place, site_ids = _decoded(table["location_id"])
        op_place, ops = _decoded(table["event_type"])
    except (FileNotFoundError, KeyError, pa.ArrowInvalid) as error:
        raise IntakeError(
            f"{str(path)!r} does not hold validated scans ({error}); run the stage validate"
        ) from error
    master = sites if sites is not None else Sites.of([], [], [], [], [])
    known = master.index
    used = np.bincount(site_place, minlength=len(site_ids)) > 0
    unknown = [
        text
        for text, is_used in zip(site_ids.to_pylist(), used, strict=True)
        if is_used and text not in known
    ]
    master = master.with_unknown(unknown)
    index = master.index
    site_of = np.array([index.get(text, -1) for text in site_ids.to_pylist()], dtype=np.int32)
    op_of = np.array([EVENT_TYPES.index(text) for text in ops.to_pylist()], dtype=np.int8)
    scans = Scans(
        epc=place,
        site=site_of[site_place],
        op=op_of[op_place],
        time_us=_numbers(time),
        row=_numbers(row),
        codes=epc.parse(codes),
    )
    return Intake(
        scans=scans,
        sites=master.with_tiers_from(scans.site, scans.op),
        event_id=_optional(table, "event_id"),
        file_id=_optional(table, "file_id"),
        quarantine=QUARANTINE_SCHEMA.empty_table(),
        read=len(scans),
    )


def _decoded(
    column: pa.ChunkedArray,
) -> tuple[npt.NDArray[np.int32], pa.StringArray]:
    column = column.unify_dictionaries()
    if not column.num_chunks:
        return np.zeros(0, dtype=np.int32), pa.array([], pa.string())
    place = np.concatenate([np.asarray(chunk.indices) for chunk in column.chunks])
    return place.astype(np.int32), column.chunk(0).dictionary.cast(pa.string())


def _numbers(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    return np.array(column, dtype=np.int64)


def _optional(table: pa.Table, name: str) -> pa.StringArray | None:
    if name not in table.column_names:
        return None
    return (
        pa.concat_arrays(table[name].chunks)
        if table[name].num_chunks
        else pa.array([], pa.string())
    )
