"""Windows of recent scans: counts over the reference's cells in slots of six hours, and the last
few hundred scans as they came. Bounded: the same size at any rate.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from monitoring.reference import (
    CELLS,
    RECENT,
    WINDOWS,
    Int32,
    Int64,
    Reference,
    UInt8,
    Window,
    counted,
)
from trail.scan import DAY_US, HOUR_US

UInt32 = npt.NDArray[np.uint32]

VERSION: Final = 1
"""Of the state's bytes; a state of another version is refused."""
SLOT_US: Final = 6 * HOUR_US
A_DAY: Final = DAY_US // SLOT_US
"""Slots a day."""
LEEWAY: Final = A_DAY
"""Slots that a scan may lie ahead of the clock; one further ahead is counted at the clock."""
HORIZON: Final = max(window.days for window in WINDOWS) * A_DAY
"""Slots that are looked back on; an older scan is counted as late and nowhere else."""
SLOTS: Final = HORIZON + LEEWAY + 1
MOST_BYTES: Final = 1 << 20
"""Of a detector's state."""

_LENGTH: Final = struct.Struct("<I")


class StateError(ValueError):
    """A state that cannot be used here: damaged, of another version, or of another reference.

    Start anew with `Detector.of`; the windows fill again.
    """


@dataclass(frozen=True, slots=True)
class Content:
    """What a window holds.

    Attributes:
        window: which.
        n: scans.
        counts: int64 (c, CELLS), by cell.
        levels: int64 (l,), by level of `location`.
        complete: counting began before the window does.
        since_us: its beginning.
    """

    window: Window
    n: int
    counts: Int64
    levels: Int64
    complete: bool
    since_us: int


