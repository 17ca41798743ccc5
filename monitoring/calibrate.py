"""Calibration: thresholds such that a stream without drift hardly ever alarms in 30 days.

The detector's own windows and distances are replayed on streams that are put together from the
reference's own scans. Blocks are boxes, within their weekday where weekdays differ: half of them
play reference, the other half the stream. Where days differ by more than their boxes let expect,
days are drawn and then boxes of those days, or whole weeks where there are enough of them. Of
these there are few, so that the stream draws from all of them, and half as many, drawn with
replacement, play reference: halves would hold too few extremes for 30 days to come. What makes
honest traffic vary is so in the thresholds, whatever p-values would say.
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
LEAST_REPLICATES: Final = 20
"""Fewer show no tenth of them."""
MOST_DAYS: Final = 63
"""Newest days of a reference that blocks are taken from."""
MOST_ROWS: Final = 100_000
"""Scans that a replay takes blocks from, the newest days that hold so many, where it may choose."""
WEEK: Final = 7
_PERMUTATIONS: Final = 200
_SIGNIFICANT: Final = 0.05
_VERY_SIGNIFICANT: Final = 0.005
"""Of resemblance to the day before, where weeks are too few for it: no calibration is left."""
_TOP_SITES: Final = 8
_COLUMNS: Final = 5
"""Columns that vary by themselves from block to block; many of two dozen say the same."""
_SHORTEST: Final = min(window.days for window in WINDOWS if window.tier == "retrain")

BOXES: Final = 200
"""Boxes that a calibration by box needs."""
LEAST_DAYS: Final = {"box": 14, "weekday": 28, "day": 21}
"""Days that a calibration needs, by unit."""
WEEKLY_DAYS: Final = 28
"""The same where days are drawn for their weekday: four of each."""
LEAST_WEEKS: Final = 8
"""Weeks that one by whole weeks needs."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What is resampled.

    Attributes:
        name: "box"; "weekday", which is boxes within their weekday; or "day", which is days and
            then boxes of these days.
        weekly: days are drawn for their own weekday.
        days: consecutive days kept together, 1 or 7.
    """

    name: Literal["box", "weekday", "day"]
    weekly: bool = False
    days: int = 1


def calibrated(
    reference: Reference,
    batch: Batch,
    seed: int = 0,
    replicates: int = REPLICATES,
    held_out: int | None = None,
    unit: Unit | None = None,
    progress: Callable[[int], object] | None = None,
) -> Reference:
    """The reference with thresholds.

    Args:
        reference: made from `batch`.
        batch: the scans that the reference was made from.
        seed: of the streams.
        replicates: streams behind the thresholds.
        held_out: streams behind the estimate; None is as many, and 0 gives no estimate.
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
    held_out = replicates if held_out is None else held_out
    peaks = np.empty((replicates + held_out, len(WINDOWS), len(reference.measured)))
    for i in range(len(peaks)):
        peaks[i] = replay.peaks(np.random.default_rng((seed, i)))
        if progress is not None:
            progress(1)
    chosen, held = peaks[:replicates], peaks[replicates:]
    threshold = np.empty(peaks.shape[1:])
    raised = unseen(unit, blocks.count(unit))
    estimate: dict[str, float | None] = {}
    interval: dict[str, tuple[float, float] | None] = {}
    for tier in ("warn", "retrain"):
        mine = np.array([window.tier == tier for window in WINDOWS])
        threshold[mine] = thresholds(chosen[:, mine], reference.floor, raised=raised[mine])
        alarms = int((held[:, mine] >= threshold[mine]).any(axis=(1, 2)).sum())
        estimate[tier] = alarms / held_out if held_out else None
        interval[tier] = clopper_pearson(alarms, held_out) if held_out else None
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


def thresholds(
    peaks: Float64, floor: Float64, target: float = TARGET, raised: Float64 | float = 1.0
) -> Float64:
    """Thresholds of windows and columns, float64 (w, c), that few streams reach anywhere.

    Each column in each window has its own middle and spread, the median of its peaks and how far
    their 90th percentile lies above it. A threshold is the middle and so many spreads, as many for
    all, that at most the target share of streams has any peak at its threshold or above. Middle and
    spread come from every second stream, their number from the others: so no stream fits itself.

    Args:
        peaks: float64 (r, w, c), the largest distance of each stream.
        floor: float64 (c,), smallest thresholds.
        target: wanted share.
        raised: factors for what the streams cannot show (`unseen`), float64 (w,) or one for all.
    """
    middle, high = np.quantile(peaks[::2], (0.5, 0.9), axis=0)
    spread = np.maximum(high - middle, np.maximum(0.1 * middle, 1e-3))
    rest = peaks[1::2]
    over = np.where(rest >= floor, (rest - middle) / spread, 0).max(axis=(1, 2))
    rank = int(np.ceil((1 - target) * (len(rest) + 1))) - 1
    factor = max(float(np.sort(over)[min(rank, len(over) - 1)]), 0.0)
    # Just above the chosen stream's own peak, which so is no alarm.
    level = (middle + spread * factor) * (1 + 1e-9)
    return np.asarray(np.maximum(floor, level * np.reshape(raised, (-1, 1))))


