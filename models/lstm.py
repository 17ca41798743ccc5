"""The network: two stacked LSTM layers, dropout, and a linear layer to the five anomalies.

It is causal and many-to-many: the logits at a scan depend on the trail up to that scan only, so
training on whole trails equals training on the last scan of every prefix. With attention each scan
also sees a weighted mean of the hidden states so far. With two levels the lower one reads what a
scan says of its own item, the upper one the lower's states and what the scan's box and lot do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from models import windows
from trail.scan import ANOMALIES

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Shape:
    """Architecture of the network.

    Attributes:
        inputs: features a scan.
        hidden: units of each LSTM layer.
        layers: stacked layers.
        dropout: share of activations dropped in training.
        length: scans that a verdict looks back on, this one included.
        attention: whether the head also sees a weighted mean of the hidden states so far.
        lot: columns of the features that speak of box and lot, for a level of their own; none is
            one level.
    """

    inputs: int
    hidden: int = 64
    layers: int = 2
    dropout: float = 0.2
    length: int = 20
    attention: bool = False
    lot: Sequence[int] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


class TrailLSTM(nn.Module):
    """Logits of the five anomalies at every scan of a batch of trails."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, shape: Shape, mean: Float32 | None = None, scale: Float32 | None = None):
        """Build the network; `mean` and `scale` (F,) standardise the features inside it."""
        super().__init__()
        self.shape = shape
        zeros, ones = np.zeros(shape.inputs, np.float32), np.ones(shape.inputs, np.float32)
        self.register_buffer("mean", torch.from_numpy(zeros if mean is None else mean))
        self.register_buffer("scale", torch.from_numpy(ones if scale is None else scale))
        self._lot = list(shape.lot)
        self._own = [i for i in range(shape.inputs) if i not in set(self._lot)]
        layers = max(1, shape.layers - 1) if self._lot else shape.layers
        self.lstm = nn.LSTM(
            len(self._own),
            shape.hidden,
            num_layers=layers,
            dropout=shape.dropout if layers > 1 else 0.0,
            batch_first=True,
        )
        if self._lot:
            self.upper = nn.LSTM(shape.hidden + len(self._lot), shape.hidden, batch_first=True)
        self.dropout = nn.Dropout(shape.dropout)
        seen = shape.hidden
        if shape.attention:
            self.query = nn.Linear(shape.hidden, shape.hidden, bias=False)
            seen *= 2
        self.head = nn.Linear(seen, len(ANOMALIES))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (batch, time, 5) of raw features (batch, time, F), trails padded on the right."""
        hidden = self._hidden(features)
        if self.shape.attention:
            hidden = torch.cat([hidden, self._weights(hidden) @ hidden], dim=-1)
        logits: torch.Tensor = self.head(self.dropout(hidden))
        return logits

    def attention(self, features: torch.Tensor) -> torch.Tensor:
        """How much each scan (row) looks at each scan up to it, (batch, time, time), rows sum to 1.

        Raises:
            ValueError: the network has no attention.
        """
        if not self.shape.attention:
            raise ValueError("this network was trained without attention")
        return self._weights(self._hidden(features))

    def _hidden(self, features: torch.Tensor) -> torch.Tensor:
        standard = ((features - self.mean) / self.scale).clamp(-8.0, 8.0)
        hidden: torch.Tensor
        if not self._lot:
            hidden = self.lstm(standard)[0]
            return hidden
        own = self.dropout(self.lstm(standard[..., self._own])[0])
        hidden = self.upper(torch.cat([own, standard[..., self._lot]], dim=-1))[0]
        return hidden

    def _weights(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scaled dot products, masked before the softmax: nothing later, so no padding, counts."""
        product = self.query(hidden) @ hidden.transpose(1, 2) / math.sqrt(self.shape.hidden)
        step = torch.arange(hidden.shape[1], device=hidden.device)
        later = step[None, :] > step[:, None]
        return torch.softmax(product.masked_fill(later, -torch.inf), dim=-1)


def logits(
    network: TrailLSTM,
    features: Float32,
    offsets: npt.NDArray[np.int64],
    progress: Callable[[int], object] | None = None,
) -> Float32:
    """Log-odds of every scan of some trails, float32 (n, 5), on the device of the network.

    Args:
        network: in evaluation mode.
        features: float32 (n, F) in trail order.
        offsets: int64 (t + 1,), boundaries of the trails.
        progress: called with the number of windows done since the last call.
    """

    def forward(batch: Float32) -> Float32:
        with torch.inference_mode():
            there = torch.from_numpy(batch).to(network.mean.device)
            return np.asarray(network(there).float().cpu().numpy())

    return windows.run(features, offsets, network.shape.length, forward, progress=progress)


def standardisation(features: Float32) -> tuple[Float32, Float32]:
    """Mean and scale (F,) of the training features; a constant column keeps scale 1."""
    mean = features.mean(axis=0, dtype=np.float64)
    scale = features.std(axis=0, dtype=np.float64)
    return mean.astype(np.float32), np.where(scale > 1e-4, scale, 1.0).astype(np.float32)


def save(network: TrailLSTM, path: Path) -> None:
    """Write the weights as safetensors."""
    from safetensors.torch import save_file

    weights = {
        name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()
    }
    save_file(weights, str(path))


def load(shape: Shape, path: Path) -> TrailLSTM:
    """Read a network that `save` wrote, ready for inference.

    Raises:
        RuntimeError: the weights do not fit the shape.
    """
    from safetensors.torch import load_file

    network = TrailLSTM(shape)
    network.load_state_dict(load_file(str(path)))
    return network.eval()
