"""Columns of text: decoded, trimmed and coded as integers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from intake.errors import IntakeError
from intake.times import MISSING_TEXT

Int8 = npt.NDArray[np.int8]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

_WHOLE = re.compile(r"([+-]?[0-9]+)\.0*")


class TextFault(IntEnum):
    """Why a value is no text; 0 where it is."""

    NONE = 0
    MISSING = 1
    UNDECODABLE = 2


@dataclass(frozen=True, slots=True)
class Coded:
    """A column as positions in its distinct values.

    Attributes:
        place: int32 (n,), position in `values`; k where there is none.
        values: distinct values as text, trimmed (k,); "" where undecodable.
        fault: int8 (k + 1,), a `TextFault` of each value; the last one stands for null.
    """

    place: Int32
    values: pa.StringArray
    fault: Int8


def canonical_id(text: str) -> str:
    """A `location_id` as it is compared: trimmed, and "13.0" is "13".

    Tables that went through floating point write whole numbers with a fraction. Leading zeros
    stay: "01" and "1" may be two sites.
    """
    text = text.strip()
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else text


def plain(column: pa.Array, name: str) -> pa.StringArray:
    """Any column as a string array (n,) with nulls, its bytes not checked.

    Raises:
        IntakeError: the column's type holds no text.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        return plain(column.dictionary, name).take(column.indices)
    if pa.types.is_string(kind):
        return column
    if pa.types.is_large_string(kind):
        return plain(column.cast(pa.large_binary()), name)
    if pa.types.is_large_binary(kind):
        return plain(column.cast(pa.binary()), name)
    if pa.types.is_binary(kind):
        return column.view(pa.string())
    if pa.types.is_floating(kind):
        return _whole_numbers(column)
    try:
        return column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise IntakeError(f"column {name} has type {kind}, which holds no text") from error


def coded(column: pa.Array, name: str) -> Coded:
    """Code a column by its distinct values.

    Raises:
        IntakeError: the column's type holds no text.
    """
    if pa.types.is_dictionary(column.type):
        indices, values = column.indices, plain(column.dictionary, name)
    else:
        encoded = plain(column, name).dictionary_encode()
        indices, values = encoded.indices, encoded.dictionary
    k = len(values)
    fault = np.zeros(k + 1, dtype=np.int8)
    fault[k] = TextFault.MISSING
    wrong = undecodable(values)
    if wrong is not None:
        fault[:k][wrong] = TextFault.UNDECODABLE
        values = pc.if_else(pa.array(wrong), "", values.view(pa.binary())).cast(pa.string())
    values = pc.utf8_trim_whitespace(values.fill_null(""))
    missing = np.asarray(pc.is_in(pc.utf8_lower(values), value_set=pa.array(MISSING_TEXT)))
    fault[:k][missing & (fault[:k] == 0)] = TextFault.MISSING
    place = np.asarray(indices.cast(pa.int32()).fill_null(k), dtype=np.int32)
    return Coded(place, values, fault)


def undecodable(values: pa.StringArray) -> Bool | None:
    """Which strings are not UTF-8, bool (n,); None where all are."""
    try:
        values.validate(full=True)
    except pa.ArrowInvalid:
        return np.array([not _decodes(raw) for raw in values.view(pa.binary()).to_pylist()])
    return None


def shown(column: pa.Array, rows: Int64, name: str) -> list[str | None]:
    r"""Values at some rows as they stand, undecodable bytes written like `\xff`."""
    raw = plain(column, name).take(pa.array(rows)).view(pa.binary())
    return [
        None if value is None else value.decode("utf-8", "backslashreplace")
        for value in raw.to_pylist()
    ]


def identifiers(column: pa.Array, name: str) -> pa.StringArray:
    """`event_id` and `file_id` (n,): trimmed, "7.0" is "7", null where empty or undecodable."""
    values = plain(column, name)
    wrong = undecodable(values)
    if wrong is not None:
        values = pc.if_else(
            pa.array(wrong), pa.scalar(None, pa.binary()), values.view(pa.binary())
        ).cast(pa.string())
    values = pc.utf8_trim_whitespace(values)
    if pc.any(pc.ends_with(values, ".0")).as_py():
        values = pc.replace_substring_regex(values, r"^([+-]?[0-9]+)\.0$", r"\1")
    return pc.if_else(pc.equal(values, ""), pa.scalar(None, pa.string()), values)


def _decodes(raw: bytes | None) -> bool:
    try:
        (raw or b"").decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _whole_numbers(column: pa.Array) -> pa.StringArray:
    """Numbers as text, whole ones without a fraction; NaN is null."""
    numbers = column.cast(pa.float64())
    values = np.asarray(numbers.fill_null(np.nan), dtype=np.float64)
    whole = np.isfinite(values) & (values == np.trunc(values)) & (np.abs(values) < 2**53)
    integers = pa.array(np.where(whole, values, 0).astype(np.int64)).cast(pa.string())
    text = pc.if_else(pa.array(whole), integers, numbers.cast(pa.string()))
    return pc.if_else(pa.array(np.isnan(values)), pa.scalar(None, pa.string()), text)
