"""The monitor: reads the prediction log, evaluates on a timer, relays what the policy asks for.

Each round is one transaction of the state database: the offset in the log, the detector with the
scans up to it, an evaluation, and what the policy made of it. In memory there is nothing that could
not be read again, and after any error it is.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from logbook import LogError, PredictionLog, Watched
from monitoring import policy as policies
from monitoring.drift import Detector, Evaluation
from monitoring.policy import NewSite, Reading
from monitoring.reference import Batch, Reference, ReferenceError, box_key
from monitoring.relay import Relay
from monitoring.report import Reporter
from monitoring.store import Lease, LeaseLostError, Monitor, Store, StoreError, Transaction
from monitoring.windows import StateError

SECOND: Final = 1_000_000
PAGE: Final = 5_000
"""Scans that one transaction takes in."""
PRUNE_EVERY: Final = 500
"""Evaluations between two prunings of the history."""
NO_REFERENCE: Final = "no_reference"
LOG_DOWN: Final = "log_down"

_LOG: Final = logging.getLogger("trailwatch.drift")


@dataclass(frozen=True, slots=True)
class Champion:
    """The champion, as the registry told it: version, digest, and its bundle's folder."""

    version: str
    digest: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Pace:
    """How often, in seconds: evaluations, and what a promotion may take after its run."""

    every_s: float = 60.0
    settle_s: float = 300.0


