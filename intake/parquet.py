"""Parquet, batch by batch, with columns of text or of types."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from intake import header
from intake.block import Block
from intake.errors import IntakeError

BATCH_ROWS: Final = 1 << 20


def read_blocks(path: Path, batch_rows: int = BATCH_ROWS) -> Iterator[Block]:
    """The rows of a Parquet file, a batch at a time.

    Raises:
        IntakeError: it is not Parquet, or a required column is missing.
    """
    names = read_names(path)
    found = header.match(names, path.name)
    header.require(found, names, path.name)
    try:
        file = pq.ParquetFile(path, read_dictionary=_text_columns(path, names, found))
        total = max(file.metadata.num_rows, 1)
        first = 0
        wanted = [names[place] for place in found.values()]
        for batch in file.iter_batches(batch_rows, columns=wanted, use_threads=False):
            columns = {name: batch.column(names[place]) for name, place in found.items()}
            row = np.arange(first, first + batch.num_rows, dtype=np.int64)
            first += batch.num_rows
            yield Block(columns, row, share=first / total)
    except (pa.ArrowInvalid, OSError) as error:
        raise _not_parquet(path, error) from error


def read_names(path: Path) -> list[str]:
    """Column names of a Parquet file.

    Raises:
        IntakeError: it is not Parquet.
    """
    try:
        return [str(name) for name in pq.read_schema(path).names]
    except (pa.ArrowInvalid, OSError) as error:
        raise _not_parquet(path, error) from error


def _text_columns(path: Path, names: list[str], found: dict[str, int]) -> list[str]:
    schema = pq.read_schema(path)
    coded = ("epc_code", "location_id", "event_type", "scan_location")
    columns = [names[found[name]] for name in coded if name in found]
    return [
        name
        for name in columns
        if pa.types.is_string(schema.field(name).type)
        or pa.types.is_large_string(schema.field(name).type)
    ]


def _not_parquet(path: Path, error: Exception) -> IntakeError:
    return IntakeError(f"{path.name} cannot be read as Parquet ({error}); export it again")
