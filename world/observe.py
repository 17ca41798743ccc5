"""Observation: what the readers and their clocks make of physical scans."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trail.scan import Float64, Int8, Int32, Int64, Op
from world.calendar import DAY_S, HOUR_S
from world.profile import Profile
from world.streams import stream

WEEK_S = 7 * DAY_S


@dataclass(frozen=True, slots=True)
class Noise:
    """Errors of recording; see `Profile` for what each is.

    Attributes:
        skew_sd_s: clock error of most sites, seconds.
        skew_bad_share: sites with a bad clock.
        skew_bad_sd_s: clock error of these, seconds.
        manual_share: scans typed in by hand.
        manual_sd_s: error of such a time, seconds.
        repeated_share: scans read twice.
        repeated_after_s: (least, most) seconds to the second reading.
        late_share: box readings recorded late.
        late_mean_s: their mean delay, seconds.
    """

    skew_sd_s: float = 30.0
    skew_bad_share: float = 0.10
    skew_bad_sd_s: float = 300.0
    manual_share: float = 0.0
    manual_sd_s: float = 3600.0
    repeated_share: float = 0.0
    repeated_after_s: tuple[float, float] = (5.0, 300.0)
    late_share: float = 0.0
    late_mean_s: float = 3600.0

    @classmethod
    def of(cls, profile: Profile) -> Noise:
        """The errors of a profile."""
        return cls(
            skew_sd_s=profile.skew_sd_s,
            skew_bad_share=profile.skew_bad_share,
            skew_bad_sd_s=profile.skew_bad_sd_s,
            manual_share=profile.manual_share,
            manual_sd_s=profile.manual_sd_h * HOUR_S,
            repeated_share=profile.repeated_share,
            repeated_after_s=profile.repeated_after_s,
            late_share=profile.late_share,
            late_mean_s=profile.late_mean_h * HOUR_S,
        )


NO_NOISE = Noise(skew_sd_s=0.0, skew_bad_share=0.0)
"""Only whole seconds remain."""


@dataclass(frozen=True)
class Clocks:
    """The clock error of every site in every week.

    Attributes:
        start_s: beginning of the first week, seconds since 1970.
        skew_s: float64 (k, weeks).
    """

    start_s: float
    skew_s: Float64

    @classmethod
    def of(cls, noise: Noise, seed: int, k: int, start_s: float, end_s: float) -> Clocks:
        """Clocks of k sites, each set anew every week."""
        weeks = int((end_s - start_s) // WEEK_S) + 2
        skew = np.empty((k, weeks))
        for site in range(k):
            rng = stream(seed, "clock", site)
            bad = rng.random() < noise.skew_bad_share
            sd = noise.skew_bad_sd_s if bad else noise.skew_sd_s
            skew[site] = rng.standard_normal(weeks) * sd
        return cls(start_s, skew)

    def error_s(self, site: Int32, time_s: Float64) -> Float64:
        """Seconds that the clock of `site` is ahead at `time_s`."""
        week = ((time_s - self.start_s) // WEEK_S).astype(np.int64)
        return self.skew_s[site, np.clip(week, 0, self.skew_s.shape[1] - 1)]


def record(
    site: Int32,
    op: Int8,
    time_s: Float64,
    noise: Noise,
    clocks: Clocks,
    rng: np.random.Generator,
) -> tuple[Int64, npt.NDArray[np.intp], Int64]:
    """Recorded times of the scans of one lot, and which of them are read twice.

    A box is recorded as one: its scans at a site share the clock error and a late recording.

    Args:
        site: int32 (n,).
        op: int8 (n,).
        time_s: float64 (n,), physical time, seconds since 1970.
        noise: the errors.
        clocks: the sites' clocks.
        rng: the stream of this lot.

    Returns:
        Whole seconds int64 (n,), positions that are read twice (r,), whole seconds of the second
        reading int64 (r,).
    """
    n = len(site)
    seen_s = time_s + clocks.error_s(site, time_s)
    together = same_reading(site, op, time_s)
    groups = int(together.max()) + 1 if n else 0
    late = rng.exponential(noise.late_mean_s, groups) * (rng.random(groups) < noise.late_share)
    box_read = (op != Op.AGGREGATION) & (op != Op.SALE)
    seen_s = seen_s + np.where(box_read, late[together] if n else 0.0, 0.0)
    by_hand = (rng.random(n) < noise.manual_share) & (op != Op.AGGREGATION)
    seen_s = seen_s + by_hand * rng.standard_normal(n) * noise.manual_sd_s
    twice = np.flatnonzero((rng.random(n) < noise.repeated_share) & (op != Op.AGGREGATION))
    again_s = seen_s[twice] + rng.uniform(*noise.repeated_after_s, len(twice))
    return (
        np.floor(seen_s).astype(np.int64),
        twice,
        np.floor(again_s).astype(np.int64),
    )


def same_reading(site: Int32, op: Int8, time_s: Float64) -> npt.NDArray[np.intp]:
    """Number of the portal reading that each scan of a lot belongs to: same site, op and time."""
    order = np.lexsort((op, site, time_s))
    new = np.empty(len(order), dtype=bool)
    new[:1] = False
    new[1:] = (
        (np.diff(time_s[order]) != 0) | (np.diff(site[order]) != 0) | (np.diff(op[order]) != 0)
    )
    number = np.empty(len(order), dtype=np.intp)
    number[order] = np.cumsum(new)
    return number
