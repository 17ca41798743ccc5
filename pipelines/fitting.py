"""Fitting the LSTM: batches by index, early stopping, checkpoints that a killed run resumes."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models import lstm, windows
from pipelines.parts import Part
from pipelines.progress import Progress
from trail.features import CONTEXT_OF, FEATURES
from trail.scan import ANOMALIES

Report = Callable[[int, Mapping[str, float]], None]

LOSSES: Final = ("bce", "focal")
FOCAL_GAMMA: Final = 2.0
WEEK_US: Final = 7 * 86_400 * 1_000_000
LOT: Final = tuple(i for i, name in enumerate(FEATURES) if CONTEXT_OF[name] == "box and lot")
"""Columns of the features that are the upper level of a hierarchical network."""


@dataclass
class State:
    """Where a training stands; all that a checkpoint holds besides tensors."""

    epoch: int = 0
    best: float = -1.0
    best_epoch: int = -1
    curves: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Fitted:
    """A trained network and how it got there."""

    network: lstm.TrailLSTM
    state: State


def device_of(wanted: str) -> torch.device:
    """`auto` is the GPU where there is one.

    Raises:
        ValueError: the name is unknown, or the machine has no such device.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted not in ("cpu", "cuda"):
        raise ValueError(f"train.device is {wanted!r}; write auto, cpu or cuda")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("train.device is cuda, but torch sees no GPU; write auto or cpu")
    return torch.device(wanted)


def fit(
    learned: Part,
    held: Part,
    settings: Mapping[str, Any],
    checkpoints: Path,
    report: Report,
    start: lstm.TrailLSTM | None = None,
) -> Fitted:
    """Train until validation mAP has not risen for `patience` epochs; keep the best epoch.

    What is validated and kept is the running average of the weights, which is steadier than any
    one step of them (Polyak and Juditsky, 1992).

    Args:
        learned: the training part.
        held: the validation part.
        settings: section `train` of params.yaml.
        checkpoints: folder of this training's checkpoint; a checkpoint there is resumed.
        report: called after each epoch with its number and figures.
        start: a network of the same shape to go on from, with its standardisation; it is changed.
    """
    torch.set_num_threads(int(settings["threads"]))
    torch.use_deterministic_algorithms(True, warn_only=True)
    device = device_of(settings["device"])
    torch.manual_seed(int(settings["seed"]))
    shape = lstm.Shape(
        inputs=learned.features.shape[1],
        hidden=int(settings["hidden"]),
        layers=int(settings["layers"]),
        dropout=float(settings["dropout"]),
        length=int(settings["length"]),
        attention=bool(settings.get("attention", False)),
        lot=LOT if settings.get("hierarchical", False) else (),
    )
    network = start or lstm.TrailLSTM(shape, *lstm.standardisation(learned.features))
    network = network.to(device)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=settings["learning_rate"], weight_decay=settings["weight_decay"]
    )
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(float(settings["average"])))
    best = {k: v.clone() for k, v in network.state_dict().items()}
    state = _resume(checkpoints, network, averaged, optimiser, best)
    data = _Resident(learned, shape.length, settings, device)
    counts = weights(held, settings)
    with Progress("lstm", int(settings["epochs"]), "epochs", done=state.epoch) as step:
        while state.epoch < settings["epochs"] and not _stalled(state, settings):
            loss = data.epoch(network, averaged, optimiser, state.epoch)
            smooth = cast(lstm.TrailLSTM, averaged.module)
            ap = validation_ap(smooth, held, counts)
            figures = {"loss": loss, "validation_map": float(np.nanmean(list(ap.values())))}
            figures |= {f"validation_ap.{name}": value for name, value in ap.items()}
            if figures["validation_map"] > state.best:
                state.best, state.best_epoch = figures["validation_map"], state.epoch
                best = {k: v.detach().clone() for k, v in smooth.state_dict().items()}
            state.curves.append(figures)
            state.epoch += 1
            _checkpoint(checkpoints, network, averaged, optimiser, best, state)
            report(state.epoch, figures)
            step(1, f"loss {loss:.4f}, validation mAP {figures['validation_map']:.3f}")
    network.load_state_dict(best)
    return Fitted(network.cpu().eval(), state)


