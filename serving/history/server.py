"""History on a Redis or Valkey server, shared by several processes and machines.

Every key of a lot has the lot as its hash tag, so that one call does all for a lot also in a
cluster. What a call costs the server is remembered scans and changes, not the size of a trail:
positions are found by halving. Trails and counters expire by the server's clock.
"""

from __future__ import annotations

import threading
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from serving.history import HistoryError, Recall, SiteEntry, UInt8
from serving.history.keeping import Keeping
from serving.history.packed import (
    SCAN,
    Asked,
    Records,
    asked_for,
    found,
    in_trail_order,
    joined,
    pack,
    recalled,
    table_from,
)
from serving.history.sitebook import entry_from, entry_text
from serving.history.wires import Script, Wires
from trail.scan import Bool, Int32, Int64, Scans

VERSION: Final = "tw1"
"""First part of every key; another layout of records has another one."""

MOST_A_CALL: Final = 4_000
"""Trails or scans of whole lots that one call of the script takes, some 50 ms; others wait."""

_REMEMBER: Final = Script("trail.lua", "remember.lua")
_MARK: Final = Script("trail.lua", "mark.lua")
_NUMBER: Final = Script("number.lua")
_NONE: Final = np.empty(0, np.int64)
_LOT_KEYS: Final = 3


