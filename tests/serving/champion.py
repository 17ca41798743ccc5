"""A small champion for tests of the service, trained by the real command, once a checkout.

Test processes share it: the first takes a lock and trains, the others wait. It is kept under the
hash of all code that it depends on.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from tests.behaviour.champions import ROOT, Champion, environment, project, set_params

KEPT = ROOT / ".test-champion"


def small_champion() -> Champion:
    """A project folder whose `mlflow.db` has a champion; `work/bundle` is its bundle.

    Treat it as read-only; copy what you change.
    """
    KEPT.mkdir(exist_ok=True)
    home = KEPT / _code_hash()
    with (KEPT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "done").exists():
            for old in KEPT.iterdir():
                if old.is_dir():
                    shutil.rmtree(old)
            _train(home)
            (home / "done").touch()
    return Champion(home, "trailwatch")


def _train(home: Path) -> None:
    project(home)
    subprocess.run(
        [sys.executable, "-m", "world", "--out", "data", "--seed", "5", "--scans", "60000"],
        cwd=home,
        env=environment(home),
        check=True,
        capture_output=True,
    )
    set_params(
        home,
        train__hidden=32,
        train__epochs=6,
        train__gbm__trees=20,
        train__svm__scans=4000,
        train__svm__components=60,
        evaluate__bootstrap=50,
        evaluate__explained=3,
    )
    Champion(home, "trailwatch").command("pipelines.run")


def _code_hash() -> str:
    """Hash of what the stages depend on, as `dvc.yaml` names it."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    named = {ROOT / name for stage in stages for name in stage["deps"]}
    files = {path for place in named if place.suffix == ".py" for path in [place]}
    files |= {path for place in named if place.is_dir() for path in place.rglob("*.py")}
    total = hashlib.sha256()
    for path in [*sorted(files), ROOT / "dvc.yaml", ROOT / "params.yaml", Path(__file__)]:
        total.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:16]
