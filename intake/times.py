"""Event times: whatever a column writes, microseconds in UTC, vectorised.

Read: `2025-07-01 10:34:17` with a blank or T, slashes or dots in the date, one-digit months, days
and hours, without seconds, with fractions, with Z, UTC, +09:00, +0900 or +09; `2025-07-01`;
`20250701`, `20250701103417`, `20250701T103417Z`; seconds (9-10 digits, fractions allowed),
milliseconds (13), microseconds (16) or nanoseconds (19) since 1970; Arrow timestamps and dates.
Forms may differ from row to row. A time without a zone is local time of the installation: one
that occurs twice (clocks set back) is the first, one that never occurs (clocks set forward) is
the first moment after the gap. What lies outside 1970-2200 is unreadable.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from enum import IntEnum
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from intake.errors import IntakeError

Int8 = npt.NDArray[np.int8]
Int64 = npt.NDArray[np.int64]
UInt8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]

FIRST_US: Final = 0
END_US: Final = int(np.datetime64("2201-01-01", "us").astype(np.int64))
MISSING_TEXT: Final = ("", "nan", "nat", "none", "null", "<na>", "\\n")
"""What exports write for "nothing", in lower case; `\\N` is PostgreSQL's."""

_RULES_END_US: Final = int(np.datetime64("2037-01-01", "us").astype(np.int64))
_SHAPES: Final = 64
_LONGEST: Final = 40
_CLOCK: Final = r"(?P<h>00?)(?::(?P<m>00)(?::(?P<s>00)(?:[.,](?P<f>0{1,12}))?)?)?"
_OFFSET: Final = r" ?(?P<z>[Zz]|UTC|GMT|(?P<sign>[+-])(?P<zh>00)(?::?(?P<zm>00))?)"
_LAYOUTS: Final = tuple(
    re.compile(pattern)
    for pattern in (
        rf"(?P<Y>0000)(?P<a>[-/.])(?P<M>00?)(?P=a)(?P<D>00?)(?:[Tt ]{_CLOCK}(?:{_OFFSET})?)?",
        rf"(?P<Y>0000)(?P<M>00)(?P<D>00)"
        rf"(?:[Tt ]?(?P<h>00)(?P<m>00)(?P<s>00)(?:[.,](?P<f>0{{1,12}}))?(?:{_OFFSET})?)?",
        r"(?P<e>0{9,10}|0{13}|0{16}|0{19})(?:\.(?P<f>0{1,12}))?",
    )
)
_EPOCH_US: Final = {9: 1_000_000, 10: 1_000_000, 13: 1_000, 16: 1}


class TimeFault(IntEnum):
    """Why an event time was not read; 0 where it was."""

    NONE = 0
    MISSING = 1
    UNREADABLE = 2
    OUTSIDE = 3


def reason(fault: int, raw: str) -> str:
    """The reason in words, naming the value."""
    if fault == TimeFault.MISSING:
        return "event_time is empty"
    if fault == TimeFault.OUTSIDE:
        return f"event_time {raw!r} lies outside the years 1970-2200"
    return f"event_time {raw!r} is not a time; write it like 2025-07-01T10:34:17+09:00"


