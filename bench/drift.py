"""Drift: false alarms on streams without drift, delay on streams with it, cost; peers beside it.

`python -m bench drift` takes a few streams; `python -m bench.drift --streams 200` the full count.
Every method sees the same streams. "Tuned" is a threshold chosen afterwards on the very null
streams that are shown, so that a tenth of them alarm: the best that tuning can do. River is
measured where it is installed (`pip install river`), NannyML likewise; neither is needed otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import astuple, dataclass
from functools import lru_cache, partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path as File

import numpy as np

from bench import drift_streams as streams
from bench.drift_world import world_stream
from logbook import Entry, Kind, LoggedScan, LoggedVerdict, Request
from logbook.opened import open_log
from monitoring.calibrate import calibrated, clopper_pearson
from monitoring.drift import Detector
from monitoring.reference import Batch, Reference
from monitoring.relay import Relay
from monitoring.store import open_store
from monitoring.watch import Champion, Pace, Watch
from trail.scan import DAY_US, HOUR_US

REPLICATES = 100
BASE = "boxes+weekly"
"""Kind of the streams that drift is added to."""
NEVER = float("inf")
PEER_SCANS = 500
QUICK_PEERS = 50
"""Null streams of a kind that the quick peers see."""
SAMPLE = 5000
DIGEST = "d" * 64
ADWIN_DELTAS = (0.002, 1e-4, 1e-8, 1e-16, 1e-32, 1e-64, 1e-128)
WATCHED = (0, streams.FEATURES, -1)
"""Columns that the slow peers watch: the feature that drifts, the operation, the site."""


@dataclass(frozen=True, slots=True)
class Path:
    """Scores of a method along a stream: days since it began to be watched, and the scores."""

    days: list[float]
    score: list[float]

    @property
    def peak(self) -> float:
        """Largest score."""
        return max(self.score, default=0.0)

    def delay(self, threshold: float) -> float:
        """Days until the first score at the threshold, or infinity."""
        hits = (d for d, s in zip(self.days, self.score, strict=True) if s >= threshold)
        return next(hits, NEVER)


Paths = dict[str, Path]
DEFAULT = {
    "trailwatch": 1.0,
    "trailwatch, warn": 1.0,
    "trailwatch, either": 1.0,
    "KS, Bonferroni": -np.log10(0.05),
}
"""Thresholds as they are; those of the peers follow from their settings."""


@lru_cache(maxsize=1)
def reference_of(kind: str, seed: int) -> tuple[Batch, Reference]:
    """A reference's scans and what is made of them; all drifts of a seed follow the same."""
    rng = np.random.default_rng((seed, len(kind), 0))
    batch = streams.reference_of(streams.KINDS[kind], rng)
    made = Reference.make(batch, streams.COLUMNS)
    return batch, calibrated(made, batch, seed, REPLICATES, held_out=0)


