"""The stack: the log-odds of network and boosting, weighed for each anomaly by a logistic model.

What the network sees in the order of a trail and what trees see in single features are not the same
mistakes. Weights are never negative: neither of the two may speak for the opposite of what it says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int8 = npt.NDArray[np.int8]

FILE: Final = "stack.json"
PARTS: Final = ("lstm", "gbm")
"""Models that are stacked, in the order of the weights."""
_PENALTY: Final = 0.05
"""Of a squared weight, in nats: it decides only where the data leave open which part is right."""


def served(folder: Path) -> str:
    """The model of a bundle or folder of weights that answers: `stack` where it has one."""
    return "stack" if (folder / FILE).is_file() else "lstm"


@dataclass(frozen=True, slots=True)
class Stack:
    """log-odds = intercept + weight . (log-odds of the parts), for each anomaly.

    Attributes:
        weight: float64 (5, 2), at least 0, of `PARTS`.
        intercept: float64 (5,).
    """

    weight: Float64
    intercept: Float64

    @classmethod
    def fit(
        cls, logits: Mapping[str, Float32], target: Int8, counts: Float32 | None = None
    ) -> Stack:
        """Fit on a part that training has not learned from; rows with target -1 are left out.

        An anomaly that is not in it, or in all of it, is left to the network.

        Args:
            logits: log-odds of each of `PARTS`, float32 (n, 5).
            target: int8 (n, 5).
            counts: how much each scan counts, float32 (n,); None is the same.
        """
        counts = np.ones(len(target), np.float32) if counts is None else counts
        kinds = target.shape[1]
        weight, intercept = np.tile([1.0, 0.0], (kinds, 1)), np.zeros(kinds)
        for k in range(kinds):
            keep = target[:, k] >= 0
            truth = target[keep, k] == 1
            if truth.any() and not truth.all():
                parts = np.stack([logits[name][keep, k] for name in PARTS], axis=1)
                weight[k], intercept[k] = _logistic(parts.astype(np.float64), truth, counts[keep])
        return cls(weight, intercept)

    def __call__(self, logits: Mapping[str, Float32]) -> Float32:
        """Log-odds of the stack, float32 (n, 5)."""
        total = np.zeros_like(logits[PARTS[0]], dtype=np.float64) + self.intercept
        for place, name in enumerate(PARTS):
            total += self.weight[:, place] * logits[name]
        return total.astype(np.float32)

    def save(self, folder: Path) -> None:
        """Write it beside its parts."""
        value = {"weight": self.weight.tolist(), "intercept": self.intercept.tolist()}
        (folder / FILE).write_text(json.dumps(value, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Stack:
        """What `save` wrote."""
        value: dict[str, Any] = json.loads((folder / FILE).read_text())
        return cls(np.array(value["weight"]), np.array(value["intercept"]))


def _logistic(
    parts: Float64, truth: npt.NDArray[np.bool_], counts: Float32
) -> tuple[Float64, float]:
    """Weights (2,) and intercept of the likeliest logistic model; a part that says the same of all
    scans has weight 0.
    """
    from scipy.optimize import minimize

    sign = np.where(truth, 1.0, -1.0)

    def loss(at: Float64) -> tuple[float, Float64]:
        margin = sign * (parts @ at[:2] + at[2])
        slope = -counts * sign / (1 + np.exp(np.clip(margin, -500, 500)))
        gradient = np.append(slope @ parts + 2 * _PENALTY * at[:2], slope.sum())
        unlikely = float(counts @ np.logaddexp(0, -margin))
        return unlikely + _PENALTY * float((at[:2] ** 2).sum()), gradient

    bounds = [(0.0, None if np.ptp(parts[:, place]) > 0 else 0.0) for place in range(2)]
    found = minimize(
        loss, np.array([0.5, 0.5, 0.0]), jac=True, method="L-BFGS-B", bounds=[*bounds, (None, None)]
    )
    return found.x[:2], float(found.x[2])
