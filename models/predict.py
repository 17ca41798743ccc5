"""Scores of every model on a feature matrix."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from models.calibration import Calibration
from models.stack import Stack, served
from trail.scan import ANOMALIES

Float32 = npt.NDArray[np.float32]


class Encodes(Protocol):
    """What a model is asked about: features (n, F), trail offsets, and rule scores (n, 5)."""

    @property
    def features(self) -> Float32:
        """Features, float32 (n, F)."""

    @property
    def offsets(self) -> npt.NDArray[np.int64]:
        """Boundaries of the trails, int64 (t + 1,)."""

    @property
    def rules(self) -> Float32:
        """Rule scores 0-100, float32 (n, 5)."""


def lstm_logits(
    weights: Path,
    features: Float32,
    offsets: npt.NDArray[np.int64],
    progress: Callable[[int], object] | None = None,
) -> Float32:
    """Log-odds of the network, float32 (n, 5), by torch on the processor."""
    from models import lstm

    shape = lstm.Shape(**json.loads((weights / "lstm.json").read_text()))
    network = lstm.load(shape, weights / "lstm.safetensors")
    return lstm.logits(network, features, offsets, progress)


def standardised(weights: Path, features: Float32) -> Float32:
    """Features as the network sees them, float32 (n, F)."""
    from safetensors.numpy import load_file

    arrays = load_file(str(weights / "lstm.safetensors"))
    return np.asarray(np.clip((features - arrays["mean"]) / arrays["scale"], -8, 8))


def svm_logits(weights: Path, features: Float32) -> Float32:
    """Novelty of the one-class SVM, the same for all five anomalies, float32 (n, 5)."""
    from models import oneclass

    novelty = oneclass.novelty(weights / "svm.safetensors", standardised(weights, features))
    return np.repeat(novelty[:, None], len(ANOMALIES), axis=1)


def logits(weights: Path, asked: Encodes) -> dict[str, Float32]:
    """Uncalibrated scores of the learned models: `svm`, `gbm`, `lstm`, and `stack` where there is
    one, each float32 (n, 5).
    """
    novelty = {"svm": svm_logits(weights, asked.features)}
    return novelty | _answering(weights, asked.features, asked.offsets)


def served_logits(weights: Path, features: Float32, offsets: npt.NDArray[np.int64]) -> Float32:
    """Log-odds of the model that answers, float32 (n, 5)."""
    return _answering(weights, features, offsets)[served(weights)]


def _answering(
    weights: Path, features: Float32, offsets: npt.NDArray[np.int64]
) -> dict[str, Float32]:
    """Log-odds of boosting and network, and of their stack where there is one."""
    from models import gbm

    parts = {
        "gbm": gbm.logits(weights / "gbm", features),
        "lstm": lstm_logits(weights, features, offsets),
    }
    if served(weights) != "stack":
        return parts
    return parts | {"stack": Stack.load(weights)(parts)}


def scores(weights: Path, asked: Encodes) -> dict[str, Float32]:
    """Calibrated probabilities of the learned models and graded scores of the rules, in [0, 1]."""
    calibration = json.loads((weights / "calibration.json").read_text())
    found = {"rules": asked.rules / np.float32(100)}
    for name, value in logits(weights, asked).items():
        found[name] = Calibration.from_json(calibration[name])(value)
    return found
