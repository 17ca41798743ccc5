"""Rows of JSON as columns; or what is wrong with each of them.

Rows that are plainly good take the quick way: typed decoding, then whole columns. When anything
is doubtful, the body is read again value by value, and every fault is told. Both ways read a good
row alike, and as `intake` reads it from a file.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa

from intake import times
from intake.text import canonical_id
from intake.times import END_US, MISSING_TEXT
from serving import wire
from trail.scan import EVENT_TYPES, Int8, Int64

LONGEST_CODE: Final = 1000
LONGEST_PLACE: Final = 200
MOST_ID: Final = 2**63 - 1

_OPS: Final = {name.lower(): op for op, name in enumerate(EVENT_TYPES)}
_EXACT_OPS: Final = {name: op for op, name in enumerate(EVENT_TYPES)}
_PLAIN_CODES: Final = re.compile(r"[!-~\n]*")
_ISO: Final = re.compile(
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d{1,6})?(Z|[+-](?:0\d|1[0-5]):[0-5]\d)?", re.ASCII
)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_RAW_CONTROL: Final = re.compile(r"[\x00-\x1f]")
_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")
_EPOCH: Final = datetime(1970, 1, 1)
_EPOCH_UTC: Final = _EPOCH.replace(tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_DAY_US: Final = 86_400_000_000
_SNAKE: Final = {n: field for field, alias in wire.FIELDS.items() for n in (field, alias)}
_NESTED_A_ROW: Final = 8
_DIGITS: Final = 30
_EXACT: Final = 2.0**53
_SHOWN: Final = 60


@dataclass(frozen=True, slots=True)
class Rows:
    """Good rows as columns of one length n, in the order of the request.

    Attributes:
        epc: codes.
        location: `location_id` as it is compared (`intake.text.canonical_id`).
        op: int8 (n,), a `trail.scan.Op`.
        time_us: int64 (n,), event time, microseconds since 1970 in UTC.
        event_id: int64 (n,), -1 where there is none.
        file_id: int64 (n,), likewise.
        place: int64 (n,), the row's index in the request's `data`.
    """

    epc: list[str]
    location: list[str]
    op: Int8
    time_us: Int64
    event_id: Int64
    file_id: Int64
    place: Int64

    def __len__(self) -> int:
        return len(self.epc)

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """The rows of one request after those of the other; `place` stays that in their own."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            [code for part in parts for code in part.epc],
            [place for part in parts for place in part.location],
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("op", "time_us", "event_id", "file_id", "place")
            ),
        )


@dataclass(frozen=True, slots=True)
class BadRow:
    """What is wrong with one field.

    Attributes:
        index: the row's index in `data`; None: it is wrong with the body as a whole.
        field: in snake_case.
        reason: in words, naming the value and the remedy.
    """

    index: int | None
    field: str
    reason: str


