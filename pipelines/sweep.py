"""A search over the network's shape and training, with Optuna: one network a trial.

Trials train on the training part and are measured on the validation part, never on the test part.
They are kept in a database, so that a killed search goes on: what was running then is marked as
failed and tried again. `python -m pipelines.sweep --study NAME --trials N`
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.trial import TrialState

from pipelines import params
from pipelines.parts import Part, load_part
from pipelines.progress import say

TRIALS: Final = 20
LENGTHS: Final = (5, 10, 15, 20)
HIDDEN: Final = (32, 64, 96, 128)
LOSSES: Final = ("bce", "focal")
FAILURES: Final = 3
"""Failed trials in a row after which something is wrong with all of them."""
VARIABLE: Final = "TRAILWATCH_SWEEPS"


class SweepError(RuntimeError):
    """The search cannot go on; says why."""


def main(argv: list[str] | None = None) -> int:
    """Run the search; see `--help`."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.sweep", description=__doc__)
    parser.add_argument("--study", required=True, help="its name; the same name goes on")
    parser.add_argument("--trials", type=int, default=TRIALS, help="how many, in all")
    parser.add_argument("--storage", default="", help=f"URL of the database; {VARIABLE}")
    parser.add_argument("--sequences", type=Path, default=Path("work/sequences"))
    parser.add_argument("--checkpoints", type=Path, default=Path("work/checkpoints/sweep"))
    parser.add_argument("--out", type=Path, help="file for the best trial")
    asked = parser.parse_args(argv)
    try:
        best = sweep(asked)
    except (SweepError, FileNotFoundError, ValueError) as error:
        print(f"sweep: {error}", file=sys.stderr)
        return 1
    if asked.out is not None:
        asked.out.write_text(json.dumps(best, indent=1, sort_keys=True) + "\n")
    say(f"sweep: trial {best['number']} is best, validation mAP {best['value']:.4f}")
    say(f"sweep: {json.dumps(best['params'], sort_keys=True)}")
    return 0


def sweep(asked: argparse.Namespace) -> dict[str, Any]:
    """Bring a study to its number of trials; returns the best one.

    Raises:
        SweepError: no trial was finished, or the last ones all failed.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    settings = params.load()["train"]
    study = opened(asked.study, asked.storage or default_storage(), int(settings["seed"]))
    again = reconcile(study)
    if again:
        say(f"sweep: {again} trials were running when the search was killed; they are tried again")
    learned, held = load_part(asked.sequences, "train"), load_part(asked.sequences, "validation")
    while (left := asked.trials - finished(study)) > 0:
        _demand_progress(study)
        trial = study.ask()
        say(f"sweep: trial {trial.number}, {left} left")
        try:
            value = score(trial, learned, held, settings, asked.checkpoints)
        except optuna.TrialPruned:
            study.tell(trial, state=TrialState.PRUNED)
        except (RuntimeError, ValueError, MemoryError) as error:
            trial.set_user_attr("error", str(error))
            study.tell(trial, state=TrialState.FAIL)
            say(f"sweep: trial {trial.number} failed: {error}")
        else:
            study.tell(trial, value)
            say(f"sweep: trial {trial.number}: {value:.4f} with {json.dumps(trial.params)}")
    try:
        best = study.best_trial
    except ValueError as error:
        raise SweepError(f"study {asked.study!r} has no finished trial; give more") from error
    return {"study": asked.study, "number": best.number, "value": best.value, "params": best.params}


def suggested(trial: optuna.trial.BaseTrial) -> dict[str, Any]:
    """Entries of section `train` that a trial tries."""
    return {
        "length": trial.suggest_categorical("length", LENGTHS),
        "hidden": trial.suggest_categorical("hidden", HIDDEN),
        "dropout": trial.suggest_float("dropout", 0.0, 0.5, step=0.05),
        "loss": trial.suggest_categorical("loss", LOSSES),
        "learning_rate": trial.suggest_float("learning_rate", 3e-4, 1e-2, log=True),
    }


def score(
    trial: optuna.Trial, learned: Part, held: Part, settings: Mapping[str, Any], checkpoints: Path
) -> float:
    """Validation mAP of a network with a trial's parameters; falls behind, and is pruned."""
    from pipelines import fitting

    chosen = {**settings, **suggested(trial)}
    place = checkpoints / trial.study.study_name / str(trial.number)

    def report(epoch: int, figures: Mapping[str, float]) -> None:
        trial.report(figures["validation_map"], epoch)
        if trial.should_prune():
            raise optuna.TrialPruned

    try:
        return float(fitting.fit(learned, held, chosen, place, report).state.best)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def opened(name: str, storage: str, seed: int) -> optuna.Study:
    """A study in a database, made where it does not exist."""
    if storage.startswith("sqlite:///"):
        Path(storage.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return optuna.create_study(
        study_name=name,
        storage=storage,
        direction="maximize",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=3),
    )


def reconcile(study: optuna.Study) -> int:
    """Fail the trials that a killed search left running, and queue their parameters again.

    Only one process works on a study at a time, so whatever runs when one begins is dead.

    Returns:
        How many there were.
    """
    stale = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    queued = {trial.user_attrs.get("repeats") for trial in waiting}
    for trial in stale:
        if trial.params and trial.number not in queued:
            study.enqueue_trial(trial.params, user_attrs={"repeats": trial.number})
        study.tell(trial.number, state=TrialState.FAIL)
    return len(stale)


def finished(study: optuna.Study) -> int:
    """Trials that have a result, or were pruned."""
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    return len(study.get_trials(deepcopy=False, states=states))


def default_storage() -> str:
    """`TRAILWATCH_SWEEPS`, else the prediction log's database where that is PostgreSQL, else a
    SQLite file in the home.
    """
    named = os.environ.get(VARIABLE, "").strip()
    for url in (named, os.environ.get("TRAILWATCH_LOG", "").strip()):
        for prefix in ("postgresql://", "postgres://"):
            if url.startswith(prefix):
                return f"postgresql+psycopg://{url.removeprefix(prefix)}"
    home = Path(os.environ.get("TRAILWATCH_HOME", ".")).resolve()
    return named or f"sqlite:///{home / 'state' / 'sweeps.db'}"


def _demand_progress(study: optuna.Study) -> None:
    done = [t for t in study.get_trials(deepcopy=False) if t.state.is_finished()][-FAILURES:]
    errors = [t.user_attrs["error"] for t in done if "error" in t.user_attrs]
    if len(errors) == FAILURES:
        raise SweepError(f"the last {FAILURES} trials failed, the last one with: {errors[-1]}")


if __name__ == "__main__":
    sys.exit(main())
