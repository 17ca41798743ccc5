"""JSON lines: one object a line, with the names of the API or of the exports."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from intake import header
from intake.block import Block, Broken, printable
from intake.errors import IntakeError

BATCH_ROWS: Final = 100_000


def read_names(path: Path) -> list[str]:
    """Names in the first object of a file.

    Raises:
        IntakeError: the file is empty, or its first line is no JSON object.
    """
    with path.open("rb") as file:
        for line in file:
            text = line.removeprefix(b"\xef\xbb\xbf").strip()
            if text:
                value = _object(text)
                if value is None:
                    raise IntakeError(
                        f"{path.name}: the first line {printable(text, 200)!r} is no JSON object; "
                        "write one object a line"
                    )
                return list(value)
    raise IntakeError(f"{path.name} is empty; export the scans again")


def read_blocks(path: Path, batch_rows: int = BATCH_ROWS) -> Iterator[Block]:
    """The rows of a file of JSON lines; a line that is no object is a broken row.

    Raises:
        IntakeError: as `read_names`, or the first object lacks a required column.
    """
    names = read_names(path)
    header.require(header.match(names, path.name), names, path.name)
    size, done, row = max(path.stat().st_size, 1), 0, 0
    batch: list[tuple[int, dict[str, Any]]] = []
    broken: list[Broken] = []
    with path.open("rb") as file:
        for line in file:
            done += len(line)
            text = line.removeprefix(b"\xef\xbb\xbf").strip()
            if not text:
                continue
            value = _object(text)
            if value is None:
                broken.append(Broken(row, "the line is no JSON object", printable(text)))
            else:
                batch.append((row, value))
            row += 1
            if len(batch) + len(broken) >= batch_rows:
                yield _block(batch, broken, done / size)
                batch, broken = [], []
    yield _block(batch, broken, 1.0)


def _block(batch: list[tuple[int, dict[str, Any]]], broken: list[Broken], share: float) -> Block:
    keys = {header.key(name): name for name in header.WANTED_COLUMNS}
    rows = [
        {keys[k]: _text(v) for name, v in value.items() if (k := header.key(name)) in keys}
        for _, value in batch
    ]
    columns = {
        name: pa.array([row.get(name) for row in rows], pa.string())
        for name in header.WANTED_COLUMNS
    }
    return Block(columns, np.array([row for row, _ in batch], dtype=np.int64), broken, share)


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        # a lone surrogate is valid JSON and no text; it is shown, not replaced
        return value and value.encode("utf-8", "backslashreplace").decode("utf-8")
    return json.dumps(value)