class BodyError(ValueError):
    """A body that holds no rows at all; `bad` says why."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.bad = BadRow(None, field, reason)


class _FieldError(ValueError):
    """A value that cannot be read; the message is a `BadRow.reason`."""


def read(body: bytes, zone: str, most_rows: int) -> tuple[Rows, list[BadRow]]:
    """Read the body of a scoring request.

    Args:
        body: JSON.
        zone: IANA name of the zone for times that name none.
        most_rows: rows that it may hold.

    Returns:
        The good rows, and all that is wrong with the others, by index.

    Raises:
        BodyError: it is no JSON object with a list `data`, or that is empty or too long.
    """
    if body.count(b"{") + body.count(b"[") > _NESTED_A_ROW * (most_rows + 1):
        raise BodyError("data", f"holds far more than {most_rows} rows; send fewer at a time")
    try:
        scans = wire.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _tolerant(body, zone, most_rows)
    _check_number(len(scans), most_rows)
    rows = _plain(scans, zone)
    return (rows, []) if rows is not None else _tolerant(body, zone, most_rows)


def warm_up(zone: str) -> None:
    """Read a bad row, so that the first one of a request does not wait for libraries to load."""
    read(b'{"data": [{"event_time": "1.7.2025"}, {"event_time": "2025-07-01 10:34:17"}]}', zone, 2)


def _check_number(n: int, most: int) -> None:
    if not n:
        raise BodyError("data", "is empty; send at least one row")
    if n > most:
        raise BodyError("data", f"holds {n} rows; send at most {most} at a time")


# The quick way: whole columns, None as soon as anything is doubtful.


def _plain(scans: list[wire.Scan], zone: str) -> Rows | None:
    epc = [s.epc_code if s.epc_code is not None else s.epcCode for s in scans]
    places = [s.location_id if s.location_id is not None else s.locationId for s in scans]
    kinds = [s.event_type if s.event_type is not None else s.eventType for s in scans]
    when = [s.event_time if s.event_time is not None else s.eventTime for s in scans]
    event_ids = [s.event_id if s.event_id is not None else s.eventId for s in scans]
    file_ids = [s.file_id if s.file_id is not None else s.fileId for s in scans]
    ops = [_EXACT_OPS.get(kind) for kind in kinds]  # type: ignore[arg-type]
    if None in epc or None in ops or not _plain_codes(epc):  # type: ignore[arg-type]
        return None
    try:
        known = {value: _place(value) for value in set(places)}
        event_id = _id_column(event_ids)
        file_id = _id_column(file_ids)
    except _FieldError:
        return None
    time_us = plain_times(when, zone)
    if time_us is None:
        return None
    return Rows(
        epc=epc,  # type: ignore[arg-type]
        location=[known[value] for value in places],
        op=np.array(ops, dtype=np.int8),
        time_us=time_us,
        event_id=event_id,
        file_id=file_id,
        place=np.arange(len(scans), dtype=np.int64),
    )


def _plain_codes(codes: list[str]) -> bool:
    """Whether all codes are visible ASCII of a usual length."""
    lengths = list(map(len, codes))
    if min(lengths) <= max(map(len, MISSING_TEXT)) or max(lengths) > LONGEST_CODE:
        return False
    joined = "\n".join(codes)
    return _PLAIN_CODES.fullmatch(joined) is not None and joined.count("\n") == len(codes) - 1


def _id_column(values: Sequence[str | int | None]) -> Int64:
    return np.array([_id(value) for value in values], dtype=np.int64)


def plain_times(values: Sequence[object], zone: str) -> Int64 | None:
    """Times in the usual ISO forms, int64 (n,) microseconds; None where one is not.

    It is what `intake.times.parse` reads, at a tenth of its fixed cost.
    """
    read: dict[object, int] = {}
    local: list[object] = []
    for value in set(values):
        form = _ISO.fullmatch(value) if isinstance(value, str) else None
        if form is None:
            return None
        try:
            moment = datetime.fromisoformat(form[0])
        except ValueError:
            return None
        if form[1]:
            time_us = (moment - _EPOCH_UTC) // _MICROSECOND
        else:
            time_us = (moment - _EPOCH) // _MICROSECOND
            local.append(value)
        if not times.FIRST_US + _DAY_US <= time_us < END_US - _DAY_US:
            return None
        read[value] = time_us
    if local and zone != "UTC":
        walls = np.array([read[value] for value in local], dtype=np.int64)
        read.update(zip(local, times.to_utc(walls, zone).tolist(), strict=True))
    return np.array([read[value] for value in values], dtype=np.int64)


# The patient way: every value by itself.


class _Huge:
    """Stands for an integer with more digits than any of ours has."""


class _NotJson:
    """Stands for NaN, Infinity and -Infinity, which some writers emit."""


_HUGE: Final = _Huge()
_NOT_JSON: Final = _NotJson()


def _tolerant(body: bytes, zone: str, most_rows: int) -> tuple[Rows, list[BadRow]]:
    data, strict = _data(body, most_rows)
    bad: list[BadRow] = []
    good: list[dict[str, Any]] = []
    timed: list[tuple[int, str]] = []
    for index, row in enumerate(data):
        values, faults = _row(row, strict)
        bad += [BadRow(index, field, reason) for field, reason in faults.items()]
        if "event_time" in values:  # of bad rows too, so that all their faults are told
            timed.append((index, values["event_time"]))
        if not faults:
            good.append({**values, "place": index})
    time_of, late = _times(timed, zone)
    bad += late
    good = [row for row in good if row["place"] in time_of]
    order = list(wire.FIELDS)
    bad.sort(key=lambda b: (b.index or 0, order.index(b.field) if b.field in order else 9))

    def column(name: str, kind: type[np.integer[Any]] = np.int64) -> Any:
        return np.array([row[name] for row in good], dtype=kind)

    return Rows(
        epc=[row["epc_code"] for row in good],
        location=[row["location_id"] for row in good],
        op=column("event_type", np.int8),
        time_us=np.array([time_of[row["place"]] for row in good], dtype=np.int64),
        event_id=column("event_id"),
        file_id=column("file_id"),
        place=column("place"),
    ), bad


def _data(body: bytes, most_rows: int) -> tuple[list[object], bool]:
    """The list `data`, whatever it holds; and whether control characters in it are all escaped."""
    # bytes that are no UTF-8 become surrogates, and so a fault of the row that holds them
    text = body.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    alien: list[str] = []
    strict = True
    try:
        try:
            value = _json(text, alien, strict=True)
        except json.JSONDecodeError as error:
            if not error.msg.startswith("Invalid control character"):
                raise
            alien.clear()
            strict = False
            value = _json(text, alien, strict=False)
    except json.JSONDecodeError as error:
        raise BodyError(
            "body", f"is no JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error
    except RecursionError as error:
        raise BodyError("body", "is nested too deep; rows are flat objects") from error
    data = _rows_of(value, most_rows)
    cells = [v for row in data if isinstance(row, dict) for v in row.values()]
    if len(alien) > sum(v is _NOT_JSON for v in cells):
        raise BodyError("body", "is no JSON: it holds NaN or Infinity; leave such values out")
    if not strict and not any(isinstance(v, str) and _RAW_CONTROL.search(v) for v in cells):
        raise BodyError("body", "is no JSON: it holds a control character that is not escaped")
    return data, strict


def _json(text: str, alien: list[str], strict: bool) -> object:
    """Decode; NaN and Infinity become `_NOT_JSON` and are noted in `alien`."""

    def constant(name: str) -> _NotJson:
        alien.append(name)
        return _NOT_JSON

    return json.JSONDecoder(strict=strict, parse_constant=constant, parse_int=_integer).decode(text)


def _rows_of(value: object, most_rows: int) -> list[object]:
    if not isinstance(value, dict):
        raise BodyError("body", 'is no JSON object; send {"data": [...]}')
    if "data" not in value:
        raise BodyError("data", 'is missing; send {"data": [...]}')
    data = value["data"]
    if not isinstance(data, list):
        raise BodyError("data", 'is no list of rows; send {"data": [...]}')
    _check_number(len(data), most_rows)
    return data


def _integer(digits: str) -> int | _Huge:
    return int(digits) if len(digits) <= 2 * _DIGITS else _HUGE


def _row(row: object, strict: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """Values of a row's fields, the time as text; and what is wrong with fields."""
    if not isinstance(row, dict):
        return {}, {"data": f"{_shown(row)} is no object; send one object a row"}
    values: dict[str, Any] = {}
    faults: dict[str, str] = {}
    for field, alias in wire.FIELDS.items():
        value = row.get(field)
        if value is None:
            value = row.get(alias)
        try:
            values[field] = _READERS[field](value)
        except _FieldError as fault:
            faults[field] = str(fault)
    for name, value in row.items():
        field = _SNAKE.get(name, _text_shown(name))
        if value is _NOT_JSON:
            faults[field] = "is NaN or infinite, which is no JSON; leave it out"
        elif not strict and isinstance(value, str) and (wrong := _RAW_CONTROL.search(value)):
            faults[field] = _control_reason(value, wrong)
    return values, faults


