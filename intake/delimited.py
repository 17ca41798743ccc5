"""Delimited text, block by block: CSV and TSV of any size, whatever their rows hold.

Each block ends at a line end. A block without surprises goes through Arrow's parser; lines with
another number of fields than the header are cut out first; whatever has quotes over line ends or
stray carriage returns goes through Python's `csv`, slower, line by line. Arrow's own handler of
invalid rows is not used: it hides the text and numbers of some rows.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as arrow_csv

from intake import header
from intake.block import Block, Broken, printable
from intake.errors import IntakeError
from trail.scan import REQUIRED_COLUMNS

BLOCK_BYTES: Final = 2 << 20
"""Larger blocks fall out of the processor's cache."""
LINE_BYTES: Final = 16 << 20
"""A longer line is no line of scans."""

DELIMITERS: Final = {"\t": "TAB", ",": "comma", ";": "semicolon"}
_CODED: Final = ("epc_code", "location_id", "event_type", "scan_location")
_QUOTED_LINES: Final = 50
"""A quote that stays open for more lines than this was never closed."""


@dataclass(frozen=True, slots=True)
class Head:
    """What the first line says.

    Attributes:
        names: column names as they stand in the file.
        found: position of each wanted column.
        delimiter: one character.
        start: byte where the data begin.
        bare_cr: lines end with a bare carriage return.
    """

    names: tuple[str, ...]
    found: dict[str, int]
    delimiter: str
    start: int
    bare_cr: bool


def read_head(path: Path, wanted: tuple[str, ...] = header.WANTED_COLUMNS) -> Head:
    """Read the header line and find the delimiter.

    Raises:
        IntakeError: the file is empty, is not text in UTF-8, or a column stands twice.
    """
    with path.open("rb") as file:
        raw = file.read(1 << 20)
    if not raw.removeprefix(b"\xef\xbb\xbf").strip():
        raise IntakeError(f"{path.name} is empty; export the scans again, with their header")
    start = 3 if raw.startswith(b"\xef\xbb\xbf") else 0
    bare_cr = b"\n" not in raw and b"\r" in raw
    end = b"\r" if bare_cr else b"\n"
    while raw[start:].startswith((b"\n", b"\r")):
        start += 1
    stop = raw.find(end, start)
    line = raw[start : stop if stop >= 0 else len(raw)].rstrip(b"\r\n")
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\x00" in line:
        raise IntakeError(f"{path.name} is not UTF-8 text (UTF-16 or binary); save it as UTF-8 CSV")
    text = line.decode("utf-8", errors="backslashreplace")
    split = {d: _names(text, d) for d in DELIMITERS}
    best = max(
        DELIMITERS, key=lambda d: (len(header.match(split[d], path.name, wanted)), len(split[d]))
    )
    found = header.match(split[best], path.name, wanted)
    return Head(split[best], found, best, stop + 1 if stop >= 0 else len(raw), bare_cr)


def require(head: Head, file: str, required: tuple[str, ...] = REQUIRED_COLUMNS) -> None:
    """Demand the required columns of a delimited file.

    Raises:
        IntakeError: a column is missing, or the header has one column: a wrong delimiter.
    """
    if len(head.names) == 1 and len(required) > 1:
        known = ", ".join(DELIMITERS.values())
        raise IntakeError(
            f"{file}: the header {head.names[0][:200]!r} is one column under each known delimiter "
            f"({known}); save the file with one of them, and {', '.join(required)} as columns"
        )
    header.require(head.found, head.names, file, required)


