"""The demo's world: honest traffic, then a new factory opens and every dwell takes twice as long.

Small lots, many a day: what traffic is usual shows in weeks, where large lots would take months.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trail.scan import DAY_US, SECOND_US, Float64, Int32, Op, Scans
from world import export
from world.__main__ import write
from world.calendar import DAY_S
from world.ground import Ground
from world.journey import LOT_NUMBERS_OF_A_FACTORY
from world.network import Network, made_up
from world.profile import DWELL_DAYS, HARD
from world.simulate import Options, World, honest_scans, observed
from world.tampering import draft, truth_of
from world.truth import Marks

START: Final = date(2025, 1, 6)
SLOWER: Final = 2.0
"""Factor of all dwells after the change."""
NEW_SITES: Final = 2
"""A factory and its warehouse, the last sites of the network."""
_PROFILE: Final = replace(
    HARD,
    lot_items_median=12.0,
    lot_items_sd_log=0.3,
    lot_items_least=6,
    lot_items_most=30,
    box_items=6,
    pallet_boxes=2,
)
_TAMPERED: Final = 0.001
"""Of the items, for each type: as in the default world."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Days of a demo's world, counted from its first lot.

    Attributes:
        learned: days in the project's data; what follows comes through the service.
        change: day on which the factory opens and dwells double.
        days: all days.
        lots: lots a day, of five factories together.
        seed: of everything.
    """

    learned: int
    change: int
    days: int
    lots: float = 8.0
    seed: int = 7

    @property
    def start_us(self) -> int:
        """When day 0 begins."""
        return int(datetime.combine(START, time(), UTC).timestamp()) * SECOND_US


class SlowedGround(Ground):
    """A ground on which dwells take `SLOWER` times as long from `change_s` on."""

    def leave(self, site: Int32, after_s: Float64, op: Op, rng: np.random.Generator) -> Float64:
        """See `Ground.leave`."""
        state = rng.bit_generator.state
        usual = replace(self, change_s=np.inf)
        left = Ground.leave(usual, site, after_s, op, rng)
        late = after_s >= self.change_s
        if late.any():
            rng.bit_generator.state = state
            slow = replace(usual, dwell_days=tuple(SLOWER * days for days in self.dwell_days))
            left = np.where(late, Ground.leave(slow, site, after_s, op, rng), left)
        return left


def made(plan: Plan, folder: Path) -> pa.Table:
    """Write the project's data, and return what comes through the service.

    Args:
        plan: of the world.
        folder: for `scans.parquet`, `sites.csv` and the others, without what is to come.

    Returns:
        epc_code, location_id, event_type (text) and time_us, by time, of the days from `learned`.
    """
    network = made_up(more_factories=1)
    scans, marks = _scans(plan, network)
    cut_us = plan.start_us + plan.learned * DAY_US
    known = scans.time_us < cut_us
    before = export.in_order_of_appearance(scans.take(known))
    names = {int(p): f"Product {i + 1}" for i, p in enumerate(network.product)}
    sites = export.site_table(network.sites)
    world = World(
        export.scan_table(network.sites, names, before),
        export.answer_table(before, truth_of(marks.take(known), before.epc, before.time_us)),
        sites.slice(0, len(sites) - NEW_SITES),
        network.registry,
        Options(seed=plan.seed, days=plan.learned, start=START).checked(),
        network,
    )
    write(world, folder)
    after = scans.take(~known)
    live = export.scan_table(network.sites, names, after)
    return pa.table(
        {
            "epc_code": pc.cast(live["epc_code"], pa.string()),
            "location_id": pc.cast(live["location_id"], pa.string()),
            "event_type": pc.cast(live["event_type"], pa.string()),
            "time_us": after.time_us,
        }
    )


def new_sites() -> list[dict[str, object]]:
    """The factory and the warehouse that open, as rows of a site master."""
    table = export.site_table(made_up(more_factories=1).sites)
    return table.slice(len(table) - NEW_SITES).to_pylist()


def _scans(plan: Plan, network: Network) -> tuple[Scans, Marks]:
    """All scans by recorded time, without lots of the new factory before it opens."""
    start_s = plan.start_us / SECOND_US
    change_s = start_s + plan.change * DAY_S
    horizon_s = start_s + plan.days * DAY_S
    dwell_days = DWELL_DAYS["short"]
    ground = SlowedGround.of(
        network, _PROFILE, dwell_days, plan.seed, start_s, plan.days, horizon_s, change_s
    )
    honest = honest_scans(ground, round(plan.lots * plan.days))
    newest = len(network.factories) - 1
    factory = honest.codes.lot // LOT_NUMBERS_OF_A_FACTORY
    early = (factory == newest) & (honest.codes.made_day < change_s // DAY_S)
    open_then = honest.take(~early[honest.epc])
    hidden = draft(open_then, network.sites, share=_TAMPERED, seed=plan.seed, natural=True)
    return observed(ground, hidden)
