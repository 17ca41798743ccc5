"""Stage sequence: labelled -> work/sequences: features in trail order, offsets, targets.

Nothing is padded. Some of the training lots, tampered with anew, are encoded once more with a
context missing (no network, no registry, no site master, only a few items of a lot, or nothing
before some moment), so that the models learn what to do without: an installation that they have
never seen, or an extract that begins in mid-life, must neither look like an anomaly nor hide one.
Some more have legs that last as other legs do, or whole boxes that were tampered with.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from intake.master import read_registry, read_sites
from intake.store import load_scans
from pipelines import params
from pipelines.parts import (
    AGAIN,
    BOXED,
    PARTS,
    STRETCHED,
    Part,
    fold_of,
    save_part,
    some_lots,
    uniform,
)
from pipelines.progress import Progress, say
from trail.facts import Context
from trail.features import FEATURES, encode
from trail.network import Network
from trail.registry import Registry
from trail.scan import ANOMALIES, Anomaly, Scans
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
            scans, context, columns = _labelled(labelled, name, master, network, registry)
            seen = [(View(np.arange(len(scans)), scans, context), columns)]
            if name == "train":
                scans, context, columns = _labelled(labelled, AGAIN, master, network, registry)
                views = _views(scans, context, settings["without"], int(settings["seed"]))
                seen += [(view, columns) for view in views]
                for more in (STRETCHED, BOXED):
                    scans, context, columns = _labelled(labelled, more, master, network, registry)
                    seen += [(View(np.arange(len(scans)), scans, context), columns)]
                folds = _networks(labelled / "network_folds.json")
                seen = [(fold, of) for view, of in seen for fold in _by_fold(view, folds)]
            part = _part([_encoded(*one) for one in seen])
            save_part(part, out, name)
            step(1, f"{name}: {len(part):,} scans x {len(FEATURES)} features")
    say(f"sequence: {len(FEATURES)} features of three contexts in {out}")


def _labelled(
    folder: Path, name: str, master: Sites, network: Network, registry: Registry
) -> tuple[Scans, Context, Columns]:
    """Scans of a labelled part, the context they are seen in, and their labels."""
    path = folder / f"{name}.parquet"
    intake = load_scans(path, master)
    return intake.scans, Context(intake.sites, network, registry), _columns(path)


@dataclass(frozen=True)
class View:
    """Some lots of a part, and the context they are seen in.

    Attributes:
        rows: positions of the scans in the part.
        scans: those scans.
        context: what they are seen against.
        hidden: what of each lot is out of sight: "", "mates" (most items) or "start" (all scans
            up to some moment).
    """

    rows: npt.NDArray[np.intp]
    scans: Scans
    context: Context
    hidden: str = ""


def _views(scans: Scans, context: Context, shares: dict[str, float], seed: int) -> Iterator[View]:
    """Some lots of a part for each missing context."""
    blank = Sites.of(
        context.sites.ids,
        context.sites.names,
        np.full(len(context.sites), -1),
        np.full(len(context.sites), np.nan),
        np.full(len(context.sites), np.nan),
        np.zeros(len(context.sites), bool),
    )
    none = Registry.none()
    contexts = {
        "network": Context(context.sites, None, context.registry),
        "registry": Context(context.sites, context.network, none),
        "network_and_registry": Context(context.sites, None, none),
        "sites": Context(blank.with_tiers_from(scans.site, scans.op), None, none),
    }
    for i, (name, share) in enumerate(shares.items()):
        rows = some_lots(scans, share, seed + 10 * i)
        if name == "mates":
            rows = _few_items(scans, rows, seed)
        if name == "start":
            rows = _late_start(scans, rows, seed)
        if len(rows):
            hidden = name if name in ("mates", "start") else ""
            yield View(rows, scans.take(rows), contexts.get(name, context), hidden)


def _networks(path: Path) -> list[Network]:
    return [Network.from_json(value) for value in json.loads(path.read_text())]


def _by_fold(view: View, networks: list[Network]) -> Iterator[View]:
    """A view by fold, each against the network that was counted without the fold's lots."""
    if view.context.network is None:
        yield view
        return
    fold = fold_of(view.scans.lot)
    for k in np.unique(fold).tolist():
        mine = np.flatnonzero(fold == k)
        context = replace(view.context, network=networks[k])
        yield View(view.rows[mine], view.scans.take(mine), context, view.hidden)


