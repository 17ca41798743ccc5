"""Training throughput: batches by index over whole trails against a DataLoader over windows."""

from __future__ import annotations

import numpy as np
import torch

from bench.clock import in_turn
from models import lstm, windows
from trail.features import FEATURES
from trail.scan import ANOMALIES


def run(quick: bool) -> list[str]:
    """Lines of ratios: labelled scans a second of both ways on the processor."""
    trails, size, inputs = (600 if quick else 3000), 10, len(FEATURES)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(trails * size, inputs)).astype(np.float32)
    target = (rng.random((trails * size, len(ANOMALIES))) < 0.02).astype(np.float32)
    offsets = np.arange(trails + 1, dtype=np.int64) * size
    shape = lstm.Shape(inputs)
    torch.set_num_threads(1)
    took = in_turn(
        {
            "by index": lambda: _by_index(shape, features, target, offsets),
            "windows": lambda: _windows(shape, features, target, offsets),
        },
        rounds=2,
    )
    n = len(features)
    return [
        f"{n:,} labelled scans, LSTM {shape.layers} x {shape.hidden}, {inputs} features, 1 thread",
        f"by index, many-to-many: {n / took['by index']:,.0f} scans/s",
        f"DataLoader over padded windows of {shape.length}: {n / took['windows']:,.0f} scans/s",
        f"by index / DataLoader                  {took['windows'] / took['by index']:.1f}",
    ]


def _step(optimiser: torch.optim.Optimizer, logits: torch.Tensor, target: torch.Tensor) -> None:
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()


def _by_index(
    shape: lstm.Shape,
    features: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    target: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    offsets: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
) -> None:
    network = lstm.TrailLSTM(shape)
    optimiser = torch.optim.AdamW(network.parameters())
    x, y = torch.from_numpy(features), torch.from_numpy(target)
    start, size, _ = windows.spans(offsets, shape.length)
    for batch in windows.batches(size, 4096):
        rows = torch.from_numpy(windows.padded(start[batch], size[batch])[0])
        _step(optimiser, network(x[rows]), y[rows])


class _Windows(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """One padded window a scan, labelled with its last scan."""

    def __init__(
        self,
        shape: lstm.Shape,
        features: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
        target: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
        offsets: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
    ) -> None:
        self._length = shape.length
        self._x, self._y = torch.from_numpy(features), torch.from_numpy(target)
        self._first = np.repeat(offsets[:-1], np.diff(offsets))

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        first = max(int(self._first[i]), i - self._length + 1)
        window = torch.zeros(self._length, self._x.shape[1])
        window[self._length - (i + 1 - first) :] = self._x[first : i + 1]
        return window, self._y[i]


def _windows(
    shape: lstm.Shape,
    features: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    target: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    offsets: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
) -> None:
    network = lstm.TrailLSTM(shape)
    optimiser = torch.optim.AdamW(network.parameters())
    data = _Windows(shape, features, target, offsets)
    for x, y in torch.utils.data.DataLoader(data, batch_size=256, shuffle=True):
        _step(optimiser, network(x)[:, -1], y)
