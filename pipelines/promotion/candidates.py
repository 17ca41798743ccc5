"""The versions that are compared: brought here, verified, and loaded with nothing unpickled."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from models import registry
from models.bundle import Bundle, BundleError
from pipelines.promotion.holdout import Holdout
from trail.scan import Float32

HARMLESS: Final = (".csv", ".json", ".onnx", ".safetensors", ".txt")
"""Suffixes of files that hold data only."""

_unpickling_refused = False
_watching = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version of the model.

    Attributes:
        version: number and digest as registered.
        folder: its bundle.
        bundle: the bundle, loaded; None where this program cannot use it.
        problem: why not, "" where it can.
    """

    version: registry.Version
    folder: Path | None
    bundle: Bundle | None
    problem: str = ""


def candidate(model: str, version: registry.Version, cache: Path) -> Candidate:
    """Bring a version into a cache folder, verify its digest, and load it.

    Raises:
        MlflowException, OSError: it cannot be downloaded.
    """
    try:
        folder, _ = registry.cached(model, version, cache)
    except BundleError as error:
        return Candidate(version, None, None, str(error))
    foreign = [p.name for p in folder.rglob("*") if p.is_file() and p.suffix not in HARMLESS]
    if foreign:
        return Candidate(version, folder, None, f"it holds {foreign[0]}, which may hold a pickle")
    try:
        with no_unpickling():
            return Candidate(version, folder, Bundle(folder))
    except Exception as error:  # whatever a damaged network makes its reader say
        return Candidate(version, folder, None, " ".join(str(error).split()))


@contextmanager
def no_unpickling() -> Iterator[None]:
    """Unpickling anything with a class in it raises `BundleError` meanwhile, in any thread."""
    global _unpickling_refused, _watching
    if not _watching:
        sys.addaudithook(_refuse)
        _watching = True
    _unpickling_refused = True
    try:
        yield
    finally:
        _unpickling_refused = False


def _refuse(event: str, details: tuple[Any, ...]) -> None:
    if event == "pickle.find_class" and _unpickling_refused:
        raise BundleError(f"loading it unpickles {'.'.join(map(str, details))}")


_PREDICT = """
import sys
import mlflow, numpy, pyarrow, pyarrow.parquet
root, scans, out = sys.argv[1:]
model = mlflow.pyfunc.load_model(root)
table = pyarrow.parquet.read_table(scans)
names = ("epc_code", "location_id", "event_type")
texts = {name: table[name].cast(pyarrow.string()) for name in names}
table = pyarrow.table({**texts, "event_time": table["event_time"]})
found = model.predict(table.to_pandas())
columns = [name for name in found.columns if name.endswith("Score")]
numpy.savez(out, row=found["row"].to_numpy(), score=found[columns].to_numpy(), names=columns)
"""


def judged_by_its_package(
    model: str, version: registry.Version, holdout: Holdout, kinds: tuple[str, ...]
) -> Float32:
    """Scores of a version that needs other features, by the code that it was registered with.

    Args:
        model: registered model.
        version: the version.
        holdout: the scans.
        kinds: the five anomalies, in the order of the columns.

    Returns:
        float32 (n, 5), 0-100, in trail order.

    Raises:
        BundleError: its package does not judge these scans.
    """
    import mlflow

    root = mlflow.artifacts.download_artifacts(f"models:/{model}/{version.number}")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "scores.npz"
        kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        words = [str(path.resolve()) for path in (Path(root), holdout.path)]
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _PREDICT, *words, str(out)],
            cwd=folder,
            env={**kept, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise BundleError(f"its own package fails on the hold-out: {last}")
        with np.load(out) as found:
            row, score = found["row"], found["score"].astype(np.float32)
            column = {str(name): i for i, name in enumerate(found["names"])}
    if len(row) != len(holdout) or not all(f"{kind}Score" in column for kind in kinds):
        raise BundleError(
            f"its own package judges {len(row):,} of {len(holdout):,} scans for {sorted(column)}"
        )
    in_file = np.empty_like(score)
    in_file[row] = score[:, [column[f"{kind}Score"] for kind in kinds]]
    return in_file[holdout.place]
