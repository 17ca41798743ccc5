"""Stage sequence: labelled -> work/sequences: features in trail order, offsets, targets.

Nothing is padded. A share of the training lots is encoded with a context missing (no network, no
registry, no site master, or only a few items of a lot), so that the models learn what to do
without: an installation that they have never seen must not look like an anomaly.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from intake.master import read_registry, read_sites
from intake.store import load_scans
from pipelines import params
from pipelines.parts import PARTS, Part, save_part
from pipelines.progress import Progress, say
from trail.epc import mix
from trail.facts import Context
from trail.features import FEATURES, encode
from trail.network import Network
from trail.registry import Registry
from trail.scan import ANOMALIES, Scans
from trail.sites import Sites

Columns = dict[str, npt.NDArray[Any]]


def main(argv: list[str] | None = None) -> int:
    """Run the stage; see `--help`."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.sequence", description=__doc__)
    parser.add_argument("--labelled", type=Path, default=Path("work/labelled"))
    parser.add_argument("--validated", type=Path, default=Path("work/validated"))
    parser.add_argument("--out", type=Path, default=Path("work/sequences"))
    asked = parser.parse_args(argv)
    sequence(asked.labelled, asked.validated, asked.out, params.load()["sequence"])
    return 0


def sequence(labelled: Path, validated: Path, out: Path, settings: dict[str, Any]) -> None:
    """Encode every part and write it."""
    listed = validated / "registry.csv"
    registry = read_registry(listed) if listed.exists() else Registry.none()
    network = Network.from_json(json.loads((labelled / "network.json").read_text()))
    master = read_sites(validated / "sites.csv")
    shutil.rmtree(out, ignore_errors=True)
    with Progress("sequence", len(PARTS), "parts") as step:
        for name in PARTS:
            path = labelled / f"{name}.parquet"
            intake = load_scans(path, master)
            context = Context(intake.sites, network, registry)
            shares = settings["without"] if name == "train" else {}
            views = list(_views(intake.scans, context, shares, settings))
            columns = _columns(path)
            part = _part([_encoded(view, columns) for view in views])
            save_part(part, out, name)
            step(1, f"{name}: {len(part):,} scans x {len(FEATURES)} features")
    say(f"sequence: {len(FEATURES)} features of three contexts in {out}")


@dataclass(frozen=True)
class View:
    """Some lots of a part, and the context they are seen in.

    Attributes:
        rows: positions of the scans in the part.
        scans: those scans.
        context: what they are seen against.
        sparse: most of each lot is out of sight: mates tell nothing.
    """

    rows: npt.NDArray[np.intp]
    scans: Scans
    context: Context
    sparse: bool = False


def _views(
    scans: Scans, context: Context, shares: dict[str, float], settings: dict[str, Any]
) -> Iterator[View]:
    """Cut a part by lot into views; what `shares` leaves is seen in full."""
    draw = _uniform(scans.lot, int(settings["seed"]))
    blank = Sites.of(
        context.sites.ids,
        context.sites.names,
        np.full(len(context.sites), -1),
        np.full(len(context.sites), np.nan),
        np.full(len(context.sites), np.nan),
        np.zeros(len(context.sites), bool),
    )
    contexts = {
        "network": Context(context.sites, None, context.registry),
        "registry": Context(context.sites, context.network, Registry.none()),
        "network_and_registry": Context(context.sites, None, Registry.none()),
        "sites": Context(blank.with_tiers_from(scans.site, scans.op), None, Registry.none()),
        "mates": context,
    }
    low = 0.0
    for name, share in shares.items():
        rows = np.flatnonzero((draw >= low) & (draw < low + share))
        low += share
        if name == "mates":
            rows = _few(scans, rows, settings)
        if len(rows):
            yield View(rows, scans.take(rows), contexts[name], name == "mates")
    rows = np.flatnonzero(draw >= low)
    if len(rows):
        yield View(rows, scans.take(rows), context)


def _few(
    scans: Scans, rows: npt.NDArray[np.intp], settings: dict[str, Any]
) -> npt.NDArray[np.intp]:
    """Keep a few items of each lot: 2 % to 40 % of them, another share for each lot."""
    seed = int(settings["seed"])
    share = 0.02 + 0.38 * _uniform(scans.lot[rows], seed + 1) ** 2
    code = scans.codes.serial[scans.epc[rows]].astype(np.int64)
    return rows[_uniform(scans.lot[rows] ^ code, seed + 2) < share]


def _uniform(key: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.float64]:
    """A number in [0, 1) that depends on key and seed only."""
    mixed = mix(key.astype(np.uint64) ^ mix(np.full(1, seed, np.uint64)))
    return np.asarray((mixed >> np.uint64(11)) / float(2**53))


def _columns(path: Path) -> Columns:
    """Label columns of a part, in the order of its scans."""
    names = ["event_id", "anomaly", "subtype", "grade", "control", "cause", "evidence"]
    names += ["is_synthetic", "label_source"]
    table = pq.read_table(path, columns=[*names, *(f"target_{name}" for name in ANOMALIES)])
    columns = {name: table[name].to_numpy() for name in names}
    columns["synthetic"] = columns.pop("is_synthetic")
    columns["target"] = np.stack(
        [table[f"target_{name}"].to_numpy() for name in ANOMALIES], axis=1
    ).astype(np.int8)
    return columns


def _encoded(view: View, columns: Columns) -> Columns:
    """Features and labels of one view, in trail order."""
    encoded = encode(view.scans, view.context)
    sorted_scans, order = encoded.trails.scans, view.rows[encoded.trails.order]
    mine = {name: column[order] for name, column in columns.items()}
    if view.sparse:
        unseen = (mine["target"] == 1) & (mine["grade"] >= 2)[:, None]
        mine["target"] = np.where(unseen, np.int8(-1), mine["target"])
    return {
        **mine,
        "features": encoded.features,
        "starts": encoded.trails.starts,
        "rules": encoded.findings.score,
        "lot": sorted_scans.lot,
        "row": sorted_scans.row,
        "time_us": sorted_scans.time_us,
        "op": sorted_scans.op,
    }


def _part(views: list[Columns]) -> Part:
    """Views one after the other."""
    whole = {
        name: views[0][name] if len(views) == 1 else np.concatenate([v[name] for v in views])
        for name in views[0]
    }
    starts = whole.pop("starts")
    whole["offsets"] = np.append(np.flatnonzero(starts), len(starts)).astype(np.int64)
    whole["trail"] = (np.cumsum(starts) - 1).astype(np.int64)
    return Part(**{field.name: whole[field.name] for field in fields(Part)})


if __name__ == "__main__":
    sys.exit(main())
