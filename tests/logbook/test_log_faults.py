"""The log when processes die, writers meet, disks fill and servers go."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from logbook import LogError, PredictionLog
from logbook.opened import open_log
from tests.logbook.logged import Server, entry, postgres_server, scan

ROOT = Path(__file__).resolve().parents[2]
CHILD = """
import sys
from logbook import LogError
from logbook.opened import open_log
from tests.logbook.logged import entry, scan
url, name, count, shared = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
"""
APPEND = """
log = open_log(url)
first = 10_000 * (1 + int(name))
for i in range(count):
    scans = [scan(first + 5 * i + k) for k in range(5)] + [scan(k) for k in range(shared)]
    log.append(entry(f"{name}-{i}", scans))
    print(f"{name}-{i}", flush=True)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:{tmp_path / 'log.db'}"
    return request.getfixturevalue("server").url()


@contextmanager
def opened(url: str) -> Iterator[PredictionLog]:
    log = open_log(url)
    try:
        yield log
    finally:
        log.close()


def child(source: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD + source, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def together(jobs: list[Callable[[], None]]) -> list[BaseException]:
    """Run jobs in threads; returns what they raised."""
    errors: list[BaseException] = []

    def run(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def check_whole(log: PredictionLog, acknowledged: list[str]) -> None:
    """What was acknowledged is there once, and no request is there by halves."""
    records = log.since(0, 1_000_000)
    scans = [record.scan for record in records]
    assert len(set(scans)) == len(scans)
    assert all(len(record.verdicts) == 1 for record in records)
    brought = [record.receipt for record in records]
    assert {brought.count(receipt) for receipt in acknowledged} == {5}
    assert set(map(brought.count, brought)) == {5}
    figures = log.figures()
    assert figures["scans"] == figures["verdicts"]["given"] == len(records)
    assert figures["requests"] == len(set(brought))


# Death


def test_killed_amid_appends_it_keeps_all_that_was_acknowledged(url: str):
    process = child(APPEND, url, 1, 1_000_000, 0)
    acknowledged = [process.stdout.readline().strip() for _ in range(30)]
    process.send_signal(signal.SIGKILL)
    acknowledged += process.stdout.read().split()
    process.stderr.close()
    assert process.wait() == -signal.SIGKILL
    with opened(url) as log:
        check_whole(log, acknowledged)
        log.append(entry("after", [scan(i) for i in range(5)]))  # nobody's lock is left
        check_whole(log, [*acknowledged, "after"])


# Several writers


def test_two_processes_append_at_once(url: str):
    processes = [child(APPEND, url, name, 40, 0) for name in (1, 2)]
    told = [process.communicate(timeout=60) for process in processes]
    assert [error for _, error in told] == ["", ""]
    with opened(url) as log:
        check_whole(log, [line for lines, _ in told for line in lines.split()])
        assert log.figures()["requests"] == 80


def test_two_processes_that_bring_the_same_scans_log_them_once(url: str):
    processes = [child(APPEND, url, name, 10, 7) for name in (1, 2)]
    for process in processes:
        assert process.communicate(timeout=60)[1] == ""
    with opened(url) as log:
        scans = [record.scan for record in log.since(0, 1_000)]
        assert len(scans) == len(set(scans)) == 2 * 10 * 5 + 7
        assert log.figures()["verdicts"]["given"] == len(scans)


def test_a_reader_of_since_misses_nothing_while_others_write(url: str):
    sizes = (1, 3, 400)  # a slow transaction among quick ones
    expected = {f"{n}-{i}" for n in range(3) for i in range(15)}
    seen: list[int] = []
    done = threading.Event()

    def write(name: int) -> None:
        with opened(url) as log:
            for i in range(15):
                first = 100_000 * name + sizes[name] * i
                log.append(entry(f"{name}-{i}", [scan(first + k) for k in range(sizes[name])]))

    def read() -> None:
        with opened(url) as log:
            while True:
                over = done.is_set()  # before the last look
                while records := log.since(seen[-1] if seen else 0, 300):
                    seen.extend(record.id for record in records)
                if over:
                    return

    opened(url).__enter__().close()
    reader = threading.Thread(target=read)
    reader.start()
    errors = together([lambda name=name: write(name) for name in range(3)])
    done.set()
    reader.join()
    assert errors == []
    with opened(url) as log:
        records = log.since(0, 100_000)
    assert {record.receipt for record in records} == expected
    assert seen == [record.id for record in records]


def test_threads_of_one_log_share_transactions_and_each_is_answered(url: str):
    with opened(url) as log:
        jobs = [
            lambda name=name: [
                log.append(entry(f"{name}-{i}", [scan(1000 * name + 5 * i + k) for k in range(5)]))
                for i in range(10)
            ]
            for name in range(6)
        ]
        assert together(jobs) == []
        check_whole(log, [f"{name}-{i}" for name in range(6) for i in range(10)])


def test_one_that_does_not_fit_leaves_the_others_of_its_moment_alone(url: str):
    with opened(url) as log:
        good = [entry(f"good-{i}", [scan(5 * i + k) for k in range(5)]) for i in range(8)]
        bad = entry("bad", [scan(900, event_id=2**63)])
        errors = together([lambda one=one: log.append(one) for one in [*good, bad]])
        assert [type(error) for error in errors] == [ValueError]
        check_whole(log, [f"good-{i}" for i in range(8)])


# Files


def test_a_file_that_is_no_database_is_named_and_left_alone(tmp_path: Path):
    file = tmp_path / "notes.txt"
    file.write_text("not a database, but something long enough to be taken for one " * 100)
    before = file.read_bytes()
    with pytest.raises(LogError, match=r"notes\.txt.*move it away or name another"):
        open_log(f"sqlite:{file}")
    assert file.read_bytes() == before


def test_a_folder_that_is_a_file_is_named(tmp_path: Path):
    (tmp_path / "state").write_text("")
    with pytest.raises(LogError, match=r"state/log\.db.*folder"):
        open_log(f"sqlite:{tmp_path / 'state' / 'log.db'}")


def test_a_folder_in_place_of_the_file_is_named(tmp_path: Path):
    with pytest.raises(LogError, match="may write"):
        open_log(f"sqlite:{tmp_path}")


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may write everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_file_that_may_not_be_written_is_named():
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "log.db"
        with opened(f"sqlite:{file}") as log:
            log.append(entry("a", [scan(1)]))
        file.chmod(0o444)
        Path(folder).chmod(0o555)
        try:
            with as_nobody(), pytest.raises(LogError, match=r"log\.db.*(write|writable)"):
                open_log(f"sqlite:{file}")
        finally:
            Path(folder).chmod(0o755)


def test_a_lock_that_is_not_given_back_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("logbook.sqlite.WAIT_S", 0.1)
    file = tmp_path / "log.db"
    with opened(f"sqlite:{file}") as log:
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        for write in (lambda: log.append(entry("a", [scan(1)])), log.ping):
            with pytest.raises(LogError, match=r"log\.db.*locked.*end the process"):
                write()
        assert log.since(0, 9) == []  # reading goes on
        other.execute("ROLLBACK")
        other.close()
        log.append(entry("a", [scan(1)]))
        assert len(log.since(0, 9)) == 1


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path):
    url = f"sqlite:{tmp_path / 'log.db'}"
    source = """
import resource
log = open_log(url)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    for i in range(10_000):
        log.append(entry(f"r{i}", [scan(5 * i + k) for k in range(5)]))
        print(f"r{i}", flush=True)
except LogError as error:
    print(error, file=sys.stderr)
"""
    told, errors = child(source, url, 1, 0, 0).communicate(timeout=60)
    assert len(errors.splitlines()) == 1, errors
    assert "log.db" in errors and "look after the disk" in errors
    assert told
    with opened(url) as log:
        check_whole(log, told.split())
        log.append(entry("later", [scan(999_000 + k) for k in range(5)]))


def test_a_database_that_may_grow_no_more_says_so(tmp_path: Path):
    """SQLite's own word for a full disk."""
    with opened(f"sqlite:{tmp_path / 'log.db'}") as log:
        acknowledged = []

        def fill() -> None:
            for i in range(100):
                log.append(entry(f"r{i}", [scan(5 * i + k) for k in range(5)]))
                acknowledged.append(f"r{i}")

        log._database.read(lambda session: session.rows("PRAGMA max_page_count = 30"))
        with pytest.raises(LogError, match="disk is full; free some space"):
            fill()
        check_whole(log, acknowledged)


def test_a_file_taken_away_is_noticed_before_anything_is_lost(tmp_path: Path):
    file = tmp_path / "log.db"
    with opened(f"sqlite:{file}") as log:
        log.append(entry("a", [scan(1)]))
        file.rename(tmp_path / "elsewhere.db")
        for use in (lambda: log.append(entry("b", [scan(2)])), log.ping, log.figures):
            with pytest.raises(LogError, match=r"log\.db was taken away.*put it back"):
                use()
        (tmp_path / "elsewhere.db").rename(file)
        log.append(entry("b", [scan(2)]))
        assert [record.receipt for record in log.since(0, 9)] == ["a", "b"]


# Servers


def test_without_its_server_the_log_says_so_and_works_again_with_it(server: Server):
    with opened(server.url()) as log:
        log.append(entry("a", [scan(1)]))
        server.stop()
        try:
            for use in (lambda: log.append(entry("b", [scan(2)])), lambda: log.since(0, 9)):
                with pytest.raises(LogError, match=r"postgresql://.*start the server"):
                    use()
            with pytest.raises(LogError, match="start the server"):
                log.ping()
        finally:
            server.start()
        log.append(entry("b", [scan(2)]))
        log.ping()
        assert [record.receipt for record in log.since(0, 9)] == ["a", "b"]


def test_a_restart_between_two_requests_is_not_noticed(server: Server):
    with opened(server.url()) as log:
        log.append(entry("a", [scan(1)]))
        server.stop()
        server.start()
        log.append(entry("b", [scan(2)]))
        assert len(log.since(0, 9)) == 2


def test_a_lock_of_another_session_is_told(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("logbook.postgres.WAIT_S", 0.2)
    url = server.url()
    with opened(url) as log, psycopg.connect(url) as other:
        other.execute("SELECT * FROM counters FOR UPDATE")
        with pytest.raises(LogError, match="end the session that holds the lock"):
            log.append(entry("a", [scan(1)]))
        other.rollback()
        log.append(entry("a", [scan(1)]))
        assert log.figures()["scans"] == 1


def test_a_connection_that_is_cut_amid_an_append_is_taken_up_again(server: Server):
    url = server.url()
    with opened(url) as log, psycopg.connect(url, autocommit=True) as other:
        log.append(entry("a", [scan(1)]))
        cut = (
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE application_name = 'trailwatch'"
        )
        with other.transaction():
            other.execute("SELECT * FROM counters FOR UPDATE")  # the append waits here
            thread = threading.Thread(target=lambda: log.append(entry("b", [scan(2)])))
            thread.start()
            waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            with psycopg.connect(url, autocommit=True) as third:
                while not third.execute(waits).fetchone()[0]:
                    pass
                assert third.execute(cut).fetchone()[0] >= 1
        thread.join()
        assert [record.receipt for record in log.since(0, 9)] == ["a", "b"]


def test_an_address_where_nobody_is_and_its_password(server: Server):
    url = "postgresql://ann:secret@localhost:1/trail"
    with pytest.raises(LogError, match=r"localhost:1/trail.*start the server") as caught:
        open_log(url)
    assert "secret" not in str(caught.value)


def test_a_postgresql_url_that_cannot_be_read_is_refused():
    with pytest.raises(ValueError, match="give postgresql://") as caught:
        open_log("postgresql://u:secret@h/d?no_such_option=1")
    assert "secret" not in str(caught.value)


def test_a_database_in_another_encoding_is_refused(server: Server):
    url = server.url()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    with pytest.raises(LogError, match=r"LATIN1.*ENCODING 'UTF8'"):
        open_log(url.replace("/postgres?", "/latin?"))
