"""Stage register: weights -> the bundle as an MLflow model version with the alias `challenger`.

The first version of a model also becomes its `champion`, and so does one that follows a champion
which this program cannot use any more, because its features have changed. The same bundle is never
registered twice: a version is found again by the bundle's digest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from models import bundle
from models.registry import CHALLENGER as CHALLENGER
from models.registry import CHAMPION as CHAMPION
from models.registry import DIGEST_TAG, INSIDE
from models.registry import alias as alias
from models.registry import fetch as fetch
from pipelines import params, tracking
from pipelines.measures.headline import main_model
from pipelines.progress import say

if TYPE_CHECKING:
    from mlflow import MlflowClient

ROOT: Final = Path(__file__).parent.parent
_MODEL_DESCRIPTION: Final = (
    "Five kinds of anomaly in the scans of a supply chain. `champion` serves, `challenger` was "
    "trained last; the tags `promotion...` of a version say what became of it, `git_commit` and "
    "`data_hash` what it is made of."
)
_OF_A_RUN: Final = {
    "dag_id": "TRAILWATCH_DAG_ID",
    "dag_run_id": "TRAILWATCH_RUN_ID",
    "as_of": "TRAILWATCH_AS_OF",
}


def main(argv: list[str] | None = None) -> int:
    """Run the stage; see `--help`."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.register", description=__doc__)
    parser.add_argument("--weights", type=Path, default=Path("models/weights"))
    parser.add_argument("--metrics", type=Path, default=Path("metrics.json"))
    parser.add_argument("--out", type=Path, default=Path("work/bundle"))
    parser.add_argument(
        "--as-is", action="store_true", help="register the bundle that --out holds already"
    )
    asked = parser.parse_args(argv)
    if asked.out.name != Path(INSIDE).name:
        parser.error(f"--out is {asked.out}; its last folder must be called {Path(INSIDE).name}")
    model = params.load()["register"]["model"]
    if not asked.as_is:
        assemble(asked.weights, asked.out)
    register(model, asked.out, asked.metrics)
    return 0


def assemble(weights: Path, out: Path) -> str:
    """Weights, ONNX export and provenance in one sealed folder; returns its digest."""
    # Who only asks the registry need not wait for torch.
    from models import lstm, onnx, trees
    from models.stack import served

    trained = bundle.verify(weights)
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(weights, out)
    shape = lstm.Shape(**json.loads((out / "lstm.json").read_text()))
    worst = onnx.export(lstm.load(shape, out / "lstm.safetensors"), out / "lstm.onnx")
    if served(out) == "stack":
        worst = max(worst, trees.export(out / "gbm", out / "gbm.onnx"))
    provenance = {
        "weights_digest": trained,
        "git_commit": tracking.git_commit(),
        "data_hash": tracking.data_hash(),
    }
    (out / "provenance.json").write_text(json.dumps(provenance, indent=1, sort_keys=True) + "\n")
    digest = bundle.seal(out)
    say(f"register: bundle {digest[:12]}, ONNX within {worst:.1e} of what was trained")
    return digest


def register(model: str, folder: Path, metrics: Path) -> str:
    """Register a bundle; returns the version, an old one if it holds the same bundle."""
    digest = bundle.verify(folder)
    store = tracking.client()
    version = version_of(store, model, digest)
    if version is None:
        version = _kept(store, model, digest, _create(store, model, folder, digest, metrics))
        say(f"register: {model} version {version} is the challenger")
    else:
        say(f"register: {model} version {version} holds this bundle already")
        for name, value in _run_tags().items():
            if name not in store.get_model_version(model, version).tags:
                store.set_model_version_tag(model, version, name, value)
    store.set_registered_model_alias(model, CHALLENGER, version)
    reason = _vacant(store, model)
    if reason:
        store.set_registered_model_alias(model, CHAMPION, version)
        say(f"register: {model} {reason}; version {version} is the champion")
    return version


def _vacant(store: MlflowClient, model: str) -> str:
    """Why a model needs a champion; empty where it has one that this program can use."""
    found = fetch(store, model)
    if found is None:
        return "had no champion"
    try:
        bundle.verify(found[0])
    except bundle.BundleError as error:
        return f"had a champion that cannot be used any more ({error})"
    return ""


