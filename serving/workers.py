"""Several processes on one port; they share the history, the log and the jobs' folder.

uvicorn's supervisor starts them, replaces one that dies, and ends them. A worker whose supervisor
was killed ends by itself.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from threading import Thread
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.supervisors import Multiprocess

from serving.app import create_app
from serving.settings import Settings
from serving.telemetry import log_json

_HEALTH_S = 60
"""A worker that says nothing for so long is replaced; loading torch may take half of it."""


def run(settings: Settings, bound: socket.socket, options: dict[str, Any]) -> None:
    """Serve with `settings.workers` processes until SIGTERM or SIGINT.

    Args:
        settings: as the environment has them: workers read it themselves.
        bound: what they all listen on.
        options: of uvicorn.
    """
    config = uvicorn.Config(
        "serving.workers:worker",
        factory=True,
        workers=settings.workers,
        timeout_worker_healthcheck=_HEALTH_S,
        **options,
    )
    _Supervisor(config, [bound]).run()


class _Supervisor(Multiprocess):
    """uvicorn's, that also sees at once that a worker died while it was being asked."""

    def keep_subprocess_alive(self) -> None:
        """Replace the workers that died."""
        for process in self.processes:
            # The worker has its own end of the pipe. While this one is open too, its death closes
            # nothing, and the answer to a question that it took with it is awaited to the end.
            process.child_conn.close()
        super().keep_subprocess_alive()


def worker() -> FastAPI:
    """The app of one worker, made by uvicorn."""
    log_json()
    parent = multiprocessing.parent_process()
    if parent is not None:
        Thread(target=_end_with, args=(parent,), name="parent", daemon=True).start()
    return create_app(Settings.read())


def _end_with(parent: Any) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
