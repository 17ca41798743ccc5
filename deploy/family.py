"""Processes with all their descendants, found again after whoever started them has died.

A process is named by its number and its start, so that a number that was given again means
nobody. What a service starts is found in four ways, because none is enough: as its descendants; in
its process group; among the descendants that were seen before their parent died; and by a variable
that they inherit. A task of Airflow may leave its group, lose its parent, and get an environment of
its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import psutil

MARK: Final = "TRAILWATCH_PLATFORM"
"""Variable that every process of a platform inherits: the platform's folder."""

_SAME_S: Final = 1.0
_ADOPT: Final = 36  # PR_SET_CHILD_SUBREAPER


@dataclass(frozen=True, slots=True)
class Member:
    """A process.

    Attributes:
        pid: its number.
        started: when it started, seconds since 1970.
    """

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> Member | None:
        """The process that has a number now, None where there is none."""
        try:
            return cls(pid, psutil.Process(pid).create_time())
        except psutil.Error:
            return None

    def process(self) -> psutil.Process | None:
        """A handle, None where the process has ended or the number is another's."""
        try:
            found = psutil.Process(self.pid)
            same = abs(found.create_time() - self.started) < _SAME_S
            return found if same and found.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None


class Table:
    """The processes of this machine at one moment."""

    def __init__(self) -> None:
        self._started: dict[int, float] = {}
        self._children: defaultdict[int, list[int]] = defaultdict(list)
        self._zombies: list[tuple[int, int]] = []
        for process in psutil.process_iter(["ppid", "create_time", "status"]):
            values = process.info
            if values["ppid"] is None or values["create_time"] is None:
                continue  # it has ended meanwhile
            if values["status"] == psutil.STATUS_ZOMBIE:
                self._zombies.append((process.pid, values["ppid"]))
                continue
            self._started[process.pid] = values["create_time"]
            self._children[values["ppid"]].append(process.pid)

    def has(self, member: Member) -> bool:
        """Whether this very process is there."""
        started = self._started.get(member.pid)
        return started is not None and abs(started - member.started) < _SAME_S

    def family(self, members: Iterable[Member]) -> set[Member]:
        """Those of the processes that are there, and all their descendants."""
        found: set[Member] = set()
        todo = [member.pid for member in members if self.has(member)]
        while todo:
            pid = todo.pop()
            member = Member(pid, self._started[pid])
            if member not in found:
                found.add(member)
                todo += [child for child in self._children[pid] if child in self._started]
        return found

    def zombies(self, parent: int) -> list[int]:
        """Children of a process that have ended and wait to be told off."""
        return [pid for pid, ppid in self._zombies if ppid == parent]


def group(pid: int) -> set[Member]:
    """The processes of a group."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(OSError):
            if os.getpgid(process.pid) == pid and (member := Member.of(process.pid)):
                found.add(member)
    return found


def marked(mark: str) -> set[Member]:
    """The processes that inherited a platform's mark, without this one."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                found.add(Member(process.pid, process.create_time()))
    return found


def tell(members: Iterable[Member], what: signal.Signals) -> None:
    """Send a signal to those that are still there."""
    for member in members:
        process = member.process()
        if process is not None:
            with contextlib.suppress(psutil.Error):
                process.send_signal(what)


def kill(members: Iterable[Member], patience_s: float = 5.0) -> list[Member]:
    """Kill them, and wait until they are gone; returns those that are not."""
    members = set(members)
    tell(members, signal.SIGKILL)
    wait(members, patience_s)
    return [member for member in members if member.process() is not None]


def wait(members: Iterable[Member], patience_s: float) -> bool:
    """Wait until all are gone; whether they are."""
    processes = [process for member in members if (process := member.process())]
    # Children of this process are left to whoever waits for them.
    _, alive = psutil.wait_procs(processes, timeout=patience_s)
    return not alive


def adopt() -> None:
    """Become the parent of every orphan among the descendants, where the system can do that."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_ADOPT, 1, 0, 0, 0)
