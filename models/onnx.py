"""The network as ONNX: exported once, checked against torch, run by ONNX Runtime."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Final

import numpy as np
import torch

from models.lstm import TrailLSTM

TOLERANCE: Final = 1e-5


def export(network: TrailLSTM, path: Path) -> float:
    """Write the network with dynamic batch and time, and check it against torch.

    Args:
        network: the network, in inference mode.
        path: the .onnx file to write.

    Returns:
        The largest difference between the logits of both (relative where they exceed 1), on
        batches of several shapes.

    Raises:
        RuntimeError: the difference exceeds `TOLERANCE`; nothing is left at `path`.
    """
    example = torch.zeros(1, 3, network.shape.inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (example,),
            str(path),
            input_names=["features"],
            output_names=["logits"],
            dynamic_axes={"features": {0: "batch", 1: "time"}, "logits": {0: "batch", 1: "time"}},
            dynamo=False,
        )
    worst = difference(network, path)
    if not worst <= TOLERANCE:
        path.unlink()
        raise RuntimeError(
            f"the ONNX export differs from torch by {worst:.2e}, more than {TOLERANCE:.0e}; "
            "check the versions of torch and onnxruntime"
        )
    return worst


def difference(network: TrailLSTM, path: Path) -> float:
    """Largest difference between logits of torch and ONNX Runtime, relative where they exceed 1."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    worst = 0.0
    for batch, time in ((1, 1), (1, 20), (50, 7), (333, 11)):
        features = rng.normal(size=(batch, time, network.shape.inputs)).astype(np.float32)
        features = features * network.scale.numpy() + network.mean.numpy()
        with torch.inference_mode():
            expected = network(torch.from_numpy(features)).numpy()
        found = session.run(None, {"features": features})[0]
        # Log-odds of -15 carry the rounding of float32; nobody acts on their sixth digit.
        size = np.maximum(np.abs(expected), 1)
        worst = max(worst, float((np.abs(expected - found) / size).max()))
    return worst
