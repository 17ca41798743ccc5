"""Jobs without HTTP: real files, real child processes, real deaths."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intake.files import SUFFIXES
from pipelines import score as command
from serving.jobs import Fault, Job, JobError, Jobs, State
from serving.jobs.record import Folder, is_id
from serving.jobs.upload import REST_BYTES, FormFile, file_name
from serving.settings import Settings

HEADER = "event_id,epc_code,location_id,event_type,event_time\n"
PATIENCE_S = 60


@pytest.fixture(scope="module")
def scans_csv(champion, tmp_path_factory) -> Path:
    """3,000 scans of the champion's own world, and three rows that cannot be read."""
    table = pq.read_table(champion.home / "data" / "scans.parquet").slice(0, 3000)
    path = tmp_path_factory.mktemp("scans") / "scans.csv"
    pyarrow.csv.write_csv(table, path)
    lines = path.read_text().splitlines()
    lines[10] = "a,broken,row"
    lines[20] = lines[20].replace(":", "?")
    lines[30] = lines[30].replace("bound", "BOUNCE").replace("Aggregation", "?")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def make(tmp_path: Path, bundle_folder: Path) -> Iterator[Callable[..., Jobs]]:
    """Makes `Jobs` on one folder; stops them all at the end."""
    made: list[Jobs] = []

    def make_jobs(*, bundle: Path | None = bundle_folder, most_mib: int = 4096, **options) -> Jobs:
        settings_ = replace(Settings(), most_upload_mib=most_mib)
        jobs = Jobs(tmp_path / "jobs", settings_, lambda: bundle, **{"look_s": 0.05} | options)
        made.append(jobs)
        return jobs

    yield make_jobs
    for jobs in made:
        jobs.stop()


async def chunks(data: bytes, size: int = 65_536) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def send(jobs: Jobs, data: bytes | Path, name: str = "scans.csv", **more) -> Job:
    raw = data.read_bytes() if isinstance(data, Path) else data
    return asyncio.run(jobs.submit(chunks(raw), name, **more))


def until(jobs: Jobs, job: Job, true: Callable[[Job], bool]) -> Job:
    deadline = time.monotonic() + PATIENCE_S
    while not true(now := jobs.status(job.id)):
        assert time.monotonic() < deadline, now
        time.sleep(0.02)
    return now


def over(jobs: Jobs, job: Job) -> Job:
    return until(jobs, job, lambda now: now.state.over)