class Watch:
    """One evaluator of one model. Call `step` from one thread; `tell` and `checked` from any."""

    def __init__(
        self,
        log: PredictionLog,
        store: Store,
        relay: Relay,
        reporter: Reporter | None = None,
        *,
        lease_s: float = 30.0,
        pace: Pace = Pace(),
        event_clock: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Prepare; nothing is read before the first step.

        Args:
            log: what is watched.
            store: where all state is.
            relay: who tells Airflow.
            reporter: who makes reports; None: nobody.
            lease_s: after so many seconds of silence another evaluator takes over.
            pace: how often to evaluate.
            event_clock: windows and policy go by the scans' event times, not by the wall clock.
            clock: seconds since 1970.
        """
        self._log = log
        self._store = store
        self._relay = relay
        self._reporter = reporter
        self._lease_s = lease_s
        self._pace = pace
        self._event_clock = event_clock
        self._clock = clock
        self._owner = f"{socket.gethostname()}/{os.getpid()}"
        self._lease: Lease | None = None
        self._champion: Champion | None = None
        self._checked_us = 0
        self._loaded: tuple[Champion, Reference] | None = None
        self._detector: Detector | None = None
        self._labels: dict[tuple[int, str, int], str] = {}
        self._due_us = 0
        self._evaluations = 0

    @property
    def active(self) -> bool:
        """It has the lease; otherwise another evaluator works."""
        return self._lease is not None

    def tell(self, champion: Champion) -> None:
        """This is the champion now."""
        self._champion = champion

    def checked(self) -> None:
        """The registry was asked just now, and told everything."""
        self._checked_us = self._now_us()

    def step(self) -> bool:
        """One round.

        Returns:
            Whether there is more to read at once.

        Raises:
            StoreError: the state cannot be read or written; the next round may.
        """
        if self._lease is None:
            self._lease = self._store.lease(self._owner, self._lease_s)
            if self._lease is None:
                return False
            self._detector = None
            _LOG.info("this is the evaluator now")
        try:
            more = self._round(self._lease)
            self._relay.work(self._lease)
            self._settle(self._lease)
            if self._reporter is not None:
                self._reporter.work(self._lease)
        except LeaseLostError as error:
            _LOG.warning("%s; this one waits", error)
            self._lease, self._detector = None, None
            return False
        except BaseException:
            self._detector = None  # it may hold scans that were not written
            raise
        return more

    def close(self) -> None:
        """Let the next evaluator in at once."""
        lease, self._lease = self._lease, None
        if lease is not None:
            self._store.release(lease)

    def _round(self, lease: Lease) -> bool:
        self._adopt(lease)
        detector = self._ready(lease)
        monitor = self._store.monitor()
        assert monitor is not None
        try:
            rows, last_id, replaced = self._read(monitor, detector)
            trouble = ""
        except LogError as error:
            rows, last_id, replaced, trouble = [], monitor.offset, False, str(error)
        now_us = self._now_us()
        if replaced and detector is not None:
            detector.last_id = -1
        reread_us = monitor.seen_us if replaced else monitor.reread_us
        counts = Counter(monitor.counts)
        if detector is not None and rows:
            batch = self._batch(rows, monitor.digest, reread_us, detector.reference, counts)
            if batch is not None:
                detector.add(batch, None if self._event_clock else now_us)
        evaluation, labels = None, {}
        if detector is not None and not trouble and self._due(now_us):
            evaluation = detector.evaluate(None if self._event_clock else now_us)
            labels = self._labels_at({place.location for place in evaluation.locations})
        with self._store.change(lease) as step:
            mine = step.monitor
            mine.clock = "event" if self._event_clock else "received"
            step.alarm(LOG_DOWN, trouble)
            if replaced:
                mine.offset, mine.reread_us = 0, mine.seen_us
                step.note("log_replaced", {"last_id": last_id})
            if rows:
                newest = max(row.received_us for row in rows)
                if newest > mine.reread_us:
                    mine.reread_us = 0
                mine.offset, mine.seen_us = rows[-1].id, rows[-1].received_us
            mine.counts = dict(counts)
            mine.lag = max(last_id - mine.offset, 0)
            if detector is not None and (rows or replaced):
                mine.detector = detector.to_bytes()
            if evaluation is not None:
                self._evaluated(step, evaluation, labels)
        if evaluation is not None:
            self._due_us = now_us + int(self._pace.every_s * SECOND)
        return len(rows) == PAGE or replaced

    def _adopt(self, lease: Lease) -> None:
        """Follow the champion: its reference, empty windows, and the end of the episode before."""
        told = self._champion
        if told is None or (self._loaded is not None and self._loaded[0] == told):
            return
        reference, trouble = None, ""
        try:
            reference = Reference.load(told.folder)
        except ReferenceError as error:
            trouble = str(error)
        with self._store.change(lease) as step:
            mine = step.monitor
            if mine.policy.version != told.version:
                step.apply(policies.champion(mine.policy, told.version, step.now_us))
            known = {} if reference is None else _described(reference)
            if mine.digest != told.digest or mine.reference != known:
                mine.digest, mine.reference = told.digest, known
                mine.detector, mine.evaluation, mine.evaluated_us = None, None, 0
                self._detector = None
            step.alarm(NO_REFERENCE, trouble)
        self._due_us = 0
        if reference is None:
            # A bundle never changes: there is nothing to try again before the next champion.
            self._loaded, self._detector = None, None
            self._champion = None
            _LOG.error("version %s is not watched: %s", told.version, trouble)
        else:
            self._loaded = (told, reference)
            _LOG.info("watching version %s against reference %s", told.version, reference.id)

    def _ready(self, lease: Lease) -> Detector | None:
        """The detector with what the store knows; None without a reference."""
        if self._loaded is None or self._detector is not None:
            return self._detector
        champion, reference = self._loaded
        monitor = self._store.monitor(detector=True)
        if monitor is None or monitor.digest != champion.digest:
            return None
        state = monitor.detector
        if state is None:
            self._detector = Detector.of(reference)
            return self._detector
        try:
            self._detector = Detector.from_bytes(reference, state)
        except StateError as error:
            _LOG.warning("the windows begin anew: %s", error)
            self._detector = Detector.of(reference)
            with self._store.change(lease) as step:
                step.monitor.detector = None
                step.note("windows_lost", {"why": str(error)})
        return self._detector

    def _due(self, now_us: int) -> bool:
        """An evaluation is due; at once where the clock was set back."""
        return now_us >= self._due_us or self._due_us > now_us + int(self._pace.every_s * SECOND)

    def _read(self, monitor: Monitor, detector: Detector | None) -> tuple[list[Watched], int, bool]:
        """The next scans, the log's last id, and whether the log is another than before.

        Without a detector nothing is read: who comes to have one finds everything.
        """
        offset = monitor.offset
        if detector is None:
            return [], int(self._log.figures()["last_id"]), False
        if self._evaluations == 0 and offset > 0:
            there = self._log.watched(offset - 1, 1)
            if there and there[0].id == offset and there[0].received_us != monitor.seen_us:
                return [], there[0].id, True
        rows = self._log.watched(offset, PAGE)
        last_id = rows[-1].id if rows else offset
        if not rows or len(rows) == PAGE:
            last_id = int(self._log.figures()["last_id"])
        return rows, last_id, last_id < offset

    def _batch(
        self,
        rows: list[Watched],
        digest: str,
        reread_us: int,
        reference: Reference,
        counts: Counter[str],
    ) -> Batch | None:
        """The scans that count, and what became of the others; None where none counts."""
        size = 4 * len(reference.names)
        kept = []
        for row in rows:
            if row.received_us <= reread_us:
                counts["read_before"] += 1
            elif row.monitored is None:
                counts["not_monitored"] += 1
            elif row.digest != digest:
                counts["other_model"] += 1
            elif len(row.monitored) != size:
                counts["other_columns"] += 1
            else:
                kept.append(row)
        counts["counted"] += len(kept)
        if not kept:
            return None
        columns = np.frombuffer(b"".join(row.monitored or b"" for row in kept), dtype="<f4")
        event_us = np.array([row.time_us for row in kept], dtype=np.int64)
        received_us = np.array([row.received_us for row in kept], dtype=np.int64)
        lot = np.array([row.lot for row in kept], dtype=np.int64)
        return Batch.of(
            columns.reshape(len(kept), -1).astype(np.float32),
            [row.location_id for row in kept],
            box_key(lot, event_us),
            event_us if self._event_clock else received_us,
            np.array([row.id for row in kept], dtype=np.int64),
        )

    def _evaluated(self, step: Transaction, evaluation: Evaluation, labels: dict[str, int]) -> None:
        mine = step.monitor
        mine.now_us = max(mine.now_us, evaluation.clock_us if self._event_clock else step.at_us)
        mine.evaluation = told_of(evaluation, labels, self._pace.every_s)
        mine.evaluated_us = step.at_us
        if mine.policy.version:
            reading = reading_of(evaluation, labels, step.now_us, mine.policy.version)
            step.apply(policies.evaluated(mine.policy, reading))
        policy = mine.policy
        facts = {
            "level": policy.level,
            "phase": policy.phase,
            "max_score": mine.evaluation["max_score"],
            "columns": list(policy.alarming or policy.warning)[:8],
            "clock_us": step.now_us,
            "lag": mine.lag,
        }
        step.note("evaluation", facts)
        self._evaluations += 1
        if self._evaluations % PRUNE_EVERY == 0:
            step.prune()

    def _labels_at(self, places: set[str]) -> dict[str, int]:
        """Scans with an analyst's verdict, at each of some sites; none where the log is away."""
        if not places:
            return {}
        try:
            scans = {(f.event_id, f.epc, f.time_us) for f in self._log.feedback()}
            return self._counted(scans, places)
        except LogError as error:
            _LOG.warning("labels are not counted: %s", error)
            return {}

    def _counted(self, scans: set[tuple[int, str, int]], places: set[str]) -> dict[str, int]:
        for scan in scans - self._labels.keys():
            self._labels[scan] = self._place_of(*scan)
        found = Counter(self._labels[scan] for scan in scans)
        return {place: found[place] for place in places}

    def _place_of(self, event_id: int, epc: str, time_us: int) -> str:
        if event_id >= 0:
            record = self._log.event(event_id)
            return "" if record is None else record.scan.location_id
        at = [r.scan.location_id for r in self._log.trail(epc) if r.scan.time_us == time_us]
        return at[0] if at else ""

    def _settle(self, lease: Lease) -> None:
        """A run that succeeded and brought no promotion, though the registry answers: refused."""
        monitor = self._store.monitor()
        episode = None if monitor is None else monitor.policy.episode
        if episode is None or episode.trained_us is None:
            return
        wait_us = int(self._pace.settle_s * SECOND)
        for asked in self._store.requests("success"):
            if asked.episode == episode.number and asked.finished_us is not None:
                if self._checked_us < asked.finished_us + wait_us:
                    return
                with self._store.change(lease) as step:
                    policy = step.monitor.policy
                    step.apply(policies.unpromoted(policy, episode.number, step.now_us))

    def _now_us(self) -> int:
        return int(self._clock() * SECOND)


def run(watch: Watch, stop: threading.Event, read_s: float, alive: Callable[[], None]) -> None:
    """Step until `stop` is set; a store that is away now is asked again.

    Args:
        watch: the evaluator.
        stop: set from elsewhere.
        read_s: seconds between two looks into the log.
        alive: called after every round.
    """
    said = ""
    while not stop.is_set():
        more = False
        try:
            more = watch.step()
            if said:
                _LOG.info("the drift state answers again")
            said = ""
        except StoreError as error:
            if str(error) != said:
                said = str(error)
                _LOG.error("%s", said)
        except Exception:  # the next round reads everything again
            _LOG.exception("a round failed")
        alive()
        if not more:
            stop.wait(read_s)
    try:
        watch.close()
    except StoreError as error:
        _LOG.warning("the lease could not be given back: %s", error)


def reading_of(evaluation: Evaluation, labels: dict[str, int], at_us: int, version: str) -> Reading:
    """What the policy needs of an evaluation; windows that are not judged yet are left out."""
    judged = {
        window.name: window.tier for window in evaluation.windows if window.status == "judged"
    }
    scores: dict[str, dict[str, float]] = {"retrain": {}, "warn": {}}
    for measure in evaluation.measures:
        tier = judged.get(measure.window)
        if tier is not None:
            known = scores[tier].get(measure.column, 0.0)
            scores[tier][measure.column] = max(known, measure.score)
    return Reading(
        at_us,
        version,
        scores["retrain"],
        scores["warn"],
        evaluation.calibration.status == "calibrated",
        not evaluation.warming_up,
        tuple(
            NewSite(p.location, p.n, p.boxes, p.days, labels.get(p.location, 0))
            for p in evaluation.locations
        ),
    )


def told_of(evaluation: Evaluation, labels: dict[str, int], every_s: float) -> dict[str, Any]:
    """What is told of an evaluation, as plain values for the state database."""
    calibration = evaluation.calibration
    return {
        "every_s": every_s,
        "clock_us": evaluation.clock_us,
        "calibration": {
            "status": calibration.status,
            "reason": calibration.reason,
            "unit": calibration.unit,
            "target_p_30d": calibration.target,
            "estimate_p_30d": calibration.estimate,
            "ci95": None if calibration.ci95 is None else list(calibration.ci95),
            "blocks": calibration.blocks,
        },
        "max_score": round(evaluation.max_score, 4),
        "features": {
            name: {
                "type": measure.kind,
                "score": round(measure.score, 4),
                "d": round(measure.d, 4),
                "threshold": round(measure.threshold, 4),
                "window": measure.window,
                "n": measure.n,
                "p_value_iid": measure.p_value_iid,
            }
            for name, measure in evaluation.features.items()
        },
        "windows": {
            w.name: {"tier": w.tier, "n": w.n, "status": w.status} for w in evaluation.windows
        },
        "measures": [
            [m.column, m.window, round(m.score, 4), round(m.threshold, 4)]
            for m in evaluation.measures
        ],
        "locations": {
            p.location: {
                "status": NewSite(
                    p.location, p.n, p.boxes, p.days, labels.get(p.location, 0)
                ).status(),
                "n": p.n,
                "labels": labels.get(p.location, 0),
                "boxes": p.boxes,
                "days": p.days,
            }
            for p in evaluation.locations
        },
        "late": evaluation.late,
        "ahead": evaluation.ahead,
        "repeated": evaluation.repeated,
    }


def _described(reference: Reference) -> dict[str, Any]:
    return {
        "id": reference.id,
        "n": reference.n,
        "clusters": reference.clusters,
        "days": reference.days,
    }
