"""A real server for tests: the app with its own stores, on a free port, in a thread."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import httpx
import uvicorn
from fastapi import FastAPI

from serving.app import create_app
from serving.settings import Settings


@contextmanager
def served(settings: Settings, explain: str = "lazy") -> Iterator[tuple[httpx.Client, FastAPI]]:
    """A client of a running server, and its app; without torch, unless it is asked to explain."""
    app = create_app(replace(settings, explain=explain))
    bound = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_keep_alive=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.02)
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with httpx.Client(base_url=url, timeout=30) as client:
            yield client, app
    finally:
        server.should_exit = True
        thread.join(30)
        bound.close()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
