"""Why the model says so: what each feature of the scans that it looked at is worth.

Each (scan, feature) gets the part of the log-odds that it is worth, against a baseline trail of
the same length. The network's share comes from integrated gradients, that of boosting, which sees
the last scan only, from Shapley values (`models.trees`); the stack weighs both as it weighs their
log-odds. The parts add up to the difference of the log-odds, but for the completeness error of the
gradients, which is reported and kept small by taking more steps.

Source: Sundararajan et al., Axiomatic attribution for deep networks (2017); Captum.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from models import bundle
from models.stack import Stack, served
from models.trees import ABSENT, Boxes, boosters
from trail.scan import ANOMALIES

Float32 = npt.NDArray[np.float32]
Baseline = Literal["mean", "zeros"]

FIRST_STEPS: Final = 64
MOST_STEPS: Final = 1024
SMALL_ERROR: Final = 0.02
"""Completeness error at which no more steps are taken."""
LEAST_DIFFERENCE: Final = 1e-3
"""Differences of log-odds below this count as this much: nothing is to be explained there."""


@dataclass(frozen=True, slots=True)
class Attribution:
    """What a verdict of the model comes from.

    Attributes:
        parts: float32 (scans, F), what each feature of each scan is worth, in log-odds.
        log_odds: of the anomaly, uncalibrated, at the last scan.
        baseline_log_odds: of a trail of the same length whose features are the baseline.
        steps: points of the path at which gradients were taken.
    """

    parts: Float32
    log_odds: float
    baseline_log_odds: float
    steps: int

    @property
    def error(self) -> float:
        """Completeness error: what the parts miss of the difference, as a share of it."""
        difference = self.log_odds - self.baseline_log_odds
        missed = abs(float(self.parts.sum(dtype=np.float64)) - difference)
        return missed / max(abs(difference), LEAST_DIFFERENCE)


class Explainer:
    """Explains what the model of one bundle, or of a folder of weights, says.

    Torch and LightGBM run on one thread.
    """

    def __init__(self, folder: Path, digest: str) -> None:
        """Load the model; imports torch and Captum, which takes seconds the first time.

        Args:
            folder: a sealed bundle, or the weights that one is made from.
            digest: what it must be.

        Raises:
            BundleError: the folder does not hold the bundle with this digest any more.
        """
        import torch
        from captum.attr import IntegratedGradients

        from models.lstm import Shape, load

        found = bundle.verify(folder)
        if found != digest:
            raise bundle.BundleError(
                f"bundle {folder} has digest {found[:12]}, the verdicts are by {digest[:12]}"
            )
        torch.set_num_threads(1)
        shape = Shape(**json.loads((folder / "lstm.json").read_text()))
        network = load(shape, folder / "lstm.safetensors")
        for weight in network.parameters():
            weight.requires_grad_(False)  # gradients are wanted of the features only
        self.length = shape.length
        self.typical: Float32 = network.mean.numpy()
        self._network = network
        self._gradients = IntegratedGradients(lambda features: network(features)[:, -1])
        self._stack = Stack.load(folder) if served(folder) == "stack" else None
        self._boosters = boosters(folder / "gbm") if self._stack else {}
        self._boxes = {name: Boxes.of(booster) for name, booster in self._boosters.items()}

    def log_odds(self, features: Float32) -> Float32:
        """Uncalibrated log-odds of the five anomalies at the last of some scans, (batch, 5).

        Args:
            features: float32 (batch, scans, F), trails of one length, at most `length` scans.
        """
        import torch

        with torch.inference_mode():
            last = self._network(torch.from_numpy(np.ascontiguousarray(features)))[:, -1].numpy()
        if self._stack is None:
            return np.asarray(last)
        trees = np.full_like(last, ABSENT)
        for name, booster in self._boosters.items():
            trees[:, ANOMALIES.index(name)] = booster.predict(
                features[:, -1], raw_score=True, num_threads=1
            )
        return self._stack({"lstm": last, "gbm": trees})

    def attention(self, features: Float32) -> Float32 | None:
        """How much the verdict on the last of some scans looks at each, float32 (scans,).

        Of the scans that the network looks back on, the shares sum to 1; None where it was trained
        without attention. It shows where the network looks, not why it says what it says.
        """
        import torch

        if not self._network.shape.attention:
            return None
        asked = torch.from_numpy(np.ascontiguousarray(features[-self.length :]))[None]
        with torch.inference_mode():
            weights: Float32 = self._network.attention(asked)[0, -1].numpy()
        return weights

    def attribute(
        self, features: Float32, anomaly: int, baseline: Baseline = "mean"
    ) -> Attribution:
        """What the model's verdict on the last of some scans comes from.

        Args:
            features: float32 (scans, F), a trail up to the scan; more than `length` are cut.
            anomaly: column 0-4.
            baseline: "mean", the mean of the training scans, or "zeros", features of 0.
        """
        import torch

        asked = features[-self.length :]
        against = np.broadcast_to(
            self.typical if baseline == "mean" else np.float32(0), asked.shape
        )
        both = self.log_odds(np.stack([asked, against]))[:, anomaly].tolist()
        weight, trees = self._of_trees(asked[-1], against[-1], anomaly)
        path = [torch.from_numpy(np.array(end))[None] for end in (asked, against)]
        steps = FIRST_STEPS
        while True:
            gradients = self._gradients.attribute(
                *path, target=anomaly, n_steps=steps, method="riemann_middle"
            )
            parts = weight * gradients[0].numpy().astype(np.float32)
            parts[-1] += trees
            found = Attribution(parts, both[0], both[1], steps)
            if found.error < SMALL_ERROR or steps >= MOST_STEPS:
                return found
            steps *= 2

    def _of_trees(
        self, features: Float32, baseline: Float32, anomaly: int
    ) -> tuple[np.float32, Float32]:
        """Weight of the network in the stack, and what boosting adds for each feature, (F,)."""
        name = ANOMALIES[anomaly]
        if self._stack is None:
            return np.float32(1), np.zeros_like(features)
        network, trees = self._stack.weight[anomaly].astype(np.float32)
        if name not in self._boxes:
            return network, np.zeros_like(features)
        worth = self._boxes[name].worth(features, baseline)
        return network, trees * worth.astype(np.float32)
