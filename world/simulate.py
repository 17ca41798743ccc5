"""Simulate a world: honest journeys, hidden tampering, observation, and the tables of it all."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time
from itertools import pairwise
from typing import Final

import numpy as np
import pyarrow as pa

from trail.epc import parse
from trail.scan import ANOMALIES, SECOND_US, Scans, Tier
from world import export
from world.calendar import DAY_S
from world.ground import Ground
from world.journey import LOT_NUMBERS_OF_A_FACTORY, Lot, travel
from world.network import Network, made_up
from world.observe import Clocks, Noise, record
from world.profile import DWELL_DAYS, PROFILES
from world.streams import stream
from world.tampering import Draft, draft, truth_of, with_second_readings
from world.text import write_codes
from world.truth import Marks

HELD_OUT: Final = {
    "W1": "new seed",
    "W2": "noise x2.5",
    "W3": "new topology",
    "W4": "uniform legs, 1-10 h whatever the distance",
    "W5": "new factory and products",
    "W6": "drift in mid-test: dwell x1.5, a site closes",
    "W7": "hidden tampering of the one subtype that training left out",
    "W8": "whole boxes and pallets attacked",
}
COMMISSIONING_DAYS: Final = {"short": 240, "long": 1000}
"""Long enough that an eighth of it holds complete trails."""
TAIL_DAYS: Final = 14
"""Days of observation after the last commissioning."""
W6_AT: Final = 0.875
"""The middle of the last quarter of commissioning."""
SCANS_OF_AN_ITEM: Final = 9.4
"""Mean number of scans of a complete trail, from which the number of lots follows."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Options:
    """What makes a world; the same options make the same bytes.

    Attributes:
        seed: of everything.
        scans: about how many scans.
        profile: easy, hard or installation.
        dwell: short or long; None is short, and long in the installation profile.
        start: first day of commissioning.
        days: days of commissioning; None is 240, and 1000 with long dwells.
        natural_share: EPCs with hidden tampering, share of all.
        natural_subtypes: names of the subtypes hidden, None is all.
        lots: exactly how many lots; None follows from `scans`.
        held_out: one of W1-W8, or None.
        network: sites and edges; None is the product's own made-up network.
    """

    seed: int = 7
    scans: int = 600_000
    profile: str = "hard"
    dwell: str | None = None
    start: date = date(2025, 1, 6)
    days: int | None = None
    natural_share: float = 0.005
    natural_subtypes: Collection[str] | None = None
    lots: int | None = None
    held_out: str | None = None
    network: Network | None = field(default=None, repr=False)

    def checked(self) -> Options:
        """These options with defaults filled in.

        Raises:
            ValueError: a value is out of range; the message says which and what would do.
        """
        _one_of("profile", self.profile, PROFILES)
        dwell = self.dwell or ("long" if self.profile == "installation" else "short")
        _one_of("dwell", dwell, DWELL_DAYS)
        if self.held_out is not None:
            _one_of("held-out world", self.held_out, HELD_OUT)
        days = self.days if self.days is not None else COMMISSIONING_DAYS[dwell]
        if self.seed < 0:
            raise ValueError(f"seed {self.seed} is negative; give 0 or more")
        if self.scans < 100:
            raise ValueError(f"scans {self.scans} is too few for a lot; give 100 or more")
        if days < 2:
            raise ValueError(f"days {days} is too short to commission lots; give 2 or more")
        if not 0.0 <= self.natural_share <= 0.2:
            raise ValueError(
                f"natural share {self.natural_share} is no share; give a number from 0 to 0.2"
            )
        if self.held_out == "W7" and not self.natural_subtypes:
            raise ValueError(
                "W7 needs the subtype that training left out; name it with --subtype NAME"
            )
        options = replace(self, dwell=dwell, days=days)
        if options.lot_count() >= LOT_NUMBERS_OF_A_FACTORY:
            raise ValueError(
                f"scans {self.scans} makes {options.lot_count()} lots, but the six digits of a lot "
                f"number hold {LOT_NUMBERS_OF_A_FACTORY - 1} a factory; ask for fewer scans"
            )
        return options

    def lot_count(self) -> int:
        """Number of lots that make about `scans` scans."""
        if self.lots is not None:
            return self.lots
        profile = PROFILES[self.profile]
        items = profile.lot_items_median * np.exp(profile.lot_items_sd_log**2 / 2)
        return max(1, round(self.scans / (items * SCANS_OF_AN_ITEM)))


@dataclass(frozen=True)
class World:
    """A simulated world.

    Attributes:
        scans: event_id and the columns of an export, by event time.
        answers: one row a scan that tampering touched; see `docs/world.md`.
        sites: the site master with tiers.
        registry: genuine companies and products.
        options: what made it.
        network: what it ran on.
    """

    scans: pa.Table
    answers: pa.Table
    sites: pa.Table
    registry: pa.Table
    options: Options
    network: Network