def version_of(store: MlflowClient, model: str, digest: str) -> str | None:
    """Version of a model that holds the bundle with this digest, the first one; or None."""
    found = store.search_model_versions(f"name = '{model}' and tags.{DIGEST_TAG} = '{digest}'")
    return min((str(version.version) for version in found), key=int, default=None)


def _code(aside: Path) -> list[str]:
    """The rooms that a registered model needs, without caches and weights."""
    ignored = shutil.ignore_patterns("__pycache__", "weights", ".gitignore")
    rooms = ("trail", "models", "intake")
    return [str(shutil.copytree(ROOT / room, aside / room, ignore=ignored)) for room in rooms]


def _kept(store: MlflowClient, model: str, digest: str, made: str) -> str:
    """The version to keep where somebody else has registered the same bundle meanwhile."""
    first = version_of(store, model, digest)
    if first is None or first == made:
        return made
    store.delete_model_version(model, made)
    return first


def _create(store: MlflowClient, model: str, folder: Path, digest: str, metrics: Path) -> str:
    """Log the model into its training's run and make a version with all its tags at once."""
    import mlflow

    weights = json.loads((folder / "provenance.json").read_text())["weights_digest"]
    run = tracking.run_for(store, model, "weights_digest", weights, {"stage": "register"})
    with (
        mlflow.start_run(run_id=run),
        tempfile.TemporaryDirectory() as aside,
        warnings.catch_warnings(),
    ):
        # MLflow would like type hints on `predict`, and takes them for a schema of the input.
        warnings.simplefilter("ignore", UserWarning)
        logged = mlflow.pyfunc.log_model(
            name="bundle",
            python_model=str(Path(__file__).with_name("packaged.py")),
            artifacts={"bundle": str(folder)},
            code_paths=_code(Path(aside)),
            pip_requirements=_requirements(),
        )
    # Weights that were trained elsewhere, or came from DVC's cache, have a run without figures.
    reports = metrics.with_name("reports")
    if metrics.exists() and reports.is_dir() and not tracking.is_evaluated(store, run):
        tracking.attach(store, run, json.loads(metrics.read_text()), reports)
    if not store.search_registered_models(f"name = '{model}'"):
        store.create_registered_model(model, description=_MODEL_DESCRIPTION)
    made = store.create_model_version(
        model,
        logged.model_uri,
        run_id=run,
        tags=_tags(folder, digest, metrics),
        description=_description(metrics),
        model_id=logged.model_id,  # a server takes no source of that kind without it
    )
    return str(made.version)


def _description(metrics: Path) -> str:
    """What a person reads at the top of a version."""
    if not metrics.exists():
        return ""
    found = json.loads(metrics.read_text())["map"]
    ours, theirs = found[main_model({"map": found})], found["rules"]
    return (
        f"Mean average precision {ours} on injected tampering of the test part, the rules' "
        f"{theirs}. Model card and plots are artifacts of the source run, "
        f"in `{tracking.EVALUATION}/`; decisions of the gates in `promotion/`."
    )


def _tags(folder: Path, digest: str, metrics: Path) -> dict[str, str]:
    provenance: dict[str, Any] = json.loads((folder / "provenance.json").read_text())
    lock = Path("dvc.lock")
    tags = {DIGEST_TAG: digest, **{key: str(value) for key, value in provenance.items()}}
    if lock.exists():
        tags["dvc_lock_hash"] = hashlib.sha256(lock.read_bytes()).hexdigest()
    if metrics.exists():
        found = json.loads(metrics.read_text())["map"]
        tags |= {f"map_{name}": str(found[name]) for name in ("lstm", "stack") if name in found}
    tags["params"] = hashlib.sha256((folder / "params.json").read_bytes()).hexdigest()
    return {**tags, **_run_tags()}


def _run_tags() -> dict[str, str]:
    """Which settings, and which run of a DAG, where there is one."""
    settings = Path("params.yaml")
    tags = {"params_hash": params.digest(settings)} if settings.exists() else {}
    for tag, variable in _OF_A_RUN.items():
        if os.environ.get(variable):
            tags[tag] = os.environ[variable]
    return tags


def _requirements() -> list[str]:
    """Exactly what scoring imports; MLflow would take seconds to guess too much."""
    from importlib.metadata import version

    return [f"{name}=={version(name)}" for name in ("numpy", "pyarrow", "onnxruntime", "pandas")]


if __name__ == "__main__":
    sys.exit(main())