def unseen(unit: Unit, blocks: int) -> Float64:
    """Factors of the windows' thresholds for what resampling of few blocks does not show, (w,).

    Blocks drawn again from g vary by (g - 1) / g of what those to come will. Days that are drawn by
    their weekday are few of each, and as many means of weekdays make up for a part of it, but less
    the longer a window is. Half as many blocks play reference, which makes up for a part, too. The
    rest is 1.02 for three days and 1.05 for seven where weekdays have four days each. To that comes
    `few_blocks`.

    Args:
        unit: what is resampled.
        blocks: how many there are.
    """
    if unit.name != "day":  # boxes, of which there are many
        return np.full(len(WINDOWS), few_blocks(blocks - 1))
    groups = WEEK if unit.weekly and unit.days == 1 else 1
    each = max(blocks / groups, 2.0)
    days = np.array([max(window.days / unit.days, 1.0) for window in WINDOWS])
    between = np.maximum(1 / days - 1 / groups, 0) / each
    seen = (1 - 1 / each) * (1 / days + 2 / blocks) + between
    lacking = np.sqrt(np.maximum((1 / days + 1 / blocks) / seen, 1))
    return np.asarray(few_blocks(blocks - groups, unit.days) * lacking)


def few_blocks(known: int, days: int = 1) -> float:
    """Factor of thresholds that rest on so many degrees of freedom; 1.36 for 8 weeks, 1.12 for 28
    days of seven weekdays.

    The next month has weeks that none of few was like, and no resampling shows them. Student's t
    tells by how much a deviation judged by few others exceeds one that many are known of, as rare
    as one of a month's independent comparisons may be.

    Args:
        known: blocks less the means taken of them.
        days: in a block; longer ones bring fewer comparisons that are independent.
    """
    from scipy.stats import norm, t

    comparisons = _COLUMNS * DAYS / max(days, _SHORTEST)
    tail = 1 - TARGET / comparisons
    return float(t.ppf(tail, max(known, 1)) / norm.ppf(tail))


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
        return self.days // unit.days if unit.name == "day" else self.boxes

    def lacks(self, unit: Unit) -> str:
        """Why a calibration by this unit is not to be trusted; "" where it is."""
        with_scans = len(np.unique(self.day))
        needed = WEEKLY_DAYS if unit.weekly else LEAST_DAYS[unit.name]
        if unit.days == WEEK and self.days < LEAST_WEEKS * WEEK:
            return (
                f"days resemble the day before, so that whole weeks are resampled; "
                f"{LEAST_WEEKS} are needed, there are {self.days / WEEK:.1f}"
            )
        if self.days < needed:
            return f"{needed} days are needed, there are {self.days}"
        if 2 * with_scans < self.days:
            return f"only {with_scans} of {self.days} days have scans"
        if self.boxes < BOXES:
            return f"{BOXES} boxes are needed, there are {self.boxes}"
        return ""

    def unit(self, rng: np.random.Generator) -> Unit:
        """What to resample, by permutation tests on the means of days.

        Days are exchanged between weekdays, boxes between days (of one weekday), days in their
        order. Only what is significant makes blocks larger; but where days differ and there are
        weeks enough, whole weeks are taken untested: what lasts from day to day is hard to see in
        two months, and thresholds by single days then alarm in honest ones.
        """
        sums, n = self._scores()
        day_of_box, weekday = self.day_of_box(), self.weekdays()
        means, weight = _means(sums, n, day_of_box, self.days)
        weekly = self.days >= 2 * WEEK and _differ(means, weight, weekday, WEEK, rng)
        groups = weekday if weekly else np.zeros(self.days, np.int64)
        if not days_differ(sums, n, day_of_box, groups, rng):
            return Unit("weekday" if weekly else "box", weekly)
        enough = self.days >= LEAST_WEEKS * WEEK
        if enough or (self.days >= 2 * WEEK and _follow(means, weight, groups, rng)):
            return Unit("day", weekly, WEEK)
        return Unit("day", weekly)

    def day_of_box(self) -> Int64:
        """Day of each box."""
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