def _times(timed: list[tuple[int, str]], zone: str) -> tuple[dict[int, int], list[BadRow]]:
    """Times of rows by index, and what is wrong with the others."""
    texts = [text for _, text in timed]
    time_us, fault = times.parse(pa.array(texts, pa.string()), zone)
    good: dict[int, int] = {}
    bad: list[BadRow] = []
    for (index, text), moment, wrong in zip(timed, time_us.tolist(), fault.tolist(), strict=True):
        if wrong:
            bad.append(BadRow(index, "event_time", times.reason(wrong, text[:_SHOWN])))
        else:
            good[index] = moment
    return good, bad


def _text(longest: int) -> Callable[[object], str]:
    def reader(value: object) -> str:
        if value is None:
            raise _FieldError("is missing")
        if not isinstance(value, str):
            raise _FieldError(f"{_shown(value)} is no text")
        return _checked(value, longest)

    return reader


def _checked(value: str, longest: int) -> str:
    """Text without surrounding blanks.

    Raises:
        _FieldError: it is empty, too long, or holds what is no character.
    """
    text = value.strip()
    if text.lower() in MISSING_TEXT:
        raise _FieldError("is empty")
    if len(text) > longest:
        raise _FieldError(f"has {len(text)} characters; at most {longest} are read")
    if wrong := _SURROGATE.search(text):
        raise _FieldError(f"{_text_shown(text)} holds what is no character (at {wrong.start()})")
    if wrong := _CONTROL.search(text):
        raise _FieldError(_control_reason(text, wrong))
    return text


