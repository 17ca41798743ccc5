"""Calibration: thresholds such that a stream without drift hardly ever alarms in 30 days.

The detector's own windows and distances are replayed on streams that are put together from the
reference's own scans: half of its blocks play reference, the other half the stream. Blocks are
boxes; or days, where days differ by more than their boxes; within their weekday, where weekdays
differ; or whole weeks, where days resemble the day before. What makes honest traffic vary is so in
the thresholds, whatever p-values would say of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from monitoring.drift import MINIMUM, Comparison, thinner
from monitoring.reference import (
    CELLS,
    RECENT,
    WINDOWS,
    Batch,
    Calibration,
    Float32,
    Float64,
    Int32,
    Int64,
    Reference,
    UInt8,
    coded,
    counted,
    placed,
)
from monitoring.windows import A_DAY, SLOT_US
from trail.scan import DAY_US

Bool = npt.NDArray[np.bool_]
Index = npt.NDArray[np.intp]

TARGET: Final = 0.10
"""Wanted probability of any alarm of a tier in `DAYS` days without drift."""
DAYS: Final = 30
WARM_UP: Final = max(window.days for window in WINDOWS)
"""Days before those, in which windows fill."""
REPLICATES: Final = 200
"""Streams behind the thresholds; as many others behind the estimate."""
MOST_DAYS: Final = 63
"""Newest days of a reference that blocks are taken from."""
MOST_ROWS: Final = 150_000
"""Scans that boxes are taken from; the newest days that hold so many."""
WEEK: Final = 7
_PERMUTATIONS: Final = 200
_SIGNIFICANT: Final = 0.05
_TOP_SITES: Final = 8

BOXES: Final = 200
"""Boxes that a calibration by box needs."""
LEAST_DAYS: Final = {"box": 14, "day": 21, "weekday": 28}
"""Days that a calibration needs, by unit."""
LEAST_WEEKS: Final = 8
"""Weeks that one by whole weeks needs."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What is resampled.

    Attributes:
        name: "box", "day" or "weekday".
        days: consecutive days kept together, 1 or 7.
    """

    name: Literal["box", "day", "weekday"]
    days: int = 1


def calibrated(
    reference: Reference,
    batch: Batch,
    seed: int = 0,
    replicates: int = REPLICATES,
    unit: Unit | None = None,
    progress: Callable[[int], object] | None = None,
) -> Reference:
    """The reference with thresholds.

    Args:
        reference: made from `batch`.
        batch: the scans that the reference was made from.
        seed: of the streams.
        replicates: streams behind the thresholds, and as many behind the estimate.
        unit: what to resample; None finds out what the scans need.
        progress: called with the number of streams done since the last call.
    """
    blocks = Blocks.of(reference, batch)
    if blocks.days < 2 or len(blocks.codes) < 2 * RECENT:
        reason = f"{len(batch)} scans of {blocks.days} days; nothing can be held against the rest"
        return replace(reference, calibration=Calibration.none(reason, len(reference.measured)))
    rng = np.random.default_rng(seed)
    unit = blocks.unit(rng) if unit is None else unit
    reason = blocks.lacks(unit)
    replay = Replay(reference, blocks, unit)
    peaks = np.empty((2 * replicates, len(WINDOWS), len(reference.measured)))
    for i in range(2 * replicates):
        peaks[i] = replay.peaks(np.random.default_rng((seed, i)))
        if progress is not None:
            progress(1)
    chosen, held = peaks[:replicates], peaks[replicates:]
    threshold = np.empty(peaks.shape[1:])
    estimate, interval = {}, {}
    for tier in ("warn", "retrain"):
        mine = np.array([window.tier == tier for window in WINDOWS])
        threshold[mine] = thresholds(chosen[:, mine], reference.floor)
        alarms = int((held[:, mine] >= threshold[mine]).any(axis=(1, 2)).sum())
        estimate[tier], interval[tier] = alarms / replicates, clopper_pearson(alarms, replicates)
    calibration = Calibration(
        status="insufficient_reference" if reason else "calibrated",
        reason=reason,
        unit=unit.name,
        block_days=unit.days,
        blocks=blocks.count(unit),
        replicates=replicates,
        target=TARGET,
        estimate=estimate["retrain"],
        ci95=interval["retrain"],
        estimate_warn=estimate["warn"],
        thresholds={w.name: tuple(threshold[i].tolist()) for i, w in enumerate(WINDOWS)},
        usual={window.name: n for window, n in zip(WINDOWS, replay.usual, strict=True)},
    )
    return replace(reference, calibration=calibration)


def thresholds(peaks: Float64, floor: Float64, target: float = TARGET) -> Float64:
    """Thresholds of windows and columns, float64 (w, c), that few streams reach anywhere.

    Each column's own scale in each window is the median of its peaks; one factor for all of them is
    chosen so that at most the target share of streams has any peak at its threshold, or above.

    Args:
        peaks: float64 (r, w, c), the largest distance of each stream.
        floor: float64 (c,), smallest thresholds.
        target: wanted share.
    """
    scale = np.maximum(np.median(peaks, axis=0), 1e-3)
    over = np.where(peaks >= floor, peaks / scale, 0).max(axis=(1, 2))
    rank = int(np.ceil((1 - target) * (len(peaks) + 1))) - 1
    factor = np.sort(over)[min(rank, len(over) - 1)]
    # Just above the chosen stream's own peak, which so is no alarm.
    return np.asarray(np.maximum(floor, np.nextafter(scale * factor, np.inf) * (1 + 1e-9)))


def clopper_pearson(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a share of k in n."""
    from scipy.stats import beta

    tail = (1 - level) / 2
    low = float(beta.ppf(tail, k, n - k + 1)) if k else 0.0
    high = float(beta.ppf(1 - tail, k + 1, n - k)) if k < n else 1.0
    return low, high


