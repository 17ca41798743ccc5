"""Candidates for tampering, the choice among them, and what they do to the scans."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from trail.scan import Float64, Op, Scans
from world.case import DAY_US, ORDER, TWICE_US, Case, Key, LotView, Plan
from world.estimate import RARE, WEEK_H, Estimate, hour_of_week
from world.streams import stream
from world.subtypes import SUBTYPES

TRIES = 12
"""Trails that are tried for one case; not every trail allows every subtype."""
LEAST_TRAILS = 12
"""A smaller lot is too sparse to be tampered with."""
MOST_TOGETHER = 250
"""More items than this at one portal are a lot, not a box."""
FREE_SHARE = 0.5
"""A box of which less than this is left to tamper with is no box any more."""
LEAST_WEIGHT = 1e-4
"""A candidate outside the opening hours never happens."""


@dataclass
class Candidate:
    """A case that may happen.

    Attributes:
        subtype: position in `SUBTYPES`.
        lot: its lot.
        members: trails of the lot that it happens to, the leader first.
        plan: what happens.
        chance: uniform number that decides among candidates.
        seed: of the draws that differ from item to item.
        boxes: it happens to a whole box.
    """

    subtype: int
    lot: LotView
    members: list[int]
    plan: Plan
    chance: float
    seed: int
    boxes: bool


@dataclass
class Edit:
    """What all cases together do to n scans; positions are those of the sorted scans.

    Attributes:
        moved: position -> its new key.
        dropped: positions that do not happen.
        renamed: position -> new code.
        added: (EPC or -1, new code or -1, key, home lot, marks).
        marked: position -> marks.
        codes: forged codes, numbered.
    """

    moved: dict[int, Key] = field(default_factory=dict)
    dropped: list[int] = field(default_factory=list)
    renamed: dict[int, int] = field(default_factory=dict)
    added: list[tuple[int, int, Key, int, Mark]] = field(default_factory=list)
    marked: dict[int, Mark] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Mark:
    """What tampering notes of one scan; see `truth.Marks`."""

    subtype: int
    cause: bool = False
    known: bool = False
    of_pair: bool = False
    within_us: int = 0
    synthetic: bool = False
    blur: int = 0


@dataclass(slots=True)
class _Line:
    """A scan of a trail under tampering: where it was, what it is now."""

    position: int
    key: Key
    mark: Mark | None = None


def lot_views(scans: Scans, order: npt.NDArray[np.intp]) -> Iterator[tuple[int, LotView]]:
    """Each lot with its first position in the sorted scans.

    Args:
        scans: of whole trails.
        order: positions by (lot, EPC, time).
    """
    epc = scans.epc[order]
    key = scans.codes.lot_key[epc]
    site, op, time = scans.site[order], scans.op[order], scans.time_us[order]
    bounds = np.flatnonzero(np.diff(key, prepend=key[:1] - 1, append=key[-1:] - 1))
    for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        first = np.flatnonzero(np.diff(epc[a:b], prepend=-1))
        if len(first) < LEAST_TRAILS or scans.codes.lot[epc[a]] < 0:
            continue
        who = epc[a:b][first]
        made = np.unique(epc[a:b][op[a:b] == Op.AGGREGATION])
        codes, one = scans.codes, int(epc[a])
        yield (
            a,
            LotView(
                key=int(key[a]),
                epc=epc[a:b],
                site=site[a:b],
                op=op[a:b],
                time_us=time[a:b],
                first=np.append(first, b - a),
                serial=codes.serial[who].astype(np.int64),
                company=int(codes.company[one]),
                product=int(codes.product[one]),
                lot=int(codes.lot[one]),
                made_day=int(codes.made_day[one]),
                agg_share=len(made) / len(first),
            ),
        )


def candidates(
    lot: LotView,
    seen: Estimate,
    subtypes: Sequence[int],
    rates: Float64,
    seed: int,
    scope: str,
) -> Iterator[Candidate]:
    """Candidates in one lot; each subtype has its own stream, so that none moves another.

    Args:
        lot: the lot.
        seen: what the scans show.
        subtypes: positions in `SUBTYPES`.
        rates: float64, wanted share of EPCs by subtype position.
        seed: of the tampering.
        scope: "item", "box" or "mix".
    """
    trails = len(lot.first) - 1
    chance = stream(seed, "how many", lot.key).random((len(SUBTYPES), 2))
    for i in subtypes:
        for boxes in (False, True):
            share = _share(i, boxes, scope)
            wanted = SUBTYPES[i].candidates * rates[i] * trails * share
            size = lot.box_size() if boxes else 1
            count = int(wanted / size + chance[i, int(boxes)])
            if not count or not share:
                continue
            rng = stream(seed, SUBTYPES[i].name + ("/box" if boxes else ""), lot.key)
            for _ in range(count):
                tries = (_candidate(lot, seen, i, boxes, rng) for _ in range(TRIES))
                made = next((c for c in tries if c is not None), None)
                if made is not None:
                    yield made


def _share(subtype: int, boxes: bool, scope: str) -> float:
    """Share of a subtype's EPCs that are tampered with as whole boxes, or one by one."""
    own = SUBTYPES[subtype].scope
    if own == "item" and scope == "box":
        return 0.0
    as_boxes = {"item": 0.0, "box": 1.0}.get(own)
    if as_boxes is None:
        as_boxes = {"item": 0.0, "box": 1.0, "mix": SUBTYPES[subtype].box_share}[scope]
    return as_boxes if boxes else 1.0 - as_boxes


