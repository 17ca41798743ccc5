"""Stage label: validated -> work/labelled: the split in time, injected truth, the rules' labels.

Three kinds of label are kept apart: weak labels of the rules (never the truth), injected ground
truth, and analysts' verdicts, which override. Lots are split by commissioning date and each part
ends where the next begins; tampering is injected after the split, separately in each part.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from intake.master import read_registry, read_sites
from intake.store import load_scans, to_table
from intake.table import Intake
from pipelines import params, verdicts
from pipelines.parts import (
    AGAIN,
    BOXED,
    FOLDS,
    MORE,
    PARTS,
    STRETCHED,
    LabelSource,
    fold_of,
    some_lots,
)
from pipelines.progress import Progress, say
from pipelines.stretching import stretched
from trail import network
from trail.facts import Context, facts_of, previous_of
from trail.registry import Registry
from trail.rules import judge
from trail.scan import ANOMALIES, Op, Scans
from trail.sites import Sites
from trail.trails import sort
from world.tampering import NAMES, SUBTYPES, Truth, tamper

Int64 = npt.NDArray[np.int64]


def main(argv: list[str] | None = None) -> int:
    """Run the stage; see `--help`."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.label", description=__doc__)
    parser.add_argument("--validated", type=Path, default=Path("work/validated"))
    parser.add_argument("--out", type=Path, default=Path("work/labelled"))
    asked = parser.parse_args(argv)
    label(asked.validated, asked.out, params.load()["label"])
    return 0


def label(validated: Path, out: Path, settings: dict[str, Any]) -> None:
    """Split, fit the network on the training part, inject, judge by rules, and write the parts."""
    intake = load_scans(validated / "scans.parquet", read_sites(validated / "sites.csv"))
    listed = validated / "registry.csv"
    registry = read_registry(listed) if listed.exists() else Registry.none()
    parts, summary = split(intake.scans, settings["parts"])
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    learned = _network(parts["train"], intake.sites)
    (out / "network.json").write_text(json.dumps(learned.to_json()) + "\n")
    folds = [(n or learned).to_json() for n in _without_each_fold(parts["train"], intake.sites)]
    (out / "network_folds.json").write_text(json.dumps(folds) + "\n")
    context = Context(intake.sites, learned, registry)
    said, ids = verdicts.read(validated), EventIds(intake)
    next_row = int(intake.scans.row.max()) + 1
    lawful = _lawful(intake.scans, parts)
    for name, (scans, shown) in _more(parts["train"], settings).items():
        parts[name], lawful[name] = scans, shown
    with Progress("label", len(parts), "parts") as step:
        for i, name in enumerate((*PARTS, *MORE)):
            scans, truth = _inject(parts[name], lawful[name], intake.sites, settings, name, i)
            scans = _number(scans, next_row)
            next_row = max(next_row, int(scans.row.max(initial=-1)) + 1)
            table = _columns(_of(intake, scans), truth, context, said, ids)
            pq.write_table(table, out / f"{name}.parquet", compression="zstd", compression_level=1)
            if name in PARTS:
                summary["parts"][name] |= _counts(scans, truth)
            step(1, f"{name}: {len(scans):,} scans")
    (out / "summary.json").write_text(json.dumps(summary, indent=1, sort_keys=True) + "\n")
    for name in PARTS:
        of = summary["parts"][name]
        say(f"label: {name}: {of['lots']:,} lots, {of['scans']:,} scans, {of['injected']}")


def _lawful(scans: Scans, parts: Mapping[str, Scans]) -> dict[str, Scans]:
    """The scans that show what is lawful and usual in each part: its own and those of all before.

    A few lots do not use every lawful edge: one that only the training lots used is no anomaly.
    """
    shown, seen = {}, np.zeros(len(scans), bool)
    for name in PARTS:
        seen = seen | np.isin(scans.row, parts[name].row)
        shown[name] = scans.take(seen)
    return shown


def _more(scans: Scans, settings: dict[str, Any]) -> dict[str, tuple[Scans, Scans]]:
    """What is seen of the training lots besides, and the scans that show what is lawful and usual
    there; nothing is seen for a share of 0.
    """
    seed = int(settings["seed"])

    def some(of: Scans, share: float, seed: int) -> tuple[Scans, Scans]:
        return of.take(some_lots(of, share, seed) if share else np.empty(0, np.intp)), of

    return {
        AGAIN: (scans, scans),
        STRETCHED: some(stretched(scans, seed), float(settings["stretched"]), seed),
        BOXED: some(scans, float(settings["boxed"]), seed + 1),
    }


