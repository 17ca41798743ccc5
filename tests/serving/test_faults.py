"""The running service under load, killed, and with its store stopped."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np

from logbook.opened import open_log
from serving.history.opened import open_history
from serving.settings import Settings
from tests.behaviour.champions import FULL, ROOT
from tests.serving.served import free_port
from tests.serving.stores import restartable, url_of

KILLS = 20 if FULL else 3
CODE = "001.8804823.1293291.{:06d}.20250701.{:09d}"
LOTS = (1, 2, 3)
"""Of the clients, one each: what they send while the core is at work is scored together."""
ALL_CODES = [CODE.format(lot, n) for lot in LOTS for n in range(1, 201)]
OPS = ("Aggregation", "WMS_Inbound", "WMS_Outbound", "HUB_Inbound", "HUB_Outbound")


def server(home: Path, port: int, **more: str) -> subprocess.Popen:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TRAILWATCH_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "serving", "--port", str(port)],
        cwd=ROOT,
        env={**kept, "TRAILWATCH_HOME": str(home), "TRAILWATCH_EXPLAIN": "lazy", **more},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 120
    while time.monotonic() < until:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health/live", timeout=2).status_code == 200:
                return process
        except httpx.HTTPError:
            time.sleep(0.1)
    process.kill()
    raise AssertionError("the service did not start")


class Load:
    """A client that sends scans of many codes of a lot and notes which were acknowledged."""

    def __init__(self, port: int, lot: int = 1) -> None:
        self.lot = lot
        self.url = f"http://127.0.0.1:{port}"
        self.acknowledged: list[int] = []
        self.degraded = 0
        self.errors: list[int] = []
        self._next = 1 + 1_000_000 * lot
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def wait_for(self, scans: int) -> None:
        """Wait until so many further scans were acknowledged."""
        goal, until = len(self.acknowledged) + scans, time.monotonic() + 120
        while len(self.acknowledged) < goal:
            assert time.monotonic() < until, "nothing is acknowledged"
            time.sleep(0.01)

    def rows(self) -> list[dict]:
        first, self._next = self._next, self._next + 20
        return [
            {
                "event_id": i,
                "epc_code": CODE.format(self.lot, 1 + i % 200),
                "location_id": 101 + i // 200 % 3,
                "event_type": OPS[i // 200 % len(OPS)],
                "event_time": f"2025-07-02T{i // 3600 % 24:02d}:{i // 60 % 60:02d}:{i % 60:02d}Z",
            }
            for i in range(first, first + 20)
        ]

    def _run(self) -> None:
        rows = self.rows()
        while not self._stop.is_set():
            try:
                answer = httpx.post(f"{self.url}/score", json={"data": rows}, timeout=20)
            except httpx.HTTPError:  # killed: the same request again, as a back end would
                time.sleep(0.05)
                continue
            if answer.status_code == 200:
                self.acknowledged += [row["event_id"] for row in rows]
                self.degraded += answer.headers.get("X-Degraded") == "true"
                rows = self.rows()
            else:
                self.errors.append(answer.status_code)
                time.sleep(0.05)


def test_killed_under_load_every_acknowledged_scan_is_there_exactly_once(
    tmp_path: Path, bundle_folder: Path
) -> None:
    port, chance = free_port(), random.Random(4)
    bundle = {"TRAILWATCH_BUNDLE": str(bundle_folder)}
    process = server(tmp_path, port, **bundle)
    loads = [Load(port, lot) for lot in LOTS]
    try:
        for _ in range(KILLS):
            loads[0].wait_for(20 * chance.randint(1, 15))
            time.sleep(chance.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
            process.wait()
            process = server(tmp_path, port, **bundle)
        time.sleep(1)
    finally:
        for load in loads:
            load.stop()
        process.kill()
        process.wait()
    assert all(len(load.acknowledged) >= 20 for load in loads)
    acknowledged = [event_id for load in loads for event_id in load.acknowledged]
    assert len(acknowledged) >= 20 * KILLS
    settings = Settings(home=tmp_path)
    in_log(settings.log_url, acknowledged)
    in_history(settings.history_url, acknowledged)


def in_log(url: str, acknowledged: list[int]) -> None:
    log = open_log(url)
    ids = [record.scan.event_id for record in log.since(0, 10**7)]
    log.close()
    assert len(ids) == len(set(ids))
    assert set(acknowledged) <= set(ids)


def in_history(url: str, acknowledged: list[int], codes: Sequence[str] = ALL_CODES) -> None:
    history = open_history(url, keep_days_after_sale=90, keep_days_idle=400)
    found = history.recall(list(codes))
    history.close()
    ids = found.event_id.tolist()
    assert len(ids) == len(set(ids))
    assert set(acknowledged) <= set(ids)
    assert int(np.sum(found.table.n)) == len(ids)


def test_a_stopped_store_degrades_answers_and_loses_nothing(
    tmp_path: Path, bundle_folder: Path
) -> None:
    port = free_port()
    with restartable(appendonly="yes", appendfsync="always") as store:
        process = server(
            tmp_path,
            port,
            TRAILWATCH_BUNDLE=str(bundle_folder),
            TRAILWATCH_HISTORY=url_of(store),
        )
        load = Load(port)
        ready = f"http://127.0.0.1:{port}/health/ready"
        try:
            time.sleep(1)
            assert httpx.get(ready, timeout=20).status_code == 200
            store.stop()
            time.sleep(2)
            assert httpx.get(ready, timeout=20).status_code == 503
            store.start()
            until = time.monotonic() + 120
            while httpx.get(ready, timeout=20).status_code != 200:
                assert time.monotonic() < until, "the service did not recover"
                time.sleep(0.2)
            time.sleep(3)
            load.stop()
            assert load.degraded > 0
            assert not load.errors
            log = open_log(Settings(home=tmp_path).log_url)
            until = time.monotonic() + 30
            while log.figures()["waiting"]:
                assert time.monotonic() < until, "the store was not taught"
                time.sleep(0.2)
            log.close()
            in_log(Settings(home=tmp_path).log_url, load.acknowledged)
            in_history(url_of(store), load.acknowledged)
        finally:
            load.stop()
            process.kill()
            process.wait()
