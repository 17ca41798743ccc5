"""Finding and ending processes: never one that only has the same number."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator

import psutil
import pytest

from deploy import family
from deploy.family import Member, Table
from tests.deploy.platforms import until

# A parent whose child leaves session and group, and says its number.
LEAVING = """
    import subprocess, sys, time
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"],
                             start_new_session=True, env={})
    print(child.pid, flush=True)
    time.sleep(60)
"""


def sleeper(**more: object) -> subprocess.Popen:
    code = "import time; time.sleep(60)"
    return subprocess.Popen([sys.executable, "-c", code], start_new_session=True, **more)


@pytest.fixture
def process() -> Iterator[subprocess.Popen]:
    started = sleeper()
    yield started
    started.kill()
    started.wait()


def test_a_number_that_was_given_again_means_nobody(process):
    real = Member.of(process.pid)
    assert real and real.process() is not None
    recycled = Member(process.pid, real.started - 100)
    assert recycled.process() is None
    family.tell([recycled], signal.SIGKILL)
    assert family.kill([recycled]) == []
    assert Table().family([recycled]) == set()
    time.sleep(0.2)
    assert process.poll() is None
    assert family.kill([real]) == []
    assert real.process() is None


def test_a_zombie_is_gone(process):
    member = Member.of(process.pid)
    process.send_signal(signal.SIGKILL)
    assert member
    until(lambda: member.process() is None, 5, "the process is gone")
    assert Table().family([member]) == set()


def test_a_descendant_that_left_its_group_and_environment_is_found():
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(LEAVING)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout
    child = int(parent.stdout.readline())
    try:
        seen = Table().family([Member.of(parent.pid)])
        assert {member.pid for member in seen} == {parent.pid, child}
        parent.kill()
        parent.wait()
        # Its parent is dead; what was seen before still leads to it.
        left = Table().family(seen)
        assert {member.pid for member in left} == {child}
        assert family.kill(left) == []
        assert not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie"
    finally:
        parent.kill()
        parent.wait()
        if psutil.pid_exists(child):
            psutil.Process(child).kill()


def test_marked_processes_are_found_by_their_platform(tmp_path):
    mine = sleeper(env={family.MARK: str(tmp_path)})
    other = sleeper(env={family.MARK: str(tmp_path / "other")})
    try:
        until(lambda: family.marked(str(tmp_path)), 5, "the mark is seen")
        assert {member.pid for member in family.marked(str(tmp_path))} == {mine.pid}
        assert mine.pid in {member.pid for member in family.group(mine.pid)}
    finally:
        for process in (mine, other):
            process.kill()
            process.wait()
