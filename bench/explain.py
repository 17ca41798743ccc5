"""Explanations of the champion's flagged scans: latency on one thread, completeness, what is found.

Asked of the bundle and the data of the last `make run`; a scan is explained for a type that the
network flags it for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from intake.master import read_registry, read_sites
from intake.read import read_scans
from models.bundle import Bundle
from serving.counterfactual import Counterfactual
from serving.explain import Explanation, explain
from serving.history import Recall
from serving.judge import Model
from trail.facts import previous_of
from trail.features import encode
from trail.mates import table_of
from trail.scan import ANOMALIES, Scans
from trail.sites import Sites
from trail.trails import sort

ROOT = Path(__file__).parent.parent
SCANS_OF_TYPE = 40


def run(quick: bool) -> list[str]:
    """Lines of figures; `quick` takes a quarter of the scans."""
    folder, data = ROOT / "work" / "bundle", ROOT / "data" / "scans.parquet"
    if not folder.is_dir() or not data.exists():
        return ["there is no model to explain; train one with: make run"]
    bundle = Bundle(folder)
    intake = read_scans(data, read_sites(folder / "sites.csv"))
    model = Model("bench", "1", bundle, read_registry(folder / "registry.csv"))
    asked = list(_flagged(model, intake.scans, intake.sites, SCANS_OF_TYPE // (4 if quick else 1)))
    first = _timed(lambda: _explain(model, intake.sites, asked[0], "mean", False))[1][0]
    places = [place for _, _, place, _ in asked]
    lines = [
        f"{len(asked)} flagged scans, {np.median(places):.0f} (0 to {max(places)}) scans before "
        f"them in their trail; the first explanation, with its imports, {first:.1f} s"
    ]
    for baseline in ("mean", "zeros"):
        found, took = _all(model, intake.sites, asked, baseline, False)
        errors = [e.attributions.completeness_error for e in found if e.attributions]
        lines.append(
            f"baseline {baseline:<5}  {_quantiles(took)}; completeness error p50 "
            f"{np.median(errors):.4f}, P95 {np.quantile(errors, 0.95):.4f}, max {max(errors):.4f}"
        )
    found, took = _all(model, intake.sites, asked, "mean", True)
    lines.append(f"with what would have been normal  {_quantiles(took)}")
    for k, name in enumerate(ANOMALIES):
        of = [
            e.counterfactual
            for e, (_, _, _, column) in zip(found, asked, strict=True)
            if column == k
        ]
        lines.append(f"  {name:<12} {len(of):>3} scans, found for {_hits(of)}")
    return lines


def _hits(of: list[Counterfactual | None]) -> str:
    kinds = [c.kind for c in of if c is not None]
    ways = ", ".join(f"{kind} {kinds.count(kind)}" for kind in sorted(set(kinds)))
    return f"{len(kinds)}{f' ({ways})' if ways else ''}"


Asked = tuple[Recall, str, int, int]
"""What is remembered, the code, the scan's place in it, and the anomaly asked about."""
Took = tuple[float, float]
"""Seconds by the clock, and of the processor."""


def _flagged(model: Model, scans: Scans, sites: Sites, most: int) -> Iterator[Asked]:
    """Scans that the network flags, up to `most` of each type, as the history recalls them."""
    trails = sort(scans)
    encoded = encode(scans, model.context(sites))
    verdicts = model.verdicts(encoded)
    flagged = (verdicts.model >= model.bundle.threshold) & ~verdicts.cold[:, None]
    rng = np.random.default_rng(0)
    for k in range(len(ANOMALIES)):
        rows = np.flatnonzero(flagged[:, k])
        for row in rng.permutation(rows)[:most].tolist():
            yield (*_recall(trails.scans, row), k)


def _recall(scans: Scans, row: int) -> tuple[Recall, str, int]:
    lot = scans.take(scans.lot == scans.lot[row])
    starts = np.append(True, lot.epc[1:] != lot.epc[:-1])
    mine = scans.epc == scans.epc[row]
    trail = scans.take(mine)
    n = len(trail)
    recall = Recall(
        scans=replace(trail, epc=np.zeros(n, np.int32), codes=scans.codes.take(trail.epc[:1])),
        event_id=trail.row,
        said=np.zeros(n, np.uint8),
        table=table_of(lot, previous_of(starts)),
        at=np.empty(0, np.int64),
        new=np.empty(0, bool),
    )
    code = scans.codes.text[int(scans.epc[row])].as_py()
    return recall, code, int(np.flatnonzero(np.flatnonzero(mine) == row)[0])


def _explain(
    model: Model, sites: Sites, asked: Asked, baseline: str, with_counterfactual: bool
) -> Explanation:
    recall, code, at, column = asked
    return explain(
        model,
        sites,
        recall,
        code,
        at,
        ANOMALIES[column],
        baseline,  # type: ignore[arg-type]
        with_counterfactual=with_counterfactual,
    )


def _all(
    model: Model, sites: Sites, asked: list[Asked], baseline: str, with_counterfactual: bool
) -> tuple[list[Explanation], list[Took]]:
    done = [
        _timed(lambda a=a: _explain(model, sites, a, baseline, with_counterfactual))  # type: ignore[misc]
        for a in asked
    ]
    return [d[0] for d in done], [d[1] for d in done]


def _timed(job: Callable[[], Explanation]) -> tuple[Explanation, Took]:
    began, began_cpu = time.perf_counter(), time.process_time()
    found = job()
    return found, (time.perf_counter() - began, time.process_time() - began_cpu)


def _quantiles(took: list[Took]) -> str:
    wall, processor = np.quantile(took, [0.5, 0.95], axis=0).T * 1000
    return (
        f"p50 {wall[0]:.1f} ms, P95 {wall[1]:.1f} ms "
        f"(processor: p50 {processor[0]:.1f}, P95 {processor[1]:.1f})"
    )
