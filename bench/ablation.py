"""What each part of the detector is worth: the network trained again without it, or with another.

`python -m bench.ablation` trains a variant at a time on the training part of the default run,
scores worlds that nothing else uses, and writes a Markdown page. With `--keep FILE` a broken run
goes on where it stopped. Differences to the network as it is are paired by lot.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from bench.card import WORLDS as CARD_WORLDS
from bench.card import Seen, together, world_seen
from bench.card_page import table
from models import gbm, lstm
from pipelines import fitting, params
from pipelines.measures import blocks
from pipelines.measures.blocks import Block
from pipelines.measures.bootstrap import ap_replicates, interval, macro
from pipelines.measures.lots import resample
from pipelines.measures.ranking import average_precision, recall_at_fpr
from pipelines.measures.report import POSITIONS
from pipelines.parts import BOXED, STRETCHED, Part, load_part
from pipelines.progress import Progress, say
from trail.features import CONTEXT_OF, FEATURES
from trail.scan import ANOMALIES, Float32
from world.tampering import NAMES

FIRST_SEED: Final = 6000
"""Seeds of the worlds begin here; the benchmark card's are others."""
BASE: Final = "base"
AS_IT_IS: Final = "as it is"
REPLICATES: Final = 1000
FPR: Final = 0.01
NOISE: Final = 0.05
JITTER: Final = 0.05
CONTINUOUS: Final = 100
"""Values that a column has more of to count as continuous."""
COLD: Final = 3
NEW_SCANS: Final = 60_000
MORE_SEED: Final = 7000
LOT_PACE: Final = ("lot_loads_log", "lot_pace", "lot_off_pace")