def ours(made: Reference, days: list[Batch]) -> Paths:
    """The detector of this product, evaluated four times a day after seven days."""
    detector = Detector.of(made)
    at, retrain, warn = [], [], []
    start = 0
    for i, batch in enumerate(days):
        quarter = (batch.time_us % DAY_US) // (6 * HOUR_US)
        start = int(batch.time_us[0] // DAY_US) * DAY_US if len(batch) else start + DAY_US
        for q in range(4):
            detector.add(batch.take(np.flatnonzero(quarter == q)))
            found = detector.evaluate(start + (q + 1) * 6 * HOUR_US - 1)
            if i >= streams.WARM_UP:
                new = [p for p in found.locations if p.boxes >= 20 and p.days >= 3]
                at.append(i - streams.WARM_UP + (q + 1) / 4)
                retrain.append(max(found.retrain_score, NEVER if new else 0))
                warn.append(max(found.warn_score, NEVER if found.locations else 0))
    return {"trailwatch": Path(at, retrain), "trailwatch, warn": Path(at, warn)}


def bonferroni(reference: Batch, days: list[Batch]) -> Paths:
    """A KS test of every column in each 500 scans; the score is -log10 of p times columns."""
    from scipy.stats import ks_2samp

    every = np.linspace(0, len(reference) - 1, SAMPLE).astype(int)
    before, now = _matrix(reference)[every], _matrix(streams.joined(days[streams.WARM_UP :]))
    at, score = [], []
    for stop in range(PEER_SCANS, len(now) + 1, PEER_SCANS):
        window = now[stop - PEER_SCANS : stop]
        p = 1.0
        for i in range(now.shape[1]):
            values = window[:, i][np.isfinite(window[:, i])]
            old = before[:, i][np.isfinite(before[:, i])]
            if len(values):
                p = min(p, float(ks_2samp(old, values, method="asymp").pvalue))
        at.append(stop / streams.RATE)
        score.append(float(-np.log10(max(p * now.shape[1], 1e-300))))
    return {"KS, Bonferroni": Path(at, score)}


def adwin(reference: Batch, days: list[Batch]) -> Paths:
    """River's ADWIN on three columns; the score is -log10 of the strictest delta that alarms."""
    from river.drift import ADWIN

    before = _matrix(reference)[-streams.RATE * 7 :, list(WATCHED)]
    now = _matrix(streams.joined(days[streams.WARM_UP :]))[:, list(WATCHED)]
    now = np.where(np.isfinite(now), now, 0)
    first: dict[float, float] = {}
    for delta in ADWIN_DELTAS:
        for i in range(now.shape[1]):
            method = ADWIN(delta=delta)
            for value in before[:, i].tolist():
                method.update(value)
            for n, value in enumerate(now[:, i].tolist()):
                method.update(value)
                if method.drift_detected:
                    first[delta] = min(first.get(delta, NEVER), (n + 1) / streams.RATE)
                    break
        if delta not in first:
            break  # a stricter one will not alarm either
    return {"river ADWIN": Path(list(first.values()), [float(-np.log10(delta)) for delta in first])}


def kswin(days: list[Batch], scans: int) -> Paths:
    """River's KSWIN on one column, some scans only: a millisecond each."""
    from river.drift import KSWIN

    values = _matrix(days[streams.WARM_UP])[:scans, 0].tolist()
    method, at, score = KSWIN(alpha=1e-300, seed=1), [], []
    for n, value in enumerate(values):
        method.update(value)
        at.append((n + 1) / streams.RATE)
        score.append(float(-np.log10(max(getattr(method, "p_value", 1.0) or 1.0, 1e-300))))
    return {"river KSWIN": Path(at, score)}


def evidently(reference: Batch, days: list[Batch], windows: int) -> Paths:
    """Evidently's data drift preset with its defaults, a day a window: any column drifted."""
    import pandas as pd
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    def dataset(batch: Batch) -> Dataset:
        every = np.linspace(0, len(batch) - 1, min(SAMPLE, len(batch))).astype(int)
        table = pd.DataFrame(_matrix(batch)[every], columns=[f"c{i}" for i in range(10)])
        table[["c8", "c9"]] = table[["c8", "c9"]].astype(str)
        definition = DataDefinition(
            numerical_columns=[f"c{i}" for i in range(8)], categorical_columns=["c8", "c9"]
        )
        return Dataset.from_pandas(table, data_definition=definition)

    before, at, score = dataset(reference), [], []
    for i in range(windows):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = Report([DataDriftPreset()]).run(dataset(days[streams.WARM_UP + i]), before)
        values = [
            float(metric["value"])
            for metric in found.dict()["metrics"]
            if isinstance(metric["value"], int | float | np.floating)
        ]
        at.append(float(i + 1))
        score.append(max(values, default=0.0))
    return {"Evidently": Path(at, score)}


def _matrix(batch: Batch) -> np.ndarray:
    """Columns with the site as the last, as peers see them."""
    return np.column_stack([batch.columns, batch.site]).astype(np.float64)


@dataclass(frozen=True, slots=True)
class Task:
    """One stream.

    Attributes:
        kind: of `streams.KINDS`, or "world".
        drift: of `streams.DRIFTS`, "" for none.
        seed: of the stream.
        peers: 0 ours alone, 1 with the quick peers, 2 with all.
    """

    kind: str
    drift: str
    seed: int
    peers: int


def watch(task: Task) -> Paths:
    """What every method says of one stream."""
    if task.kind == "world":
        reference, days, columns = world_stream(task.seed)
        described = Reference.make(reference, columns)
        return ours(calibrated(described, reference, task.seed, REPLICATES, held_out=0), days)
    reference, made = reference_of(task.kind, task.seed)
    rng = np.random.default_rng((task.seed, len(task.kind), 99 if task.drift else 98))
    drift = streams.DRIFTS[task.drift] if task.drift else None
    days = streams.stream_of(streams.KINDS[task.kind], rng, drift)
    found = ours(made, days)
    if task.peers >= 1:
        found |= bonferroni(reference, days)
    if task.peers >= 2 and find_spec("river") is not None:
        found |= adwin(reference, days)
        if not task.drift:
            found |= kswin(days, 1000)
    if task.peers >= 2 and not task.drift:
        found |= evidently(reference, days, 3)
    return found


def _default(method: str) -> float:
    return {
        **DEFAULT,
        "river ADWIN": float(-np.log10(0.002)),
        "river KSWIN": float(-np.log10(0.005)),
        "Evidently": 0.1,
    }[method]


def null_lines(found: dict[str, list[Paths]]) -> Iterator[str]:
    """Share of streams with any alarm in 30 days, with thresholds as they are, and tuned ones."""
    head = f"{'streams':>8}{'share':>7}{'95 %':>16}{'tuned':>9}"
    yield f"{'any alarm in 30 days without drift':36}{head}"
    for kind, paths in found.items():
        yield kind
        for method in dict.fromkeys(name for p in paths for name in p):
            mine = [p[method] for p in paths if method in p]
            alarms = sum(path.peak >= _default(method) for path in mine)
            low, high = clopper_pearson(alarms, len(mine))
            peaks = [path.peak for path in mine]
            tuned = f"{tuned_threshold(peaks):.3g}" if any(peaks) else "any"
            yield (
                f"  {method:34}{len(mine):8d}{alarms / len(mine):7.2f}"
                f"{f'[{low:.2f}, {high:.2f}]':>16}{tuned:>9}"
            )
        yield f"  {'an alarm every 30 days':34}{'':8}{1.0:7.2f}{'':>16}{'never':>9}"


def tuned_threshold(peaks: list[float]) -> float:
    """The threshold that a tenth of the streams reach, at most."""
    high = sorted(peaks)
    rank = min(int(np.ceil(0.9 * (len(high) + 1))), len(high))
    return float(np.nextafter(high[rank - 1], np.inf))


def power_lines(nulls: list[Paths], found: dict[str, list[Paths]]) -> Iterator[str]:
    """Delays in days at the thresholds that a tenth of the null streams of this kind reach."""
    methods = [m for m in dict.fromkeys(name for p in nulls for name in p) if m in _POWER]
    matched = {m: tuned_threshold([p[m].peak for p in nulls if m in p]) for m in methods}
    yield (
        f"{f'delay in days, {BASE}: median / P90 / missed':44}"
        + "".join(f"{m:>24}" for m in ("trailwatch as it is", *methods))
        + f"{'either / best peer':>20}"
    )
    for drift, paths in found.items():
        told = [_told([p["trailwatch"].delay(1.0) for p in paths])]
        delays = {m: [p[m].delay(matched[m]) for p in paths if m in p] for m in methods}
        told += [_told(of_method) for of_method in delays.values()]
        peers = [_middle(delays[m]) for m in methods if m not in _OURS and delays[m]]
        ours = _middle(delays["trailwatch, either"])
        ratio = f"{ours / min(peers, default=NEVER):.2f}" if np.isfinite(ours) else "-"
        yield f"  {drift:42}" + "".join(f"{text:>24}" for text in told) + f"{ratio:>20}"


_OURS = ("trailwatch", "trailwatch, warn", "trailwatch, either")
_POWER = (*_OURS, "KS, Bonferroni", "river ADWIN")


def _middle(delays: list[float]) -> float:
    return float(np.quantile(delays, 0.5, method="higher"))


def _told(delays: list[float]) -> str:
    if not delays:
        return "not measured"
    middle, late = _middle(delays), float(np.quantile(delays, 0.9, method="higher"))
    missed = sum(np.isinf(d) for d in delays)
    text = [f"{d:.1f}" if np.isfinite(d) else "-" for d in (middle, late)]
    return f"{text[0]} / {text[1]} / {missed} of {len(delays)}"


def cost_lines() -> Iterator[str]:
    """Processor time and size of the detector, on columns and sites as the service has them."""
    from monitoring.reference import MONITORED

    rng = np.random.default_rng(0)
    n, sites = 60_000, 75
    columns = rng.normal(size=(n, len(MONITORED))).astype(np.float32)
    for i, column in enumerate(MONITORED):
        if column.kind == "categorical":
            columns[:, i] = rng.integers(0, 3, n)
    batch = Batch(
        columns,
        rng.integers(0, sites, n).astype(np.int32),
        tuple(f"S{i}" for i in range(sites)),
        np.arange(n) // 40,
        np.sort(rng.integers(0, 30 * DAY_US, n)),
    )
    detector = Detector.of(Reference.make(batch))
    for size in (50, 1000):
        parts = [batch.take(np.arange(i, i + size)) for i in range(0, 20_000, size)]
        took = _fastest(partial(_all, detector, parts), 3)
        yield f"{took / 20_000 * 1e6:5.2f} us a scan of {len(MONITORED)} columns, {size} at a time"
    yield f"{_fastest(detector.evaluate, 20) * 1e3:5.2f} ms an evaluation, all windows and columns"
    state = detector.to_bytes()
    yield f"{_fastest(detector.to_bytes, 5) * 1e3:5.2f} ms to write the state, {len(state):,} bytes"
    rounds = _rounds(detector.reference, batch.take(np.arange(20_000)))
    yield (
        f"{rounds / 20_000 * 1e6:5.2f} us a scan of the monitor's whole rounds: 20,000 from "
        "a log in SQLite, state written each 5,000"
    )


def _rounds(reference: Reference, batch: Batch) -> float:
    """Processor seconds of the monitor for a log that holds these scans already."""
    with tempfile.TemporaryDirectory() as folder:
        where = File(folder)
        reference.save(where)
        with closing(open_log(f"sqlite:{where / 'log.db'}")) as log:
            for first in range(0, len(batch), 500):
                log.append(_entry(batch, range(first, first + 500)))
            with closing(
                open_store(f"sqlite:{where}/drift.db", "trailwatch", create=True)
            ) as store:
                watch = Watch(log, store, Relay(store, None), pace=Pace(3600.0), event_clock=True)
                watch.tell(Champion("1", DIGEST, where))
                began = time.process_time()
                while watch.step():
                    pass
                took = time.process_time() - began
                known = store.monitor()
                assert known is not None and known.counts["counted"] == len(batch)
                return took


def _entry(batch: Batch, rows: range) -> Entry:
    """A request with these scans, as serving logs it."""
    scans = [
        LoggedScan(f"001.{i}", i // 40, i, batch.sites[batch.site[i]], 1, int(batch.time_us[i]))
        for i in rows
    ]
    five = (0.0,) * 5
    verdict = LoggedVerdict(Kind.GIVEN, "1", DIGEST, "model", "high", five, five, five)
    request = Request(f"r{rows.start}", scans[-1].time_us, "/score")
    blobs = [batch.columns[i].astype("<f4").tobytes() for i in rows]
    return Entry(request, scans, [verdict] * len(scans), monitored=blobs)


def _all(detector: Detector, parts: list[Batch]) -> None:
    for part in parts:
        detector.add(part)


def _fastest(job: Callable[[], object], times: int) -> float:
    """Least processor seconds: what others do on the machine only ever adds."""
    took = []
    for _ in range(times):
        began = time.process_time()
        job()
        took.append(time.process_time() - began)
    return min(took)


def lines(
    n: int, peers: int, power: int, world: int, jobs: int, keep: File | None = None
) -> Iterator[str]:
    """All tables.

    Args:
        n: null streams of each kind.
        peers: how many of them the slow peers see too.
        power: streams of each drift.
        world: null streams of the simulated world.
        jobs: processes.
        keep: a file that streams are kept in as they are seen, so that a run goes on with them.
    """
    absent = [name for name in ("river", "nannyml") if find_spec(name) is None]
    if absent:
        yield f"not installed, so not measured: {', '.join(absent)}"
    yield from cost_lines()
    quiet = [
        Task(kind, "", seed, 2 if seed < peers else int(seed < QUICK_PEERS))
        for seed in range(n)
        for kind in streams.KINDS
    ]
    quiet += [Task("world", "", seed, 0) for seed in range(world)]
    loud = [
        Task(BASE, drift, seed, 2 if seed < peers else 1)
        for seed in range(power)
        for drift in streams.DRIFTS
    ]
    quiet.sort(key=lambda task: task.seed)
    # Read when numpy is loaded: a product of small matrices waits for its threads, and no more.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        nulls = _watched(pool, quiet, keep)
        yield from null_lines(nulls)
        if loud:
            yield from power_lines(nulls[BASE], _watched(pool, loud, keep))


def _watched(
    pool: ProcessPoolExecutor, tasks: list[Task], keep: File | None
) -> dict[str, list[Paths]]:
    """What was seen, by drift, or where there is none by kind; what is kept is not seen again."""
    known = _kept(keep)
    found: dict[str, list[Paths]] = {}
    new = [task for task in tasks if task not in known]
    together = len(streams.DRIFTS) if any(task.drift for task in new) else 1
    for task, paths in zip(new, pool.map(watch, new, chunksize=together), strict=True):
        known[task] = paths
        if keep is not None:
            plain = {name: [path.days, path.score] for name, path in paths.items()}
            with keep.open("a") as lines:
                lines.write(json.dumps([astuple(task), plain]) + "\n")
    for task in tasks:
        found.setdefault(task.drift or task.kind, []).append(_with_either(known[task]))
    return found


def _with_either(paths: Paths) -> Paths:
    """With the first sign of either tier, when `/health/drift` is no longer ok."""
    retrain, warn = paths["trailwatch"], paths["trailwatch, warn"]
    most = [max(pair) for pair in zip(retrain.score, warn.score, strict=True)]
    ours = {"trailwatch": retrain, "trailwatch, warn": warn}
    return {**ours, "trailwatch, either": Path(retrain.days, most), **paths}


def _kept(keep: File | None) -> dict[Task, Paths]:
    if keep is None or not keep.exists():
        return {}
    rows = [json.loads(line) for line in keep.read_text().splitlines()]
    return {Task(*task): {name: Path(*p) for name, p in plain.items()} for task, plain in rows}


def run(quick: bool) -> list[str]:
    """Lines of a small run; `python -m bench.drift` takes counts."""
    return list(lines(*((2, 0, 1, 0) if quick else (10, 2, 4, 2)), jobs=os.cpu_count() or 1))


def main(argv: list[str] | None = None) -> int:
    """Run with counts; see `--help`."""
    parser = argparse.ArgumentParser(prog="python -m bench.drift", description=__doc__)
    parser.add_argument("--streams", type=int, default=200, help="null streams of each kind")
    parser.add_argument("--peers", type=int, default=5, help="those that slow peers see as well")
    parser.add_argument("--power", type=int, default=20, help="streams of each drift")
    parser.add_argument("--world", type=int, default=20, help="null streams of the world")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--keep", type=File, help="file to keep streams in, and to go on with")
    asked = parser.parse_args(argv)
    counts = (asked.streams, asked.peers, asked.power, asked.world)
    for line in lines(*counts, asked.jobs, asked.keep):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