class Server:
    """A `serving.history.History` on a server.

    A call for few lots is atomic; one with more than `MOST_A_CALL` scans, or in a cluster, is
    atomic for each lot. An interrupted call may have been done: scans are then not `new` when they
    are sent again.

    Args:
        url: of redis-py, with `namespace` and `cluster` in its query (`wires.Wires`).
        keeping: what is kept, and for how long.

    Raises:
        ValueError: the URL cannot be used.
    """

    def __init__(self, url: str, keeping: Keeping) -> None:
        self._wires = Wires(url, (_REMEMBER, _MARK, _NUMBER))
        names = [part for part in (VERSION, self._wires.namespace) if part]
        self._prefix = ":".join(names).encode()
        self._bounds = [
            max(keeping.idle_us // 1000, 1),
            max(keeping.after_sale_us // 1000, 1),
            max(keeping.lot_us // 1000, 1),
            keeping.most_scans,
            keeping.most_groups,
        ]
        self._known: list[SiteEntry] = []
        self._checked = 0
        self._torn = False
        self._lock = threading.Lock()

    def remember(self, scans: Scans, event_id: Int64) -> Recall:
        given = pack(scans, event_id)
        asked = Asked.of(scans.codes, scans.epc)
        order, other = in_trail_order(given, asked.epc)
        head = order[other]
        answers = self._run(self._remembering(asked, given[head], asked.epc[head]))
        flags = b"".join(answer[0] for answer in answers)
        new = np.zeros(len(given), bool)
        new[head] = np.frombuffer(flags, np.uint8) == 1
        parts = [part for answer in answers for part in answer[1:]]
        return _recalled(asked, parts, given, new)

    def recall(self, codes: list[str]) -> Recall:
        asked = asked_for(codes)
        keys = self._keys(asked)
        commands = [
            ["MGET", *(key for lot in range(*lots) for key in _without_free(keys[lot]))]
            for lots in self._parts(asked, np.zeros(len(asked), np.int64))
        ]
        parts = [part or b"" for answer in self._run(commands) for part in answer]
        return _recalled(asked, parts, np.empty(0, SCAN), _NONE.astype(bool))

    def mark(self, scans: Scans, event_id: Int64, said: UInt8) -> None:
        given = pack(scans, event_id, said)
        asked = Asked.of(scans.codes, scans.epc)
        order = np.argsort(asked.epc, kind="stable")
        given = given[order]
        count = np.bincount(asked.epc, minlength=len(asked))
        cut = np.append(0, np.cumsum(count))
        keys = self._keys(asked)
        commands = []
        for low, high in self._parts(asked, count):
            trails = [key for lot in keys[low:high] for key in lot[_LOT_KEYS:]]
            i, j = asked.first[low], asked.first[high]
            packed = [count[i:j].astype("<u4").tobytes(), given[cut[i] : cut[j]].tobytes()]
            commands.append(_MARK.command(trails, packed))
        self._run(commands)

    def book(self) -> list[SiteEntry]:
        with self._lock:
            connects = self._wires.connects
            self._known = self._entries()
            self._torn, self._checked = False, connects
            return list(self._known)

    def number(self, entries: list[SiteEntry]) -> list[int]:
        if not entries:
            return []
        with self._lock:
            self._check_book()
            numbers = self._numbers(entries)
            if max(numbers) >= len(self._known):
                self._known = self._entries()
            for number, entry in zip(numbers, entries, strict=True):
                if entry.known:
                    self._known[number] = entry
        return numbers

    def expire(self, now_us: int) -> int:
        """Nothing to do: the server forgets by itself."""
        return 0

    def ping(self) -> None:
        self._run([["EXISTS", self._book_key("ids")]])

    def close(self) -> None:
        self._wires.close()

    def _run(self, commands: list[list[Any]]) -> list[Any]:
        """Answers of the server; the site book is looked at whenever it may be another one."""
        if self._checked != self._wires.connects:
            self._check()
        answers = self._sent(commands)
        if self._checked != self._wires.connects:
            self._check()
        return answers

    def _sent(self, commands: list[list[Any]]) -> list[Any]:
        try:
            return self._wires.run(commands)
        except HistoryError:
            self._checked = -1
            raise

    def _check(self) -> None:
        with self._lock:
            self._check_book()

    def _check_book(self) -> None:
        """Give a server that has lost the site book, or the end of it, what we know of it.

        Raises:
            HistoryError: the server has another book, so that our numbers mean other sites there.
        """
        connects = self._wires.connects
        if self._known and (self._torn or self._checked != connects):
            there = self._entries()
            both = min(len(there), len(self._known))
            same = [a.id for a in there[:both]] == [b.id for b in self._known[:both]]
            if same and len(there) < len(self._known):
                self._numbers(self._known[both:])
            elif same:
                self._known = there
            self._torn = not same
        if self._torn:
            raise HistoryError(
                f"{self._wires.name} has lost its site book and another process began a new one; "
                "read the book again (a restart does)"
            )
        self._checked = connects

    def _entries(self) -> list[SiteEntry]:
        texts = self._sent([["LRANGE", self._book_key("entries"), 0, -1]])[0]
        return [entry_from(text) for text in texts]

    def _numbers(self, entries: list[SiteEntry]) -> list[int]:
        keys = [self._book_key("ids"), self._book_key("entries")]
        fields: list[bytes | int] = []
        for entry in entries:
            fields += [entry.id.encode(), int(entry.known), entry_text(entry)]
        numbers: list[int] = self._sent([_NUMBER.command(keys, fields)])[0]
        return numbers

    def _book_key(self, name: str) -> bytes:
        return self._prefix + b":{sites}" + name.encode()

    def _keys(self, asked: Asked) -> list[list[bytes]]:
        """For each lot the keys of its groups, moves and free numbers, then those of its trails."""
        keys = []
        for i, lot in enumerate(asked.lots.tolist()):
            tag = urlsafe_b64encode(lot.to_bytes(8, "big")).rstrip(b"=")
            base = self._prefix + b":{" + tag + b"}"
            trails = asked.key[asked.first[i] : asked.first[i + 1]]
            keys.append([base + b"g", base + b"m", base + b"f", *(base + key for key in trails)])
        return keys

    def _parts(self, asked: Asked, count: Int64) -> Iterator[tuple[int, int]]:
        """Ranges of lots for each call; `count` has the number of scans of each trail."""
        if not len(asked):
            return
        weight = np.add.reduceat(count + 1, asked.first[:-1])
        most = 1 if self._wires.cluster else MOST_A_CALL
        low, sum_ = 0, 0
        for lot, more in enumerate(weight.tolist()):
            if lot > low and sum_ + more > most:
                yield low, lot
                low, sum_ = lot, 0
            sum_ += more
        yield low, len(weight)

    def _remembering(self, asked: Asked, given: Records, epc: Int32) -> list[list[Any]]:
        """Calls of the script for distinct scans in trail order."""
        count = np.bincount(epc, minlength=len(asked))
        cut = np.append(0, np.cumsum(count))
        trails = np.empty(len(asked), [("serial", "<i4"), ("n", "<u4")])
        trails["serial"], trails["n"] = asked.codes.serial, count
        size = np.diff(asked.first).astype("<u4")
        scans = given.view(np.uint8).reshape(-1, SCAN.itemsize)[:, :-1]
        keys = self._keys(asked)
        commands = []
        for low, high in self._parts(asked, count):
            i, j = asked.first[low], asked.first[high]
            packed = [
                size[low:high].tobytes(),
                trails[i:j].tobytes(),
                scans[cut[i] : cut[j]].tobytes(),
            ]
            every = [key for lot in keys[low:high] for key in lot]
            commands.append(_REMEMBER.command(every, [*self._bounds, *packed]))
        return commands


def _without_free(keys: list[bytes]) -> list[bytes]:
    return [*keys[: _LOT_KEYS - 1], *keys[_LOT_KEYS:]]


def _recalled(asked: Asked, parts: list[bytes], given: Records, new: Bool) -> Recall:
    """The answer from each lot's groups, moves and trails."""
    groups: list[bytes] = []
    moves: list[bytes] = []
    trails: list[bytes] = []
    at = 0
    for size in np.diff(asked.first).tolist():
        groups.append(parts[at])
        moves.append(parts[at + 1])
        trails += parts[at + 2 : at + 2 + size]
        at += 2 + size
    records, epc = joined(trails)
    place = found(records, epc, given, asked.epc) if len(given) else _NONE
    return recalled(asked, records, epc, table_from(asked.lots, groups, moves), place, new)
