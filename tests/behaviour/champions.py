"""Champions for tests: trained once by the real commands, in a copy of the project.

The copy keeps the checkout's data, weights and registry out of the tests' way, and the tests out
of theirs. Normal runs train on smaller worlds; `TRAILWATCH_FULL=1` trains what a user gets.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data" / "installation"
FULL = bool(os.environ.get("TRAILWATCH_FULL"))
ROOMS = ("trail", "world", "models", "intake", "logbook", "monitoring", "pipelines")


@dataclass(frozen=True)
class Champion:
    """A project folder in which a model was trained and registered."""

    home: Path
    model: str

    def command(self, module: str, *words: object, ok: bool = True) -> subprocess.CompletedProcess:
        """Run `python -m module` there."""
        done = subprocess.run(
            [sys.executable, "-m", module, *map(str, words)],
            cwd=self.home,
            env=environment(self.home),
            capture_output=True,
            text=True,
        )
        if ok:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    def score(self, file: Path, out: Path, *words: object) -> str:
        """Score a file; returns what was printed."""
        name = () if self.model == "trailwatch" else ("--model", self.model)
        return self.command("pipelines.score", "--file", file, "--out", out, *name, *words).stdout


def environment(home: Path) -> dict[str, str]:
    """The environment of a project folder: its own MLflow store, nothing from outside."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_TRACKING", "PYTEST_"))}
    return {
        **kept,
        "TRAILWATCH_HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(home),
        "DVC_NO_ANALYTICS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "GX_ANALYTICS_ENABLED": "false",
    }


def project(home: Path) -> Path:
    """A copy of the project's code, with a DVC of its own and no data."""
    home.mkdir(parents=True)
    for room in ROOMS:
        shutil.copytree(
            ROOT / room,
            home / room,
            ignore=shutil.ignore_patterns("__pycache__", "weights", ".gitignore"),
        )
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, home / name)
    # Tests run side by side: threads that wait for each other would only stand in the way. What
    # thresholds of drift are worth is tested with the monitor.
    set_params(home, train__gbm__threads=1, train__drift__replicates=20)
    subprocess.run(
        [sys.executable, "-m", "dvc", "init", "--quiet", "--no-scm"], cwd=home, check=True
    )
    return home


def set_params(home: Path, **changes: object) -> None:
    """Change entries of params.yaml, named like `train__epochs`."""
    path = home / "params.yaml"
    values = yaml.safe_load(path.read_text())
    for name, value in changes.items():
        *sections, key = name.split("__")
        place = values
        for section in sections:
            place = place[section]
        place[key] = value
    path.write_text(yaml.safe_dump(values, sort_keys=False))


def trained(home: Path) -> Champion:
    """The default model, trained by the command that `make run` calls."""
    project(home)
    if not FULL:
        world = ["--seed", "7", "--profile", "hard", "--scans", "200000"]
        subprocess.run(
            [sys.executable, "-m", "world", "--out", "data", *world],
            cwd=home,
            env=environment(home),
            check=True,
            capture_output=True,
        )
        set_params(home, train__epochs=8, train__gbm__trees=60)
        set_params(home, evaluate__bootstrap=300, evaluate__explained=10)
    champion = Champion(home, "trailwatch")
    champion.command("pipelines.run")
    return champion


def trained_on_korea(home: Path) -> Champion:
    """The model of a simulated world over a real installation's own sites and legs."""
    project(home)
    if not FULL:
        set_params(home, train__epochs=6, train__gbm__trees=25, label__boxed=0.2)
        set_params(home, evaluate__bootstrap=100, evaluate__explained=3)
    Champion(home, "trailwatch").command(
        "pipelines.run",
        *("--model", "korea"),
        *("--sites", SHARED / "sites.csv", "--legs", SHARED / "leg_statistics.csv"),
    )
    return Champion(home, "korea")
