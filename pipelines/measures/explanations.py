"""What an explanation is worth: four figures that stand beside each other, never averaged.

- hit@k: one of the features that it puts first belongs to the cause (`causes`);
- localisation: so does the scan that it puts first;
- deletion: the probability falls as the features put first are removed, more than with random ones;
- completeness: the parts add up to what they explain.

Features are ranked by what they are worth over all scans of the trail together, as the service
shows them: a cause is named once, whichever of its scans it shows at. What speaks against the
anomaly comes last. A scan is worth what its features are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

from models.calibration import Calibration
from models.explain import Attribution, Baseline
from pipelines.measures.blocks import ANALYST, Answers, Part, scored_target
from pipelines.measures.causes import named
from pipelines.measures.curves import Row
from pipelines.measures.lots import Float32, Float64, Int64
from pipelines.measures.ranking import Bool
from trail.scan import ANOMALIES

Tree = dict[str, Any]

BASELINES: Final[tuple[Baseline, ...]] = ("mean", "zeros")
TOP: Final = 3
"""Features that an explanation puts first."""
HIT: Final = f"hit_at_{TOP}"
REMOVED: Final = (0, 1, 2, 3, 5, 8, 12)
"""How many features are removed along the curve of deletion."""
DRAWS: Final = 16
"""Orders in which random features are removed, a case."""

GOOD_HIT: Final = 0.8
"""Hits beyond chance that an explanation should reach."""
GOOD_LOCALISATION: Final = 0.8
GOOD_P: Final = 0.01
"""p from which on removing what comes first is better than removing at random."""
GOOD_COMPLETENESS: Final = 0.05


class Features(Part, Protocol):
    """A part with its features, float32 (n, F), and the boundaries of its trails."""

    @property
    def features(self) -> Float32:
        """float32 (n, F), columns as in `trail.features.FEATURES`."""

    @property
    def offsets(self) -> Int64:
        """int64 (t + 1,), boundaries of the trails."""


class Explains(Protocol):
    """What is asked of an explainer; see `models.explain.Explainer`."""

    @property
    def length(self) -> int:
        """Scans that a verdict looks back on."""

    @property
    def typical(self) -> Float32:
        """Mean of the training scans, float32 (F,)."""

    def attribute(
        self, features: Float32, anomaly: int, baseline: Baseline = "mean"
    ) -> Attribution:
        """What the verdict on the last of some scans comes from."""

    def log_odds(self, features: Float32) -> Float32:
        """Log-odds (batch, 5) at the last scan of trails (batch, scans, F)."""


@dataclass(frozen=True, slots=True)
class Case:
    """A trail up to a scan that is flagged rightly.

    Attributes:
        features: float32 (scans, F).
        cause: bool (scans,), the scan belongs to the cause.
        anomaly: column 0-4.
    """

    features: Float32
    cause: Bool
    anomaly: int


@dataclass(frozen=True, slots=True)
class Hits:
    """How often something of the cause is among what an explanation puts first.

    Attributes:
        cases: explanations of which something belongs to the cause, and something does not.
        hit: share of them that hit it; not a number without cases.
        chance: share that picks at random would reach.
    """

    cases: int
    hit: float
    chance: float

    @property
    def corrected(self) -> float:
        """Hits beyond chance, as a share of what is possible: 0 at random, 1 always."""
        return (self.hit - self.chance) / (1 - self.chance)


def hits(ranked: Iterable[tuple[Float32, Bool]], top: int) -> Hits:
    """Hits of explanations, each given as worths (m,) and what belongs to the cause, bool (m,)."""
    found, chances = [], []
    for worth, cause in ranked:
        chance = _chance(len(cause), int(cause.sum()), top)
        if 0 < chance < 1:
            found.append(bool(cause[_best(worth)[:top]].any()))
            chances.append(chance)
    hit, by_chance = (float(np.mean(x)) if x else math.nan for x in (found, chances))
    return Hits(len(found), hit, by_chance)


def _best(worth: Float32) -> Int64:
    return np.argsort(-worth, kind="stable")


def _chance(size: int, of_cause: int, top: int) -> float:
    """Chance that something of the cause is among `top` drawn at random."""
    return 1 - math.comb(size - of_cause, top) / math.comb(size, top) if top <= size else 1.0


def by_scan(case: Case, found: Attribution) -> tuple[Float32, Bool]:
    """What each scan that was looked at is worth, and which of them belong to the cause."""
    return found.parts.sum(axis=1), case.cause[-len(found.parts) :]


def error_p95(errors: Sequence[float]) -> float:
    """95th percentile of completeness errors; not a number where nothing was explained."""
    return float(np.quantile(errors, 0.95)) if errors else math.nan


def wanted(section: Mapping[str, Any]) -> int:
    """`explained` of the section `evaluate` of params.yaml: cases of each type.

    Raises:
        KeyError: the entry is missing.
        ValueError: it is no positive number.
    """
    each = int(section["explained"])
    if each < 1:
        raise ValueError(f"evaluate.explained is {each}; write 1 or more")
    return each


@dataclass(frozen=True, slots=True)
class Drawn:
    """Cases of one type, and which features belong to the cause of each, bool (F,)."""

    cases: list[Case]
    named: list[Bool]


def draw(
    part: Features,
    flagged: Bool,
    answers: Answers | None,
    subtypes: Sequence[str],
    each: int,
    seed: int,
) -> list[Drawn]:
    """Rightly flagged scans of injected tampering, up to `each` of every type.

    Boxes are tampered with as a whole, and a counterfeit is one at each of its scans. So first one
    scan is drawn of each kind of tampering in each lot, then a second one: cases are as different
    from each other as can be.

    Args:
        part: n scans.
        flagged: bool (n, 5), by the model.
        answers: what the world itself hides; its trails are left out, as are those of analysts.
        subtypes: names of the kinds of tampering, by the index that `part.subtype` holds.
        each: most cases of a type.
        seed: of the draw.
    """
    target, others = scored_target(part), part.label_source == ANALYST
    if answers is not None:
        theirs = answers.event_id[answers.anomaly >= 0]
        others = others | (np.isin(part.event_id, theirs) & (part.event_id >= 0))
    ours = (part.subtype >= 0) & ~np.isin(part.trail, part.trail[others])
    found = []
    for k in range(len(ANOMALIES)):
        rng = np.random.default_rng([seed, k])
        right = rng.permutation(np.flatnonzero(ours & flagged[:, k] & (target[:, k] == 1)))
        key = part.lot[right] * len(subtypes) + part.subtype[right]
        # Shuffled once more, or a large box would come before a single item.
        rows = right[np.lexsort((rng.random(len(key)), _nth_of(key)))][:each]
        start = part.offsets[np.searchsorted(part.offsets, rows, side="right") - 1]
        spans = [slice(a, b + 1) for a, b in zip(start.tolist(), rows.tolist(), strict=True)]
        found.append(
            Drawn(
                [Case(part.features[s], part.cause[s], k) for s in spans],
                [named(subtypes[i]) for i in part.subtype[rows].tolist()],
            )
        )
    return found


def _nth_of(key: Int64) -> Int64:
    """How many equal keys stand before each, int64 (n,)."""
    order = np.argsort(key, kind="stable")
    new = np.diff(key[order], prepend=key[order][:1] - 1) != 0
    at = np.arange(len(key))
    nth = np.empty(len(key), np.int64)
    nth[order] = at - np.maximum.accumulate(np.where(new, at, 0))
    return nth


@dataclass(frozen=True, slots=True)
class Measured:
    """The figures, and the curves of deletion behind them.

    Attributes:
        tree: baseline, then type, then figure.
        curves: rows with baseline, type, number removed, and the median probability left when
            the features put first (`first`) or random ones (`random`) are removed.
    """

    tree: Tree
    curves: list[Row]


def measure(
    explainer: Explains,
    calibration: Calibration,
    drawn: Sequence[Drawn],
    seed: int,
    progress: Callable[[int], object],
) -> Measured:
    """The four figures of each type, for either baseline.

    Args:
        explainer: what explains.
        calibration: its log-odds as probabilities.
        drawn: cases by type.
        seed: of the random features.
        progress: called with the number of explanations made since the last call.
    """
    tree, curves = Tree(), list[Row]()
    for baseline in BASELINES:
        tree[baseline] = {}
        for k, kind in enumerate(ANOMALIES):
            made = []
            for case in drawn[k].cases:
                made.append(explainer.attribute(case.features, k, baseline))
                progress(1)
            pairs = list(zip(drawn[k].cases, made, strict=True))
            # The same random features for either baseline.
            rng = np.random.default_rng([seed, k])
            left = [deletion(explainer, calibration, case, one, rng) for case, one in pairs]
            by_feature = [one.parts.sum(axis=0) for one in made]
            tree[baseline][kind] = {
                "cases": len(made),
                **_hit(HIT, hits(zip(by_feature, drawn[k].named, strict=True), TOP)),
                **_hit("localisation", hits((by_scan(*pair) for pair in pairs), 1)),
                **_drops(left),
                "completeness_p95": error_p95([one.error for one in made]),
            }
            for removed, (first, other) in zip(REMOVED, _medians(left), strict=True):
                curves.append(
                    {
                        "baseline": baseline,
                        "type": kind,
                        "removed": removed,
                        "first": float(first),
                        "random": float(other),
                    }
                )
    return Measured(tree, curves)


def short_of(figures: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """What falls short of what explanations should reach, in words, from the figures by type."""
    found = []
    for kind, one in figures.items():
        asked = (
            (f"hit@{TOP} corrected", one[f"{HIT}_corrected"], GOOD_HIT, 1),
            ("localisation", one["localisation"], GOOD_LOCALISATION, 1),
            ("p of deletion", one["deletion_p"], GOOD_P, -1),
            ("completeness error", one["completeness_p95"], GOOD_COMPLETENESS, -1),
        )
        found += [
            f"{kind}, {words} {value:.3g}"
            for words, value, good, sign in asked
            if value is not None and sign * value <= sign * good
        ]
    return found


def _hit(name: str, found: Hits) -> Tree:
    return {
        name: found.hit,
        f"{name}_chance": found.chance,
        f"{name}_corrected": found.corrected,
        f"{name}_cases": found.cases,
    }


def deletion(
    explainer: Explains,
    calibration: Calibration,
    case: Case,
    found: Attribution,
    rng: np.random.Generator,
) -> Float64:
    """Probability left when features are removed, float64 (len(REMOVED), 2).

    Column 0: those that the explanation puts first; 1: random ones, the mean of `DRAWS` orders. A
    feature is removed from all scans by its mean over the training scans, whatever the baseline of
    the explanation was: a value that says nothing, where 0 may well say something.
    """
    window = case.features[-explainer.length :]
    width = window.shape[1]
    first = _best(found.parts.sum(axis=0))
    orders = [first, *(rng.permutation(width) for _ in range(DRAWS))]
    gone = np.stack([np.argsort(order) < n for order in orders for n in REMOVED])
    batch = np.where(gone[:, None, :], explainer.typical, window).astype(np.float32)
    left = calibration(explainer.log_odds(batch))[:, case.anomaly].astype(np.float64)
    left = left.reshape(len(orders), len(REMOVED))
    return np.stack([left[0], left[1:].mean(axis=0)], axis=1)


def _drops(left: Sequence[Float64]) -> Tree:
    """Median drop of the probability without `TOP` features, and whether random ones do as well."""
    drops = np.array([one[0] - one[REMOVED.index(TOP)] for one in left]).reshape(-1, 2)
    first, other = np.median(drops, axis=0) if len(drops) else (math.nan, math.nan)
    return {
        "deletion": float(first),
        "deletion_random": float(other),
        "deletion_p": paired_p(drops[:, 0] - drops[:, 1]),
    }


def paired_p(difference: Float64) -> float:
    """One-sided p of Wilcoxon's signed-rank test that differences of pairs are above 0.

    Not a number without pairs; 1 where no pair differs.
    """
    from scipy.stats import wilcoxon

    if not len(difference):
        return math.nan
    if not difference.any():
        return 1.0
    return float(wilcoxon(difference, alternative="greater").pvalue)


def _medians(left: Sequence[Float64]) -> Float64:
    """Medians over the cases, float64 (len(REMOVED), 2)."""
    if not left:
        return np.full((len(REMOVED), 2), math.nan)
    return np.asarray(np.median(np.stack(left), axis=0))
