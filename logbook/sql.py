"""The log as statements that SQLite and PostgreSQL both understand."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

from logbook import (
    Entry,
    Feedback,
    Kind,
    LogError,
    LoggedScan,
    LoggedVerdict,
    Record,
    Request,
    Watched,
)
from logbook.database import LIST, Database, Session
from logbook.rows import (
    KINDS,
    Identity,
    Origin,
    Prepared,
    Row,
    Said,
    feedback_of,
    feedback_row,
    identities,
    key,
    request_of,
    restored,
    scan_of,
    watched_of,
)

_logger = logging.getLogger(__name__)

_GIVEN: Final = KINDS.index(Kind.GIVEN)
_MOST_TOGETHER: Final = 5_000
"""Scans that one transaction takes from several threads."""
_FORGET_AT_ONCE: Final = 2_000
"""Scans that one transaction forgets, so that requests need not wait long for it."""

_SAME_SCAN: Final = "epc = ? AND time_us = ? AND event_id = ? AND op = ? AND location_id = ?"
_FEEDBACK: Final = "event_id, epc, time_us, anomaly, is_right, who, why, given_us"


def _records(where: str, order: str = "s.id", scans: str = "scans") -> str:
    # One statement, so that it sees one state of the log. A scan's request is that of its given
    # verdict. The counts of columns here are those that `_record` takes apart.
    return (
        "SELECT s.id, s.epc, s.time_us, s.event_id, s.op, s.location_id, s.lot, s.file_id, "
        "s.remembered, s.whole, r.received_us, r.receipt, v.kind, v.origin, v.numbers, v.evidence "
        f"FROM {scans} s JOIN verdicts v ON v.scan = s.id JOIN requests r ON r.id = v.request "
        f"WHERE {where} ORDER BY {order}, v.request, v.kind"
    )


_SINCE: Final = _records("0 = 0", scans="(SELECT * FROM scans WHERE id > ? ORDER BY id LIMIT ?)")
_WATCHED: Final = (
    "SELECT v.origin, s.id, r.received_us, s.time_us, s.lot, s.location_id, s.whole, s.monitored "
    "FROM (SELECT * FROM scans WHERE id > ? ORDER BY id LIMIT ?) s "
    f"JOIN verdicts v ON v.scan = s.id AND v.kind = {_GIVEN} "
    "JOIN requests r ON r.id = v.request ORDER BY s.id"
)
_WAITING: Final = _records(
    "0 = 0", scans="(SELECT * FROM scans WHERE remembered = 0 ORDER BY id LIMIT ?)"
)
_TRAIL: Final = _records("s.epc = ?", "s.time_us, s.id")
_EVENT: Final = _records(
    "0 = 0",
    scans="(SELECT * FROM scans WHERE event_id = ? AND event_id >= 0 ORDER BY id DESC LIMIT 1)",
)
_OF_REQUEST: Final = _records("s.request = ?", "s.place, s.id")
_OF_LOTS: Final = _records(f"s.lot {LIST} AND s.id <= ?")


@dataclass(slots=True, eq=False)
class _Ticket:
    """An entry that waits to be written."""

    entry: Prepared
    done: bool = False
    all_new: bool = True
    error: BaseException | None = None


class SqlLog:
    """A `logbook.PredictionLog` in a SQL database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._writing = threading.Lock()
        self._queue: list[_Ticket] = []
        self._queue_lock = threading.Lock()
        self._origins: dict[Origin, int] = {}
        self._origin_of: dict[int, Origin] = {}

    def append(self, entry: Entry) -> bool:
        return self.append_all([entry])[0]

    def append_all(self, entries: Sequence[Entry]) -> list[bool]:
        tickets = [_Ticket(Prepared.of(entry)) for entry in entries]
        with self._queue_lock:
            self._queue += tickets
        # Whoever comes first writes for all who came while the one before was writing: they share
        # a transaction, and its wait for the disk.
        with self._writing:
            while not all(ticket.done for ticket in tickets):
                self._write_waiting()
        for ticket in tickets:
            if ticket.error is not None:
                raise LogError(str(ticket.error)) from ticket.error
        return [ticket.all_new for ticket in tickets]

    def _write_waiting(self) -> None:
        with self._queue_lock:
            scans = count = 0
            for ticket in self._queue:
                scans += len(ticket.entry.identities)
                if count and scans > _MOST_TOGETHER:
                    break
                count += 1
            group, self._queue = self._queue[:count], self._queue[count:]
        entries = [ticket.entry for ticket in group]
        try:
            origins, taken = self._database.write(lambda session: self._add(session, entries))
        except BaseException as error:
            for ticket in group:
                ticket.done, ticket.error = True, error
            if not isinstance(error, LogError):
                raise
            return
        if origins is not None:
            self._know(origins)
        for ticket, all_new in zip(group, taken, strict=True):
            ticket.done, ticket.all_new = True, all_new

    def _add(
        self, session: Session, entries: list[Prepared]
    ) -> tuple[list[Row] | None, list[bool]]:
        """Write entries.

        Returns:
            The table of origins where it was read anew, and of each entry whether all its scans
            were new.
        """
        [(request, scan)] = session.rows("SELECT request, scan FROM counters")
        requests, new_requests = _add_requests(session, entries, request)
        origins, fresh_origins = self._numbered(session, entries)
        scans = [
            (scan + 1 + i, number, place, *its, *rest)
            for i, (number, place, its, rest) in enumerate(
                (number, place, its, rest)
                for entry, number in zip(entries, requests, strict=True)
                for place, (its, rest) in enumerate(zip(entry.identities, entry.rest, strict=True))
            )
        ]
        new_scans = session.insert("scans", scans)
        taken: set[int] | None = None  # the numbers that were new scans'; None: all
        if new_scans < len(scans):
            told = session.rows(
                "SELECT id FROM scans WHERE id > ? AND id <= ?", (scan, scan + len(scans))
            )
            taken = {number for (number,) in told}
        verdicts = [
            (row[0], row[1], _GIVEN, origins[said.origin], said.numbers, said.evidence)
            for row, said in zip(
                scans, (said for entry in entries for said in entry.given), strict=True
            )
            if taken is None or row[0] in taken
        ]
        counts = Counter({Kind.GIVEN: session.insert("verdicts", verdicts)})
        if any(entry.further for entry in entries):
            known = {row[3:8]: row[0] for row in scans if taken is None or row[0] in taken}
            counts += _add_further(session, entries, requests, origins, known)
        waiting = sum(1 for row in scans if not row[-3] and (taken is None or row[0] in taken))
        if taken is not None:
            late = {row[3:8] for row in scans if row[-3] and row[0] not in taken}
            waiting -= _remember(session, list(_numbers(session, late).values()))
        session.change(
            "UPDATE counters SET request = request + ?, scan = scan + ?, "
            "requests = requests + ?, scans = scans + ?, given = given + ?, "
            "revised = revised + ?, shadow = shadow + ?, waiting = waiting + ?",
            (
                len(entries),
                len(scans) if new_scans else 0,
                new_requests,
                new_scans,
                *(counts[kind] for kind in KINDS),
                waiting,
            ),
        )
        return fresh_origins, _all_new(entries, scan, taken)

    def _numbered(
        self, session: Session, entries: list[Prepared]
    ) -> tuple[dict[Origin, int], list[Row] | None]:
        """Numbers of the origins of some entries, those entered that are new."""
        asked = {said.origin for entry in entries for said in entry.given}
        asked |= {said.origin for entry in entries for _, _, said in entry.further}
        if asked <= self._origins.keys():
            return self._origins, None
        table = session.rows("SELECT * FROM origins")
        missing = sorted(asked - {tuple(row[1:]) for row in table})
        if missing:
            first = max((row[0] for row in table), default=0) + 1
            rows = [(first + i, *origin) for i, origin in enumerate(missing)]
            session.insert("origins", rows)
            table += rows
        return {tuple(row[1:]): row[0] for row in table}, table

    def _know(self, table: list[Row]) -> None:
        # Only what is committed: the numbers of a transaction that failed go to others.
        self._origin_of = {row[0]: (row[1], row[2], row[3], row[4]) for row in table}
        self._origins = {origin: number for number, origin in self._origin_of.items()}

    def given(self, scans: list[LoggedScan]) -> list[tuple[str, LoggedVerdict] | None]:
        if not scans:
            return []
        statement = (
            "SELECT r.receipt, v.origin, v.numbers, v.evidence FROM scans s "
            "JOIN verdicts v ON v.scan = s.id JOIN requests r ON r.id = v.request "
            f"WHERE {_SAME_SCAN} AND v.kind = {_GIVEN}"
        )
        asked = identities(scans)
        found = self._database.read(lambda session: session.each(statement, asked))
        return [
            (restored(rows[0][0]), self._said(*rows[0][1:]).verdict(_GIVEN)) if rows else None
            for rows in found
        ]

    def trail(self, epc: str) -> list[Record]:
        return self._ask(_TRAIL, key(epc))

    def event(self, event_id: int) -> Record | None:
        if not 0 <= event_id < 2**63:
            return None
        return next(iter(self._ask(_EVENT, event_id)), None)

    def request(self, receipt: str) -> tuple[Request, list[Record]] | None:
        statement = (
            "SELECT id, receipt, received_us, route, sites_version, degraded "
            "FROM requests WHERE receipt = ?"
        )
        found = self._database.read(lambda session: session.rows(statement, (key(receipt),)))
        if not found:
            return None
        return request_of(found[0][1:]), self._ask(_OF_REQUEST, found[0][0])

    def lots_before(self, lots: list[int], last_id: int) -> list[Record]:
        return self._ask(_OF_LOTS, [int(lot) for lot in lots], last_id) if lots else []

    def since(self, last_id: int, limit: int) -> list[Record]:
        return self._ask(_SINCE, last_id, limit)

    def watched(self, last_id: int, limit: int) -> list[Watched]:
        rows = self._database.read(lambda session: session.rows(_WATCHED, (last_id, limit)))
        return [watched_of(row[1:], self._origin(row[0])[1]) for row in rows]

    def waiting(self, limit: int) -> list[Record]:
        return self._ask(_WAITING, limit)

    def remembered(self, ids: list[int]) -> None:
        def note(session: Session) -> None:
            noted = _remember(session, [int(one) for one in ids])
            session.change("UPDATE counters SET waiting = waiting - ?", (noted,))

        if ids:
            with self._writing:
                self._database.write(note)

    def forget(self, before_us: int) -> int:
        newer = "SELECT min(id) FROM requests WHERE received_us >= ?"
        every = "SELECT coalesce(max(id), 0) + 1 FROM requests"

        def first_kept(session: Session) -> int:
            [(first,)] = session.rows(newer, (before_us,))
            return int(session.rows(every)[0][0] if first is None else first)

        end = self._database.read(first_kept)
        forgotten = 0
        while True:
            with self._writing:
                scans = self._database.write(lambda session: _forget_scans(session, end))
            forgotten += scans
            if scans < _FORGET_AT_ONCE:
                break
        while True:
            with self._writing:
                requests = self._database.write(lambda session: _forget_requests(session, end))
            if requests < _FORGET_AT_ONCE:
                return forgotten

    def add_feedback(self, feedback: Feedback) -> bool:
        row = feedback_row(feedback)

        def write(session: Session) -> bool:
            told = session.rows(
                "SELECT is_right, why, given_us FROM feedback WHERE subject = ?", row[:1]
            )
            if told:
                is_right, why, given_us = told[0]
                if (is_right, why) == (row[5], row[7]) or given_us > row[8]:
                    return False
                session.change("DELETE FROM feedback WHERE subject = ?", row[:1])
            session.insert("feedback", [row])
            return True

        with self._writing:
            return self._database.write(write)

    def feedback(self) -> list[Feedback]:
        statement = f"SELECT {_FEEDBACK} FROM feedback ORDER BY given_us, subject"
        return [feedback_of(row) for row in self._database.read(lambda s: s.rows(statement))]

    def figures(self) -> dict[str, Any]:
        statement = (
            "SELECT requests, scans, given, revised, shadow, waiting, "
            "coalesce((SELECT max(id) FROM scans), scan), (SELECT count(*) FROM feedback) "
            "FROM counters"
        )
        [row] = self._database.read(lambda session: session.rows(statement))
        requests, scans, given, revised, shadow, waiting, last_id, feedback = row
        return {
            "requests": requests,
            "scans": scans,
            "verdicts": {"given": given, "revised": revised, "shadow": shadow},
            "waiting": waiting,
            "last_id": last_id,
            "feedback": feedback,
        }

    def ping(self) -> None:
        with self._writing:
            self._database.write(lambda s: s.change("UPDATE counters SET request = request"))

    def close(self) -> None:
        with self._writing:
            self._database.close()

    def _ask(self, statement: str, *parameters: Any) -> list[Record]:
        rows = self._database.read(lambda session: session.rows(statement, parameters))
        return [self._record(list(told)) for _, told in groupby(rows, key=itemgetter(0))]

    def _record(self, rows: list[Row]) -> Record:
        first = next((row for row in rows if row[12] == _GIVEN), rows[0])
        return Record(
            id=first[0],
            receipt=restored(first[11]),
            received_us=first[10],
            scan=scan_of(first[1:10]),
            verdicts=[
                (row[10], restored(row[11]), self._said(*row[13:]).verdict(row[12])) for row in rows
            ],
        )

    def _said(self, origin: int, numbers: bytes, evidence: str) -> Said:
        return Said(self._origin(origin), numbers, evidence)

    def _origin(self, number: int) -> Origin:
        if number not in self._origin_of:  # another process met it first
            self._know(self._database.read(lambda session: session.rows("SELECT * FROM origins")))
        return self._origin_of[number]


