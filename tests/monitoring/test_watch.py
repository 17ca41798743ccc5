"""The monitor on a real log and a real state database: what it reads, keeps and survives."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from logbook import Feedback, LogError, PredictionLog
from logbook.opened import open_log
from monitoring import policy as p
from monitoring import watch as watches
from monitoring.policy import DAY, Hold, Level, Phase
from monitoring.reference import Reference
from monitoring.store import Store, StoreError, open_store
from monitoring.watch import Champion, Watch
from tests.monitoring.watched import (
    A_DAY,
    DIGEST,
    SITES,
    Clock,
    Site,
    reference,
    saved,
    through,
    watching,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("bundles") / "7", reference())


@pytest.fixture
def log(tmp_path: Path) -> Iterator[PredictionLog]:
    log = open_log(f"sqlite:{tmp_path / 'log.db'}")
    yield log
    log.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_store(f"sqlite:{tmp_path / 'drift.db'}", "trailwatch", create=True)
    yield store
    store.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watch(log: PredictionLog, store: Store, folder: Path, clock: Clock) -> Watch:
    return watching(log, store, folder, clock)


@pytest.fixture
def site(log: PredictionLog) -> Site:
    return Site(log)


def kinds(store: Store) -> list[str]:
    return [e.kind for e in reversed(store.history(999)) if e.kind not in ("evaluation", "alarm")]


def test_honest_traffic_warms_up_and_is_ok(watch: Watch, store: Store, site: Site, clock: Clock):
    site.days(2)
    through(watch, clock)
    assert store.monitor().policy.level == Level.WARMING_UP
    n = 2 * A_DAY + site.days(6)
    through(watch, clock)
    monitor = store.monitor()
    assert monitor.policy.level == Level.OK
    assert monitor.counts == {"counted": n}
    assert (monitor.offset, monitor.lag) == (n, 0)
    assert monitor.evaluation["max_score"] < 1
    assert set(monitor.evaluation["features"]) == {"gap_h", "op", "location"}
    assert monitor.reference["n"] == 4000
    assert store.requests() == []


def test_drift_asks_for_one_retraining_with_its_reasons(
    watch: Watch, store: Store, site: Site, clock: Clock
):
    site.days(8)
    through(watch, clock)
    for _ in range(6):
        site.days(1, shift=1.0)
        through(watch, clock)
    [asked] = store.requests()
    assert asked.conf["reason"] == ["gap_h"]
    assert asked.dag_run_id == "drift__trailwatch__v7__e1"
    assert store.monitor().policy.phase == Phase.REQUESTED
    assert kinds(store)[-3:] == ["level", "opened", "requested"]
    assert [report.episode for report in store.reports()] == [1]


def test_a_reference_that_is_too_small_asks_for_nothing(
    log: PredictionLog, store: Store, site: Site, clock: Clock, tmp_path: Path
):
    small = saved(tmp_path / "small", reference(calibrated=False))
    site.days(9, shift=3.0)
    through(watching(log, store, small, clock), clock)
    policy = store.monitor().policy
    assert policy.level == Level.DRIFT
    assert Hold.REFERENCE in policy.holds()
    assert store.requests() == []


def test_after_a_promotion_it_warms_up_against_the_new_reference(
    watch: Watch, store: Store, site: Site, clock: Clock, tmp_path: Path
):
    site.days(8)
    site.days(4, shift=1.0)
    through(watch, clock)
    assert store.monitor().policy.level == Level.DRIFT
    second = reference(seed=9)
    watch.tell(Champion("8", DIGEST["8"], saved(tmp_path / "8", second)))
    site.days(1, shift=1.0)  # the service has not swapped yet
    site.days(1, version="8")
    through(watch, clock)
    monitor = store.monitor()
    assert monitor.policy.version == "8"
    assert monitor.policy.level == Level.WARMING_UP
    assert monitor.policy.episode is None
    assert monitor.reference["id"] == second.id
    assert monitor.counts["other_model"] == A_DAY
    assert "closed" in kinds(store)
    assert {asked.outcome for asked in store.requests()} == {"cancelled"}
    site.days(8, version="8")
    through(watch, clock)
    assert store.monitor().policy.level == Level.OK


def test_a_new_monitor_goes_on_where_the_last_one_ended(
    watch: Watch, log: PredictionLog, store: Store, site: Site, clock: Clock, folder: Path
):
    site.days(8)
    through(watch, clock)
    before = store.monitor()
    watch.close()
    site.days(1)
    again = watching(log, store, folder, clock)
    through(again, clock)
    monitor = store.monitor()
    assert monitor.offset == before.offset + A_DAY
    assert monitor.counts == {"counted": 9 * A_DAY}
    assert monitor.policy.level == Level.OK
    windows = monitor.evaluation["windows"]
    assert windows["7d"]["n"] > 6 * A_DAY


def test_a_round_that_fails_leaves_nothing_behind(
    watch: Watch, store: Store, site: Site, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    site.days(8)
    through(watch, clock)
    before = store.monitor(detector=True)
    site.days(1)

    def fail(*_: object) -> None:
        raise StoreError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(watches, "told_of", fail)
        clock.now += 1
        with pytest.raises(StoreError):
            watch.step()
    assert store.monitor(detector=True) == before
    through(watch, clock)
    monitor = store.monitor()
    assert monitor.counts == {"counted": 9 * A_DAY}
    assert monitor.offset == before.offset + A_DAY


def test_one_of_two_evaluators_works(
    watch: Watch, log: PredictionLog, store: Store, site: Site, clock: Clock, folder: Path
):
    other = watching(log, store, folder, clock)
    site.days(1)
    through(watch, clock)
    through(other, clock)
    assert (watch.active, other.active) == (True, False)
    assert store.monitor().counts == {"counted": A_DAY}
    watch.close()
    site.days(1)
    through(other, clock)
    assert other.active
    assert store.monitor().counts == {"counted": 2 * A_DAY}


def test_old_rows_and_other_judges_are_left_out_and_counted(
    watch: Watch, store: Store, site: Site, clock: Clock
):
    site.days(1, monitored=False)
    site.days(1, version="8")
    site.days(1, version="")
    site.days(1)
    through(watch, clock)
    assert store.monitor().counts == {
        "not_monitored": A_DAY,
        "other_model": 2 * A_DAY,
        "counted": A_DAY,
    }
    assert store.monitor().lag == 0


def test_a_champion_without_a_reference_is_told_and_nothing_is_read(
    log: PredictionLog, store: Store, site: Site, clock: Clock, tmp_path: Path, folder: Path
):
    (tmp_path / "empty").mkdir()
    watch = watching(log, store, tmp_path / "empty", clock)
    site.days(1)
    through(watch, clock)
    monitor = store.monitor()
    assert monitor.reference == {}
    assert "no drift reference" in monitor.alarms["no_reference"]["detail"]
    assert (monitor.offset, monitor.lag) == (0, A_DAY)
    watch.tell(Champion("8", DIGEST["8"], folder))
    site.days(1, version="8")
    through(watch, clock)
    assert store.monitor().alarms == {}
    assert store.monitor().counts["counted"] == A_DAY


def test_before_the_registry_has_answered_nothing_is_read(
    log: PredictionLog, store: Store, site: Site, clock: Clock, folder: Path
):
    watch = watching(log, store, folder, clock)
    watch._champion = None
    site.days(1)
    through(watch, clock)
    assert store.monitor().offset == 0
    watch.tell(Champion("7", DIGEST["7"], folder))
    through(watch, clock)
    assert store.monitor().counts == {"counted": A_DAY}


def test_a_damaged_detector_begins_anew_and_the_policy_stays(
    watch: Watch, log: PredictionLog, store: Store, site: Site, clock: Clock, folder: Path
):
    site.days(8)
    through(watch, clock)
    watch.close()
    with store.change() as step:
        step.monitor.detector = b"no detector"
    site.days(1)
    through(watching(log, store, folder, clock), clock)
    monitor = store.monitor()
    assert "windows_lost" in kinds(store)
    assert monitor.policy.version == "7"
    assert monitor.offset == 9 * A_DAY
    assert monitor.evaluation["windows"]["7d"]["status"] != "judged"


def test_a_detector_of_another_reference_begins_anew(
    log: PredictionLog, store: Store, site: Site, clock: Clock, tmp_path: Path, folder: Path
):
    site.days(8)
    watch = watching(log, store, folder, clock)
    through(watch, clock)
    state = store.monitor(detector=True).detector
    watch.close()
    other = saved(tmp_path / "other", reference(seed=5))
    again = watching(log, store, other, clock)
    with store.change() as step:
        step.monitor.reference = {
            **step.monitor.reference,
            "id": Reference.load(other).id,
        }
        step.monitor.detector = state
    through(again, clock)
    assert "windows_lost" in kinds(store)


def test_a_log_that_was_truncated_goes_on_with_what_is_left(
    watch: Watch, log: PredictionLog, store: Store, site: Site, clock: Clock
):
    site.days(4)
    through(watch, clock)
    site.days(2)
    log.forget(site.at_us - DAY)
    through(watch, clock)
    counted = store.monitor().counts["counted"]
    assert 4 * A_DAY < counted < 6 * A_DAY
    assert store.monitor().offset == 6 * A_DAY
    log.forget(site.at_us + DAY)
    through(watch, clock)
    assert store.monitor().offset == 6 * A_DAY
    assert "log_replaced" not in kinds(store)


def test_a_new_log_is_read_from_its_beginning(
    watch: Watch, store: Store, site: Site, clock: Clock, tmp_path: Path
):
    site.days(4)
    through(watch, clock)
    fresh = open_log(f"sqlite:{tmp_path / 'fresh.db'}")
    watch._log = site.log = fresh
    site.days(1)
    through(watch, clock)
    monitor = store.monitor()
    assert monitor.counts == {"counted": 5 * A_DAY}
    assert monitor.offset == A_DAY
    assert "log_replaced" in kinds(store)
    fresh.close()


def test_scans_of_a_restored_log_are_not_counted_twice(
    watch: Watch, log: PredictionLog, store: Store, site: Site, clock: Clock, tmp_path: Path
):
    site.days(2)
    backup = tmp_path / "backup.db"
    with sqlite3.connect(tmp_path / "log.db") as source, sqlite3.connect(backup) as target:
        source.backup(target)
    site.days(2)
    through(watch, clock)
    restored = open_log(f"sqlite:{backup}")
    watch._log = site.log = restored
    through(watch, clock)
    site.days(1)
    through(watch, clock)
    monitor = store.monitor()
    assert monitor.counts == {"counted": 5 * A_DAY, "read_before": 2 * A_DAY}
    restored.close()


def test_a_longer_log_in_its_place_is_noticed_at_the_next_start(
    watch: Watch, store: Store, site: Site, clock: Clock, tmp_path: Path, folder: Path
):
    site.days(1)
    through(watch, clock)
    watch.close()
    other = open_log(f"sqlite:{tmp_path / 'other.db'}")
    site.log = other
    site.days(3)
    again = watching(other, store, folder, clock)
    through(again, clock)
    assert "log_replaced" in kinds(store)
    assert store.monitor().counts == {"counted": 4 * A_DAY}
    other.close()


def test_scans_sent_again_count_once(
    watch: Watch, log: PredictionLog, store: Store, site: Site, clock: Clock
):
    at, n = site.at_us, site.n
    site.days(1)
    site.at_us, site.n = at, n
    site.random = np.random.default_rng(2)
    site.days(1)
    through(watch, clock)
    assert store.monitor().counts == {"counted": A_DAY}


def test_by_the_time_of_receipt_late_and_early_event_times_do_not_matter(
    log: PredictionLog, store: Store, site: Site, clock: Clock, folder: Path
):
    watch = watching(log, store, folder, clock, event_clock=False)
    began = int(clock.now * 1e6)
    for day in range(9):
        site.at_us = began - 300 * DAY  # of the scans; always the same long past day
        site.days(1, received_us=began + day * DAY)
        clock.now = (began + day * DAY) / 1e6 + 60
        watch.step()
    assert store.monitor().evaluation["windows"]["7d"]["n"] >= 6 * A_DAY
    assert store.monitor().policy.level == Level.OK
    assert store.monitor().clock == "received"


def test_a_clock_that_is_set_back_holds_nothing_up_and_undoes_nothing(
    log: PredictionLog, store: Store, site: Site, clock: Clock, folder: Path
):
    watch = watching(log, store, folder, clock, event_clock=False)
    began = int(clock.now * 1e6)
    site.days(1, received_us=began)
    watch.step()
    before = store.monitor()
    clock.now -= 86_400
    site.days(1, received_us=began - DAY)
    watch.step()
    monitor = store.monitor()
    assert monitor.counts == {"counted": 2 * A_DAY}
    assert monitor.policy.at_us >= before.policy.at_us
    assert monitor.evaluated_us >= before.evaluated_us


def test_a_new_site_needs_labels_and_then_asks(
    watch: Watch, log: PredictionLog, store: Store, site: Site, clock: Clock
):
    site.days(8)
    through(watch, clock)
    site.days(4, places=(*SITES, "F9"))
    through(watch, clock)
    monitor = store.monitor()
    told = monitor.evaluation["locations"]["F9"]
    assert told["status"] == "needs_labels"
    assert told["labels"] == 0
    assert monitor.policy.level == Level.WARN
    scans = [r.scan for r in log.since(8 * A_DAY, 9999) if r.scan.location_id == "F9"]
    for i, scan in enumerate(scans[:12]):
        event_id = scan.event_id if i % 2 else -1
        log.add_feedback(Feedback(event_id, scan.epc, scan.time_us, "jump", False, "ann", "", i))
    through(watch, clock)
    told = store.monitor().evaluation["locations"]["F9"]
    assert (told["status"], told["labels"]) == ("ready", 12)
    [asked] = store.requests()
    assert asked.conf["reason"] == ["new_location F9"]


def test_a_log_that_is_away_is_told_and_the_rest_goes_on(
    watch: Watch, store: Store, site: Site, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    site.days(8)
    through(watch, clock)
    evaluated_us = store.monitor().evaluated_us

    def away(*_: object) -> None:
        raise LogError("the log is away")

    with monkeypatch.context() as broken:
        broken.setattr(watch._log, "watched", away)
        through(watch, clock)
    monitor = store.monitor()
    assert monitor.alarms["log_down"]["detail"] == "the log is away"
    assert monitor.evaluated_us == evaluated_us
    through(watch, clock)
    assert "log_down" not in store.monitor().alarms


def test_a_success_without_a_promotion_is_rejected_once_the_registry_was_asked(
    watch: Watch, store: Store, site: Site, clock: Clock
):
    site.days(8)
    site.days(4, shift=1.0)
    through(watch, clock)
    [asked] = store.requests()
    with store.change() as step:
        step.update(asked.dag_run_id, outcome="success", finished_us=step.at_us)
        step.apply(p.finished(step.monitor.policy, 1, True, step.now_us))
        clock.now = step.at_us / 1e6
    clock.now += 1000
    watch.step()
    assert store.monitor().policy.phase == Phase.TRAINING  # MLflow has not been asked since
    watch.checked()
    watch.step()
    policy = store.monitor().policy
    assert policy.phase == Phase.COOLDOWN
    assert "refused" in policy.person
