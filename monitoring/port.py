"""The monitor's own port: whether it lives, and what it sees, for operators and for `make up`."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from monitoring.status import document, seen
from monitoring.store import Store, StoreError

Answer = tuple[int, dict[str, Any]]
_SILENCE_S: Final = 30.0


class Pulse:
    """When the monitor's loop was last round."""

    def __init__(self, most_s: float) -> None:
        """It lives while it beats within `most_s` seconds."""
        self._most_s = most_s + _SILENCE_S
        self._at = time.monotonic()

    def beat(self) -> None:
        """The loop was round."""
        self._at = time.monotonic()

    def answer(self) -> Answer:
        """Of `/health/live`."""
        silent_s = time.monotonic() - self._at
        alive = silent_s < self._most_s
        status = "alive" if alive else "stuck"
        return 200 if alive else 503, {"status": status, "silent_s": round(silent_s, 1)}


def drift(store: Store, model: str) -> Answer:
    """Of `/health/drift`: 200 for pass and warn, 503 where the monitor is blind."""
    try:
        told = document(seen(store, model, time.time_ns() // 1000))
    except StoreError as error:
        told = {"version": 1, "status": "fail", "state": "blind", "model": model}
        told["detail"] = str(error)
    return 503 if told["status"] == "fail" else 200, told


@contextmanager
def listening(host: str, port: int, answers: dict[str, Callable[[], Answer]]) -> Iterator[int]:
    """Answer GETs of some paths while the block runs.

    Yields:
        The port.

    Raises:
        OSError: the address cannot be used.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = answers.get(self.path.partition("?")[0])
            status, told = answer() if answer is not None else (404, {"detail": "nothing here"})
            text = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            """Looks of a load balancer are no news."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

    server = Server((host, port), Handler)
    thread = threading.Thread(target=server.serve_forever, name="port", daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
