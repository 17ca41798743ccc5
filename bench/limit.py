"""How well a jump can be told at all: what times typed by hand cost, and what more lots bring.

An item whose time was typed an hour too early is recorded as one that came before its pallet; so is
an item that did. A box whose departure was recorded late seems to have been quick. `python -m
bench.limit` judges movements of worlds that nothing else uses by the models of a run, and by
gradient boosting that was fed with one to sixty-four worlds of its own. Each is measured with
all honest scans, and without those whose times are wrong, which only the world knows; and the other
way about, with no honest scans but these. For that there is one more judge, that learned nothing
but to tell these from jumps. It writes a Markdown page.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from bench.card import SHARE, apart, world_seen
from bench.card_page import table
from models import gbm, predict
from pipelines import fitting, params
from pipelines.measures.bootstrap import ap_replicates, interval
from pipelines.measures.lots import Int64, resample
from pipelines.measures.ranking import Bool, average_precision
from pipelines.progress import Progress, say
from trail.features import FEATURES
from trail.scan import ANOMALIES, Anomaly, Float32, Scans
from world.simulate import Options, ground_of, honest_scans, observed
from world.tampering import draft

FED_SEED: Final = 20_000
"""Seeds of the worlds that feed boosting begin here; the last of them stops it."""
ASKED_SEED: Final = 21_000
"""Seeds of the worlds that are judged begin here."""
REPLICATES: Final = 1000


@dataclass(frozen=True)
class Movements:
    """Scans after a movement, of one or more worlds, that count for `jump`.

    Attributes:
        features: float32 (n, F).
        jump: bool (n,).
        typed: bool (n,), honest, and its time or that of the scan before was typed by hand.
        late: bool (n,), the same of boxes that were recorded late.
        lot: int64 (n,), lots of different worlds are different.
        scores: float32 (n,) by judge.
    """

    features: Float32
    jump: Bool
    typed: Bool
    late: Bool
    lot: Int64
    scores: Mapping[str, Float32]

    @property
    def wrong(self) -> Bool:
        """Honest, but typed by hand or recorded late, bool (n,)."""
        return self.typed | self.late

    def where(self, kept: Bool) -> Movements:
        """Those that are kept, bool (n,)."""
        return Movements(
            self.features[kept],
            self.jump[kept],
            self.typed[kept],
            self.late[kept],
            self.lot[kept],
            {judge: score[kept] for judge, score in self.scores.items()},
        )

    @classmethod
    def together(cls, several: Sequence[Movements]) -> Movements:
        """Movements of several worlds."""
        columns = {
            name: np.concatenate([getattr(one, name) for one in several])
            for name in ("features", "jump", "typed", "late")
        }
        return cls(
            lot=apart([one.lot for one in several]),
            scores={
                judge: np.concatenate([one.scores[judge] for one in several])
                for judge in several[0].scores
            },
            **columns,
        )


def recorded_wrongly(options: Options, *right: Mapping[str, float]) -> list[Bool]:
    """Which scans of a world, in the order of its table, have a time that an error changed.

    The same world is recorded once more without the error: its random draws are the same, so that
    what differs was wrong.

    Args:
        options: of a world that hides no tampering.
        right: for each error, entries of the profile without it: `manual_sd_h` 0 is without times
            typed by hand, `late_mean_h` 0 without boxes that are recorded late.
    """
    options = options.checked()
    ground = ground_of(options)
    honest = honest_scans(ground, options.lot_count())
    still = draft(honest, ground.network.sites, share=0.0, seed=ground.seed)

    def recorded(without: Mapping[str, Any]) -> pd.MultiIndex:
        profile = replace(ground.profile, **without)
        return _keys(observed(replace(ground, profile=profile), still)[0])

    known = recorded({})
    return [np.asarray(~known.isin(recorded(without))) for without in right]


def _keys(scans: Scans) -> pd.MultiIndex:
    return pd.MultiIndex.from_arrays([scans.epc, scans.site, scans.op, scans.time_us])


def movements(
    seed: int, scans: int, weights: Path, share: float, judged: bool = False
) -> Movements:
    """Movements of one world of the default kind, judged by the models in `weights` or not."""
    seen = world_seen("base", seed, scans, weights, share)
    features, target = seen.encoded.features, seen.part.target[:, Anomaly.JUMP]
    kept = (features[:, FEATURES.index("km_log")] > 0) & (target >= 0)
    options = Options(seed=seed, scans=scans, natural_share=0.0)
    row = seen.encoded.trails.scans.row
    honest = seen.part.subtype < 0
    scores = predict.logits(weights, seen.encoded) if judged else {}

    def movement(wrong: Bool) -> Bool:
        there = (row >= 0) & wrong[np.maximum(row, 0)]
        # A movement, so never the first scan of a trail: the one before is of the same trail.
        return np.asarray(((there | np.roll(there, 1)) & honest)[kept])

    typed, late = recorded_wrongly(options, {"manual_sd_h": 0.0}, {"late_mean_h": 0.0})
    return Movements(
        features[kept],
        target[kept] == 1,
        movement(typed),
        movement(late),
        seen.part.lot[kept],
        {judge: score[kept, Anomaly.JUMP] for judge, score in scores.items()},
    )


def boosted(known: Movements, held: Movements, asked: Movements) -> Float32:
    """What boosting of `jump` alone, as the pipeline trains it, says of the asked, float32 (n,)."""
    settings = params.load()["train"]
    say(f"boosting: {len(known.jump):,} movements to learn from")

    def taught(part: Movements) -> tuple[Float32, npt.NDArray[np.int8], Float32]:
        target = np.full((len(part.jump), len(ANOMALIES)), -1, np.int8)
        target[:, Anomaly.JUMP] = part.jump
        # All that the weights ask of a part are its features.
        alike = SimpleNamespace(features=part.features)
        return part.features, target, fitting.weights(alike, settings)  # type: ignore[arg-type]

    mine, target, weight = taught(known)
    other, held_target, held_weight = taught(held)
    with tempfile.TemporaryDirectory() as made:
        folder, weights = Path(made), (weight, held_weight)
        gbm.fit(mine, target, other, held_target, settings["gbm"], folder, weights)
        return gbm.logits(folder, asked.features)[:, Anomaly.JUMP]


def judges(asked: argparse.Namespace) -> tuple[Movements, dict[str, Float32]]:
    """The movements that are judged, and what each judge says of them."""
    share = params.load()["label"]["share_train"]
    most = max(asked.fed)
    with Progress("worlds", asked.worlds + most + 1, "worlds") as step:

        def made(first: int, count: int, part: float, judged: bool) -> Iterator[Movements]:
            for seed in range(first, first + count):
                yield movements(seed, asked.scans, asked.weights, part, judged)
                step(1, f"seed {seed}")

        whole = Movements.together(list(made(ASKED_SEED, asked.worlds, SHARE, True)))
        fed = list(made(FED_SEED, most + 1, share, False))
    said = dict(whole.scores)
    for count in asked.fed:
        known = Movements.together(fed[:count])
        said[_fed(count)] = boosted(known, fed[-1], whole)
    *told, held = (one.where(one.jump | one.wrong) for one in fed)
    name = f"{_fed(most)}, only jumps and wrong times"
    said[name] = boosted(Movements.together(told), held, whole)
    return whole, said


def _fed(worlds: int) -> str:
    return f"boosting of {worlds} more world{'s' * (worlds > 1)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Judge, measure, write; returns an exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.limit", description=__doc__)
    parser.add_argument("--weights", type=Path, default=Path("models/weights"))
    parser.add_argument("--scans", type=int, default=300_000, help="of one world")
    parser.add_argument("--worlds", type=int, default=12, help="that are judged")
    parser.add_argument("--fed", type=int, nargs="+", default=[1, 4, 16, 64], help="worlds")
    parser.add_argument("--out", type=Path, default=Path("docs/limit.md"))
    asked = parser.parse_args(argv)
    if not (asked.weights / "digest.json").is_file():
        print(f"limit: {asked.weights} holds no trained models; run `make run`", file=sys.stderr)
        return 2
    said = sys.argv[1:] if argv is None else argv
    command = shlex.join(["python", "-m", "bench.limit", *said])
    asked.out.write_text(page(*judges(asked), command) + "\n")
    say(f"limit: {asked.out}")
    return 0


def page(whole: Movements, said: Mapping[str, Float32], command: str) -> str:
    """The figures as Markdown."""
    honest = ~whole.jump
    every = np.ones(len(honest), bool)
    rows = [
        [
            judge,
            _ap(score, whole, every),
            _ap(score, whole, ~whole.typed),
            _ap(score, whole, ~whole.wrong),
            _ap(score, whole, whole.jump | whole.wrong),
            *(f"{share:.0%}" for share in _among_false(score, whole)),
        ]
        for judge, score in said.items()
    ]
    head = [
        "judge",
        "all honest scans",
        "none typed by hand",
        "none recorded late either",
        "only those typed or late",
        "typed, of the honest above half of the jumps",
        "late, of them",
    ]
    return "\n\n".join(
        [
            "# How well a jump can be told",
            f"Written by `{command}`: average precision of `jump`, with 95 % intervals by lot, on "
            f"{honest.sum():,} honest movements and {whole.jump.sum():,} jumps of worlds that "
            "nothing else uses. The first rows are the models of a run; the others are gradient "
            "boosting of this one type, fed with worlds of as many scans, the last with nothing "
            "but jumps and wrong times. A movement counts as typed by hand or recorded "
            "late where its own time or that of the scan before is.",
            table(head, rows),
            f"{whole.typed.sum() / honest.sum():.1%} of the honest movements have a time that was "
            "typed by hand, off by a normal error of an hour, and "
            f"{whole.late.sum() / honest.sum():.1%} belong to a box that was recorded late, by an "
            "hour on average. An item whose arrival was typed too early is recorded alone, before "
            "its pallet; a jump of a single item is recorded just so. When it is scanned, nothing "
            "but the length of the leg can tell one from the other, and where lorries take two to "
            "three hours that says little.",
        ]
    )


def _ap(score: Float32, whole: Movements, kept: Bool) -> str:
    draws = resample(whole.lot, REPLICATES, seed=17)
    drawn = ap_replicates(score[kept], whole.jump[kept], draws, draws.code[kept])
    found = interval(average_precision(score[kept], whole.jump[kept]), drawn)
    return f"{found.mid:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _among_false(score: Float32, whole: Movements) -> tuple[float, float]:
    """Shares typed by hand and recorded late of the honest ranked above half of the jumps."""
    above = ~whole.jump & (score >= np.quantile(score[whole.jump], 0.5))
    if not above.any():
        return float("nan"), float("nan")
    return float(whole.typed[above].mean()), float(whole.late[above].mean())


if __name__ == "__main__":
    pa.set_cpu_count(1)
    sys.exit(main())
