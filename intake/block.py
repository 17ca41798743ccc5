"""A block: some rows of one file, as every reader hands them on."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Broken:
    r"""A row that could not even be split into columns.

    Attributes:
        row: 0-based data row in its file.
        reason: what is wrong with it.
        raw: the row as it stands, undecodable bytes written like `\xff`.
    """

    row: int
    reason: str
    raw: str


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows of one file.

    Attributes:
        columns: Arrow arrays of one length m by canonical name, of any type a file can hold.
        row: int64 (m,), 0-based data row in the file.
        broken: rows of this part of the file that have no columns.
        share: how much of the file has been read after this block, 0-1.
    """

    columns: dict[str, pa.Array]
    row: Int64
    broken: list[Broken] = field(default_factory=list)
    share: float = 1.0


def printable(raw: bytes, limit: int = 2000) -> str:
    r"""Bytes as text; what is not UTF-8 is written like `\xff`, so nothing is replaced."""
    text = raw.rstrip(b"\r\n").decode("utf-8", errors="backslashreplace")
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"