def _network(scans: Scans, sites: Sites) -> network.Network:
    honest = sort(scans)
    return network.fit(honest.scans, previous_of(honest.starts), sites)


def _without_each_fold(scans: Scans, sites: Sites) -> Iterator[network.Network | None]:
    """For each fold the network of the other lots, None where there are none.

    A model that learned from lots against a network counted on those same lots would never meet an
    edge that is new, or a leg that the quantiles do not hold yet, in honest goods.
    """
    fold = fold_of(scans.lot)
    for k in range(FOLDS):
        others = np.flatnonzero(fold != k)
        yield _network(scans.take(others), sites) if len(others) else None


def split(scans: Scans, shares: dict[str, float]) -> tuple[dict[str, Scans], dict[str, Any]]:
    """Parts by the lots' commissioning dates, each ending where the next begins.

    Args:
        scans: all validated scans.
        shares: share of the scans that each part gets, by name; they sum to 1.

    Returns:
        The parts, and a summary for people. Where nearly all lots were commissioned at once, an
        end in time would leave nothing of a part: then only the lots are kept apart, and the
        summary says so.

    Raises:
        ValueError: there are fewer than 8 lots.
    """
    lot, code = np.unique(scans.lot, return_inverse=True)
    if len(lot) < 2 * len(PARTS):
        raise ValueError(
            f"{len(lot)} lots are too few to split; give at least {2 * len(PARTS)}, or train on a "
            "simulated world over your network: make run MODEL=... SITES=... LEGS=..."
        )
    born_us = commissioned_us(scans, code, len(lot))
    order = np.lexsort((lot, born_us))
    size = np.bincount(code, minlength=len(lot))
    upto = np.cumsum(size[order]) / len(scans)
    edges = np.cumsum([shares[name] for name in PARTS])[:-1]
    part_of = np.empty(len(lot), dtype=np.int64)
    part_of[order] = np.searchsorted(edges, upto - size[order] / len(scans), side="right")
    begins = [int(born_us[part_of == i].min(initial=2**62)) for i in range(len(PARTS))] + [2**62]
    mine = part_of[code]
    in_time = scans.time_us < np.array(begins)[mine + 1]
    cut = bool(in_time.mean() > 0.5)
    keep = in_time if cut else np.ones(len(scans), bool)
    parts = {name: scans.take((mine == i) & keep) for i, name in enumerate(PARTS)}
    summary = {
        "cut_in_time": cut,
        "after_the_end_of_their_part": int((~in_time).sum()) if cut else 0,
        "parts": {
            name: {"lots": int((part_of == i).sum()), "begins": _day(begins[i])}
            for i, name in enumerate(PARTS)
        },
    }
    return parts, summary


def commissioned_us(scans: Scans, code: Int64, lots: int) -> Int64:
    """When each lot was commissioned, int64 (lots,): its first commissioning scan, else the
    manufacture date in its codes, else its first scan.
    """
    never = np.int64(2**62)
    first, born = np.full(lots, never), np.full(lots, never)
    np.minimum.at(first, code, scans.time_us)
    commissioning = scans.op == Op.AGGREGATION
    np.minimum.at(born, code[commissioning], scans.time_us[commissioning])
    made = np.full(lots, never)
    day = scans.codes.made_day[scans.epc].astype(np.int64) * 86_400_000_000
    readable = day >= 0
    np.minimum.at(made, code[readable], day[readable])
    made = np.minimum(made, first)
    return np.where(born < never, born, made)


def _day(time_us: int) -> str:
    return str(np.datetime64(time_us, "us").astype("datetime64[D]")) if time_us < 2**61 else "never"


def _inject(
    scans: Scans,
    lawful: Scans,
    sites: Sites,
    settings: dict[str, Any],
    name: str,
    number: int,
) -> tuple[Scans, Truth]:
    """Tamper with a part; training may leave subtypes out, no other part does.

    What is lawful and usual is learned from `lawful`.
    """
    training = name == "train" or name in MORE
    share = settings["share_train"] if training else settings["share"]
    left_out = set(settings["leave_out"]) if training else set()
    unknown = left_out - set(NAMES)
    if unknown:
        raise ValueError(f"label.leave_out has {sorted(unknown)[0]!r}; use names of {NAMES}")
    wanted = {s.name for s in SUBTYPES if not s.natural_only} - left_out
    seed = int(settings["seed"]) + number
    done = tamper(
        scans,
        sites,
        share=float(share),
        seed=seed,
        subtypes=wanted,
        scope="box" if name == BOXED else "mix",
        known=lawful,
    )
    return done.scans, done.truth


