"""What is expired is gone: trails after a sale or when idle, lots after their trails."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from serving.history import History
from serving.history.embedded import LOOK_AGAIN_H, MOST_LOOKED
from tests.serving.stores import (
    Clock,
    Scan,
    assert_same_table,
    lmdb_url,
    remember,
    rows_of,
    store_at,
    table_over,
    valkey,
)
from tests.trail.small import HONEST, START_US, code
from trail.scan import HOUR_US

A_DAY = LOOK_AGAIN_H / 24


def trail(serial: int = 1, lot: int = 10004) -> list[Scan]:
    return [
        (code(lot, serial), START_US + int(seconds * 1e6), int(op), site, i)
        for i, (op, site, seconds) in enumerate(HONEST)
    ]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "lmdb"])
def store(request, tmp_path, clock) -> Iterator[History]:
    """A store that keeps sold trails 10 days, and others 100."""
    url = "memory:" if request.param == "memory" else lmdb_url(tmp_path)
    store = store_at(url, clock, keep_days_after_sale=10, keep_days_idle=100)
    yield store
    store.close()


def serials(store: History, *asked: int) -> list[int]:
    recall = store.recall([code(serial=s) for s in asked])
    return sorted({int(row[0].split(".")[-1]) for row in rows_of(recall)})


def test_a_sold_trail_goes_first_then_the_idle_ones_then_their_lot(store, clock):
    remember(store, trail(1)[:-1] + trail(2))
    clock.pass_days(9.9)
    assert store.expire(clock.now_us) == 0
    assert serials(store, 1, 2) == [1, 2]
    clock.pass_days(0.2)
    assert store.expire(clock.now_us) == 1
    assert serials(store, 1, 2) == [1]
    assert_same_table(store.recall([code(serial=1)]).table, table_over(trail(1)[:-1] + trail(2)))
    clock.pass_days(89)
    assert store.expire(clock.now_us) == 0
    clock.pass_days(1 + A_DAY)
    assert store.expire(clock.now_us) == 1
    assert serials(store, 1, 2) == []
    assert len(store.recall([code()]).table) == 0
    assert store.expire(clock.now_us + 10**15) == 0


def test_a_touch_prolongs_an_unsold_trail_and_not_a_sold_one(store, clock):
    remember(store, trail(1)[:3] + trail(2))
    clock.pass_days(9)
    remember(store, trail(1)[:1] + trail(2)[:1] + [(code(serial=2), START_US, 1, 1, 99)])
    clock.pass_days(1.5)
    assert store.expire(clock.now_us) == 1
    assert serials(store, 1, 2) == [1]
    clock.pass_days(98)
    store.expire(clock.now_us)
    assert serials(store, 1) == [1]
    clock.pass_days(1 + A_DAY)
    assert store.expire(clock.now_us) == 1


def test_a_sale_remembered_late_counts_from_when_it_was_remembered(store, clock):
    remember(store, trail(1)[:-1])
    clock.pass_days(50)
    remember(store, trail(1)[-1:])
    clock.pass_days(9.9)
    assert store.expire(clock.now_us) == 0
    clock.pass_days(0.2)
    assert store.expire(clock.now_us) == 1


def test_a_lot_lives_as_long_as_a_trail_of_it(store, clock):
    remember(store, trail(1)[:-1])
    clock.pass_days(99)
    remember(store, trail(2)[:3])
    clock.pass_days(5)
    assert store.expire(clock.now_us) == 1
    table = store.recall([code(serial=2)]).table
    assert_same_table(table, table_over(trail(1)[:-1] + trail(2)[:3]))
    clock.pass_days(96)
    assert store.expire(clock.now_us) == 1
    assert len(store.recall([code(serial=2)]).table) == 0


def test_sold_trails_may_be_kept_longer_than_idle_ones(tmp_path, clock):
    store = store_at(lmdb_url(tmp_path), clock, keep_days_after_sale=50, keep_days_idle=5)
    remember(store, trail(1) + trail(2)[:2])
    clock.pass_days(6)
    assert store.expire(clock.now_us) == 1
    again = remember(store, trail(1))
    assert not again.new.any()
    assert again.table.n.max() == 2
    clock.pass_days(51)
    assert store.expire(clock.now_us) == 1
    assert len(store.recall([code()]).table) == 0
    store.close()


def test_a_call_does_a_bounded_part_of_the_work(store, clock):
    rows = [(f"code {i}", START_US, 1, 1, i) for i in range(MOST_LOOKED + 700)]
    remember(store, rows)
    clock.pass_days(101)
    assert store.expire(clock.now_us) == MOST_LOOKED
    assert store.expire(clock.now_us) == 700
    assert store.expire(clock.now_us) == 0


def test_the_room_of_what_is_forgotten_is_used_again(tmp_path, clock):
    store = store_at(lmdb_url(tmp_path), clock, keep_days_after_sale=10, keep_days_idle=100)
    sizes = []
    for generation in range(6):
        for lot in range(20):
            rows = [row for s in range(1, 41) for row in trail(s, 1 + 100 * generation + lot)]
            remember(store, rows)
        clock.pass_days(102)
        assert store.expire(clock.now_us) == 800
        sizes.append((tmp_path / "history" / "data.mdb").stat().st_size)
    assert sizes[-1] <= 1.2 * sizes[1]
    assert store.recall([code(1)]).scans.epc.size == 0
    store.close()


def test_a_server_forgets_by_itself():
    with valkey() as server, server.client() as client:
        store = store_at(
            f"redis://127.0.0.1:{server.port}",
            keep_days_after_sale=0.4 / 86_400,
            keep_days_idle=1.2 / 86_400,
        )
        remember(store, trail(1)[:-1] + trail(2))
        assert serials(store, 1, 2) == [1, 2]
        time.sleep(0.6)
        assert serials(store, 1, 2) == [1]
        remember(store, trail(1)[:1])
        time.sleep(0.8)
        assert serials(store, 1) == [1], "the touch prolongs it"
        time.sleep(0.6)
        assert serials(store, 1) == []
        assert len(store.recall([code()]).table) == 0
        assert client.dbsize() == 0


def test_a_server_keeps_each_key_as_long_as_the_settings_say():
    with valkey() as server, server.client() as client:
        store = store_at(f"redis://127.0.0.1:{server.port}")
        day_ms = 24 * HOUR_US // 1000

        def days() -> list[int]:
            return sorted(round(client.pttl(key) / day_ms) for key in client.keys("*"))

        remember(store, trail(1)[:-1])
        assert days() == [400, 400, 400]
        remember(store, trail(1)[-1:])
        assert days() == [90, 400, 400]
        for key in client.keys("*"):
            client.pexpire(key, 50 * day_ms)
        remember(store, trail(1))
        assert days() == [50, 400, 400], "a scan sent again is no new sale"
        remember(store, [(code(), START_US, 3, 3, 77)])
        assert days() == [50, 400, 400], "nor is another scan after it"
        remember(store, [*trail(1)[-1:], (code(), START_US, 9, 3, 78)])
        assert days() == [90, 400, 400]