class Windows:
    """Counts of the scans of a stream. Its clock is the median event time of the last 500 scans,
    which goes forward only once there are so many: neither a wrong clock nor late scans move it.
    """

    def __init__(self, reference: Reference) -> None:
        """Empty windows over a reference's columns and sites."""
        self._of = reference.id
        c, levels = len(reference.names), len(reference.level_n)
        self._slot = np.full(SLOTS, -1, np.int64)
        self._counts = np.zeros((SLOTS, c, CELLS), np.uint32)
        self._levels = np.zeros((SLOTS, levels), np.uint32)
        self._codes = np.zeros((RECENT, c), np.uint8)
        self._level = np.zeros(RECENT, np.int32)
        self._time = np.zeros(RECENT, np.int64)
        self._held = 0
        self.clock_us = 0
        self.began_us = 0
        self.n = 0
        self.late = 0
        self.ahead = 0

    def add(self, codes: UInt8, level: Int32, time_us: Int64, now_us: int | None = None) -> None:
        """Count scans.

        Args:
            codes: uint8 (n, c), cells (`monitoring.reference.coded`).
            level: int32 (n,), levels of known sites.
            time_us: int64 (n,), event times.
            now_us: the present, where the caller knows it; the clock never goes beyond it.
        """
        if not len(codes):
            return
        if (np.diff(time_us) < 0).any():
            order = np.argsort(time_us, kind="stable")
            codes, level, time_us = codes[order], level[order], time_us[order]
        if time_us[-1] - time_us[0] <= DAY_US:
            self._add(codes, level, time_us, now_us)
            return
        # A backlog of many days goes by day after day, as it would have come.
        bounds = np.flatnonzero(np.diff(time_us // DAY_US)) + 1
        for start, stop in pairwise((0, *bounds.tolist(), len(codes))):
            self._add(codes[start:stop], level[start:stop], time_us[start:stop], now_us)

    def _add(self, codes: UInt8, level: Int32, time_us: Int64, now_us: int | None) -> None:
        """Count scans of a day or so, by time."""
        self._remember(codes, level, time_us)
        self._tick(now_us)
        present = self.clock_us // SLOT_US
        slot = time_us // SLOT_US
        ahead, late = slot > present + LEEWAY, slot <= present - HORIZON
        if ahead.any():
            self.ahead += int(ahead.sum())
            slot = np.where(ahead, present, slot)
        if late.any():
            self.late += int(late.sum())
            codes, level, slot = codes[~late], level[~late], slot[~late]
        self.n += len(codes)
        for number in np.unique(slot).tolist():
            mine = slot == number
            if mine.all():
                self._count(number, codes, level)
            else:
                self._count(number, codes[mine], level[mine])

    def _remember(self, codes: UInt8, level: Int32, time_us: Int64) -> None:
        """Keep the last RECENT scans, the newest at the end."""
        fresh = min(len(codes), RECENT)
        for kept, new in ((self._codes, codes), (self._level, level), (self._time, time_us)):
            kept[:-fresh] = kept[fresh:].copy()
            kept[-fresh:] = new[-fresh:]
        self._held = min(self._held + fresh, RECENT)

    def _tick(self, now_us: int | None) -> None:
        median = int(np.partition(self._time[-self._held :], self._held // 2)[self._held // 2])
        filled = self._held == RECENT and self.n >= RECENT
        self.clock_us = max(self.clock_us, median) if filled else median
        if now_us is not None:
            self.clock_us = min(self.clock_us, now_us)
        self.began_us = self.began_us if filled else min(self.began_us or median, median)

    def _count(self, number: int, codes: UInt8, level: Int32) -> None:
        at = number % SLOTS
        if self._slot[at] != number:
            self._slot[at] = number
            self._counts[at], self._levels[at] = 0, 0
        one = np.zeros(1, np.int64)
        self._counts[at] += counted(codes, one, 1)[0].astype(np.uint32)
        self._levels[at] += np.bincount(level, minlength=self._levels.shape[1]).astype(np.uint32)

    def content(self, window: Window, now_us: int | None = None) -> Content:
        """What a window holds now.

        Args:
            window: which.
            now_us: its end; None is the clock. Scans up to a day later are in it too, so that a
                clock set back loses nothing.
        """
        now = self.clock_us if now_us is None else now_us
        if not window.days:
            return self._recent(window)
        last = now // SLOT_US
        first = last - window.days * A_DAY + 1
        inside = (self._slot >= first) & (self._slot <= last + LEEWAY)
        levels = self._levels[inside].sum(axis=0, dtype=np.int64)
        return Content(
            window,
            int(levels.sum()),
            self._counts[inside].sum(axis=0, dtype=np.int64),
            levels,
            bool(self.n) and self.began_us < (first + 1) * SLOT_US,
            first * SLOT_US,
        )

    def _recent(self, window: Window) -> Content:
        held = slice(RECENT - self._held, None)
        codes, level = self._codes[held], self._level[held]
        return Content(
            window,
            self._held,
            counted(codes, np.zeros(1, np.int64), 1)[0],
            np.bincount(level, minlength=self._levels.shape[1]),
            self._held == RECENT,
            int(self._time[held].min()) if self._held else 0,
        )

    def to_bytes(self, more: dict[str, Any]) -> bytes:
        """The state, at most `MOST_BYTES`; `more` is JSON that travels with it."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        head = {"version": VERSION, "reference": self._of, **plain, "more": more}
        told = json.dumps(head).encode()
        arrays = b"".join(getattr(self, name).tobytes() for name in _ARRAYS)
        return zlib.compress(_LENGTH.pack(len(told)) + told + arrays, 1)

    @classmethod
    def from_bytes(cls, reference: Reference, state: bytes) -> tuple[Windows, dict[str, Any]]:
        """What `to_bytes` gave, and its `more`.

        Raises:
            StateError: see there.
        """
        made = cls(reference)
        try:
            whole = zlib.decompress(state)
            (length,) = _LENGTH.unpack_from(whole)
            head = json.loads(whole[_LENGTH.size : _LENGTH.size + length])
            if (head["version"], head["reference"]) != (VERSION, reference.id):
                raise StateError(
                    f"a state of version {head['version']} and reference {head['reference'][:12]}, "
                    f"not of version {VERSION} and reference {reference.id[:12]}; start anew"
                )
            at = _LENGTH.size + length
            for name in _ARRAYS:
                array = getattr(made, name)
                array[...] = np.frombuffer(whole, array.dtype, array.size, at).reshape(array.shape)
                at += array.nbytes
            for name in _PLAIN:
                setattr(made, name, int(head[name]))
            more = head["more"]
        except StateError:
            raise
        except (zlib.error, struct.error, ValueError, KeyError, TypeError) as error:
            raise StateError(f"a damaged state ({error}); start anew") from error
        if at != len(whole) or not isinstance(more, dict):
            raise StateError("a damaged state (its length is wrong); start anew")
        return made, more


_ARRAYS: Final = ("_slot", "_counts", "_levels", "_codes", "_level", "_time")
_PLAIN: Final = ("_held", "clock_us", "began_us", "n", "late", "ahead")