def _few_items(scans: Scans, rows: npt.NDArray[np.intp], seed: int) -> npt.NDArray[np.intp]:
    """Keep a few items of each lot: 2 % to 40 % of them, another share for each lot."""
    share = 0.02 + 0.38 * uniform(scans.lot[rows], seed + 1) ** 2
    code = scans.codes.serial[scans.epc[rows]].astype(np.int64)
    return rows[uniform(scans.lot[rows] ^ code, seed + 2) < share]


def _late_start(scans: Scans, rows: npt.NDArray[np.intp], seed: int) -> npt.NDArray[np.intp]:
    """Drop the beginnings of trails, in one of three ways a lot.

    An extract begins at a moment: all scans of the lot up to one are dropped. A trail comes without
    its past, as when history has expired or a few scans are asked about: of each trail some first
    scans are dropped, the same share for the whole lot, or another for each trail. The last scan of
    a trail then always stays.
    """
    lot, code = np.unique(scans.lot[rows], return_inverse=True)
    epc, time_us = scans.epc[rows], scans.time_us[rows]
    first, last = np.full(len(lot), 2**62), np.zeros(len(lot), np.int64)
    np.minimum.at(first, code, time_us)
    np.maximum.at(last, code, time_us)
    moment = first + (0.9 * uniform(lot, seed + 3) * (last - first)).astype(np.int64)
    order = np.lexsort((time_us, epc))
    _, start, scan_of, size = np.unique(
        epc[order], return_index=True, return_inverse=True, return_counts=True
    )
    place = np.empty(len(rows), np.int64)
    place[order] = np.arange(len(rows)) - start[scan_of]
    length = np.empty(len(rows), np.int64)
    length[order] = size[scan_of]
    serial = scans.codes.serial[epc].astype(np.int64)
    way = np.floor(3 * uniform(lot, seed + 4))[code]
    share = np.where(way == 1, uniform(lot, seed + 5)[code], uniform(lot[code] ^ serial, seed + 6))
    return rows[np.where(way == 0, time_us > moment[code], place >= np.floor(share * length))]


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
    if view.hidden:
        unseen = _unseen(mine, encoded.trails.starts, view.hidden)
        mine["target"] = np.where(unseen[:, None] & (mine["target"] == 1), -1, mine["target"])
        mine["target"] = mine["target"].astype(np.int8)
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


def _unseen(mine: Columns, starts: npt.NDArray[np.bool_], hidden: str) -> npt.NDArray[np.bool_]:
    """Scans whose anomaly cannot be known any more, bool (n,): they are not counted.

    Without mates, what only mates can tell. With a late start, a code that was never commissioned,
    and whatever began before the first scan that is left; an inversion needs its own scans only.
    """
    blatant = mine["grade"] <= 1
    if hidden == "mates":
        return np.asarray(~blatant)
    first_cause = _first(mine["cause"], starts)
    order = mine["anomaly"] == Anomaly.ORDER
    fake = mine["anomaly"] == Anomaly.FAKE
    began_before = first_cause & starts
    trail = np.cumsum(starts) - 1
    lost = np.zeros(int(starts.sum()), bool)
    lost[trail[began_before & ~order]] = True
    whole_pair = np.bincount(trail[mine["cause"]], minlength=len(lost)) >= 2
    lost |= ~whole_pair & (np.bincount(trail[order & mine["cause"]], minlength=len(lost)) > 0)
    return np.asarray(np.where(fake, ~blatant, lost[trail]))


def _first(event: npt.NDArray[np.bool_], starts: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The first event of each trail, bool (n,)."""
    heads = np.flatnonzero(starts)
    seen = np.cumsum(event)
    size = np.diff(np.append(heads, len(starts)))
    before: npt.NDArray[np.int64] = np.repeat(seen[heads] - event[heads], size)
    return np.asarray(event & (seen - before == 1))


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
