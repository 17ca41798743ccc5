"""Drift: how far the windows of a stream lie from the reference, against calibrated thresholds.

Numeric columns are compared by the KS distance; missing values lie beyond all others. Categorical
ones are compared by total variation with cells for missing values and for new ones, whose share
counts five-fold. A window is compared with what the reference saw at the window's own sites, so
that a change in the mix of sites shows in `location` alone. p-values are shown and decide nothing:
scans move in boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from monitoring.reference import (
    WINDOWS,
    Batch,
    Calibration,
    Float64,
    Int64,
    Kind,
    Reference,
    coded,
    placed,
)
from monitoring.windows import Content, StateError, Windows
from trail.scan import DAY_US

__all__ = ["Detector", "Evaluation", "Measure", "NewLocation", "StateError", "WindowState"]

MINIMUM: Final = 200
"""Scans below which a window is not judged."""
NEW_WEIGHT: Final = 5
"""What a share of values never seen counts, against a share that moved between known ones."""
NEW_LOCATIONS: Final = 128
"""Most new locations told apart; scans of further ones are counted together."""
_BOXES: Final = 32
_DAYS: Final = 31


@dataclass(frozen=True, slots=True)
class Measure:
    """One column in one window.

    Attributes:
        column: its name; `location` is the mix of sites.
        kind: "numeric" or "categorical".
        window: name of the window.
        d: distance from the reference, 0 to 1.
        threshold: the calibrated distance, raised where the window is thin.
        score: d / threshold; from 1 on it is an alarm. 0 where the window is not judged.
        n: scans in the window.
        p_value_iid: as if scans were independent, which they are not; it decides nothing.
    """

    column: str
    kind: Kind
    window: str
    d: float
    threshold: float
    score: float
    n: int
    p_value_iid: float


@dataclass(frozen=True, slots=True)
class WindowState:
    """A window at an evaluation.

    Attributes:
        name: of `WINDOWS`.
        tier: "warn" or "retrain".
        n: scans in it.
        usual: scans that it has at the reference's rate.
        status: "judged"; "warming_up": counting began after its beginning; or "too_few" scans.
        since_us: its beginning.
    """

    name: str
    tier: Literal["warn", "retrain"]
    n: int
    usual: int
    status: Literal["judged", "warming_up", "too_few"]
    since_us: int


@dataclass(frozen=True, slots=True)
class NewLocation:
    """A site that the reference has not seen.

    Attributes:
        location: its id.
        n: scans there since the detector began.
        boxes: distinct boxes, counted up to 32.
        days: distinct days, counted up to 31.
        first_us: its first event time.
        last_us: its last event time.
    """

    location: str
    n: int
    boxes: int
    days: int
    first_us: int
    last_us: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the windows say at one moment.

    Attributes:
        now_us: the moment.
        clock_us: the stream's own clock.
        reference_id: of the reference compared with.
        calibration: what the thresholds are worth. Unless its status is "calibrated", no
            retraining may rest on `retrain_score`.
        measures: every column in every window, judged or not.
        windows: the windows.
        warn_score: largest score of the warn tier.
        retrain_score: largest score of the retrain tier.
        reasons: columns with a score of 1 or more in the retrain tier, worst first.
        warnings: the same in the warn tier.
        locations: sites that the reference has not seen, by scans.
        elsewhere: scans at further such sites, beyond `NEW_LOCATIONS`.
        n: scans counted since the detector began.
        late: scans that were too old for any window.
        ahead: scans that were counted now, because their time lies more than a day ahead.
        repeated: scans that were not counted, because their number was.
    """

    now_us: int
    clock_us: int
    reference_id: str
    calibration: Calibration
    measures: tuple[Measure, ...]
    windows: tuple[WindowState, ...]
    warn_score: float
    retrain_score: float
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    locations: tuple[NewLocation, ...]
    elsewhere: int
    n: int
    late: int
    ahead: int
    repeated: int

    @property
    def max_score(self) -> float:
        """Largest score of both tiers."""
        return max(self.warn_score, self.retrain_score)

    @property
    def warming_up(self) -> bool:
        """No window of the retrain tier is judged yet."""
        return all(w.status != "judged" for w in self.windows if w.tier == "retrain")

    @property
    def features(self) -> dict[str, Measure]:
        """The worst measure of each column: judged windows first, the retrain tier on a tie."""
        tier = {window.name: window.tier for window in WINDOWS}
        worst: dict[str, Measure] = {}
        for measure in self.measures:
            best = worst.get(measure.column)
            rank = (measure.score, tier[measure.window] == "retrain")
            if best is None or rank > (best.score, tier[best.window] == "retrain"):
                worst[measure.column] = measure
        return worst