def _significant(observed: Float64, permuted: Float64, level: float = _SIGNIFICANT) -> bool:
    """Whether any of k statistics (k,) is larger than (p, k) permuted ones let expect."""
    every = np.vstack([observed, permuted])
    z = (every - permuted.mean(axis=0)) / np.maximum(permuted.std(axis=0), 1e-12)
    z = np.where(permuted.std(axis=0) > 1e-12, z, 0)
    largest = z.max(axis=1)
    return bool((largest[1:] >= largest[0]).mean() < level and largest[0] > 0)


def days_differ(
    sums: Float64, n: Float64, day: Int64, group: Int64, rng: np.random.Generator
) -> bool:
    """Whether days of one group differ by more than the boxes that fall into them."""
    boxes = [np.flatnonzero(group[day] == g) for g in np.unique(group)]

    def statistic(of_box: Int64) -> Float64:
        means, weight = _means(sums, n, of_box, len(group))
        return np.asarray((weight[:, None] * means**2).sum(axis=0))

    def shuffled() -> Int64:
        other = day.copy()
        for mine in boxes:
            other[mine] = rng.permutation(day[mine])
        return other

    permuted = np.stack([statistic(shuffled()) for _ in range(_PERMUTATIONS)])
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
    return _significant(statistic(np.arange(len(rest))), permuted, _VERY_SIGNIFICANT)


class Stream(NamedTuple):
    """Rows of `Blocks` in the order of a stream, and the slot of each in it."""

    row: Index
    slot: Int64


