"""The core of a request: remember, recall, encode, judge, log, answer.

It runs in one thread. History is written before the log, and the log before the answer, so that a
crash leaves only scans that were never acknowledged; sent again they are recognised and answered.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from intake.master import read_sites
from logbook import Entry, Kind, LogError, LoggedScan, LoggedVerdict, PredictionLog, Record, Request
from monitoring.reference import monitored
from serving.history import History, HistoryError, Recall, SiteEntry
from serving.judge import Judge, Model
from serving.rows import Rows
from serving.settings import Settings
from serving.sites import SiteBook
from trail import epc as codes_of
from trail.facts import BoundContext, Context, Facts, facts_of
from trail.features import matrix
from trail.mates import LotTable
from trail.rules import FLAG, Findings, judge
from trail.scan import Bool, Float32, Int64, Scans
from trail.sites import Sites
from trail.trails import sort
from trail.verdict import Source, Verdicts
from trail.words import verdict_sentence

Index = npt.NDArray[np.intp]
_Found = tuple[str, LoggedVerdict]
"""An earlier answer, and the receipt of its request."""

NO_HISTORY: Final = "rules (no history)"
CATCH_UP: Final = 1000
"""Scans that the history store is taught at a time after it was away."""
SURE: Final = 75.0
"""Score from which a flag, and 100 minus which an all-clear, is given with high confidence."""
_SOURCES: Final = (Source.RULES.value, Source.COLD.value, Source.MODEL.value)
_CONFIDENCES: Final = ("low", "medium", "high")
_LOG: Final = logging.getLogger("trailwatch")


@dataclass(frozen=True, slots=True)
class Ask:
    """A scoring request.

    Attributes:
        rows: the good rows.
        route: the path asked, for the log.
        by: who judges, "model", "rules" or "svm".
    """

    rows: Rows
    route: str
    by: str = "model"


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said of the n rows of a request, in their order.

    Attributes:
        receipt: names the request that first brought these scans.
        score: float32 (n, 5), 0-100.
        flag: bool (n, 5).
        model: float32 (n, 5), calibrated probabilities, 0 where no model was asked.
        rules: float32 (n, 5), rule scores 0-100.
        source: who gave each verdict (`trail.verdict.Source`, or "rules (no history)").
        confidence: "high", "medium" or "low".
        evidence: sentences, "" where nothing is flagged.
        version: version of the model that judged, "" for the rules alone.
        repeated: bool (n,), answered before; this is that answer.
        degraded: the history store was unreachable, the rules judged what the request holds.
        took_us: microseconds in this core.
    """

    receipt: str
    score: Float32
    flag: Bool
    model: Float32
    rules: Float32
    source: list[str]
    confidence: list[str]
    evidence: list[str]
    version: list[str]
    repeated: Bool
    degraded: bool
    took_us: int


