"""Traffic of the simulated world as a reference and a stream that follows it, without drift."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from bench import drift_streams as streams
from intake.master import read_registry, read_sites
from intake.read import read_scans
from monitoring.reference import MONITORED, Batch, Column, box_key, monitored
from trail import network
from trail.facts import Context, previous_of
from trail.features import encode
from trail.scan import ANOMALIES, DAY_US
from trail.trails import sort
from world.__main__ import write
from world.simulate import Options, simulate

LEARNING_DAYS = 40
"""Days that the network's statistics are learned on; shelves fill in them."""
REFERENCE_DAYS = 59
"""Days of a reference, as many as the default run has."""
RATE = 2600
"""Scans a day, as in the default world."""


def world_stream(seed: int) -> tuple[Batch, list[Batch], tuple[Column, ...]]:
    """A world of its own: reference, days that follow, and the columns that need no model."""
    length = LEARNING_DAYS + REFERENCE_DAYS + streams.WARM_UP + streams.DAYS
    options = Options(seed=1000 + seed, scans=RATE * length, days=length).checked()
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        write(simulate(options), where, {"sites": None, "legs": None})
        found = read_scans(where / "scans.parquet", read_sites(where / "sites.csv"))
        registry = read_registry(where / "registry.csv")
    scans = found.scans
    day = scans.time_us // DAY_US
    day = day - day.min()
    learned = sort(scans.take(day < LEARNING_DAYS))
    known = network.fit(learned.scans, previous_of(learned.starts), found.sites)
    encoded = encode(scans, Context(found.sites, known, registry))
    seen = encoded.trails.scans
    nothing = np.zeros((len(seen), len(ANOMALIES)), np.float32)
    every = monitored(encoded.features, seen.op, seen.time_us, nothing, nothing > 0)
    kept = [i for i, c in enumerate(MONITORED) if not c.name.startswith(("p_", "flag_"))]
    by_time = np.argsort(seen.time_us, kind="stable")
    batch = Batch(
        every[:, kept],
        seen.site,
        found.sites.ids,
        box_key(seen.lot, seen.time_us),
        seen.time_us,
    ).take(by_time)
    number = batch.time_us // DAY_US - batch.time_us[0] // DAY_US - LEARNING_DAYS
    reference = batch.take((number >= 0) & (number < REFERENCE_DAYS))
    first = REFERENCE_DAYS
    days = [batch.take(number == first + i) for i in range(streams.WARM_UP + streams.DAYS)]
    return reference, days, tuple(MONITORED[i] for i in kept)