@dataclass(frozen=True, slots=True)
class Blocks:
    """n scans by event time, and the blocks that they come in.

    Attributes:
        codes: uint8 (n, c), cells, column by column.
        level: int32 (n,), levels of their sites.
        box: int64 (n,), boxes by number, from 0.
        slot: int64 (n,), slots of six hours since the first day began.
        days: calendar days from the first scan to the last.
        weekday: day of the week of day 0, 0-6.
        stratum: int32 (l,), of the reference.
        stratum_n: rows of the reference's cells.
    """

    codes: UInt8
    level: Int32
    box: Int64
    slot: Int64
    days: int
    weekday: int
    stratum: Int32
    strata: int

    @classmethod
    def of(cls, reference: Reference, batch: Batch) -> Blocks:
        """The newest days of a batch."""
        order = np.argsort(batch.time_us, kind="stable")
        day = batch.time_us[order] // DAY_US
        if len(order):
            order = order[day > day[-1] - MOST_DAYS]
        kept = batch.take(order)
        first = int(kept.time_us[0] // DAY_US) if len(kept) else 0
        last = int(kept.time_us[-1] // DAY_US) if len(kept) else -1
        return cls(
            np.asfortranarray(coded(kept.columns, reference.cuts, reference.used)),
            placed(kept, dict(zip(reference.sites, reference.level.tolist(), strict=True))),
            np.unique(kept.box, return_inverse=True)[1].astype(np.int64),
            kept.time_us // SLOT_US - first * A_DAY,
            last - first + 1,
            (first + 3) % WEEK,  # 1970-01-01 was a Thursday
            reference.stratum,
            len(reference.cells),
        )

    @property
    def day(self) -> Int64:
        """Day of each scan, from 0."""
        return self.slot // A_DAY

    @property
    def boxes(self) -> int:
        """Number of boxes."""
        return int(self.box.max()) + 1

    def weekdays(self) -> Int64:
        """Weekday of each day, int64 (days,)."""
        return (np.arange(self.days) + self.weekday) % WEEK

    def count(self, unit: Unit) -> int:
        """Number of blocks."""
        return self.boxes if unit.name == "box" else self.days // unit.days

    def lacks(self, unit: Unit) -> str:
        """Why a calibration by this unit is not to be trusted; "" where it is."""
        with_scans = len(np.unique(self.day))
        if unit.days == WEEK and self.days < LEAST_WEEKS * WEEK:
            return (
                f"days resemble the day before, so that whole weeks are resampled; "
                f"{LEAST_WEEKS} are needed, there are {self.days / WEEK:.1f}"
            )
        if self.days < LEAST_DAYS[unit.name]:
            return f"{LEAST_DAYS[unit.name]} days are needed, there are {self.days}"
        if 2 * with_scans < self.days:
            return f"only {with_scans} of {self.days} days have scans"
        if self.boxes < BOXES:
            return f"{BOXES} boxes are needed, there are {self.boxes}"
        return ""

    def unit(self, rng: np.random.Generator) -> Unit:
        """What to resample, by permutation tests on the means of days.

        Boxes are exchanged between days, days between weekdays, days in their order. Only what is
        significant makes blocks larger.
        """
        sums, n = self._scores()
        if not days_differ(sums, n, self._day_of_box(), self.days, rng):
            return Unit("box")
        means, weight = _means(sums, n, self._day_of_box(), self.days)
        weekday = self.weekdays()
        by_weekday = self.days >= 2 * WEEK and _differ(means, weight, weekday, WEEK, rng)
        name: Literal["day", "weekday"] = "weekday" if by_weekday else "day"
        groups = weekday if by_weekday else np.zeros(self.days, np.int64)
        if self.days >= 2 * WEEK and _follow(means, weight, groups, rng):
            return Unit("weekday", WEEK)
        return Unit(name)

    def _day_of_box(self) -> Int64:
        day = np.zeros(self.boxes, np.int64)
        day[self.box] = self.day
        return day

    def _scores(self) -> tuple[Float64, Float64]:
        """Of each box, sums of k scores and its scans: float64 (b, k) and (b,).

        Scores are the ranks of cells, less what is usual at the site, and indicators of the
        sites with most scans.
        """
        c = self.codes.shape[1]
        boxes = self.boxes
        common = np.argsort(-np.bincount(self.level), kind="stable")[:_TOP_SITES]
        group = self.stratum[self.level]
        at = np.bincount(group, minlength=self.strata)
        sums = np.empty((boxes, c + len(common)))
        for i in range(c):
            code = self.codes[:, i]
            share = np.bincount(code, minlength=CELLS) / len(code)
            score = (np.cumsum(share) - share / 2)[code]
            mean = np.bincount(group, weights=score, minlength=self.strata) / np.maximum(at, 1)
            sums[:, i] = np.bincount(self.box, weights=score - mean[group], minlength=boxes)
        for i, level in enumerate(common.tolist()):
            sums[:, c + i] = np.bincount(self.box, weights=self.level == level, minlength=boxes)
        return sums, np.bincount(self.box, minlength=boxes).astype(np.float64)


def _means(sums: Float64, n: Float64, day: Int64, days: int) -> tuple[Float64, Float64]:
    """Mean scores of each day less those of all, float64 (days, k), and its scans (days,)."""
    weight = np.bincount(day, weights=n, minlength=days)
    total = np.stack(
        [np.bincount(day, weights=column, minlength=days) for column in sums.T], axis=1
    )
    mean = total.sum(axis=0) / weight.sum()
    means = np.where(weight[:, None] > 0, total / np.maximum(weight, 1)[:, None] - mean, 0)
    return np.asarray(means), np.asarray(weight, np.float64)


def _significant(observed: Float64, permuted: Float64) -> bool:
    """Whether any of k statistics (k,) is larger than (p, k) permuted ones let expect."""
    every = np.vstack([observed, permuted])
    z = (every - permuted.mean(axis=0)) / np.maximum(permuted.std(axis=0), 1e-12)
    z = np.where(permuted.std(axis=0) > 1e-12, z, 0)
    largest = z.max(axis=1)
    return bool((largest[1:] >= largest[0]).mean() < _SIGNIFICANT and largest[0] > 0)


def days_differ(sums: Float64, n: Float64, day: Int64, days: int, rng: np.random.Generator) -> bool:
    """Whether days differ by more than the boxes that fall into them."""

    def statistic(of_box: Int64) -> Float64:
        means, weight = _means(sums, n, of_box, days)
        return np.asarray((weight[:, None] * means**2).sum(axis=0))

    permuted = np.stack([statistic(rng.permutation(day)) for _ in range(_PERMUTATIONS)])
    return _significant(statistic(day), permuted)


def _differ(
    means: Float64, weight: Float64, group: Int64, groups: int, rng: np.random.Generator
) -> bool:
    """Whether groups of days differ by more than their days."""

    def statistic(of_day: Int64) -> Float64:
        held = np.bincount(of_day, weights=weight, minlength=groups)
        total = np.zeros((groups, means.shape[1]))
        np.add.at(total, of_day, means * weight[:, None])
        return np.asarray((total**2 / np.maximum(held, 1)[:, None]).sum(axis=0))

    permuted = np.stack([statistic(rng.permutation(group)) for _ in range(_PERMUTATIONS)])
    return _significant(statistic(group), permuted)


def _follow(means: Float64, weight: Float64, group: Int64, rng: np.random.Generator) -> bool:
    """Whether days resemble the day before, beyond what their groups (weekdays) have in common."""
    rest = means.copy()
    for g in np.unique(group):
        mine = group == g
        held = max(float(weight[mine].sum()), 1.0)
        rest[mine] -= (weight[mine, None] * means[mine]).sum(axis=0) / held
    rest *= np.sqrt(weight)[:, None]

    def statistic(order: Index) -> Float64:
        return np.asarray((rest[order][1:] * rest[order][:-1]).sum(axis=0))

    def shuffled() -> Index:
        order = np.arange(len(rest))
        for g in np.unique(group):
            mine = np.flatnonzero(group == g)
            order[mine] = rng.permutation(mine)
        return order

    permuted = np.stack([statistic(shuffled()) for _ in range(_PERMUTATIONS)])
    return _significant(statistic(np.arange(len(rest))), permuted)


class Stream(NamedTuple):
    """Rows of `Blocks` in the order of a stream, and the slot of each in it."""

    row: Index
    slot: Int64


class Replay:
    """Null streams over a reference's blocks."""

    def __init__(self, reference: Reference, blocks: Blocks, unit: Unit) -> None:
        """Index the blocks."""
        self._reference, self._blocks, self._unit = reference, blocks, unit
        if unit.name == "box" and len(blocks.codes) > MOST_ROWS:
            blocks = _newest(blocks)
            self._blocks = blocks
        self.usual = tuple(
            max(round(len(blocks.codes) / blocks.days * window.days), 1) if window.days else RECENT
            for window in WINDOWS
        )
        day = blocks.day
        self._starts = np.searchsorted(day, np.arange(blocks.days + 1))
        group = day * blocks.strata + blocks.stratum[blocks.level]
        if unit.name != "box":
            shape = (blocks.days, -1)
            self._cells = counted(blocks.codes, group, blocks.days * blocks.strata)
            self._cells = self._cells.reshape(shape).astype(np.float32)
            levels = len(reference.level_n)
            self._levels = np.bincount(
                day * levels + blocks.level, minlength=blocks.days * levels
            ).reshape(shape)
            slots = blocks.days * A_DAY
            self._in_slot = counted(blocks.codes, blocks.slot, slots).astype(np.float32)
            self._levels_in_slot = _by_group(blocks.level, blocks.slot, slots, levels)
            return
        by_box = np.argsort(blocks.box, kind="stable")
        bounds = np.searchsorted(blocks.box[by_box], np.arange(blocks.boxes + 1))
        self._rows_of_box, self._box_bounds = by_box, bounds
        self._boxes_of_day = np.bincount(blocks._day_of_box(), minlength=blocks.days)

    def peaks(self, rng: np.random.Generator) -> Float64:
        """Largest distances over time of one stream, as thresholds see them: float64 (w, c + 1)."""
        largest = np.zeros((len(WINDOWS), len(self._reference.measured)))
        for i, (distance, n) in enumerate(self.distances(rng)):
            factor = np.array([thinner(scans, self.usual[i]) for scans in n.tolist()])
            judged = n >= MINIMUM
            if judged.any():
                largest[i] = (distance / factor[:, None])[judged].max(axis=0)
        return largest

    def distances(self, rng: np.random.Generator) -> list[tuple[Float64, Int64]]:
        """Distances in one stream of DAYS days: float64 (t, c + 1), and scans, for each window.

        At the end of each slot for the window of the last scans, of every second one for others.
        """
        half, counts, levels, recent = self._stream(rng)
        slots = np.arange(WARM_UP * A_DAY, (WARM_UP + DAYS) * A_DAY)
        cells = np.concatenate([np.zeros_like(counts[:1]), np.cumsum(counts, axis=0)])
        places = np.concatenate([np.zeros_like(levels[:1]), np.cumsum(levels, axis=0)])
        found = []
        for window in WINDOWS:
            if window.days:
                ends = slots[1::2] + 1
                since = ends - window.days * A_DAY
                held = (cells[ends] - cells[since], places[ends] - places[since])
            else:
                held = self._recent(recent, slots)
            found.append((half(*held), held[1].sum(axis=1)))
        return found

    def _stream(self, rng: np.random.Generator) -> tuple[Comparison, Float32, Int64, Stream]:
        """Half as a reference, and of the other half a stream: cells and levels of each slot."""
        if self._unit.name == "box":
            return self._of_boxes(rng)
        days, other = self._drawn_days(rng)
        shape = self._reference.cells.shape
        cells: Float32 = (other.astype(np.float32) @ self._cells).reshape(shape)
        half = Comparison(self._reference, cells, other.astype(np.int64) @ self._levels)
        slot = (days[:, None] * A_DAY + np.arange(A_DAY)).ravel()
        row = np.concatenate([np.arange(self._starts[d], self._starts[d + 1]) for d in days])
        size = np.diff(self._starts)[days]
        shift = np.repeat((np.arange(len(days)) - days) * A_DAY, size)
        stream = Stream(row, self._blocks.slot[row] + shift)
        return half, self._in_slot[slot], self._levels_in_slot[slot], stream

    def _drawn_days(self, rng: np.random.Generator) -> tuple[Index, Bool]:
        """Days of a stream in their order, and which days (mask) play reference."""
        days, weekday = self._blocks.days, self._blocks.weekdays()
        length, block = WARM_UP + DAYS, self._unit.days
        other = np.zeros(days, bool)
        if block > 1:
            # Whole weeks, wherever they begin; what is left at the end stays with its week.
            week = np.minimum(np.arange(days) // block, max(days // block - 1, 0))
            weeks = rng.permutation(int(week.max()) + 1)
            other = np.isin(week, weeks[: len(weeks) // 2])
            drawn = rng.choice(weeks[len(weeks) // 2 :], -(-length // block))
            return (drawn[:, None] * block + np.arange(block)).ravel()[:length], other
        group = weekday if self._unit.name == "weekday" else np.zeros(days, np.int64)
        for g in np.unique(group):
            held = rng.permutation(np.flatnonzero(group == g))
            # Of an odd number, either half may have one more; a single day plays both.
            at = (len(held) + int(rng.integers(2))) // 2
            other[held[:at]] = True
        drawn = np.empty(length, np.intp)
        first = int(rng.integers(WEEK))
        for i in range(length):
            g = (first + i) % WEEK if self._unit.name == "weekday" else 0
            pool = np.flatnonzero((group == g) & ~other)
            if not len(pool):
                pool = np.flatnonzero(group == g) if (group == g).any() else np.arange(days)
            drawn[i] = rng.choice(pool)
        return drawn, other

    def _of_boxes(self, rng: np.random.Generator) -> tuple[Comparison, Float32, Int64, Stream]:
        blocks, reference = self._blocks, self._reference
        order = rng.permutation(blocks.boxes)
        other, mine = order[: len(order) // 2], order[len(order) // 2 :]
        plays = np.zeros(blocks.boxes, bool)
        plays[other] = True
        rows = np.flatnonzero(plays[blocks.box])
        levels = len(reference.level_n)
        half = Comparison(
            reference,
            counted(blocks.codes, blocks.stratum[blocks.level[rows]], blocks.strata, rows),
            np.bincount(blocks.level[rows], minlength=levels),
        )
        length = WARM_UP + DAYS
        number = rng.choice(self._boxes_of_day, length)
        drawn = rng.choice(mine, int(number.sum()))
        start, stop = self._box_bounds[drawn], self._box_bounds[drawn + 1]
        size = stop - start
        offset = np.repeat(start - (np.cumsum(size) - size), size)
        row = self._rows_of_box[np.arange(int(size.sum())) + offset]
        day = np.repeat(np.repeat(np.arange(length), number), size)
        slot = day * A_DAY + blocks.slot[row] % A_DAY
        by_slot = np.argsort(slot, kind="stable")
        stream = Stream(row[by_slot], slot[by_slot])
        counts = counted(blocks.codes, stream.slot, length * A_DAY, stream.row)
        place = _by_group(blocks.level[stream.row], stream.slot, length * A_DAY, levels)
        return half, counts.astype(np.float32), place, stream

    def _recent(self, stream: Stream, ends: Int64) -> tuple[Int64, Int64]:
        """The last RECENT scans at the end of each slot: cells and levels."""
        stop = np.searchsorted(stream.slot, ends, side="right")
        at = stop[:, None] - RECENT + np.arange(RECENT)
        held = at >= 0
        row = stream.row[at[held]]
        group = np.repeat(np.arange(len(ends)), held.sum(axis=1))
        counts = counted(self._blocks.codes, group, len(ends), row)
        levels = len(self._reference.level_n)
        return counts, _by_group(self._blocks.level[row], group, len(ends), levels)


def _newest(blocks: Blocks) -> Blocks:
    """The newest whole days with at most MOST_ROWS scans, but two weeks at least."""
    size = np.bincount(blocks.day, minlength=blocks.days)
    newer = np.cumsum(size[::-1])[::-1]
    first = int(np.argmax(newer <= MOST_ROWS)) if (newer <= MOST_ROWS).any() else blocks.days - 1
    first = max(min(first, blocks.days - 2 * WEEK), 0)
    kept = blocks.day >= first
    return replace(
        blocks,
        codes=np.asfortranarray(blocks.codes[kept]),
        level=blocks.level[kept],
        box=np.unique(blocks.box[kept], return_inverse=True)[1].astype(np.int64),
        slot=blocks.slot[kept] - first * A_DAY,
        days=blocks.days - first,
        weekday=(blocks.weekday + first) % WEEK,
    )


def _by_group(value: Int32, group: Int64, groups: int, values: int) -> Int64:
    """Counts of values in each group, int64 (groups, values)."""
    key = group.astype(np.int64) * values + value
    return np.bincount(key, minlength=groups * values).reshape(groups, values)
