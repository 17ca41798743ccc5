"""Jobs over HTTP and WebSocket: a real server on a real port, keys included."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import uvicorn
from fastapi import FastAPI
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from serving import problems
from serving.jobs import Jobs
from serving.jobs.record import Folder
from serving.routes import jobs as routes
from serving.security import SUBPROTOCOL, Gate, make_key, undecided
from serving.settings import Settings

PATIENCE_S = 60
MOST_MIB = 8


@dataclass
class Served:
    """A server, and a client with a key that may score."""

    jobs: Jobs
    client: httpx.Client
    key: str
    other_key: str
    port: int
    bundle: list[Path | None]

    def over(self, job_id: str) -> dict:
        deadline = time.monotonic() + PATIENCE_S
        while (now := self.client.get(f"/jobs/{job_id}").json())["finished"] is None:
            assert time.monotonic() < deadline, now
            time.sleep(0.05)
        return now

    def files(self) -> set[str]:
        """What lies in the folder of jobs, but for the locks."""
        there = self.jobs.folder
        return {p.name for p in there.iterdir() if p.is_dir()} if there.exists() else set()


@pytest.fixture(scope="module")
def served(bundle_folder: Path, tmp_path_factory) -> Iterator[Served]:
    key, entry = make_key("erp", "score")
    other_key, other_entry = make_key("eyes", "read")
    settings = Settings(api_keys=f"{entry},{other_entry}", most_upload_mib=MOST_MIB)
    bundle: list[Path | None] = [bundle_folder]
    folder = tmp_path_factory.mktemp("jobs")
    jobs = Jobs(folder, settings, lambda: bundle[0], look_s=0.05, keep_free_mib=1)
    app = FastAPI(max_body_size=1 << 20)
    app.state.gate = Gate(settings)
    app.state.jobs = jobs
    problems.install(app)
    app.include_router(routes.router)
    assert [path for path in undecided(app) if "jobs" in path] == []
    bound = socket.create_server(("127.0.0.1", 0))
    port = bound.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, args=([bound],))
    thread.start()
    jobs.start()
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=30) as client:
        while not server.started:
            time.sleep(0.01)
        yield Served(jobs, client, key, other_key, port, bundle)
    server.should_exit = True
    thread.join()
    jobs.stop()
    bound.close()


@pytest.fixture(scope="module")
def scans(champion) -> pa.Table:
    return pq.read_table(champion.home / "data" / "scans.parquet").slice(0, 2000)


@pytest.fixture(scope="module")
def scans_csv(scans, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("scans") / "scans.csv"
    pyarrow.csv.write_csv(scans, path)
    return path


def problem(answer: httpx.Response, status: int, kind: str) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == problems.MEDIA_TYPE
    document = answer.json()
    assert document["status"] == status and document["type"].endswith(f":{kind}")
    return document["detail"]


def test_a_file_is_taken_scored_and_fetched(served, scans_csv):
    data = scans_csv.read_bytes()
    answer = served.client.post("/jobs", content=data, params={"filename": "../출하.csv"})
    assert answer.status_code == 202, answer.text
    sent = answer.json()
    assert answer.headers["location"] == f"/jobs/{sent['id']}"
    assert (sent["state"], sent["file"], sent["bytes"]) == ("queued", "출하.csv", len(data))
    assert sent["by"] == "erp" and sent["error"] is None and sent["created"].endswith("Z")
    job = served.over(sent["id"])
    assert (job["state"], job["progress"], job["read"], job["scored"]) == ("done", 1.0, 2000, 2000)
    assert served.client.get("/jobs").json()["jobs"][0] == job

    result = served.client.get(f"/jobs/{job['id']}/result")
    assert result.status_code == 200 and result.headers["content-type"].startswith("text/csv")
    assert "%EC%B6%9C%ED%95%98.verdicts.csv" in result.headers["content-disposition"]
    table = pyarrow.csv.read_csv(pa.BufferReader(result.content))
    assert table["row"].to_pylist() == list(range(2000))
    assert {k: sum(table[k].to_pylist()) for k in job["flagged"]} == job["flagged"]
    part = served.client.get(f"/jobs/{job['id']}/result", headers={"Range": "bytes=100-199"})
    assert part.status_code == 206 and part.content == result.content[100:200]

    parquet = served.client.get(f"/jobs/{job['id']}/result", params={"format": "parquet"})
    assert pq.read_table(pa.BufferReader(parquet.content)).column_names == table.column_names
    quarantine = served.client.get(f"/jobs/{job['id']}/quarantine")
    assert quarantine.text.splitlines() == [
        '"file","row","reason","epc_code","location_id","event_type","event_time","raw"'
    ]
    xlsx = served.client.get(f"/jobs/{job['id']}/result", params={"format": "xlsx"})
    problem(xlsx, 422, "invalid")

    assert served.client.delete(f"/jobs/{job['id']}").status_code == 204
    problem(served.client.get(f"/jobs/{job['id']}"), 404, "unknown-job")


def test_forms_and_content_types_tell_the_type(served, scans_csv, scans, tmp_path):
    pq.write_table(scans, tmp_path / "scans.parquet")
    parquet = (tmp_path / "scans.parquet").read_bytes()
    csv = scans_csv.read_bytes()
    post = served.client.post
    answers = {
        "form.csv": post("/jobs", files={"file": ("form.csv", csv)}, data={"note": "x"}),
        "scans.parquet": post("/jobs", files={"f": ("x", parquet, "application/x-parquet")}),
        "named.csv": post(
            "/jobs",
            content=csv,
            headers={"Content-Disposition": 'attachment; filename="named.csv"'},
        ),
        "scans.csv": post("/jobs", content=csv, headers={"Content-Type": "text/csv"}),
    }
    expected = {**{name: name for name in answers}, "scans.parquet": "x.parquet"}
    results = set()
    for name, answer in answers.items():
        assert answer.status_code == 202, answer.text
        assert answer.json()["file"] == expected[name]
        job = served.over(answer.json()["id"])
        assert (job["state"], job["scored"]) == ("done", 2000), job["error"]
        results.add(served.client.get(f"/jobs/{job['id']}/result").content)
    assert len(results) == 1


def test_uploads_larger_than_the_limit_are_refused_and_leave_nothing(served):
    before = served.files()
    name = {"filename": "a.csv"}
    big = b"x" * ((MOST_MIB << 20) + 1)
    announced = served.client.post("/jobs", content=big, params=name)
    assert str(MOST_MIB) in problem(announced, 413, "too-large")

    def streamed() -> Iterator[bytes]:
        for start in range(0, len(big), 1 << 19):
            yield big[start : start + (1 << 19)]

    problem(served.client.post("/jobs", content=streamed(), params=name), 413, "too-large")
    form = {"file": ("a.csv", big + b"x" * 100_000)}
    problem(served.client.post("/jobs", files=form), 413, "too-large")
    assert served.files() == before
    # Larger than other bodies may be, and still an upload.
    sent = served.client.post("/jobs", content=big[:-1], params=name)
    assert sent.status_code == 202, sent.text
    assert served.over(sent.json()["id"])["state"] == "failed"


def test_bad_uploads_are_told_and_leave_nothing(served, bundle_folder):
    before = served.files()
    post = served.client.post
    csv = {"filename": "a.csv"}
    assert "empty" in problem(post("/jobs", content=b"", params=csv), 400, "bad-upload")
    assert ".parquet" in problem(post("/jobs", content=b"x"), 415, "unknown-type")
    xlsx = post("/jobs", files={"file": ("a.xlsx", b"x")})
    assert "a.xlsx" in problem(xlsx, 415, "unknown-type")
    zipped = post("/jobs", content=b"x", params=csv, headers={"Content-Encoding": "gzip"})
    assert "gzip" in problem(zipped, 415, "unknown-type")
    form = {"Content-Type": "multipart/form-data; boundary=b"}
    problem(post("/jobs", content=b"--b\r\nno", headers=form), 400, "bad-upload")
    served.bundle[0] = None
    try:
        problem(post("/jobs", content=b"x", params=csv), 503, "no-champion")
    finally:
        served.bundle[0] = bundle_folder
    served.jobs.keep_free = psutil.disk_usage(str(served.jobs.folder)).total
    try:
        full = post("/jobs", content=b"x", params=csv)
        problem(full, 507, "no-space")
        assert full.headers["retry-after"]
    finally:
        served.jobs.keep_free = 0
    assert served.files() == before


def test_an_upload_that_is_broken_off_leaves_nothing(served):
    before = served.files()
    with socket.create_connection(("127.0.0.1", served.port)) as line:
        head = (
            f"POST /jobs?filename=a.csv HTTP/1.1\r\nHost: localhost\r\n"
            f"Authorization: Bearer {served.key}\r\nContent-Length: 5000000\r\n\r\n"
        )
        line.sendall(head.encode() + b"x" * 2_000_000)
        deadline = time.monotonic() + PATIENCE_S
        while served.files() == before:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    while served.files() != before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_error_of_the_file_is_the_error_of_the_job(served):
    sent = served.client.post("/jobs", content=b"a,b\n1,2\n", params={"filename": "w.csv"}).json()
    job = served.over(sent["id"])
    assert job["state"] == "failed" and "epc_code" in job["error"]
    why = problem(served.client.get(f"/jobs/{job['id']}/result"), 409, "not-done")
    assert "epc_code" in why
    problem(served.client.get(f"/jobs/{job['id']}/quarantine"), 409, "not-done")


def test_a_result_that_was_kept_its_time_is_gone(served, scans_csv):
    sent = served.client.post("/jobs", content=scans_csv.read_bytes(), params={"filename": "a.csv"})
    job = served.over(sent.json()["id"])
    other = Jobs(served.jobs.folder, Settings(), lambda: None, keep_days=1e-9)
    folder = Folder(other.folder / job["id"])
    record = folder.read()
    other.keep_s = time.time() - record.finished_us / 1e6 - 0.001
    other.sweep()
    assert served.client.get(f"/jobs/{job['id']}").json()["expired"] is True
    problem(served.client.get(f"/jobs/{job['id']}/result"), 410, "expired")


@pytest.mark.parametrize("job_id", ["nothing", "0" * 32, "..%2f..%2fjobs", "slot-0.lock", "%00"])
def test_what_is_no_job_is_not_found(served, job_id):
    for path in (f"/jobs/{job_id}", f"/jobs/{job_id}/result", f"/jobs/{job_id}/quarantine"):
        assert served.client.get(path).status_code == 404
    assert served.client.delete(f"/jobs/{job_id}").status_code == 404


def test_every_route_wants_a_key_with_the_scope(served):
    there = f"/jobs/{'0' * 32}"
    routes_ = [("POST", "/jobs?filename=a.csv"), ("GET", "/jobs"), ("GET", there)]
    routes_ += [("GET", f"{there}/result"), ("GET", f"{there}/quarantine"), ("DELETE", there)]
    before = served.files()
    for method, path in routes_:
        for key, status in (
            ("", 401),
            ("Bearer nonsense", 401),
            (f"Bearer {served.other_key}", 403),
        ):
            answer = served.client.request(
                method, path, content=b"x", headers={"Authorization": key}
            )
            assert answer.status_code == status, (method, path, key)
            assert answer.headers["content-type"] == problems.MEDIA_TYPE
    for headers in ({}, {"Authorization": f"Bearer {served.other_key}"}):
        with pytest.raises(InvalidStatus) as refused:
            connect(url(served, "0" * 32), additional_headers=headers).close()
        assert refused.value.response.status_code == 403
    assert served.files() == before


def url(served: Served, job_id: str) -> str:
    return f"ws://127.0.0.1:{served.port}/jobs/{job_id}/progress"


def test_progress_is_told_until_the_job_is_done(served, scans_csv):
    data = scans_csv.read_bytes()
    sent = served.client.post("/jobs", content=data, params={"filename": "a.csv"}).json()
    headers = {"Authorization": f"Bearer {served.key}"}
    said = []
    with connect(url(served, sent["id"]), additional_headers=headers) as line:
        line.send(b"whatever")
        line.send("and more")
        said.extend(json.loads(text) for text in line)
    assert line.close_code == 1000
    assert said[-1] == served.client.get(f"/jobs/{sent['id']}").json()
    assert said[-1]["state"] == "done"
    assert [now["progress"] for now in said] == sorted(now["progress"] for now in said)
    states = [now["state"] for now in said]
    assert states == sorted(states, key=["queued", "running", "done"].index)
    assert len(said) >= 2 and len({json.dumps(now) for now in said}) == len(said)


def test_a_browser_sends_its_key_as_subprotocol_and_is_told_of_cancelling(served, scans_csv):
    data = scans_csv.read_bytes()
    blocker = served.client.post("/jobs", content=data, params={"filename": "a.csv"}).json()
    sent = served.client.post("/jobs", content=data, params={"filename": "b.csv"}).json()
    offered = [SUBPROTOCOL, f"bearer.{served.key}"]
    with connect(url(served, sent["id"]), subprotocols=offered) as line:
        assert line.subprotocol == SUBPROTOCOL
        assert json.loads(line.recv(timeout=PATIENCE_S))["state"] == "queued"
        cancelled = served.client.delete(f"/jobs/{sent['id']}")
        assert cancelled.status_code == 200 and cancelled.json()["state"] == "cancelled"
        assert json.loads(line.recv(timeout=PATIENCE_S))["state"] == "cancelled"
        with pytest.raises(ConnectionClosed) as closed:
            line.recv(timeout=PATIENCE_S)
        assert closed.value.rcvd.code == 1000
    with connect(url(served, "0" * 32), subprotocols=offered) as line:
        with pytest.raises(ConnectionClosed) as closed:
            line.recv(timeout=PATIENCE_S)
        assert closed.value.rcvd.code == 4404
    assert served.over(blocker["id"])["state"] == "done"


def test_many_uploads_at_once_all_become_jobs(served, scans_csv):
    data = scans_csv.read_bytes()

    async def send_all() -> list[httpx.Response]:
        async with httpx.AsyncClient(
            base_url=str(served.client.base_url), headers=served.client.headers, timeout=30
        ) as client:
            sends = [
                client.post("/jobs", content=data, params={"filename": f"{i}.csv"})
                for i in range(5)
            ]
            return await asyncio.gather(*sends)

    answers = asyncio.run(send_all())
    ids = {answer.json()["id"] for answer in answers}
    assert len(ids) == 5
    assert {served.over(job_id)["state"] for job_id in ids} == {"done"}