@dataclass(frozen=True)
class Variant:
    """One change.

    Attributes:
        settings: entries of section `train` of params.yaml that differ.
        learned: what becomes of the training part.
        without: features that are blank, in training and afterwards. Where the size of a reading
            is among them, every item counts alike.
        held: what becomes of the validation part.
        goes_on: training goes on from the network of the default run.
        left_out: subtypes that it never saw.
        boosted: entries of section `train.gbm` of gradient boosting, which is trained in the
            network's stead; None trains the network.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    learned: Callable[[Part, argparse.Namespace], Part] = lambda part, _: part
    without: tuple[str, ...] = ()
    held: Callable[[Part, argparse.Namespace], Part] = lambda part, _: part
    goes_on: bool = False
    left_out: tuple[str, ...] = ()
    boosted: Mapping[str, Any] | None = None


def of_lots(share: float) -> Callable[[Part, argparse.Namespace], Part]:
    """Some of the training lots."""

    def chosen(part: Part, _: argparse.Namespace) -> Part:
        return _trails(part, _some(part.lot[part.offsets[:-1]], share))

    return chosen


def _some(lot: npt.NDArray[np.int64], share: float) -> npt.NDArray[np.bool_]:
    """Trails, given their lots, of some of the lots."""
    lots = np.unique(lot)
    kept = np.random.default_rng(5).permutation(lots)[: round(share * len(lots))]
    return np.isin(lot, kept)


def twice_the_scans(part: Part, asked: argparse.Namespace) -> Part:
    """As many scans of another world besides."""
    return _with(part, *_of_world(BASE, len(part), asked))


def new_factory_too(part: Part, asked: argparse.Namespace) -> Part:
    """The first scans of a world with a fifth factory besides."""
    return _with(part, *_of_world("W5", NEW_SCANS, asked))


def new_factory(part: Part, asked: argparse.Namespace) -> Part:
    """Those, and nothing else."""
    features, target, offsets = _of_world("W5", NEW_SCANS, asked)
    return replace(part, features=features, target=target, offsets=offsets)


def tampered_twice(part: Part, _: argparse.Namespace) -> Part:
    """Every trail that was tampered with a second time."""
    again = _trails(part, _trails_with(part, part.synthetic))
    return _with(part, again.features, again.target, again.offsets)


def jittered(part: Part, _: argparse.Namespace) -> Part:
    """Every trail a second time, its continuous features off by a twentieth of their spread."""
    rng, features = np.random.default_rng(8), part.features.copy()
    for column in range(features.shape[1]):
        if len(np.unique(features[:10_000, column])) > CONTINUOUS:
            spread = JITTER * features[:, column].std()
            features[:, column] += rng.normal(0.0, spread, len(features)).astype(np.float32)
    return _with(part, features, part.target, part.offsets)


def first_scans(part: Part, _: argparse.Namespace) -> Part:
    """Only the first three scans of each trail."""
    place = np.arange(len(part)) - np.repeat(part.offsets[:-1], np.diff(part.offsets))
    size = np.minimum(np.diff(part.offsets), COLD)
    chosen = {name: getattr(part, name)[place < COLD] for name in ("features", "target", "lot")}
    return replace(part, offsets=np.append(0, np.cumsum(size)), **chosen)


def never_seen(*names: str) -> Variant:
    """Without any trail of these kinds of tampering."""
    numbers = [NAMES.index(name) for name in names]

    def learned(part: Part, _: argparse.Namespace) -> Part:
        return _trails(part, ~_trails_with(part, np.isin(part.subtype, numbers)))

    return Variant(learned=learned, left_out=names)


def of_context(name: str) -> tuple[str, ...]:
    """Features of one context."""
    return tuple(feature for feature in FEATURES if CONTEXT_OF[feature] == name)


def without_more(*names: str, share: float = 0.0) -> Callable[[Part, argparse.Namespace], Part]:
    """Without lots that are seen once more in these ways, or with a share of them; they come last,
    stretched, then boxed.
    """

    def learned(part: Part, asked: argparse.Namespace) -> Part:
        heads = part.offsets[:-1]
        end, kept = len(part), np.ones(len(heads), bool)
        for name in reversed((STRETCHED, BOXED)):
            labelled = asked.sequences.parent / "labelled" / f"{name}.parquet"
            first = end - pq.read_metadata(labelled).num_rows
            if name in names:
                mine = (heads >= first) & (heads < end)
                kept[mine] = _some(part.lot[heads[mine]], share)
            end = first
        return _trails(part, kept)

    return learned


def seen_once(part: Part, asked: argparse.Namespace) -> Part:
    """Only the scans that were seen in their whole context; they come first."""
    labelled = asked.sequences.parent / "labelled" / "train.parquet"
    return _trails(part, part.offsets[:-1] < pq.read_metadata(labelled).num_rows)


def flipped(part: Part, _: argparse.Namespace) -> Part:
    """Each label is wrong with a chance of 5 %."""
    wrong = np.random.default_rng(6).random(part.target.shape) < NOISE
    return replace(part, target=np.where(wrong & (part.target >= 0), 1 - part.target, part.target))


def mistaken(part: Part, _: argparse.Namespace) -> Part:
    """A twentieth of the anomalous labels is cleared, and as many honest ones are anomalous."""
    rng, target = np.random.default_rng(7), part.target.copy()
    for k in range(len(ANOMALIES)):
        bad, good = np.flatnonzero(part.target[:, k] == 1), np.flatnonzero(part.target[:, k] == 0)
        wrong = round(NOISE * len(bad))
        target[rng.choice(bad, wrong, replace=False), k] = 0
        target[rng.choice(good, wrong, replace=False), k] = 1
    return replace(part, target=target)


VARIANTS: Final[dict[str, Variant]] = {
    AS_IT_IS: Variant(),
    "another seed": Variant({"seed": 1013}),
    "gradient boosting": Variant(boosted={}),
    "gradient boosting, faster is never less of a jump": Variant(boosted={"monotone": True}),
    "looks back on 5 scans": Variant({"length": 5}),
    "looks back on 10 scans": Variant({"length": 10}),
    "looks back on 15 scans": Variant({"length": 15}),
    "48 hidden units": Variant({"hidden": 48}),
    "128 hidden units": Variant({"hidden": 128}),
    "one layer": Variant({"layers": 1}),
    "attention": Variant({"attention": True}),
    "two levels: the item, box and lot": Variant({"hierarchical": True}),
    "focal loss": Variant({"loss": "focal"}),
    "what a search found (docs/decisions.md)": Variant(
        {"length": 10, "hidden": 128, "dropout": 0.5, "loss": "focal", "learning_rate": 0.0037}
    ),
    "no dropout": Variant({"dropout": 0.0}),
    "no running average": Variant({"average": 0.0}),
    "without box and lot": Variant(without=of_context("box and lot")),
    "without the network": Variant(without=of_context("network")),
    "without the code": Variant(without=of_context("code")),
    "without the rules": Variant(without=of_context("rules")),
    "without the lot's pace": Variant(without=LOT_PACE),
    "every item counts alike": Variant({"crowd_exponent": 0.0}),
    "no lots on unknown roads": Variant(learned=without_more(STRETCHED)),
    "a quarter of those lots": Variant(learned=without_more(STRETCHED, share=0.25)),
    "no whole boxes": Variant(learned=without_more(BOXED)),
    "neither, and every item counts alike": Variant(
        {"crowd_exponent": 0.0}, learned=without_more(STRETCHED, BOXED)
    ),
    "no scan without its context": Variant(learned=seen_once),
    "twice the scans": Variant(learned=twice_the_scans),
    "half of the lots": Variant(learned=of_lots(0.5)),
    "a quarter of the lots": Variant(learned=of_lots(0.25)),
    "5 % of labelled anomalies wrong": Variant(learned=mistaken),
    "5 % of all labels flipped": Variant(learned=flipped),
    "anomalous scans count by their costs": Variant(
        {"positive_weight": {"locErr": 0.25, "jump": 4}}
    ),
    "batches stratified by week": Variant({"stratified": True}),
    "tampered trails twice": Variant(learned=tampered_twice),
    "jittered trails too": Variant(learned=jittered),
    "cold: three scans a trail": Variant({"length": COLD}, learned=first_scans, held=first_scans),
    "60,000 scans of a new factory too": Variant(learned=new_factory_too),
    "fine-tuned on 60,000 scans of a new factory": Variant(
        {"epochs": 4, "learning_rate": 0.0004}, learned=new_factory, goes_on=True
    ),
    "never saw the blatant": never_seen(
        "fake_malformed", "dup_far_at_once", "loc_tier_mismatch", "order_swapped", "jump_minute"
    ),
    "never saw grade 1": never_seen(
        "fake_unknown_product",
        "dup_far_in_hours",
        "loc_unused_edge",
        "order_second_inbound",
        "jump_fast",
    ),
    "never saw grade 2": never_seen(
        "fake_serial_beyond",
        "dup_at_shop_already",
        "loc_wrong_market",
        "order_before_leaving",
        "jump_route_share",
    ),
    "never saw grade 3": never_seen(
        "fake_never_commissioned",
        "dup_second_sale",
        "loc_strays",
        "order_just_before_leaving",
        "jump_before_pallet",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is asked for, and write the page; returns an exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.ablation", description=__doc__)
    parser.add_argument("--weights", type=Path, default=Path("models/weights"))
    parser.add_argument("--sequences", type=Path, default=Path("work/sequences"))
    parser.add_argument("--scans", type=int, default=400_000, help="of one world")
    parser.add_argument("--seeds", type=int, default=2, help="worlds of the default kind")
    parser.add_argument("--worlds", nargs="*", default=["W2", "W3", "W4", "W5"], help="one of each")
    parser.add_argument("--only", nargs="*", choices=[*VARIANTS, []], help="default all")
    parser.add_argument("--keep", type=Path, help="a file of results, read and added to")
    parser.add_argument("--out", type=Path, default=Path("docs/ablations.md"))
    asked = parser.parse_args(argv)
    if not (asked.weights / "digest.json").is_file():
        print(f"ablation: {asked.weights} holds no model; run `make run`", file=sys.stderr)
        return 2
    unknown = set(asked.worlds) - set(CARD_WORLDS)
    if unknown:
        parser.error(f"--worlds {' '.join(sorted(unknown))}; there are {', '.join(CARD_WORLDS)}")
    said = sys.argv[1:] if argv is None else argv
    found = dict(results(asked))
    asked.out.write_text(page(found, shlex.join(["python", "-m", "bench.ablation", *said])) + "\n")
    say(f"ablation: {asked.out}")
    return 0


Figures = dict[str, dict[str, Any]]
"""Of each world: AP by type, and the replicates of their mean."""


def results(asked: argparse.Namespace) -> Iterator[tuple[str, Figures]]:
    """Each variant's figures, kept or computed."""
    # All the others are compared with the network as it is.
    only = [AS_IT_IS, *asked.only] if asked.only else VARIANTS
    wanted = [name for name in VARIANTS if name in only]
    key = [asked.scans, asked.seeds, *asked.worlds]
    kept: dict[str, Figures] = {}
    if asked.keep is not None and asked.keep.exists():
        for line in asked.keep.read_text().splitlines():
            how, name, figures = json.loads(line)
            if how == key:
                kept[name] = figures
    worlds = _worlds(asked) if set(wanted) - set(kept) else {}
    for name in wanted:
        if name not in kept:
            kept[name] = _tried(name, asked, worlds)
            if asked.keep is not None:
                with asked.keep.open("a") as file:
                    file.write(json.dumps([key, name, kept[name]]) + "\n")
        yield name, kept[name]


