"""A child process that reports in lines of JSON: read in a thread, restarted, ended with us.

The child must end when its standard input closes; so it ends even where this process is killed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

_LOG: Final = logging.getLogger("trailwatch")

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0
END_S: Final = 5.0
"""What a child gets to end by itself before it is killed."""


class Watcher:
    """Keeps one child running from `start` to `stop`."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        heard: Callable[[dict[str, Any]], None],
        ended: Callable[[str], None],
        silence_s: float = 300.0,
    ) -> None:
        """Prepare; nothing runs before `start`.

        Args:
            command: the child's command line.
            environment: its environment.
            heard: takes each line of the child, in the watcher's thread.
            ended: takes the reason whenever a child has ended by itself.
            silence_s: a child that says nothing for so long is killed, and another started.
        """
        self._command = list(command)
        self._environment = dict(environment)
        self._heard = heard
        self._ended = ended
        self._silence_s = silence_s
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    @property
    def pid(self) -> int | None:
        """Process id of the child that runs now."""
        child = self._child
        return child.pid if child is not None and child.poll() is None else None

    def start(self) -> None:
        """Start the first child."""
        self._thread.start()

    def stop(self) -> None:
        """End the child; returns when it is gone."""
        with self._lock:
            self._stopping.set()
            child = self._child
        if child is not None:
            _end(child)
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._stopping.is_set():
            began = time.monotonic()
            said = self._one_child()
            if self._stopping.is_set():
                return
            if time.monotonic() - began > LONGEST_PAUSE_S:
                pause_s = FIRST_PAUSE_S
            _LOG.warning("%s; starting it again in %.0f s", said, pause_s)
            self._ended(said)
            self._stopping.wait(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _one_child(self) -> str:
        """Run a child to its end; returns why it ended."""
        with self._lock:
            if self._stopping.is_set():
                return "stopped"
            try:
                # A session of its own: Ctrl-C is for us, and we end the child.
                child = self._child = subprocess.Popen(
                    self._command,
                    env=self._environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    start_new_session=True,
                )
            except OSError as error:
                return f"the watcher of the model registry cannot be started: {error}"
        for line in self._lines(child):
            self._take(line)
        silent = child.poll() is None
        _end(child)
        if child.stdout is not None:
            child.stdout.close()
        if silent:
            return "the watcher of the model registry fell silent"
        return f"the watcher of the model registry ended with status {child.returncode}"

    def _lines(self, child: subprocess.Popen[bytes]) -> Iterator[bytes]:
        """Lines as they come, until the child closes its output or falls silent."""
        assert child.stdout is not None
        out, rest = child.stdout.fileno(), b""
        while select.select([out], [], [], self._silence_s)[0]:
            more = os.read(out, 1 << 16)
            if not more:
                _wait(child)
                return
            *lines, rest = (rest + more).split(b"\n")
            yield from lines

    def _take(self, line: bytes) -> None:
        try:
            said = json.loads(line)
            self._heard(said)
        except Exception:  # the next line may be better; without this thread there is none
            _LOG.exception("a line of the watcher cannot be used: %r", line[:200])


def _end(child: subprocess.Popen[bytes]) -> None:
    """Close the child's input, wait, and kill it if that was not enough."""
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        child.stdin.close()
    if not _wait(child):
        child.kill()
        child.wait()


def _wait(child: subprocess.Popen[bytes]) -> bool:
    try:
        child.wait(timeout=END_S)
    except subprocess.TimeoutExpired:
        return False
    return True
