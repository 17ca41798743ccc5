"""The relay against a real HTTP server that answers as Airflow does, and fails as it can."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitoring import policy as p
from monitoring.policy import DAY, Phase, Reading
from monitoring.relay import AIRFLOW, PAUSED, UNREACHABLE, Airflow, Pace, Relay
from monitoring.store import Lease, Store, open_store
from tests.monitoring.airflow_stand_in import StandIn, running

RUN = "drift__trailwatch__v7__e1"


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class World:
    """A store with a request that waits, a relay, and who it talks to."""

    def __init__(self, store: Store, airflow: StandIn, password: str = "right") -> None:
        self.store, self.airflow = store, airflow
        self.clock = Clock()
        self.lease = store.lease("a", 600)
        assert self.lease is not None
        client = Airflow(airflow.url, "bot", password, "retrain", timeout_s=0.5)
        self.client = client
        self.relay = self.another(client)
        with store.change() as step:
            step.apply(p.champion(step.monitor.policy, "7", DAY))
            reading = Reading(2 * DAY, "7", {"gap_s": 1.5}, {})
            step.apply(p.evaluated(step.monitor.policy, reading))

    def another(self, client: Airflow | None) -> Relay:
        return Relay(self.store, client, Pace(timeout=0.5), self.clock, lambda: 1.0)

    def work(self, rounds: int = 1, seconds: float = 0.0) -> None:
        for _ in range(rounds):
            self.clock.now += seconds
            self.relay.work(self.lease)

    @property
    def asked(self):
        [asked] = [one for one in self.store.requests() if one.outcome != "taken"]
        return asked

    @property
    def policy(self) -> p.Policy:
        return self.store.monitor().policy

    @property
    def alarms(self) -> dict[str, str]:
        return {kind: told["detail"] for kind, told in self.store.monitor().alarms.items()}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_store(f"sqlite:{tmp_path / 'drift.db'}", "trailwatch", create=True)
    yield store
    store.close()


@pytest.fixture
def airflow() -> Iterator[StandIn]:
    with running(StandIn()) as stand_in:
        yield stand_in


@pytest.fixture
def world(store: Store, airflow: StandIn) -> Iterator[World]:
    world = World(store, airflow)
    yield world
    world.client.close()


def test_a_request_is_delivered_once_with_its_conf(world: World):
    world.work(3, seconds=20)
    assert list(world.airflow.runs) == [RUN]
    assert world.airflow.triggers() == 1
    conf = world.airflow.runs[RUN]["conf"]
    assert (conf["champion"], conf["reason"], conf["episode"]) == ("7", ["gap_s"], 1)
    # These names, and no others, are known to dags/trailwatch/command.py.
    noted = {"episode", "manual", "reason", "request", "requested_us"}
    assert set(conf) == {"champion", "force", *noted}
    assert world.asked.outcome == "delivered"
    assert world.asked.delivered_us is not None
    assert world.alarms == {}


@pytest.mark.parametrize("end", ["success", "failed"])
def test_a_run_is_followed_to_its_end(world: World, end: str):
    world.work()
    world.work(seconds=1)
    assert world.policy.phase == Phase.REQUESTED
    world.airflow.runs[RUN]["state"] = "running"
    world.work(seconds=20)
    assert world.policy.phase == Phase.TRAINING
    world.airflow.runs[RUN]["state"] = end
    world.work(seconds=20)
    assert world.asked.outcome == end
    if end == "success":
        assert world.policy.episode.trained_us is not None
    else:
        assert world.policy.person == "episode 1: its run failed"
    world.work(3, seconds=1000)
    assert world.asked.outcome == end
    assert world.airflow.triggers() == 1


def test_a_run_is_not_asked_after_all_the_time(world: World):
    world.work()
    before = len(world.airflow.asked)
    world.work(100, seconds=0.2)
    assert len(world.airflow.asked) - before <= 2 * 3


def test_a_crash_after_the_delivery_meets_its_own_run(world: World):
    assert world.client.trigger(RUN, world.asked.conf)
    world.work()
    assert world.asked.outcome == "delivered"
    assert list(world.airflow.runs) == [RUN]


def test_an_answer_that_was_lost_after_the_run_was_made_is_no_second_run(world: World):
    world.airflow.broken = [502]
    world.work()
    assert world.asked.outcome == "pending"
    world.work(seconds=10)
    assert world.asked.outcome == "delivered"
    assert list(world.airflow.runs) == [RUN]


def test_an_id_that_another_request_has_is_left_to_it(world: World):
    assert world.client.trigger(RUN, {"request": "of a state that was lost"})
    assert world.client.trigger(RUN[:-1] + "2", {})
    world.work(5, seconds=1)
    assert list(world.airflow.runs) == [RUN[:-1] + n for n in "123"]
    assert world.asked.dag_run_id == RUN[:-1] + "3"
    assert world.asked.outcome == "delivered"
    assert world.policy.episode.number == 3
    assert len(world.policy.requests) == 1
    assert [report.episode for report in world.store.reports()] == [3]


@pytest.mark.parametrize("status", [500, 503, 429])
def test_what_passes_is_tried_again_ever_later(world: World, status: int):
    world.airflow.failing = [status] * 6
    pauses = []
    for _ in range(6):
        began = world.clock.now
        world.work()
        pauses.append(world.asked.due_us / 1e6 - began)
        world.work(5)  # not due: nobody is asked
        world.clock.now = world.asked.due_us / 1e6
    assert pauses == [2, 4, 8, 16, 32, 64]
    assert world.airflow.failing == []
    assert UNREACHABLE in world.alarms
    world.work()
    assert world.asked.outcome == "delivered"
    assert world.alarms == {}


def test_airflow_down_for_an_hour_then_delivered(store: Store):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    stand_in = StandIn(port=port)
    world = World(store, stand_in)
    for _ in range(360):
        world.work(seconds=10)
    assert world.asked.outcome == "pending"
    assert world.asked.tries < 25
    assert UNREACHABLE in world.alarms
    with running(stand_in, port):
        world.work(40, seconds=10)
        assert world.asked.outcome == "delivered"
        assert stand_in.triggers() == 1
    world.client.close()


def test_an_answer_that_does_not_come_is_waited_for_only_so_long(world: World):
    world.airflow.pause_s = 1.0
    world.work()
    assert "Timeout" in world.asked.error
    world.airflow.pause_s = 0.0
    world.work(seconds=10)
    world.work(seconds=10)
    assert list(world.airflow.runs) == [RUN]


@pytest.mark.parametrize("token", ["token-0", "of another secret"])
def test_a_token_that_is_not_taken_any_more_is_replaced_once(world: World, token: str):
    assert not world.client.is_paused()
    world.airflow.token = "a new one"
    world.client._token = token
    world.work()
    assert world.asked.outcome == "delivered"
    assert [path for _, path in world.airflow.asked].count("/auth/token") == 2


def test_tokens_that_are_never_taken_are_an_alarm(world: World):
    world.airflow.failing = [401] * 50
    world.work(100, seconds=10)
    assert "jwt_secret" in world.alarms[AIRFLOW]
    assert [path for _, path in world.airflow.asked].count("/auth/token") < 20


def test_a_wrong_password_is_an_alarm_and_no_storm(store: Store, airflow: StandIn):
    world = World(store, airflow, password="wrong")
    world.work(600, seconds=6)
    assert "TRAILWATCH_AIRFLOW_PASSWORD" in world.alarms[AIRFLOW]
    assert "wrong" not in world.alarms[AIRFLOW]
    assert len(airflow.asked) < 12
    airflow.password = "wrong"
    world.work(2, seconds=3600)
    assert world.asked.outcome == "delivered"
    assert world.alarms == {}
    world.client.close()


@pytest.mark.parametrize(
    ("failing", "said"),
    [([200, 400], "400"), ([200, 422], "422"), ([403, 403], "may not")],
    ids=["bad request", "unprocessable", "forbidden"],
)
def test_what_is_refused_is_an_alarm_and_no_storm(world: World, failing: list[int], said: str):
    for _ in range(3):
        world.airflow.failing = list(failing)
        world.work(20, seconds=1)
    assert said in world.alarms[AIRFLOW]
    assert world.airflow.runs == {}
    assert len(world.airflow.asked) <= 8


def test_a_dag_that_is_not_there_is_an_alarm(world: World):
    world.airflow.dags = ()
    world.work(600, seconds=6)
    assert "no DAG 'retrain'" in world.alarms[AIRFLOW]
    assert len(world.airflow.asked) < 12
    world.airflow.dags = ("retrain",)
    world.work(2, seconds=3600)
    assert world.asked.outcome == "delivered"


def test_a_paused_dag_takes_the_run_and_is_an_alarm_until_it_goes_on(world: World):
    world.airflow.paused = True
    world.work(10, seconds=20)
    assert world.airflow.triggers() == 1
    assert "unpauses" in world.alarms[PAUSED]
    assert world.policy.phase == Phase.REQUESTED
    world.airflow.paused = False
    world.work(seconds=20)
    assert world.alarms == {}


def test_a_run_that_is_gone_asks_for_a_person(world: World):
    world.work()
    world.airflow.runs.clear()
    world.work(seconds=20)
    assert world.asked.outcome == "gone"
    assert "gone from Airflow" in world.policy.person
    world.work(10, seconds=100)
    assert world.airflow.triggers() == 1


def test_a_delivered_request_survives_the_cleaning_of_airflows_database(world: World):
    world.work()
    world.airflow.runs[RUN]["state"] = "success"
    world.work(seconds=20)
    world.airflow.runs.clear()
    world.work(10, seconds=1000)
    assert world.airflow.triggers() == 1


def test_a_request_of_a_champion_that_is_gone_is_not_delivered(world: World):
    with world.store.change() as step:
        step.apply(p.champion(step.monitor.policy, "8", 3 * DAY))
    world.work(5, seconds=100)
    assert world.airflow.triggers() == 0
    assert world.asked.outcome == "cancelled"


def test_without_airflow_a_request_waits_and_says_so(world: World):
    relay = world.another(None)
    relay.work(world.lease)
    assert "TRAILWATCH_AIRFLOW_URL" in world.alarms[AIRFLOW]
    assert world.asked.outcome == "pending"


def cancel(world: World) -> None:
    with world.store.change() as step:
        step.apply(p.champion(step.monitor.policy, "8", 3 * DAY))


def test_what_would_hold_up_a_request_is_told_before_there_is_one(world: World):
    cancel(world)
    world.airflow.password = "changed"
    world.airflow.paused = True
    world.work(400, seconds=6)
    assert "TRAILWATCH_AIRFLOW_PASSWORD" in world.alarms[AIRFLOW]
    assert len(world.airflow.asked) <= 5
    world.airflow.password = "right"
    world.work(seconds=600)
    assert list(world.alarms) == [PAUSED]


def test_an_alarm_about_a_request_ends_with_it(world: World):
    world.airflow.failing = [500]
    world.work()
    assert UNREACHABLE in world.alarms
    cancel(world)
    world.work(2, seconds=1)
    assert world.alarms == {}


def test_something_else_than_airflow_is_an_alarm(world: World):
    world.airflow.failing = []
    with running(StandIn()) as other:
        other.answer = lambda *_: (200, {"hello": "there"})
        client = Airflow(other.url, "bot", "right", "retrain", timeout_s=0.5)
        world.another(client).work(world.lease)
        client.close()
    assert "is it Airflow 3" in world.alarms[AIRFLOW]


def test_an_evaluator_without_the_lease_notes_nothing(world: World):
    from monitoring.store import LeaseLostError

    with pytest.raises(LeaseLostError):
        world.relay.work(Lease("b", world.lease.token + 1, 60))
    assert world.asked.outcome == "pending"
    world.work()
    assert world.asked.outcome == "delivered"
    assert list(world.airflow.runs) == [RUN]
