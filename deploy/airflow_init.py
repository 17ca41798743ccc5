"""What Airflow needs before it starts: its users' passwords in a file, its tables in order.

Runs in Airflow's environment, so with the standard library alone; ends as `airflow db migrate`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Final

USERS: Final = ("admin", "bot")
"""Airflow's users; the password of each comes as `AIRFLOW_<NAME>_PASSWORD`."""


def write_passwords(path: Path) -> None:
    """Write the file that Airflow's simple auth manager reads.

    Raises:
        KeyError: a password is not in the environment.
    """
    passwords = {user: os.environ[f"AIRFLOW_{user.upper()}_PASSWORD"] for user in USERS}
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(json.dumps(passwords) + "\n")
    os.replace(fresh, path)


def main() -> None:
    """Prepare, and become `airflow db migrate`."""
    write_passwords(Path(os.environ["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"]))
    airflow = Path(sys.executable).parent / "airflow"
    os.execv(airflow, [str(airflow), "db", "migrate"])


if __name__ == "__main__":
    main()