def write(fitted: Fitted, out: Path) -> None:
    """Weights, shape and learning curves."""
    lstm.save(fitted.network, out / "lstm.safetensors")
    (out / "lstm.json").write_text(json.dumps(fitted.network.shape.to_json(), indent=1) + "\n")
    names = ["loss", "validation_map", *(f"validation_ap.{name}" for name in ANOMALIES)]
    lines = [",".join(["epoch", *names])]
    for i, row in enumerate(fitted.state.curves):
        lines.append(",".join([str(i + 1), *(f"{row.get(name, math.nan):.6f}" for name in names)]))
    (out / "curves.csv").write_text("\n".join(lines) + "\n")


def validation_ap(
    network: lstm.TrailLSTM, part: Part, counts: npt.NDArray[np.float32]
) -> dict[str, float]:
    """Average precision by anomaly, each scan counting as `weights` says; NaN where the part holds
    none.
    """
    from sklearn.metrics import average_precision_score

    logits = lstm.logits(network.eval(), part.features, part.offsets)
    found = {}
    for k, name in enumerate(ANOMALIES):
        keep = part.target[:, k] >= 0
        truth = part.target[keep, k] == 1
        found[name] = (
            float(average_precision_score(truth, logits[keep, k], sample_weight=counts[keep]))
            if truth.any()
            else math.nan
        )
    return found


def elementwise(
    logits: torch.Tensor, target: torch.Tensor, settings: Mapping[str, Any]
) -> torch.Tensor:
    """Loss of each logit: `bce`, or `focal`, which weighs what is judged well already down
    (Lin et al., 2017, with gamma 2). That of an anomalous scan counts `positive_weight` times.

    Raises:
        ValueError: the loss is neither, or a weight is of no anomaly.
    """
    kind = settings.get("loss", "bce")
    if kind not in LOSSES:
        raise ValueError(f"train.loss is {kind!r}; write {' or '.join(LOSSES)}")
    each = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    if kind == "focal":
        # exp(-bce) is the probability that was given to the truth.
        each = (1 - torch.exp(-each)) ** FOCAL_GAMMA * each
    weight = settings.get("positive_weight") or {}
    if not weight:
        return each
    unknown = sorted(set(weight) - set(ANOMALIES))
    if unknown:
        raise ValueError(f"train.positive_weight has {unknown[0]!r}; write {', '.join(ANOMALIES)}")
    more = torch.tensor([float(weight.get(name, 1)) - 1 for name in ANOMALIES])
    return each * (1 + more.to(target) * target)


