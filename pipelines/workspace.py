"""Workspaces: a copy of the pipeline for other data or another model, beside the default run.

`workspaces/<model>/` has its own params.yaml, dvc.yaml, data and work folders, and shares the DVC
cache and the MLflow store with the project. Runs in it never touch the default run.
"""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml

from pipelines.data import DataError, dvc
from pipelines.progress import say

ROOMS: Final = ("trail", "world", "models", "intake", "logbook", "monitoring", "pipelines")
FILES: Final = ("dvc.yaml", ".dvcignore")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


@dataclass(frozen=True, slots=True)
class Sources:
    """What a user gave; all but `model` may be None.

    Attributes:
        model: name to register under.
        data: scans: a file or a folder.
        sites: site master.
        legs: leg statistics; without `data`, a world is simulated over that network.
        registry: genuine companies and products.
    """

    model: str
    data: Path | None = None
    sites: Path | None = None
    legs: Path | None = None
    registry: Path | None = None

    def checked(self) -> Sources:
        """The same, with absolute paths.

        Raises:
            DataError: a file is missing, the name cannot be a folder's, or too little was given.
        """
        if not _NAME.fullmatch(self.model):
            raise DataError(
                f"MODEL is {self.model!r}; use lower-case letters, digits, - and _, at most 63"
            )
        given = {"DATA": self.data, "SITES": self.sites, "LEGS": self.legs}
        for name, path in {**given, "REGISTRY": self.registry}.items():
            if path is not None and not path.exists():
                raise DataError(f"{name} is {str(path)!r}, which does not exist; check the path")
        if self.data is None and (self.sites is None or self.legs is None):
            raise DataError(
                f"MODEL={self.model} needs something to learn from: DATA=scans (and SITES=), or "
                "SITES=sites.csv LEGS=leg_statistics.csv to simulate a world over that network"
            )
        return Sources(self.model, *(p and p.resolve() for p in self._paths()))

    def _paths(self) -> tuple[Path | None, ...]:
        return (self.data, self.sites, self.legs, self.registry)


def prepare(root: Path, sources: Sources) -> Path:
    """Make or refresh the workspace of a model; returns its folder."""
    folder = root / "workspaces" / sources.model
    folder.mkdir(parents=True, exist_ok=True)
    _copy_code(root, folder)
    settings = yaml.safe_load((root / "params.yaml").read_text())
    settings["register"]["model"] = sources.model
    _write(folder / "params.yaml", yaml.safe_dump(settings, sort_keys=False))
    if not (folder / ".dvc").exists():
        dvc("init", "--quiet", "--no-scm", cwd=folder)
    _write(folder / ".dvc" / "config", _config(root))
    _data(folder, sources)
    return folder


def _config(root: Path) -> str:
    return (
        "[core]\n    no_scm = true\n    analytics = false\n    check_update = false\n"
        f"[cache]\n    dir = {root / '.dvc' / 'cache'}\n"
    )


def _copy_code(root: Path, folder: Path) -> None:
    """Copy rooms and graph; files that are the same are left alone, so that DVC stays quick."""
    wanted = {Path(name) for name in FILES}
    for room in ROOMS:
        wanted |= {path.relative_to(root) for path in (root / room).rglob("*.py")}
    for path in wanted:
        target = folder / path
        if not target.exists() or not filecmp.cmp(root / path, target, shallow=False):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / path, target)
    for room in ROOMS:
        for path in list((folder / room).rglob("*.py")):
            if path.relative_to(folder) not in wanted:
                path.unlink()


def _write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def _data(folder: Path, sources: Sources) -> None:
    """Fill `data/` from what was given, and pin it."""
    fresh = folder / "data.new"
    shutil.rmtree(fresh, ignore_errors=True)
    if sources.data is not None:
        _copy_data(fresh, sources)
    else:
        _simulate(fresh, sources)
    data = folder / "data"
    if data.exists() and _same(fresh, data):
        shutil.rmtree(fresh)
        return
    shutil.rmtree(data, ignore_errors=True)
    os.replace(fresh, data)
    dvc("add", "--quiet", "data", cwd=folder)
    say(f"data: {data} pinned")


def _copy_data(fresh: Path, sources: Sources) -> None:
    assert sources.data is not None
    (fresh / "scans").mkdir(parents=True)
    if sources.data.is_dir():
        shutil.copytree(sources.data, fresh / "scans", dirs_exist_ok=True)
    else:
        shutil.copy2(sources.data, fresh / "scans")
    for name, path in (
        ("sites", sources.sites),
        ("registry", sources.registry),
        ("legs", sources.legs),
    ):
        if path is not None:
            shutil.copyfile(path, fresh / f"{name}{path.suffix}")


def _simulate(fresh: Path, sources: Sources) -> None:
    options = ["--profile", "installation", "--seed", "7"]
    for name, path in (
        ("sites", sources.sites),
        ("legs", sources.legs),
        ("registry", sources.registry),
    ):
        if path is not None:
            options += [f"--{name}", str(path)]
    subprocess.run([sys.executable, "-m", "world", "--out", str(fresh), *options], check=True)


def _same(one: Path, other: Path) -> bool:
    def listed(folder: Path) -> Iterator[Path]:
        return (p.relative_to(folder) for p in sorted(folder.rglob("*")) if p.is_file())

    names = list(listed(one))
    return names == list(listed(other)) and all(
        filecmp.cmp(one / name, other / name, shallow=False) for name in names
    )