def _all_new(entries: list[Prepared], last: int, taken: set[int] | None) -> list[bool]:
    """Of each entry whether all numbers of its scans, from `last` + 1 on, were taken."""
    found = []
    for entry in entries:
        own = range(last + 1, last + 1 + len(entry.identities))
        found.append(taken is None or taken.issuperset(own))
        last += len(own)
    return found


def _add_requests(session: Session, entries: list[Prepared], last: int) -> tuple[list[int], int]:
    """Numbers of the requests, and how many are new; `last` is the last number given out."""
    rows = [(last + 1 + i, *entry.request) for i, entry in enumerate(entries)]
    added = session.insert("requests", rows)
    if added == len(rows):
        return [row[0] for row in rows], added
    told = session.each(
        "SELECT id FROM requests WHERE receipt = ?", [entry.request[:1] for entry in entries]
    )
    return [found[0][0] for found in told], added


def _add_further(
    session: Session,
    entries: list[Prepared],
    requests: list[int],
    origins: dict[Origin, int],
    known: dict[Row, int],
) -> Counter[Kind]:
    """Write revised and shadow verdicts; returns how many of each were new.

    History may remember scans that the log has forgotten: verdicts on those are left out.
    """
    unknown = {its for entry in entries for its, _, _ in entry.further if its not in known}
    numbers = {**known, **_numbers(session, unknown)}
    if lost := len(unknown - numbers.keys()):
        _logger.warning("left out verdicts on %d scans that the log does not hold", lost)
    counts: Counter[Kind] = Counter()
    for number, kind in enumerate(KINDS):
        counts[kind] = session.insert(
            "verdicts",
            [
                (numbers[its], request, number, origins[said.origin], said.numbers, said.evidence)
                for entry, request in zip(entries, requests, strict=True)
                for its, its_kind, said in entry.further
                if its_kind == number and its in numbers
            ],
        )
    return counts


