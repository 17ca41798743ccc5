"""Values of trails on a shelf: the hour at which the trail is due, and its scans.

Most trails are narrow: whole seconds and small event ids, 13 bytes a scan in place of 21. A trail
that is not has the top bit of its hour set.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

import numpy as np

from serving.history.packed import SCAN, Records, joined
from trail.scan import SECOND_US, Bool, Int32, Int64

NARROW: Final = np.dtype([("time_s", "<u4"), ("place", "<u4"), ("event_id", "<u4"), ("said", "u1")])
_DUE: Final = struct.Struct("<I")
_WIDE: Final = 1 << 31
_MOST: Final = 2**32 - 1
"""Stands for event id -1."""


def due_of(value: bytes | None) -> int:
    """The hour at which a trail is due; 0 where there is no trail."""
    return _DUE.unpack_from(value)[0] & ~_WIDE if value else 0


def trails_from(values: Sequence[bytes | None]) -> tuple[Records, Int32]:
    """Scans of trails one after the other, and for each the number of its trail."""
    wide = [bool(value) and _DUE.unpack_from(value)[0] >= _WIDE for value in values]  # type: ignore[arg-type]
    scans = [value[_DUE.size :] if value else b"" for value in values]
    if all(wide):
        return joined(scans)
    size = np.fromiter(map(len, scans), np.int64, len(scans))
    is_wide = np.array(wide, bool)
    count = size // np.where(is_wide, SCAN.itemsize, NARROW.itemsize)
    trail = np.repeat(np.arange(len(scans), dtype=np.int32), count)
    narrow = np.frombuffer(b"".join(s for s, w in zip(scans, wide, strict=True) if not w), NARROW)
    if not any(wide):
        return _widened(narrow), trail
    records = np.empty(len(trail), SCAN)
    of_wide = is_wide[trail]
    records[~of_wide] = _widened(narrow)
    records[of_wide] = joined([s for s, w in zip(scans, wide, strict=True) if w])[0]
    return records, trail


class Values:
    """Values of trails, made when asked for.

    Args:
        records: scans of all trails, in trail order.
        trail: int32, the number of the trail of each.
        trails: how many there are.
    """

    def __init__(self, records: Records, trail: Int32, trails: int) -> None:
        self._records = records
        fits = _fits(records)
        self._narrow = _narrowed(records)
        self._wide = np.bincount(trail, ~fits, trails).astype(bool).tolist()
        self._cut = np.searchsorted(trail, np.arange(trails + 1)).tolist()

    def value(self, i: int, due: int) -> bytes:
        """The value of the i-th trail, due at an hour."""
        wide = self._wide[i]
        scans = (self._records if wide else self._narrow)[self._cut[i] : self._cut[i + 1]]
        return _DUE.pack(due | _WIDE if wide else due) + scans.tobytes()


def _fits(records: Records) -> Bool:
    time_us: Int64 = records["time_us"]
    event_id: Int64 = records["event_id"]
    time_s = time_us // SECOND_US
    whole = (time_s * SECOND_US == time_us) & (time_s >= 0) & (time_s <= _MOST)
    return np.asarray(whole & (event_id >= -1) & (event_id < _MOST), bool)


def _narrowed(records: Records) -> Records:
    narrow = np.empty(len(records), NARROW)
    narrow["time_s"] = (records["time_us"] // SECOND_US).astype(np.uint32)
    narrow["place"] = records["place"]
    narrow["event_id"] = records["event_id"].astype(np.uint32)
    narrow["said"] = records["said"]
    return narrow


def _widened(narrow: Records) -> Records:
    records = np.empty(len(narrow), SCAN)
    records["time_us"] = narrow["time_s"].astype(np.int64) * SECOND_US
    records["place"] = narrow["place"]
    event_id = narrow["event_id"].astype(np.int64)
    records["event_id"] = np.where(event_id == _MOST, -1, event_id)
    records["said"] = narrow["said"]
    return records
