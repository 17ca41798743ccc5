"""How long a forward pass takes, as a ratio: seconds of a busy machine mean nothing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

SEQUENCES: Final = 50
ROUNDS: Final = 60
_WARM_UP: Final = 5


def ratio(
    challenger: tuple[Path, int], champion: tuple[Path, int], rounds: int = ROUNDS
) -> tuple[float, float, float]:
    """Median processor time of a forward pass of 50 whole sequences, one model after the other.

    Args:
        challenger: its ONNX network, and the scans of a sequence.
        champion: likewise.
        rounds: passes of each that are counted.

    Returns:
        challenger / champion, and the milliseconds of each.
    """
    passes = [_pass(*challenger), _pass(*champion)]
    seen: tuple[list[float], list[float]] = ([], [])
    for round_ in range(_WARM_UP + rounds):
        for which in (0, 1) if round_ % 2 else (1, 0):
            began = time.thread_time()
            passes[which]()
            if round_ >= _WARM_UP:
                seen[which].append(time.thread_time() - began)
    mine, other = (statistics.median(times) * 1000 for times in seen)
    return mine / other, mine, other


def _pass(network: Path, length: int) -> Callable[[], object]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    # One thread: it is then the caller's own, whose processor time others do not touch.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(network), options, providers=["CPUExecutionProvider"])
    inputs = int(session.get_inputs()[0].shape[-1])
    rng = np.random.default_rng(0)
    batch = rng.normal(size=(SEQUENCES, length, inputs)).astype(np.float32)
    return lambda: session.run(None, {"features": batch})
