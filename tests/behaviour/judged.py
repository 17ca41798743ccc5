"""Scans of an honest world, changed by hand, and what a champion says of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import pyarrow as pa

from intake.columns import to_scans
from intake.master import read_registry
from models.bundle import Bundle
from trail.epc import parse
from trail.facts import Context
from trail.features import encode
from trail.network import Network
from trail.registry import Registry
from trail.scan import OP_DIRECTION, Scans
from trail.sites import Sites
from world.network import made_up
from world.simulate import Options, simulate

Key = tuple[int, int, int, int]
"""EPC number, site, operation and time of a scan."""


@dataclass(frozen=True)
class World:
    """Honest scans, their master data, and the champion that judges them."""

    bundle: Bundle
    scans: Scans
    sites: Sites
    registry: Registry

    @classmethod
    def of(cls, bundle: Bundle, lots: int = 16, seed: int = 31) -> World:
        """A hard world that the champion has not seen, nothing tampered with."""
        sites = made_up().sites
        made = simulate(Options(seed=seed, lots=lots, natural_share=0.0))
        registry = read_registry(bundle.folder / "registry.csv")
        return cls(bundle, to_scans(made.scans, sites).scans, sites, registry)

    def judge(
        self, scans: Scans | None = None, sites: Sites | None = None, network: Network | None = None
    ) -> np.ndarray:
        """Scores of the scans, or of others in their place, float32 (n, 5), in the order given."""
        context = Context(sites or self.sites, network or self.bundle.network, self.registry)
        encoded = encode(self.scans if scans is None else scans, context)
        found = self.bundle.judge(encoded.features, encoded.offsets, encoded.findings)
        score = np.empty_like(found.score)
        score[encoded.trails.order] = found.score
        return score

    @cached_property
    def trails(self) -> list[np.ndarray]:
        """Positions of the scans of each trail, by time."""
        order = np.lexsort((self.scans.op, self.scans.time_us, self.scans.epc))
        ends = np.flatnonzero(np.diff(self.scans.epc[order])) + 1
        return np.split(order, ends)

    def legs(self, least_km: float, most: int, seed: int = 0) -> np.ndarray:
        """Scans at which single items arrive over a leg of `least_km` or more; one a trail."""
        found = []
        for mine in self.trails:
            out, into = mine[:-1], mine[1:]
            scans = self.scans
            moved = (OP_DIRECTION[scans.op[out]] == -1) & (scans.op[into] == scans.op[out] + 1)
            km = self.sites.distance_km(scans.site[out], scans.site[into])
            fits = into[moved & (km >= least_km)]
            if len(fits):
                found.append(int(fits[len(found) % len(fits)]))
        return np.random.default_rng(seed).permutation(found)[:most]

    def before(self, at: np.ndarray) -> np.ndarray:
        """The scan before each of these in its trail."""
        previous = {int(b): int(a) for mine in self.trails for a, b in pairwise(mine)}
        return np.array([previous[int(i)] for i in at])

    def reached_from(self, start: int, like: int) -> np.ndarray:
        """Sites of the tier of `like` that goods are known to go to from `start`, near to far."""
        network, ids = self.bundle.network, self.sites.ids
        used = {
            (network.site_ids[a], network.site_ids[b])
            for a, b, n in network.edges.tolist()
            if n >= 50
        }
        same = np.flatnonzero(self.sites.tier == self.sites.tier[like])
        ends = np.array([k for k in same.tolist() if (ids[start], ids[k]) in used], np.int32)
        km = self.sites.distance_km(np.full(len(ends), start, np.int32), ends)
        return ends[np.argsort(km)]

    def moved(self, at: np.ndarray, time_us: np.ndarray) -> Scans:
        """The scans with other times at some positions."""
        time = self.scans.time_us.copy()
        time[at] = time_us
        return replace(self.scans, time_us=time)

    def with_more(self, more: list[Key]) -> Scans:
        """The scans and further ones, at the end."""
        columns = np.array(more, dtype=np.int64).reshape(-1, 4)
        s, n = self.scans, len(self.scans)
        return replace(
            s,
            epc=np.append(s.epc, columns[:, 0].astype(np.int32)),
            site=np.append(s.site, columns[:, 1].astype(np.int32)),
            op=np.append(s.op, columns[:, 2].astype(np.int8)),
            time_us=np.append(s.time_us, columns[:, 3]),
            row=np.arange(n + len(columns)),
        )

    def recoded(self, codes: list[str]) -> Scans:
        """The scans under other codes, one for each distinct code."""
        return replace(self.scans, codes=parse(pa.array(codes)))
