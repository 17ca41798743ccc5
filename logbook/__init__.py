"""The prediction log: every scored scan with its verdict, durable before the answer leaves.

It is what monitoring, explanations, feedback, replay and the next training read. SQLite by
default, PostgreSQL by URL, one set of tables and statements; `logbook.opened` opens it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, Protocol


class LogError(RuntimeError):
    """The log cannot be written or read; nothing was acknowledged. Says which and what to do."""


class Kind(StrEnum):
    """What a logged verdict is."""

    GIVEN = "given"
    """The answer to the request that brought the scan."""
    REVISED = "revised"
    """A later scan changed what is said of this one."""
    SHADOW = "shadow"
    """What a challenger would have said; nobody was told."""


class LoggedScan(NamedTuple):
    """A scan as it was asked about. Code, event id, place, operation and time identify it.

    Attributes:
        epc: the code as it came.
        lot: lot key (`trail.epc`).
        event_id: -1 where there is none.
        location_id: as text.
        op: a `trail.scan.Op`.
        time_us: event time, microseconds since 1970 in UTC.
        file_id: -1 where there is none.
        remembered: the history store has it; False while the store is down.
    """

    epc: str
    lot: int
    event_id: int
    location_id: str
    op: int
    time_us: int
    file_id: int = -1
    remembered: bool = True


class LoggedVerdict(NamedTuple):
    """What was said of a scan.

    Attributes:
        kind: given, revised or shadow.
        model_version: version or bundle name, "" for the rules alone.
        digest: digest of the bundle, "" for the rules alone.
        source: a `trail.verdict.Source` value, or "rules (no history)".
        confidence: "high", "medium" or "low".
        score: five scores 0-100, in the order of `ANOMALIES`.
        model: five calibrated probabilities of the model, zeros where none was asked.
        rules: five rule scores 0-100.
        evidence: sentences for a person, "" where nothing is flagged.
    """

    kind: Kind
    model_version: str
    digest: str
    source: str
    confidence: str
    score: tuple[float, ...]
    model: tuple[float, ...]
    rules: tuple[float, ...]
    evidence: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """One scoring request.

    Attributes:
        receipt: its id, unique, URL-safe.
        received_us: wall clock, microseconds since 1970 in UTC.
        route: the path asked.
        sites_version: hash of the site master in use, for replay.
        degraded: the history store was unreachable.
    """

    receipt: str
    received_us: int
    route: str
    sites_version: str = ""
    degraded: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """What one request adds: `scans[i]` was answered with `verdicts[i]`; further verdicts on
    scans already logged (`revised`) and by challengers (`shadow`) come beside it.
    `monitored[i]` is what drift monitoring reads of `scans[i]`, or None; empty where none has it.
    """

    request: Request
    scans: list[LoggedScan]
    verdicts: list[LoggedVerdict]
    revised: list[tuple[LoggedScan, LoggedVerdict]] = field(default_factory=list)
    shadow: list[tuple[LoggedScan, LoggedVerdict]] = field(default_factory=list)
    monitored: list[bytes | None] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Record:
    """A logged scan with its verdicts.

    Attributes:
        id: number of the scan in the log, growing from 1; a reader's offset.
        receipt: of the request that brought it.
        received_us: when that was.
        scan: the scan.
        verdicts: (when judged, receipt, verdict), oldest first.
    """

    id: int
    receipt: str
    received_us: int
    scan: LoggedScan
    verdicts: list[tuple[int, str, LoggedVerdict]]

    @property
    def given(self) -> LoggedVerdict:
        """The first answer."""
        return next(v for _, _, v in self.verdicts if v.kind == Kind.GIVEN)

    @property
    def latest(self) -> LoggedVerdict:
        """What is said now: the last verdict that is no shadow."""
        return [v for _, _, v in self.verdicts if v.kind != Kind.SHADOW][-1]


class Watched(NamedTuple):
    """A scan as drift monitoring reads it.

    Attributes:
        id: number of the scan in the log.
        received_us: when its request came.
        time_us: event time.
        lot: lot key.
        location_id: as text.
        digest: of the bundle that gave its answer, "" for the rules alone.
        monitored: its monitored columns, little-endian float32; None where it has none: it is
            older than they are, or was not judged by the model with its trail.
    """

    id: int
    received_us: int
    time_us: int
    lot: int
    location_id: str
    digest: str
    monitored: bytes | None


@dataclass(frozen=True, slots=True)
class Feedback:
    """An analyst's verdict on a scan and a type.

    Attributes:
        event_id: the scan's id, -1 where it has none: then `epc` and `time_us` name it.
        epc: its code.
        time_us: its event time.
        anomaly: a wire name of `ANOMALIES`.
        right: the alarm is right (or: there is such an anomaly); False: there is none.
        who: who says so.
        why: and why.
        given_us: when, microseconds since 1970 in UTC.
    """

    event_id: int
    epc: str
    time_us: int
    anomaly: str
    right: bool
    who: str
    why: str
    given_us: int


class PredictionLog(Protocol):
    """The log. Every method may raise `LogError`; all are safe from several threads."""

    def append(self, entry: Entry) -> bool:
        """Write a request, durably, before returning.

        A scan that is in the log already is not written again, nor is a second `given` verdict on
        it; so a request that is sent again after a crash completes what was written of it. Revised
        and shadow verdicts on scans that the log does not hold (any more) are left out.

        Returns:
            Whether all of its scans were new; where not, `given` tells what was answered first.

        Raises:
            ValueError: scans and verdicts are not as many, a verdict stands in the wrong list, or
                a number does not fit.
        """

    def append_all(self, entries: Sequence[Entry]) -> list[bool]:
        """Write requests together, as `append` each; they share a wait for the disk.

        Where it raises, any of them may have been written.
        """

    def given(self, scans: list[LoggedScan]) -> list[tuple[str, LoggedVerdict] | None]:
        """Receipt and first answer of each scan, None where it is not in the log."""

    def trail(self, epc: str) -> list[Record]:
        """All scans of a code, by event time."""

    def event(self, event_id: int) -> Record | None:
        """The scan that last came with this id."""

    def request(self, receipt: str) -> tuple[Request, list[Record]] | None:
        """A request and the scans that it brought, in their order; None where it is unknown."""

    def lots_before(self, lots: list[int], last_id: int) -> list[Record]:
        """Scans of some lots up to an id, in order of id: what was known then."""

    def since(self, last_id: int, limit: int) -> list[Record]:
        """Scans with larger ids, in order: how training reads the log."""

    def watched(self, last_id: int, limit: int) -> list[Watched]:
        """Scans with larger ids, in order, with what monitoring reads of them."""

    def waiting(self, limit: int) -> list[Record]:
        """Scans that the history store has still to learn, oldest first."""

    def remembered(self, ids: list[int]) -> None:
        """Note that the history store has learned these scans."""

    def forget(self, before_us: int) -> int:
        """Delete requests received before a time, with their scans and all verdicts on those.

        Requests are forgotten in the order in which they were written, up to the first one that
        was received later. Feedback is never forgotten. Goes in small steps, between which others
        may write.

        Returns:
            How many scans were forgotten.
        """

    def add_feedback(self, feedback: Feedback) -> bool:
        """Write an analyst's verdict; False where it changes nothing.

        A later word on the same scan and type replaces an earlier one of the same person; the same
        word (verdict and reason) again, or an older one than is known, changes nothing.

        Raises:
            ValueError: a number is not of 64 bits.
        """

    def feedback(self) -> list[Feedback]:
        """The verdicts that count, the last word of each person, by time."""

    def figures(self) -> dict[str, Any]:
        """For metrics and readiness: `requests`, `scans`, `verdicts` (of each kind), `waiting`,
        `last_id`, `feedback`.
        """

    def ping(self) -> None:
        """Raise `LogError` where the log cannot be written."""

    def close(self) -> None:
        """Release the log."""
