"""The default data: made by `world`, pinned by data.dvc; `make data` confirms the hash."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from pipelines.progress import say

DATA: Final = Path("data")
PIN: Final = Path("data.dvc")
WORLD: Final = ("--seed", "7", "--profile", "hard", "--scans", "600000")
"""Options of `python -m world` that make the default data."""


class DataError(ValueError):
    """The data is not what it should be."""


def main() -> int:
    """Make the default data anew and confirm its hash; returns an exit status."""
    try:
        make(DATA)
        confirm()
    except (DataError, subprocess.CalledProcessError) as error:
        print(f"data: {error}", file=sys.stderr)
        return 1
    return 0


def make(folder: Path) -> None:
    """Write the default world into a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "world", "--out", str(folder), *WORLD], check=True)


def confirm() -> None:
    """Have DVC compare `data/` with its pin; without a pin, set it.

    Raises:
        DataError: the hash differs.
    """
    if not PIN.exists():
        dvc("add", "--quiet", str(DATA))
        say(f"data: pinned by {PIN}")
        return
    status = json.loads(dvc("status", "--json", str(PIN)) or "{}")
    if status and not ("not in cache" in json.dumps(status) and _cached()):
        raise DataError(
            f"{DATA}/ is not what {PIN} pins: {json.dumps(status)}. To go back to the default "
            f"data: make data. To keep what is there: dvc add {DATA}"
        )
    say(f"data: {DATA}/ is what {PIN} pins")


def _cached() -> bool:
    """Have DVC keep data that was made here and not fetched; false where its hash is another.

    Before that, DVC calls it "not in cache", whether it is what is pinned or not.
    """
    pinned = PIN.read_text(encoding="utf-8")
    dvc("add", "--quiet", str(DATA))
    if PIN.read_text(encoding="utf-8") == pinned:
        return True
    PIN.write_text(pinned, encoding="utf-8")
    subprocess.run(["git", "add", str(PIN)], check=True)  # DVC has staged the other one
    return False


def dvc(*words: str, cwd: Path | None = None) -> str:
    """Run a DVC command; returns what it printed.

    Raises:
        DataError: it failed; the message is DVC's.
    """
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *words], cwd=cwd, capture_output=True, text=True
    )
    if done.returncode:
        raise DataError(f"dvc {' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
