"""The controls, on as many lots as it takes: does a model tell what nobody can tell?

A whole box is one case, and few lots of the benchmark card hold one that a control was done to.
`python -m bench.controls` injects each control alone into worlds that nothing else uses, scores
them by the models of a run and writes a Markdown page: an AUC of 0.5 against honest scans that were
read alike means that nothing leaks. Alone, for where another control has taken a box from a pallet,
what is left of the pallet is no longer whole, and that tells.
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
from world.tampering import NAMES, SUBTYPES, Subtype

FIRST_SEED: Final = 22_000
"""Seeds of the worlds begin here; all controls are asked in the same ones."""
SHARE: Final = 0.06
"""EPCs that a control is done to."""
REPLICATES: Final = 2000
CONTROLS: Final = tuple(s for s in SUBTYPES if s.control)
NEAR: Final = (0.45, 0.55)
"""AUC of what cannot be told."""


@dataclass(frozen=True)
class Told:
    """How far a control is told: its lots, the AUC by model, and the scans of all its worlds."""

    lots: int
    auc: Mapping[str, ControlAuc]
    scans: int


def main(argv: Sequence[str] | None = None) -> int:
    """Score, measure, write; returns an exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.controls", description=__doc__)
    parser.add_argument("--weights", type=Path, default=Path("models/weights"))
    parser.add_argument("--scans", type=int, default=300_000, help="of one world")
    parser.add_argument("--worlds", type=int, default=6, help="of each control")
    parser.add_argument("--out", type=Path, default=Path("docs/controls.md"))
    asked = parser.parse_args(argv)
    if not (asked.weights / "digest.json").is_file():
        print(f"controls: {asked.weights} holds no trained models; run `make run`", file=sys.stderr)
        return 2
    said = sys.argv[1:] if argv is None else argv
    found = ask(asked.weights, asked.scans, asked.worlds)
    command = shlex.join(["python", "-m", "bench.controls", *said])
    asked.out.write_text(page(found, served(asked.weights), command) + "\n")
    say(f"controls: {asked.out}")
    return 0


def ask(weights: Path, scans: int, worlds: int) -> dict[str, Told]:
    """How far the models of a run tell each control, by the control's name.

    Args:
        weights: folder of the trained models.
        scans: of one world.
        worlds: of each control.
    """
    found = {}
    with Progress("worlds", worlds * len(CONTROLS), "worlds") as step:
        for control in CONTROLS:
            made = []
            for seed in range(FIRST_SEED, FIRST_SEED + worlds):
                made.append(scored(weights, control, seed, scans))
                step(1, f"{control.name}, seed {seed}")
            found[control.name] = told(together(made), control)
    return found


def scored(weights: Path, control: Subtype, seed: int, scans: int) -> Block:
    """A world in which a control alone was done, with the log-odds of every learned model."""
    seen = world_seen("base", seed, scans, weights, SHARE, [control.name])
    return blocks.injected(seen.part, predict.logits(weights, seen.encoded), None)


def told(block: Block, control: Subtype) -> Told:
    """How far each model tells a control of a block."""
    number, column = NAMES.index(control.name), int(control.anomaly)
    auc = {
        model: control_auc(block, score[:, column], column, number, REPLICATES, 0)
        for model, score in block.scores.items()
    }
    lots = len(np.unique(block.lot[block.control & (block.subtype == number)]))
    return Told(lots, auc, len(block))


def page(found: Mapping[str, Told], answering: str, command: str) -> str:
    """The figures as Markdown; `answering` is the model that answers."""
    scans = sum(of.scans for of in found.values())
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
            f"Written by `{command}`: each control alone, injected into worlds that nothing else "
            f"uses, {scans:,} scans. AUC against honest scans that were read alike "
            "(`pipelines/measures/controls.py`), with 95 % intervals by lot; of cloned boxes only "
            "scans before the tracks of any of their items conflict are asked. A model that tells "
            "a control has found a leak in the simulation. Proven outside "
            f"{NEAR[0]}-{NEAR[1]} for {answering}: " + (", ".join(leaks) or "none") + ".",
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
