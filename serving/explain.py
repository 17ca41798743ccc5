"""Why a scan is judged as it is: the rule, the sentence, what the model looked at, and what
would have been normal.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, tzinfo
from functools import lru_cache
from pathlib import Path
from threading import Event
from typing import Any, Final

import numpy as np

from models.explain import Attribution, Baseline, Explainer
from models.readable import readable
from serving.counterfactual import Case, Counterfactual, counterfactual
from serving.history import Recall
from serving.judge import Model
from trail.facts import BoundContext, Context, Facts, facts_of
from trail.features import CONTEXT_OF, FEATURES, matrix
from trail.registry import Registry
from trail.rules import FLAG, Findings, Reason, judge
from trail.rules import explain as explain_rule
from trail.scan import ANOMALIES, EVENT_TYPES, Float32, Int64, Scans
from trail.sites import Sites
from trail.trails import Trails, sort
from trail.verdict import Verdicts
from trail.words import sentence

MOST_PARTS: Final = 20
"""Features, and (scan, feature) pairs, that an explanation lists."""

_LOG: Final = logging.getLogger("trailwatch")


@dataclass(frozen=True, slots=True)
class FeaturePart:
    """What one feature is worth over all scans that the model looked at.

    Attributes:
        feature: its name in `FEATURES`.
        words: the same for a person.
        context: where it comes from: own trail, code, box and lot, network, rules.
        value: its value at the scan explained.
        typical: its mean over the training scans.
        log_odds: what it is worth; above 0 it speaks for the anomaly.
    """

    feature: str
    words: str
    context: str
    value: float
    typical: float
    log_odds: float


@dataclass(frozen=True, slots=True)
class ScanPart:
    """What one scan of the trail is worth.

    Attributes:
        place: scans before it in the trail.
        event_id: its id, -1 where it has none.
        location_id: its site.
        event_type: its operation.
        time_us: event time, microseconds since 1970 in UTC.
        log_odds: what its features are worth together.
        attention: share of the network's attention; None where it has none to give.
    """

    place: int
    event_id: int
    location_id: str
    event_type: str
    time_us: int
    log_odds: float
    attention: float | None


@dataclass(frozen=True, slots=True)
class CellPart:
    """What one feature of one scan is worth; see `FeaturePart` and `ScanPart`."""

    place: int
    feature: str
    words: str
    value: float
    log_odds: float


@dataclass(frozen=True, slots=True)
class Attributions:
    """What the model's log-odds come from; see `models.explain`.

    Attributes:
        baseline: "mean" or "zeros".
        log_odds: of the anomaly at this scan, before calibration.
        baseline_log_odds: of a trail of the same length whose features are the baseline.
        completeness_error: what the parts miss of their difference, as a share of it.
        steps: points of the path.
        features: the features that matter most, by size.
        scans: the scans that the model looked at, in trail order.
        cells: the features of single scans that matter most, by size.
        contexts: sums by context.
    """

    baseline: str
    log_odds: float
    baseline_log_odds: float
    completeness_error: float
    steps: int
    features: tuple[FeaturePart, ...]
    scans: tuple[ScanPart, ...]
    cells: tuple[CellPart, ...]
    contexts: dict[str, float]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why one scan has its score for one anomaly.

    Attributes:
        epc_code: the code.
        event_id: the scan's id, -1 where it has none.
        location_id: its site.
        event_type: its operation.
        time_us: event time, microseconds since 1970 in UTC.
        anomaly: wire name of the type explained.
        flagged: whether it is flagged for it.
        score: 0-100, flagged from 50 on.
        source: who judged: model, rules, or rules (cold).
        model: name of the model, "" for the rules alone.
        model_version: its version, likewise.
        digest: digest of its bundle, likewise.
        probability: of the anomaly by the calibrated model; None where the rules answered.
        threshold: probability from which the model flags it; likewise.
        sentence: why, for a person; it fits a scan that is not flagged, too.
        rule: what the rule of this anomaly looks for.
        rule_score: what it found, 0-100.
        rule_reason: the check behind that, "" where none spoke.
        attributions: what the model looked at; None where the rules answered.
        counterfactual: what would have been normal; None where it is not flagged, or nothing was
            found, or nobody asked.
    """

    epc_code: str
    event_id: int
    location_id: str
    event_type: str
    time_us: int
    anomaly: str
    flagged: bool
    score: float
    source: str
    model: str
    model_version: str
    digest: str
    probability: float | None
    threshold: float | None
    sentence: str
    rule: str
    rule_score: float
    rule_reason: str
    attributions: Attributions | None
    counterfactual: Counterfactual | None

    def to_json(self) -> dict[str, Any]:
        """As plain values, in snake_case; what is not known is None."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Seen:
    """A trail as it was judged; `row` is the scan explained."""

    trails: Trails
    known: Facts
    findings: Findings
    features: Float32
    verdicts: Verdicts
    row: int


def explain(
    model: Model | None,
    sites: Sites,
    recall: Recall,
    code: str,
    at: int,
    anomaly: str | None = None,
    baseline: Baseline = "mean",
    *,
    registry: Registry | None = None,
    with_counterfactual: bool = True,
    zone: tzinfo = UTC,
) -> Explanation:
    """Explain what is said of a remembered scan, with all that is known now.

    Args:
        model: who judges; None: the rules.
        sites: the site book that `recall` numbers sites by.
        recall: what the history remembers of the code; further codes do not matter.
        code: the code, as it came.
        at: place of the scan in `recall.scans`.
        anomaly: wire name; None takes the type with the highest score.
        baseline: what the attributions are measured against, see `models.explain`.
        registry: genuine products that the rules check against where there is no model.
        with_counterfactual: look for what would have been normal, too.
        zone: zone of times in sentences.

    Raises:
        ValueError: there is no such scan, anomaly or baseline.
        BundleError: the files of the model's bundle are not there any more.
    """
    if anomaly is not None and anomaly not in ANOMALIES:
        raise ValueError(f"{anomaly!r} is no anomaly; give one of {', '.join(ANOMALIES)}")
    if baseline not in ("mean", "zeros"):
        raise ValueError(f"{baseline!r} is no baseline; give mean or zeros")
    rows, place = _trail_of(recall, code, at)
    scans = recall.scans.take(rows)
    context = (
        model.context(sites)
        if model
        else Context(sites, None, registry if registry is not None else Registry.none()).bound()
    )
    seen = _seen(model, context, scans, recall, place)
    row, verdicts = seen.row, seen.verdicts
    column = int(verdicts.score[row].argmax()) if anomaly is None else ANOMALIES.index(anomaly)
    by_model = model is not None and not verdicts.cold[row]
    found = None
    if with_counterfactual:
        case = Case(model, context, scans, recall.table, place)
        found = counterfactual(case, column, seen.known.steps, row, zone)
    event_id = recall.event_id[rows[seen.trails.order]]
    trail = seen.trails.scans
    reason = Reason(int(seen.findings.reason[row, column]))
    return Explanation(
        epc_code=code,
        event_id=int(event_id[row]),
        location_id=sites.ids[int(trail.site[row])],
        event_type=EVENT_TYPES[int(trail.op[row])],
        time_us=int(trail.time_us[row]),
        anomaly=ANOMALIES[column],
        flagged=bool(verdicts.flag[row, column]),
        score=float(verdicts.score[row, column]),
        source=verdicts.source(row).value,
        model=model.name if model else "",
        model_version=model.version if model else "",
        digest=model.bundle.digest if model else "",
        probability=float(verdicts.model[row, column]) if by_model else None,
        threshold=float(model.bundle.threshold[column]) if model and by_model else None,
        sentence=sentence(column, row, seen.known, seen.findings, trail, sites),
        rule=explain_rule(column),
        rule_score=float(seen.findings.score[row, column]),
        rule_reason="" if reason == Reason.NONE else reason.name.lower(),
        attributions=(
            _attributions(model, seen, column, baseline, sites, event_id)
            if model and by_model
            else None
        ),
        counterfactual=found,
    )


def _trail_of(recall: Recall, code: str, at: int) -> tuple[Int64, int]:
    """Rows of the code's scans in the recall, and the place of row `at` among them."""
    scans = recall.scans
    if not 0 <= at < len(scans):
        raise ValueError(f"there is no scan {at}; {len(scans)} are remembered")
    found = scans.codes.text[int(scans.epc[at])].as_py()
    if found != code:
        raise ValueError(f"scan {at} is one of {found!r}, not of {code!r}")
    rows = np.flatnonzero(scans.epc == scans.epc[at])
    return rows, int(np.flatnonzero(rows == at)[0])