@dataclass(slots=True)
class Judged:
    """Verdicts on m recalled scans, in trail order.

    Attributes:
        scans: the scans.
        place: intp (m,), position in trail order of each recalled scan.
        features: float32 (m, F).
        score, flag, model, rules: as in `Answer`, (m, 5).
        by_rule, cold: bool (m, 5) and (m,), see `trail.verdict.Verdicts`.
        known, findings, sites: what evidence is read off.
        by: who judged: a model, or None for the rules.
        other: who judged the scans of `others` instead.
        others: bool (m,).
        degraded: without history.
    """

    scans: Scans
    place: Index
    features: Float32
    score: Float32
    flag: Bool
    model: Float32
    rules: Float32
    by_rule: Bool
    cold: Bool
    known: Facts
    findings: Findings
    sites: Sites
    by: Model | None
    others: Bool
    other: Model | None = None
    degraded: bool = False

    @property
    def said(self) -> npt.NDArray[np.uint8]:
        """Flags as bits, uint8 (m,)."""
        return np.packbits(self.flag, axis=1, bitorder="little")[:, 0]

    def sources(self, at: Index) -> list[str]:
        """Who gave the verdicts on some scans."""
        if self.degraded:
            return [NO_HISTORY] * len(at)
        unjudged = self._unjudged(at)
        by_rule = self.by_rule[at].any(axis=1)
        kind = np.where(unjudged, 0, np.where(self.cold[at], 1, np.where(by_rule, 0, 2)))
        return [_SOURCES[k] for k in kind.tolist()]

    def confidences(self, at: Index) -> list[str]:
        """How much the verdicts on some scans are worth.

        Low: no model, no history or a cold trail, unless a hard rule spoke. High: a hard rule or a
        clear score, either way. Medium: the score is near the threshold, or the network that the
        model learned does not know the place.
        """
        findings = Findings(self.findings.score[at], self.findings.reason[at])
        hard = findings.hard.max(axis=1, initial=0) >= FLAG
        low = self._unjudged(at) | self.cold[at]
        top = self.score[at].max(axis=1, initial=0)
        clear = ((top >= SURE) | (top <= 100 - SURE)) & self.known.site_known[at]
        kind = np.where(hard, 2, np.where(low, 0, np.where(clear, 2, 1)))
        return [_CONFIDENCES[k] for k in kind.tolist()]

    def _unjudged(self, at: Index) -> Bool:
        """Which of some scans no model judged."""
        return np.where(self.others[at], self.other is None, self.by is None)


