"""The process that starts the services, asks how they are, and starts those again that die.

It holds a lock for as long as it lives, and writes what it knows to `status.json` after every
change: `up`, `down` and `status` read that, also after it was killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Any, Final, TextIO

from deploy import family
from deploy.embedded import group_of
from deploy.family import Member, Table
from deploy.probe import probe
from deploy.services import Service
from deploy.settings import DeployError

CANNOT_START: Final = 2
"""Exit status of a service that trying again does not help."""

_TICK_S: Final = 0.25
_LOOK_S: Final = 2.0
_ASK_S: Final = 5.0
_ASK_NEW_S: Final = 0.5
_MOST_TRIES: Final = 3
_LONGEST_PAUSE_S: Final = 30.0
_STEADY_S: Final = 60.0
_MISSES: Final = 3
_MUTE_S: Final = 120.0
_GRACE_S: Final = 15.0
_LOCK_S: Final = 2.0
_MOST_LOG: Final = 32 * 1024 * 1024
# What one platform's processes must not inherit from who brings it up.
_NOT_HANDED_ON: Final = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "MLFLOW_RUN_ID")


class State(StrEnum):
    """How a service is."""

    WAITING = "waiting"
    """For others that it needs."""
    STARTING = "starting"
    HEALTHY = "healthy"
    DONE = "done"
    """It ran once, and ended well."""
    UNHEALTHY = "unhealthy"
    PAUSED = "paused"
    """It died and is started again in a while."""
    FAILED = "failed"
    """It is not tried again."""
    STOPPED = "stopped"


GOOD: Final = (State.HEALTHY, State.DONE)


@dataclass(slots=True)
class Running:
    """A service and its process.

    Attributes:
        service: what it is.
        state: how it is.
        why: why it is so, "" where it is well.
        process: its process, None before the first start.
        member: its number and start.
        seen: it and its descendants, as last seen.
        starts: how often it was started.
        since: when it was started last, seconds since 1970.
        well_at: when it was last healthy, monotonic; 0 for never.
    """

    service: Service
    state: State = State.WAITING
    why: str = ""
    process: subprocess.Popen[bytes] | None = None
    member: Member | None = None
    seen: set[Member] = field(default_factory=set)
    starts: int = 0
    since: float = 0.0
    well_at: float = 0.0
    tries: int = 0
    misses: int = 0
    again_at: float = 0.0
    ask_at: float = 0.0
    asked: Future[str] | None = None

    def record(self) -> dict[str, Any]:
        """As it is written to the status file."""
        return {
            "name": self.service.name,
            "state": str(self.state),
            "why": self.why,
            "pid": self.member.pid if self.member else None,
            "since": self.since,
            "starts": self.starts,
            "url": self.service.url,
            "health": list(self.service.health.words) if self.service.health else [],
            "stop": int(self.service.stop),
            "needs": list(self.service.needs),
            "members": sorted([m.pid, m.started] for m in self.seen),
        }


class Supervisor:
    """Runs services until it is told to stop.

    Args:
        folder: of the platform: status, logs, lock.
        services: each after those that it needs.
        home: folder that they run in.
    """

    def __init__(self, folder: Path, services: list[Service], home: Path) -> None:
        self._folder = folder
        self._home = home
        self._all = {service.name: Running(service) for service in services}
        self._pool = ThreadPoolExecutor(max_workers=max(1, len(services)))
        self._stopping = False
        self._written = ""
        self._look_at = 0.0
        self._was_up = False

    def run(self) -> None:
        """Run until SIGTERM or SIGINT, then stop everything."""
        family.adopt()
        for what in (signal.SIGTERM, signal.SIGINT):
            signal.signal(what, self._stop)
        try:
            while not self._stopping:
                self._look()
                for running in self._all.values():
                    self._step(running)
                self._was_up = self._was_up or all(r.state in GOOD for r in self._all.values())
                self._write()
                time.sleep(_TICK_S)
        finally:
            self._end()

    def _stop(self, _signal: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _look(self) -> None:
        """Note who belongs to whom, and bury the orphans that were adopted."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_S
        table = Table()
        for running in self._all.values():
            running.seen = table.family(running.seen)
        mine = {r.process.pid for r in self._all.values() if r.process is not None}
        for pid in table.zombies(os.getpid()):
            if pid not in mine:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)

    def _step(self, running: Running) -> None:
        now = time.monotonic()
        match running.state:
            case State.WAITING:
                lacking = [n for n in running.service.needs if self._all[n].state not in GOOD]
                running.why = f"for {', '.join(lacking)}" if lacking else ""
                if not lacking:
                    self._start(running)
            case State.PAUSED:
                if now >= running.again_at:
                    self._start(running)
            case State.STARTING | State.HEALTHY | State.UNHEALTHY:
                assert running.process is not None
                status = running.process.poll()
                if status is not None:
                    self._ended(running, status)
                elif running.service.health is not None:
                    self._ask(running, now)

    def _start(self, running: Running) -> None:
        service = running.service
        with self._log(service.name) as log:
            try:
                running.process = subprocess.Popen(
                    service.command,
                    cwd=self._home if not service.user else "/",
                    env=self._environment(service),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    user=service.user or None,
                    group=group_of(service.user),
                    extra_groups=[] if service.user else None,
                )
            except OSError as error:
                running.state = State.FAILED
                running.why = f"{service.command[0]} cannot be started: {error.strerror}"
                return
        running.member = Member.of(running.process.pid)
        running.seen = {running.member} if running.member else set()
        running.state, running.why = State.STARTING, ""
        running.starts += 1
        running.since = time.time()
        running.well_at, running.ask_at, running.asked, running.misses = 0.0, 0.0, None, 0

    def _environment(self, service: Service) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in _NOT_HANDED_ON and not name.startswith("PYTEST_")
        }
        # What an operator says of Airflow counts more than what stands in `services`.
        own = {
            name: value
            for name, value in service.environment.items()
            if not (name.startswith("AIRFLOW__") and name in kept)
        }
        return {**kept, **own, family.MARK: str(self._folder), "PYTHONUNBUFFERED": "1"}

    @contextmanager
    def _log(self, name: str) -> Iterator[int]:
        path = self._folder / "logs" / f"{name}.log"
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size > _MOST_LOG:
                os.replace(path, path.with_suffix(".log.1"))
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            yield log
        finally:
            os.close(log)

    def _ask(self, running: Running, now: float) -> None:
        health = running.service.health
        assert health is not None
        if running.asked is None:
            if now >= running.ask_at:
                running.asked = self._pool.submit(
                    probe, health.kind, health.target, health.component, running.since
                )
            return
        if not running.asked.done():
            return
        why, running.asked = running.asked.result(), None
        running.ask_at = now + (_ASK_S if running.state == State.HEALTHY else _ASK_NEW_S)
        running.misses = running.misses + 1 if why else 0
        if running.state == State.HEALTHY and 0 < running.misses < _MISSES:
            running.ask_at = now + _ASK_NEW_S  # one answer may be late
            return
        if not why:
            running.state, running.why, running.well_at = State.HEALTHY, "", now
            if now - _since(running) > _STEADY_S:
                running.tries = 0
            return
        running.why = why
        if running.well_at:
            running.state = State.UNHEALTHY
            needs_are_well = all(self._all[n].state in GOOD for n in running.service.needs)
            if needs_are_well and now - running.well_at > _MUTE_S:
                self._bury(running)
                self._ended(running, None)

    def _ended(self, running: Running, status: int | None) -> None:
        if running.service.once and status == 0:
            running.state, running.why = State.DONE, ""
            return
        running.why = "it did not answer" if status is None else _told(status)
        self._bury(running)
        running.tries += 1
        # Before the platform was up once, what keeps failing has a cause that stays.
        hopeless = status == CANNOT_START or running.tries >= _MOST_TRIES
        if hopeless and (running.service.once or not self._was_up):
            running.state = State.FAILED
            return
        pause = min(_LONGEST_PAUSE_S, 2.0 ** (running.tries - 1))
        running.state, running.again_at = State.PAUSED, time.monotonic() + pause

    def _bury(self, running: Running) -> None:
        """Kill what a service leaves behind; its next start must not meet it."""
        if running.process is None:
            return
        left = Table().family(running.seen) | family.group(running.process.pid)
        family.kill(left)
        running.process.poll()
        running.seen = set()

    def _end(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        left = {n: r for n, r in self._all.items() if r.process is not None}
        for layer in layers([r.service for r in left.values()]):
            self._end_layer([left[name] for name in layer])
        family.kill(Table().family({m for r in left.values() for m in r.seen}))
        self._write()

    def _end_layer(self, layer: list[Running]) -> None:
        for running in layer:
            if running.process is not None and running.process.poll() is None:
                running.process.send_signal(running.service.stop)
        give_up = time.monotonic() + _GRACE_S
        for running in layer:
            if running.process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    running.process.wait(max(0.0, give_up - time.monotonic()))
            running.seen = Table().family(running.seen)
            self._bury(running)
            if running.state != State.DONE:
                running.state, running.why = State.STOPPED, ""
            self._write()

    def _write(self) -> None:
        supervisor = Member.of(os.getpid())
        text = json.dumps(
            {
                "supervisor": asdict(supervisor) if supervisor else None,
                "stopping": self._stopping,
                "services": [running.record() for running in self._all.values()],
            },
            indent=1,
        )
        if text == self._written:
            return
        fresh = self._folder / "status.new"
        fresh.write_text(text)
        os.replace(fresh, self._folder / "status.json")
        self._written = text


def layers(services: Iterable[Service]) -> list[list[str]]:
    """Names of services, those that nobody needs first: the order in which to stop them."""
    left = {service.name: service for service in services}
    found = []
    while left:
        needed = {need for service in left.values() for need in service.needs}
        found.append([name for name in left if name not in needed])
        for name in found[-1]:
            del left[name]
    return found


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the platform's lock; whoever dies lets it go.

    Raises:
        DeployError: another process holds it.
    """
    with open(folder / "lock", "a") as file:
        give_up = time.monotonic() + _LOCK_S
        while not _lock(file, fcntl.LOCK_EX):
            if time.monotonic() > give_up:
                raise DeployError(f"another process supervises {folder}")
            time.sleep(0.02)  # somebody only looks whether it is free
        yield


def is_locked(folder: Path) -> bool:
    """Whether a supervisor lives."""
    with open(folder / "lock", "a") as file:
        return not _lock(file, fcntl.LOCK_SH)


def _lock(file: TextIO, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _since(running: Running) -> float:
    """When a service was started, monotonic."""
    return time.monotonic() - (time.time() - running.since)


def _told(status: int) -> str:
    if status < 0:
        return f"it was ended by {signal.Signals(-status).name}"
    return f"it ended with status {status}"