def _seen(
    model: Model | None, context: BoundContext, scans: Scans, recall: Recall, place: int
) -> _Seen:
    trails = sort(scans)
    ((_, known),) = facts_of(trails, context, recall.table)
    findings = judge(known)
    features = matrix(known, findings)
    row = int(np.flatnonzero(trails.order == place)[0])
    if model is not None:
        verdicts = model.bundle.judge(features, trails.offsets, findings)
    else:
        verdicts = _by_rules(findings)
    return _Seen(trails, known, findings, features, verdicts, row)


def _by_rules(findings: Findings) -> Verdicts:
    flag = findings.score >= FLAG
    n = len(flag)
    nothing = np.zeros(flag.shape, np.float32)
    return Verdicts(findings.score, flag, np.ones(flag.shape, bool), np.zeros(n, bool), nothing)


@lru_cache(maxsize=3)
def explainer(folder: Path, digest: str) -> Explainer:
    """The explainer of a bundle; champion, challenger and the previous champion stay loaded.

    Raises:
        BundleError: the folder does not hold this bundle any more.
    """
    return Explainer(folder, digest)


def stay_warm(champion: Callable[[], Model | None], stopping: Event, every_s: float = 2.0) -> None:
    """Load what explanations need, now and for each new champion, until `stopping` is set.

    It waits before it begins, so that the service can start first: torch takes seconds.
    """
    warm = ""
    while not stopping.wait(every_s):
        model = champion()
        if model is None or model.bundle.digest == warm:
            continue
        warm = model.bundle.digest  # also where it fails: a request will tell
        try:
            ready = explainer(model.bundle.folder, warm)
            ready.attribute(np.zeros((ready.length, len(FEATURES)), np.float32), 0)
        except Exception:  # whatever torch raises: explanations are not all there is
            _LOG.warning("explanations cannot be given", exc_info=True)
        else:
            _LOG.info("explanations are ready for bundle %s", warm[:12])


