"""Held-out lots, tampered with, and what the pipeline makes of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np

from intake.master import read_sites
from intake.read import load_scans
from serving.judge import Model
from tests.behaviour.champions import Champion
from trail.facts import Context
from trail.features import encode
from trail.scan import EVENT_TYPES, Scans
from trail.sites import Sites

SCANS = 2500
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def held_out_scans(champion: Champion, least: int = SCANS) -> Scans:
    """Whole lots of the test part, tampered with; `row` is a number of its own for each scan."""
    sites = read_sites(champion.home / "work" / "validated" / "sites.csv")
    scans = load_scans(champion.home / "work" / "labelled" / "test.parquet", sites).scans
    lots, first = np.unique(scans.lot, return_index=True)
    picked, total = [], 0
    for lot in lots[np.argsort(first)]:
        picked.append(lot)
        total += int((scans.lot == lot).sum())
        if total >= least:
            break
    return scans.take(np.isin(scans.lot, picked))


def pipelines_features(model: Model, scans: Scans, sites: Sites) -> np.ndarray:
    """Features of the scans by the pipeline's own call, in their order."""
    encoded = encode(scans, Context(sites, model.bundle.network, model.registry))
    features = np.empty_like(encoded.features)
    features[encoded.trails.order] = encoded.features
    return features


def as_json(scans: Scans, at: np.ndarray, sites: Sites) -> list[dict[str, object]]:
    """Some scans as a back end sends them; the event id is the scan's row and one."""
    part = scans.take(at)
    text = scans.codes.text.take(part.epc).to_pylist()
    return [
        {
            "event_id": row + 1,
            "epc_code": code,
            "location_id": sites.ids[site],
            "event_type": EVENT_TYPES[op],
            "event_time": (_EPOCH + timedelta(microseconds=time_us)).isoformat(),
            "file_id": 1,
        }
        for row, code, site, op, time_us in zip(
            part.row.tolist(),
            text,
            part.site.tolist(),
            part.op.tolist(),
            part.time_us.tolist(),
            strict=True,
        )
    ]