def _numbers(session: Session, scans: set[Identity]) -> dict[Identity, int]:
    """Numbers of those scans that are in the log."""
    asked = list(scans)
    told = session.each(f"SELECT id FROM scans WHERE {_SAME_SCAN}", asked)
    return {its: rows[0][0] for its, rows in zip(asked, told, strict=True) if rows}


def _remember(session: Session, ids: list[int]) -> int:
    if not ids:
        return 0
    return session.change(
        f"UPDATE scans SET remembered = 1 WHERE remembered = 0 AND id {LIST}", (ids,)
    )


def _forget_scans(session: Session, end: int) -> int:
    """Forget some scans of requests before number `end`; returns how many."""
    found = session.rows(
        "SELECT id, remembered FROM scans WHERE request < ? ORDER BY request LIMIT ?",
        (end, _FORGET_AT_ONCE),
    )
    if not found:
        return 0
    ids = [number for number, _ in found]
    kinds: dict[int, int] = dict(
        session.rows(f"SELECT kind, count(*) FROM verdicts WHERE scan {LIST} GROUP BY kind", (ids,))
    )
    session.change(f"DELETE FROM verdicts WHERE scan {LIST}", (ids,))
    session.change(f"DELETE FROM scans WHERE id {LIST}", (ids,))
    session.change(
        "UPDATE counters SET scans = scans - ?, given = given - ?, revised = revised - ?, "
        "shadow = shadow - ?, waiting = waiting - ?",
        (
            len(ids),
            *(kinds.get(number, 0) for number in range(len(KINDS))),
            sum(1 for _, remembered in found if not remembered),
        ),
    )
    return len(ids)


def _forget_requests(session: Session, end: int) -> int:
    """Forget some requests before number `end`, whose scans are forgotten; returns how many."""
    gone = session.change(
        "DELETE FROM requests WHERE id IN "
        "(SELECT id FROM requests WHERE id < ? ORDER BY id LIMIT ?)",
        (end, _FORGET_AT_ONCE),
    )
    session.change("UPDATE counters SET requests = requests - ?", (gone,))
    return gone