class Replay:
    """Null streams over a reference's blocks."""

    def __init__(self, reference: Reference, blocks: Blocks, unit: Unit) -> None:
        """Index the blocks."""
        if len(blocks.codes) > MOST_ROWS and unit.days == 1:
            blocks = _newest(blocks, unit)
        self._reference, self._blocks, self._unit = reference, blocks, unit
        self.usual = tuple(
            max(round(len(blocks.codes) / blocks.days * window.days), 1) if window.days else RECENT
            for window in WINDOWS
        )
        self._rows_of_box = np.argsort(blocks.box, kind="stable")
        numbers = np.arange(blocks.boxes + 1)
        self._bounds = np.searchsorted(blocks.box[self._rows_of_box], numbers)
        day_of_box = blocks.day_of_box()
        self._group_of_box = blocks.weekdays()[day_of_box] * int(unit.weekly)
        self._boxes_of_day = np.split(
            np.argsort(day_of_box, kind="stable"),
            np.cumsum(np.bincount(day_of_box, minlength=blocks.days))[:-1],
        )
        self._levels = len(reference.level_n)
        self._starts = np.searchsorted(blocks.day, np.arange(blocks.days + 1))

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
        half, stream = self.stream(rng)
        return [
            (half(counts, levels), levels.sum(axis=1)) for counts, levels in self.contents(stream)
        ]

    def contents(self, stream: Stream) -> list[tuple[Float32 | Int64, Int64]]:
        """What each window holds along a stream: cells (t, c, CELLS) and levels (t, l)."""
        blocks, slots = self._blocks, (WARM_UP + DAYS) * A_DAY
        cells = counted(blocks.codes, stream.slot, slots, stream.row).astype(np.float32)
        places = _by_group(blocks.level[stream.row], stream.slot, slots, self._levels)
        cells = np.concatenate([np.zeros_like(cells[:1]), np.cumsum(cells, axis=0)])
        places = np.concatenate([np.zeros_like(places[:1]), np.cumsum(places, axis=0)])
        ends = np.arange(WARM_UP * A_DAY, slots)
        held: list[tuple[Float32 | Int64, Int64]] = []
        for window in WINDOWS:
            if window.days:
                stop = ends[1::2] + 1
                start = stop - window.days * A_DAY
                held.append((cells[stop] - cells[start], places[stop] - places[start]))
            else:
                held.append(self._recent(stream, ends))
        return held

    def stream(self, rng: np.random.Generator) -> tuple[Comparison, Stream]:
        """Some blocks as a reference, and a stream of the others, or of all where they are few."""
        blocks = self._blocks
        if self._unit.name == "day":
            days, other = self._drawn_days(rng)
            drawn = [rng.choice(b, len(b)) for b in (self._boxes_of_day[d] for d in days) if len(b)]
            number = np.array([len(self._boxes_of_day[d]) for d in days])
            rows = _joined([np.arange(self._starts[d], self._starts[d + 1]) for d in other])
        else:
            plays = np.zeros(blocks.boxes, bool)
            plays[rng.permutation(blocks.boxes)[: blocks.boxes // 2]] = True
            drawn, number = self._drawn_boxes(~plays, rng)
            rows = np.flatnonzero(plays[blocks.box])
        strata = blocks.stratum[blocks.level[rows]]
        half = Comparison(
            self._reference,
            counted(blocks.codes, strata, blocks.strata, rows),
            np.bincount(blocks.level[rows], minlength=self._levels),
        )
        return half, self._rows(_joined(drawn), number)

    def _rows(self, drawn: Index, number: Int64) -> Stream:
        """The scans of boxes that follow each other, `number` a day."""
        start, stop = self._bounds[drawn], self._bounds[drawn + 1]
        size = stop - start
        offset = np.repeat(start - (np.cumsum(size) - size), size)
        row = self._rows_of_box[np.arange(int(size.sum())) + offset]
        day = np.repeat(np.repeat(np.arange(len(number)), number), size)
        slot = day * A_DAY + self._blocks.slot[row] % A_DAY
        by_slot = np.argsort(slot, kind="stable")
        return Stream(row[by_slot], slot[by_slot])

    def _drawn_boxes(self, mine: Bool, rng: np.random.Generator) -> tuple[list[Index], Int64]:
        """Boxes for each day of a stream, of its weekday where that matters, and how many."""
        weekday = self._blocks.weekdays() * int(self._unit.weekly)
        groups = range(WEEK if self._unit.weekly else 1)
        pools = [np.flatnonzero(mine & (self._group_of_box == g)) for g in groups]
        alike = [np.flatnonzero(weekday == g) for g in groups]
        drawn, first = [], int(rng.integers(WEEK))
        number = np.zeros(WARM_UP + DAYS, np.int64)
        for i in range(len(number)):
            g = (first + i) % len(pools)
            size = len(self._boxes_of_day[rng.choice(alike[g])])
            if len(pools[g]) and size:
                drawn.append(rng.choice(pools[g], size))
                number[i] = size
        return drawn, number

    def _drawn_days(self, rng: np.random.Generator) -> tuple[Index, Index]:
        """Days of a stream in their order, and days that play reference."""
        days, length, block = self._blocks.days, WARM_UP + DAYS, self._unit.days
        if block > 1:
            weeks = days // block
            last = days - weeks * block
            picked = [rng.choice(weeks, n) for n in (-(-length // block), (weeks + 1) // 2)]
            # Weeks begin with the newest whole one; the oldest days that are left over play none.
            drawn, other = ((w[:, None] * block + last + np.arange(block)).ravel() for w in picked)
            return drawn[:length], other
        group = self._blocks.weekdays() * int(self._unit.weekly)
        first = int(rng.integers(WEEK))
        stream = np.empty(length, np.intp)
        for i in range(length):
            stream[i] = rng.choice(np.flatnonzero(group == (first + i) % WEEK * self._unit.weekly))
        halves = [
            rng.choice(held, (len(held) + int(rng.integers(2))) // 2)
            for held in (np.flatnonzero(group == g) for g in np.unique(group))
        ]
        return stream, np.concatenate(halves)

    def _recent(self, stream: Stream, ends: Int64) -> tuple[Int64, Int64]:
        """The last RECENT scans at the end of each slot: cells and levels."""
        stop = np.searchsorted(stream.slot, ends, side="right")
        at = stop[:, None] - RECENT + np.arange(RECENT)
        held = at >= 0
        row = stream.row[at[held]]
        group = np.repeat(np.arange(len(ends)), held.sum(axis=1))
        counts = counted(self._blocks.codes, group, len(ends), row)
        return counts, _by_group(self._blocks.level[row], group, len(ends), self._levels)


def _newest(blocks: Blocks, unit: Unit) -> Blocks:
    """The newest whole days with at most MOST_ROWS scans, but as many days as the unit needs."""
    size = np.bincount(blocks.day, minlength=blocks.days)
    newer = np.cumsum(size[::-1])[::-1]
    least = WEEKLY_DAYS if unit.weekly else LEAST_DAYS[unit.name]
    first = max(min(int((newer > MOST_ROWS).sum()), blocks.days - least), 0)
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


def _joined(parts: list[Index]) -> Index:
    return np.concatenate([np.empty(0, np.intp), *parts])


def _by_group(value: Int32, group: Int64, groups: int, values: int) -> Int64:
    """Counts of values in each group, int64 (groups, values)."""
    key = group.astype(np.int64) * values + value
    return np.bincount(key, minlength=groups * values).reshape(groups, values)
