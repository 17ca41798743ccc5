"""What the log's dataclasses are as rows of its tables, and back.

Floats are kept as little-endian float32, so that a replay can compare bits. Text is kept as it
is, but for what PostgreSQL cannot hold (NUL) or UTF-8 cannot write (lone surrogates): each such
character is written as its number between U+001A and a semicolon, and U+001A itself likewise.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from operator import itemgetter
from typing import Any, Final, NamedTuple

from logbook import Entry, Feedback, Kind, LoggedScan, LoggedVerdict, Request, Watched

Row = tuple[Any, ...]
Identity = tuple[str, int, int, int, str]
"""epc, time_us, event_id, op, location_id; the texts as they are stored and indexed."""
Origin = tuple[str, str, str, str]
"""model_version, digest, source, confidence."""

KINDS: Final = (Kind.GIVEN, Kind.REVISED, Kind.SHADOW)
"""Kinds by the number they have in the table; of one request's, in this order."""

_LONGEST: Final = 150
_NUMBERS: Final = struct.Struct("<15f")
_CUT: Final = "\x1a#"
_THREE: Final = struct.Struct("<3q")
_IDENTIFYING: Final = tuple(map(LoggedScan._fields.index, ("time_us", "event_id", "op")))
_BESIDE: Final = tuple(map(LoggedScan._fields.index, ("lot", "file_id", "remembered")))
_ODD: Final = re.compile("[\x00\x1a\ud800-\udfff]")
_CODED: Final = re.compile("\x1a([0-9a-f]+);")


def stored(text: str) -> str:
    """Text that both databases hold; `restored` gives the original back."""
    if _ODD.search(text) is None:
        return text
    return _ODD.sub(lambda odd: f"\x1a{ord(odd[0]):x};", text)


def restored(text: str) -> str:
    """The text that was stored."""
    if "\x1a" not in text:
        return text
    return _CODED.sub(lambda code: chr(int(code[1], 16)), text)


def key(text: str) -> str:
    """Text that both databases also index; a long one is cut and told apart by a digest."""
    kept = stored(text)
    if len(kept) <= _LONGEST:
        return kept
    digest = blake2b(kept.encode(), digest_size=16).hexdigest()
    return f"{kept[: _LONGEST - 50]}{_CUT}{digest}"


def identity(scan: LoggedScan) -> Identity:
    """What makes a scan the same scan.

    Raises:
        struct.error: a number is not of 64 bits.
    """
    return identities([scan])[0]


def identities(scans: Sequence[LoggedScan]) -> list[Identity]:
    """What makes each of some scans the same scan; see `identity`."""
    time_us, event_id, op = (_whole(map(itemgetter(k), scans), len(scans)) for k in _IDENTIFYING)
    codes, places = [key(scan.epc) for scan in scans], [key(scan.location_id) for scan in scans]
    return list(zip(codes, time_us, event_id, op, places, strict=True))


def _whole(values: Iterable[int], n: int) -> tuple[int, ...]:
    """Whole numbers of 64 bits; unpacked, a number is a plain int, whatever it was.

    (Databases adapt enums by their names.)
    """
    form = f"<{n}q"
    return struct.unpack(form, struct.pack(form, *values))


def whole(scan: LoggedScan, identity: Identity) -> str | None:
    """Code and place in full, where the identity holds them cut."""
    if _CUT not in identity[0] and _CUT not in identity[4]:
        return None
    return json.dumps([scan.epc, scan.location_id])


class Said(NamedTuple):
    """A verdict as the log keeps it."""

    origin: Origin
    numbers: bytes
    evidence: str

    @classmethod
    def of(cls, verdict: LoggedVerdict) -> Said:
        """Pack a verdict."""
        return cls(
            _origin(verdict.model_version, verdict.digest, verdict.source, verdict.confidence),
            _NUMBERS.pack(*verdict.score, *verdict.model, *verdict.rules),
            stored(verdict.evidence),
        )

    def verdict(self, kind: int) -> LoggedVerdict:
        """Unpack it."""
        numbers = _NUMBERS.unpack(self.numbers)
        version, digest, source, confidence = map(restored, self.origin)
        return LoggedVerdict(
            KINDS[kind],
            version,
            digest,
            source,
            confidence,
            numbers[:5],
            numbers[5:10],
            numbers[10:],
            restored(self.evidence),
        )


@lru_cache(maxsize=256)
def _origin(version: str, digest: str, source: str, confidence: str) -> Origin:
    return stored(str(version)), stored(str(digest)), stored(str(source)), stored(str(confidence))