def _worlds(asked: argparse.Namespace) -> dict[str, list[Seen]]:
    """Worlds as the network of the default run sees them."""
    seeds = {BASE: asked.seeds, **dict.fromkeys(asked.worlds, 1)}
    made: dict[str, list[Seen]] = {}
    with Progress("worlds", sum(seeds.values()), "worlds") as step:
        for name, count in seeds.items():
            made[name] = []
            for seed in range(count):
                made[name].append(world_seen(name, FIRST_SEED + seed, asked.scans, asked.weights))
                step(1, name)
    return made


def _tried(name: str, asked: argparse.Namespace, worlds: Mapping[str, list[Seen]]) -> Figures:
    """Train one variant and measure it in every world."""
    variant = VARIANTS[name]
    settings = {**params.load()["train"], **variant.settings}
    learned, held = (load_part(asked.sequences, part) for part in ("train", "validation"))
    learned, held = variant.learned(learned, asked), variant.held(held, asked)
    learned, held = (
        replace(part, features=_blank(part.features, variant.without)) for part in (learned, held)
    )
    say(f"{name}: {len(learned.features):,} scans to learn from")
    with tempfile.TemporaryDirectory() as folder:
        train = _network if variant.boosted is None else _boosted
        logits = train(variant, settings, learned, held, asked, Path(folder))
        return {
            world: _measured(together([_scored(seen, logits, variant.without) for seen in several]))
            for world, several in worlds.items()
        }


