"""The drift reference: how the monitored columns were distributed when a model was trained.

A value is coded to one of `CELLS` cells. The cells lie between quantiles of the reference; a value
that many scans share is a cell of its own, as is every value of a column with few. Distances on
cells equal those on values where a column has few values, and are hardly smaller elsewhere. Sites
have their own distributions, so that a window is compared with what the reference saw at the
window's sites: a change of the mix of sites shows in `location` only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from trail.epc import mix
from trail.features import FEATURES
from trail.scan import ANOMALIES, DAY_US, HOUR_US

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
UInt8 = npt.NDArray[np.uint8]
Kind = Literal["numeric", "categorical"]

VERSION: Final = 1
"""Of the files of a reference; one of another version is refused."""
CUTS: Final = 62
"""Most cuts of a column; a KS distance on cells is at most 1/(CUTS - 1) smaller than on values."""
CELLS: Final = CUTS + 2
"""Cells of a column: one up to each cut, one beyond the last, and the last for missing values."""
STRATA: Final = 96
"""Most groups of sites with distributions of their own."""
STRATUM_SCANS: Final = 100
"""Scans from which a site has a distribution of its own; the others share one."""
SITES: Final = 2048
"""Most sites told apart; the rarest beyond it count as one."""
COLUMNS: Final = 36
"""Most columns, so that the state of a detector stays under 1 MiB."""
SAMPLE: Final = 5000
"""Scans kept as they are, for reports and plots."""
FEW: Final = 600
"""Scans up to which all columns are counted in one go; more lie better column by column."""
LOCATION: Final = "location"
FLOOR: Final = 0.1
"""No distance below it is an alarm, however many scans there are."""
RATE_FLOOR: Final = 0.02
"""The same for shares of flagged scans, which are small by nature."""
UNCALIBRATED: Final = 0.3
"""Threshold of a reference that is too small to be calibrated; it warns, and never retrains."""

_FILE: Final = "reference.json"
_ARRAYS: Final = "reference.safetensors"


class ReferenceError(ValueError):
    """A reference that cannot be made or read; says why and what to do."""


@dataclass(frozen=True, slots=True)
class Window:
    """What is compared with the reference.

    Attributes:
        name: "500", "1d", "3d" or "7d".
        tier: "warn" or "retrain"; only the latter may ask for a training.
        days: the last so many days, or 0: the last `RECENT` scans.
    """

    name: str
    tier: Literal["warn", "retrain"]
    days: int


WINDOWS: Final = (
    Window("500", "warn", 0),
    Window("1d", "warn", 1),
    Window("3d", "retrain", 3),
    Window("7d", "retrain", 7),
)
RECENT: Final = 500
"""Scans of the window that counts scans."""


@dataclass(frozen=True, slots=True)
class Column:
    """A monitored column: its name, kind, what it is, and the smallest distance that alarms."""

    name: str
    kind: Kind
    means: str
    floor: float = FLOOR


_READ: Final = (
    Column("gap_h", "numeric", "hours since the item's previous scan; missing at its first"),
    Column("km", "numeric", "distance from the previous scan, km; missing where unknown"),
    Column("speed_kmh", "numeric", "km over hours since the previous scan; missing likewise"),
    Column("step_z", "numeric", "time of the step against its usual time, in deviations"),
    Column("edge_share", "numeric", "share of the flow from the last site that comes this way"),
    Column("position", "numeric", "scans of the item before this one"),
    Column("tier_step", "categorical", "tiers down the chain since the previous scan"),
    Column("hour", "numeric", "hour of the day, UTC"),
    Column("box_size", "numeric", "items of the lot read in the same second at this portal"),
    Column("together_share", "numeric", "share of the mates of the last scan that came along"),
    Column("lag_h", "numeric", "hours behind the first of those mates"),
    Column("age_d", "numeric", "days since the manufacture date"),
    Column("commissioned", "categorical", "the item has its commissioning scan"),
    Column("product_unknown", "categorical", "the registry lacks the product"),
    Column("op", "categorical", "operation"),
)
MONITORED: Final[tuple[Column, ...]] = (
    *_READ,
    *(Column(f"p_{a}", "numeric", f"the model's probability of {a}") for a in ANOMALIES),
    *(Column(f"flag_{a}", "categorical", f"scans flagged as {a}", RATE_FLOOR) for a in ANOMALIES),
)
"""Columns of a batch, in order; `location` is monitored beside them."""

_AT: Final = {name: i for i, name in enumerate(FEATURES)}


def monitored(
    features: Float32,
    op: npt.NDArray[Any],
    time_us: Int64,
    probability: Float32,
    flag: npt.NDArray[np.bool_],
) -> Float32:
    """The monitored columns of n scans; training and serving both call this.

    Args:
        features: float32 (n, F), columns as in `trail.features.FEATURES`.
        op: (n,), operations.
        time_us: int64 (n,), event times.
        probability: float32 (n, 5), the model's calibrated probabilities.
        flag: bool (n, 5), final flags.

    Returns:
        float32 (n, c), columns as in `MONITORED`; NaN where a value does not apply.
    """

    def read(name: str) -> Float32:
        return features[:, _AT[name]]

    def unless(absent: npt.NDArray[np.bool_], name: str) -> Float32:
        return np.where(absent, np.float32(np.nan), np.expm1(read(name)))

    first = read("is_first") > 0
    nowhere = first | (read("km_known") == 0)
    columns = (
        unless(first, "gap_h_log"),
        unless(nowhere, "km_log"),
        unless(nowhere, "speed_kmh_log"),
        np.where(first | (read("step_support_log") == 0), np.float32(np.nan), read("step_z")),
        np.where(first, np.float32(np.nan), read("edge_share")),
        np.rint(np.expm1(read("position_log"))),
        read("tier_step"),
        (time_us % DAY_US / HOUR_US).astype(np.float32),
        np.rint(np.expm1(read("group_log"))),
        np.where(first, np.float32(np.nan), read("together_share")),
        unless(first, "lag_h_log"),
        np.expm1(read("age_d_log")),
        read("commissioned"),
        read("product_unknown"),
        op.astype(np.float32),
    )
    result = np.empty((len(features), len(MONITORED)), dtype=np.float32)
    for i, column in enumerate(columns):
        result[:, i] = column
    result[:, len(columns) : len(columns) + len(ANOMALIES)] = probability
    result[:, len(columns) + len(ANOMALIES) :] = flag
    return result


def box_key(lot: Int64, time_us: Int64) -> Int64:
    """Key of the box of each scan: items of one lot that were read in the same second."""
    second = (time_us // 1_000_000).astype(np.uint64)
    return np.asarray(mix(lot.astype(np.uint64) ^ mix(second)).view(np.int64))


@dataclass(frozen=True, slots=True)
class Batch:
    """n scans, in any order.

    Attributes:
        columns: float32 (n, c), as in `Reference.names`; NaN is missing.
        site: int32 (n,), positions in `sites`.
        sites: ids of sites (`location_id` as text), distinct.
        box: int64 (n,), equal for scans that moved together (`box_key`).
        time_us: int64 (n,), event time, microseconds since 1970 in UTC.
        id: int64 (n,), growing numbers of the scans in the log, or None. A detector counts a
            number once; without numbers it counts whatever it is given.
    """

    columns: Float32
    site: Int32
    sites: tuple[str, ...]
    box: Int64
    time_us: Int64
    id: Int64 | None = None

    @classmethod
    def of(
        cls,
        columns: Float32,
        location: Sequence[str],
        box: Int64,
        time_us: Int64,
        id: Int64 | None = None,
    ) -> Batch:
        """A batch from one `location_id` a scan.

        Raises:
            ValueError: the columns differ in length.
        """
        number: dict[str, int] = {}
        site = np.fromiter(
            (number.setdefault(name, len(number)) for name in location), np.int32, len(location)
        )
        return cls(columns, site, tuple(number), box, time_us, id).checked()

    def __len__(self) -> int:
        return len(self.columns)

    def checked(self) -> Batch:
        """The same batch.

        Raises:
            ValueError: the columns differ in length, or a site is out of range.
        """
        n = len(self.columns)
        lengths = {len(self.site), len(self.box), len(self.time_us)}
        if self.columns.ndim != 2 or lengths != {n} or (self.id is not None and len(self.id) != n):
            raise ValueError(f"a batch of {n} rows has columns of other lengths")
        if n and not (int(self.site.min()) >= 0 and int(self.site.max()) < len(self.sites)):
            raise ValueError("a batch refers to sites that it does not name")
        return self

    def take(self, index: npt.NDArray[Any]) -> Batch:
        """The scans at `index` (positions or mask)."""
        return replace(
            self,
            columns=self.columns[index],
            site=self.site[index],
            box=self.box[index],
            time_us=self.time_us[index],
            id=None if self.id is None else self.id[index],
        )


@dataclass(frozen=True, slots=True)
class Calibration:
    """What thresholds are worth. Made by `monitoring.calibrate.calibrated`.

    Attributes:
        status: "calibrated", or "insufficient_reference": no retraining may rest on it.
        reason: why it is insufficient, "" otherwise.
        unit: what was resampled: "box", "day", or "weekday" (days within their weekday).
        block_days: consecutive days that were kept together.
        blocks: how many such units the reference has.
        replicates: null streams of 30 days behind the thresholds; as many behind the estimate.
        target: wanted probability of any alarm of the retrain tier in 30 days without drift.
        estimate: the same, measured on streams that the thresholds were not chosen on.
        ci95: its exact binomial interval.
        estimate_warn: that of the warn tier, calibrated for itself.
        thresholds: for each window of `WINDOWS`, by measured column (`Reference.measured`).
        usual: for each window, the scans it usually has at the reference's rate. Thresholds rise
            with the root of what a thinner window lacks.
    """

    status: Literal["calibrated", "insufficient_reference"]
    reason: str
    unit: Literal["box", "day", "weekday"]
    block_days: int
    blocks: int
    replicates: int
    target: float
    estimate: float | None
    ci95: tuple[float, float] | None
    estimate_warn: float | None
    thresholds: Mapping[str, tuple[float, ...]]
    usual: Mapping[str, int]

    @classmethod
    def none(cls, reason: str, columns: int) -> Calibration:
        """Of a reference that has not been calibrated."""
        fixed = {window.name: (UNCALIBRATED,) * columns for window in WINDOWS}
        usual = {window.name: RECENT for window in WINDOWS}
        return cls(
            "insufficient_reference", reason, "box", 1, 0, 0, 0.1, None, None, None, fixed, usual
        )

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        plain["ci95"] = None if self.ci95 is None else list(self.ci95)
        plain["thresholds"] = {name: list(values) for name, values in self.thresholds.items()}
        plain["usual"] = dict(self.usual)
        return plain

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Calibration:
        """What `to_json` wrote."""
        made = dict(value)
        made["ci95"] = None if value["ci95"] is None else tuple(value["ci95"])
        made["thresholds"] = {name: tuple(given) for name, given in value["thresholds"].items()}
        return cls(**made)


@dataclass(frozen=True, slots=True)
class Reference:
    """Distributions of c columns and of s sites, in n scans.

    Attributes:
        names: c names of columns.
        kinds: their kinds.
        floors: their smallest distances that alarm.
        cuts: float32 (c, CUTS), growing, padded with infinity. Cell j holds the values above cut
            j-1 up to cut j. Of a categorical column the odd cells are its levels.
        used: int32 (c,), how many cuts are real.
        sites: s ids.
        level: int32 (s,), the level of `location` of each site, below `SITES`.
        level_n: int64 (l,), scans of each level.
        stratum: int32 (l,), the row of `cells` that a level belongs to.
        cells: int64 (strata, c, CELLS), scans by cell.
        sample: float32 (m, c), some of the scans, spread over time.
        sample_level: int32 (m,), levels of their sites.
        n: scans.
        clusters: boxes.
        days: days with scans.
        first_us: first event time.
        last_us: last event time.
        id: digest of all this; a state of another reference is refused.
        calibration: thresholds and what they are worth.
    """

    names: tuple[str, ...]
    kinds: tuple[Kind, ...]
    floors: tuple[float, ...]
    cuts: Float32
    used: Int32
    sites: tuple[str, ...]
    level: Int32
    level_n: Int64
    stratum: Int32
    cells: Int64
    sample: Float32
    sample_level: Int32
    n: int
    clusters: int
    days: int
    first_us: int
    last_us: int
    calibration: Calibration = field(repr=False)
    id: str = ""

    @property
    def measured(self) -> tuple[str, ...]:
        """Names of what is compared: the columns, and `location`."""
        return (*self.names, LOCATION)

    @property
    def floor(self) -> Float64:
        """Smallest distances that alarm, float64 (c + 1,)."""
        return np.array([*self.floors, FLOOR])

    @classmethod
    def make(cls, batch: Batch, columns: Sequence[Column] = MONITORED) -> Reference:
        """Describe scans; thresholds are still to be calibrated.

        Args:
            batch: n scans without drift; more than one at each site is not needed.
            columns: names and kinds of the batch's columns.

        Raises:
            ReferenceError: there are no scans, too many columns, or not as many as named.
        """
        batch.checked()
        if not len(batch):
            raise ReferenceError("a reference needs scans; train on more data")
        if batch.columns.shape[1] != len(columns) or len(columns) > COLUMNS:
            raise ReferenceError(
                f"{batch.columns.shape[1]} columns with {len(columns)} names; at most {COLUMNS}"
            )
        cuts = np.full((len(columns), CUTS), np.inf, np.float32)
        used = np.zeros(len(columns), np.int32)
        for i, column in enumerate(columns):
            made = _cuts(batch.columns[:, i], column.kind)
            cuts[i, : len(made)], used[i] = made, len(made)
        sites, level, level_n = _levels(batch)
        stratum = _strata(level_n)
        site = placed(batch, dict(zip(sites, level.tolist(), strict=True)))
        codes = coded(batch.columns, cuts, used)
        every = np.linspace(0, len(batch) - 1, min(SAMPLE, len(batch))).astype(np.int64)
        kept = np.argsort(batch.time_us, kind="stable")[every]
        reference = cls(
            names=tuple(c.name for c in columns),
            kinds=tuple(c.kind for c in columns),
            floors=tuple(c.floor for c in columns),
            cuts=cuts,
            used=used,
            sites=sites,
            level=level,
            level_n=level_n,
            stratum=stratum,
            cells=counted(codes, stratum[site], int(stratum.max()) + 1),
            sample=batch.columns[kept],
            sample_level=site[kept],
            n=len(batch),
            clusters=len(np.unique(batch.box)),
            days=len(np.unique(batch.time_us // DAY_US)),
            first_us=int(batch.time_us.min()),
            last_us=int(batch.time_us.max()),
            calibration=Calibration.none("not calibrated", len(columns) + 1),
        )
        return replace(reference, id=reference._digest())

    def save(self, folder: Path) -> None:
        """Write `reference.json` and `reference.safetensors`."""
        from safetensors.numpy import save_file

        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAY_FIELDS}
        save_file(arrays, str(folder / _ARRAYS))
        plain = {name: getattr(self, name) for name in _PLAIN_FIELDS}
        told = {"version": VERSION, **plain, "calibration": self.calibration.to_json()}
        (folder / _FILE).write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Reference:
        """Read what `save` wrote.

        Raises:
            ReferenceError: there is none, or one of another version, or a damaged one.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            told = json.loads((folder / _FILE).read_text())
            if told.get("version") != VERSION:
                raise ReferenceError(
                    f"{folder / _FILE} has version {told.get('version')}, this program reads "
                    f"version {VERSION}; train again"
                )
            arrays: dict[str, Any] = load_file(str(folder / _ARRAYS))
            plain: dict[str, Any] = {name: told[name] for name in _PLAIN_FIELDS}
            plain.update({name: tuple(plain[name]) for name in _TUPLES})
            calibration = Calibration.from_json(told["calibration"])
            read = cls(**plain, **arrays, calibration=calibration)
        except FileNotFoundError as error:
            raise ReferenceError(f"{folder} has no drift reference; train again") from error
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            if isinstance(error, ReferenceError):
                raise
            raise ReferenceError(f"the drift reference in {folder} is damaged: {error}") from error
        if read._digest() != read.id:
            raise ReferenceError(
                f"the drift reference in {folder} was changed; use an untouched copy"
            )
        return read

    def _digest(self) -> str:
        total = hashlib.sha256()
        plain = {name: getattr(self, name) for name in _PLAIN_FIELDS if name != "id"}
        total.update(json.dumps(plain, sort_keys=True).encode())
        for name in _ARRAY_FIELDS:
            total.update(np.ascontiguousarray(getattr(self, name)).view(np.uint8).data)
        return total.hexdigest()[:32]

    def cell_shares(self, name: str) -> tuple[Float64, Float64]:
        """Distribution of a column, for plots.

        Returns:
            Upper ends of its cells, float64 (k,), and the reference's share in each, float64
            (k + 2,): beyond them the share above the last end, then the missing ones.
        """
        i = self.names.index(name)
        k = int(self.used[i])
        counts = self.cells[:, i].sum(axis=0)
        shares = counts / max(int(counts.sum()), 1)
        return self.cuts[i, :k].astype(np.float64), np.append(shares[: k + 1], shares[-1])