def parse(column: pa.Array, zone: str = "UTC") -> tuple[Int64, Int8]:
    """Read a column of event times.

    Args:
        column: Arrow array (n,) of text, timestamps, dates or numbers; may hold nulls.
        zone: IANA name of the zone for times that name none.

    Returns:
        int64 (n,) microseconds since 1970 in UTC, 0 where not read; int8 (n,) `TimeFault`.

    Raises:
        IntakeError: the zone is unknown, or the column's type cannot hold times.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        time_us, fault = parse(column.dictionary, zone)
        place = np.asarray(column.indices.cast(pa.int64()).fill_null(len(column.dictionary)))
        return np.append(time_us, 0)[place], np.append(fault, np.int8(TimeFault.MISSING))[place]
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return _parse_typed(column, zone)
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        column = _numbers(column.cast(pa.float64()))
    elif pa.types.is_integer(kind):
        column = column.cast(pa.string())
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        column = column.cast(pa.string(), safe=False) if pa.types.is_binary(kind) else column
    elif not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        if not pa.types.is_null(kind):
            raise IntakeError(
                f"event_time has type {kind}, which holds no times; use text or timestamps"
            )
        column = column.cast(pa.string())
    return _parse_text(column, zone)


def to_utc(local_us: Int64, zone: str) -> Int64:
    """Microseconds of local wall time as microseconds in UTC, int64 (n,).

    Raises:
        IntakeError: the zone is unknown.
    """
    if zone == "UTC":
        return local_us
    try:
        known = pc.assume_timezone(
            pa.array(local_us, pa.timestamp("us")), zone, ambiguous="earliest", nonexistent="latest"
        )
    except pa.ArrowInvalid as error:
        raise IntakeError(
            f"time zone {zone!r} is not known ({error}); use an IANA name such as 'Asia/Seoul'"
        ) from error
    time_us = np.array(known.cast(pa.int64()), dtype=np.int64)
    late = np.flatnonzero(local_us >= _RULES_END_US)
    distinct, inverse = np.unique(local_us[late], return_inverse=True)
    exact = [_late_to_utc(one, ZoneInfo(zone)) for one in distinct.tolist()]
    time_us[late] = np.array(exact, dtype=np.int64)[inverse]
    return time_us


def _late_to_utc(local_us: int, zone: tzinfo) -> int:
    """One local time after 2037, for which Arrow knows no summer time."""
    wall = datetime(1970, 1, 1) + timedelta(microseconds=local_us)
    moment = wall.replace(tzinfo=zone).astimezone(UTC)
    if moment.astimezone(zone).replace(tzinfo=None) != wall:  # in a gap: find where it ends
        before, after = moment - timedelta(days=1), moment
        old = before.astimezone(zone).utcoffset()
        while after - before > timedelta(microseconds=1):
            middle = before + (after - before) // 2
            same = middle.astimezone(zone).utcoffset() == old
            before, after = (middle, after) if same else (before, middle)
        moment = after
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def check_zone(zone: str) -> None:
    """Raise IntakeError where a zone is unknown."""
    to_utc(np.zeros(1, dtype=np.int64), zone)


def _parse_typed(column: pa.Array, zone: str) -> tuple[Int64, Int8]:
    missing = np.asarray(column.is_null())
    zoned = pa.types.is_timestamp(column.type) and column.type.tz is not None
    target = pa.timestamp("us", column.type.tz if zoned else None)
    time_us = np.array(
        column.cast(target, safe=False).cast(pa.int64()).fill_null(0), dtype=np.int64
    )
    return _finish(time_us, np.where(missing, TimeFault.MISSING, 0), ~missing & (not zoned), zone)


def _numbers(column: pa.Array) -> pa.StringArray:
    """Epoch numbers as text: integers without a point, fractions with six digits."""
    return pa.array(
        [
            None
            if value is None or value != value
            else f"{value:.0f}"
            if value.is_integer()
            else f"{value:.6f}"
            for value in column.to_pylist()
        ],
        pa.string(),
    )


def _parse_text(column: pa.Array, zone: str) -> tuple[Int64, Int8]:
    for target in (pa.timestamp("us"), pa.timestamp("us", "UTC")):
        # Arrow reads a column of one ISO form 20 times faster; it refuses every other
        try:
            read = column.cast(target)
        except pa.ArrowInvalid:
            continue
        return _parse_typed(read, zone)
    if pa.types.is_large_string(column.type) or pa.types.is_large_binary(column.type):
        column = column.cast(pa.large_binary()).cast(pa.binary()).cast(pa.string(), safe=False)
    column = pc.ascii_trim_whitespace(column.fill_null(""))
    n = len(column)
    time_us = np.zeros(n, dtype=np.int64)
    fault = np.full(n, TimeFault.UNREADABLE, dtype=np.int8)
    local = np.zeros(n, dtype=bool)
    for rows, characters in _by_length(column):
        for place, shape in _by_shape(characters):
            read_us, ok, is_local = _read_shape(characters[place], shape)
            where = rows[place]
            time_us[where] = read_us
            fault[where] = np.where(ok, TimeFault.NONE, TimeFault.UNREADABLE)
            local[where] = is_local
    unread = np.flatnonzero(fault)
    missing = pc.is_in(
        pc.ascii_lower(column.take(pa.array(unread))), value_set=pa.array(MISSING_TEXT)
    )
    fault[unread[np.asarray(missing)]] = TimeFault.MISSING
    return _finish(time_us, fault, local & (fault == 0), zone)


def _finish(time_us: Int64, fault: npt.ArrayLike, local: Bool, zone: str) -> tuple[Int64, Int8]:
    """Local times to UTC; what lies outside the years is a fault."""
    faults = np.array(fault, dtype=np.int8)
    day = 86_400_000_000  # a day of grace, so that a zone cannot move a time out of Arrow's range
    far = (faults == 0) & ((time_us < FIRST_US - day) | (time_us >= END_US + day))
    local = local & ~far
    if zone != "UTC" and local.any():
        time_us = time_us.copy()
        time_us[local] = to_utc(time_us[local], zone)
    far |= (faults == 0) & ((time_us < FIRST_US) | (time_us >= END_US))
    faults[far] = TimeFault.OUTSIDE
    return np.where(faults == 0, time_us, 0), faults


def _by_length(column: pa.StringArray) -> Iterator[tuple[Int64, UInt8]]:
    """Rows of each length up to `_LONGEST`, and their bytes (m, length)."""
    n = len(column)
    buffers = column.buffers()
    offset = np.frombuffer(buffers[1], dtype=np.int32)[column.offset : column.offset + n + 1]
    flat = np.frombuffer(buffers[2] or b"", dtype=np.uint8)
    length = np.diff(offset)
    for size in np.flatnonzero(np.bincount(np.minimum(length, _LONGEST + 1))):
        if 0 < size <= _LONGEST:
            rows = np.flatnonzero(length == size)
            yield rows, flat[offset[rows][:, None] + np.arange(size, dtype=np.int32)]


def _by_shape(characters: UInt8) -> Iterator[tuple[Int64, bytes]]:
    """Rows of each shape (every digit a 0), and the shape."""
    digit = (characters >= ord("0")) & (characters <= ord("9"))
    shapes = np.where(digit, np.uint8(ord("0")), characters)
    left = np.arange(len(shapes))
    for _ in range(_SHAPES):
        if not len(left):
            return
        same = (shapes[left] == shapes[left[0]]).all(axis=1)
        yield left[same], shapes[left[0]].tobytes()
        left = left[~same]
    groups: dict[bytes, list[int]] = {}
    for i in left.tolist():
        groups.setdefault(shapes[i].tobytes(), []).append(i)
    for shape, rows in groups.items():
        yield np.array(rows), shape


@lru_cache(maxsize=4096)
def _layout(shape: bytes) -> re.Match[str] | None:
    text = shape.decode("latin-1")
    matches = (pattern.fullmatch(text) for pattern in _LAYOUTS)
    return next((match for match in matches if match), None)


def _read_shape(characters: UInt8, shape: bytes) -> tuple[Int64, Bool, bool]:
    """Microseconds, whether readable, and whether local, of rows (m, length) of one shape."""
    layout = _layout(shape)
    m = len(characters)
    if layout is None:
        return np.zeros(m, dtype=np.int64), np.zeros(m, dtype=bool), False
    digits = characters.astype(np.int64) - ord("0")
    if "e" in layout.re.groupindex:
        return _read_epoch(digits, layout), np.ones(m, dtype=bool), False
    day, ok = _days(*(_part(digits, layout, name) for name in "YMD"))
    hour, minute, second = (_part(digits, layout, name) for name in "hms")
    ok &= (hour <= 23) & (minute <= 59) & (second <= 59)
    time_us = ((day * 24 + hour) * 60 + minute) * 60 + second
    time_us = time_us * 1_000_000 + _fraction_us(digits, layout)
    if layout["sign"]:
        zone_hour, zone_minute = _part(digits, layout, "zh"), _part(digits, layout, "zm")
        ok &= (zone_hour <= 23) & (zone_minute <= 59)  # what Arrow reads too
        east = 1 if layout["sign"] == "+" else -1
        time_us = time_us - east * (zone_hour * 60 + zone_minute) * 60_000_000
    return time_us, ok, not layout["z"]


def _read_epoch(digits: Int64, layout: re.Match[str]) -> Int64:
    width = len(layout["e"])
    if width == 19:  # nanoseconds: their last three digits are below a microsecond
        return _number(digits, 0, 16)
    unit = _EPOCH_US[width]
    return _part(digits, layout, "e") * unit + _fraction_us(digits, layout) * unit // 1_000_000


def _part(digits: Int64, layout: re.Match[str], name: str) -> Int64:
    start, end = layout.span(name)
    return _number(digits, max(start, 0), max(end, 0))


def _number(digits: Int64, start: int, end: int) -> Int64:
    value = np.zeros(len(digits), dtype=np.int64)
    for place in range(start, end):
        value = value * 10 + digits[:, place]
    return value


def _fraction_us(digits: Int64, layout: re.Match[str]) -> Int64:
    """The fraction of a second in microseconds; further digits are cut off."""
    value = np.zeros(len(digits), dtype=np.int64)
    start, end = layout.span("f")
    for place in range(start, start + 6):
        value = value * 10 + (digits[:, place] if start >= 0 and place < end else 0)
    return value


def _days(year: Int64, month: Int64, day: Int64) -> tuple[Int64, Bool]:
    """Days since 1970 of dates, and which of them exist."""
    ok = (month >= 1) & (month <= 12) & (day >= 1)
    first = ((year - 1970) * 12 + np.where(ok, month, 1) - 1).astype("datetime64[M]")
    start = first.astype("datetime64[D]").astype(np.int64)
    length = (first + 1).astype("datetime64[D]").astype(np.int64) - start
    ok &= day <= length
    return start + np.where(ok, day, 1) - 1, ok