@dataclass(frozen=True, slots=True)
class Prepared:
    """An entry as rows that lack only the numbers that the log gives out.

    Attributes:
        request: receipt, received_us, route, sites_version, degraded.
        identities: of each scan.
        rest: lot, file_id, remembered, whole, monitored; of each scan.
        given: of each scan.
        further: (scan, kind, verdict) of revised and shadow verdicts.
    """

    request: Row
    identities: list[Identity]
    rest: list[Row]
    given: list[Said]
    further: list[tuple[Identity, int, Said]]

    @classmethod
    def of(cls, entry: Entry) -> Prepared:
        """Prepare an entry.

        Raises:
            ValueError: scans and verdicts are not as many, a verdict's kind is not that of its
                list, or a number does not fit its column.
        """
        if len(entry.scans) != len(entry.verdicts):
            raise ValueError(f"{len(entry.scans)} scans with {len(entry.verdicts)} verdicts")
        monitored = entry.monitored or [None] * len(entry.scans)
        if len(monitored) != len(entry.scans):
            raise ValueError(f"{len(entry.scans)} scans with {len(monitored)} monitored rows")
        lists = (
            (Kind.GIVEN, entry.verdicts),
            (Kind.REVISED, [verdict for _, verdict in entry.revised]),
            (Kind.SHADOW, [verdict for _, verdict in entry.shadow]),
        )
        for kind, verdicts in lists:
            if any(verdict.kind != kind for verdict in verdicts):
                raise ValueError(f"a verdict among the {kind} ones is of another kind")
        try:
            its = identities(entry.scans)
            numbers = (_whole(map(itemgetter(k), entry.scans), len(its)) for k in _BESIDE)
            full = map(whole, entry.scans, its)
            return cls(
                _request(entry.request),
                its,
                list(zip(*numbers, full, monitored, strict=True)),
                [Said.of(verdict) for verdict in entry.verdicts],
                [
                    (identity(scan), KINDS.index(verdict.kind), Said.of(verdict))
                    for scan, verdict in (*entry.revised, *entry.shadow)
                ],
            )
        except (struct.error, OverflowError) as error:
            raise ValueError(
                f"a verdict is not three times five float32, or a number of a scan not of 64 bits: "
                f"{error}"
            ) from error


def _request(request: Request) -> Row:
    if len(stored(request.receipt)) > _LONGEST:
        raise ValueError(f"a receipt has {len(request.receipt)} characters; {_LONGEST} are most")
    return (
        key(request.receipt),
        request.received_us,
        stored(request.route),
        stored(request.sites_version),
        int(request.degraded),
    )


def request_of(row: Row) -> Request:
    """The request of a row (receipt, received_us, route, sites_version, degraded)."""
    receipt, received_us, route, sites_version, degraded = row
    return Request(
        restored(receipt), received_us, restored(route), restored(sites_version), bool(degraded)
    )


def scan_of(row: Row) -> LoggedScan:
    """The scan of a row.

    Args:
        row: epc, time_us, event_id, op, location_id, lot, file_id, remembered, whole.
    """
    epc, time_us, event_id, op, location_id, lot, file_id, remembered, in_full = row
    if in_full is None:
        epc, location_id = restored(epc), restored(location_id)
    else:
        epc, location_id = json.loads(in_full)
    return LoggedScan(epc, lot, event_id, location_id, op, time_us, file_id, bool(remembered))


def watched_of(row: Row, digest: str) -> Watched:
    """A scan as monitoring reads it.

    Args:
        row: id, received_us, time_us, lot, location_id, whole, monitored.
        digest: of the bundle that judged it, as stored.
    """
    number, received_us, time_us, lot, location_id, in_full, monitored = row
    place = restored(location_id) if in_full is None else json.loads(in_full)[1]
    return Watched(number, received_us, time_us, lot, place, restored(digest), monitored)


def subject(feedback: Feedback) -> str:
    """What a person's word is on: the scan, the type, and the person."""
    scan: list[int | str]
    if feedback.event_id >= 0:
        scan = [int(feedback.event_id)]
    else:
        scan = [-1, feedback.epc, int(feedback.time_us)]
    told = json.dumps([*scan, feedback.anomaly, feedback.who])
    return blake2b(told.encode(), digest_size=16).hexdigest()


def feedback_row(feedback: Feedback) -> Row:
    """A row of the table of feedback.

    Raises:
        ValueError: a number is not of 64 bits.
    """
    try:
        event_id, time_us, given_us = _THREE.unpack(
            _THREE.pack(feedback.event_id, feedback.time_us, feedback.given_us)
        )
    except struct.error as error:
        raise ValueError(f"a number of the feedback is not of 64 bits: {error}") from error
    return (
        subject(feedback),
        event_id,
        stored(feedback.epc),
        time_us,
        stored(feedback.anomaly),
        int(feedback.right),
        stored(feedback.who),
        stored(feedback.why),
        given_us,
    )


def feedback_of(row: Row) -> Feedback:
    """The feedback of a row without its subject."""
    event_id, epc, time_us, anomaly, is_right, who, why, given_us = row
    return Feedback(
        event_id,
        restored(epc),
        time_us,
        restored(anomaly),
        bool(is_right),
        restored(who),
        restored(why),
        given_us,
    )