def _attributions(
    model: Model, seen: _Seen, column: int, baseline: Baseline, sites: Sites, event_id: Any
) -> Attributions:
    asked = explainer(model.bundle.folder, model.bundle.digest)
    first = max(0, seen.row + 1 - asked.length)
    window = seen.features[first : seen.row + 1]
    found = asked.attribute(window, column, baseline)
    by_feature = found.parts.sum(axis=0)
    by_scan = found.parts.sum(axis=1)
    looked_at = asked.attention(window)
    attention = [None] * len(window) if looked_at is None else looked_at.tolist()
    contexts: dict[str, float] = dict.fromkeys(CONTEXT_OF.values(), 0.0)
    for name, worth in zip(FEATURES, by_feature.tolist(), strict=True):
        contexts[CONTEXT_OF[name]] += worth
    scans = seen.trails.scans
    return Attributions(
        baseline=baseline,
        log_odds=found.log_odds,
        baseline_log_odds=found.baseline_log_odds,
        completeness_error=found.error,
        steps=found.steps,
        features=tuple(
            FeaturePart(
                feature=FEATURES[i],
                words=readable(FEATURES[i]),
                context=CONTEXT_OF[FEATURES[i]],
                value=float(window[-1, i]),
                typical=float(asked.typical[i]),
                log_odds=float(by_feature[i]),
            )
            for i in _largest(by_feature)
        ),
        scans=tuple(
            ScanPart(
                place=first + i,
                event_id=int(event_id[first + i]),
                location_id=sites.ids[int(scans.site[first + i])],
                event_type=EVENT_TYPES[int(scans.op[first + i])],
                time_us=int(scans.time_us[first + i]),
                log_odds=worth,
                attention=attention[i],
            )
            for i, worth in enumerate(by_scan.tolist())
        ),
        cells=tuple(_cells(found, window, first)),
        contexts=contexts,
    )


def _cells(found: Attribution, window: Float32, first: int) -> Iterable[CellPart]:
    for flat in _largest(found.parts.ravel()):
        scan, i = divmod(flat, len(FEATURES))
        yield CellPart(
            place=first + scan,
            feature=FEATURES[i],
            words=readable(FEATURES[i]),
            value=float(window[scan, i]),
            log_odds=float(found.parts[scan, i]),
        )


def _largest(worth: Float32) -> list[int]:
    """Places of the parts that matter most, by size; those worth nothing are left out."""
    order = np.argsort(-np.abs(worth), kind="stable")[:MOST_PARTS].tolist()
    return [i for i in order if worth[i] != 0]
