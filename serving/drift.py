"""Drift, as the service tells it: read from the monitor's state database, where it is kept."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from models.watcher import Watcher
from monitoring import status
from monitoring.policy import Change, Policy
from monitoring.store import Event, Store, StoreError, default_url, open_store
from serving.settings import PREFIX, Settings

ROOT: Final = Path(__file__).parent.parent
_SILENCE_S: Final = 300.0


class Drift:
    """The state database of the monitor; opened when it is first asked, and again after errors.

    Every method may raise `monitoring.store.StoreError`, and nothing else.
    """

    def __init__(self, url: str, model: str) -> None:
        """Nothing is opened yet."""
        self._url = url
        self._model = model
        self._store: Store | None = None
        self._lock = threading.Lock()

    @property
    def model(self) -> str:
        """The registered model that is watched."""
        return self._model

    def seen(self) -> status.Seen:
        """What can be told of drift now."""
        return status.seen(self._opened(), self._model, time.time_ns() // 1000)

    def history(self, limit: int, before: int | None, kinds: tuple[str, ...]) -> list[Event]:
        """Lines of the history, newest first; arguments as for `Store.history`."""
        return self._opened().history(limit, before, kinds)

    def change(self, event: Callable[[Policy, int], Change]) -> status.Seen:
        """Take a person's word: `event` maps the policy and its time to a change.

        Raises:
            RefusedError: the policy refuses it; nothing has changed.
        """
        with self._opened().change() as step:
            step.apply(event(step.monitor.policy, step.now_us))
        return self.seen()

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            if self._store is not None:
                self._store.close()
            self._store = None

    def _opened(self) -> Store:
        with self._lock:
            if self._store is None:
                self._store = open_store(self._url, self._model)
            return self._store


def drift_url(settings: Settings) -> str:
    """URL of the state database: as set, or beside the prediction log."""
    return settings.drift or default_url(settings.log_url)


def blind(model: str, error: StoreError) -> dict[str, Any]:
    """The document of `/health/drift` while the state database does not answer."""
    return {
        "version": status.VERSION,
        "status": "fail",
        "state": "blind",
        "model": model,
        "detail": str(error),
    }


def monitor_inside(settings: Settings, ended: Callable[[str], None]) -> Watcher:
    """A monitor as a child of this process, not started yet; it ends with this process.

    Args:
        settings: of the service; the monitor watches the same log and the same model.
        ended: takes the reason whenever the child has ended by itself.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    given = {
        "HOME": str(settings.home.resolve()),
        "MODEL": settings.model,
        "BUNDLE": settings.bundle,
        "LOG": settings.log_url,
        "DRIFT": drift_url(settings),
        "POLL_S": str(settings.poll_s),
    }
    return Watcher(
        [sys.executable, "-m", "monitoring", "--with-parent"],
        {
            **os.environ,
            **{PREFIX + name: value for name, value in given.items()},
            "PYTHONPATH": os.pathsep.join(paths),
        },
        lambda _: None,
        ended,
        silence_s=_SILENCE_S,
    )