class Detector:
    """Watches a stream of scans against a reference. Not safe for several threads at once."""

    def __init__(
        self, reference: Reference, windows: Windows, places: Places, last_id: int
    ) -> None:
        """Use `of` or `from_bytes`."""
        self.reference = reference
        self._windows = windows
        self._places = places
        self._level_of = dict(zip(reference.sites, reference.level.tolist(), strict=True))
        self._compare = Comparison(reference)
        self._repeated = 0
        self.last_id = last_id

    @classmethod
    def of(cls, reference: Reference) -> Detector:
        """A detector that has seen nothing."""
        return cls(reference, Windows(reference), Places(), -1)

    @classmethod
    def from_bytes(cls, reference: Reference, state: bytes) -> Detector:
        """A detector that goes on where `to_bytes` was called.

        Raises:
            StateError: the state is damaged or belongs to another reference; start with `of`.
        """
        windows, more = Windows.from_bytes(reference, state)
        try:
            made = cls(reference, windows, Places.from_json(more["places"]), int(more["last_id"]))
            made._repeated = int(more["repeated"])
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"a damaged state ({error}); start anew") from error
        return made

    def to_bytes(self) -> bytes:
        """The whole state, at most 1 MiB."""
        more = {"places": self._places.to_json(), "last_id": self.last_id}
        return self._windows.to_bytes({**more, "repeated": self._repeated})

    def add(self, batch: Batch, now_us: int | None = None) -> int:
        """Count scans; those at sites that the reference has not seen are left out of the windows.

        Args:
            batch: the scans, columns as in `reference.names`.
            now_us: the present, where the caller knows it; see `Windows.add`.

        Returns:
            How many are new: with numbers (`Batch.id`), one counted before is not counted again.

        Raises:
            ValueError: the batch has other columns.
        """
        if batch.columns.ndim != 2 or batch.columns.shape[1] != len(self.reference.names):
            raise ValueError(
                f"a batch has columns {batch.columns.shape}, the reference has "
                f"{len(self.reference.names)}"
            )
        batch = self._unseen(batch)
        if not len(batch):
            return 0
        level = placed(batch, self._level_of)
        known = level >= 0
        if not known.all():
            self._places.add(batch, np.flatnonzero(~known))
            kept = np.flatnonzero(known)
            columns, level, time_us = batch.columns[kept], level[kept], batch.time_us[kept]
        else:
            columns, time_us = batch.columns, batch.time_us
        codes = coded(columns, self.reference.cuts, self.reference.used)
        self._windows.add(codes, level, time_us, now_us)
        return len(batch)

    def _unseen(self, batch: Batch) -> Batch:
        """The scans whose numbers are larger than any counted, each once."""
        if batch.id is None or not len(batch):
            return batch
        fresh = batch.id > self.last_id
        _, first = np.unique(batch.id, return_index=True)
        once = np.zeros(len(batch), bool)
        once[first] = True
        kept = fresh & once
        self.last_id = max(self.last_id, int(batch.id.max()))
        self._repeated += len(batch) - int(kept.sum())
        return batch if kept.all() else batch.take(np.flatnonzero(kept))

    def evaluate(self, now_us: int | None = None) -> Evaluation:
        """Compare all windows with the reference.

        Args:
            now_us: the moment at which windows end; None is the stream's own clock, the median
                event time of its last 500 scans.
        """
        contents = [self._windows.content(window, now_us) for window in WINDOWS]
        distance = self._compare(
            np.stack([content.counts for content in contents]),
            np.stack([content.levels for content in contents]),
        )
        states = [self._state(content) for content in contents]
        measures = [
            measure
            for content, state, d in zip(contents, states, distance, strict=True)
            for measure in self._measures(content, state, d)
        ]
        tier = {window.name: window.tier for window in WINDOWS}
        scores = {name: [m for m in measures if tier[m.window] == name] for name in _TIERS}
        return Evaluation(
            now_us=self._windows.clock_us if now_us is None else now_us,
            clock_us=self._windows.clock_us,
            reference_id=self.reference.id,
            calibration=self.reference.calibration,
            measures=tuple(measures),
            windows=tuple(states),
            warn_score=max(m.score for m in scores["warn"]),
            retrain_score=max(m.score for m in scores["retrain"]),
            reasons=_alarms(scores["retrain"]),
            warnings=_alarms(scores["warn"]),
            locations=self._places.seen(),
            elsewhere=self._places.elsewhere,
            n=self._windows.n,
            late=self._windows.late,
            ahead=self._windows.ahead,
            repeated=self._repeated,
        )

    def _state(self, content: Content) -> WindowState:
        status: Literal["judged", "warming_up", "too_few"] = "judged"
        if content.n < MINIMUM:
            status = "too_few"
        elif not content.complete:
            status = "warming_up"
        window = content.window
        usual = self.reference.calibration.usual[window.name]
        return WindowState(window.name, window.tier, content.n, usual, status, content.since_us)

    def _measures(self, content: Content, state: WindowState, d: Float64) -> list[Measure]:
        given = np.array(self.reference.calibration.thresholds[state.name])
        threshold = given * thinner(content.n, state.usual)
        score = d / threshold if state.status == "judged" else np.zeros(len(d))
        p = self._compare.p_values(d, content)
        kinds: tuple[Kind, ...] = (*self.reference.kinds, "categorical")
        return [
            Measure(
                name,
                kind,
                state.name,
                float(d[i]),
                float(threshold[i]),
                float(score[i]),
                content.n,
                float(p[i]),
            )
            for i, (name, kind) in enumerate(zip(self.reference.measured, kinds, strict=True))
        ]


