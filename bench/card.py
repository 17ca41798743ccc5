"""The benchmark card: every model in every held-out world, by lot, over several seeds.

`python -m bench.card` trains on a world of its own, of the default kind and large enough for 300
calibration lots, by the stages of dvc.yaml; `--weights` takes models that are there instead. It
scores worlds that no model was trained, calibrated or chosen on, and writes a Markdown page with
plots. The lots of all seeds of a world are one sample: intervals come from a paired bootstrap over
them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import pyarrow as pa

from bench import calibrating, regret
from bench.card_page import MODELS, SERVED, Carded, write
from bench.regret import Legs
from intake.columns import to_scans
from intake.master import read_registry, read_sites
from models import predict
from models.calibration import Calibration
from pipelines import params
from pipelines.evaluate import explain, thresholds
from pipelines.label import targets
from pipelines.measures import blocks, explanations
from pipelines.measures.blocks import Block, scored_target
from pipelines.measures.report import Operating, Tree, report
from pipelines.measures.settings import Settings
from pipelines.parts import load_part, pace_of
from pipelines.progress import Progress, say
from pipelines.run import reproduce
from pipelines.workspace import Sources, prepare
from trail.facts import Context
from trail.features import Encoded, encode
from trail.network import Network
from trail.registry import Registry
from trail.scan import Float32, Int64
from trail.sites import Sites
from world.export import write_csv
from world.simulate import Options, World, simulate
from world.tampering import NAMES, SUBTYPES, Truth, tamper

ROOT: Final = Path(__file__).parent.parent
WORLDS: Final = {
    "base": "another seed of the default world",
    "W2": "every observation error 2.5 times as large or as frequent",
    "W3": "another country: no site is known, the network statistics abstain",
    "W4": "legs take 1-10 hours whatever the distance",
    "W5": "a fifth factory, other companies and products",
    "W6": "dwells 1.5 times as long from mid-test on, and the busiest retailer closes",
    "W7": "kinds of tampering that no training part holds",
    "W8": "whole boxes and pallets are tampered with",
}
"""Worlds by their name in `python -m world --held-out`; `base` is W1."""
MODEL: Final = "card"
TRAINED_ON: Final = 7_200_000
"""Scans of the world to train on: some 2,400 lots, 300 of them for calibration."""
TRAINED_SEED: Final = 4000
FIRST_SEED: Final = 9505
"""Seeds of the card's worlds begin here: none of them was used for anything else, and none was
scored before the page that is there. A page of other models takes other seeds.
"""
SHARE: Final = 0.02
"""EPCs tampered with of each type."""
UNSEEN: Final = tuple(s.name for s in SUBTYPES if s.natural_only)
SEEN: Final = tuple(s.name for s in SUBTYPES if not s.natural_only)


@dataclass(frozen=True)
class Asked:
    """What a card is made of.

    Attributes:
        weights: folder of the trained models.
        sequences: folder with the validation and calibration parts, for the stack.
        scans: scans of one world.
        seeds: worlds of a kind.
        worlds: which kinds.
    """

    weights: Path
    sequences: Path
    scans: int
    seeds: int
    worlds: tuple[str, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """Make the card; returns an exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.card", description=__doc__)
    parser.add_argument("--trained-on", type=int, default=TRAINED_ON, help="scans of its world")
    parser.add_argument("--weights", type=Path, help="score these models; train none")
    parser.add_argument("--sequences", type=Path, default=Path("work/sequences"), help="theirs")
    parser.add_argument("--scans", type=int, default=300_000, help="of one world")
    parser.add_argument("--seeds", type=int, default=10, help="worlds of a kind")
    parser.add_argument("--worlds", nargs="*", choices=[*WORLDS, []], help="default all")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmark-card.md"))
    given = parser.parse_args(argv)
    if given.weights is None:
        folder = trained(given.trained_on)
        given.weights, given.sequences = folder / "models/weights", folder / "work/sequences"
    if not (given.weights / "digest.json").is_file():
        print(f"card: {given.weights} holds no trained models; run `make run`", file=sys.stderr)
        return 2
    asked = Asked(
        given.weights,
        given.sequences,
        given.scans,
        given.seeds,
        tuple(given.worlds or WORLDS),
    )
    said = sys.argv[1:] if argv is None else argv
    write(make(asked), given.out, " ".join(["python -m bench.card", *said]))
    say(f"card: {given.out}")
    return 0


