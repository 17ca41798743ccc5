"""EPC codes: vectorised parsing and what is wrong with a malformed one.

`001.8804823.1293291.010004.20250701.000004002` is
header . company (7) . product (7) . lot (6) . manufacture date . serial (9);
dashes may stand in place of dots.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
UInt8 = npt.NDArray[np.uint8]

HEADER: Final = 1
_WIDTHS: Final = (3, 7, 7, 6, 8, 9)
LENGTH: Final = sum(_WIDTHS) + len(_WIDTHS) - 1
_STARTS: Final = tuple(sum(_WIDTHS[:i]) + i for i in range(len(_WIDTHS)))
_COLUMNS: Final = ("company", "product", "lot", "serial", "made_day", "fault", "lot_key")
_SEPARATORS: Final = [start - 1 for start in _STARTS[1:]]
_DIGITS: Final = [place for place in range(LENGTH) if place not in _SEPARATORS]
_FIRST_YEAR, _LAST_YEAR = 1970, 9999
_FEW: Final = 1000
"""Codes below which the calls cost more than the digits."""


class Fault(IntFlag):
    """What is wrong with the shape of a code; 0 is a well-formed code."""

    STRUCTURE = 1
    HEADER = 2
    LOT = 4
    DATE = 8
    SERIAL = 16


_STRUCTURE, _HEADER, _LOT, _DATE, _SERIAL = map(int, Fault)

FAULT_TEXT: Final = {
    Fault.STRUCTURE: "it is not header.company.product.lot.date.serial with 3.7.7.6.8.9 digits",
    Fault.HEADER: f"its header is not {HEADER:03d}",
    Fault.LOT: "its lot number is zero",
    Fault.DATE: "its manufacture date is not a date",
    Fault.SERIAL: "its serial number is zero",
}


@dataclass(frozen=True, slots=True)
class EpcTable:
    """Distinct EPC codes and their parts, one row a code (length m).

    Attributes:
        text: Arrow string array (m,), the codes as they came.
        company: int32 (m,), -1 where the code has no such part.
        product: int32 (m,), likewise.
        lot: int32 (m,), lot number, likewise.
        serial: int32 (m,), likewise.
        made_day: int32 (m,), manufacture date in days since 1970, -1 where unreadable.
        fault: uint8 (m,), a `Fault`.
        lot_key: int64 (m,), identifies (company, product, lot number) in every process; a
            malformed code is a lot of its own.
    """

    text: pa.StringArray
    company: Int32
    product: Int32
    lot: Int32
    serial: Int32
    made_day: Int32
    fault: UInt8
    lot_key: Int64

    def __len__(self) -> int:
        return len(self.company)

    def take(self, index: npt.NDArray[np.integer]) -> EpcTable:
        """The codes at these positions."""
        columns = {name: getattr(self, name)[index] for name in _COLUMNS}
        return EpcTable(text=self.text.take(pa.array(index)), **columns)


def mix(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A 64-bit hash of integers (splitmix64, Steele et al. 2014), the same everywhere."""
    with np.errstate(over="ignore"):
        value = value + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def parse(codes: pa.StringArray) -> EpcTable:
    """Parse distinct codes, vectorised; never raises on a malformed code.

    Args:
        codes: Arrow string array (m,) without nulls.

    Returns:
        The table of the m codes in the given order.
    """
    m = len(codes)
    fault = np.full(m, _STRUCTURE, dtype=np.uint8)
    where = np.flatnonzero(_lengths(codes) == LENGTH)
    if len(where):
        # By position, not by code: each step then reads one row from start to end.
        characters = np.ascontiguousarray(
            _characters(codes if len(where) == m else codes.take(pa.array(where))).T
        )
        digits = characters - np.uint8(ord("0"))
        ok = (digits[_DIGITS] <= 9).all(axis=0)
        separators = characters[_SEPARATORS]
        ok &= ((separators == ord(".")) | (separators == ord("-"))).all(axis=0)
        if not ok.all():
            where, digits = where[ok], digits[:, ok]
    else:
        digits = np.empty((LENGTH, 0), dtype=np.uint8)
    header, company, product, lot, date, serial = _numbers(digits)
    made_day, date_ok = _day(date)
    fault[where] = (
        (header != HEADER) * _HEADER
        + (lot == 0) * _LOT
        + (~date_ok) * _DATE
        + (serial == 0) * _SERIAL
    ).astype(np.uint8)
    table = {
        "company": company,
        "product": product,
        "lot": lot,
        "serial": serial,
        "made_day": np.where(date_ok, made_day, np.int32(-1)),
    }
    if len(where) < m:
        table = {name: _spread(column, where, m) for name, column in table.items()}
    return EpcTable(text=codes, fault=fault, lot_key=_lot_key(codes, table, fault), **table)


