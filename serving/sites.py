"""The site book in use: sites by the numbers that the history store gives them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np

from serving.history import History, SiteEntry
from trail.scan import SITE_TIER_OF_OP, Int8, Int32
from trail.sites import Sites

MOST_UNKNOWN: Final = 1000
"""Unknown sites that get a number of their own; a flood of further ones shares one number."""
OVERFLOW: Final = "(further unknown sites)"


class SiteBook:
    """Sites whose position is their number in the store.

    Attributes:
        sites: the sites; another object whenever the book has grown or changed.
        version: hash of the book, for replay.
    """

    sites: Sites
    version: str

    def __init__(self, history: History, master: Sites) -> None:
        """Enter the master's sites into the book.

        Args:
            history: the store that keeps the book.
            master: sites of this installation.

        Raises:
            HistoryError: the store does not answer.
        """
        self._history = history
        history.number(entries_of(master))
        self.refresh()

    def refresh(self) -> None:
        """Read the book again: another process may have entered sites."""
        book = self._history.book()
        self._number = {entry.id: i for i, entry in enumerate(book)}
        self._unknown = sum(not entry.known for entry in book)
        self.sites = Sites.of(
            [entry.id for entry in book],
            [entry.name for entry in book],
            [entry.tier for entry in book],
            [entry.latitude for entry in book],
            [entry.longitude for entry in book],
            [entry.known for entry in book],
        )
        self.version = hashlib.sha256(repr(book).encode()).hexdigest()[:16]

    def put(self, entry: SiteEntry) -> int:
        """Enter or replace a site; returns its number."""
        number = self._history.number([entry])[0]
        self.refresh()
        return number

    def numbers(self, ids: Sequence[str], op: Int8) -> Int32:
        """Numbers of sites, int32 (n,); one that nobody has named is entered as unknown.

        Args:
            ids: n canonical `location_id`s.
            op: int8 (n,), what was done there: an unknown site's tier is that of the first
                operation seen.
        """
        missing: dict[str, SiteEntry] = {}
        for site, what in zip(ids, op.tolist(), strict=True):
            if site in self._number or site in missing:
                continue
            if self._unknown + len(missing) < MOST_UNKNOWN:
                missing[site] = SiteEntry(site, tier=int(SITE_TIER_OF_OP[what]))
            elif OVERFLOW not in self._number:
                missing[OVERFLOW] = SiteEntry(OVERFLOW)
        if missing:
            self._history.number(list(missing.values()))
            self.refresh()
        rest = self._number.get(OVERFLOW, -1)
        return np.array([self._number.get(site, rest) for site in ids], dtype=np.int32)


def entries_of(sites: Sites) -> list[SiteEntry]:
    """A master as entries of the book."""
    return [
        SiteEntry(
            id=site,
            name=sites.names[i],
            tier=int(sites.tier[i]),
            latitude=float(sites.latitude[i]),
            longitude=float(sites.longitude[i]),
            known=bool(sites.known[i]),
        )
        for i, site in enumerate(sites.ids)
    ]
