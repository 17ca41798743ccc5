"""A small world, made once, and readers for it."""

from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from trail.epc import parse
from trail.scan import EVENT_TYPES, SECOND_US, Scans
from trail.sites import Sites
from world.network import made_up
from world.observe import NO_NOISE, Noise
from world.simulate import Options, World, simulate
from world.tampering import NAMES, Tampered, tamper

SHARED = Path(__file__).parents[3] / "shared" / "data"
LOTS = 24


@cache
def world(**options: object) -> World:
    """A hard world of 24 lots without hidden tampering, or as asked."""
    return simulate(Options(**({"lots": LOTS, "natural_share": 0.0} | options)))


def scans_of(table: pa.Table, sites: Sites) -> Scans:
    """A table of scans as integer columns, as a reader of exports would make them."""
    code = table["epc_code"].combine_chunks()
    place = {i: n for n, i in enumerate(sites.ids)}
    time = np.array(table["event_time"].to_pylist(), dtype="datetime64[s]").astype(np.int64)
    op = {name: i for i, name in enumerate(EVENT_TYPES)}
    return Scans(
        epc=np.asarray(code.indices).astype(np.int32),
        site=np.array([place[str(i)] for i in table["location_id"].to_pylist()], dtype=np.int32),
        op=np.array([op[str(e)] for e in table["event_type"].to_pylist()], dtype=np.int8),
        time_us=time * SECOND_US,
        row=np.arange(len(table)),
        codes=parse(code.dictionary),
    )


@cache
def honest() -> tuple[Scans, Sites]:
    """The scans of the small world."""
    sites = made_up().sites
    return scans_of(world().scans, sites), sites


@cache
def tampered(
    name: str | None = None, scope: str = "item", share: float = 0.02, noise: Noise = NO_NOISE
) -> Tampered:
    """The small world after tampering of one subtype, or of all."""
    scans, sites = honest()
    names = (name,) if name else NAMES
    return tamper(scans, sites, share=share, seed=3, subtypes=names, scope=scope, noise=noise)


def trails(after: Tampered):
    """For each EPC with a cause scan: positions of its scans by time."""
    scans, truth = after.scans, after.truth
    order = np.lexsort((scans.op, scans.time_us, scans.epc))
    bounds = np.flatnonzero(np.diff(scans.epc[order], prepend=-1, append=-1))
    for a, b in pairwise(bounds.tolist()):
        mine = order[a:b]
        if truth.cause[mine].any():
            yield mine