def ground_of(options: Options) -> Ground:
    """The ground that checked options describe, held-out worlds included."""
    profile, seed, held = PROFILES[options.profile], options.seed, options.held_out
    network = options.network or made_up(
        topology=1 + seed if held == "W3" else 0,
        more_factories=1 if held == "W5" else 0,
        catalogue=1 + seed if held == "W5" else 0,
    )
    if held == "W1":
        seed += 1_000_003
    if held == "W2":
        profile = profile.noisier(2.5)
    if held == "W4":
        profile = replace(profile, leg_uniform_h=(1.0, 10.0))
    assert options.dwell is not None and options.days is not None
    start_s = datetime.combine(options.start, time(), UTC).timestamp()
    change_s, closed = np.inf, -1
    if held == "W6":
        change_s = start_s + W6_AT * options.days * DAY_S
        closed = _busiest_shop(network)
    return Ground.of(
        network,
        profile,
        DWELL_DAYS[options.dwell],
        seed,
        start_s,
        options.days,
        start_s + (options.days + TAIL_DAYS) * DAY_S,
        change_s,
        closed,
    )


def simulate(options: Options, progress: Progress | None = None) -> World:
    """Make the world that `options` describe.

    Raises:
        ValueError: see `Options.checked`.
    """
    options = options.checked()
    ground = ground_of(options)
    honest = honest_scans(ground, options.lot_count(), progress)
    hidden = draft(
        honest,
        ground.network.sites,
        share=options.natural_share / len(ANOMALIES),
        seed=ground.seed,
        subtypes=options.natural_subtypes,
        scope="box" if options.held_out == "W8" else "mix",
        natural=True,
    )
    scans, marks = observed(ground, hidden)
    scans = export.in_order_of_appearance(scans)
    truth = truth_of(marks, scans.epc, scans.time_us)
    network = ground.network
    table = export.scan_table(network.sites, _product_names(network), scans)
    return World(
        table,
        export.answer_table(scans, truth),
        export.site_table(network.sites),
        network.registry,
        options,
        network,
    )


def honest_scans(ground: Ground, lots: int, progress: Progress | None = None) -> Scans:
    """Scans of lots 0 to `lots` in physical time, each lot the same however many there are."""
    made: list[Lot] = []
    for index in range(lots):
        made.append(travel(ground, index))
        if progress is not None:
            progress("lots", index + 1, lots)
    sizes = np.array([len(lot.serial) for lot in made])
    first = (np.cumsum(sizes) - sizes).tolist()
    codes = write_codes(
        np.repeat([int(ground.network.company[lot.product]) for lot in made], sizes),
        np.repeat([int(ground.network.product[lot.product]) for lot in made], sizes),
        np.repeat([lot.number for lot in made], sizes),
        np.repeat([int(lot.made_s // DAY_S) for lot in made], sizes),
        np.concatenate([lot.serial for lot in made]).astype(np.int64),
    )
    epc = [lot.item + start for lot, start in zip(made, first, strict=True)]
    time_s = np.concatenate([lot.time_s for lot in made])
    return Scans(
        epc=np.concatenate(epc).astype(np.int32),
        site=np.concatenate([lot.site for lot in made]),
        op=np.concatenate([lot.op for lot in made]),
        time_us=(time_s * SECOND_US).astype(np.int64),
        row=np.arange(len(time_s)),
        codes=parse(codes),
    )


def observed(ground: Ground, hidden: Draft) -> tuple[Scans, Marks]:
    """The scans as they were recorded, by recorded time, some of them twice."""
    noise = Noise.of(ground.profile)
    scans, k = hidden.scans, len(ground.network.sites)
    clocks = Clocks.of(noise, ground.seed, k, ground.start_s, ground.horizon_s)
    order = np.argsort(hidden.home, kind="stable")
    home, site, op = hidden.home[order], scans.site[order], scans.op[order]
    time_s = scans.time_us[order] / SECOND_US
    bounds = np.flatnonzero(np.diff(home, prepend=-1, append=-1))
    seen_s = np.empty(len(site), dtype=np.int64)
    again, again_s = [np.zeros(0, np.intp)], [np.zeros(0, np.int64)]
    for a, b in pairwise(bounds.tolist()):
        rng = stream(ground.seed, "observed", int(home[a]))
        seen_s[a:b], twice, second_s = record(site[a:b], op[a:b], time_s[a:b], noise, clocks, rng)
        again.append(twice + a)
        again_s.append(second_s)
    which = np.concatenate([np.arange(len(site)), *again])
    recorded_s = np.concatenate([seen_s, *again_s])
    by_time = np.lexsort((op[which], order[which], recorded_s))
    marks = with_second_readings(hidden.marks.take(order), np.concatenate(again))
    scans = replace(
        scans.take(order[which[by_time]]),
        time_us=recorded_s[by_time] * SECOND_US,
        row=np.arange(len(which)),
    )
    return scans, marks.take(by_time)


def _busiest_shop(network: Network) -> int:
    """The retailer that most edges lead to: the one that closes in W6."""
    retail = network.sites.tier[network.end] == Tier.RETAIL
    flow = np.bincount(network.end[retail & ~network.side], minlength=len(network.sites))
    return int(np.argmax(flow))


def _product_names(network: Network) -> dict[int, str]:
    return {int(p): f"Product {i + 1}" for i, p in enumerate(network.product)}


def _one_of(what: str, value: str, allowed: Collection[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{what} {value!r} is not known; give one of {', '.join(allowed)}")
