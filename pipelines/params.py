"""params.yaml: everything that changes a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml


def load(path: Path = Path("params.yaml")) -> dict[str, Any]:
    """The parameters of all stages, by stage.

    Raises:
        FileNotFoundError: there is no such file where the command runs.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; run the stages at the root of the project")
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    return dict(found)


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))
