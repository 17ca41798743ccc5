"""What the world is like: one frozen profile each for easy, hard and installation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

DWELL_DAYS: Final = {
    "short": (3.0, 2.0, 5.0, 4.0, 6.0),
    "long": (28.0, 15.0, 34.0, 6.0, 33.0),
}
"""Mean days at the warehouse, hub, wholesaler, in the retailer's store room, on its shelf."""

DWELL_SHAPE: Final = 1.56
"""Gamma shape of a dwell: DEP minutes of Cargo 2000 (python -m world.freight, docs/world.md)."""
DELAY_DF: Final = 2.36
"""Degrees of freedom of the Student-t that fits log(effective/planned) leg time, Cargo 2000."""
DELAY_SCALE: Final = 0.241
"""Scale of the same fit, in log units."""
DELAY_FROM: Final = 1.5
"""Scales above the median from which the freight tail delays a leg: it never speeds one up."""
DELAY_MOST: Final = 6.0
"""Factor that a delay never exceeds: a leg does not take weeks."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Parameters of a world; units stand in the names.

    Attributes:
        name: easy, hard or installation.
        lot_items_median: items of a lot, lognormal median.
        lot_items_sd_log: its spread in log units; 0 is a fixed size.
        lot_items_least: smallest lot.
        lot_items_most: largest lot.
        box_items: items of a box (the unit below the wholesaler).
        pallet_boxes: boxes of a pallet (the unit above the wholesaler).
        items_part_at_wholesaler: items of a box go to several retailers.
        leg_uniform_h: (least, most) hours of a leg whatever its distance, None for a road.
        opening_hours: sites open 8-20 Mon-Sat, retailers 9-21, sales 10-21 also on Sundays.
        expedited_share: legs that take 0.5-0.8 of the time.
        skew_sd_s: clock error of most sites, set anew each week.
        skew_bad_share: sites with a bad clock.
        skew_bad_sd_s: clock error of these.
        manual_share: scans typed in by hand.
        manual_sd_h: error of a time typed in by hand.
        missed_item_share: items that a portal does not read.
        missed_box_share: boxes or pallets that a portal does not read.
        missed_lot_share: lots that lack their first 1-4 scans.
        repeated_share: scans read twice.
        repeated_after_s: (least, most) seconds to the second reading.
        late_share: box readings recorded late.
        late_mean_h: their mean delay, exponential.
        returned_share: sold items that a customer brings back.
        redistributed_share: items sent on alone, lawfully.
        unused_serial_share: serial numbers of scrapped labels.
    """

    name: str
    lot_items_median: float = 300.0
    lot_items_sd_log: float = 0.4
    lot_items_least: int = 48
    lot_items_most: int = 1200
    box_items: int = 12
    pallet_boxes: int = 4
    items_part_at_wholesaler: bool = False
    leg_uniform_h: tuple[float, float] | None = None
    opening_hours: bool = True
    expedited_share: float = 0.0
    skew_sd_s: float = 30.0
    skew_bad_share: float = 0.10
    skew_bad_sd_s: float = 300.0
    manual_share: float = 0.0
    manual_sd_h: float = 1.0
    missed_item_share: float = 0.02
    missed_box_share: float = 0.004
    missed_lot_share: float = 0.0
    repeated_share: float = 0.015
    repeated_after_s: tuple[float, float] = (5.0, 300.0)
    late_share: float = 0.006
    late_mean_h: float = 1.0
    returned_share: float = 0.01
    redistributed_share: float = 0.0
    unused_serial_share: float = 0.01

    def noisier(self, factor: float) -> Profile:
        """The same world with every observation error `factor` times as large or as frequent."""
        return replace(
            self,
            skew_sd_s=self.skew_sd_s * factor,
            skew_bad_sd_s=self.skew_bad_sd_s * factor,
            manual_share=self.manual_share * factor,
            missed_item_share=self.missed_item_share * factor,
            missed_box_share=self.missed_box_share * factor,
            missed_lot_share=self.missed_lot_share * factor,
            repeated_share=self.repeated_share * factor,
            late_share=self.late_share * factor,
        )


EASY: Final = Profile("easy")
HARD: Final = Profile(
    "hard",
    expedited_share=0.01,
    manual_share=0.006,
    missed_item_share=0.05,
    missed_box_share=0.02,
    missed_lot_share=0.06,
    redistributed_share=0.012,
)
INSTALLATION: Final = Profile(
    "installation",
    lot_items_median=2000.0,
    lot_items_sd_log=0.0,
    lot_items_most=2000,
    box_items=100,
    pallet_boxes=1,
    items_part_at_wholesaler=True,
    leg_uniform_h=(1.0, 10.0),
    opening_hours=False,
)
PROFILES: Final = {profile.name: profile for profile in (EASY, HARD, INSTALLATION)}
