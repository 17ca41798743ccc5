"""The main job: data, every stage that has changed, a registered model, and a summary.

`make run` is the default world in the checkout itself. With DATA, SITES, LEGS, REGISTRY or MODEL
it works in `workspaces/<model>/` and leaves the default run alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from pipelines import data, params, workspace
from pipelines.data import DataError
from pipelines.progress import say

ROOT: Final = Path(__file__).parent.parent
DEFAULT_MODEL: Final = "trailwatch"


def main(argv: list[str] | None = None) -> int:
    """Run the command; see `--help`."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.run", description=__doc__)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="name to register under")
    for name, what in (
        ("data", "your scans: a CSV, TSV or Parquet file, or a folder of them"),
        ("sites", "your site master"),
        ("legs", "leg statistics of your network"),
        ("registry", "your genuine companies and products"),
    ):
        parser.add_argument(f"--{name}", type=Path, help=what)
    asked = parser.parse_args(argv)
    given = workspace.Sources(asked.model, asked.data, asked.sites, asked.legs, asked.registry)
    try:
        run(given)
    except DataError as error:
        print(f"run: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"run: {' '.join(map(str, error.cmd[2:]))} failed; see above", file=sys.stderr)
        return 1
    return 0


def run(given: workspace.Sources) -> None:
    """Bring everything up to date and sum up."""
    began = time.monotonic()
    os.environ.setdefault("TRAILWATCH_HOME", str(ROOT))
    if given == workspace.Sources(DEFAULT_MODEL):
        folder = Path.cwd()
        if not data.DATA.exists():
            data.make(data.DATA)
        data.confirm()
    else:
        folder = workspace.prepare(ROOT, given.checked())
        os.chdir(folder)
    reproduce()
    if _unregistered():
        reproduce("--force", "--single-item", "register")
    say(summary(folder, time.monotonic() - began))


def reproduce(*options: str) -> None:
    """`dvc repro`, showing what it prints."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run([sys.executable, "-m", "dvc", "repro", *options], check=True, env=environment)


def _unregistered() -> bool:
    """Whether the registry lacks the bundle that the stages say is registered."""
    # MLflow's client takes seconds to import; its SQLite file answers the same at once.
    from pipelines import register, tracking

    digest = json.loads(Path("work/bundle/digest.json").read_text())["sha256"]
    name = params.load()["register"]["model"]
    return register.version_of(tracking.client(), name, digest) is None


def summary(folder: Path, took_s: float) -> str:
    """The table a person wants, and where to look next."""
    from pipelines import register, tracking
    from pipelines.measures.summary import summary as table

    name = params.load()["register"]["model"]
    store = tracking.client()
    versions = {
        alias: register.alias(store, name, alias)
        for alias in (register.CHAMPION, register.CHALLENGER)
    }
    option = "" if name == DEFAULT_MODEL else f" MODEL={name}"
    shown_uri = _shown_uri(tracking.tracking_uri())
    place = folder.relative_to(ROOT) if folder != ROOT else Path(".")
    lines = [
        table(json.loads(Path("metrics.json").read_text())),
        "",
        f"model        {name}: champion is version {versions['champion']}, challenger version "
        f"{versions['challenger']}",
        f"model card   {place / 'reports/model_card.md'}",
        f"plots        {place / 'reports/plots'}",
        f"data docs    {place / 'work/data_docs/index.html'}",
        f"MLflow UI    .venv/bin/mlflow ui --backend-store-uri {shown_uri}",
        f"next         make score FILE=your_scans.csv OUT=verdicts.csv{option}",
        f"             all up to date in {took_s:.0f} s",
    ]
    return "\n".join(lines)


def _shown_uri(uri: str) -> str:
    """The URI without a password, and relative where it is a file of this project."""
    local = f"sqlite:///{ROOT}/"
    if uri.startswith(local):
        return f"sqlite:///{uri.removeprefix(local)}"
    return uri.split("@")[-1] if "@" in uri else uri


if __name__ == "__main__":
    sys.exit(main())