class Scorer:
    """Scores requests against everything that is remembered; call it from one thread only."""

    def __init__(
        self, settings: Settings, history: History, log: PredictionLog, judge: Judge
    ) -> None:
        """Wire the core; a store that is away now is found when it is asked."""
        self._settings = settings
        self._history = history
        self._log = log
        self._judge = judge
        self._book: SiteBook | None = None
        self._master: tuple[object, Sites] | None = None
        self._rules: tuple[Sites, BoundContext] | None = None

    def score(self, rows: Rows, route: str, by: str = "model") -> Answer:
        """Remember, judge and log the rows of a request; the arguments are those of `Ask`.

        Raises:
            LogError: the log cannot be written; nothing was acknowledged.
        """
        return self._scored([Ask(rows, route, by)])[0]

    def score_some(self, asks: Sequence[Ask]) -> list[Answer | Exception | None]:
        """Answers to the first of some requests and to those that can be scored with it.

        Requests without a lot in common know nothing of each other, and so share the calls of the
        stores and of the kernel. The network sees each by itself: a matrix product may round
        otherwise in another batch, and a verdict must be reproducible from its receipt.

        Returns:
            For each request its answer, as if it had come alone, or what was wrong; None where it
            has to wait for another one of them.
        """
        together = _together(asks)
        found = iter(self._outcomes([ask for ask, now in zip(asks, together, strict=True) if now]))
        return [next(found) if now else None for now in together]

    def _outcomes(self, asks: list[Ask]) -> list[Answer | Exception]:
        """Answers to requests that are scored together, or what was wrong."""
        try:
            return list(self._scored(asks))
        except Exception as error:
            if len(asks) == 1 or isinstance(error, LogError):
                return [error] * len(asks)
            # What is wrong with one of them is no reason to refuse the others.
            return [outcome for ask in asks for outcome in self._outcomes([ask])]

    def _scored(self, asks: list[Ask]) -> list[Answer]:
        began = time.perf_counter_ns()
        panel, by = self._judge.panel(), asks[0].by
        champion = None if by == "rules" else panel.champion
        rows = Rows.joined([ask.rows for ask in asks])
        try:
            book = self._sites()
            scans = scans_of(rows, book.numbers(rows.location, rows.op))
            recall = self._recalled(scans, rows.event_id)
        except HistoryError as error:
            _LOG.warning("judging without history: %s", error)
            return [
                self._answers(began, [ask], ask.rows, None, self._without_history(ask.rows), None)[
                    0
                ]
                for ask in asks
            ]
        parts = None if len(asks) == 1 else _parts(asks, recall)
        judged, shadow = self.judged(recall, champion, by, parts), None
        if by == "model" and panel.challenger is not None:
            rival = self.judged(recall, panel.challenger, by, parts)
            theirs = panel.challenged(judged.scans.codes)[judged.scans.epc]
            if panel.mode == "ab":
                judged = _mixed(judged, rival, theirs)
            elif panel.mode == "shadow":
                shadow = (rival, theirs)
        return self._answers(began, asks, rows, recall, judged, shadow)

    def judged(
        self, recall: Recall, model: Model | None, by: str = "model", parts: Index | None = None
    ) -> Judged:
        """Verdicts on everything recalled, by a model or (None) by the rules; see `judged_with`."""
        return self.judged_with(recall.scans, recall.table, model, by, parts)

    def judged_with(
        self,
        scans: Scans,
        table: LotTable,
        model: Model | None,
        by: str = "model",
        parts: Index | None = None,
    ) -> Judged:
        """Verdicts on whole trails, with the counters of their lots.

        Args:
            scans: m scans.
            table: the counters.
            model: who judges; None: the rules.
            by: see `Ask`.
            parts: intp (m,), number of the request that each scan belongs to; whole lots each.
                None: they are of one.
        """
        return self._judged(scans, self._context(model), model, by, table, parts)

    def now(self, epc: str) -> tuple[Recall, Judged] | None:
        """What is said of a code's trail now; None where nothing is remembered of it.

        Raises:
            HistoryError: the store is away.
        """
        self._sites()
        recall = self._history.recall([epc])
        if not len(recall.scans):
            return None
        self._grown(recall)
        return recall, self.judged(recall, self._judge.panel().champion)

    def catch_up(self) -> int:
        """Teach the history store scans that were judged without it; returns how many.

        Raises:
            HistoryError: the store is still away.
            LogError: the log is.
        """
        records = self._log.waiting(CATCH_UP)
        if not records:
            return 0
        rows = rows_of(records)
        book = self._sites()
        scans = scans_of(rows, book.numbers(rows.location, rows.op))
        recall = self._recalled(scans, rows.event_id)
        judged = self.judged(recall, self._judge.panel().champion)
        revised = []
        at = judged.place[recall.at]
        for verdict, record in zip(_verdicts(judged, at, Kind.REVISED), records, strict=True):
            if _flags(verdict) != _flags(record.latest):
                revised.append((record.scan._replace(remembered=True), verdict))
        if revised:
            request = Request(_receipt(), _now_us(), "(history is back)", book.version)
            self._log.append(Entry(request, [], [], revised))
        self._mark(judged, at, recall)
        self._log.remembered([record.id for record in records])
        return len(records)

    def add_site(self, entry: SiteEntry) -> int:
        """Enter or replace a site; returns its number."""
        return self._sites().put(entry)

    @property
    def sites_version(self) -> str:
        """Hash of the site book in use."""
        return self._sites().version

    def _sites(self) -> SiteBook:
        """The site book; the master is entered when it is known, and again when it changes."""
        master = self.master()
        if self._book is None:
            self._book = SiteBook(self._history, master)
        return self._book

    def master(self) -> Sites:
        """The master of this installation: a file, else the champion's own."""
        file = self._judge.sites_file()
        if self._master is None or self._master[0] != file:
            read = read_sites(file) if file is not None else Sites.of([], [], [], [], [])
            self._master, self._book = (file, read), None
        return self._master[1]

    def _recalled(self, scans: Scans, event_id: Int64) -> Recall:
        recall = self._history.remember(scans, event_id)
        self._grown(recall)
        return recall

    def _grown(self, recall: Recall) -> None:
        """Read the book again where another process entered sites that this one lacks."""
        book = self._sites()
        if len(recall.scans) and int(recall.scans.site.max()) >= len(book.sites):
            book.refresh()

    def _context(self, model: Model | None) -> BoundContext:
        sites = self._sites().sites
        return model.context(sites) if model is not None else self._rule_context(sites)

    def _rule_context(self, sites: Sites) -> BoundContext:
        if self._rules is None or self._rules[0] is not sites:
            self._rules = (sites, Context(sites, None, self._judge.registry()).bound())
        return self._rules[1]

    def _judged(
        self,
        scans: Scans,
        context: BoundContext,
        model: Model | None,
        by: str,
        table: LotTable | None,
        parts: Index | None = None,
    ) -> Judged:
        trails = sort(scans)
        ((_, known),) = facts_of(trails, context, table, size=max(len(scans), 1) * 2)
        findings = judge(known)
        features = matrix(known, findings)
        place = np.empty(len(scans), np.intp)
        place[trails.order] = np.arange(len(scans))
        nothing = np.zeros_like(findings.score)
        verdict = Judged(
            trails.scans,
            place,
            features,
            score=findings.score,
            flag=findings.score >= FLAG,
            model=nothing,
            rules=findings.score,
            by_rule=findings.score >= FLAG,
            cold=np.zeros(len(scans), bool),
            known=known,
            findings=findings,
            sites=context.sites,
            by=None if by == "rules" else model,
            others=np.zeros(len(scans), bool),
        )
        if model is None or by == "rules":
            return verdict
        of = np.zeros(len(scans), np.intp) if parts is None else parts[trails.order]
        said = _by_part(model, by, features, findings, trails.starts, of)
        return replace(
            verdict,
            score=said.score,
            flag=said.flag,
            model=said.model,
            by_rule=said.by_rule,
            cold=said.cold,
        )

    def _without_history(self, rows: Rows) -> Judged:
        """The rules on what the request holds; sites by their last known numbers."""
        known = self._book.sites if self._book is not None else self.master()
        index = known.index
        strange = [site for site in dict.fromkeys(rows.location) if site not in index]
        sites = known.with_unknown(strange)
        number = sites.index
        site = np.array([number[s] for s in rows.location], dtype=np.int32)
        context = Context(sites, None, self._judge.registry()).bound()
        scans = scans_of(rows, site)
        return replace(self._judged(scans, context, None, "rules", None), degraded=True)

    def _answers(
        self,
        began: int,
        asks: list[Ask],
        rows: Rows,
        recall: Recall | None,
        judged: Judged,
        shadow: tuple[Judged, Bool] | None,
    ) -> list[Answer]:
        """Log and put together; what was answered before keeps its answer.

        Args:
            began: when, nanoseconds.
            asks: requests that are scored together.
            rows: the rows of all of them, n.
            recall: what is remembered of them, None where the history is away.
            judged: the verdicts on that.
            shadow: a challenger's verdicts on the same, and which of them count.
        """
        n, by = len(rows), asks[0].by
        spans = _spans(asks)
        at = judged.place[:n] if recall is None else judged.place[recall.at]
        logged = _logged(rows, judged, at, remembered=recall is not None)
        maybe_old = range(n) if recall is None else np.flatnonzero(~recall.new).tolist()
        before = self._before(logged, maybe_old)
        fresh = [i for i in range(n) if i not in before]
        given = dict(zip(fresh, _verdicts(judged, at[fresh], Kind.GIVEN), strict=True))
        watched = [] if recall is None or by != "model" else _watched(judged, at[fresh])
        monitored = dict(zip(fresh, watched, strict=True)) if watched else {}
        revised = [] if recall is None or by != "model" else self._revised(recall, judged)
        later = _by_ask(revised, logged, spans)
        version = self._book.version if self._book is not None and recall is not None else ""
        receipts, entries = [], []
        for ask, span, revisions in zip(asks, spans, later, strict=True):
            own = [i for i in span if i not in before]
            receipt = (_one_receipt(before, span) if not own else "") or _receipt()
            receipts.append(receipt)
            if own or revisions:
                entries.append(
                    Entry(
                        Request(
                            receipt if own else _receipt(),
                            _now_us(),
                            ask.route,
                            version,
                            recall is None,
                        ),
                        [logged[i] for i in own],
                        [given[i] for i in own],
                        revisions,
                        [] if shadow is None else _shadow(*shadow, own, at, logged),
                        [monitored[i] for i in own] if monitored else [],
                    )
                )
        if entries and not all(self._log.append_all(entries)):
            # another process answered some of these scans in the same moment
            theirs = self._before(logged, fresh)
            mine = set(receipts)
            before |= {i: found for i, found in theirs.items() if found[0] not in mine}
            receipts = [
                (_one_receipt(before, span) if before.keys() >= set(span) else "") or receipt
                for span, receipt in zip(spans, receipts, strict=True)
            ]
        if recall is not None:
            changed = [*at[fresh].tolist(), *(i for i, _, _ in revised)]
            self._mark(judged, np.array(changed, dtype=np.intp), recall)
        said = [before[i][1] if i in before else given[i] for i in range(n)]
        score, model, rules = judged.score[at], judged.model[at], judged.rules[at]
        for i, (_, verdict) in before.items():
            score[i], model[i], rules[i] = verdict.score, verdict.model, verdict.rules
        repeated = np.zeros(n, dtype=bool)
        repeated[list(before)] = True
        took_us = (time.perf_counter_ns() - began) // 1000
        return [
            Answer(
                receipt=receipt,
                score=score[span.start : span.stop],
                flag=score[span.start : span.stop] >= FLAG,
                model=model[span.start : span.stop],
                rules=rules[span.start : span.stop],
                source=[said[i].source for i in span],
                confidence=[said[i].confidence for i in span],
                evidence=[said[i].evidence for i in span],
                version=[said[i].model_version for i in span],
                repeated=repeated[span.start : span.stop],
                degraded=recall is None,
                took_us=took_us,
            )
            for receipt, span in zip(receipts, spans, strict=True)
        ]

    def _before(self, logged: list[LoggedScan], asked: Sequence[int]) -> dict[int, _Found]:
        """What was answered on some of the scans, where the log has them."""
        if not len(asked):
            return {}
        found = self._log.given([logged[i] for i in asked])
        return {i: told for i, told in zip(asked, found, strict=True) if told is not None}

    def _revised(
        self, recall: Recall, judged: Judged
    ) -> list[tuple[int, LoggedScan, LoggedVerdict]]:
        """Scans judged before of which other things are said now: place, scan, verdict."""
        changed = judged.said[judged.place] != recall.said
        changed[recall.at[recall.new]] = False
        rows = np.flatnonzero(changed)
        if not len(rows):
            return []
        places = judged.place[rows]
        event_id = recall.event_id[rows].tolist()
        scans = [
            _logged_scan(judged.scans, judged.sites, i, event)
            for i, event in zip(places.tolist(), event_id, strict=True)
        ]
        verdicts = _verdicts(judged, places, Kind.REVISED)
        return list(zip(places.tolist(), scans, verdicts, strict=True))

    def _mark(self, judged: Judged, at: Index, recall: Recall) -> None:
        """Note in the store what was said, where that differs from what it has noted."""
        said, noted = judged.said, np.empty_like(recall.said)
        noted[judged.place] = recall.said
        at = at[said[at] != noted[at]]
        if not len(at):
            return
        at = np.unique(at)
        event_id = np.empty_like(recall.event_id)
        event_id[judged.place] = recall.event_id
        try:
            self._history.mark(judged.scans.take(at), event_id[at], said[at])
        except HistoryError as error:  # only a later revision may then be logged twice
            _LOG.warning("what was said could not be noted: %s", error)