def trained(scans: int, model: str = MODEL) -> Path:
    """A workspace with models trained on a world of this many scans; up to date, nothing is done.

    Args:
        scans: about how many; an eighth of its lots are for calibration.
        model: name of the workspace.
    """
    (ROOT / "workspaces").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "workspaces") as made:
        world = Path(made)
        options = ["--out", made, "--scans", str(scans), "--seed", str(TRAINED_SEED)]
        subprocess.run([sys.executable, "-m", "world", *options], check=True)
        sources = Sources(
            model, world / "scans.parquet", world / "sites.csv", registry=world / "registry.csv"
        )
        folder = prepare(ROOT, sources.checked())
    os.environ.setdefault("TRAILWATCH_HOME", str(ROOT))
    with chdir(folder):
        reproduce("train")
    return folder


def make(asked: Asked) -> Carded:
    """Score all worlds and measure them."""
    settings = Settings.read(params.load()["evaluate"])
    where = argparse.Namespace(weights=asked.weights, sequences=asked.sequences)
    operating = thresholds(where, settings, MODELS)
    found: dict[str, Tree] = {}
    base: Block | None = None
    legs: list[Legs] = []
    logits: list[Float32] = []
    drawn: list[explanations.Drawn] = []
    with Progress("card", len(asked.worlds) * asked.seeds, "worlds") as step:
        for name in asked.worlds:
            made = []
            for seed in range(asked.seeds):
                seen = world_seen(name, FIRST_SEED + seed, asked.scans, asked.weights)
                said = predict.logits(asked.weights, seen.encoded)
                scores = scores_of(seen, said, asked)
                made.append(blocks.injected(seen.part, scores, None))
                if name == asked.worlds[0]:
                    legs.append(_legs(seen, scores))
                    logits.append(said[SERVED])
                    drawn = drawn or _drawn(seen, scores, operating[SERVED], settings)
                step(1, name)
            block = together(made)
            found[name] = report(block, operating, settings, NAMES)
            base = block if name == asked.worlds[0] else base
    assert base is not None
    known = load_part(asked.sequences, "calibration")
    return Carded(
        worlds=found,
        said=WORLDS,
        base=base,
        seeds=asked.seeds,
        settings=settings,
        about=f"trained on {_lots(asked.sequences, 'train'):,} lots, calibrated on "
        f"{_lots(asked.sequences, 'calibration'):,}",
        threshold=operating[SERVED].threshold,
        regret=regret.rows(legs),
        ways=calibrating.rows(
            (predict.logits(asked.weights, known)[SERVED], scored_target(known)),
            (np.concatenate(logits), base.target),
        ),
        explained=explain(asked.weights, drawn, settings).tree,
    )


def _lots(sequences: Path, part: str) -> int:
    """Lots of a part; forged codes name lots that never were."""
    of = {n: np.load(sequences / part / f"{n}.npy", mmap_mode="r") for n in ("lot", "synthetic")}
    return len(np.unique(of["lot"][~of["synthetic"]]))


@dataclass(frozen=True)
class Seen:
    """A world, tampered with, as the default run's network sees it: features, and the truth."""

    encoded: Encoded
    part: blocks.Part


def world_seen(
    name: str,
    seed: int,
    scans: int,
    weights: Path,
    share: float = SHARE,
    subtypes: Sequence[str] = (),
) -> Seen:
    """One world of a kind, tampered with and encoded.

    Args:
        name: one of `WORLDS`.
        seed: of everything.
        scans: about how many.
        weights: folder of the trained models, for the network that they learned.
        share: EPCs tampered with of each type.
        subtypes: names of the kinds of tampering; none, those of that world.
    """
    held_out = None if name in ("base", "W7") else name
    world = simulate(Options(seed=seed, scans=scans, natural_share=0.0, held_out=held_out))
    sites, registry = _masters(world)
    intake = to_scans(world.scans, sites)
    subtypes = subtypes or (UNSEEN if name == "W7" else SEEN)
    scope = "box" if name == "W8" else "mix"
    done = tamper(
        intake.scans, intake.sites, share=share, seed=seed, subtypes=subtypes, scope=scope
    )
    # The sites of another country bear numbers that the network knows as other places.
    learned = json.loads((weights / "network.json").read_text())
    network = None if name == "W3" else Network.from_json(learned)
    encoded = encode(done.scans, Context(intake.sites, network, registry))
    return Seen(encoded, _part(encoded, done.truth, targets(done.scans, done.truth)))