def _candidate(
    lot: LotView, seen: Estimate, subtype: int, boxes: bool, rng: np.random.Generator
) -> Candidate | None:
    e = int(rng.random() * (len(lot.first) - 1))
    seed, chance = int(rng.random() * 2**31), float(rng.random())
    case = Case(lot, e, lot.trail(e), seen, rng, boxes)
    plan = SUBTYPES[subtype].plan(case)
    if plan is None:
        return None
    plan.add = [key for key in plan.add if key[0] <= seen.end_us]
    if not plan.changed():
        return None
    e = case.e
    members = [e]
    if boxes or plan.few > 1:
        mates = [m for m in _same_scans(lot, plan) if m != e]
        if not mates or len(mates) > MOST_TOGETHER:
            return None
        members += mates if boxes else mates[: plan.few - 1]
    return Candidate(subtype, lot, members, plan, chance, seed, boxes)


def _same_scans(lot: LotView, plan: Plan) -> list[int]:
    """Trails that were read with the leader at every scan that the plan speaks of.

    Items that came together and left apart have only one half of an inversion in common. Who was
    missed by the reader of `plan.told_by` belongs to them; who was read there elsewhere does not.
    """
    together = set(lot.mates(plan.pivot))
    if plan.came_with is not None:
        together |= set(lot.mates(plan.came_with))
    for key in (*plan.move, *plan.cause):
        together &= set(lot.mates(key))
    if plan.told_by is not None:
        together -= set(lot.reading(plan.told_by[2])) - set(lot.mates(plan.told_by))
    return sorted(together)


def select(
    found: Sequence[Candidate], seen: Estimate, wanted: Float64, scope: str
) -> list[Candidate]:
    """Choose cases so that their scans fall into the hours of honest ones.

    Importance resampling without replacement (Efraimidis and Spirakis 2006): the weight of a
    candidate is the honest frequency of its hours over that among the candidates. Boxes come
    first: once single items are taken from every box, no box is whole.

    Args:
        found: candidates of all lots.
        seen: with the honest hours.
        wanted: float64, number of EPCs by subtype position.
        scope: "item", "box" or "mix".
    """
    pools: dict[tuple[bool, int], list[Candidate]] = {}
    for case in found:
        pools.setdefault((not case.boxes, case.subtype), []).append(case)
    taken: list[Candidate] = []
    used: set[tuple[int, int]] = set()
    for (single, i), pool in sorted(pools.items()):
        share = _share(i, not single, scope)
        taken += _fill(pool, _weights(pool, seen.hours), wanted[i] * share, used)
    return taken


