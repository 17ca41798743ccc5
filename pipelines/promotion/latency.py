"""How long a forward pass takes, as a ratio: seconds of a busy machine mean nothing."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from models.stack import PARTS, served

SEQUENCES: Final = 50
ROUNDS: Final = 60
_WARM_UP: Final = 5


def ratio(challenger: Path, champion: Path, rounds: int = ROUNDS) -> tuple[float, float, float]:
    """Median processor time of a forward pass of 50 whole sequences, one model after the other.

    Args:
        challenger: its bundle, which may have other features than this program.
        champion: likewise.
        rounds: passes of each that are counted.

    Returns:
        challenger / champion, and the milliseconds of each.
    """
    passes = [_pass(challenger), _pass(champion)]
    seen: tuple[list[float], list[float]] = ([], [])
    for round_ in range(_WARM_UP + rounds):
        for which in (0, 1) if round_ % 2 else (1, 0):
            began = time.thread_time()
            passes[which]()
            if round_ >= _WARM_UP:
                seen[which].append(time.thread_time() - began)
    mine, other = (statistics.median(times) * 1000 for times in seen)
    return mine / other, mine, other


def _pass(folder: Path) -> Callable[[], object]:
    """What a bundle's parts do for whole sequences: the network, and boosting in a stack."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    # One thread: it is then the caller's own, whose processor time others do not touch.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    length = int(json.loads((folder / "lstm.json").read_text())["length"])
    rng = np.random.default_rng(0)
    asked = []
    for part in PARTS if served(folder) == "stack" else PARTS[:1]:
        session = ort.InferenceSession(
            str(folder / f"{part}.onnx"), options, providers=["CPUExecutionProvider"]
        )
        *rows, inputs = session.get_inputs()[0].shape
        shape = (SEQUENCES, length) if len(rows) == 2 else (SEQUENCES * length,)
        batch = rng.normal(size=(*shape, int(inputs))).astype(np.float32)
        asked.append((session, {"features": batch}))
    return lambda: [session.run(None, features) for session, features in asked]
