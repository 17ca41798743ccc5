"""Processes that promote versions of a bare model at one moment, and die where they are told to.

A version is a number without a bundle: what is tried is who moves the alias, not who judges.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models import registry

ROOT = Path(__file__).parents[2]
MODEL = "bare"
VERSIONS = 4

FORKS = """
import json, os, signal, sys
import mlflow.store.model_registry.sqlalchemy_store, mlflow.store.tracking.sqlalchemy_store
from models import registry
from pipelines.promotion import moves, published
from pipelines.promotion.ledger import Kind, Ledger

def promote(tracking, ledger, target, dies, ready, go):
    os.environ["MLFLOW_TRACKING_URI"] = tracking
    store, ledger = registry.client(), Ledger(ledger)
    moving, publish = registry.move_champion, lambda entry: published.publish(store, entry)

    def killed(*words):
        if dies == "after the alias":
            moving(*words)
        os.kill(os.getpid(), signal.SIGKILL)

    if dies:
        registry.move_champion = killed
    os.write(ready, b"r")
    os.read(go, 1)
    moves.move(ledger, store, "MODEL", Kind.PROMOTE, expected="1", target=target, who="me", why="",
        publish=publish)

for line in sys.stdin:
    tracking, ledger, jobs = json.loads(line)
    (ready, is_ready), (go, goes) = os.pipe(), os.pipe()
    children = []
    for target, dies in jobs:
        hear, say = os.pipe()
        child = os.fork()
        if not child:
            os.close(goes)
            try:
                promote(tracking, ledger, target, dies, is_ready, go)
                os._exit(0)
            except BaseException as error:
                os.write(say, f"{type(error).__name__}: {error}".encode())
                os._exit(1)
        os.close(say)
        children.append((child, hear))
    for _ in children:
        os.read(ready, 1)
    os.close(goes)
    ends = []
    for child, hear in children:
        said = os.read(hear, 10_000).decode()
        ends.append((os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said))
    print(json.dumps(ends), flush=True)
""".replace("MODEL", MODEL)


class Forks:
    """Processes that promote versions against version 1; a process imports MLflow for all."""

    def __init__(self) -> None:
        self._parent = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", FORKS],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, tracking: str, ledger: str, *jobs: tuple[str, str]) -> list[tuple[int, str]]:
        """Let (version, where to die) go at once; their statuses and last words.

        Args:
            tracking: MLflow's tracking URI.
            ledger: the ledger's URL.
            jobs: what each process is to do.
        """
        assert self._parent.stdin is not None and self._parent.stdout is not None
        self._parent.stdin.write(json.dumps([tracking, ledger, jobs]) + "\n")
        self._parent.stdin.flush()
        return [(status, said) for status, said in json.loads(self._parent.stdout.readline())]

    def end(self) -> None:
        self._parent.kill()
        self._parent.communicate()


@contextmanager
def forking() -> Iterator[Forks]:
    """Such processes, ended afterwards."""
    running = Forks()
    try:
        yield running
    finally:
        running.end()


def register_bare() -> None:
    """A model of four versions in the store that this process asks, the first one champion."""
    store = registry.client()
    store.create_registered_model(MODEL)
    for _ in range(VERSIONS):
        store.create_model_version(MODEL, "s3://nowhere/bare")
    store.set_registered_model_alias(MODEL, registry.CHAMPION, "1")
