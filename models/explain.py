"""Why the network says so: integrated gradients over the scans that it looked at.

Each (scan, feature) gets the part of the log-odds that it is worth, against a baseline trail of
the same length; the parts add up to the difference of the log-odds, but for the completeness
error, which is reported and kept small by taking more steps.

Source: Sundararajan et al., Axiomatic attribution for deep networks (2017); Captum.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import numpy.typing as npt

from models import bundle

if TYPE_CHECKING:
    import torch

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
    """What a verdict of the network comes from.

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
    """Explains what the network of one bundle, or of a folder of weights, says.

    Torch runs on one thread.
    """

    def __init__(self, folder: Path, digest: str) -> None:
        """Load the network; imports torch and Captum, which takes seconds the first time.

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

    def log_odds(self, features: Float32) -> Float32:
        """Uncalibrated log-odds of the five anomalies at the last of some scans, (batch, 5).

        Args:
            features: float32 (batch, scans, F), trails of one length, at most `length` scans.
        """
        import torch

        return np.asarray(self._last(torch.from_numpy(np.ascontiguousarray(features))).numpy())

    def _last(self, features: torch.Tensor) -> torch.Tensor:
        import torch

        with torch.inference_mode():
            last: torch.Tensor = self._network(features)[:, -1]
        return last

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
        """What the network's verdict on the last of some scans comes from.

        Args:
            features: float32 (scans, F), a trail up to the scan; more than `length` are cut.
            anomaly: column 0-4.
            baseline: "mean", the mean of the training scans, or "zeros", features of 0.
        """
        import torch

        asked = torch.from_numpy(np.ascontiguousarray(features[-self.length :]))[None]
        mean = self._network.mean.expand_as(asked)
        against = mean if baseline == "mean" else torch.zeros_like(asked)
        both = self._last(torch.cat([asked, against]))[:, anomaly].tolist()
        steps = FIRST_STEPS
        while True:
            parts = self._gradients.attribute(
                asked, against, target=anomaly, n_steps=steps, method="riemann_middle"
            )
            found = Attribution(parts[0].numpy().astype(np.float32), both[0], both[1], steps)
            if found.error < SMALL_ERROR or steps >= MOST_STEPS:
                return found
            steps *= 2
