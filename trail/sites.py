"""The site master: identity, tier, coordinates, region, and distances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trail.scan import SITE_TIER_OF_OP, Bool, Float32, Float64, Int8, Int32, Tier

EARTH_RADIUS_KM: Final = 6371.0088
UNKNOWN_TIER: Final = -1
_MATRIX_LIMIT: Final = 4096


@dataclass(frozen=True)
class Sites:
    """Sites as columns of one length k; a scan refers to a site by its position here.

    Sites that scans name and the master lacks stand at the end, with `known` False, tier -1 and
    no coordinates, so that an unknown site is a value like any other.

    Attributes:
        ids: `location_id` as text, distinct.
        names: `scan_location`, "" where unknown.
        tier: int8 (k,), a `Tier` up to RETAIL, or -1.
        latitude: float64 (k,), degrees, NaN where unknown.
        longitude: float64 (k,), degrees, NaN where unknown.
        known: bool (k,), the master has the site.
    """

    ids: tuple[str, ...]
    names: tuple[str, ...]
    tier: Int8
    latitude: Float64
    longitude: Float64
    known: Bool
    _distance: Float32 | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        ids: Sequence[str],
        names: Sequence[str],
        tier: npt.ArrayLike,
        latitude: npt.ArrayLike,
        longitude: npt.ArrayLike,
        known: npt.ArrayLike | None = None,
    ) -> Sites:
        """Build a master; the distance matrix is computed once, here.

        Raises:
            ValueError: an id occurs twice, or the columns differ in length.
        """
        repeated = {i for i in ids if list(ids).count(i) > 1} if len(set(ids)) < len(ids) else ()
        if repeated:
            raise ValueError(
                f"location_id {sorted(repeated)[0]!r} stands twice in the site master; keep one row"
            )
        lat = np.asarray(latitude, dtype=np.float64)
        lon = np.asarray(longitude, dtype=np.float64)
        tiers = np.asarray(tier, dtype=np.int8)
        if not len(ids) == len(names) == len(lat) == len(lon) == len(tiers):
            raise ValueError("the columns of a site master must have one length")
        seen = np.ones(len(ids), bool) if known is None else np.asarray(known, dtype=bool)
        distance = None
        if len(ids) <= _MATRIX_LIMIT:
            distance = haversine_km(lat[:, None], lon[:, None], lat, lon).astype(np.float32)
        return cls(tuple(ids), tuple(names), tiers, lat, lon, seen, distance)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def index(self) -> Mapping[str, int]:
        """Position of each `location_id`."""
        return {site: i for i, site in enumerate(self.ids)}

    def distance_km(
        self, start: npt.NDArray[np.integer[Any]], end: npt.NDArray[np.integer[Any]]
    ) -> Float32:
        """Great-circle distance, km, float32; NaN where a site has no coordinates."""
        if self._distance is not None:
            return np.take(self._distance, start.astype(np.intp) * len(self) + end)
        return haversine_km(
            self.latitude[start], self.longitude[start], self.latitude[end], self.longitude[end]
        ).astype(np.float32)

    @property
    def region(self) -> Int32:
        """Region of each site, int32 (k,): the nearest hub's position, -1 where unknown."""
        hubs = np.flatnonzero((self.tier == Tier.HUB) & np.isfinite(self.latitude))
        if not len(hubs):
            return np.full(len(self), -1, dtype=np.int32)
        away = haversine_km(
            self.latitude[:, None],
            self.longitude[:, None],
            self.latitude[hubs],
            self.longitude[hubs],
        )
        nearest = hubs[np.argmin(np.where(np.isfinite(away), away, np.inf), axis=1)]
        return np.where(np.isfinite(self.latitude), nearest, -1).astype(np.int32)

    def with_unknown(self, ids: Sequence[str]) -> Sites:
        """The master with these further, unknown sites at the end."""
        more = len(ids)
        if not more:
            return self
        blank = np.full(more, np.nan)
        return Sites.of(
            (*self.ids, *ids),
            (*self.names, *[""] * more),
            np.concatenate([self.tier, np.full(more, UNKNOWN_TIER, np.int8)]),
            np.concatenate([self.latitude, blank]),
            np.concatenate([self.longitude, blank]),
            np.concatenate([self.known, np.zeros(more, bool)]),
        )

    def with_tiers_from(self, site: Int32, op: Int8) -> Sites:
        """The master with missing tiers learned from the operations seen at each site.

        The tier is the most frequent one; a site without scans keeps tier -1.
        """
        if not (self.tier == UNKNOWN_TIER).any():
            return self
        votes = np.zeros((len(self), Tier.RETAIL + 1), dtype=np.int64)
        np.add.at(votes, (site, SITE_TIER_OF_OP[op]), 1)
        seen = np.where(votes.any(axis=1), votes.argmax(axis=1), UNKNOWN_TIER)
        tier = np.where(self.tier == UNKNOWN_TIER, seen, self.tier).astype(np.int8)
        return replace(self, tier=tier)


def haversine_km(
    lat_a: Float64, lon_a: Float64, lat_b: Float64, lon_b: Float64
) -> npt.NDArray[np.float64]:
    """Great-circle distance in km of points in degrees, broadcast like numpy operands."""
    lat_a, lon_a, lat_b, lon_b = (np.radians(x) for x in (lat_a, lon_a, lat_b, lon_b))
    half = np.sin((lat_b - lat_a) / 2) ** 2
    half = half + np.cos(lat_a) * np.cos(lat_b) * np.sin((lon_b - lon_a) / 2) ** 2
    return np.asarray(2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.clip(half, 0, 1))))
