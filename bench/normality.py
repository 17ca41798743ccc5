"""A model of what is normal, for kinds of tampering that nobody has seen yet.

`python -m bench.normality` learns from honest trails alone which scan comes next, and when: the
operation, the kind of place, and the time that passes. A scan is as strange as it was unlikely. It
is compared with the one-class SVM, the rules and the network of the default run on worlds that
nothing else uses, and a Markdown page is written.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import nn

from bench.card import WORLDS, Seen, world_seen
from bench.card_page import table
from models import predict, windows
from models.lstm import standardisation
from pipelines import params
from pipelines.measures.ranking import recall_at_fpr
from pipelines.parts import Part, load_part
from pipelines.progress import Progress, say
from trail.features import FEATURES
from trail.scan import EVENT_TYPES, Float32
from world.tampering import SUBTYPES

SEED: Final = 23
FIRST_SEED: Final = 8000
"""Seeds of the worlds begin here; the benchmark card's and the ablations' are others."""
FPR: Final = 0.01
MODELS: Final = ("normality", "svm", "rules", "lstm")
HIDDEN: Final = 64
MIXED: Final = 4
"""Parts of the mixture of times."""
OPS: Final = len(EVENT_TYPES)
PLACES: Final = ("the same", "a usual one", "a rare one", "one never reached from there", "unknown")
USUAL: Final = 0.05
"""Share of the goods of a place that go to a usual next one."""
_COLUMN: Final = {name: i for i, name in enumerate(FEATURES)}


class NextScan(nn.Module):
    """Likelihood of each scan of a trail given the scans before it."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, mean: Float32, scale: Float32) -> None:
        """Build it; `mean` and `scale` (F,) standardise the features inside it."""
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("scale", torch.from_numpy(scale))
        self.lstm = nn.LSTM(len(mean), HIDDEN, batch_first=True)
        self.op = nn.Linear(HIDDEN, OPS)
        self.place = nn.Linear(HIDDEN + OPS, len(PLACES))
        self.time = nn.Sequential(
            nn.Linear(HIDDEN + OPS + len(PLACES) + 2, HIDDEN),
            nn.Tanh(),
            nn.Linear(HIDDEN, 3 * MIXED),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Minus log-likelihood (batch, time, 3) of operation, place and time of each scan.

        Args:
            features: raw features (batch, time, F), trails padded on the right.
        """
        standard = ((features - self.mean) / self.scale).clamp(-8.0, 8.0)
        states = self.lstm(standard)[0]
        before = torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], dim=1)
        op, place = what(features)
        told = torch.cat([before, nn.functional.one_hot(op, OPS)], dim=-1)
        placed = torch.cat([told, nn.functional.one_hot(place, len(PLACES))], dim=-1)
        leg = standard[..., [_COLUMN["km_log"], _COLUMN["expected_h_log"]]]
        later = features[..., _COLUMN["is_first"]] < 0.5
        return torch.stack(
            [
                _unlikely(self.op(before), op),
                _unlikely(self.place(told), place) * later,
                self._time(torch.cat([placed, leg], dim=-1), features) * later,
            ],
            dim=-1,
        )

    def _time(self, known: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Of the hours since the scan before: a mixture of normal densities of their logarithm."""
        weight, middle, width = self.time(known).chunk(3, dim=-1)
        hours = features[..., _COLUMN["gap_h_log"], None]
        normal = torch.distributions.Normal(middle, nn.functional.softplus(width) + 0.02)
        likely = torch.log_softmax(weight, dim=-1) + normal.log_prob(hours)
        return -torch.logsumexp(likely, dim=-1)


def what(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Operation and kind of place of each scan, int64 (batch, time) each."""
    column = {name: features[..., i] for name, i in _COLUMN.items()}
    first = _COLUMN[f"op_{EVENT_TYPES[0]}"]
    op = features[..., first : first + OPS].argmax(dim=-1)
    usual = torch.where(column["edge_share"] >= USUAL, 1, 2)
    reached = torch.where(column["edge_unused"] > 0, 3, usual)
    known = torch.where(column["edge_known"] > 0, reached, len(PLACES) - 1)
    return op, torch.where(column["same_site"] > 0, 0, known)


def _unlikely(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    flat = nn.functional.cross_entropy(logits.flatten(0, 1), truth.flatten(), reduction="none")
    return flat.view(truth.shape)


def honest_trails(part: Part) -> tuple[Float32, npt.NDArray[np.int64]]:
    """Features and offsets of the trails that nobody tampered with."""
    size = np.diff(part.offsets)
    kept = ~np.logical_or.reduceat(part.synthetic, part.offsets[:-1])
    rows = np.repeat(kept, size)
    return part.features[rows], np.append(0, np.cumsum(size[kept]))


def fit(
    features: Float32, offsets: npt.NDArray[np.int64], length: int, epochs: int, batch_scans: int
) -> NextScan:
    """Train by maximum likelihood; no label is looked at."""
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    model = NextScan(*standardisation(features))
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    start, size, first = windows.spans(offsets, length)
    batches = list(windows.batches(size, batch_scans))
    steps = len(batches) * epochs
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    with Progress("normality", epochs, "epochs") as step:
        for _ in range(epochs):
            total = 0.0
            for b in rng.permutation(len(batches)):
                picked = batches[b]
                rows, real = windows.padded(start[picked], size[picked])
                read = torch.from_numpy(real & (np.arange(rows.shape[1]) >= first[picked, None]))
                each = model(torch.from_numpy(features[rows])).sum(dim=-1)
                loss = (each * read).sum() / read.sum()
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
                rate.step()
                total += float(loss.detach())
            step(1, f"minus log-likelihood {total / len(batches):.3f} a scan")
    return model.eval()


def surprise(
    model: NextScan, features: Float32, offsets: npt.NDArray[np.int64], length: int
) -> Float32:
    """Minus log-likelihood of operation, place and time of each scan, float32 (n, 3)."""

    def forward(batch: Float32) -> Float32:
        with torch.inference_mode():
            return np.asarray(model(torch.from_numpy(batch)).numpy())

    return windows.run(features, offsets, length, forward, outputs=3)


def strangeness(surprised: Float32, usual: Float32) -> Float32:
    """How rare the rarest of operation, place and time is among honest scans, float32 (n,).

    Each of the three is judged by the share of honest scans that surprise as much, so that what
    always varies widely, such as times, does not drown what hardly ever does.

    Args:
        surprised: float32 (n, 3), of `surprise`.
        usual: float32 (m, 3), the same of honest scans.
    """
    share = np.empty(surprised.shape)
    for k in range(surprised.shape[1]):
        at = np.searchsorted(np.sort(usual[:, k]), surprised[:, k], side="left")
        share[:, k] = (len(usual) - at + 1) / (len(usual) + 1)
    # The likelihood itself parts what is rarer than anything in the honest sample.
    return np.asarray(-np.log(share.min(axis=1)) + 1e-3 * surprised.sum(axis=1), np.float32)


Recalls = dict[str, dict[str, float]]
"""Recall at 1 % false positives, by subtype and model."""


def recalls(seen: Sequence[Seen], scores: Sequence[Mapping[str, Float32]]) -> Recalls:
    """Recall of each subtype over worlds; a score (n, 5) is asked of the subtype's own type.

    Args:
        seen: the worlds.
        scores: of each world, float32 (n, 5) by model.
    """
    target, subtype = (
        np.concatenate([getattr(one.part, name) for one in seen]) for name in ("target", "subtype")
    )
    honest = (target == 0).all(axis=1) & (subtype < 0)
    found: Recalls = {}
    for number, kind in enumerate(SUBTYPES):
        bad = (subtype == number) & (target[:, kind.anomaly] == 1)
        if bad.any():
            score = {m: np.concatenate([s[m][:, kind.anomaly] for s in scores]) for m in scores[0]}
            found[kind.name] = {m: recall_at_fpr(s[bad], s[honest], FPR) for m, s in score.items()}
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Train, compare, write; returns an exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.normality", description=__doc__)
    parser.add_argument("--weights", type=Path, default=Path("models/weights"))
    parser.add_argument("--sequences", type=Path, default=Path("work/sequences"))
    parser.add_argument("--scans", type=int, default=400_000, help="of one world")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("docs/normality.md"))
    asked = parser.parse_args(argv)
    if not (asked.weights / "digest.json").is_file():
        print(f"normality: {asked.weights} holds no model; run `make run`", file=sys.stderr)
        return 2
    said = sys.argv[1:] if argv is None else argv
    torch.set_num_threads(1)
    learned = honest_trails(load_part(asked.sequences, "train"))
    length = int(params.load()["train"]["length"])
    say(f"normality: {len(learned[0]):,} scans to learn from")
    model = fit(*learned, length, asked.epochs, 1024)
    held = honest_trails(load_part(asked.sequences, "validation"))
    usual = surprise(model, *held, length)
    found: Recalls = {}
    for name in ("base", "W7"):
        say(f"normality: {name}, {WORLDS[name]}")
        seen = world_seen(name, FIRST_SEED, asked.scans, asked.weights)
        encoded = seen.encoded
        scores = {"rules": encoded.rules, **predict.logits(asked.weights, encoded)}
        surprised = surprise(model, encoded.features, encoded.offsets, length)
        strange = strangeness(surprised, usual)
        scores["normality"] = np.repeat(strange[:, None], 5, axis=1)
        found |= recalls([seen], [scores])
    command = shlex.join(["python", "-m", "bench.normality", *said])
    asked.out.write_text(page(found, command, asked.scans) + "\n")
    say(f"normality: {asked.out}")
    return 0


def page(found: Recalls, command: str, scans: int) -> str:
    """The recalls as Markdown."""
    kinds = {s.name: s for s in SUBTYPES}
    rows = [
        [f"`{name}`", *(f"{recall[m]:.3f}" for m in MODELS), _trained(kinds[name].natural_only)]
        for name, recall in found.items()
    ]
    mean = [f"{np.mean([recall[m] for recall in found.values()]):.3f}" for m in MODELS]
    rows.append(["mean", *mean, ""])
    head = ["kind", *MODELS, "was in the network's training"]
    return "\n\n".join(
        [
            "# A model of what is normal",
            f"Written by `{command}`: recall at 1 % false positives of each kind of tampering, in "
            f"worlds of some {scans:,} scans. *normality* and *svm* have seen honest trails alone, "
            "so every kind is new to them; the network (*lstm*) was trained on most. "
            "[Ablations](ablations.md) has the network's recall of kinds left out of its training.",
            table(head, rows),
        ]
    )


def _trained(natural_only: bool) -> str:
    return "no" if natural_only else "yes"


if __name__ == "__main__":
    pa.set_cpu_count(1)
    sys.exit(main())
