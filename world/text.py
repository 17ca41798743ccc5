"""Codes and numbers as text, vectorised."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trail.epc import HEADER

_CODE_WIDTHS: Final = (3, 7, 7, 6, 8, 9)


def digits(value: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.uint8]:
    """ASCII digits of numbers, uint8 (n, width), zeros in front."""
    out = np.empty((len(value), width), dtype=np.uint8)
    rest = value.astype(np.int64)
    for column in range(width - 1, -1, -1):
        rest, digit = np.divmod(rest, 10)
        out[:, column] = digit + ord("0")
    return out


def strings(characters: npt.NDArray[np.uint8]) -> pa.StringArray:
    """Rows of ASCII characters as an Arrow string array."""
    n, width = characters.shape
    offsets = np.arange(n + 1, dtype=np.int32) * width
    flat = np.ascontiguousarray(characters)
    return pa.StringArray.from_buffers(n, pa.py_buffer(offsets), pa.py_buffer(flat))


def write_codes(
    company: npt.NDArray[np.int64],
    product: npt.NDArray[np.int64],
    lot: npt.NDArray[np.int64],
    made_day: npt.NDArray[np.int64],
    serial: npt.NDArray[np.int64],
) -> pa.StringArray:
    """EPC codes of their parts; `made_day` in days since 1970."""
    n = len(serial)
    parts = (np.full(n, HEADER), company, product, lot, date_number(made_day), serial)
    dot = np.full((n, 1), ord("."), dtype=np.uint8)
    blocks: list[npt.NDArray[np.uint8]] = []
    for part, width in zip(parts, _CODE_WIDTHS, strict=True):
        blocks += [digits(part, width), dot]
    return strings(np.concatenate(blocks[:-1], axis=1))


def date_number(day: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Days since 1970 as the number yyyymmdd."""
    distinct, inverse = np.unique(day, return_inverse=True)
    text = np.datetime_as_string(distinct.astype("datetime64[D]"))
    number = np.array([int(t.replace("-", "")) for t in text], dtype=np.int64)
    return number[inverse] if len(number) else np.zeros(0, dtype=np.int64)
