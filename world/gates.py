"""The world's own gate: nothing about hour, weekday or second may give tampering away.

`python -m world.gates` measures it; the tests hold it.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trail.scan import SECOND_US, Bool, Float64, Scans
from world.estimate import hour_of_week
from world.observe import Noise
from world.simulate import Options, ground_of, honest_scans, observed
from world.tampering import NAMES, Draft, Truth, draft, tamper

LIMIT = 0.55
FOLDS = 5
HONEST_FOR_EACH = 12_000
LEAST_SCANS = 20
"""An operation with fewer scans of a subtype is left out of its mean."""


@dataclass(frozen=True)
class Measured:
    """How well nuisance columns tell one subtype.

    Attributes:
        auc: area under the ROC curve within operations, out of fold by lot; NaN if too few.
        scans: readings that were judged.
        error: its standard error (Hanley and McNeil 1982), for that many readings.
    """

    auc: float
    scans: int
    error: float


def measure(scans: Scans, truth: Truth, subtype: int, seed: int = 0) -> Measured:
    """Tell new and changed scans of a subtype from honest ones by hour, weekday and second.

    A box that is read at once counts once: its items are no independent evidence.
    """
    import lightgbm

    told = _one_a_reading(scans, (truth.subtype == subtype) & truth.synthetic & truth.cause)
    if len(told) < 2 * LEAST_SCANS:
        return Measured(float("nan"), len(told), float("nan"))
    rng = np.random.default_rng(seed)
    ops = np.unique(scans.op[told])
    honest = np.flatnonzero((truth.subtype < 0) & np.isin(scans.op, ops))
    honest = rng.choice(honest, min(HONEST_FOR_EACH, len(honest)), replace=False)
    index = np.concatenate([told, honest])
    y = np.arange(len(index)) < len(told)
    week = hour_of_week(scans.time_us[index])
    second = scans.time_us[index] // SECOND_US % 60
    X = np.stack([scans.op[index], week % 24, week // 24, second], axis=1).astype(np.float64)
    fold = scans.lot[index] % FOLDS
    score = np.zeros(len(index))
    for f in range(FOLDS):
        model = lightgbm.LGBMClassifier(
            n_estimators=40,
            num_leaves=15,
            learning_rate=0.08,
            min_child_samples=40,
            n_jobs=1,
            verbose=-1,
            deterministic=True,
            random_state=seed,
        )
        model.fit(X[fold != f], y[fold != f])
        score[fold == f] = np.asarray(model.predict_proba(X[fold == f]))[:, 1]
    return _within_operations(score, y, scans.op[index], fold)


def measure_all(
    lots: int, share: float, subtypes: Collection[str], scope: str = "mix", seed: int = 7
) -> dict[str, Measured]:
    """The gate on a hard world of so many lots, after tampering with `share` of each type."""
    ground = ground_of(Options(seed=seed).checked())
    sites = ground.network.sites
    untouched: Draft = draft(honest_scans(ground, lots), sites, share=0.0, seed=seed)
    seen, _ = observed(ground, untouched)
    noise = Noise.of(ground.profile)
    found = {}
    for name in subtypes:
        made = tamper(
            seen, sites, share=share, seed=seed, subtypes=(name,), scope=scope, noise=noise
        )
        found[name] = measure(made.scans, made.truth, NAMES.index(name))
    return found


def _one_a_reading(scans: Scans, mask: Bool) -> npt.NDArray[np.intp]:
    at = np.flatnonzero(mask)
    key = np.stack([scans.time_us[at], scans.site[at], scans.op[at]])
    return at[np.unique(key, axis=1, return_index=True)[1]]


def _within_operations(
    score: Float64, y: Bool, op: npt.NDArray[np.int8], fold: npt.NDArray[np.int64]
) -> Measured:
    """Mean AUC over operations and folds, weighted by the subtype's readings."""
    areas, weights, variance = [], [], 0.0
    for o in np.unique(op):
        for f in range(FOLDS):
            here = (op == o) & (fold == f)
            good, bad = int(y[here].sum()), int((~y[here]).sum())
            if good >= LEAST_SCANS / FOLDS and bad:
                area = _auc(score[here], y[here])
                areas.append(area)
                weights.append(good)
                variance += good**2 * _variance(area, good, bad)
    if not areas:
        return Measured(float("nan"), int(y.sum()), float("nan"))
    total = sum(weights)
    return Measured(
        float(np.average(areas, weights=weights)), int(y.sum()), float(np.sqrt(variance) / total)
    )


def _auc(score: Float64, y: Bool) -> float:
    from scipy.stats import rankdata

    rank = rankdata(score)
    good = int(y.sum())
    bad = len(y) - good
    return float((rank[y].sum() - good * (good + 1) / 2) / (good * bad))


def _variance(area: float, good: int, bad: int) -> float:
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    spread = area * (1 - area) + (good - 1) * (q1 - area**2) + (bad - 1) * (q2 - area**2)
    return max(spread, 0.0) / (good * bad)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the gate of every subtype; 1 when one is over the limit by more than its error."""
    parser = argparse.ArgumentParser(prog="python -m world.gates", description=__doc__)
    parser.add_argument("--lots", type=int, default=200, help="lots of the world (default 200)")
    parser.add_argument("--share", type=float, default=0.02, help="of EPCs (default 0.02)")
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args(arguments)
    over = 0
    print(f"{'subtype':<28} {'readings':>8} {'AUC':>6} {'+-':>6}")
    for name in NAMES:
        one = measure_all(given.lots, given.share, (name,), seed=given.seed)[name]
        print(f"{name:<28} {one.scans:>8} {one.auc:>6.3f} {one.error:>6.3f}", flush=True)
        over += one.auc - 2 * one.error > LIMIT
    return int(over > 0)


if __name__ == "__main__":
    raise SystemExit(main())
