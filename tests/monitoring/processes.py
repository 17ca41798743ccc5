"""The real monitor as a process, over a real log, a bundle with a reference, and a registry."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from logbook.opened import open_log
from models.bundle import seal
from monitoring.store import Store, StoreError, open_store
from tests.monitoring.watched import DIGEST, Site, reference

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 90.0


class Monitored:
    """A log, a bundle with a reference, and the settings of a monitor over both."""

    def __init__(self, home: Path, airflow: str, **more: str) -> None:
        self.home = home
        self.started: list[subprocess.Popen[bytes]] = []
        self.log = open_log(f"sqlite:{home / 'log.db'}")
        self.site = Site(self.log)
        bundle = home / "bundle"
        bundle.mkdir()
        reference().save(bundle)
        DIGEST["bundle"] = seal(bundle)
        self.state = f"sqlite:{home / 'drift.db'}"
        settings = {
            "HOME": str(home),
            "BUNDLE": str(bundle),
            "LOG": f"sqlite:{home / 'log.db'}",
            "DRIFT_CLOCK": "event",
            "DRIFT_EVERY_S": "0.1",
            "DRIFT_READ_S": "0.05",
            "DRIFT_LEASE_S": "1",
            "DRIFT_REPORT": "off",
            "AIRFLOW_URL": airflow,
            "AIRFLOW_USER": "bot",
            "AIRFLOW_PASSWORD": "right",
            "AIRFLOW_FOLLOW_S": "0.2",
            **more,
        }
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            **{f"TRAILWATCH_{name}": value for name, value in settings.items()},
        }

    def start(self) -> subprocess.Popen[bytes]:
        with (self.home / "monitor.log").open("ab") as said:
            monitor = subprocess.Popen(
                [sys.executable, "-m", "monitoring"],
                cwd=self.home,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )
        self.started.append(monitor)
        return monitor

    def until(
        self,
        monitor: subprocess.Popen[bytes],
        reached: Callable[[Store], bool],
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Wait for a condition on the store, which the monitor makes first."""
        end = time.monotonic() + patience_s
        while True:
            assert monitor.poll() is None, (self.home / "monitor.log").read_text()[-2000:]
            assert time.monotonic() < end, (self.home / "monitor.log").read_text()[-2000:]
            with suppress(StoreError):  # not made yet
                store = open_store(self.state, "trailwatch")
                try:
                    if reached(store):
                        return
                finally:
                    store.close()
            time.sleep(0.02)

    def until_active(self, monitor: subprocess.Popen[bytes], times: int) -> None:
        """Wait until an evaluator has begun to work for the n-th time."""
        said = self.home / "monitor.log"
        self.until(monitor, lambda _: said.read_text().count("this is the evaluator") >= times)


@contextmanager
def monitored(home: Path, airflow: str, **more: str) -> Iterator[Monitored]:
    home.mkdir(parents=True)
    one = Monitored(home, airflow, **more)
    try:
        yield one
    finally:
        for monitor in one.started:
            if monitor.poll() is None:
                kill(monitor)
        one.log.close()


def kill(monitor: subprocess.Popen[bytes]) -> None:
    """At once, as a power cut would."""
    monitor.send_signal(signal.SIGKILL)
    monitor.wait()


def end(monitor: subprocess.Popen[bytes]) -> int:
    """In order; its exit status."""
    monitor.send_signal(signal.SIGTERM)
    return monitor.wait(15)


def settled(store: Store) -> bool:
    """The last request has reached Airflow."""
    requests = store.requests()
    return bool(requests) and requests[-1].outcome in ("delivered", "training", "success")
