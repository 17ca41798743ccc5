"""A small HTTP server that answers as Airflow 3.3 does where the relay asks it.

What it has was read off the real one; `test_relay.py` runs the relay against that too. It runs in
a thread, or (`python airflow_stand_in.py PORT FILE`) as a process that records each run by its id
in a file, so that a test may kill whoever asks it and count afterwards.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_EXPIRED = {"detail": "Token Expired"}
RUN_ID = re.compile(r"^[A-Za-z0-9_.~:+-]+$")


@dataclass
class StandIn:
    """What the server has and does.

    Attributes:
        runs: runs by their ids.
        asked: (method, path) of every request.
        password: what is right.
        token: the one that is valid; a new one each time somebody logs in.
        paused, dags: of its DAGs.
        failing: statuses to answer the next requests (other than logins) with.
        broken: statuses to answer the next triggers with after they have worked.
        record: file that each new run is appended to.
    """

    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    password: str = "right"
    token: str = ""
    paused: bool = False
    dags: tuple[str, ...] = ("retrain",)
    failing: list[int] = field(default_factory=list)
    broken: list[int] = field(default_factory=list)
    record: Path | None = None
    pause_s: float = 0.0
    port: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def triggers(self) -> int:
        return sum(1 for method, path in self.asked if method == "POST" and "dagRuns" in path)

    def answer(self, method: str, path: str, token: str, body: Any) -> tuple[int, dict[str, Any]]:
        with self.lock:
            self.asked.append((method, path))
            if path == "/auth/token":
                if body.get("password") != self.password:
                    return 401, {"detail": "Invalid credentials"}
                self.token = f"token-{len(self.asked)}"
                return 201, {"access_token": self.token}
            if self.failing:
                return self.failing.pop(0), {"detail": "told to fail"}
            if not self.token or token != f"Bearer {self.token}":
                old = token.startswith("Bearer token-")
                return (401, _EXPIRED) if old else (403, {"detail": "Invalid JWT token"})
            parts = path.removeprefix("/api/v2/dags/").split("/")
            if parts[0] not in self.dags:
                return 404, {"detail": f"The DAG with ID: `{parts[0]}` was not found"}
            if len(parts) == 1:
                return 200, {"dag_id": parts[0], "is_paused": self.paused}
            if method == "POST":
                return self._trigger(body)
            run = self.runs.get(parts[2])
            return (200, run) if run is not None else (404, {"detail": "The DagRun was not found"})

    def _trigger(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if "logical_date" not in body:
            return 422, {"detail": "logical_date: Field required"}
        name = body["dag_run_id"]
        if not RUN_ID.match(name) or name.startswith("scheduled__"):
            return 422, {"detail": "dag_run_id"}
        if name in self.runs:
            return 409, {"detail": "unique constraint violation"}
        self.runs[name] = {"dag_run_id": name, "state": "queued", "conf": body.get("conf")}
        if self.record is not None:
            with self.record.open("a") as file:
                file.write(name + "\n")
        if self.broken:
            return self.broken.pop(0), {"detail": "it was made, and then something broke"}
        return 200, self.runs[name]


@contextmanager
def running(stand_in: StandIn, port: int = 0) -> Iterator[StandIn]:
    """The server, on a free port or on this one."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _all(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            token = self.headers.get("Authorization", "")
            time.sleep(stand_in.pause_s)
            status, told = stand_in.answer(self.command, self.path, token, body)
            text = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = _all  # noqa: N815 - http.server's names

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass  # whoever asked was killed

    server = Server(("127.0.0.1", port), Handler)
    stand_in.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def main(words: list[str]) -> None:
    with running(StandIn(record=Path(words[1])), int(words[0])):
        threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1:])