def read_blocks(path: Path, head: Head, block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """The data rows of a file, a block at a time.

    Args:
        path: a delimited file.
        head: its header.
        block_bytes: how much to read at once.

    Raises:
        IntakeError: a line is longer than `LINE_BYTES`.
    """
    size = max(path.stat().st_size, 1)
    row = 0
    with path.open("rb") as file:
        file.seek(head.start)
        for body, last in _bodies(file, path.name, head.bare_cr, block_bytes):
            block, used = _parse(body, head, row, last)
            body.keep(used)
            row += len(block.row) + len(block.broken)
            yield Block(block.columns, block.row, block.broken, min(1.0, file.tell() / size))


class _Body:
    """Bytes of whole lines, and how many of them the parser has used."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.rest = b""

    def keep(self, used: int) -> None:
        """Leave what follows the used bytes to the next block."""
        self.rest = self.raw[used:]


def _bodies(
    file: IO[bytes], name: str, bare_cr: bool, block_bytes: int
) -> Iterator[tuple[_Body, bool]]:
    rest = b""
    while True:
        chunk = file.read(block_bytes)
        if bare_cr:
            chunk = chunk.replace(b"\r", b"\n")
        if not chunk:
            if rest:
                yield _Body(rest if rest.endswith(b"\n") else rest + b"\n"), True
            return
        end = chunk.rfind(b"\n") + 1
        if not end:
            rest += chunk
            if len(rest) > LINE_BYTES:
                raise IntakeError(
                    f"{name} has a line of more than {LINE_BYTES >> 20} MB; is it a CSV file?"
                )
            continue
        body = _Body(rest + chunk[:end])
        yield body, False
        rest = body.rest + chunk[end:]


def _parse(body: _Body, head: Head, row: int, last: bool) -> tuple[Block, int]:
    """A block of the lines, and how many bytes of them it covers."""
    raw = body.raw
    simple = b"\r" not in raw or raw.count(b"\r") == raw.count(b"\r\n")
    if simple and b'"' not in raw:
        return _parse_plain(raw, head, row), len(raw)
    if simple and _quotes_close(raw):
        table = _arrow(raw, head, quote='"')
        if table is not None and len(table) == _lines(raw):
            return Block(_columns(table), _count(row, len(table))), len(raw)
    return _parse_slowly(raw, head, row, last)


def _parse_plain(raw: bytes, head: Head, row: int) -> Block:
    """Lines without quotes: those with another number of fields are broken rows."""
    table = _arrow(raw, head, quote=False)
    if table is not None and len(table) == _lines(raw):
        return Block(_columns(table), _count(row, len(table)))
    bytes_ = np.frombuffer(raw, dtype=np.uint8)
    end = np.flatnonzero(bytes_ == ord("\n")) + 1
    start = np.concatenate([[0], end[:-1]])
    fields = np.add.reduceat(bytes_ == ord(head.delimiter), start, dtype=np.int64) + 1
    length = end - start - 1
    blank = (length == 0) | ((length == 1) & (bytes_[start] == ord("\r")))
    number = row + np.cumsum(~blank) - 1
    good = ~blank & (fields == len(head.names))
    broken = [
        Broken(
            int(number[i]), _wrong_fields(int(fields[i]), head), printable(raw[start[i] : end[i]])
        )
        for i in np.flatnonzero(~blank & ~good)
    ]
    kept = _arrow(_runs(raw, start, end, good), head, quote=False)
    if kept is None or len(kept) != good.sum():
        raise AssertionError("lines of the right number of fields did not parse")
    return Block(_columns(kept), number[good].astype(np.int64), broken)


def _parse_slowly(raw: bytes, head: Head, row: int, last: bool) -> tuple[Block, int]:
    """Line by line with Python's `csv`, on bytes read as Latin-1 so that none is changed."""
    lines = raw.decode("latin-1").split("\n")[:-1]
    columns: dict[str, list[bytes]] = {name: [] for name in head.found}
    numbers: list[int] = []
    broken: list[Broken] = []
    i = used = 0
    while i < len(lines):
        fields, taken, reason = _record(lines, i, head.delimiter, last)
        if not taken:
            break
        text = "\n".join(lines[i : i + taken])
        i += taken
        used += len(text) + 1
        if not text.strip("\r\n"):
            continue
        if not reason and len(fields) != len(head.names):
            reason = _wrong_fields(len(fields), head)
        if reason:
            broken.append(Broken(row, reason, printable(text.encode("latin-1"))))
        else:
            numbers.append(row)
            for name, place in head.found.items():
                columns[name].append(fields[place].encode("latin-1"))
        row += 1
    arrays = {name: pa.array(values, pa.binary()) for name, values in columns.items()}
    return Block(arrays, np.array(numbers, dtype=np.int64), broken), used


def _record(lines: list[str], at: int, delimiter: str, last: bool) -> tuple[list[str], int, str]:
    """Fields of the record that begins at a line, how many lines it takes, what is wrong.

    Zero lines means that the record goes on beyond the last line given.
    """
    for taken in range(1, _QUOTED_LINES + 1):
        if at + taken > len(lines):
            if not last:
                return [], 0, ""
            break
        text = "\n".join(lines[at : at + taken]).removesuffix("\r")
        closed = text.count('"') % 2 == 0
        try:
            rows = list(csv.reader([text], delimiter=delimiter, strict=not closed))
        except csv.Error as error:
            if closed or "unexpected end" not in str(error):
                return [], taken if closed else 1, f"the row cannot be split: {error}"
            continue
        return (rows[0] if rows else []), taken, ""
    return [], 1, "a quote is opened and never closed"


def _quotes_close(raw: bytes) -> bool:
    """Whether each line has an even number of quotes, so that no field goes over a line end."""
    bytes_ = np.frombuffer(raw, dtype=np.uint8)
    quotes = np.flatnonzero(bytes_ == ord('"'))
    ends = np.flatnonzero(bytes_ == ord("\n"))
    return not (np.searchsorted(quotes, ends) & 1).any()


def _lines(raw: bytes) -> int:
    return int(np.count_nonzero(np.frombuffer(raw, dtype=np.uint8) == ord("\n")))


def _arrow(raw: bytes, head: Head, quote: str | bool) -> pa.Table | None:
    """Rows by Arrow's parser; None where some line has another number of fields."""
    names = [str(i) for i in range(len(head.names))]
    types = {
        str(place): pa.dictionary(pa.int32(), pa.string()) if name in _CODED else pa.string()
        for name, place in head.found.items()
    }
    if not raw:
        schema = pa.schema([(name, types[str(place)]) for name, place in head.found.items()])
        return schema.empty_table()
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(raw),
            read_options=arrow_csv.ReadOptions(
                use_threads=False, block_size=len(raw) + 1, column_names=names
            ),
            parse_options=arrow_csv.ParseOptions(delimiter=head.delimiter, quote_char=quote),
            convert_options=arrow_csv.ConvertOptions(
                # UTF-8 is checked later, value by value, so that one bad byte costs one row
                check_utf8=False,
                column_types=types,
                include_columns=list(types),
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid:
        return None
    return table.rename_columns(list(head.found))


def _columns(table: pa.Table) -> dict[str, pa.Array]:
    columns = {}
    for name in table.column_names:
        column = table[name]
        if pa.types.is_dictionary(column.type):
            column = column.unify_dictionaries()
        merged = column.combine_chunks()
        columns[name] = merged.chunk(0) if isinstance(merged, pa.ChunkedArray) else merged
    return columns


def _names(line: str, delimiter: str) -> tuple[str, ...]:
    rows = list(csv.reader([line], delimiter=delimiter))
    return tuple(name.strip() for name in rows[0]) if rows else ()


def _wrong_fields(fields: int, head: Head) -> str:
    return f"{fields} field{'s' * (fields != 1)} where the header has {len(head.names)}"


def _count(first: int, length: int) -> npt.NDArray[np.int64]:
    return np.arange(first, first + length, dtype=np.int64)


def _runs(
    raw: bytes,
    start: npt.NDArray[np.int64],
    end: npt.NDArray[np.int64],
    good: npt.NDArray[np.bool_],
) -> bytes:
    """The good lines, copied run by run."""
    edge = np.flatnonzero(np.diff(np.concatenate([[False], good, [False]]).astype(np.int8)))
    return b"".join(raw[start[a] : end[b - 1]] for a, b in zip(edge[::2], edge[1::2], strict=True))
