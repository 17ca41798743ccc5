"""The controls, on as many lots as it takes: does a model tell what nobody can tell?

A whole box is one case, and few lots of the benchmark card hold one that a control was done to.
`python -m bench.controls` injects controls alone into worlds that nothing else uses, scores them by
the models of a run and writes a Markdown page: an AUC of 0.5 against honest scans that were read
alike means that nothing leaks.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from bench.card import together, world_seen
from bench.card_page import table
from models import predict
from models.stack import served
from pipelines.measures import blocks
from pipelines.measures.blocks import Block
from pipelines.measures.controls import ControlAuc, control_auc
from pipelines.progress import Progress, say
from world.tampering import NAMES, SUBTYPES

FIRST_SEED: Final = 22_000
"""Seeds of the worlds begin here."""
SHARE: Final = 0.06
"""EPCs tampered with of each type."""
REPLICATES: Final = 2000
CONTROLS: Final = tuple(s for s in SUBTYPES if s.control)
NEAR: Final = (0.45, 0.55)
"""AUC of what cannot be told."""


@dataclass(frozen=True)
class Told:
    """How far a control is told: its lots, and the AUC by model."""

    lots: int
    auc: Mapping[str, ControlAuc]


def main(argv: Sequence[str] | None = None) -> int:
    """Score, measure, write; returns an exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.controls", description=__doc__)
    parser.add_argument("--weights", type=Path, default=Path("models/weights"))
    parser.add_argument("--scans", type=int, default=300_000, help="of one world")
    parser.add_argument("--worlds", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("docs/controls.md"))
    asked = parser.parse_args(argv)
    if not (asked.weights / "digest.json").is_file():
        print(f"controls: {asked.weights} holds no trained models; run `make run`", file=sys.stderr)
        return 2
    said = sys.argv[1:] if argv is None else argv
    block = scored(asked.weights, asked.scans, asked.worlds)
    command = shlex.join(["python", "-m", "bench.controls", *said])
    answering = served(asked.weights)
    asked.out.write_text(page(told(block), answering, len(block), command) + "\n")
    say(f"controls: {asked.out}")
    return 0


def scored(weights: Path, scans: int, worlds: int) -> Block:
    """Worlds with controls alone as one block, with the log-odds of every learned model.

    Args:
        weights: folder of the trained models.
        scans: of one world.
        worlds: how many.
    """
    names = [control.name for control in CONTROLS]
    made = []
    with Progress("worlds", worlds, "worlds") as step:
        for seed in range(FIRST_SEED, FIRST_SEED + worlds):
            seen = world_seen("base", seed, scans, weights, SHARE, names)
            made.append(blocks.injected(seen.part, predict.logits(weights, seen.encoded), None))
            step(1, f"seed {seed}")
    return together(made)


def told(block: Block) -> dict[str, Told]:
    """How far each model tells each control of a block, by the control's name."""
    found = {}
    for control in CONTROLS:
        number = NAMES.index(control.name)
        column = int(control.anomaly)
        auc = {
            model: control_auc(block, score[:, column], column, number, REPLICATES, 0)
            for model, score in block.scores.items()
        }
        lots = len(np.unique(block.lot[block.control & (block.subtype == number)]))
        found[control.name] = Told(lots, auc)
    return found


def page(found: Mapping[str, Told], answering: str, scans: int, command: str) -> str:
    """The figures as Markdown; `answering` is the model that answers."""
    models = list(next(iter(found.values())).auc)
    rows = [
        [f"`{name}`", f"{of.lots:,}", *(_interval(one) for one in of.auc.values())]
        for name, of in found.items()
    ]
    caught = [
        [f"`{name}`", *(f"{one.recall_at_fpr1:.1%}" for one in of.auc.values())]
        for name, of in found.items()
    ]
    leaks = [
        f"`{name}`"
        for name, of in found.items()
        if of.auc[answering].low > NEAR[1] or of.auc[answering].high < NEAR[0]
    ]
    return "\n\n".join(
        [
            "# Does it tell what nobody can tell?",
            f"Written by `{command}`: controls alone, injected into worlds that nothing else uses, "
            f"{scans:,} scans. AUC against honest scans that were read alike "
            "(`pipelines/measures/controls.py`), with 95 % intervals by lot; of cloned boxes only "
            "scans before their tracks conflict are asked. A model that tells a control has found "
            f"a leak in the simulation. Proven outside {NEAR[0]}-{NEAR[1]} for {answering}: "
            + (", ".join(leaks) or "none")
            + ".",
            table(["control", "lots", *models], rows),
            "Share of their scans above the highest 1 % of the honest scans that were read alike:",
            table(["control", *models], caught),
        ]
    )


def _interval(one: ControlAuc) -> str:
    return f"{one.auc:.3f} [{one.low:.3f}, {one.high:.3f}]"


if __name__ == "__main__":
    pa.set_cpu_count(1)
    sys.exit(main())