Logits = Callable[[Float32, npt.NDArray[np.int64]], Float32]
"""Log-odds (n, 5) of features (n, F) in trails with these boundaries."""


def _network(
    variant: Variant,
    settings: Mapping[str, Any],
    learned: Part,
    held: Part,
    asked: argparse.Namespace,
    folder: Path,
) -> Logits:
    start = None
    if variant.goes_on:
        shape = lstm.Shape(**json.loads((asked.weights / "lstm.json").read_text()))
        start = lstm.load(shape, asked.weights / "lstm.safetensors")
    fitted = fitting.fit(learned, held, settings, folder / "c", lambda *_: None, start)
    return partial(lstm.logits, fitted.network)


def _boosted(
    variant: Variant,
    settings: Mapping[str, Any],
    learned: Part,
    held: Part,
    _: argparse.Namespace,
    folder: Path,
) -> Logits:
    weights = fitting.weights(learned, settings), fitting.weights(held, settings)
    known = (learned.features, learned.target, held.features, held.target)
    gbm.fit(*known, {**settings["gbm"], **(variant.boosted or {})}, folder, weights)
    return lambda features, _: gbm.logits(folder, features)


def _scored(seen: Seen, logits: Logits, without: Sequence[str]) -> Block:
    features = _blank(seen.encoded.features, without)
    scores = {"lstm": logits(features, seen.encoded.offsets)}
    return blocks.injected(seen.part, scores, None)


def _measured(block: Block) -> dict[str, Any]:
    draws = resample(block.lot, REPLICATES, seed=17)
    ap, replicates, recall = {}, [], {}
    position: dict[str, list[float]] = {name: [] for name in POSITIONS}
    for k, kind in enumerate(ANOMALIES):
        counted = block.target[:, k] >= 0
        positive, score = block.target[counted, k] == 1, block.scores["lstm"][counted, k]
        ap[kind] = average_precision(score, positive)
        replicates.append(ap_replicates(score, positive, draws, draws.code[counted]))
        subtype, place = block.subtype[counted], block.position[counted]
        for number in np.unique(subtype[positive]):
            mine = score[positive & (subtype == number)]
            recall[NAMES[number]] = recall_at_fpr(mine, score[~positive], FPR)
        for name, (first, last) in POSITIONS.items():
            there = (place >= first) & (place <= last)
            position[name].append(average_precision(score[there], positive[there]))
    return {
        "ap": ap,
        "map": macro(replicates).round(5).tolist(),
        "recall": recall,
        "position": {name: float(np.nanmean(values)) for name, values in position.items()},
    }


def _of_world(name: str, scans: int, asked: argparse.Namespace) -> tuple[Any, ...]:
    """Features, targets and offsets of a world that nothing else uses."""
    share = params.load()["label"]["share_train"]
    more = world_seen(name, MORE_SEED, scans, asked.weights, share)
    return more.encoded.features, more.part.target, more.encoded.offsets


def _with(part: Part, features: Any, target: Any, offsets: Any) -> Part:
    """A part and more trails, as far as training looks at them."""
    return replace(
        part,
        features=np.concatenate([part.features, features]),
        target=np.concatenate([part.target, target]),
        offsets=np.concatenate([part.offsets, part.offsets[-1] + offsets[1:]]),
    )


