"""Explanations over HTTP."""

from __future__ import annotations

from pathlib import Path

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
