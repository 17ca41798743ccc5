"""The contract of a history store, for every store."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.history import MOST_SCANS, History, SiteEntry
from serving.history.embedded import Embedded
from serving.history.keeping import Keeping
from serving.history.memory import MemoryShelf
from serving.history.server import Server
from tests.serving.stores import (
    KINDS,
    Clock,
    Scan,
    SlowHistory,
    assert_same_table,
    counters_of,
    lmdb_url,
    remember,
    rows_of,
    scans_of,
    store_at,
    table_over,
    valkey,
)
from tests.trail.small import HONEST, START_US, code
from trail.scan import DAY_US, HOUR_US
from trail.trails import sort

Opener = Callable[..., History]


@pytest.fixture(scope="module", params=KINDS)
def opener(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """Opens empty stores of one kind."""
    kind, count = request.param, itertools.count()
    opened: list[History] = []

    def opens(url: str, **settings: float) -> History:
        opened.append(store_at(url, **settings))
        return opened[-1]

    if kind == "memory":
        yield lambda **settings: opens("memory:", **settings)
    elif kind == "lmdb":
        yield lambda **settings: opens(lmdb_url(tmp_path_factory.mktemp("h")), **settings)
    else:
        with valkey(cluster=kind == "cluster") as server:
            url = f"redis://127.0.0.1:{server.port}"
            yield lambda **settings: opens(f"{url}?namespace={next(count)}", **settings)
    for store in opened:
        store.close()


@pytest.fixture
def store(opener: Opener) -> History:
    return opener()


def trail(serial: int = 1, lot: int = 10004, first_event: int = 1) -> list[Scan]:
    """An honest trail."""
    return [
        (code(lot, serial), START_US + int(seconds * 1e6), int(op), site, first_event + i)
        for i, (op, site, seconds) in enumerate(HONEST)
    ]


_codes = st.one_of(
    st.builds(code, st.sampled_from([10004, 10005]), st.integers(1, 4)),
    st.sampled_from(["", "rubbish", "a code as long as " + "x" * 900, "002" + code()[3:]]),
)
_scan = st.tuples(
    _codes,
    st.sampled_from([START_US + h * HOUR_US for h in (0, 0, 1, 1, 2, 24, 48)] + [-1, START_US + 1]),
    st.integers(0, 9),
    st.integers(0, 3),
    st.sampled_from([-1, -1, 7, 2**62 + 1, 2**62 + 2]),
)
_calls = st.lists(st.lists(_scan, min_size=1, max_size=25), min_size=1, max_size=6)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(_calls)
def test_any_calls_recall_what_a_slow_reckoning_and_the_kernel_say(opener, calls):
    store, slow = opener(), SlowHistory()
    for rows in calls:
        seen, new = slow.remember(rows)
        recall = remember(store, rows)
        recalled = rows_of(recall)
        assert len(recalled) == len(seen)
        assert set(recalled) == seen
        assert recall.new.tolist() == new
        assert [recalled[at] for at in recall.at] == rows
        first = {row: i for i, row in reversed(list(enumerate(rows)))}
        assert recall.scans.row.tolist() == [first.get(row, -1) for row in recalled]
        codes = {row[0] for row in rows}
        assert sorted(recall.scans.codes.text.to_pylist()) == sorted(codes)
        assert_same_table(recall.table, table_over(slow.lot(codes)))
        groups, moves = slow.counters(codes)
        assert counters_of(recall.table) == (groups, moves)
    everything = set(slow.trails)
    recall = store.recall([*everything, "never scanned", *everything])
    assert sorted(rows_of(recall)) == sorted(slow.of(everything))
    assert_same_table(recall.table, table_over(slow.lot(everything)))
    assert not recall.said.any()
    assert not len(recall.at)
    store.close()


def test_sending_again_changes_nothing(store):
    rows = trail(1) + trail(2)
    first = remember(store, rows)
    again = remember(store, rows + rows[:3])
    assert first.new.all()
    assert not again.new.any()
    assert sorted(rows_of(again)) == sorted(rows)
    assert_same_table(again.table, first.table)


def test_the_same_place_and_time_with_another_event_id_is_another_scan(store):
    row = trail()[0]
    recall = remember(store, [row, (*row[:4], 99), row])
    assert recall.new.tolist() == [True, True, False]
    assert recall.at[0] == recall.at[2] != recall.at[1]
    assert recall.table.n.tolist() == [2]


def test_a_scan_between_two_mends_the_moves(store):
    a, b, c = trail()[:3]
    remember(store, [a, c])
    table = remember(store, [b]).table
    assert_same_table(table, table_over([a, b, c]))
    assert list(zip(table.start.tolist(), table.end.tolist(), strict=True)) == [(0, 1), (1, 2)]


def test_counters_hold_the_mates_that_were_not_asked_about(store):
    for serial in (3, 1, 2):
        remember(store, trail(serial))
    table = store.recall([code(serial=1)]).table
    assert (table.n == 3).all()
    assert (table.moved == 3).all()
    assert set(table.serial_min.tolist()) == {1}
    assert set(table.serial_max.tolist()) == {3}


def test_nothing_asked_is_nothing_recalled(store):
    remember(store, trail())
    assert len(remember(store, []).scans) == 0
    for codes in ([], ["never scanned"]):
        recall = store.recall(codes)
        assert len(recall.scans) == len(recall.table) == len(recall.event_id) == 0
        assert recall.scans.codes.text.to_pylist() == codes


def test_codes_that_a_table_lists_twice_are_one_trail(store):
    from dataclasses import replace

    from trail.epc import concat

    scans, event_id = scans_of(trail()[:2])
    doubled = concat(scans.codes, scans.codes)
    epc = np.array([1, 3], np.int32)
    recall = store.remember(replace(scans, epc=epc, codes=doubled), event_id)
    assert len(recall.scans.codes) == 1
    assert_same_table(recall.table, table_over(trail()[:2]))


def test_a_site_without_a_number_is_refused(store):
    with pytest.raises(ValueError, match="site book"):
        remember(store, [(code(), START_US, 0, -1, 1)])


def test_what_was_said_is_noted_and_stays(store):
    rows = trail(1) + trail(2)
    remember(store, rows)
    scans, event_id = scans_of(
        [rows[3], rows[12], (*rows[4][:4], 12345), ("unknown", *rows[0][1:])]
    )
    store.mark(scans, event_id, np.array([5, 16, 31, 31], np.uint8))
    recall = remember(store, [(code(serial=1), START_US + 1, 1, 1, 77)])
    said = dict(zip(rows_of(recall), recall.said.tolist(), strict=True))
    assert {row: bits for row, bits in said.items() if bits} == {rows[3]: 5}
    recall = store.recall([code(serial=2), "unknown"])
    assert dict(zip(rows_of(recall), recall.said.tolist(), strict=True))[rows[12]] == 16
    assert len(recall.scans) == len(HONEST)
    store.mark(*scans_of([rows[3]]), np.array([0], np.uint8))
    assert not store.recall([code(serial=1)]).said.any()


def test_a_long_trail_keeps_its_latest_scans_and_counts_only_them(store):
    rows = [(code(), START_US + i * 1_000_000, i % 10, i % 7, i) for i in range(600)]
    mate = (code(serial=2), rows[10][1], rows[10][2], rows[10][3], 5)
    slow = SlowHistory(MOST_SCANS)
    slow.remember([mate])
    remember(store, [mate])
    for part in (rows[:300], rows[300:]):
        seen, _ = slow.remember(part)
        recall = remember(store, part)
        assert set(rows_of(recall)) == seen
        assert (recall.at >= 0).all()
        assert counters_of(recall.table) == slow.counters({code()})
    assert set(rows_of(store.recall([code()]))) == set(rows[-MOST_SCANS:])
    for part in (rows[:2], [(code(), rows[-1][1] + i, 1, 1, i) for i in range(1, 40)]):
        slow.remember(part)
        recall = remember(store, part)
        assert counters_of(recall.table) == slow.counters({code()})
    assert sorted(rows_of(store.recall([code()]))) == sorted(slow.of({code()}))


def test_a_flood_of_one_code_does_not_grow(store):
    for flood in range(8):
        start = START_US + flood * DAY_US
        recall = remember(store, [(code(), start + i, 3, 2, -1) for i in range(MOST_SCANS)])
    assert len(recall.table) == len(recall.table.start) + 1 == MOST_SCANS


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    with valkey() as server:
        yield f"redis://127.0.0.1:{server.port}"


_namespaces = itertools.count()


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(_calls, st.integers(1, 4), st.integers(1, 6))
def test_stores_agree_where_trails_and_lots_are_too_large(
    server_url, calls, most_scans, most_groups
):
    keeping = Keeping(10**12, 10**12, most_scans, most_groups)
    namespace = f"?namespace=small{next(_namespaces)}"
    memory = Embedded(MemoryShelf(), keeping, Clock())
    server = Server(server_url + namespace, keeping)
    for call in calls:
        # Which of two scans is the older says nobody where only their event ids differ.
        rows = [(*row[:4], sum(row[1:4]) % 5 - 1) for row in call]
        one, other = remember(memory, rows), remember(server, rows)
        assert sorted(rows_of(one)) == sorted(rows_of(other))
        assert one.new.tolist() == other.new.tolist()
        assert_same_table(one.table, other.table)
        codes = [row[0] for row in rows]
        assert_same_table(memory.recall(codes).table, one.table)
        assert_same_table(server.recall(codes).table, one.table)
        _, groups = np.unique(one.table.lot, return_counts=True)
        assert (groups <= most_groups).all()
        assert np.bincount(memory.recall(codes).scans.epc).max(initial=0) <= most_scans
    server.close()


def test_twenty_thousand_scans_in_one_call(store):
    random = np.random.default_rng(5)
    rows = [
        (code(10_000 + s % 12, s), START_US + int(h) * HOUR_US, k, int(h) % 5, s)
        for s in range(1, 4_001)
        for k, h in enumerate(sorted(random.integers(0, 400, 5)))
    ]
    shuffled = [rows[i] for i in random.permutation(len(rows))]
    recall = remember(store, shuffled)
    assert len(recall.scans) == 20_000
    assert recall.new.all()
    assert_same_table(recall.table, table_over(rows))
    assert not remember(store, shuffled).new.any()
    assert_same_table(
        store.recall([rows[0][0], rows[5][0]]).table,
        table_over([row for row in rows if row[0].split(".")[3] in ("010001", "010002")]),
    )


def test_a_lot_of_two_thousand_items_each_sold_at_its_own_second(store):
    rows = [
        (code(serial=s), START_US + k * DAY_US + (s * 1_000_000 if k == 4 else 0), k, k, s)
        for s in range(1, 2_001)
        for k in range(5)
    ]
    for part in range(0, len(rows), 2_500):
        recall = remember(store, rows[part : part + 2_500])
    assert_same_table(recall.table, table_over(rows))
    assert len(recall.table) == 2_004


def test_thousands_of_malformed_codes_are_lots_of_their_own(store):
    rows = [(f"no code {i}", START_US, 9, 1, i) for i in range(3_000)]
    recall = remember(store, rows)
    assert len(recall.table) == 3_000
    assert (recall.table.n == 1).all()
    assert (recall.table.serial_min == -1).all()


def test_threads_that_write_the_same_lot_lose_nothing(store):
    rows = {t: [row for s in range(10) for row in trail(10 * t + s + 1)] for t in range(4)}
    failed: list[BaseException] = []

    def write(part: list[Scan]) -> None:
        try:
            for i in range(0, len(part), 10):
                remember(store, part[i : i + 10] + part[:1])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(part,)) for part in rows.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    everything = [row for part in rows.values() for row in part]
    recall = store.recall([row[0] for row in everything])
    assert sorted(rows_of(recall)) == sorted(everything)
    assert_same_table(recall.table, table_over(everything))


def test_recalled_scans_have_what_the_kernel_needs(store):
    from tests.trail.small import REGISTRY, SITES
    from trail.facts import Context
    from trail.features import encode

    rows = [row for s in range(1, 30) for row in trail(s)]
    whole = scans_of(rows)[0]
    context = Context(SITES, None, REGISTRY)
    expected = encode(whole, context)
    for i in range(0, len(rows), 40):
        remember(store, rows[i : i + 40])
    recall = store.recall([code(serial=7), code(serial=8)])
    found = encode(recall.scans, context, recall.table)
    sevens = np.isin(sort(whole).scans.codes.serial[sort(whole).scans.epc], [7, 8])
    assert np.array_equal(found.features, expected.features[sevens])


def test_numbers_of_sites_never_change(store):
    entries = [SiteEntry("101", "Plant", 0, 37.5, 126.5, True), SiteEntry("서울"), SiteEntry("")]
    assert store.book() == []
    assert store.number(entries) == [0, 1, 2]
    assert store.number([]) == []
    assert store.number([SiteEntry("new"), SiteEntry("101", "seen"), SiteEntry("new")]) == [3, 0, 3]
    assert [e.id for e in store.book()] == ["101", "서울", "", "new"]
    assert store.book()[0] == entries[0]
    better = SiteEntry("서울", "Seoul", 2, 37.56, 126.97, True)
    assert store.number([better]) == [1]
    assert store.book()[1] == better
    assert np.isnan(store.book()[2].latitude)
    assert store.number([SiteEntry("y" * 2_000)]) == [4]


def test_a_store_that_is_there_answers(store):
    store.ping()
    assert store.expire(START_US) == 0