def weights(part: Part, settings: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    """How much each scan counts, float32 (n,), 1 on average.

    A pallet is one event, whether it holds one item or fifty. Were each of its items to count like
    an item on its own, a network of a few hundred lots would learn its few tampered pallets by
    heart, and what it says of the next honest pallet would decide how good it looks.

    Raises:
        ValueError: the exponent is not 0 to 1.
    """
    exponent = float(settings.get("crowd_exponent", 0.0))
    if not 0 <= exponent <= 1:
        raise ValueError(f"train.crowd_exponent is {exponent}; write 0 to 1")
    if not exponent:
        return np.ones(len(part.features), np.float32)
    read_at_once = np.maximum(np.expm1(part.features[:, FEATURES.index("group_log")]), 1)
    weight = read_at_once ** np.float32(-exponent)
    return np.asarray(weight / weight.mean(), np.float32)


def strata(
    part: Part, start: npt.NDArray[np.int64], size: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Stratum of each window: its size, the week in which it begins, and whether it holds an
    anomaly; int64 (windows,).
    """
    bad = np.append(0, np.cumsum((part.target == 1).any(axis=1)))
    anomalous = bad[start + size] > bad[start]
    week = part.time_us[start] // WEEK_US
    columns = np.stack([size, week, anomalous.astype(np.int64)], axis=1)
    return np.asarray(np.unique(columns, axis=0, return_inverse=True)[1], np.int64).ravel()


def evenly(mixed: npt.NDArray[np.int64], stratum: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Windows in an order in which every stretch holds its share of each stratum.

    Args:
        mixed: the windows in a random order, which is kept within a stratum.
        stratum: int64 (windows,), of each window.
    """
    grouped = mixed[np.argsort(stratum[mixed], kind="stable")]
    _, first, of, count = np.unique(
        stratum[grouped], return_index=True, return_inverse=True, return_counts=True
    )
    place = (np.arange(len(grouped)) - first[of] + 0.5) / count[of]
    return grouped[np.argsort(place, kind="stable")]


class _Resident:
    """The training part on the device; a batch is a gather, nothing is copied ahead."""

    def __init__(
        self, part: Part, length: int, settings: Mapping[str, Any], device: torch.device
    ) -> None:
        self._features = torch.from_numpy(part.features).to(device)
        self._target = torch.from_numpy(part.target).to(device)
        self._start, self._size, self._first = windows.spans(part.offsets, length)
        self._stratum = None
        if settings.get("stratified", False):
            self._stratum = strata(part, self._start, self._size)
        self._settings = settings
        self._device = device
        self._weight = torch.from_numpy(weights(part, settings)).to(device)
        self._bf16 = device.type == "cuda" and settings["precision"] == "bf16"

    def epoch(
        self,
        network: lstm.TrailLSTM,
        averaged: AveragedModel,
        optimiser: torch.optim.Optimizer,
        epoch: int,
    ) -> float:
        """One pass over the part; the same epoch draws the same batches after a restart."""
        seed = int(self._settings["seed"]) * 100_003 + epoch
        torch.manual_seed(seed)
        rng = np.random.default_rng(seed)
        mixed = rng.permutation(len(self._size))
        if self._stratum is not None:
            mixed = evenly(mixed, self._stratum)
        order = mixed[np.argsort(self._size[mixed], kind="stable")]
        batches = list(windows.batches(self._size[order], int(self._settings["batch_scans"])))
        network.train()
        total = torch.zeros((), device=self._device)
        for i, b in enumerate(rng.permutation(len(batches))):
            self._rate(optimiser, epoch + i / len(batches))
            picked = order[batches[b]]
            loss = self._loss(network, picked)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            averaged.update_parameters(network)
            total += loss.detach()
        return float(total) / max(len(batches), 1)

    def _loss(self, network: lstm.TrailLSTM, picked: npt.NDArray[np.int64]) -> torch.Tensor:
        """Mean loss of the scans that these windows are there for, each read once."""
        rows, real = windows.padded(self._start[picked], self._size[picked])
        read = real & (np.arange(rows.shape[1]) >= self._first[picked, None])
        index = torch.from_numpy(rows).to(self._device)
        target = self._target[index]
        counted = (target >= 0) & torch.from_numpy(read).to(self._device)[:, :, None]
        weight = counted * self._weight[index][:, :, None]
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            logits = network(self._features[index])
        each = elementwise(logits.float(), target.clamp(min=0).float(), self._settings)
        return (each * weight).sum() / weight.sum().clamp(min=1) * len(ANOMALIES)

    def _rate(self, optimiser: torch.optim.Optimizer, epoch: float) -> None:
        """Warm-up over the first epoch, then a cosine to a twentieth; a function of time only."""
        whole = float(self._settings["epochs"])
        warm = min(1.0, epoch + 0.05)
        cosine = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(epoch / whole, 1.0)))
        for group in optimiser.param_groups:
            group["lr"] = float(self._settings["learning_rate"]) * warm * cosine


def _stalled(state: State, settings: Mapping[str, Any]) -> bool:
    return state.epoch - 1 - state.best_epoch >= int(settings["patience"])


def _checkpoint(
    folder: Path,
    network: lstm.TrailLSTM,
    averaged: AveragedModel,
    optimiser: torch.optim.Optimizer,
    best: Mapping[str, torch.Tensor],
    state: State,
) -> None:
    """Write the state beside the old one, then swap: a kill leaves one of them whole."""
    from safetensors.torch import save_file

    tensors = {f"network.{k}": v for k, v in network.state_dict().items()}
    tensors |= {f"averaged.{k}": v for k, v in averaged.state_dict().items()}
    tensors |= {f"best.{k}": v for k, v in best.items()}
    for i, slots in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{i}.{k}": torch.as_tensor(v) for k, v in slots.items()}
    new, old = folder.with_suffix(".new"), folder.with_suffix(".old")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, str(new / "tensors"))
    (new / "state.json").write_text(json.dumps(state.__dict__))
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def _resume(
    folder: Path,
    network: lstm.TrailLSTM,
    averaged: AveragedModel,
    optimiser: torch.optim.Optimizer,
    best: dict[str, torch.Tensor],
) -> State:
    """Continue from a checkpoint where there is one."""
    from safetensors.torch import load_file

    old = folder.with_suffix(".old")
    if not folder.exists() and old.exists():
        os.replace(old, folder)
    if not (folder / "state.json").exists():
        return State()
    tensors = load_file(str(folder / "tensors"))

    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    network.load_state_dict(part("network."))
    averaged.load_state_dict(part("averaged."))
    best.update({k: v.to(best[k].device) for k, v in part("best.").items()})
    slots: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in part("optimiser.").items():
        i, slot = name.split(".", 1)
        slots.setdefault(int(i), {})[slot] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": slots})
    return State(**json.loads((folder / "state.json").read_text()))
