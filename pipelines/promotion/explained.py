"""Whether what a model says of its verdicts can be believed, on scans whose truth is known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from models.bundle import Bundle
from models.explain import Explainer
from pipelines.measures.explanations import Case, Hits, by_scan, error_p95, hits
from pipelines.promotion.holdout import Holdout, Seen
from trail.features import encode
from trail.rules import FLAG
from trail.scan import ANOMALIES, Float32, Int64


@dataclass(frozen=True, slots=True)
class Explained:
    """Explanations of rightly flagged scans.

    Attributes:
        errors: completeness error of each.
        located: how often a scan of the cause is among the topmost ones.
    """

    errors: tuple[float, ...]
    located: Hits

    @property
    def error_p95(self) -> float:
        """95th percentile of the completeness errors; not a number where nothing was explained."""
        return error_p95(self.errors)


def explained(
    bundle: Bundle,
    seen: Seen,
    holdout: Holdout,
    score: Float32,
    most: int,
    top: int,
    seed: int,
) -> Explained:
    """Explain scans that the model flags rightly, about as many of each type.

    Args:
        bundle: the model.
        seen: the hold-out as it sees it.
        holdout: the truth.
        score: float32 (n, 5), its scores, in trail order.
        most: scans that are explained.
        top: scans that an explanation points to.
        seed: of the sample.
    """
    explainer = Explainer(bundle.folder, bundle.digest)
    found = [
        (case, explainer.attribute(case.features, case.anomaly))
        for case in _cases(bundle, seen, holdout, score, most, seed)
    ]
    return Explained(
        errors=tuple(one.error for _, one in found),
        located=hits((by_scan(case, one) for case, one in found), top),
    )


def _cases(
    bundle: Bundle, seen: Seen, holdout: Holdout, score: Float32, most: int, seed: int
) -> Iterator[Case]:
    """Trails up to scans that the model itself flags, and rightly; drawn at random."""
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
            yield Case(encoded.features[start : row + 1], cause[place[start : row + 1]], k)
