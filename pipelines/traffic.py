"""Traffic as the service sees it now, for the drift reference: all lots at once, as they came.

The parts of the split are no traffic: each begins with empty shelves and ends in mid-life. What is
described here are all validated scans of the newest weeks, with everything that came before as
their past. They reach up to the newest lot: a model that knew only the world before a change would
find the same drift again as soon as it is champion.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from intake.master import read_registry
from intake.table import Intake
from models import bundle, predict
from models.calibration import Calibration
from models.stack import served
from monitoring.calibrate import MOST_DAYS
from monitoring.reference import Batch, box_key, monitored
from pipelines.parts import Part
from trail.facts import Context
from trail.features import encode
from trail.network import Network
from trail.registry import Registry
from trail.rules import Findings
from trail.scan import ANOMALIES, DAY_US, Op, Scans

Int64 = npt.NDArray[np.int64]


def span(scans: Scans, learned: Part, calibration: Part) -> tuple[int, int]:
    """Event times that the reference describes: from, and before.

    After the training part, so that the model has not seen them; the newest weeks, as many as a
    calibration takes blocks from; and before lots cease to be commissioned, because from then on
    shelves only empty. Where parts are not cut in time, from when the calibration part begins.

    Args:
        scans: all validated scans.
        learned: the training part.
        calibration: the calibration part.
    """
    first, last = int(learned.time_us.max()) + 1, int(calibration.time_us.max()) + 1
    since = first if first < last else int(calibration.time_us.min())
    commissioned = scans.time_us[scans.op == Op.AGGREGATION]
    times = commissioned if len(commissioned) else scans.time_us
    # A thousandth may come from clocks that are wrong.
    newest = int(np.quantile(times, 0.999, method="inverted_cdf"))
    until = newest + 1 if newest > since else int(scans.time_us.max(initial=since)) + 1
    return max(since, until - MOST_DAYS * DAY_US), until


def traffic(weights: Path, validated: Path, intake: Intake, since_us: int, until_us: int) -> Batch:
    """The monitored columns of all scans in a span.

    Args:
        weights: the weights folder, with all that a verdict needs.
        validated: the folder of the validated scans, for the registry.
        intake: the validated scans.
        since_us: first event time.
        until_us: event time before which they lie.
    """
    listed = validated / "registry.csv"
    registry = read_registry(listed) if listed.exists() else Registry.none()
    network = Network.from_json(json.loads((weights / "network.json").read_text()))
    scans = _lots_in(intake.scans.take(intake.scans.time_us < until_us), since_us)
    encoded = encode(scans, Context(intake.sites, network, registry))
    inside = encoded.trails.scans.time_us >= since_us
    rows, offsets = _whole_trails(encoded.offsets, inside)
    features = encoded.features[rows]
    model = served(weights)
    fitted = json.loads((weights / "calibration.json").read_text())[model]
    chosen = json.loads((weights / "thresholds.json").read_text())[model]
    probability = Calibration.from_json(fitted)(predict.served_logits(weights, features, offsets))
    threshold = np.array([chosen[name] for name in ANOMALIES], np.float32)
    findings = Findings(encoded.findings.score[rows], encoded.findings.reason[rows])
    verdicts = bundle.decided(probability, threshold, features, findings)
    seen, kept = encoded.trails.scans.take(rows), inside[rows]
    columns = monitored(features, seen.op, seen.time_us, probability, verdicts.flag)
    return Batch(
        columns[kept],
        seen.site[kept],
        intake.sites.ids,
        box_key(seen.lot, seen.time_us)[kept],
        seen.time_us[kept],
    )


def _lots_in(scans: Scans, since_us: int) -> Scans:
    """Whole lots that have scans at or after a time."""
    lot, code = np.unique(scans.lot, return_inverse=True)
    alive = np.zeros(len(lot), bool)
    alive[code[scans.time_us >= since_us]] = True
    return scans.take(alive[code])


def _whole_trails(offsets: Int64, inside: npt.NDArray[np.bool_]) -> tuple[Int64, Int64]:
    """Rows of the trails with any scan inside, and their own offsets."""
    size = np.diff(offsets)
    trail = np.repeat(np.arange(len(size)), size)
    alive = np.bincount(trail[inside], minlength=len(size)) > 0
    kept = np.flatnonzero(alive[trail])
    return kept, np.concatenate([[0], np.cumsum(size[alive])]).astype(np.int64)
