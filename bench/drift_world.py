"""Traffic of the simulated world as a reference and a stream that follows it, without drift."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench import drift_streams as streams
from bench.demo_world import Plan, made
from intake.master import read_registry, read_sites
from intake.read import read_scans
from monitoring.calibrate import MOST_DAYS, calibrated
from monitoring.drift import Detector
from monitoring.reference import MONITORED, Batch, Column, Reference, box_key, monitored
from trail import network
from trail.facts import Context, previous_of
from trail.features import encode
from trail.scan import ANOMALIES, DAY_US
from trail.trails import sort
from world.__main__ import write
from world.export import site_table, write_csv
from world.network import made_up
from world.simulate import Options, simulate

LEARNING_DAYS = 40
"""Days that the network's statistics are learned on; shelves fill in them."""
REFERENCE_DAYS = 59
"""Days of a reference, as many as the default run has."""
SLOW_DAYS = 130
"""Days before those that are watched in the demo's world."""
SLOW_WATCHED = 42
RATE = 2600
"""Scans a day, as in the default world."""


def world_stream(seed: int) -> tuple[Batch, list[Batch], tuple[Column, ...]]:
    """A world of its own: reference, days that follow, and the columns that need no model."""
    length = LEARNING_DAYS + REFERENCE_DAYS + streams.WARM_UP + streams.DAYS
    options = Options(seed=1000 + seed, scans=RATE * length, days=length).checked()
    with tempfile.TemporaryDirectory() as folder:
        write(simulate(options), Path(folder), {"sites": None, "legs": None})
        batch, columns = _monitored(Path(folder), LEARNING_DAYS)
    number = batch.time_us // DAY_US - batch.time_us[0] // DAY_US - LEARNING_DAYS
    reference = batch.take((number >= 0) & (number < REFERENCE_DAYS))
    first = REFERENCE_DAYS
    days = [batch.take(number == first + i) for i in range(streams.WARM_UP + streams.DAYS)]
    return reference, days, columns


def _monitored(folder: Path, learning_days: int) -> tuple[Batch, tuple[Column, ...]]:
    """All scans of a world's folder by time, with the columns that need no model."""
    found = read_scans(folder / "scans.parquet", read_sites(folder / "sites.csv"))
    registry = read_registry(folder / "registry.csv")
    scans = found.scans
    day = scans.time_us // DAY_US
    learned = sort(scans.take(day - day.min() < learning_days))
    known = network.fit(learned.scans, previous_of(learned.starts), found.sites)
    encoded = encode(scans, Context(found.sites, known, registry))
    seen = encoded.trails.scans
    nothing = np.zeros((len(seen), len(ANOMALIES)), np.float32)
    every = monitored(encoded.features, seen.op, seen.time_us, nothing, nothing > 0)
    kept = [i for i, c in enumerate(MONITORED) if not c.name.startswith(("p_", "flag_"))]
    batch = Batch(
        every[:, kept],
        seen.site,
        found.sites.ids,
        box_key(seen.lot, seen.time_us),
        seen.time_us,
    )
    return batch.take(np.argsort(seen.time_us, kind="stable")), tuple(MONITORED[i] for i in kept)


def slow_lines(lots: float, seeds: int) -> Iterator[str]:
    """How a factory that opens and dwells that double show, by days since, in the demo's world."""
    yield f"{lots:g} lots a day; days since the change: largest score / D of gap_h in 7 days"
    for seed in range(7, 7 + seeds):
        change = SLOW_DAYS + streams.WARM_UP + 3
        plan = Plan(change + SLOW_WATCHED, change, change + SLOW_WATCHED, lots, seed)
        with tempfile.TemporaryDirectory() as folder:
            made(plan, Path(folder))
            write_csv(site_table(made_up(more_factories=1).sites), Path(folder) / "sites.csv")
            batch, columns = _monitored(Path(folder), SLOW_DAYS // 2)
        number = (batch.time_us - plan.start_us) // DAY_US
        before = batch.take((number >= SLOW_DAYS - MOST_DAYS) & (number < SLOW_DAYS))
        detector = Detector.of(calibrated(Reference.make(before, columns), before, seed, 100, 0))
        told, first, ready = [], 0, 0
        for day in range(SLOW_DAYS, plan.days):
            detector.add(batch.take(number == day))
            found = detector.evaluate(plan.start_us + (day + 1) * DAY_US - 1)
            since = day - change + 1
            if since > 0 and found.retrain_score >= 1 and not first:
                first = since
            if any(p.boxes >= 20 and p.days >= 3 for p in found.locations) and not ready:
                ready = since
            if since in (0, 7, 14, 28):
                gap = next(m.d for m in found.measures if (m.column, m.window) == ("gap_h", "7d"))
                told.append(f"{since}: {found.retrain_score:.2f} / {gap:.2f}")
        alarm = f"alarms after {first} days" if first else f"no alarm in {SLOW_WATCHED} days"
        yield f"  seed {seed}: {', '.join(told)}; {alarm}; 20 boxes on 3 days after {ready}"


def main(argv: list[str] | None = None) -> int:
    """Run; see `--help`."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.drift_world", description=slow_lines.__doc__
    )
    parser.add_argument("--lots", type=float, nargs="+", default=[4.0, 8.0, 16.0])
    parser.add_argument("--seeds", type=int, default=2)
    asked = parser.parse_args(argv)
    for lots in asked.lots:
        for line in slow_lines(lots, asked.seeds):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
