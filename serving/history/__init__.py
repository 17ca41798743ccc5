"""History: what the service remembers of each trail and each lot, behind one Protocol.

A store keeps the scans of every EPC (packed integers), what was last said of each, and the
counters of every lot that the mates' features need (`trail.mates.LotTable`). Sites are numbers of
a *site book* that lives in the store too, so that records stay small and never change meaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from trail.mates import LotTable
from trail.scan import Bool, Int64, Scans

UInt8 = npt.NDArray[np.uint8]

MOST_SCANS: Final = 512
"""Scans that a trail keeps; beyond that the oldest are dropped, also from the counters of the lot
(but for the serial range of a group that others are in). It is no honest trail. The answer to the
call that overfills it still holds all scans."""

MOST_GROUPS: Final = 65_536
"""Groups that the counters of a lot hold; scans in further ones are remembered, but not counted.
A lot where each of 20,000 items is sold at its own second has some 20,500."""


class HistoryError(RuntimeError):
    """The store cannot be reached, or answered nonsense; its message says which and what to do."""


@dataclass(frozen=True, slots=True)
class SiteEntry:
    """One site of the site book; its number is its place in the book.

    Attributes:
        id: `location_id` as text (`intake.text.canonical_id`).
        name: `scan_location`, "" where unknown.
        tier: a `trail.scan.Tier` up to RETAIL, or -1.
        latitude: degrees, NaN where unknown.
        longitude: degrees, NaN where unknown.
        known: a site master or an administrator named it, not only a scan.
    """

    id: str
    name: str = ""
    tier: int = -1
    latitude: float = float("nan")
    longitude: float = float("nan")
    known: bool = False


@dataclass(frozen=True, slots=True)
class Recall:
    """What is remembered of the trails and lots asked about.

    Attributes:
        scans: every remembered scan of the codes asked about, m of them, in no particular order;
            `codes` holds one row a distinct code, and `row` is the place of the scan in what was
            given to `remember` (the first one, if it was given twice), or -1.
        event_id: int64 (m,), -1 where the scan came without one.
        said: uint8 (m,), bit k (1 << column of `trail.scan.ANOMALIES`) is set where the scan was
            last flagged for it; see `History.mark`.
        table: counters of all lots that these codes belong to, the given scans counted in.
        at: int64 (n,), for each given scan its place in `scans`. Given scans that are the same
            scan share a place.
        new: bool (n,), the given scan was not remembered before; of several that are the same
            scan in one call only the first is new.
    """

    scans: Scans
    event_id: Int64
    said: UInt8
    table: LotTable
    at: Int64
    new: Bool


class History(Protocol):
    """A store of trails, lots and sites.

    Two scans are the same scan when code, `event_id`, site, operation and time agree; remembering
    it again changes nothing. Scans may come in any order: a trail is kept by (time, operation,
    site), and the moves of its lot are mended when a scan arrives between two others. Each method
    is safe from several threads and, where the store is shared, from several processes; it is
    atomic, but on a server a large call is atomic for each lot only.

    Every method may raise `HistoryError`. The call may have been done all the same: its scans are
    then not `new` when they are sent again. A store works again by itself when its server is back;
    one that lost its data gets the site book again from whoever knows it. Only where another
    process began a new book meanwhile the error says so, and `book` must be called again.
    """

    def remember(self, scans: Scans, event_id: Int64) -> Recall:
        """Remember scans and recall their trails and lots.

        Args:
            scans: n scans, `site` numbered by the site book.
            event_id: int64 (n,), -1 where a scan has none.
        """

    def recall(self, codes: list[str]) -> Recall:
        """What is remembered of some codes; `at` and `new` are empty."""

    def mark(self, scans: Scans, event_id: Int64, said: UInt8) -> None:
        """Note what was last said of remembered scans; unknown ones are left alone."""

    def book(self) -> list[SiteEntry]:
        """The site book, in order of its numbers."""

    def number(self, entries: list[SiteEntry]) -> list[int]:
        """Numbers of sites, new ones entered at the end of the book.

        An entry with `known` replaces what the book says of that site; one without leaves an
        existing entry alone. Numbers never change.
        """

    def expire(self, now_us: int) -> int:
        """Forget trails whose time has come, and lots long untouched; returns how many trails.

        A trail expires a set time after its last sale was remembered, or, unsold, after it was
        last touched by `remember`; the counters of a lot when they were not touched for so long
        that no trail of it is left. Embedded stores do a bounded part of the work in each call,
        and look at a lot once a day: call it every few minutes. Stores whose server expires keys
        by itself return 0.
        """

    def ping(self) -> None:
        """Raise `HistoryError` where the store does not answer."""

    def close(self) -> None:
        """Release the store."""
