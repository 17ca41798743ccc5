"""`up`, `down` and `status` of the native platform."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from deploy import family, passwords, services
from deploy.family import Member, Table
from deploy.probe import probe
from deploy.progress import Display, Row
from deploy.services import Service
from deploy.settings import LOOPBACK, PORTS, ROOT, DeployError, Settings
from deploy.supervisor import GOOD, State, Supervisor, is_locked, locked

_TICK_S: Final = 0.3
_DOWN_S: Final = 90.0
_GRACE_S: Final = 10.0
_TAIL: Final = 12


@dataclass(frozen=True, slots=True)
class Known:
    """What the status file says of a service; see `supervisor.Running`."""

    name: str
    state: State
    why: str
    pid: int | None
    since: float
    starts: int
    url: str
    health: list[str]
    stop: int
    needs: list[str]
    members: list[Member]


def up(settings: Settings, patience_s: float) -> int:
    """Bring the platform up and wait until everything is healthy; 0 when it is.

    Raises:
        DeployError: a port is taken, a program is missing, a setting cannot be used.
    """
    settings.folder.mkdir(parents=True, exist_ok=True)
    if is_locked(settings.folder):
        known = read(settings.folder)
        if known and all(one.state in GOOD for one in known):
            print("The platform is up already.")
            _say_where(settings, known)
            return 0
        print("The platform runs already, and not everything is healthy yet.")
        began = False
    else:
        began = True
        _clear(settings)
        _check_programs(settings)
        secrets = passwords.load(settings.folder)
        all_services = services.services(services.native(settings, secrets))
        _check_ports(settings, all_services)
        for folder in services.prepare(settings, secrets):
            print(f"opened {folder} for passing (chmod o+x), so that PostgreSQL's user can")
        _launch(settings)
    return _follow(settings, patience_s, began)


def supervise(settings: Settings) -> int:
    """Be the supervisor; `up` starts it in a session of its own."""
    with locked(settings.folder):
        place = services.native(settings, passwords.load(settings.folder))
        Supervisor(settings.folder, services.services(place), settings.home).run()
    return 0


def down(settings: Settings) -> int:
    """Stop everything, also what a killed supervisor left; 0 when nothing is left."""
    folder = settings.folder
    if not folder.exists():
        print("The platform is not up.")
        return 0
    was_up = is_locked(folder)
    if was_up:
        _stop_supervisor(folder)
    left = _leftovers(folder)
    if not was_up and not left:
        print("The platform is not up.")
        return 0
    stubborn = _end_leftovers(folder)
    for member in stubborn:
        print(f"process {member.pid} cannot be ended", file=sys.stderr)
    if not stubborn:
        print("The platform is down; nothing of it runs.")
    return 1 if stubborn else 0


def status(settings: Settings) -> int:
    """Print each service with process, health and URL; 1 where one is not well."""
    known = read(settings.folder) if is_locked(settings.folder) else []
    if not known:
        left = len(_leftovers(settings.folder)) if settings.folder.exists() else 0
        print(
            f"The supervisor is dead and left {left} processes: make up starts anew, make down "
            "ends them."
            if left
            else "The platform is not up."
        )
        return 1
    with ThreadPoolExecutor(len(known)) as pool:
        whys = list(pool.map(_why, known))
    print(f"{'SERVICE':<22} {'PID':>8}  {'HEALTH':<10} {'STARTS':>6}  URL")
    for one, why in zip(known, whys, strict=True):
        word = one.state if one.state == State.DONE else "unhealthy" if why else "healthy"
        shown = why or one.url
        pid = "-" if one.pid is None or one.state == State.DONE else one.pid
        print(f"{one.name:<22} {pid:>8}  {word:<10} {one.starts:>6}  {shown}".rstrip())
    return 1 if any(whys) else 0


def read(folder: Path) -> list[Known]:
    """What the status file says; nothing where there is none."""
    try:
        found = json.loads((folder / "status.json").read_text())
    except (OSError, ValueError):
        return []
    return [
        Known(
            **{
                **one,
                "state": State(one["state"]),
                "members": [Member(pid, started) for pid, started in one["members"]],
            }
        )
        for one in found["services"]
    ]


def _why(one: Known) -> str:
    """Why a service is not well, asked now."""
    if one.state == State.DONE:
        return ""
    if one.state not in (State.HEALTHY, State.UNHEALTHY) or not one.health:
        return f"{one.state}{': ' if one.why else ''}{one.why}"
    kind, target, component = (*one.health, "")[:3]
    return probe(kind, target, component, one.since)


def _check_programs(settings: Settings) -> None:
    for folder, name, variable in (
        (settings.ml_bin, "mlflow", "TRAILWATCH_ML_BIN"),
        (settings.airflow_bin, "airflow", "TRAILWATCH_AIRFLOW_BIN"),
    ):
        if not (folder / name).exists():
            raise DeployError(
                f"{name} is not in {folder}; install it with make setup, or set {variable}"
            )
    if not (settings.home / "dags").is_dir():
        raise DeployError(f"{settings.home} has no folder dags; set TRAILWATCH_HOME to the project")


def _check_ports(settings: Settings, all_services: list[Service]) -> None:
    for service in all_services:
        if service.port and (taken := _taken(settings.ports[service.port])):
            raise DeployError(
                f"port {settings.ports[service.port]} of {LOOPBACK}, for {service.name}, is taken"
                f"{taken}; stop what listens there, or set {PORTS[service.port][0]} to another"
            )


def _taken(port: int) -> str:
    """By whom a port is taken, "" where it is free."""
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((LOOPBACK, port))
        except OSError:
            return _holder(port) or " "
    return ""


def _holder(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.pid
            if listens and connection.laddr[1:] == (port,):
                return f" by process {connection.pid} ({psutil.Process(connection.pid).name()})"
    except psutil.Error:
        pass  # others' processes are not told to everybody
    return ""


def _launch(settings: Settings) -> None:
    """Start the supervisor in a session of its own, and wait until it has the lock."""
    (settings.folder / "status.json").unlink(missing_ok=True)
    log = os.open(settings.logs / "supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "deploy", "supervise"],
            cwd=ROOT,
            env={**settings.given, family.MARK: str(settings.folder)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    finally:
        os.close(log)
    while not is_locked(settings.folder) or not read(settings.folder):
        if process.poll() is not None:
            raise DeployError(
                "the supervisor could not start:\n" + _tail(settings.logs / "supervisor.log")
            )
        time.sleep(0.05)


def _follow(settings: Settings, patience_s: float, began: bool) -> int:
    """Show progress until everything is healthy, or something cannot be.

    Args:
        settings: of the platform.
        patience_s: seconds to wait.
        began: whether this call began the platform, so may end it where it cannot be.
    """
    give_up = time.monotonic() + patience_s
    with Display() as display:
        while True:
            known = read(settings.folder)
            display.show(_rows(known))
            failed = [one for one in known if one.state == State.FAILED]
            lives = is_locked(settings.folder)
            late = time.monotonic() > give_up
            if failed or late or not lives:
                break
            if known and all(one.state in GOOD for one in known):
                break
            time.sleep(_TICK_S)
    if lives and not failed and not late:
        _say_where(settings, known)
        return 0
    slow = [one for one in known if one.state not in GOOD and one.state != State.WAITING]
    for one in failed or slow:
        print(f"\n{one.name}: {one.why or one.state}. Its log ends:", file=sys.stderr)
        print(_tail(settings.logs / f"{one.name}.log"), file=sys.stderr)
    if late and not failed:
        print(f"not everything is healthy after {patience_s:.0f} s", file=sys.stderr)
    print(f"Logs: {settings.logs}", file=sys.stderr)
    if began:
        print("The platform is taken down again.", file=sys.stderr)
        down(settings)
    return 1


def _rows(known: list[Known]) -> list[Row]:
    return [(one.name, str(one.state), one.why) for one in known]


def _say_where(settings: Settings, known: list[Known]) -> None:
    for one in known:
        if one.url:
            print(f"  {one.name:<12} {one.url}")
    print(f"  passwords    {settings.folder / passwords.FILE} (users admin and bot in Airflow)")
    print(f"  variables    {settings.folder / services.PROJECT} (for commands by hand)")
    print(f"  logs         {settings.logs}")


def _tail(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return "  (it has no log)"
    return "\n".join(f"  {line}" for line in lines[-_TAIL:])


def _stop_supervisor(folder: Path) -> None:
    """Ask the supervisor to stop everything, and wait; kill it where it does not."""
    member = _supervisor(folder)
    if member is None:
        return
    family.tell([member], signal.SIGTERM)
    give_up = time.monotonic() + _DOWN_S
    with Display(_rows(read(folder))) as display:
        while is_locked(folder) and time.monotonic() < give_up:
            display.show(_rows(read(folder)))
            time.sleep(_TICK_S)
    if is_locked(folder):
        family.kill([member])


def _supervisor(folder: Path) -> Member | None:
    try:
        found: dict[str, Any] = json.loads((folder / "status.json").read_text())
        return Member(**found["supervisor"])
    except (OSError, ValueError, TypeError):
        return None


def _leftovers(folder: Path) -> set[Member]:
    """Processes of the platform that run without a supervisor."""
    known = {member for one in read(folder) for member in one.members}
    marked = {member for member in family.marked(str(folder)) if member.pid not in _mine()}
    return Table().family(known | marked)


def _mine() -> set[int]:
    """This process and those above it: a platform's own task may bring another down."""
    with contextlib.suppress(psutil.Error):
        return {os.getpid(), *(process.pid for process in psutil.Process().parents())}
    return {os.getpid()}


def _end_leftovers(folder: Path) -> list[Member]:
    """End what a killed supervisor left, services that nobody needs first."""
    known = read(folder)
    needed = {need for one in known for need in one.needs}
    for last in (False, True):
        asked = set()
        for one in known:
            main = next((member for member in one.members if member.pid == one.pid), None)
            if main is not None and (one.name in needed) == last:
                family.tell([main], signal.Signals(one.stop))
                asked.add(main)
        family.wait(asked, _GRACE_S)
    for _ in range(3):  # what is killed may have started more meanwhile
        left = _leftovers(folder)
        if not left:
            break
        family.kill(left)
    return list(_leftovers(folder))


def _clear(settings: Settings) -> None:
    """End what an earlier platform left when its supervisor was killed."""
    left = _leftovers(settings.folder)
    if left:
        print(f"An earlier platform left {len(left)} processes; they are ended first.")
        stubborn = _end_leftovers(settings.folder)
        if stubborn:
            pids = ", ".join(str(member.pid) for member in stubborn)
            raise DeployError(f"processes {pids} of an earlier platform cannot be ended; do that")
