"""Tamper with scans, honestly: the same physical layer for hidden and for injected anomalies."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trail import epc as codes_of
from trail.scan import SECOND_US, Anomaly, Int64, Op, Scans
from trail.sites import Sites
from world.case import TWICE_US
from world.estimate import estimate
from world.inject import (
    Candidate,
    Edit,
    Mark,
    apply,
    candidates,
    lot_views,
    select,
    sorted_order,
    wanted_counts,
)
from world.observe import Clocks, Noise, record
from world.streams import stream
from world.subtypes import NAMES, SUBTYPES, Subtype, chosen
from world.truth import Marks, Truth, settle

__all__ = ["NAMES", "SUBTYPES", "Draft", "Subtype", "Tampered", "Truth", "draft", "tamper"]

SCOPES: Final = ("item", "box", "mix")
CLOCKS: Final = Noise()
"""Clock errors only: what was read late was so when it was observed."""


@dataclass(frozen=True)
class Tampered:
    """Scans after tampering, and the truth about each.

    Attributes:
        scans: the given scans in their order, less those that tampering prevented, then the added
            ones (`row` -1).
        truth: one row a scan.
    """

    scans: Scans
    truth: Truth


@dataclass(frozen=True)
class Draft:
    """Scans after tampering at physical times, before recording.

    Attributes:
        scans: as in `Tampered`.
        marks: one row a scan.
        home: int64 (n,), key of the lot where the case happened, or the scan's own lot.
        changed: bool (n,), the scan is new or recorded otherwise.
    """

    scans: Scans
    marks: Marks
    home: Int64
    changed: npt.NDArray[np.bool_]


def tamper(
    scans: Scans,
    sites: Sites,
    *,
    share: float,
    seed: int,
    subtypes: Collection[str] | None = None,
    scope: str = "mix",
    noise: Noise | None = None,
    known: Scans | None = None,
) -> Tampered:
    """Tamper with observed scans; lawful edges, leg times and markets are learned from them.

    Scans that are added are read twice as often as the observed ones are.

    Args:
        scans: whole trails of whole lots, in any order.
        sites: the master they were read with.
        share: share of EPCs for each of the five anomalies, 0 to 0.15.
        seed: one random stream for each lot and subtype.
        subtypes: names of `SUBTYPES`; None is all but those only hidden in worlds.
        scope: "item" (single items), "box" (whole boxes), or "mix" (mostly items).
        noise: errors in recording new and changed scans; None takes `CLOCKS`, and second readings
            as often as there are in the scans.
        known: scans of the same installation to learn from instead, where those are few.

    Raises:
        ValueError: share, scope or a subtype name is not possible.
    """
    made = draft(scans, sites, share=share, seed=seed, subtypes=subtypes, scope=scope, known=known)
    time_us = made.scans.time_us.copy()
    changed = np.flatnonzero(made.changed & ~_read_with_others(made, scans))
    if not len(changed):
        return Tampered(made.scans, truth_of(made.marks, made.scans.epc, time_us))
    if noise is None:
        noise = replace(CLOCKS, repeated_share=read_twice(scans if known is None else known))
    time_us[changed], again, again_us = _recorded(made, changed, sites, noise, seed)
    which = np.concatenate([np.arange(len(time_us)), again])
    after = replace(made.scans.take(which), time_us=np.concatenate([time_us, again_us]))
    after.row[len(time_us) :] = -1
    marks = with_second_readings(made.marks, again)
    return Tampered(after, truth_of(marks, after.epc, after.time_us))


def read_twice(scans: Scans) -> float:
    """Share of the readings after commissioning that are the same one once more."""
    order = np.lexsort((scans.time_us, scans.epc))
    epc, site, op = scans.epc[order], scans.site[order], scans.op[order]
    again = (np.diff(epc) == 0) & (np.diff(site) == 0) & (np.diff(op) == 0)
    again &= (np.diff(scans.time_us[order]) <= TWICE_US) & (op[1:] != Op.AGGREGATION)
    return float(again.sum() / max((op != Op.AGGREGATION).sum(), 1))


def draft(
    scans: Scans,
    sites: Sites,
    *,
    share: float,
    seed: int,
    subtypes: Collection[str] | None = None,
    scope: str = "mix",
    natural: bool = False,
    known: Scans | None = None,
) -> Draft:
    """Tamper at physical times; see `tamper`. With `natural`, hidden subtypes take part."""
    if not 0.0 <= share <= 0.15:
        raise ValueError(f"share {share} is out of range; give 0 to 0.15 of the EPCs for each type")
    if scope not in SCOPES:
        raise ValueError(f"scope {scope!r} is not known; give one of {', '.join(SCOPES)}")
    which = chosen(subtypes, natural)
    if not len(scans) or not which or share == 0:
        return _applied(scans, np.arange(len(scans)), Edit())
    order = sorted_order(scans)
    seen = (
        estimate(scans, sites, order)
        if known is None
        else estimate(known, sites, sorted_order(known))
    )
    lots = list(lot_views(scans, order))
    trails = sum(len(lot.first) - 1 for _, lot in lots)
    rates, wanted = wanted_counts(trails, which, share)
    found: list[Candidate] = []
    starts: dict[int, int] = {}
    for start, lot in lots:
        starts[lot.key] = start
        found += candidates(lot, seen, which, rates, seed, scope)
    edit = Edit()
    for case in select(found, seen, wanted, scope):
        apply(case, starts[case.lot.key], edit, seen)
    return _applied(scans, order, edit)


def truth_of(marks: Marks, epc: npt.NDArray[np.int32], time: Int64) -> Truth:
    """The truth at recorded times."""
    return settle(
        marks,
        epc,
        time,
        np.array([s.anomaly for s in SUBTYPES]),
        np.array([s.grade for s in SUBTYPES]),
        np.array([s.control for s in SUBTYPES]),
    )


def _applied(scans: Scans, order: npt.NDArray[np.intp], edit: Edit) -> Draft:
    """The scans after the edit; positions of the edit are translated by `order`."""
    n, codes = len(scans), scans.codes
    epc, site, op = scans.epc.copy(), scans.site.copy(), scans.op.copy()
    time = scans.time_us.copy()
    home = codes.lot_key[epc]
    base = len(codes)
    if edit.codes:
        codes = codes_of.concat(codes, codes_of.parse(pa.array(list(edit.codes), pa.string())))
    for position, key in edit.moved.items():
        at = order[position]
        time[at], site[at], op[at] = key
    for position, number in edit.renamed.items():
        epc[order[position]] = base + number
    marks = _marks(n, order, edit)
    keep = np.ones(n, dtype=bool)
    keep[order[np.array(edit.dropped, dtype=np.int64)]] = False
    more = edit.added
    new: dict[str, list[int]] = {
        "epc": [base + code if code >= 0 else e for e, code, _, _, _ in more],
        "site": [key[1] for _, _, key, _, _ in more],
        "op": [key[2] for _, _, key, _, _ in more],
        "time_us": [key[0] for _, _, key, _, _ in more],
        "row": [-1] * len(more),
    }
    old: dict[str, npt.NDArray] = {
        "epc": epc,
        "site": site,
        "op": op,
        "time_us": time,
        "row": scans.row,
    }
    columns = {
        name: np.concatenate([column[keep], np.array(new[name], dtype=column.dtype)])
        for name, column in old.items()
    }
    joined = _join(marks.take(keep), [mark for *_, mark in more])
    homes = np.concatenate([home[keep], np.array([h for *_, h, _ in more], dtype=np.int64)])
    return Draft(Scans(codes=codes, **columns), joined, homes, joined.synthetic)


def _marks(n: int, order: npt.NDArray[np.intp], edit: Edit) -> Marks:
    marks = _columns([], n)
    at = order[np.array(list(edit.marked), dtype=np.int64)]
    some = _columns(list(edit.marked.values()), 0)
    for f in fields(Marks):
        getattr(marks, f.name)[at] = getattr(some, f.name)
    return marks


def _columns(marks: Sequence[Mark], blank: int) -> Marks:
    """Marks as columns, after `blank` rows without any."""

    def column(name: str, dtype: type, empty: int) -> npt.NDArray:
        values: npt.NDArray = np.full(blank + len(marks), empty, dtype=dtype)
        values[blank:] = [getattr(mark, name) for mark in marks]
        return values

    return Marks(
        column("subtype", np.int16, -1),
        column("cause", np.bool_, 0),
        column("known", np.bool_, 0),
        column("of_pair", np.bool_, 0),
        column("within_us", np.int64, 0),
        column("synthetic", np.bool_, 0),
        column("blur", np.uint8, 0),
    )


def _join(marks: Marks, more: Sequence[Mark]) -> Marks:
    added = _columns(more, 0)
    return Marks(
        **{
            f.name: np.concatenate([getattr(marks, f.name), getattr(added, f.name)])
            for f in fields(Marks)
        }
    )


def _read_with_others(made: Draft, scans: Scans) -> npt.NDArray[np.bool_]:
    """Scans at a time and site at which the lot was read: their recorded time is known already."""

    def reading(lot: Int64, site: npt.NDArray[np.int32], time: Int64) -> npt.NDArray[np.uint64]:
        where = codes_of.mix(time.astype(np.uint64) * np.uint64(65_537) + site.astype(np.uint64))
        return codes_of.mix(where ^ lot.astype(np.uint64))

    return np.isin(
        reading(made.home, made.scans.site, made.scans.time_us),
        reading(scans.lot, scans.site, scans.time_us),
    )


def _recorded(
    made: Draft, changed: npt.NDArray[np.intp], sites: Sites, noise: Noise, seed: int
) -> tuple[Int64, npt.NDArray[np.intp], Int64]:
    """Recorded times, microseconds, of the changed scans, lot by lot; added scans that are read
    twice, and when.
    """
    time_s = made.scans.time_us[changed] / SECOND_US
    clocks = Clocks.of(noise, seed, len(sites), float(time_s.min()), float(time_s.max()))
    home = made.home[changed]
    by_home = np.argsort(home, kind="stable")
    out = np.empty(len(changed), dtype=np.int64)
    again, again_us = [np.zeros(0, np.intp)], [np.zeros(0, np.int64)]
    bounds = np.flatnonzero(np.diff(home[by_home], prepend=-1, append=-1))
    for a, b in pairwise(bounds.tolist()):
        mine = by_home[a:b]
        at = changed[mine]
        rng = stream(seed, "recorded", int(home[mine[0]]))
        seconds, twice, second = record(
            made.scans.site[at], made.scans.op[at], time_s[mine], noise, clocks, rng
        )
        out[mine] = seconds * SECOND_US
        added = made.scans.row[at[twice]] < 0  # what was moved has its second readings already
        again.append(at[twice[added]])
        again_us.append(second[added] * SECOND_US)
    return out, np.concatenate(again), np.concatenate(again_us)


def with_second_readings(marks: Marks, again: npt.NDArray[np.intp]) -> Marks:
    """Marks of the first readings, then of the second ones.

    A second reading of a jump or an inversion is none itself; which it is, is ambiguous.

    Args:
        marks: of the first readings.
        again: positions that are read twice.
    """
    second = marks.take(again)
    anomaly = np.array([int(s.anomaly) for s in SUBTYPES])[np.maximum(second.subtype, 0)]
    once = second.cause & (anomaly >= Anomaly.ORDER)
    blur = np.where(once, second.blur | (1 << anomaly), second.blur).astype(np.uint8)
    second = replace(second, cause=second.cause & ~once, known=second.known & ~once, blur=blur)
    return Marks(
        **{
            f.name: np.concatenate([getattr(marks, f.name), getattr(second, f.name)])
            for f in fields(Marks)
        }
    )