def _number(scans: Scans, first: int) -> Scans:
    """Give injected scans row numbers of their own, beyond those of the input."""
    row = scans.row.copy()
    new = np.flatnonzero(row < 0)
    row[new] = first + np.arange(len(new))
    return replace(scans, row=row)


def targets(scans: Scans, truth: Truth) -> npt.NDArray[np.int8]:
    """Targets int8 (n, 5): 1 from the evidence on, -1 where it cannot be known, else 0."""
    n = len(scans)
    target = np.zeros((n, len(ANOMALIES)), dtype=np.int8)
    known_us = np.full(len(scans.codes), 2**62)
    seen = np.flatnonzero(truth.evidence)
    np.minimum.at(known_us, scans.epc[seen], scans.time_us[seen])
    cause = np.flatnonzero(truth.cause & (truth.anomaly >= 0))
    known = (scans.time_us[cause] >= known_us[scans.epc[cause]]) & ~truth.control[cause]
    blurred = (truth.blur[:, None] >> np.arange(len(ANOMALIES))) & 1
    target[blurred.astype(bool)] = -1
    target[cause, truth.anomaly[cause]] = np.where(known, 1, -1)
    return target


def _columns(
    intake: Intake, truth: Truth, context: Context, said: verdicts.Said, ids: EventIds
) -> pa.Table:
    scans = intake.scans
    target = targets(scans, truth)
    tampered = np.zeros(len(scans.codes), dtype=bool)
    tampered[scans.epc[truth.subtype >= 0]] = True
    synthetic = tampered[scans.epc]
    source = np.where(synthetic, LabelSource.INJECTED, LabelSource.ASSUMED_HONEST)
    event_id = ids.of(scans)
    verdicts.override(said, scans, event_id, target, source)
    weak = _weak_labels(scans, context)
    table = to_table(intake)
    columns: dict[str, npt.NDArray[np.generic]] = {
        "event_id": event_id,
        "anomaly": truth.anomaly,
        "subtype": truth.subtype,
        "grade": truth.grade,
        "control": truth.control,
        "cause": truth.cause,
        "evidence": truth.evidence,
        "is_synthetic": synthetic,
        "label_source": source.astype(np.int8),
    }
    for k, name in enumerate(ANOMALIES):
        columns[f"target_{name}"] = target[:, k]
        columns[f"rule_{name}"] = weak[:, k]
    for name, column in columns.items():
        table = table.append_column(name, pa.array(column))
    return table


def _of(intake: Intake, scans: Scans) -> Intake:
    return replace(intake, scans=scans, read=len(scans), event_id=None, file_id=None)


class EventIds:
    """Event ids of the input as integers, -1 where it has none or they are no integers."""

    def __init__(self, intake: Intake) -> None:
        """Read the ids once; parts then look theirs up by row number."""
        self._row = intake.scans.row
        given = [] if intake.event_id is None else intake.event_id.to_pylist()
        self._id = np.array([int(v) if v and v.isdigit() else -1 for v in given], dtype=np.int64)

    def of(self, scans: Scans) -> Int64:
        """Event id of each scan, int64 (n,); -1 for injected ones."""
        if not len(self._id):
            return np.full(len(scans), -1, dtype=np.int64)
        place = np.minimum(np.searchsorted(self._row, scans.row), len(self._row) - 1)
        return np.where(self._row[place] == scans.row, self._id[place], -1)


def _weak_labels(scans: Scans, context: Context) -> npt.NDArray[np.float32]:
    trails = sort(scans)
    weak = np.empty((len(scans), len(ANOMALIES)), dtype=np.float32)
    for part, known in facts_of(trails, context):
        weak[trails.order[part]] = judge(known).score
    return weak


def _counts(scans: Scans, truth: Truth) -> dict[str, Any]:
    injected = {}
    for k, name in enumerate(ANOMALIES):
        mine = truth.anomaly == k
        injected[name] = len(np.unique(scans.epc[mine]))
    return {"scans": len(scans), "epcs": len(np.unique(scans.epc)), "injected": injected}


if __name__ == "__main__":
    sys.exit(main())