def scans_of(rows: Rows, site: npt.NDArray[np.int32]) -> Scans:
    """Rows as scans, with the numbers of their sites."""
    number: dict[str, int] = {}
    epc = np.array([number.setdefault(code, len(number)) for code in rows.epc], dtype=np.int32)
    codes = codes_of.parse(pa.array(list(number), pa.string()))
    return Scans(epc, site, rows.op, rows.time_us, np.arange(len(rows)), codes)


def rows_of(records: Sequence[Record]) -> Rows:
    """Logged scans as the rows that they came in."""
    scans = [record.scan for record in records]
    return Rows(
        epc=[s.epc for s in scans],
        location=[s.location_id for s in scans],
        op=np.array([s.op for s in scans], dtype=np.int8),
        time_us=np.array([s.time_us for s in scans], dtype=np.int64),
        event_id=np.array([s.event_id for s in scans], dtype=np.int64),
        file_id=np.array([s.file_id for s in scans], dtype=np.int64),
        place=np.arange(len(scans)),
    )


def _logged(rows: Rows, judged: Judged, at: Index, remembered: bool) -> list[LoggedScan]:
    lot = judged.scans.lot[at].tolist()
    columns = (rows.op.tolist(), rows.time_us.tolist(), rows.event_id.tolist())
    op, time_us, event_id = columns
    file_id = rows.file_id.tolist()
    return [
        LoggedScan(code, lot[i], event_id[i], place, op[i], time_us[i], file_id[i], remembered)
        for i, (code, place) in enumerate(zip(rows.epc, rows.location, strict=True))
    ]