def _spread(column: Int32, where: npt.NDArray[np.intp], m: int) -> Int32:
    """A column with -1 where there is no such part, int32 (m,)."""
    wide = np.full(m, -1, dtype=np.int32)
    wide[where] = column
    return wide


def concat(first: EpcTable, second: EpcTable) -> EpcTable:
    """Both tables, one after the other; a code that stands in both keeps two rows."""
    columns = {
        name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in _COLUMNS
    }
    return EpcTable(text=pa.concat_arrays([first.text, second.text]), **columns)


def fault_sentence(fault: int) -> str:
    """What is wrong with a code, in words; empty for a well-formed code."""
    return " and ".join(text for flag, text in FAULT_TEXT.items() if fault & flag)


def _offsets(codes: pa.StringArray) -> Int32:
    """Where each code starts in the bytes of all, and where the last one ends, int32 (m + 1,)."""
    if not len(codes):
        return np.zeros(1, dtype=np.int32)
    offsets = np.frombuffer(codes.buffers()[1], dtype=np.int32)
    return offsets[codes.offset : codes.offset + len(codes) + 1]


def _plain(codes: pa.StringArray) -> pa.StringArray:
    return codes if isinstance(codes, pa.StringArray) else codes.cast(pa.string())


def _lengths(codes: pa.StringArray) -> Int32:
    """Bytes of each code, int32 (m,)."""
    offsets = _offsets(_plain(codes))
    return offsets[1:] - offsets[:-1]


def _characters(codes: pa.StringArray) -> UInt8:
    """Bytes of codes that all have `LENGTH` bytes, uint8 (m, LENGTH), without a copy."""
    codes = _plain(codes)
    start = int(_offsets(codes)[0])
    flat = np.frombuffer(codes.buffers()[2], dtype=np.uint8)
    return flat[start : start + len(codes) * LENGTH].reshape(len(codes), LENGTH)


def _numbers(digits: UInt8) -> list[Int32]:
    """The six numbers of codes whose characters stand one above the other, each int32 (m,)."""
    if digits.shape[1] < _FEW:
        # Sums of whole numbers below 2^53 are exact, in whatever order they are added.
        return list((_WEIGHTS @ digits).astype(np.int32))
    parts = zip(_STARTS, _WIDTHS, strict=True)
    return [_number(digits[start : start + width]) for start, width in parts]


def _weights() -> npt.NDArray[np.float64]:
    """What each character counts for in each of the six numbers, float64 (6, LENGTH)."""
    weights = np.zeros((len(_WIDTHS), LENGTH))
    for row, start, width in zip(weights, _STARTS, _WIDTHS, strict=True):
        row[start : start + width] = 10.0 ** np.arange(width - 1, -1, -1)
    return weights


_WEIGHTS: Final = _weights()


def _number(digits: UInt8) -> Int32:
    """Numbers of digits that stand one above the other, int32 (m,)."""
    value = np.zeros(digits.shape[1], dtype=np.int32)
    for digit in digits:
        value *= 10
        value += digit
    return value


@cache
def _months() -> tuple[Int64, Int64]:
    """First day (since 1970) and length of each month from the first year to the last."""
    count = (_LAST_YEAR - _FIRST_YEAR + 1) * 12
    month = np.arange(count + 1).astype("datetime64[M]")
    first = month.astype("datetime64[D]").astype(np.int64)
    return first[:-1], np.diff(first)


def _day(date: Int32) -> tuple[Int32, npt.NDArray[np.bool_]]:
    """Days since 1970 of yyyymmdd numbers, and which of them are real dates."""
    year, month, day = date // 10_000, date // 100 % 100, date % 100
    plausible = (year >= _FIRST_YEAR) & (month >= 1) & (month <= 12) & (day >= 1)
    number = np.where(plausible, (year - _FIRST_YEAR) * 12 + month - 1, 0)
    first, length = _months()
    plausible &= day <= length[number]
    return (first[number] + np.where(plausible, day, 1) - 1).astype(np.int32), plausible


def _lot_key(codes: pa.StringArray, table: dict[str, Int32], fault: UInt8) -> Int64:
    product = table["company"].astype(np.int64) * 10_000_000 + table["product"]
    key = mix(product.astype(np.uint64))
    key = mix(key ^ table["lot"].astype(np.uint64))
    broken = np.flatnonzero(fault & _STRUCTURE)
    for i in broken:
        key[i] = _text_key(codes[int(i)].as_py())
    return (key >> np.uint64(1)).astype(np.int64)


def _text_key(text: str) -> np.uint64:
    """64-bit FNV-1a of a malformed code, so that it is a lot of its own in every process."""
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return np.uint64(value)
