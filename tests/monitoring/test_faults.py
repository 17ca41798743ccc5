"""Exactly once: the real monitor, killed at random moments around an episode, against a server
that records every DAG run that was made.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import httpx
import pytest

from monitoring.policy import Level, Phase
from monitoring.store import open_store
from tests.monitoring.airflow_stand_in import StandIn, running
from tests.monitoring.processes import end, kill, monitored, settled
from tests.serving.served import free_port

TRIALS = 100 if os.environ.get("TRAILWATCH_FULL") else 2


@pytest.mark.parametrize("part", range(2))
def test_killed_at_random_moments_one_episode_is_one_run(tmp_path: Path, part: int):
    """Each trial: honest days, then drift; the monitor is killed twice around the episode,
    and the server breaks off some answers after it has made the run.
    """
    chance = random.Random(part)
    for trial in range(TRIALS // 2):
        stand_in = StandIn(pause_s=chance.choice([0.0, 0.05, 0.2]))
        stand_in.broken = [502] * chance.choice([0, 0, 1])
        with running(stand_in), monitored(tmp_path / str(trial), stand_in.url) as one:
            one.site.days(8, version="bundle")
            one.site.days(4, shift=1.0, version="bundle")
            for times in (1, 2):
                monitor = one.start()
                one.until_active(monitor, times)
                time.sleep(chance.uniform(0.0, 0.6))  # everything happens in a few tenths
                kill(monitor)
            monitor = one.start()
            one.until_active(monitor, 3)
            one.until(monitor, settled)
            time.sleep(0.5)
            assert end(monitor) == 0
            store = open_store(one.state, "trailwatch")
            state = store.monitor()
            assert state.policy.level == Level.DRIFT
            assert list(stand_in.runs) == ["drift__trailwatch__vbundle__e1"]
            assert len(store.requests()) == 1
            assert state.counts == {"counted": 12 * 400}
            kinds = [event.kind for event in store.history(9999)]
            assert [kinds.count(kind) for kind in ("opened", "requested", "delivered")] == [1, 1, 1]
            store.close()


def test_airflow_that_comes_back_gets_what_waited(tmp_path: Path):
    port = free_port()
    with monitored(tmp_path / "down", f"http://127.0.0.1:{port}") as one:
        one.site.days(8, version="bundle")
        one.site.days(4, shift=1.0, version="bundle")
        monitor = one.start()
        one.until(monitor, lambda store: any(asked.tries > 1 for asked in store.requests()))
        kill(monitor)
        monitor = one.start()
        with running(StandIn(), port) as stand_in:
            one.until(monitor, settled)
            run = "drift__trailwatch__vbundle__e1"
            assert list(stand_in.runs) == [run]
            stand_in.runs[run]["state"] = "running"
            one.until(monitor, lambda s: s.monitor().policy.phase == Phase.TRAINING)
            stand_in.runs[run]["state"] = "failed"
            one.until(monitor, lambda s: s.monitor().policy.person != "")
            assert end(monitor) == 0
            assert stand_in.triggers() == 1


def test_two_monitors_of_one_log_are_one_evaluator(tmp_path: Path):
    with running(StandIn()) as stand_in, monitored(tmp_path / "two", stand_in.url) as one:
        one.site.days(8, version="bundle")
        first, second = one.start(), one.start()
        one.until(first, lambda s: (m := s.monitor()) is not None and m.offset == 8 * 400)
        one.site.days(4, shift=1.0, version="bundle")
        kill(first)
        one.until(second, lambda s: settled(s) and s.monitor().offset == 12 * 400)
        assert end(second) == 0
        store = open_store(one.state, "trailwatch")
        assert store.monitor().counts == {"counted": 12 * 400}
        assert len(stand_in.runs) == 1
        store.close()


def test_it_answers_on_its_own_port(tmp_path: Path):
    port = free_port()
    with monitored(tmp_path / "port", "", MONITOR_PORT=str(port)) as one:
        one.site.days(8, version="bundle")
        monitor = one.start()
        one.until(monitor, lambda s: (m := s.monitor()) is not None and m.evaluated_us > 0)
        url = f"http://127.0.0.1:{port}"
        assert httpx.get(f"{url}/health/live").json()["status"] == "alive"
        told = httpx.get(f"{url}/health/drift")
        assert told.status_code == 200
        assert told.json()["model_version"] == "bundle"
        assert httpx.get(f"{url}/nothing").status_code == 404
        assert end(monitor) == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"DRIFT_CLOCK": "sundial"}, "TRAILWATCH_DRIFT_CLOCK is 'sundial'"),
        ({"DRIFT_EVERY_S": "soon"}, "TRAILWATCH_DRIFT_EVERY_S is 'soon'"),
        ({"DRIFT": "mysql://x"}, "sqlite:<file>"),
        ({"BUNDLE": "nowhere"}, "no bundle"),
    ],
    ids=["clock", "seconds", "url", "bundle"],
)
def test_settings_that_cannot_be_used_are_told(tmp_path: Path, settings: dict[str, str], said: str):
    with monitored(tmp_path / "bad", "", **settings) as one:
        assert one.start().wait(30) == 2
        assert said in (one.home / "monitor.log").read_text()
