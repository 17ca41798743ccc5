"""`params.yaml`: what changes a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class ParamsError(KeyError):
    """The file or a key is missing; the message names it and the remedy."""

    def __str__(self) -> str:
        return str(self.args[0])


class Params(dict[str, Any]):
    """A section; a key that it lacks is an error that names the key and the file."""

    def __init__(self, values: dict[str, Any], where: str, file: str) -> None:
        """Wrap `values`, which stand at the key `where` of `file`."""
        super().__init__()
        self._where, self._file = where, file
        for name, value in values.items():
            inner = f"{where}{name}."
            self[name] = Params(value, inner, file) if isinstance(value, dict) else value

    def __missing__(self, key: str) -> Any:
        raise ParamsError(f"{self._file} has no key {self._where}{key}; add it")


def load(path: str | Path = "params.yaml") -> dict[str, Any]:
    """Read the parameters.

    Raises:
        ParamsError: the file is missing, or is no mapping; later, a key asked for is missing.
    """
    import yaml

    file = Path(path)
    if not file.is_file():
        raise ParamsError(f"{str(path)!r} does not exist; run from the folder that has it")
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ParamsError(f"{str(path)!r} holds no sections; write keys such as validate:")
    return Params(values, "", str(path))


def change(path: Path, changes: Mapping[str, Any]) -> None:
    """Change entries of the file, named like `train.epochs`; comments stay.

    A file that says the same afterwards is left as it is, byte for byte.
    """
    from ruamel.yaml import YAML

    editor = YAML()
    editor.preserve_quotes = True
    editor.width = 200
    values = editor.load(path)
    before = json.dumps(values, sort_keys=True, default=str)
    for name, value in changes.items():
        *sections, key = name.split(".")
        place = values
        for section in sections:
            place = place[section]
        place[key] = value
    if json.dumps(values, sort_keys=True, default=str) != before:
        with path.open("w", encoding="utf-8") as file:
            editor.dump(values, file)


def digest(path: str | Path = "params.yaml") -> str:
    """Hash of what the parameters say, whatever their order and comments.

    Raises:
        ParamsError: the file is missing, or is no mapping.
    """
    return hashlib.sha256(json.dumps(load(path), sort_keys=True).encode()).hexdigest()