def scores_of(seen: Seen, logits: Mapping[str, Float32], asked: Asked) -> dict[str, Float32]:
    """Every model's scores of a world, float32 (n, 5) in [0, 1]."""
    calibration = json.loads((asked.weights / "calibration.json").read_text())
    scores = {"rules": seen.encoded.rules / np.float32(100)}
    return scores | {m: Calibration.from_json(calibration[m])(z) for m, z in logits.items()}


def _legs(seen: Seen, scores: Mapping[str, Float32]) -> Legs:
    return Legs.of(seen.encoded.features, seen.part.target, seen.part.subtype, scores)


def _drawn(
    seen: Seen, scores: Mapping[str, Float32], operating: Operating, settings: Settings
) -> list[explanations.Drawn]:
    """Rightly flagged scans of a world to explain, as many as the evaluation does."""
    part = SimpleNamespace(
        **vars(seen.part), features=seen.encoded.features, offsets=seen.encoded.offsets
    )
    flagged = scores[SERVED] >= operating.threshold
    each = explanations.wanted(params.load()["evaluate"])
    return explanations.draw(part, flagged, None, NAMES, each, settings.seed)


def _masters(world: World) -> tuple[Sites, Registry]:
    """The world's own site master and registry, as an installation keeps them."""
    with tempfile.TemporaryDirectory() as folder:
        sites, registry = Path(folder) / "sites.csv", Path(folder) / "registry.csv"
        write_csv(world.sites, sites)
        write_csv(world.registry, registry)
        return read_sites(sites), read_registry(registry)


def _part(encoded: Encoded, truth: Truth, target: np.ndarray) -> SimpleNamespace:
    """What a block is made of, in trail order; see `blocks.Part`."""
    order, scans = encoded.trails.order, encoded.trails.scans
    touched = np.zeros(len(scans.codes), bool)
    touched[scans.epc[truth.subtype[order] >= 0]] = True
    marks = ("anomaly", "subtype", "grade", "control", "cause", "evidence")
    return SimpleNamespace(
        pace=pace_of(encoded.features),
        target=target[order],
        lot=scans.lot,
        trail=scans.epc.astype(np.int64),
        time_us=scans.time_us,
        op=scans.op,
        synthetic=touched[scans.epc],
        label_source=np.zeros(len(order), np.int8),
        event_id=np.full(len(order), -1, np.int64),
        **{name: getattr(truth, name)[order] for name in marks},
    )


def apart(lots: Sequence[Int64]) -> Int64:
    """Lot keys of several worlds, one after the other: lots of different worlds are different."""
    codes = [np.unique(lot, return_inverse=True)[1] for lot in lots]
    return np.concatenate([code + 1_000_000 * i for i, code in enumerate(codes)])


def together(made: Sequence[Block]) -> Block:
    """Blocks of several seeds as one; lots and trails of different seeds are different."""
    columns: dict[str, Any] = {}
    for column in Block.__slots__:
        values = [getattr(block, column) for block in made]
        if column == "name":
            columns[column] = values[0]
        elif column == "scores":
            columns[column] = {m: np.concatenate([v[m] for v in values]) for m in values[0]}
        elif column == "lot":
            columns[column] = apart(values)
        elif column == "trail":
            before = np.cumsum([0, *(int(v[-1]) + 1 for v in values[:-1])])
            columns[column] = np.concatenate([v + b for v, b in zip(values, before, strict=True)])
        else:
            columns[column] = np.concatenate(values)
    return Block(**columns)


if __name__ == "__main__":
    pa.set_cpu_count(1)
    sys.exit(main())
