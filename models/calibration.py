"""Calibration: log-odds to probabilities, one slope and intercept an anomaly (Platt 1999)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Int8 = npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class Calibration:
    """p = sigmoid(slope * log-odds + intercept).

    Attributes:
        slope: float64 (5,), positive, so that the order of scans is kept.
        intercept: float64 (5,).
    """

    slope: npt.NDArray[np.float64]
    intercept: npt.NDArray[np.float64]

    @classmethod
    def fit(cls, logits: Float32, target: Int8) -> Calibration:
        """Fit on a part that training has not seen; rows with target -1 are left out.

        An anomaly without positive rows keeps slope 1 and intercept 0.
        """
        slope, intercept = np.ones(logits.shape[1]), np.zeros(logits.shape[1])
        for k in range(logits.shape[1]):
            keep = target[:, k] >= 0
            truth = target[keep, k] == 1
            if truth.any() and not truth.all():
                slope[k], intercept[k] = _platt(logits[keep, k].astype(np.float64), truth)
        return cls(slope, intercept)

    def __call__(self, logits: Float32) -> Float32:
        """Probabilities, float32 of the same shape."""
        z = logits * self.slope + self.intercept
        return np.asarray(1 / (1 + np.exp(-np.clip(z, -60, 60))), dtype=np.float32)

    def to_json(self) -> dict[str, Any]:
        """As plain lists."""
        return {"slope": self.slope.tolist(), "intercept": self.intercept.tolist()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Calibration:
        """What `to_json` wrote."""
        return cls(np.array(value["slope"]), np.array(value["intercept"]))


def _platt(x: npt.NDArray[np.float64], truth: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Newton's method on Platt's smoothed targets; the slope is kept positive."""
    positives, negatives = int(truth.sum()), int((~truth).sum())
    wanted = np.where(truth, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    scale = max(float(np.std(x)), 1e-6)
    x = x / scale
    slope, intercept = 1.0, float(np.log((positives + 1) / (negatives + 1)))
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(slope * x + intercept, -60, 60)))
        weight = np.maximum(p * (1 - p), 1e-9)
        gradient = np.array([((p - wanted) * x).sum(), (p - wanted).sum()])
        hessian = np.array([[(weight * x * x).sum(), (weight * x).sum()], [0.0, weight.sum()]])
        hessian[1, 0] = hessian[0, 1]
        step = np.linalg.solve(hessian + 1e-6 * np.eye(2), gradient)
        step *= min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-12))
        slope, intercept = slope - float(step[0]), intercept - float(step[1])
        if np.abs(step).max() < 1e-8:
            break
    return max(slope, 1e-3) / scale, intercept
