"""Whether what a model says of its verdicts can be believed, on scans whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from models.bundle import Bundle
from models.explain import Explainer
from pipelines.promotion.holdout import Holdout, Seen
from trail.features import encode
from trail.rules import FLAG
from trail.scan import ANOMALIES, Bool, Float32, Int64


@dataclass(frozen=True, slots=True)
class Explained:
    """Explanations of rightly flagged scans.

    Attributes:
        errors: completeness error of each.
        cases: those of them where some scans of the trail belong to the cause, and some do not.
        hit: share of the cases with a scan of the cause among the topmost ones.
        corrected: (hit - chance) / (1 - chance), chance being the share that scans picked at random
            would reach; not a number without cases.
    """

    errors: tuple[float, ...]
    cases: int
    hit: float
    corrected: float

    @property
    def error_p95(self) -> float:
        """95th percentile of the completeness errors; not a number where nothing was explained."""
        return float(np.quantile(self.errors, 0.95)) if self.errors else math.nan


@dataclass(frozen=True, slots=True)
class _Case:
    """A trail up to a flagged scan: features (scans, F), which are of the cause, and the type."""

    features: Float32
    cause: Bool
    anomaly: int


def explained(
    bundle: Bundle,
    seen: Seen,
    holdout: Holdout,
    score: Float32,
    most: int,
    top: int,
    seed: int,
) -> Explained:
    """Explain scans that the network flags rightly, about as many of each type.

    Args:
        bundle: the model.
        seen: the hold-out as it sees it.
        holdout: the truth.
        score: float32 (n, 5), its scores, in trail order.
        most: scans that are explained.
        top: scans that an explanation points to.
        seed: of the sample.
    """
    errors, hits, chances = [], [], []
    explainer = Explainer(bundle.folder, bundle.digest)
    for case in _cases(bundle, seen, holdout, score, most, seed):
        found = explainer.attribute(case.features, case.anomaly)
        errors.append(found.error)
        cause = case.cause[-len(found.parts) :]
        chance = _chance(len(cause), int(cause.sum()), top)
        if 0 < chance < 1:
            best = np.argsort(-found.parts.sum(axis=1), kind="stable")[:top]
            hits.append(bool(cause[best].any()))
            chances.append(chance)
    hit, by_chance = (float(np.mean(x)) if x else math.nan for x in (hits, chances))
    return Explained(tuple(errors), len(hits), hit, (hit - by_chance) / (1 - by_chance))


def _chance(scans: int, of_cause: int, top: int) -> float:
    """Chance that some scan of the cause is among `top` of the scans drawn at random."""
    return 1 - math.comb(scans - of_cause, top) / math.comb(scans, top) if top <= scans else 1.0


def _cases(
    bundle: Bundle, seen: Seen, holdout: Holdout, score: Float32, most: int, seed: int
) -> Iterator[_Case]:
    """Trails up to scans that the network itself flags, and rightly; drawn at random."""
    each = max(most // len(ANOMALIES), 1)
    rng = np.random.default_rng(seed)
    right = ((score >= FLAG) & (holdout.target == 1)).T
    # Rules flag some of them alone, so more are drawn than are wanted.
    drawn = [rng.permutation(np.flatnonzero(of_type))[: 4 * each] for of_type in right]
    rows = np.concatenate(drawn)
    if not len(rows):
        return
    at = np.flatnonzero(np.isin(seen.scans.lot, np.unique(holdout.lot[rows])))
    encoded = encode(seen.scans.take(at), seen.context)
    place = at[encoded.trails.order]
    where = np.full(len(holdout), -1)
    where[place] = np.arange(len(place))
    cause = np.empty(len(holdout), bool)
    cause[holdout.place] = holdout.cause
    offsets: Int64 = encoded.offsets
    said = bundle.probabilities(encoded.features, offsets) >= bundle.threshold
    for k, of_type in enumerate(drawn):
        mine = where[holdout.place[of_type]]
        for row in mine[said[mine, k]][:each].tolist():
            start = int(offsets[np.searchsorted(offsets, row, side="right") - 1])
            yield _Case(encoded.features[start : row + 1], cause[place[start : row + 1]], k)
