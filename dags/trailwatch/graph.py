"""The stages of dvc.yaml and what each waits for, read without DVC."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

HOME = Path(os.environ.get("TRAILWATCH_HOME") or Path(__file__).parents[2])
"""The checkout: its dvc.yaml is the graph, its commit is what a run pins."""


def descriptions(path: Path = HOME / "dvc.yaml") -> dict[str, str]:
    """What each stage does, in a line."""
    return {name: stage.get("desc", "") for name, stage in _declared(path).items()}


def stages(path: Path = HOME / "dvc.yaml") -> dict[str, list[str]]:
    """Stages in the order of the file, each with the stages whose outputs it reads."""
    declared = _declared(path)
    made = {name: _outputs(stage) for name, stage in declared.items()}
    read = {name: _paths(stage.get("deps", [])) for name, stage in declared.items()}
    return {
        name: [
            other
            for other, outs in made.items()
            if other != name and any(_overlap(dep, out) for dep in read[name] for out in outs)
        ]
        for name in declared
    }


def _declared(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text(encoding="utf-8"))["stages"])


def _outputs(stage: dict[str, Any]) -> list[PurePosixPath]:
    return [path for key in ("outs", "metrics", "plots") for path in _paths(stage.get(key, []))]


def _paths(entries: list[Any]) -> list[PurePosixPath]:
    """Paths of a list; an entry with options is a mapping from its path."""
    return [PurePosixPath(next(iter(e)) if isinstance(e, dict) else e) for e in entries]


def _overlap(one: PurePosixPath, other: PurePosixPath) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)
