"""How much of what leg times alone can tell is found: the Bayes limit, and the distance to it.

The limit is known for one kind of tampering only: goods that need 0.35 to 0.55 of the route's usual
time. There both densities are known, that of honest legs from very many of them and that of
tampered ones because the world draws it, so the best test is known, too (Neyman and Pearson, 1933).
It sees the time and the distance of a leg; a model sees more, such as the goods that travelled
along, and may do better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from pipelines.measures.ranking import recall_at_fpr
from pipelines.parts import pace_of
from trail.features import FEATURES
from trail.scan import Anomaly, Float32
from world.hurrying import SHARE
from world.tampering import NAMES

SUBTYPE: Final = "jump_route_share"
FPR: Final = 0.01
FROM_KM: Final = (20.0, 40.0, 60.0, 100.0, 200.0)
"""Classes of distance begin here."""
CELLS: Final = 20
LEAST: Final = 20
"""Tampered legs that a class must have."""


@dataclass(frozen=True, slots=True)
class Legs:
    """Arrivals at another site, honest or sooner than they can be.

    Attributes:
        km: float32 (n,), beeline.
        share: float32 (n,), recorded time over the usual time of the leg.
        tampered: bool (n,); the others are honest.
        score: float32 (n,) by model.
    """

    km: Float32
    share: Float32
    tampered: npt.NDArray[np.bool_]
    score: Mapping[str, Float32]

    @classmethod
    def of(
        cls,
        features: Float32,
        target: npt.NDArray[np.int8],
        subtype: npt.NDArray[np.int16],
        scores: Mapping[str, Float32],
    ) -> Legs:
        """The legs among n scans: features (n, F), targets (n, 5), subtypes (n,), scores (n, 5)."""
        value = {name: features[:, i] for i, name in enumerate(FEATURES)}
        jump = target[:, Anomaly.JUMP]
        tampered = (jump == 1) & (subtype == NAMES.index(SUBTYPE))
        leg = (value["km_log"] > 0) & (value["op_step"] > 0) & (value["expected_h_log"] > 0)
        kept = leg & (tampered | ((jump == 0) & (subtype < 0)))
        return cls(
            np.expm1(value["km_log"][kept]),
            pace_of(features[kept]),
            tampered[kept],
            {model: score[kept, Anomaly.JUMP] for model, score in scores.items()},
        )


@dataclass(frozen=True, slots=True)
class Row:
    """A class of distance.

    Attributes:
        km: least and greatest distance.
        honest: legs.
        tampered: legs.
        limit: recall of the best test at 1 % false positives.
        recall: of each model.
    """

    km: tuple[float, float]
    honest: int
    tampered: int
    limit: float
    recall: dict[str, float]


def rows(several: Sequence[Legs]) -> list[Row]:
    """Limit and recalls by class of distance; classes with too few tampered legs are left out."""
    km, share, tampered = (
        np.concatenate([getattr(legs, name) for legs in several])
        for name in ("km", "share", "tampered")
    )
    score = {m: np.concatenate([legs.score[m] for legs in several]) for m in several[0].score}
    found = []
    for least, most in zip(FROM_KM, (*FROM_KM[1:], np.inf), strict=True):
        there = (km >= least) & (km < most)
        bad, good = there & tampered, there & ~tampered
        if bad.sum() >= LEAST:
            recall = {m: recall_at_fpr(s[bad], s[good], FPR) for m, s in score.items()}
            n = int(good.sum()), int(bad.sum())
            found.append(Row((least, most), *n, limit(share[good]), recall))
    return found


def limit(honest: Float32) -> float:
    """Recall at 1 % false positives of the best test of a leg's share of the usual time.

    Tampered legs are uniform on `SHARE`, so the best test flags where honest legs are rarest.

    Args:
        honest: float32 (n,), shares of honest legs.
    """
    edges = np.linspace(*SHARE, CELLS + 1)
    rate = np.sort(np.histogram(honest, edges)[0] / max(len(honest), 1))
    before = np.cumsum(rate) - rate
    part = np.clip((FPR - before) / np.where(rate > 0, rate, 1.0), 0.0, 1.0)
    return float(np.mean(np.where(rate > 0, part, 1.0)))


def table(found: Sequence[Row], model: str) -> list[list[str]]:
    """The rows as text: class, legs, limit, recall, and the regret of `model`."""
    return [
        [
            f"{row.km[0]:.0f}-{row.km[1]:.0f}" if row.km[1] < np.inf else f"{row.km[0]:.0f}+",
            f"{row.honest:,}",
            f"{row.tampered:,}",
            f"{row.limit:.2f}",
            *(f"{value:.2f}" for value in row.recall.values()),
            f"{row.limit - row.recall[model]:+.2f}",
        ]
        for row in found
    ]
