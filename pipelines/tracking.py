"""MLflow: where runs and models are kept, and which run belongs to which weights.

A run is found again by what it trained (`training_key`) or by what came out (`weights_digest`),
never by an id in a file: so stages stay reproducible and a killed one continues its own run.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from models.registry import client as client
from models.registry import home as home
from models.registry import tracking_uri as tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_ARTIFACTS: Final = "mlartifacts"
EVALUATION: Final = "evaluation"
"""Folder of a run's artifacts with its plots and its model card."""
HEADLINE: Final = (
    "map",
    "map_natural",
    "ap",
    "recall_at_fpr1",
    "specificity",
    "f1",
    "accuracy",
    "fpr_upper95",
    "vs_rules",
)
"""Sections of metrics.json that a run carries as metrics; the rest is in the attached card."""


def experiment(name: str, store: MlflowClient) -> str:
    """Id of the experiment of a model, created where it does not exist."""
    found = store.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    local = tracking_uri().startswith("sqlite:")
    where = (home() / DEFAULT_ARTIFACTS / name).as_uri() if local else None
    return str(store.create_experiment(name, artifact_location=where))


def find_run(store: MlflowClient, name: str, tag: str, value: str) -> str | None:
    """Id of the latest run of a model with this tag, or None."""
    runs = store.search_runs(
        [experiment(name, store)],
        f"tags.{tag} = '{value}'",
        max_results=1,
        order_by=["start_time DESC"],
    )
    return str(runs[0].info.run_id) if runs else None


def run_for(store: MlflowClient, name: str, tag: str, value: str, tags: Mapping[str, str]) -> str:
    """Id of the run with this tag, made where there is none."""
    found = find_run(store, name, tag, value)
    if found is not None:
        store.update_run(found, status="RUNNING")
        return found
    run = store.create_run(
        experiment(name, store), tags={**tags, tag: value}, run_name=_run_name(tags, value)
    )
    return str(run.info.run_id)


def _run_name(tags: Mapping[str, str], value: str) -> str:
    """What a person reads in a list of runs: the DAG's run, or the stage and what it worked on."""
    asked_by = (os.environ.get("TRAILWATCH_DAG_ID"), os.environ.get("TRAILWATCH_RUN_ID"))
    return " ".join(filter(None, asked_by)) or f"{tags.get('stage', 'run')} {value[:12]}"


def log_evaluation(weights: Path, metrics: Mapping[str, Any], reports: Path) -> None:
    """Attach an evaluation to the run that trained these weights; see `attach`.

    Args:
        weights: the weights folder; its digest names the run.
        metrics: the tree of metrics.json.
        reports: folder with `plots/` and `model_card.md`.
    """
    from models import bundle
    from pipelines import params

    store, digest = client(), bundle.verify(weights)
    name = params.load()["register"]["model"]
    run = run_for(store, name, "weights_digest", digest, {"stage": "evaluate"})
    attach(store, run, metrics, reports)
    store.set_terminated(run)


def attach(store: MlflowClient, run: str, metrics: Mapping[str, Any], reports: Path) -> None:
    """Give a run the headline figures of an evaluation, its plots and its card."""
    import time

    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    headline = {key: metrics[key] for key in HEADLINE if isinstance(metrics.get(key), Mapping)}
    figures = {k: v for k, v in flat(headline).items() if isinstance(v, int | float)}
    items = [Metric(key, float(value), now, 0) for key, value in figures.items()]
    store.log_batch(run, metrics=items)
    store.log_artifacts(run, str(reports), EVALUATION)


def is_evaluated(store: MlflowClient, run: str) -> bool:
    """Whether an evaluation is attached to a run."""
    return any(item.path == EVALUATION for item in store.list_artifacts(run))


def git_commit() -> str:
    """Commit of the checkout, with "+changes" if tracked files differ; "none" outside git."""
    try:
        commit = _git("rev-parse", "HEAD")
        # What the stages themselves write does not make the code another.
        written = (":!dvc.lock", ":!metrics.json")
        dirty = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *written)
    except (OSError, subprocess.CalledProcessError):
        return "none"
    return f"{commit}+changes" if dirty else commit


def data_hash(path: Path = Path("data.dvc")) -> str:
    """Hash of `data/` as its .dvc file pins it; "none" where there is no such file."""
    import yaml

    if not path.exists():
        return "none"
    return str(yaml.safe_load(path.read_text())["outs"][0].get("md5", "none"))


def environment() -> dict[str, str]:
    """Versions and machine that a run records."""
    import platform
    from importlib.metadata import version

    packages = ("numpy", "torch", "lightgbm", "scikit-learn", "pyarrow", "mlflow", "dvc")
    found = {f"env.{name}": version(name) for name in packages}
    return {**found, "env.python": platform.python_version(), "env.machine": platform.machine()}


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves of a tree with dotted names."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            leaves.update(flat(value, f"{name}."))
        else:
            leaves[name] = value
    return leaves


def _git(*words: str) -> str:
    # A run of the DAG works in a clone of its own, which may differ from the home.
    place = Path.cwd() if Path(".git").exists() else home()
    done = subprocess.run(
        ["git", "-C", str(place), *words], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()