_TIERS: Final = ("warn", "retrain")


def thinner(n: int, usual: int) -> float:
    """Factor of the thresholds of a window of n scans, 1 or more: noise goes with the root of n."""
    return float(np.sqrt(max(usual / max(n, 1), 1.0)))


def _alarms(measures: Sequence[Measure]) -> tuple[str, ...]:
    worst: dict[str, float] = {}
    for measure in measures:
        if measure.score >= 1:
            worst[measure.column] = max(worst.get(measure.column, 0), measure.score)
    return tuple(sorted(worst, key=lambda name: (-worst[name], name)))


class Comparison:
    """Distances between windows and a reference."""

    def __init__(
        self,
        reference: Reference,
        cells: npt.NDArray[Any] | None = None,
        level_n: Int64 | None = None,
    ) -> None:
        """Prepare a reference, or a part of it.

        Args:
            reference: the reference.
            cells: (strata, c, CELLS), scans of the part by cell; None is all.
            level_n: int64 (l,), scans of the part by level of `location`; None is all.
        """
        counts = reference.cells if cells is None else cells
        by_level = reference.level_n if level_n is None else level_n
        self._shape = counts.shape[1:]
        whole = counts.sum(axis=0, keepdims=True)
        n = counts[:, :1].sum(axis=2, keepdims=True)
        # A site without scans in this part is expected to be like all together.
        share = np.where(n > 0, counts / np.maximum(n, 1), whole / max(int(n.sum()), 1))
        self._share = share.reshape(len(counts), -1).astype(np.float32)
        self._n = int(n.sum())
        self._mix = by_level / max(int(by_level.sum()), 1)
        self._stratum = np.zeros((len(reference.stratum), len(counts)), np.float32)
        self._stratum[np.arange(len(reference.stratum)), reference.stratum] = 1
        self._numeric = np.array([kind == "numeric" for kind in reference.kinds])

    def expected(self, levels: Int64) -> npt.NDArray[np.float32]:
        """Share of each cell at these sites, float32 (t, c, CELLS).

        Args:
            levels: int64 (t, l), scans of each window by level of `location`.
        """
        total = np.maximum(levels.sum(axis=1, keepdims=True), 1)
        weights = (levels / total).astype(np.float32) @ self._stratum
        return np.asarray((weights @ self._share).reshape(len(levels), *self._shape))

    def __call__(self, counts: npt.NDArray[Any], levels: Int64) -> Float64:
        """Distances of t windows, float64 (t, c + 1), `location` last; 0 for an empty window.

        Args:
            counts: (t, c, CELLS), scans by cell.
            levels: int64 (t, l), scans by level of `location`.
        """
        n = levels.sum(axis=1)
        some = np.maximum(n, 1).astype(np.float32)
        gap = counts / some[:, None, None] - self.expected(levels)
        distance = np.empty((len(counts), len(self._numeric) + 1))
        numeric = self._numeric
        distance[:, :-1][:, numeric] = ks(gap[:, numeric])
        distance[:, :-1][:, ~numeric] = variation(gap[:, ~numeric])
        distance[:, -1] = np.abs(levels / some[:, None] - self._mix).sum(axis=1) / 2
        distance[n == 0] = 0
        return distance

    def p_values(self, d: Float64, content: Content) -> Float64:
        """p-values of distances as if all scans were independent, float64 (c + 1,)."""
        n = max(content.n, 1)
        effective = np.sqrt(n * self._n / (n + self._n))
        return kolmogorov(effective * d)


