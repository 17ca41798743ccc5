"""Explanations over HTTP."""

from __future__ import annotations

import time
from pathlib import Path

from serving.explain import explainer
from serving.settings import Settings
from tests.serving.served import served

CODE = "001.8804823.1293291.010004.20250701.000000007"


def scan(event_id: int, place: int, what: str, when: str) -> dict:
    return {
        "event_id": event_id,
        "epc_code": CODE,
        "location_id": place,
        "event_type": what,
        "event_time": f"2025-07-02T{when}Z",
    }


def test_a_flagged_scan_is_explained_by_its_rule_without_a_model(tmp_path: Path) -> None:
    with served(Settings(home=tmp_path, history="memory:")) as (client, _):
        rows = [
            scan(1, 101, "WMS_Inbound", "08:00:00"),
            scan(2, 101, "WMS_Outbound", "09:00:00"),
            scan(3, 101, "WMS_Outbound", "12:00:00"),
        ]
        client.post("/score", json={"data": rows}).raise_for_status()
        told = client.get("/explain/3", params={"anomaly": "evtOrderErr"}).json()
        assert told["event_id"] == 3
        assert told["anomaly"] == "evtOrderErr"
        assert told["source"] == "rules"
        assert "attributions" not in told
        assert told["sentence"]
        assert client.get("/explain/9").status_code == 404
        assert client.get("/explain/3", params={"anomaly": "theft"}).status_code == 422
        assert client.get("/explain/x").status_code == 422


def test_torch_is_loaded_in_the_background_so_that_no_explanation_waits_for_it(
    tmp_path: Path, bundle_folder: Path
) -> None:
    settings = Settings(home=tmp_path, history="memory:", bundle=str(bundle_folder))
    explainer.cache_clear()
    with served(settings, explain="warm") as (client, _):
        assert client.get("/health/ready").status_code == 200
        until = time.monotonic() + 120
        while explainer.cache_info().currsize == 0:
            assert time.monotonic() < until, "nothing was loaded"
            time.sleep(0.1)
        rows = [
            scan(1, 101, "Aggregation", "08:00:00"),
            scan(2, 101, "WMS_Inbound", "09:00:00"),
        ]
        client.post("/score", json={"data": rows}).raise_for_status()
        told = client.get("/explain/2").json()
        assert told["attributions"]["completeness_error"] < 0.05
        assert explainer.cache_info().misses == 1
