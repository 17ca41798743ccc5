"""`python -m monitoring`: watches one model until SIGTERM or SIGINT.

With `--with-parent` it also ends when its standard input closes, and says on its standard output
now and then that it lives: so a serving process keeps it (`TRAILWATCH_MONITOR=inside`).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from logbook import LogError, PredictionLog
from logbook.opened import open_log
from models import bundle
from models.registry import CHAMPION
from models.watcher import Watcher
from monitoring import port
from monitoring.relay import Airflow, Relay
from monitoring.relay import Pace as RelayPace
from monitoring.report import ROOT, Reporter
from monitoring.settings import Settings, SettingsError
from monitoring.store import Store, StoreError, open_store
from monitoring.watch import Champion, Pace, Watch, run

CANNOT_START: Final = 2
_ALIVE_S: Final = 30.0
_PATIENCE_S: Final = 60.0
_LOG: Final = logging.getLogger("trailwatch.drift")


class Telling:
    """Hands what the registry's watcher says to the evaluator; remembers the champion's folder."""

    def __init__(self, watch: Watch) -> None:
        """Nothing is known yet."""
        self._watch = watch
        self._said = ""
        self.champion: Champion | None = None

    def heard(self, line: dict[str, Any]) -> None:
        """Act on a line of `models.registry.watch`."""
        match line:
            case {"event": "version", "version": version}:
                self.champion = Champion(str(version), line["digest"], Path(line["folder"]))
                self._watch.tell(self.champion)
            case {"event": "checked"}:
                self._watch.checked()
                self._said = ""
            case {"event": "error" | "refused", "error": error} if error != self._said:
                self._said = str(error)
                _LOG.warning("the registry: %s", error)


def main(words: list[str]) -> int:
    """Watch until a signal.

    Returns:
        0 after a signal, 2 where the settings or a database do not let it start.
    """
    parser = argparse.ArgumentParser(prog="python -m monitoring", description=__doc__)
    parser.add_argument("--with-parent", action="store_true", help="end when stdin closes")
    asked = parser.parse_args(words)
    _log_lines()
    stop = threading.Event()
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, lambda *_: stop.set())
    with ExitStack() as stack:
        try:
            settings = Settings.read()
            log, store = _opened(settings, stop)
            if log is None or store is None:
                return 0
            stack.callback(log.close)
            stack.callback(store.close)
            alive = _listening(settings, store, stack)
        except (SettingsError, StoreError, LogError, ValueError, OSError) as error:
            print(error, file=sys.stderr)
            return CANNOT_START
        if asked.with_parent:
            threading.Thread(target=_wait_for_parent, args=(stop,), daemon=True).start()
            alive = _both(alive, _saying())
        try:
            watch = _wired(settings, log, store, stack)
        except (bundle.BundleError, SettingsError) as error:
            print(error, file=sys.stderr)
            return CANNOT_START
        run(watch, stop, settings.drift_read_s, alive)
    return 0


def _opened(settings: Settings, stop: threading.Event) -> tuple[PredictionLog | None, Store | None]:
    """Log and state; a database that does not answer yet is waited for a while.

    Raises:
        StoreError, LogError, ValueError: one cannot be used.
    """
    until = time.monotonic() + _PATIENCE_S
    while not stop.is_set():
        try:
            log = open_log(settings.log_url)
            try:
                return log, open_store(settings.drift_url, settings.model, create=True)
            except BaseException:
                log.close()
                raise
        except (StoreError, LogError) as error:
            if time.monotonic() > until:
                raise
            _LOG.warning("%s; trying again", error)
            stop.wait(2.0)
    return None, None


def _listening(settings: Settings, store: Store, stack: ExitStack) -> Callable[[], None]:
    """Answer on the monitor's own port, where it has one; returns what its loop calls."""
    pulse = port.Pulse(settings.drift_read_s + settings.drift_every_s)
    if settings.monitor_port:
        answers: dict[str, Callable[[], port.Answer]] = {
            "/health/live": pulse.answer,
            "/health/drift": lambda: port.drift(store, settings.model),
        }
        stack.enter_context(port.listening(settings.monitor_host, settings.monitor_port, answers))
    return pulse.beat


def _wired(settings: Settings, log: PredictionLog, store: Store, stack: ExitStack) -> Watch:
    """The evaluator with all that it needs.

    Raises:
        BundleError: the bundle folder that was named cannot be used.
    """
    airflow = None
    if settings.airflow_url:
        airflow = Airflow(
            settings.airflow_url,
            settings.airflow_user,
            settings.airflow_password,
            settings.airflow_dag,
        )
        stack.callback(airflow.close)
    reporter = Reporter(store, lambda episode: _report_command(settings, telling, episode))
    stack.callback(reporter.close)
    watch = Watch(
        log,
        store,
        Relay(store, airflow, RelayPace(follow=settings.airflow_follow_s)),
        reporter if settings.drift_report == "on" else None,
        lease_s=settings.drift_lease_s,
        pace=Pace(settings.drift_every_s, settings.drift_settle_s),
        event_clock=settings.drift_clock == "event",
    )
    telling = Telling(watch)
    if settings.bundle:
        folder = Path(settings.bundle)
        # Named like the version that the service logs for such a bundle.
        telling.champion = Champion("bundle", bundle.verify(folder), folder)
        watch.tell(telling.champion)
        return watch
    watcher = Watcher(
        _registry_command(settings),
        _environment(settings),
        telling.heard,
        lambda said: _LOG.warning("%s", said),
        silence_s=300 + 10 * settings.poll_s,
    )
    watcher.start()
    stack.callback(watcher.stop)
    return watch


def _registry_command(settings: Settings) -> list[str]:
    home = settings.home.resolve()
    return [
        *(sys.executable, "-m", "models.registry", "watch"),
        *("--model", settings.model),
        *("--aliases", CHAMPION),
        *("--every", str(settings.poll_s)),
        *("--cache", str(home / "state" / settings.model / "bundles")),
    ]


def _report_command(settings: Settings, telling: Telling, episode: int) -> Sequence[str]:
    champion = telling.champion
    assert champion is not None  # an episode has one
    home = settings.home.resolve()
    keep = home / "state" / settings.model / "drift" / f"e{episode}"
    return [
        *(sys.executable, "-m", "monitoring.report", "--episode", str(episode)),
        *("--version", champion.version, "--folder", str(champion.folder)),
        *(("--keep", str(keep)) if settings.bundle else ()),
    ]


def _environment(settings: Settings) -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    home = str(settings.home.resolve())
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TRAILWATCH_HOME": home}


def _wait_for_parent(stop: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    stop.set()
    time.sleep(10)
    os._exit(0)  # whatever it waits for


def _saying() -> Callable[[], None]:
    """Says on the standard output now and then that this process lives."""
    said = 0.0

    def say() -> None:
        nonlocal said
        if time.monotonic() - said > _ALIVE_S:
            said = time.monotonic()
            print(json.dumps({"event": "alive"}), flush=True)

    return say


def _both(one: Callable[[], None], other: Callable[[], None]) -> Callable[[], None]:
    def call() -> None:
        one()
        other()

    return call


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _log_lines() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    logging.getLogger().handlers[:] = [handler]
    logging.getLogger("trailwatch").setLevel(logging.INFO)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