def _verdicts(judged: Judged, at: Sequence[int] | Index, kind: Kind) -> list[LoggedVerdict]:
    """Verdicts on some scans of a kind, by their places."""
    at = np.asarray(at, dtype=np.intp)
    if not len(at):
        return []
    score, model, rules = (
        map(tuple, values[at].tolist()) for values in (judged.score, judged.model, judged.rules)
    )
    evidence = [""] * len(at)
    flag = judged.flag[at]
    for k in np.flatnonzero(flag.any(axis=1)).tolist():
        flags = tuple(flag[k].tolist())
        evidence[k] = verdict_sentence(
            flags, int(at[k]), judged.known, judged.findings, judged.scans, judged.sites
        )
    by = [_named(judged.by), _named(judged.other)]
    return [
        LoggedVerdict(kind, *by[other], *said)
        for other, *said in zip(
            judged.others[at].tolist(),
            judged.sources(at),
            judged.confidences(at),
            score,
            model,
            rules,
            evidence,
            strict=True,
        )
    ]


def _named(model: Model | None) -> tuple[str, str]:
    """Version and digest, "" for the rules alone."""
    return (model.version, model.bundle.digest) if model is not None else ("", "")


def _watched(judged: Judged, at: Index) -> list[bytes | None]:
    """What monitoring reads of some scans; nothing where no model judged."""
    if judged.by is None:
        return []
    scans = judged.scans
    columns = monitored(
        judged.features[at], scans.op[at], scans.time_us[at], judged.model[at], judged.flag[at]
    )
    return [row.tobytes() for row in columns.astype("<f4", copy=False)]


