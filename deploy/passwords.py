"""The platform's secrets: made once, kept in a file that only its owner may read."""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from deploy.settings import DeployError

FILE: Final = "secrets.env"
_HEADER: Final = "# Secrets of the platform, made by `python -m deploy`. Keep them from others.\n"


def _token() -> str:
    # Safe in a URL and in an env file.
    return secrets.token_urlsafe(24)


def _fernet_key() -> str:
    return base64.urlsafe_b64encode(os.urandom(32)).decode()


def _api_key() -> str:
    return f"tw_{secrets.token_urlsafe(32)}"


MADE: Final[Mapping[str, Callable[[], str]]] = {
    "AIRFLOW_ADMIN_PASSWORD": _token,
    "AIRFLOW_BOT_PASSWORD": _token,
    "AIRFLOW_API_SECRET": _token,
    "AIRFLOW_JWT_SECRET": _token,
    "AIRFLOW_FERNET_KEY": _fernet_key,
    "POSTGRES_PASSWORD": _token,
    "REDIS_PASSWORD": _token,
    "GRAFANA_ADMIN_PASSWORD": _token,
    "TRAILWATCH_API_KEY": _api_key,
}
"""What the file holds, and how each is made."""


def load(folder: Path) -> dict[str, str]:
    """The secrets in a folder's file; made, or completed, where they are lacking.

    Beside those of `MADE` there is `TRAILWATCH_API_KEY_ENTRY`: the entry for serving's
    `TRAILWATCH_API_KEYS`, with a hash of the key.

    Raises:
        DeployError: the file cannot be read, or others may read it.
    """
    path = folder / FILE
    found = _read(path)
    lacking = {name: make() for name, make in MADE.items() if not found.get(name)}
    if lacking or "TRAILWATCH_API_KEY_ENTRY" not in found:
        found = {**found, **lacking}
        digest = hashlib.sha256(found["TRAILWATCH_API_KEY"].encode()).hexdigest()
        scopes = "score+read+feedback+admin"
        found["TRAILWATCH_API_KEY_ENTRY"] = f"platform:{scopes}:{digest}"
        write(path, found)
    return found


def _read(path: Path) -> dict[str, str]:
    try:
        if path.stat().st_mode & 0o077:
            raise DeployError(f"others may read {path}; close it: chmod 600 {path}")
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DeployError(f"{path} cannot be read: {error.strerror}") from error
    pairs = (line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    return {name.strip(): value.strip() for name, value in pairs}


def write(path: Path, values: Mapping[str, str]) -> None:
    """Write variables into a file for its owner alone; a shell can read it, and compose too."""
    lines = [f"{name}={shlex.quote(value)}\n" for name, value in values.items()]
    write_text(path, _HEADER + "".join(lines))


def write_text(path: Path, text: str) -> None:
    """Write a file for its owner alone, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
