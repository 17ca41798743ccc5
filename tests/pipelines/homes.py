"""A home for runs of the DAGs: a git repository with DVC, code, a small world, nothing trained."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from pipelines import params
from tests.behaviour.champions import ROOT

CODE = ("trail", "world", "models", "intake", "logbook", "pipelines", "monitoring", "dags")
FILES = ("dvc.yaml", "params.yaml", ".dvcignore", ".gitignore", "reports/.gitignore")
SMALL = {
    "train.hidden": 16,
    "train.epochs": 2,
    "train.gbm.trees": 10,
    "train.drift.replicates": 20,
    "train.gbm.threads": 1,
    "train.svm.scans": 1000,
    "train.svm.components": 20,
    "evaluate.bootstrap": 20,
    "evaluate.explained": 2,
}


@dataclass(frozen=True)
class Home:
    """A project folder, and how its commands are called."""

    folder: Path
    more: dict[str, str] = field(default_factory=dict)

    def environment(self, **more: str) -> dict[str, str]:
        """Nothing from outside but what every process needs."""
        kept = {k: os.environ[k] for k in ("HOME", "LANG", "TMPDIR", "USER") if k in os.environ}
        return {
            **kept,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "TRAILWATCH_HOME": str(self.folder),
            "DVC_NO_ANALYTICS": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "GX_ANALYTICS_ENABLED": "false",
            **self.more,
            **more,
        }

    def start(self, *words: str, at: Path | None = None, **more: str) -> subprocess.Popen[str]:
        """Start this Python on a module, in a session of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=at or self.folder,
            env=self.environment(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def task(self, run: str, *words: str, status: int = 0, **more: str) -> str:
        """A task of a run; returns the last line."""
        process = self.start("pipelines.runs", *words, "--run", run, **more)
        try:
            said, _ = process.communicate(timeout=600)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == status, f"{words}: {said}"
        return (said.strip().splitlines() or [""])[-1]

    def workspace(self, run: str) -> Path:
        """Where a run works."""
        return self.folder / "state" / "runs" / "retrain" / run / "workspace"

    def git(self, *words: str, at: Path | None = None) -> str:
        """A git command."""
        git = ["git", "-c", "user.name=Ann", "-c", "user.email=ann@localhost"]
        done = subprocess.run(
            [*git, *words], cwd=at or self.folder, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()


def make(folder: Path, scans: int = 40_000) -> Home:
    """A home with one commit, in which the data are pinned."""
    for room in CODE:
        shutil.copytree(
            ROOT / room,
            folder / room,
            ignore=shutil.ignore_patterns("__pycache__", "weights", "bundles"),
        )
    for name in FILES:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    params.change(folder / "params.yaml", SMALL)
    home = Home(folder)
    home.git("init", "--quiet", "--initial-branch", "main")
    for words in (
        ("dvc", "init", "--quiet"),
        ("world", "--out", "data", "--seed", "5", "--scans", str(scans)),
        ("dvc", "config", "core.autostage", "true"),
        ("dvc", "add", "--quiet", "data"),
    ):
        process = home.start(*words)
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    home.git("add", "--all")
    home.git("commit", "--quiet", "--message", "Begin")
    return home