def _shadow(
    rival: Judged, theirs: Bool, fresh: Sequence[int], at: Index, logged: list[LoggedScan]
) -> list[tuple[LoggedScan, LoggedVerdict]]:
    """What the challenger says of the fresh scans of its share."""
    asked = [i for i in fresh if theirs[at[i]]]
    verdicts = _verdicts(rival, at[asked], Kind.SHADOW)
    return [(logged[i], verdict) for i, verdict in zip(asked, verdicts, strict=True)]


def _logged_scan(scans: Scans, sites: Sites, i: int, event_id: int) -> LoggedScan:
    epc = int(scans.epc[i])
    return LoggedScan(
        scans.codes.text[epc].as_py(),
        int(scans.codes.lot_key[epc]),
        event_id,
        sites.ids[int(scans.site[i])],
        int(scans.op[i]),
        int(scans.time_us[i]),
    )


def _mixed(champion: Judged, challenger: Judged, theirs: Bool) -> Judged:
    """The challenger's verdicts on its share of the EPCs, the champion's on the others."""
    wide = theirs[:, None]
    return replace(
        champion,
        score=np.where(wide, challenger.score, champion.score),
        flag=np.where(wide, challenger.flag, champion.flag),
        model=np.where(wide, challenger.model, champion.model),
        rules=np.where(wide, challenger.rules, champion.rules),
        by_rule=np.where(wide, challenger.by_rule, champion.by_rule),
        cold=np.where(theirs, challenger.cold, champion.cold),
        other=challenger.by,
        others=theirs,
    )