_ARRAY_FIELDS: Final = (
    "cuts",
    "used",
    "level",
    "level_n",
    "stratum",
    "cells",
    "sample",
    "sample_level",
)
_TUPLES: Final = ("names", "kinds", "floors", "sites")
_PLAIN_FIELDS: Final = (*_TUPLES, "n", "clusters", "days", "first_us", "last_us", "id")


def placed(batch: Batch, level_of: Mapping[str, int]) -> Int32:
    """Level of each scan's site, int32 (n,); -1 where the reference has not seen the site."""
    level = np.array([level_of.get(name, -1) for name in batch.sites], np.int32)
    return level[batch.site] if len(batch) else np.empty(0, np.int32)


def coded(columns: Float32, cuts: Float32, used: Int32) -> UInt8:
    """The cell of each value, uint8 (n, c)."""
    codes = np.empty(columns.shape, np.uint8)
    for i in range(columns.shape[1]):
        codes[:, i] = cuts[i, : used[i]].searchsorted(columns[:, i])
    codes[~np.isfinite(columns)] = CELLS - 1
    return codes


def counted(
    codes: UInt8, group: npt.NDArray[Any], groups: int, rows: npt.NDArray[Any] | None = None
) -> Int64:
    """How many of the n scans of each group lie in each cell, int64 (groups, c, CELLS).

    Args:
        codes: uint8 (m, c), cells.
        group: (n,), numbers below `groups`.
        groups: how many groups.
        rows: (n,), rows of `codes`; None is each once.
    """
    c = codes.shape[1]
    if len(group) <= FEW:
        cell = np.arange(c) * CELLS + (codes if rows is None else codes[rows])
        cell += (group.astype(np.int64) * (c * CELLS))[:, None]
        found = np.bincount(cell.ravel(), minlength=groups * c * CELLS)
        return found.reshape(groups, c, CELLS)
    total = np.empty((groups, c, CELLS), np.int64)
    base = group.astype(np.int64) * CELLS
    for i in range(c):
        code = codes[:, i] if rows is None else codes[:, i][rows]
        found = np.bincount(base + code, minlength=groups * CELLS)
        total[:, i] = found.reshape(groups, CELLS)
    return total


