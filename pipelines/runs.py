"""A run of the DAGs, task by task, without Airflow: `python -m pipelines.runs TASK --run ID`.

Every task may be killed at any moment and called again. Exit status 0: done. 99: there is nothing
to do, and the whole run is to be skipped. Anything else: failed, with the cause on the last line.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable
from datetime import date
from typing import Any, Final

from intake.errors import IntakeError
from logbook import LogError
from pipelines import publish, runspace, snapshot, stage
from pipelines.data import DataError
from pipelines.progress import say
from pipelines.runspace import Places, Run, RunError, Skip

SKIPPED: Final = 99
"""Exit status of a task that has nothing to do."""
KEEP_DAYS: Final = 7
"""How long the workspace of a run that failed is kept, for another try."""
PROMOTION: Final = "promotion.json"
_GAINS: Final = ("map", "f_beta")
_NUMBERS: Final = ("window_days", "epochs", "trials")
_DAY_S: Final = 86_400


def main(argv: list[str] | None = None) -> int:
    """Run one task; see `--help`."""
    asked = _parser().parse_args(argv)
    try:
        run = Run(asked.run, asked.dag, Places.read())
        with run.alone(asked.take_over):
            _TASKS[asked.task](run, asked)
    except Skip as reason:
        run.note(id=run.id, skipped=str(reason))
        say(f"skipped: {reason}")
        return SKIPPED
    except (RunError, DataError, IntakeError, LogError, OSError, ValueError) as error:
        say(f"{asked.task}: {' '.join(str(error).split())}")
        return 1
    except Exception as error:
        # MLflow's, SQLAlchemy's and requests' errors have no common base.
        import traceback

        traceback.print_exc()
        say(f"{asked.task}: {type(error).__name__}: {_first_line(error)}")
        return 1
    return 0


def checked(options: dict[str, Any]) -> dict[str, Any]:
    """Options of a run.

    Args:
        options: `window_days` (whole days, at least 1), `as_of` (a date), `epochs` (at least 1),
            `champion` (the version that is expected to be champion), `force` (train though
            nothing is new), `promotion` (auto, approval or never), `model` (to register under
            another name), `trials` (of a sweep, at least 1); null is as if left out.

    Raises:
        RunError: one of them cannot be used.
    """
    known = {*_NUMBERS, "as_of", "champion", "force", "promotion", "model"}
    given = {name: value for name, value in options.items() if value is not None and name in known}
    for name in _NUMBERS:
        value = given.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise RunError(f"{name} is {value!r}; give a whole number from 1")
    if given.get("promotion", "auto") not in ("auto", "approval", "never"):
        raise RunError(f"promotion is {given['promotion']!r}; give auto, approval or never")
    if "as_of" in given:
        try:
            date.fromisoformat(given["as_of"])
        except (TypeError, ValueError) as error:
            raise RunError(
                f"as_of is {given['as_of']!r}; give a date such as 2026-03-01"
            ) from error
    return given


def _prepare(run: Run, asked: argparse.Namespace) -> None:
    options = checked(json.loads(asked.options))
    _demand_champion(run, options)
    _make_ready(run, options)


def _demand_champion(run: Run, options: dict[str, Any]) -> None:
    """Skip where the champion is no longer the one that this run was asked to replace."""
    expected = options.get("champion")
    if expected is None or run.record.get("commit"):
        return
    from models.registry import CHAMPION, alias
    from pipelines import tracking

    model = run.places.model
    now = alias(tracking.client(), model, CHAMPION)
    if now != str(expected):
        raise Skip(
            f"the champion of {model} is version {now}, no longer version {expected}: what this "
            "run was asked for has been done"
        )


def _snapshot(run: Run, _asked: argparse.Namespace) -> None:
    _demand_workspace(run)
    snapshot.snapshot(run)


def _stage(run: Run, asked: argparse.Namespace) -> None:
    _demand_workspace(run)
    stage.stage(run, asked.name)


def _promote(run: Run, asked: argparse.Namespace) -> None:
    """Have the gates, or a person, decide; the last line is the outcome as JSON."""
    _demand_workspace(run)
    words = ["--model", stage.model_of(run), "--version", stage.version(run)]
    if asked.answer:
        words += [f"--{asked.answer}", "--by", asked.by, "--why", f"asked by run {run.id}"]
    else:
        mode = run.record["options"].get("promotion", "auto")
        words += ["--mode", mode, "--by", f"run {run.id}"]
    stage.execute(run, "promote", "-m", "pipelines.promote", *words)
    shutil.copyfile(run.workspace / PROMOTION, run.folder / PROMOTION)
    decided = json.loads((run.folder / PROMOTION).read_text())
    run.note(promotion=decided["outcome"])
    gains = {gate["name"]: gate["note"] for gate in decided["gates"] if gate["name"] in _GAINS}
    told = {"outcome": decided["outcome"], "version": decided["challenger"]["version"]}
    say(json.dumps({**told, "refused_by": decided["refused_by"], "gains": gains}))


def _trials(run: Run, _asked: argparse.Namespace) -> None:
    _demand_workspace(run)
    words = ["--study", f"{stage.model_of(run)}.{run.dag}.{run.name}"]
    if "trials" in run.record["options"]:
        words += ["--trials", str(run.record["options"]["trials"])]
    found = run.folder / "best.json"
    stage.execute(run, "trials", "-m", "pipelines.sweep", *words, "--out", str(found))
    best = json.loads(found.read_text())
    changes = {f"train.{name}": value for name, value in best["params"].items()}
    told = f"Take trial {best['number']}: validation mAP {best['value']:.4f}"
    runspace.change_params(run, changes, told)


def _publish(run: Run, _asked: argparse.Namespace) -> None:
    _demand_workspace(run)
    publish.publish(run)


def _clean(run: Run, _asked: argparse.Namespace) -> None:
    """Remove the workspace of a run that has ended; one that failed stays for another try."""
    record = run.record
    if record.get("published") or record.get("skipped"):
        runspace.remove(run)
        say(f"clean: {run.workspace} is gone; {run.folder / 'run.json'} stays")
    else:
        say(f"clean: {run.workspace} stays for another try, for {KEEP_DAYS} days")
    for path in sorted(run.places.runs.glob("*/*/run.json")):
        other = Run(json.loads(path.read_text())["id"], path.parts[-3], run.places)
        old = time.time() - path.stat().st_mtime > KEEP_DAYS * _DAY_S
        if old and other.folder != run.folder and other.workspace.exists():
            _forget(other)


def _forget(other: Run) -> None:
    try:
        with other.alone():
            runspace.remove(other)
            say(f"clean: {other.workspace}, of a run that never ended, is gone")
    except RunError:
        say(f"clean: {other.workspace} is in use")


def _demand_workspace(run: Run) -> None:
    if not (run.folder / "prepared").exists():
        if not run.record.get("commit"):
            raise RunError(f"run {run.id!r} has no workspace; run `prepare` first")
        _make_ready(run, {})


def _make_ready(run: Run, options: dict[str, Any]) -> None:
    """Make the workspace; where it was cleaned up, bring back how far the run had come."""
    if not runspace.prepare(run, options):
        return
    record = run.record
    if record.get("published"):
        run.git("reset", "--quiet", "--hard", record["published"])
        run.dvc("checkout", "--force")
    elif record.get("snapshot"):
        run.note(snapshot=None)
        snapshot.take(run)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines.runs", description=__doc__)
    parser.add_argument("task", choices=list(_TASKS))
    parser.add_argument("name", nargs="?", default="", help="of the stage, for `stage`")
    parser.add_argument("--run", required=True, help="id of the run")
    parser.add_argument("--dag", default="retrain", help="id of its DAG")
    parser.add_argument("--options", default="{}", help="JSON, for `prepare`")
    parser.add_argument(
        "--answer", choices=("approve", "reject"), help="of a person, for `promote`"
    )
    parser.add_argument(
        "--take-over", action="store_true", help="stop a process that works on the run already"
    )
    parser.add_argument("--by", default="somebody", help="who gave that answer")
    return parser


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


_TASKS: Final[dict[str, Callable[[Run, argparse.Namespace], None]]] = {
    "prepare": _prepare,
    "snapshot": _snapshot,
    "stage": _stage,
    "trials": _trials,
    "promote": _promote,
    "publish": _publish,
    "clean": _clean,
}

if __name__ == "__main__":
    sys.exit(main())
