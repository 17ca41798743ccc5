"""Scans of a running installation, as they are, judged by its own champion and by a stranger."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.behaviour.champions import SHARED, Champion, trained_on_korea
from trail.scan import ANOMALIES

pytestmark = pytest.mark.skipif(not SHARED.exists(), reason="the real extract is not here")


@pytest.fixture(scope="module")
def korea(tmp_path_factory: pytest.TempPathFactory) -> Champion:
    return trained_on_korea(tmp_path_factory.mktemp("korea") / "home")


def scored(champion: Champion, file: Path, folder: Path) -> pd.DataFrame:
    out = folder / "verdicts.parquet"
    printed = champion.score(file, out, "--sites", SHARED / "sites.csv")
    found = pd.read_parquet(out)
    assert f"scored {len(found):,} + quarantined 0" in printed
    return found


def order_errors(folder: Path) -> Path:
    """The 600 pairs: the scan, and the one before it rebuilt from the `from_*` columns."""
    rows = pd.read_csv(SHARED / "order_errors.csv", dtype=str)
    sites = pd.read_csv(SHARED / "sites.csv", dtype=str)
    site_of = dict(zip(sites["scan_location"], sites["location_id"], strict=True))
    before = pd.DataFrame(
        {
            "epc_code": rows["epc_code"],
            "location_id": rows["from_scan_location"].map(site_of),
            "event_type": rows["from_event_type"],
            "event_time": rows["from_event_time"],
        }
    )
    assert before["location_id"].notna().all()
    path = folder / "pairs.csv"
    pd.concat([rows[before.columns], before]).to_csv(path, index=False)
    return path


def test_an_honest_journey_gives_no_anomaly(korea, tmp_path):
    found = scored(korea, SHARED / "journey.tsv", tmp_path)
    assert len(found) == 13
    assert not found[list(ANOMALIES)].any(axis=None), found[list(ANOMALIES)].any()


def test_goods_that_left_before_they_arrived_are_order_errors(korea, tmp_path):
    found = scored(korea, order_errors(tmp_path), tmp_path)
    later = found.iloc[:600]
    assert len(found) == 1200
    assert later["evtOrderErr"].mean() >= 0.95
    assert (later["source"] == "model").mean() >= 0.95
    assert later["evidence"].str.contains("after it had left the same site").mean() >= 0.95
    assert not found.iloc[600:]["evtOrderErr"].any()


def test_the_rules_alone_find_the_order_errors(tmp_path):
    from intake.master import read_sites
    from intake.read import read_scans
    from trail.facts import Context
    from trail.features import encode
    from trail.registry import Registry
    from trail.rules import FLAG

    intake = read_scans(order_errors(tmp_path), read_sites(SHARED / "sites.csv"))
    encoded = encode(intake.scans, Context(intake.sites, None, Registry.none()))
    later = encoded.trails.order < 600
    assert (encoded.rules[later, 3] >= FLAG).mean() == 1.0
    assert (encoded.rules[~later, 3] >= FLAG).mean() == 0.0


def test_commissioning_scans_are_clean(korea, tmp_path):
    found = scored(korea, SHARED / "factory_scans.csv", tmp_path)
    assert len(found) == 14_000
    assert found[list(ANOMALIES)].any(axis=1).mean() <= 0.01


def test_a_made_up_registry_does_not_condemn_real_products(korea, tmp_path):
    out = tmp_path / "verdicts.parquet"
    printed = korea.score(SHARED / "factory_scans.csv", out)
    assert "registry does not apply" in printed
    assert not pd.read_parquet(out)["epcFake"].any()