def _fill(
    pool: Sequence[Candidate], weight: Float64, wanted: float, used: set[tuple[int, int]]
) -> list[Candidate]:
    """Cases of one pool, the best first, until `wanted` EPCs are tampered with."""
    chance = np.array([case.chance for case in pool])
    rank = -np.log(np.maximum(chance, 1e-12)) / np.maximum(weight, 1e-9)
    taken = []
    left = wanted
    for j in np.argsort(rank, kind="stable").tolist():
        case = pool[j]
        if left <= 0 or weight[j] < LEAST_WEIGHT:
            break
        free = [m for m in case.members if (case.lot.key, m) not in used]
        if not free or free[0] != case.members[0] or len(free) < FREE_SHARE * len(case.members):
            continue
        if len(free) > left and case.chance * 997 % 1.0 * len(free) > left:
            break
        case.members = free
        used.update((case.lot.key, m) for m in free)
        taken.append(case)
        left -= len(free)
    return taken


def _weights(found: Sequence[Candidate], hours: Float64) -> Float64:
    """Honest over proposed frequency of the hour and weekday of each candidate's scans."""
    rows = [(n, k[2], k[0]) for n, c in enumerate(found) for k in _judged(c.plan)]
    owner, op, time = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
    week = hour_of_week(time)
    honest = hours.reshape(10, 7, 24)
    count = np.bincount(op * WEEK_H + week, minlength=10 * WEEK_H)
    proposed = count.reshape(10, 7, 24).astype(np.float64)
    log_ratio = np.zeros(len(rows))
    for axis, part in ((1, week % 24), (2, week // 24)):
        target, source = honest.sum(axis=axis), proposed.sum(axis=axis)
        target = target / np.maximum(target.sum(axis=1, keepdims=True), 1.0)
        source = (source + 0.5) / (source + 0.5).sum(axis=1, keepdims=True)
        log_ratio += np.log(np.maximum(target[op, part], 1e-9) / source[op, part])
    rare = hours / np.maximum(hours.sum(axis=1, keepdims=True), 1.0) < RARE
    log_ratio[rare[op, week]] = -20.0
    total = np.bincount(owner, weights=log_ratio, minlength=len(found))
    return np.exp(np.clip(total, -20.0, 2.5))


def _judged(plan: Plan) -> list[Key]:
    """The scans whose hours are matched: the first two that change."""
    return sorted(plan.changed())[:2]


def apply(
    case: Candidate,
    first_position: int,
    edit: Edit,
    seen: Estimate,
) -> None:
    """Write what a case does to its trails into `edit`."""
    rng = np.random.Generator(np.random.PCG64(case.seed))
    for nth, e in enumerate(case.members):
        plan, lot = case.plan, case.lot
        add = plan.add
        if nth:  # it was read where its box was, but for what a reader misses
            read = rng.random(len(add)) >= seen.missed
            own = _own_sale(add, Case(lot, e, lot.trail(e), seen, rng, case.boxes))
            add = [key for key, there in zip(own, read, strict=True) if there]
        add = [key for key in add if key[0] <= seen.end_us]
        if plan.forge is not None:
            _forge(case, nth, e, add, first_position, edit)
            continue
        a = int(lot.first[e])
        lines, dropped = _edited(plan, lot.trail(e), first_position + a, seen.end_us)
        lines += [_Line(-1, key, Mark(case.subtype, cause=True, synthetic=True)) for key in add]
        edit.dropped += dropped
        _mark(plan, case.subtype, lines)
        for line in lines:
            if line.position < 0 and line.mark is not None:
                edit.added.append((int(lot.epc[a]), -1, line.key, lot.key, line.mark))
            elif line.mark is not None:
                edit.marked[line.position] = line.mark
                if line.mark.synthetic:
                    edit.moved[line.position] = line.key


def _own_sale(add: list[Key], item: Case) -> list[Key]:
    """Items of a box are sold one by one: each stands on its shelf for a time of its own."""
    own = []
    for time, site, op in add:
        if op == Op.SALE:
            shelf = max((k[0] for k in add if k[0] < time and k[2] == Op.RETAIL_OUT), default=None)
            sold = None if shelf is None else item.stay_end(op, shelf)
            time = time + int(item.uniform(0, 10)) * DAY_US if sold is None else sold
        own.append((time, site, op))
    return own


def _forge(
    case: Candidate, nth: int, e: int, add: list[Key], first_position: int, edit: Edit
) -> None:
    plan, lot = case.plan, case.lot
    assert plan.forge is not None
    text = plan.forge(nth)
    if text in edit.codes:  # two counterfeiters had the same idea; the first was quicker
        return
    number = edit.codes.setdefault(text, len(edit.codes))
    known = plan.known == "all"
    if plan.rename:
        for position in range(int(lot.first[e]), int(lot.first[e + 1])):
            edit.renamed[first_position + position] = number
            edit.marked[first_position + position] = Mark(
                case.subtype, cause=True, known=known, synthetic=True
            )
        return
    for nth_scan, key in enumerate(sorted(add)):
        blur = 0 if nth_scan else plan.blur
        mark = Mark(case.subtype, cause=True, known=known, synthetic=True, blur=blur)
        edit.added.append((-1, number, key, lot.key, mark))


def _edited(
    plan: Plan, trail: list[Key], position: int, end_us: int
) -> tuple[list[_Line], list[int]]:
    """The genuine scans after the plan's moves, and the positions of those that vanish."""
    lines, dropped = [], []
    for nth, key in enumerate(trail):
        line = _Line(position + nth, key)
        twice = key[1:] == plan.pivot[1:] and key[0] <= plan.pivot[0] + TWICE_US
        if key in plan.move:
            line = _Line(position + nth, plan.move[key], Mark(0, cause=True, synthetic=True))
        elif plan.drop_after_us is not None and key[0] > plan.drop_after_us and not twice:
            dropped.append(position + nth)
            continue
        elif plan.shift_us and key[0] >= plan.pivot[0]:
            shifted = (key[0] + plan.shift_us, key[1], key[2])
            line = _Line(position + nth, shifted, Mark(0, cause=True, synthetic=True))
        elif key in plan.cause:
            line.mark = Mark(0, cause=True)
        if line.key[0] > end_us:
            dropped.append(position + nth)
            continue
        lines.append(line)
    return lines, dropped


def _mark(plan: Plan, subtype: int, lines: list[_Line]) -> None:
    """Note cause, knowledge and blur on the scans of one edited trail, by time."""
    lines.sort(key=lambda line: line.key)
    since_cause, begun = False, False
    told = plan.told_by is None or any(line.key == plan.told_by for line in lines)
    for line in lines:
        mark = line.mark
        if mark is not None and mark.cause:
            mark.subtype, mark.blur, mark.within_us = subtype, plan.blur, plan.within_us
            mark.of_pair = plan.known == "last"
            late = plan.known_from_us is None or line.key[0] >= plan.known_from_us
            mark.known = plan.known == "all" and late and told
            since_cause = begun = True
            continue
        if line.key == plan.told_by and plan.blur & ORDER:
            line.mark = Mark(subtype, blur=ORDER)
        if plan.blur_next and (since_cause or (begun and plan.blur_rest)):
            line.mark = Mark(subtype, blur=plan.blur_next)
        since_cause = False


def wanted_counts(trails: int, subtypes: Collection[int], share: float) -> tuple[Float64, Float64]:
    """Wanted share and number of EPCs by subtype position; types share equally."""
    rates = np.zeros(len(SUBTYPES))
    for i in subtypes:
        same = [j for j in subtypes if SUBTYPES[j].anomaly == SUBTYPES[i].anomaly]
        rates[i] = share / len(same)
    return rates, rates * trails


def sorted_order(scans: Scans) -> npt.NDArray[np.intp]:
    """Positions of scans by (lot, EPC, time, operation)."""
    codes = scans.codes
    by_code = np.lexsort((codes.serial, codes.lot_key))
    rank = np.empty(len(codes), dtype=np.int64)
    rank[by_code] = np.arange(len(codes))
    return np.lexsort((scans.op, scans.time_us, rank[scans.epc]))
