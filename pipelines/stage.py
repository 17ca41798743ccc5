"""One stage of a run: `dvc repro -s` in the run's workspace, in a fresh process.

What a stage prints is passed on as it comes. Where it fails, the cause is said once more at the
end, because that is what a scheduler shows.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import yaml

from pipelines.progress import say
from pipelines.runspace import Run, RunError

_KEPT: Final = 40
_KILLED: Final = re.compile(r"exited with -(\d+)")
_NO_CAUSE: Final = re.compile(
    r"^(ERROR: failed to (reproduce|run)|Running stage|> |Traceback|Having any troubles|\s)"
)
_LITTLE: Final = 64 * 1024 * 1024
"""Bytes; where less is left on a disk, whatever failed may have failed for that."""


def stage(run: Run, name: str) -> None:
    """Bring a stage of the run up to date.

    Raises:
        RunError: there is no such stage, or it failed; ends with the cause.
    """
    known = names(run)
    if name not in known:
        raise RunError(f"there is no stage {name!r}; dvc.yaml has {', '.join(known)}")
    said = execute(run, name, "-m", "dvc", "repro", "--single-item", name)
    if name == "register" and f"Running stage '{name}':" not in said:
        # A bundle that DVC took from its cache may be unknown to this registry, or to this run.
        execute(run, name, "-m", "pipelines.register", "--as-is")


def names(run: Run) -> list[str]:
    """The stages of the run's dvc.yaml."""
    return list(yaml.safe_load((run.workspace / "dvc.yaml").read_text())["stages"])


def version(run: Run) -> str:
    """Version of the registered model that holds the run's bundle.

    Raises:
        RunError: there is none yet.
    """
    from pipelines import register, tracking

    digest = json.loads((run.workspace / "work/bundle/digest.json").read_text())["sha256"]
    model = model_of(run)
    found = register.version_of(tracking.client(), model, digest)
    if found is None:
        raise RunError(f"{model} has no version with bundle {digest[:12]}; run stage register")
    return found


def model_of(run: Run) -> str:
    """Name under which the run registers."""
    from pipelines import params

    return str(params.load(run.workspace / "params.yaml")["register"]["model"])


def execute(run: Run, name: str, *words: str) -> list[str]:
    """Run this Python in the workspace, passing on what is printed; returns the last lines.

    Raises:
        RunError: it failed.
    """
    last: deque[str] = deque(maxlen=_KEPT)
    with subprocess.Popen(
        [sys.executable, *words],
        cwd=run.workspace,
        env={**run.environment(), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            say(line.rstrip())
            last.append(line.rstrip())
    if process.returncode:
        raise RunError(f"{name} failed: {_cause(last)}{_room(run.workspace)}")
    return list(last)


def _room(folder: Path) -> str:
    """What is left on a folder's disk, where it is little: libraries tell of it in many words."""
    left = shutil.disk_usage(folder).free
    return f"; only {left // 1024:,} kB are left on the disk of {folder}" if left < _LITTLE else ""


def _cause(lines: Iterable[str]) -> str:
    """The last line that says more than that something failed, and the signal that ended it."""
    said = [line for line in lines if line.strip()]
    telling = [line for line in said if not _NO_CAUSE.match(line)]
    cause = (telling or said or ["it said nothing"])[-1].strip()
    for line in said:
        if found := _KILLED.search(line):
            return f"it was killed by signal {found[1]}; before that: {cause}"
    return cause