def _together(asks: Sequence[Ask]) -> list[bool]:
    """Which requests can be scored with the first: judged alike, and no lot in common."""
    if len(asks) == 1:
        return [True]
    texts = [code for ask in asks for code in ask.rows.epc]
    lot = codes_of.parse(pa.array(texts, pa.string())).lot_key.tolist()
    taken: set[int] = set()
    together = []
    for ask, span in zip(asks, _spans(asks), strict=True):
        own = set(lot[span.start : span.stop])
        # One that waits keeps its lots from those behind it: scans of a lot stay in order.
        together.append(ask.by == asks[0].by and taken.isdisjoint(own))
        taken |= own
    return together


def _spans(asks: Sequence[Ask]) -> list[range]:
    """Where the rows of each request are among those of all."""
    ends = list(accumulate(len(ask.rows) for ask in asks))
    return [range(a, b) for a, b in zip([0, *ends], ends, strict=False)]


def _parts(asks: Sequence[Ask], recall: Recall) -> Index:
    """Number of the request that each recalled scan belongs to."""
    of_code = np.empty(len(recall.scans.codes), np.intp)
    of_row = np.repeat(np.arange(len(asks)), [len(ask.rows) for ask in asks])
    of_code[recall.scans.epc[recall.at]] = of_row
    return np.asarray(of_code[recall.scans.epc])


def _by_part(
    model: Model, by: str, features: Float32, findings: Findings, starts: Bool, of: Index
) -> Verdicts:
    """Verdicts on n scans in trail order, those of each part as if they were alone.

    Args:
        model: who judges.
        by: "model" or "svm".
        features: float32 (n, F).
        findings: what the rules found.
        starts: bool (n,), the scan is the first of its trail.
        of: intp (n,), number of the part of each scan; whole trails each.
    """

    def verdicts(rows: Index | slice) -> Verdicts:
        if by == "svm":
            return model.bundle.judge_svm(features[rows])
        heads = np.flatnonzero(starts[rows])
        own = Findings(findings.score[rows], findings.reason[rows])
        offsets = np.append(heads, len(own.score)).astype(np.int64)
        return model.bundle.judge(features[rows], offsets, own)

    if not of.any():
        return verdicts(slice(None))
    parts = [np.flatnonzero(of == k) for k in range(int(of.max()) + 1)]
    back = np.argsort(np.concatenate(parts))
    found = [verdicts(part) for part in parts]
    return Verdicts(
        *(
            np.concatenate([getattr(one, name) for one in found])[back]
            for name in ("score", "flag", "by_rule", "cold", "model")
        )
    )


def _by_ask(
    revised: list[tuple[int, LoggedScan, LoggedVerdict]],
    logged: list[LoggedScan],
    spans: list[range],
) -> list[list[tuple[LoggedScan, LoggedVerdict]]]:
    """Revisions by the request that brought them about: the one with scans of that lot."""
    found: list[list[tuple[LoggedScan, LoggedVerdict]]] = [[] for _ in spans]
    if revised:
        ask_of = {logged[i].lot: k for k, span in enumerate(spans) for i in span}
        for _, scan, verdict in revised:
            found[ask_of[scan.lot]].append((scan, verdict))
    return found


def _one_receipt(before: dict[int, _Found], span: range) -> str:
    """The receipt of what was answered of a request before, "" where that were several or none."""
    receipts = {before[i][0] for i in span if i in before}
    return receipts.pop() if len(receipts) == 1 else ""


def _flags(verdict: LoggedVerdict) -> tuple[bool, ...]:
    return tuple(score >= FLAG for score in verdict.score)


def _receipt() -> str:
    """A new receipt: it sorts by time."""
    return f"{_now_us():014x}{secrets.token_hex(6)}"


def _now_us() -> int:
    return time.time_ns() // 1000
