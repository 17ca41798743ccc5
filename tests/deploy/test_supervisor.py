"""The supervisor over small services: order, restarts, giving up, and what outlives it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy import family
from deploy.platform import Known, down, read
from deploy.services import Service
from deploy.settings import Settings
from deploy.supervisor import State, is_locked, layers
from tests.deploy.platforms import ROOT, free_ports, until

LISTENS = """
import socket, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"],
                         start_new_session=True, env={{}})
with open("{name}.starts", "a") as file:
    file.write(f"{{time.time()}} {{child.pid}}\\n")
listening = socket.create_server(("127.0.0.1", {port}))
while True:
    listening.accept()[0].close()
"""
Start = Callable[[list[dict]], "Small"]


class Small:
    """A supervisor's process over services in a folder."""

    def __init__(self, home: Path, described: list[dict]) -> None:
        self.settings = Settings.read({"TRAILWATCH_HOME": str(home)})
        self.folder = self.settings.folder
        self.settings.logs.mkdir(parents=True, exist_ok=True)
        script = Path(__file__).with_name("small.py")
        self.process = subprocess.Popen(
            [sys.executable, script, str(self.folder), json.dumps(described)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
        until(lambda: read(self.folder), 20, "the supervisor writes")

    def known(self) -> dict[str, Known]:
        return {one.name: one for one in read(self.folder)}

    def is_(self, name: str, state: State) -> Callable[[], bool]:
        return lambda: self.known()[name].state == state

    def starts(self, name: str) -> list[tuple[float, int]]:
        lines = (self.folder / f"{name}.starts").read_text().splitlines()
        return [(float(line.split()[0]), int(line.split()[1])) for line in lines]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    running: list[Small] = []

    def started(described: list[dict]) -> Small:
        running.append(Small(tmp_path, described))
        return running[-1]

    yield started
    for one in running:
        down(one.settings)
        one.process.kill()
        one.process.wait()


def listens(name: str, port: int, *needs: str) -> dict:
    return {
        "name": name,
        "code": LISTENS.format(name=name, port=port),
        "port": port,
        "needs": needs,
    }


def alive(pid: int) -> bool:
    member = family.Member.of(pid)
    return member is not None and member.process() is not None


def test_services_wait_for_what_they_need_and_stop_before_it(start):
    one, two = free_ports(2)
    ends = {"name": "ends", "code": "import time; time.sleep(1); open('done', 'w')"}
    small = start([ends, listens("low", one, "ends"), listens("high", two, "low")])
    until(small.is_("high", State.HEALTHY), 30, "everything is healthy")
    assert small.known()["ends"].state == State.DONE
    done = (small.folder / "done").stat().st_mtime
    assert done <= small.starts("low")[0][0] <= small.starts("high")[0][0]
    services = [Service(n, "ml", (), needs) for n, needs in (("a", ()), ("b", ("a",)), ("c", ()))]
    assert layers(services) == [["b", "c"], ["a"]]


def test_a_killed_service_comes_back_and_its_children_do_not(start):
    (port,) = free_ports(1)
    small = start([listens("low", port)])
    until(small.is_("low", State.HEALTHY), 30, "it is healthy")
    until(lambda: len(small.known()["low"].members) == 2, 10, "its child is seen")
    first = small.known()["low"].pid
    ((_, child),) = small.starts("low")
    os.kill(first, signal.SIGKILL)
    until(lambda: small.known()["low"].starts == 2, 20, "it is started again")
    until(small.is_("low", State.HEALTHY), 20, "it is healthy again")
    assert small.known()["low"].pid != first
    assert not alive(child), "a task of the killed service would meet its successor's"


def test_what_never_starts_is_given_up_with_its_reason(start):
    small = start(
        [
            {"name": "wrong", "code": "import sys; sys.exit(2)"},
            {"name": "broken", "code": "import sys; sys.exit(1)"},
        ]
    )
    until(small.is_("wrong", State.FAILED), 20, "the wrong one fails")
    assert small.known()["wrong"].starts == 1
    until(small.is_("broken", State.FAILED), 30, "the broken one fails")
    assert small.known()["broken"].starts == 3
    assert "status 1" in small.known()["broken"].why


def test_down_ends_everything_also_what_left_its_group(start):
    one, two = free_ports(2)
    small = start([listens("low", one), listens("high", two, "low")])
    until(small.is_("high", State.HEALTHY), 30, "everything is healthy")
    until(lambda: len(small.known()["high"].members) == 2, 10, "its child is seen")
    pids = [small.starts(name)[0][1] for name in ("low", "high")]
    pids += [one.pid for one in small.known().values()]
    assert all(map(alive, pids))
    assert down(small.settings) == 0
    assert not any(map(alive, pids))
    assert small.process.wait(5) == 0
    assert not is_locked(small.folder)


def test_down_ends_everything_after_the_supervisor_was_killed(start):
    (port,) = free_ports(1)
    small = start([listens("low", port)])
    until(small.is_("low", State.HEALTHY), 30, "it is healthy")
    until(lambda: len(small.known()["low"].members) == 2, 10, "its child is seen")
    pids = [small.known()["low"].pid, small.starts("low")[0][1]]
    small.process.kill()
    small.process.wait()
    assert not is_locked(small.folder)
    assert all(map(alive, pids)), "a service outlives its supervisor"
    assert down(small.settings) == 0
    assert not any(map(alive, pids))