def children(job: Job) -> list[psutil.Process]:
    """Processes that score a job."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "serving.jobs" in words and any(job.id in word for word in words):
            found.append(process)
    return found


def held_child(jobs: Jobs, job: Job) -> psutil.Process:
    """The process that scores a job, stopped in the middle of it."""
    until(jobs, job, lambda now: now.state is State.RUNNING)
    deadline = time.monotonic() + PATIENCE_S
    while not (found := children(job)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    found[0].suspend()
    assert jobs.status(job.id).state is State.RUNNING
    return found[0]


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith("slot-")}


def refused(call: Callable[[], object]) -> Fault:
    with pytest.raises(JobError) as raised:
        call()
    assert str(raised.value)
    return raised.value.fault


def test_a_job_writes_what_the_command_writes(make, scans_csv, bundle_folder, tmp_path):
    jobs = make()
    jobs.start()
    job = over(jobs, send(jobs, scans_csv, by="ann"))
    assert job.state is State.DONE, job.error
    assert (job.read, job.scored, job.quarantined) == (3000, 2997, 3)
    for form in ("csv", "parquet"):
        out = tmp_path / f"verdicts.{form}"
        words = ["--file", str(scans_csv), "--out", str(out), "--bundle", str(bundle_folder)]
        assert command.main([*words, "--zone", "UTC"]) == 0
        assert jobs.result(job.id, form).read_bytes() == out.read_bytes()
    beside = tmp_path / "verdicts.quarantine.csv"
    assert jobs.quarantine(job.id).read_bytes() == beside.read_bytes()
    table = pq.read_table(jobs.result(job.id, "parquet"))
    assert job.flagged == {name: sum(table[name].to_pylist()) for name in job.flagged}
    assert len(job.flagged) == 5 and job.by == "ann" and job.progress == 1 and job.digest
    assert 50 < job.peak_mib < 2000
    assert job.created_us <= job.started_us <= job.finished_us
    assert not Folder(jobs.folder / job.id).upload.exists()


def test_five_jobs_at_once_all_finish_in_turn(make, scans_csv):
    jobs = make(at_once=2)
    sent = [send(jobs, scans_csv) for _ in range(5)]
    jobs.start()
    most = 0
    while not all(jobs.status(job.id).state.over for job in sent):
        most = max(most, jobs.figures()["running"])
        time.sleep(0.02)
    assert [jobs.status(job.id).state for job in sent] == [State.DONE] * 5
    assert most == 2
    begun = [jobs.status(job.id).started_us for job in sent]
    assert begun == sorted(begun)
    assert [job.id for job in jobs.newest(3)] == [job.id for job in reversed(sent)][:3]
    assert jobs.figures()["done"] == 5


def test_two_services_run_each_job_once_and_one_at_a_time(make, scans_csv):
    one, other = make(), make()
    sent = [send(one, scans_csv) for _ in range(3)]
    one.start()
    other.start()
    while not all(other.status(job.id).state.over for job in sent):
        assert one.figures()["running"] <= 1
        time.sleep(0.02)
    for job in sent:
        now = other.status(job.id)
        assert (now.state, now.attempts, now.deaths) == (State.DONE, 1, [])


def test_messages_never_go_back_and_end_with_done(make, scans_csv):
    jobs = make()
    jobs.start()
    job = send(jobs, scans_csv)

    async def all_said() -> list[Job]:
        return [now async for now in jobs.watch(job.id)]

    said = asyncio.run(all_said())
    order = [State.QUEUED, State.RUNNING, State.DONE]
    for name in ("progress", "read", "scored"):
        values = [getattr(now, name) for now in said]
        assert values == sorted(values)
    assert [order.index(now.state) for now in said] == sorted(
        order.index(now.state) for now in said
    )
    assert said[-1].state is State.DONE and State.RUNNING in {now.state for now in said}
    assert len({str(now) for now in said}) == len(said)


def test_a_child_that_dies_once_is_replaced_and_the_second_death_is_told(make, scans_csv):
    jobs = make()
    jobs.start()
    job = send(jobs, scans_csv)
    held_child(jobs, job).kill()
    again = until(jobs, job, lambda now: now.attempts == 2)
    assert len(again.deaths) == 1 and "SIGKILL" in again.deaths[0]
    held_child(jobs, job).kill()
    failed = over(jobs, job)
    assert failed.state is State.FAILED
    assert "died 2 times" in failed.error and "SIGKILL" in failed.error
    assert refused(lambda: jobs.result(job.id, "csv")) is Fault.NOT_DONE
    assert over(jobs, send(jobs, scans_csv)).state is State.DONE  # the service lives


SERVICE = """
import sys, time
from pathlib import Path
from serving.jobs import Jobs
from serving.settings import Settings
Jobs(Path(sys.argv[1]), Settings(), lambda: Path(sys.argv[2]), look_s=0.05).start()
time.sleep(600)
"""


def test_a_killed_service_takes_its_child_along_and_the_next_one_starts_again(
    make, scans_csv, bundle_folder
):
    jobs = make()
    first, second = send(jobs, scans_csv), send(jobs, scans_csv)
    service = subprocess.Popen(
        [sys.executable, "-c", SERVICE, str(jobs.folder), str(bundle_folder)]
    )
    try:
        child = held_child(jobs, first)
    finally:
        service.send_signal(signal.SIGKILL)
        service.wait()
    jobs.start()
    time.sleep(0.5)
    attempts = jobs.status(first.id).attempts
    child.resume()
    assert attempts == 1, "run while its first child still lived"
    child.wait(PATIENCE_S)
    now = over(jobs, first)
    assert (now.state, now.attempts) == (State.DONE, 2)
    assert now.deaths == ["the service stopped while it ran"]
    assert over(jobs, second).attempts == 1
    assert jobs.result(first.id, "csv").read_bytes() == jobs.result(second.id, "csv").read_bytes()


def test_a_child_whose_service_is_gone_ends_without_a_result(make, scans_csv, bundle_folder):
    jobs = make()
    folder = jobs.folder / send(jobs, scans_csv).id
    words = ["--folder", str(folder), "--bundle", str(bundle_folder)]
    child = subprocess.Popen(
        [sys.executable, "-m", "serving.jobs", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    said, _ = child.communicate(timeout=PATIENCE_S)  # closes its standard input
    assert child.returncode == 1
    assert b"done" not in said and not Folder(folder).result("csv").exists()


def test_a_stop_of_the_service_is_no_death(make, scans_csv):
    jobs = make()
    jobs.start()
    job = send(jobs, scans_csv)
    for _ in range(3):
        child = held_child(jobs, job)
        jobs.stop()
        assert not child.is_running()
        assert jobs.status(job.id).state is State.QUEUED
        jobs.start()
    now = over(jobs, job)
    assert (now.state, now.attempts, now.deaths) == (State.DONE, 1, [])
    jobs.stop()
    jobs.start()
    assert jobs.status(job.id).state is State.DONE and jobs.result(job.id, "csv").exists()


def test_cancelling_stops_a_running_job_of_another_service_and_a_waiting_one(make, scans_csv):
    runs, asks = make(), make()
    running, waiting = send(runs, scans_csv), send(runs, scans_csv)
    runs.start()
    child = held_child(runs, running)
    for job in (waiting, running):
        assert asks.cancel(job.id).state is State.CANCELLED
        assert files(asks.folder / job.id) <= {"job.json", "lock", "child.log"}
        assert asks.status(job.id).finished_us
    assert not child.is_running()
    assert refused(lambda: asks.result(running.id, "csv")) is Fault.NOT_DONE
    assert asks.cancel(running.id) is None
    assert refused(lambda: asks.status(running.id)) is Fault.UNKNOWN_JOB
    assert refused(lambda: asks.cancel(running.id)) is Fault.UNKNOWN_JOB
    assert files(asks.folder) == {waiting.id}


def test_results_go_after_their_time_and_records_later(make, scans_csv):
    jobs = make()
    jobs.start()
    job = over(jobs, send(jobs, scans_csv))
    jobs.stop()
    age_s = time.time() - job.finished_us / 1e6
    make(keep_days=(age_s + 60) / 86_400).sweep()
    assert jobs.result(job.id, "csv").exists()
    make(keep_days=age_s * 0.9 / 86_400).sweep()
    assert refused(lambda: jobs.result(job.id, "csv")) is Fault.EXPIRED
    assert refused(lambda: jobs.quarantine(job.id)) is Fault.EXPIRED
    assert jobs.status(job.id).expired and jobs.status(job.id).state is State.DONE
    assert files(jobs.folder / job.id) <= {"job.json", "lock", "child.log"}
    make(keep_days=0).sweep()
    assert refused(lambda: jobs.status(job.id)) is Fault.UNKNOWN_JOB
    assert files(jobs.folder) == set()


def test_what_a_dead_service_left_of_an_upload_is_removed_but_no_upload_under_way(make):
    jobs = make()
    old, young = jobs.folder / ".new-old", jobs.folder / ".new-young"
    for path in (old, young):
        path.mkdir(parents=True)
    os.utime(old, (0, 0))

    async def slow() -> AsyncIterator[bytes]:
        yield HEADER.encode()
        under_way = next(p for p in jobs.folder.iterdir() if p.name not in (old.name, young.name))
        os.utime(under_way, (0, 0))
        jobs.sweep()
        assert not old.exists() and young.exists()
        yield b"x"

    job = asyncio.run(jobs.submit(slow(), "a.csv"))
    assert files(jobs.folder) == {young.name, job.id}


BAD = {
    "a header only": (HEADER.encode(), "a.csv", "a header and no rows"),
    "bytes that are no text": (bytes(range(128, 256)) * 20, "a.csv", "a.csv"),
    "no Parquet": (b"PAR1 no", "a.parquet", "cannot be read as Parquet"),
    "other columns": (b"when,where\n1,2\n", "a.csv", "epc_code"),
    "no JSON": (b"[1, 2]\n", "a.jsonl", "no JSON object"),
}


def test_files_that_cannot_be_used_fail_with_what_is_wrong_and_leave_nothing(make):
    jobs = make(at_once=2)
    jobs.start()
    sent = {why: send(jobs, data, name) for why, (data, name, _) in BAD.items()}
    for why, job in sent.items():
        failed = over(jobs, job)
        assert failed.state is State.FAILED and failed.attempts == 1, why
        assert BAD[why][2] in failed.error, failed.error
        assert files(jobs.folder / job.id) <= {"job.json", "lock", "child.log"}


def test_jsonl_and_tsv_are_read_and_only_bad_rows_are_no_failure(make, tmp_path):
    jobs = make()
    jobs.start()
    line = '{"eventId": 1, "epc_code": "x", "location_id": 1, "event_type": "POS_Sell", %s}\n'
    good, bad = line % '"event_time": "2025-01-01 10:00:00"', line % '"event_time": "soon"'
    mixed = send(jobs, (good + bad).encode(), "mixed.ndjson")
    nothing = send(jobs, HEADER.replace(",", "\t").encode() + b"1\ta\tb\tc\td\n", "bad.tsv")
    now = over(jobs, mixed)
    assert (now.state, now.scored, now.quarantined) == (State.DONE, 1, 1), now.error
    assert any("companies and products" in note for note in now.notes)
    now = over(jobs, nothing)
    assert (now.state, now.scored, now.quarantined) == (State.DONE, 0, 1), now.error
    assert jobs.result(nothing.id, "csv").read_text().count("\n") == 1
    assert len(jobs.quarantine(nothing.id).read_text().splitlines()) == 2


def test_refused_uploads_leave_nothing(make):
    jobs = make(most_mib=1)
    big = b"x" * ((1 << 20) + 1)
    assert refused(lambda: send(jobs, big)) is Fault.TOO_LARGE
    assert refused(lambda: send(jobs, b"x", length=len(big))) is Fault.TOO_LARGE
    assert refused(lambda: send(jobs, b"")) is Fault.BAD_UPLOAD
    assert refused(lambda: send(jobs, b"x", "a.xlsx")) is Fault.UNKNOWN_TYPE
    assert refused(lambda: send(make(bundle=None), b"x")) is Fault.NO_CHAMPION
    free_mib = psutil.disk_usage(str(jobs.folder)).free >> 20
    assert refused(lambda: send(make(keep_free_mib=free_mib + 1000), b"x")) is Fault.NO_SPACE

    async def broken() -> AsyncIterator[bytes]:
        yield b"y" * (1 << 20)
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        asyncio.run(jobs.submit(broken(), "a.csv"))

    async def endless() -> AsyncIterator[bytes]:
        yield b"y" * 1000
        await asyncio.sleep(600)

    async def given_up() -> None:
        async with asyncio.timeout(0.2):
            await jobs.submit(endless(), "a.csv")

    with pytest.raises(TimeoutError):
        asyncio.run(given_up())
    assert files(jobs.folder) == set()
    assert len(send(jobs, big[:-1]).id) == 32


def test_a_disk_without_room_for_the_result_fails_the_job_alone(make, scans_csv):
    jobs = make()
    job = send(jobs, scans_csv)
    jobs.keep_free = psutil.disk_usage(str(jobs.folder)).total
    jobs.start()
    failed = over(jobs, job)
    assert failed.state is State.FAILED and "disk is full" in failed.error
    assert files(jobs.folder / job.id) <= {"job.json", "lock", "child.log"}
    jobs.stop()
    jobs.keep_free = 0
    jobs.start()
    assert over(jobs, send(jobs, scans_csv)).state is State.DONE


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_really_full_disk_fails_the_job_alone(make, scans_csv, tmp_path):
    (tmp_path / "jobs").mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", tmp_path / "jobs"], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        jobs = make(keep_free_mib=0)
        assert refused(lambda: send(jobs, b"x" * 2_000_000)) is Fault.NO_SPACE
        job = send(jobs, scans_csv)
        jobs.start()
        failed = over(jobs, job)
        assert failed.state is State.FAILED and "disk is full" in failed.error
        small = b"".join(scans_csv.read_bytes().splitlines(keepends=True)[:9])
        assert over(jobs, send(jobs, small)).state is State.DONE
        jobs.stop()
    finally:
        subprocess.run(["umount", tmp_path / "jobs"], check=True)


def test_a_job_waits_while_there_is_no_champion(make, scans_csv, bundle_folder):
    jobs = make()
    job = send(jobs, scans_csv)
    jobs.bundle = lambda: None
    jobs.start()
    time.sleep(0.3)
    assert jobs.status(job.id).state is State.QUEUED
    jobs.bundle = lambda: bundle_folder
    assert over(jobs, job).state is State.DONE


def test_a_bundle_that_was_changed_fails_the_job(make, scans_csv, tmp_path):
    jobs = make(bundle=tmp_path)
    jobs.start()
    failed = over(jobs, send(jobs, scans_csv))
    assert failed.state is State.FAILED and "no bundle" in failed.error


def test_the_child_lets_others_go_first(make, scans_csv):
    jobs = make()
    jobs.start()
    job = send(jobs, scans_csv)
    seen = set()
    while not jobs.status(job.id).state.over:
        for process in children(job):
            with contextlib.suppress(psutil.NoSuchProcess, OSError):
                adjusted = Path(f"/proc/{process.pid}/oom_score_adj").read_text().strip()
                seen.add((process.nice(), adjusted))
        time.sleep(0.02)
    assert (10, "1000") in seen


ANY_NAME = st.builds(
    "".join, st.lists(st.sampled_from(["..", "/", ".csv", ".CSV", "\\"]) | st.text())
)


@given(ANY_NAME, st.sampled_from(["", "text/csv", "application/x-ndjson; charset=utf-8"]))
@settings(max_examples=200, deadline=None)
def test_any_name_becomes_a_plain_file_name_or_is_refused(name, content_type):
    end = name.strip().lower().rpartition(".")[2]
    if not content_type and f".{end}" not in (*SUFFIXES, ".ndjson"):
        assert refused(lambda: file_name(name, content_type)) is Fault.UNKNOWN_TYPE
        return
    plain = file_name(name, content_type)
    assert Path(plain).name == plain and not plain.startswith(".")
    assert Path(plain).suffix.lower() in SUFFIXES
    assert len(plain.encode()) <= 200 and plain.isprintable()
    assert file_name(plain, "") == plain


@pytest.mark.parametrize(
    ("name", "content_type", "kept"),
    [
        ("scans.csv", "", "scans.csv"),
        ("../../x.csv", "", "x.csv"),
        ("C:\\data\\x.TSV", "", "x.TSV"),
        ("/etc/.csv", "", "scans.csv"),
        ("..", "text/csv", "scans.csv"),
        ("a\x00b\n.parquet", "", "a_b_.parquet"),
        ("출하 내역.csv", "", "출하 내역.csv"),
        ("x.ndjson", "", "x.jsonl"),
        ("x.dat", "text/csv; charset=utf-8", "x.dat.csv"),
        ("", "application/vnd.apache.parquet", "scans.parquet"),
    ],
)
def test_names_are_kept_as_far_as_they_are_harmless(name, content_type, kept):
    assert file_name(name, content_type) == kept


@given(st.text())
def test_only_ids_name_folders(text):
    assert is_id(text) == (len(text) == 32 and set(text) <= set("0123456789abcdef"))


def form_of(parts: list[tuple[str, str | None, bytes]], boundary: str = "limit") -> bytes:
    body = b""
    for name, filename, data in parts:
        file = "" if filename is None else f'; filename="{filename}"'
        body += (
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
        )
        body += data + b"\r\n"
    return body + f"--{boundary}--\r\n".encode()


async def file_in(body: bytes, size: int) -> tuple[str, bytes]:
    form = FormFile(chunks(body, size), "multipart/form-data; boundary=limit")
    name = await form.open()
    return name, b"".join([chunk async for chunk in form.chunks()])


@given(st.binary(max_size=300), st.integers(1, 50), st.booleans())
@settings(deadline=None)
def test_the_file_of_a_form_is_the_same_however_it_is_cut(data, size, after):
    parts = [("note", None, b"hello"), ("file", "x.csv", data)]
    body = form_of(parts if after else parts[::-1])
    assert asyncio.run(file_in(body, size)) == ("x.csv", data)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no form at all",
        form_of([("note", None, b"hello")]),
        form_of([("a", "a.csv", b"1"), ("b", "b.csv", b"2")]),
        form_of([("a", "a.csv", b"1")])[:-12],
        form_of([("note", None, b"x" * (REST_BYTES + 1)), ("a", "a.csv", b"1")]),
        form_of([("a", "a.csv", b"1"), ("note", None, b"x" * (REST_BYTES + 1))]),
    ],
    ids=["nothing", "no form", "no file", "two files", "cut short", "much before", "much after"],
)
def test_forms_without_exactly_one_file_are_refused(body):
    assert refused(lambda: asyncio.run(file_in(body, 1000))) is Fault.BAD_UPLOAD


@pytest.mark.parametrize("boundary", ["", "; boundary=", f"; boundary={'b' * 5000}"])
def test_forms_without_a_usable_boundary_are_refused(boundary):
    kind = f"multipart/form-data{boundary}"
    assert refused(lambda: FormFile(chunks(b"x"), kind)) is Fault.BAD_UPLOAD
