"""The gates: each a figure, a bound and a verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

import numpy as np

from models.bundle import BundleError
from pipelines.measures import blocks
from pipelines.measures.bootstrap import Interval
from pipelines.progress import say
from pipelines.promotion import latency
from pipelines.promotion.candidates import Candidate, judged_by_its_package
from pipelines.promotion.explained import Explained, explained
from pipelines.promotion.holdout import Holdout, Seen, judged, seen_by
from pipelines.promotion.paired import CHALLENGER, CHAMPION, Figures, Gains, figures, gains
from pipelines.promotion.settings import Settings
from trail.scan import ANOMALIES, Float32

LEAST_CASES: Final = 10
"""Explanations with a known cause from which hit@k is judged."""


class Verdict(StrEnum):
    """What a gate says."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_JUDGED = "not judged"


@dataclass(frozen=True, slots=True)
class Gate:
    """One condition of a promotion.

    Attributes:
        name: short name; of one type it is `<what>.<type>`.
        what: what the figure is, in words.
        figure: what was measured, None where nothing could be.
        bound: what it is held against.
        at_least: the figure must reach the bound; else it must not exceed it.
        verdict: passed, failed or not judged.
        note: why it was not judged, or what else there is to know.
        interval: low, middle and high of the difference that the figure is the bound of.
    """

    name: str
    what: str
    figure: float | None
    bound: float | None
    at_least: bool
    verdict: Verdict
    note: str = ""
    interval: tuple[float, float, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain values with six significant digits."""
        plain = asdict(self)
        plain["verdict"] = str(self.verdict)
        return {name: _short(value) for name, value in plain.items()}


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was found on the hold-out.

    Attributes:
        gates: every gate.
        challenger: its figures, by wire name and as a whole.
        champion: likewise; None where it cannot be judged.
        gains: paired differences with their intervals, by measure and type.
    """

    gates: tuple[Gate, ...]
    challenger: dict[str, Any] | None = None
    champion: dict[str, Any] | None = None
    gains: dict[str, Any] | None = None

    @property
    def failed(self) -> list[str]:
        """Names of the gates that refuse."""
        return [gate.name for gate in self.gates if gate.verdict is Verdict.FAILED]


def judge(
    model: str,
    challenger: Candidate,
    champion: Candidate | None,
    holdout: Holdout,
    settings: Settings,
) -> Judgement:
    """Judge a challenger, against the champion where there is one.

    A champion that this program cannot use any more is asked through the code that it was
    registered with; one that cannot be asked at all compares with nothing, and a challenger then
    has to pass the other gates only.
    """
    loads = _loads(challenger)
    if challenger.bundle is None:
        return Judgement((loads,))
    seen = seen_by(challenger.bundle, holdout.path)
    say(f"promote: version {challenger.version.number} judges {len(holdout):,} scans")
    scores = {CHALLENGER: judged(challenger.bundle, seen, holdout)}
    problem = "there is no champion"
    if champion is not None:
        say(f"promote: version {champion.version.number}, the champion, judges them too")
        try:
            scores[CHAMPION] = _judged_by(model, champion, seen, challenger, holdout)
        except BundleError as error:
            problem = f"the champion cannot be asked: {error}"
    block = blocks.injected(holdout, scores, None)
    found = figures(block, settings)
    mine, other = found[CHALLENGER], found.get(CHAMPION)
    differences = gains(mine, other) if other is not None else None
    made = [
        loads,
        _lots(block, settings),
        *_comparisons("", differences, settings, problem),
        *_of_verdicts(holdout, scores, settings, problem),
        *_floors(mine, settings),
        *_alarms(mine, settings),
        _latency(challenger, champion, settings),
        *_explanations(challenger, seen, holdout, scores[CHALLENGER], settings),
    ]
    return Judgement(
        tuple(made),
        _figures(mine),
        None if other is None else _figures(other),
        None if differences is None else _differences(differences),
    )


def _judged_by(
    model: str, champion: Candidate, seen: Seen, challenger: Candidate, holdout: Holdout
) -> Float32:
    if champion.bundle is None:
        say(f"promote: {champion.problem}; its own package judges")
        return judged_by_its_package(model, champion.version, holdout, ANOMALIES)
    own = seen if _same_context(champion, challenger) else seen_by(champion.bundle, holdout.path)
    return judged(champion.bundle, own, holdout)


def _same_context(one: Candidate, other: Candidate) -> bool:
    """Whether both encode alike: the same network statistics, sites and registry."""
    assert one.folder is not None and other.folder is not None
    for name in ("network.json", "sites.csv", "registry.csv"):
        a, b = one.folder / name, other.folder / name
        if a.exists() != b.exists() or (a.exists() and a.read_bytes() != b.read_bytes()):
            return False
    return True


def _loads(challenger: Candidate) -> Gate:
    usable = challenger.bundle is not None
    return Gate(
        name="loads",
        what="the bundle's digest is the registered one, and it loads without unpickling",
        figure=float(usable),
        bound=1.0,
        at_least=True,
        verdict=Verdict.PASSED if usable else Verdict.FAILED,
        note=challenger.problem,
    )


def _lots(block: blocks.Block, settings: Settings) -> Gate:
    lots = len(np.unique(block.lot))
    return _gate("lots", "lots of the hold-out", lots, settings.least_lots, at_least=True)


def _comparisons(
    suffix: str, found: Gains | None, settings: Settings, problem: str
) -> Iterator[Gate]:
    where = " on analysts' verdicts" if suffix else ""
    for name, words, margin in (
        ("map", "mean average precision", settings.map_margin),
        ("f_beta", "cost-weighted F-beta", settings.f_beta_margin),
    ):
        what = f"gain of {words}{where}, lower 95 % bound by lot"
        if found is None:
            yield _unjudged(f"{name}{suffix}", what, -margin, True, problem)
            continue
        gain: Interval = (found.ap if name == "map" else found.f_beta)["all"]
        one = _gate(f"{name}{suffix}", what, gain.low, -margin, at_least=True)
        yield Gate(
            **{
                **{field: getattr(one, field) for field in Gate.__dataclass_fields__},
                "interval": (gain.low, gain.mid, gain.high),
                "note": one.note or f"gain {gain.mid:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]",
            }
        )


def _of_verdicts(
    holdout: Holdout, scores: dict[str, Float32], settings: Settings, problem: str
) -> Iterator[Gate]:
    """The same on the trails that analysts judged, where there are enough of them."""
    block = blocks.verdicts(holdout, scores)
    confirmed = int((block.target == 1).sum())
    found = None
    if confirmed < settings.least_verdicts:
        problem = f"{confirmed} confirmed scans, {settings.least_verdicts} are needed"
    elif CHAMPION in scores:
        both = figures(block, settings)
        found = gains(both[CHALLENGER], both[CHAMPION])
    yield from _comparisons(".verdicts", found, settings, problem)


def _floors(mine: Figures, settings: Settings) -> Iterator[Gate]:
    for kind in ANOMALIES:
        name, what = f"floor.{kind}", f"average precision, {kind}"
        if math.isnan(mine.ap[kind]):
            note = "no scan of the hold-out has this anomaly"
            yield _unjudged(name, what, settings.floors[kind], True, note)
        else:
            yield _gate(name, what, mine.ap[kind], settings.floors[kind], at_least=True)


def _alarms(mine: Figures, settings: Settings) -> Iterator[Gate]:
    for kind in ANOMALIES:
        what = f"false positive rate, {kind}, upper 95 % bound by lot"
        one = mine.fpr_upper[kind]
        yield _gate(f"fpr.{kind}", what, one, settings.fpr_bound, at_least=False)


def _latency(challenger: Candidate, champion: Candidate | None, settings: Settings) -> Gate:
    what = f"forward pass of {latency.SEQUENCES} sequences, challenger / champion"
    if champion is None or champion.folder is None or challenger.folder is None:
        note = "there is no champion's model to compare with"
        return _unjudged("latency", what, settings.latency_ratio, False, note)
    found, mine_ms, other_ms = latency.ratio(challenger.folder, champion.folder)
    note = f"{mine_ms:.2f} ms / {other_ms:.2f} ms"
    return _gate("latency", what, found, settings.latency_ratio, at_least=False, note=note)


def _explanations(
    challenger: Candidate, seen: Seen, holdout: Holdout, score: Float32, settings: Settings
) -> Iterator[Gate]:
    assert challenger.bundle is not None
    top = settings.evidence_top
    found: Explained = explained(
        challenger.bundle, seen, holdout, score, settings.explained, top, settings.seed
    )
    what = "completeness error of explanations, P95"
    if not found.errors:
        note = "the model flags no scan rightly: there is nothing to explain"
        yield _unjudged("completeness", what, settings.completeness, False, note)
    else:
        note = f"{len(found.errors)} scans"
        yield _gate(
            "completeness", what, found.error_p95, settings.completeness, at_least=False, note=note
        )
    what = f"explanations point to the cause: hit@{top}, corrected for chance"
    located = found.located
    if located.cases < LEAST_CASES:
        note = f"{located.cases} trails with a known cause, {LEAST_CASES} are needed"
        yield _unjudged("evidence", what, settings.evidence_floor, True, note)
    else:
        note = f"hit@{top} {located.hit:.3f} of {located.cases} trails"
        yield _gate(
            "evidence", what, located.corrected, settings.evidence_floor, at_least=True, note=note
        )


def _gate(
    name: str, what: str, figure: float, bound: float, *, at_least: bool, note: str = ""
) -> Gate:
    """A gate with a figure; what is not a number passes nothing."""
    passed = figure >= bound if at_least else figure <= bound
    known = not math.isnan(figure)
    return Gate(
        name=name,
        what=what,
        figure=figure if known else None,
        bound=bound,
        at_least=at_least,
        verdict=Verdict.PASSED if passed else Verdict.FAILED,
        note=note if known else "there is nothing in the hold-out to measure it on",
    )


def _unjudged(name: str, what: str, bound: float, at_least: bool, note: str) -> Gate:
    return Gate(name, what, None, bound, at_least, Verdict.NOT_JUDGED, note)


def _figures(of: Figures) -> dict[str, Any]:
    return {
        "map": _short(of.map),
        "ap": {kind: _short(value) for kind, value in of.ap.items()},
        "f_beta": {kind: _short(value) for kind, value in of.f_beta.items()},
        "fpr": {kind: _short(value) for kind, value in of.fpr.items()},
        "fpr_upper95": {kind: _short(value) for kind, value in of.fpr_upper.items()},
    }


def _differences(of: Gains) -> dict[str, Any]:
    return {
        measure: {
            kind: {edge: _short(getattr(one, edge)) for edge in ("low", "mid", "high")}
            for kind, one in by_type.items()
        }
        for measure, by_type in (("ap", of.ap), ("f_beta", of.f_beta))
    }


def _short(value: Any) -> Any:
    """Six significant digits; what is not a number is None."""
    if isinstance(value, tuple | list):
        return [_short(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