def _cuts(values: Float32, kind: Kind) -> Float32:
    """Cuts of a column, float32 (at most CUTS,), growing.

    A value with a cell of its own has a cut at itself and one at the number just below it.
    """
    finite = np.sort(values[np.isfinite(values)])
    if not len(finite):
        return np.empty(0, np.float32)
    levels, count = np.unique(finite, return_counts=True)
    if kind == "categorical" or 2 * len(levels) <= CUTS:
        often = np.sort(np.argsort(-count, kind="stable")[: CUTS // 2])
        return _with_predecessors(levels[often], levels[often])
    steps = np.linspace(0, 1, CUTS)
    edges, times = np.unique(np.quantile(finite, steps, method="inverted_cdf"), return_counts=True)
    return _with_predecessors(edges, edges[times > 1])


def _with_predecessors(edges: Float32, own: Float32) -> Float32:
    below = np.nextafter(own.astype(np.float32), np.float32(-np.inf))
    return np.unique(np.concatenate([edges.astype(np.float32), below]))


def _levels(batch: Batch) -> tuple[tuple[str, ...], Int32, Int64]:
    """Ids of the sites seen, the level of each, and the scans of each level.

    Beyond SITES levels the rarest sites share the last one.
    """
    seen = np.bincount(batch.site, minlength=len(batch.sites))
    sites = sorted(batch.sites[i] for i in np.flatnonzero(seen).tolist())
    number = {name: i for i, name in enumerate(batch.sites)}
    site_n = seen[[number[name] for name in sites]].astype(np.int64)
    level = np.arange(len(sites), dtype=np.int32)
    if len(sites) > SITES:
        common = np.sort(np.argsort(-site_n, kind="stable")[: SITES - 1])
        level[:] = SITES - 1
        level[common] = np.arange(SITES - 1)
    return tuple(sites), level, np.bincount(level, weights=site_n).astype(np.int64)


def _strata(level_n: Int64) -> Int32:
    """The row of `cells` of each level; row 0 is shared where some have too few scans."""
    order = np.argsort(-level_n, kind="stable")[: STRATA - 1]
    own = np.sort(order[level_n[order] >= STRATUM_SCANS])
    stratum = np.zeros(len(level_n), np.int32)
    stratum[own] = np.arange(len(own)) + (len(own) < len(level_n))
    return stratum
