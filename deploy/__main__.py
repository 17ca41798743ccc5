"""The platform's commands.

python -m deploy up         bring everything up on this machine, and wait until it is healthy
python -m deploy status     each service with its process, health and URL
python -m deploy down       stop everything
python -m deploy secrets    make the secrets, for docker compose
python -m deploy compose    write docker-compose.yaml and what it mounts
"""

from __future__ import annotations

import argparse
import sys
from typing import Final

from deploy import compose, passwords, platform
from deploy.settings import ROOT, DeployError, Settings

_CANNOT: Final = 2
_INTERRUPTED: Final = 130


def main(words: list[str]) -> int:
    """Run a command; 2 where settings or this machine do not let it."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = ("up", "down", "status", "supervise", "secrets", "compose")
    parser.add_argument("command", choices=commands)
    parser.add_argument(
        "--patience", type=float, default=600.0, help="seconds that `up` waits for health"
    )
    asked = parser.parse_args(words)
    try:
        return _run(asked.command, asked.patience)
    except DeployError as error:
        print(error, file=sys.stderr)
        return _CANNOT
    except PermissionError as error:
        print(f"{error.filename} is another user's: run this as that user", file=sys.stderr)
        return _CANNOT
    except KeyboardInterrupt:
        print("\nIt goes on without you: make status shows it, make down ends it.", file=sys.stderr)
        return _INTERRUPTED


def _run(command: str, patience_s: float) -> int:
    settings = Settings.read()
    match command:
        case "up":
            return platform.up(settings, patience_s)
        case "down":
            return platform.down(settings)
        case "status":
            return platform.status(settings)
        case "supervise":
            return platform.supervise(settings)
        case "secrets":
            passwords.load(settings.folder)
            print(f"The secrets are in {settings.folder / passwords.FILE}.")
            return 0
        case _:
            (ROOT / compose.FILE).write_text(compose.rendered())
            print(f"{compose.FILE} is written.")
            return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