def kolmogorov(x: Float64) -> Float64:
    """Probability that Kolmogorov's statistic exceeds x, float64 of the same shape."""
    k = np.arange(1, 101)
    terms = (-1.0) ** (k - 1) * np.exp(-2 * np.square(k * np.maximum(x, 0.1)[..., None]))
    return np.where(x < 0.2, 1.0, np.clip(2 * terms.sum(axis=-1), 0, 1))


def ks(gap: npt.NDArray[Any]) -> Float64:
    """KS distances (...,) from differences of cell shares (..., CELLS)."""
    return np.asarray(np.abs(np.cumsum(gap, axis=-1)).max(axis=-1, initial=0))


def variation(gap: npt.NDArray[Any]) -> Float64:
    """Total variation (...,) from differences of cell shares (..., CELLS).

    Odd cells are levels; all others but the last, which is missing, together are `__new__`. A
    growth of `__new__` counts five-fold, if that is more: values never seen hardly vary by chance.
    """
    levels, new, missing = gap[..., 1:-1:2], gap[..., 0:-1:2].sum(axis=-1), gap[..., -1]
    total = (np.abs(levels).sum(axis=-1) + np.abs(new) + np.abs(missing)) / 2
    return np.asarray(np.maximum(total, np.minimum(NEW_WEIGHT * new, 1)))


class Places:
    """Sites that the reference has not seen."""

    def __init__(self) -> None:
        """None so far."""
        self._n: dict[str, int] = {}
        self._span: dict[str, tuple[int, int]] = {}
        self._boxes: dict[str, list[int]] = {}
        self._days: dict[str, list[int]] = {}
        self.elsewhere = 0

    def add(self, batch: Batch, rows: npt.NDArray[np.intp]) -> None:
        """Count some scans of a batch."""
        site = batch.site[rows]
        for number in np.unique(site).tolist():
            mine, name = rows[site == number], batch.sites[number]
            if name not in self._n and len(self._n) >= NEW_LOCATIONS:
                self.elsewhere += len(mine)
                continue
            time_us = batch.time_us[mine]
            first, last = int(time_us.min()), int(time_us.max())
            before = self._span.get(name, (first, last))
            self._n[name] = self._n.get(name, 0) + len(mine)
            self._span[name] = (min(first, before[0]), max(last, before[1]))
            self._boxes[name] = _more(self._boxes.get(name, []), batch.box[mine], _BOXES)
            self._days[name] = _more(self._days.get(name, []), time_us // DAY_US, _DAYS)

    def seen(self) -> tuple[NewLocation, ...]:
        """All of them, those with most scans first."""
        found = [
            NewLocation(name, n, len(self._boxes[name]), len(self._days[name]), *self._span[name])
            for name, n in self._n.items()
        ]
        return tuple(sorted(found, key=lambda place: (-place.n, place.location)))

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        rows = [
            [name, n, *self._span[name], self._boxes[name], self._days[name]]
            for name, n in self._n.items()
        ]
        return {"elsewhere": self.elsewhere, "rows": rows}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Places:
        """What `to_json` wrote."""
        made = cls()
        made.elsewhere = int(value["elsewhere"])
        for name, n, first, last, boxes, days in value["rows"]:
            made._n[name], made._span[name] = int(n), (int(first), int(last))
            made._boxes[name], made._days[name] = list(boxes), list(days)
        return made


def _more(known: list[int], found: Int64, most: int) -> list[int]:
    """Distinct values, up to a number of them."""
    if len(known) >= most:
        return known
    return sorted({*known, *np.unique(found).tolist()})[:most]
