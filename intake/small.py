"""Small tables (site master, registry, legs) as rows of text."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from intake import delimited, header, parquet
from intake.errors import IntakeError

_SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        file: its file.
        number: 0-based data row.
        values: text by canonical column name, trimmed; "" where there is none.
    """

    file: str
    number: int
    values: Mapping[str, str]

    def wrong(self, column: str, remedy: str) -> IntakeError:
        """The error that names a bad value of this row."""
        value = self.values.get(column, "")
        return IntakeError(f"{self.file}, row {self.number}: {column} {value!r} {remedy}")

    def number_in(self, column: str, low: float, high: float) -> float:
        """A number of this row; NaN where the value is empty.

        Raises:
            IntakeError: it is no number from `low` to `high`.
        """
        text = self.values.get(column, "")
        if text.lower() in ("", "nan", "null", "none"):
            return math.nan
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise self.wrong(column, f"is not a number from {low:g} to {high:g}; correct it")
        return value


def read_rows(
    path: str | Path, wanted: Mapping[str, Sequence[str]], required: Sequence[str]
) -> list[Row]:
    """Read a small table.

    Args:
        path: .csv, .tsv, .txt or .parquet.
        wanted: for each canonical column the further names it may have.
        required: canonical columns that must be there.

    Raises:
        IntakeError: the file is missing, empty, of another type, not UTF-8, lacks a column, or
            a row has another number of fields than the header.
    """
    file = Path(path)
    if not file.is_file():
        raise IntakeError(f"{str(path)!r} does not exist; name a file")
    suffix = file.suffix.lower()
    if suffix not in _SUFFIXES:
        raise IntakeError(f"{file.name}: use one of {', '.join(_SUFFIXES)}")
    everything = tuple(n for name, others in wanted.items() for n in (name, *others))
    if suffix == ".parquet":
        names, table = parquet.read_names(file), _parquet_rows(file)
    else:
        head = delimited.read_head(file, everything)
        delimited.require(head, file.name, ())
        names, table = list(head.names), _text_rows(file, head)
    found: dict[str, int] = {}
    for name, others in wanted.items():
        places = list(header.match(names, file.name, (name, *others)).values())
        if len(places) > 1:
            same = ", ".join(repr(names[i]) for i in places)
            raise IntakeError(f"{file.name}: {same} are the same column {name}; keep one")
        if places:
            found[name] = places[0]
    header.require(found, names, file.name, tuple(required))
    return [
        Row(file.name, i, {name: row[place].strip() for name, place in found.items()})
        for i, row in enumerate(table)
    ]


def _text_rows(file: Path, head: delimited.Head) -> list[list[str]]:
    raw = file.read_bytes()[head.start :]
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 2
        raise IntakeError(
            f"{file.name}, line {line} is not UTF-8; save the file as UTF-8"
        ) from error
    rows: list[list[str]] = []
    for row in csv.reader(io.StringIO(text, newline=None), delimiter=head.delimiter):
        if not row:
            continue
        if len(row) != len(head.names):
            raise IntakeError(
                f"{file.name}, row {len(rows)}: {len(row)} field(s) where the header has "
                f"{len(head.names)}; correct the row {head.delimiter.join(row)[:200]!r}"
            )
        rows.append(row)
    return rows


def _parquet_rows(file: Path) -> list[list[str]]:
    try:
        table = pq.read_table(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise IntakeError(f"{file.name} cannot be read as Parquet ({error})") from error
    columns = [
        ["" if value is None else str(value) for value in column.to_pylist()]
        for column in table.columns
    ]
    return [list(row) for row in zip(*columns, strict=True)]