def _control_reason(text: str, wrong: re.Match[str]) -> str:
    return (
        f"{_text_shown(text)} holds the control character U+{ord(wrong[0]):04X} "
        f"(at {wrong.start()}); remove it"
    )


def _place(value: object) -> str:
    """A `location_id`: text or a whole number."""
    if value is None:
        raise _FieldError("is missing")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and abs(value) >= 10**_DIGITS:
        value = _HUGE
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _FieldError(f"{_shown(value)} is neither text nor a whole number")
    return canonical_id(_checked(str(value), LONGEST_PLACE))


def _operation(value: object) -> int:
    text = _READ_KIND(value)
    op = _OPS.get(text.lower())
    if op is None:
        raise _FieldError(
            f"{_text_shown(text)} is no known operation; use {', '.join(EVENT_TYPES)}"
        )
    return op


def _moment(value: object) -> str:
    """An event time as text for `intake.times`."""
    if value is None:
        raise _FieldError("is missing")
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.0f}" if value.is_integer() else f"{value:.6f}"
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _FieldError(f"{_shown(value)} is no time; write it like 2025-07-01T10:34:17+09:00")
    return _checked(str(value), LONGEST_PLACE)


def _id(value: object) -> int:
    """An `event_id` or `file_id`: a whole number or its digits; -1 where there is none."""
    if value is None:
        return -1
    number = value
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        number = int(value)
    elif isinstance(value, str):
        text = canonical_id(value)
        if not text:
            return -1
        if not (text.isascii() and text.isdecimal()):
            raise _FieldError(f"{_text_shown(value)} is no whole number from 0 on")
        number = int(text) if len(text) <= _DIGITS else _HUGE
    if number is _HUGE or (type(number) is int and number > MOST_ID):
        raise _FieldError(f"is larger than {MOST_ID}")
    if type(number) is not int or number < 0:
        raise _FieldError(f"{_shown(value)} is no whole number from 0 on")
    return number


def _shown(value: object) -> str:
    """A value for a message, short."""
    if value is _NOT_JSON:
        return "NaN or Infinity"
    if value is _HUGE:
        return f"an integer of more than {_DIGITS} digits"
    if isinstance(value, str):
        return _text_shown(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "an object"
    return "a list" if isinstance(value, list) else str(value)


def _text_shown(text: str) -> str:
    short = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
    return ascii(short) if _SURROGATE.search(short) else repr(short)


_READ_KIND: Final = _text(LONGEST_PLACE)
_READERS: Final[dict[str, Callable[[object], Any]]] = {
    "epc_code": _text(LONGEST_CODE),
    "location_id": _place,
    "event_type": _operation,
    "event_time": _moment,
    "event_id": _id,
    "file_id": _id,
}