def _trails_with(part: Part, scans: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Trails that have one of these scans."""
    return np.asarray(np.logical_or.reduceat(scans, part.offsets[:-1]))


def _trails(part: Part, kept: npt.NDArray[np.bool_]) -> Part:
    """Some trails of a part, with all that is known of them."""
    size = np.diff(part.offsets)
    rows = np.repeat(kept, size)
    offsets = np.concatenate([[0], np.cumsum(size[kept])]).astype(np.int64)
    columns = (column.name for column in fields(Part) if column.name != "offsets")
    return replace(part, offsets=offsets, **{name: getattr(part, name)[rows] for name in columns})


def _blank(features: Float32, names: Sequence[str]) -> Float32:
    """The features with some of them set to 0."""
    if not names:
        return features
    features = features.copy()
    features[:, [FEATURES.index(name) for name in names]] = 0
    return features


def page(found: Mapping[str, Figures], command: str) -> str:
    """The results as Markdown."""
    as_it_is = found[AS_IT_IS]
    worlds = list(as_it_is)
    lines = [
        "# What each part is worth",
        f"Written by `{command}`: the network trained again with one thing changed, on the "
        "training part of the default run, and asked about worlds that nothing else uses. Macro "
        "average precision of the injected block; differences to the network as it is with 95 % "
        "intervals, paired by lot. Worlds as in [the benchmark card](benchmark-card.md). One "
        "training of each: *another seed* shows what chance alone does.",
        table(
            ["variant", *ANOMALIES, "macro AP, base", "difference", *worlds[1:]],
            [_row(name, figures, as_it_is) for name, figures in found.items()],
        ),
        "The last columns are differences of macro AP to the network as it is in that world.",
        *_by_position(found),
        *_left_out(found),
    ]
    return "\n\n".join(lines)


def _by_position(found: Mapping[str, Figures]) -> list[str]:
    """The network and a cold one, at the first scans of trails."""
    rows = [
        (name, figures[BASE]["position"])
        for name, figures in found.items()
        if name == AS_IT_IS or VARIANTS[name].settings.get("length") == COLD
    ]
    if len(rows) < 2:
        return []
    return [
        "## The first scans of a trail",
        "Macro AP by the place of the scan in its trail, base. A network that was trained on the "
        "first three scans of trails alone would have to be better at them to be worth serving.",
        table(
            ["variant", *POSITIONS],
            [[name, *(f"{at[p]:.3f}" for p in POSITIONS)] for name, at in rows],
        ),
    ]


def _left_out(found: Mapping[str, Figures]) -> list[str]:
    """Recall of kinds of tampering that a variant never saw."""
    rows, seen = [], found[AS_IT_IS][BASE]["recall"]
    for name, figures in found.items():
        for kind in VARIANTS[name].left_out:
            recall = figures[BASE]["recall"].get(kind, math.nan)
            rows.append((name, kind, recall, seen.get(kind, math.nan)))
    if not rows:
        return []
    mean = float(np.nanmean([recall for _, _, recall, _ in rows]))
    return [
        "## Kinds of tampering that it never saw (held-out world W7)",
        "A kind of each type at a time is left out of training. Recall at 1 % false positives, "
        f"base: {mean:.2f} on average over the {len(rows)} kinds.",
        table(
            ["left out", "kind", "recall", "recall where it was seen"],
            [[name, f"`{kind}`", f"{r:.3f}", f"{s:.3f}"] for name, kind, r, s in rows],
        ),
    ]


def _row(name: str, figures: Figures, as_it_is: Figures) -> list[str]:
    cells = [f"{figures[BASE]['ap'][kind]:.3f}" for kind in ANOMALIES]
    cells.append(f"{_mean(figures[BASE]):.3f}")
    for world in figures:
        if name == AS_IT_IS:
            cells.append("" if world == BASE else f"{_mean(figures[world]):.3f}")
            continue
        drawn = np.array(figures[world]["map"]) - np.array(as_it_is[world]["map"])
        one = interval(_mean(figures[world]) - _mean(as_it_is[world]), drawn)
        bounds = f" [{one.low:+.3f}, {one.high:+.3f}]" if world == BASE else ""
        cells.append(f"{one.mid:+.3f}{bounds}")
    return [name, *cells]


def _mean(figures: Mapping[str, Any]) -> float:
    return float(np.mean(list(figures["ap"].values())))


if __name__ == "__main__":
    pa.set_cpu_count(1)
    sys.exit(main())
