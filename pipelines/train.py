"""Stage train: sequences -> models/weights, all that a verdict needs, and an MLflow run.

The LSTM is trained on whole trails, causal and many-to-many; batches are taken by index from one
resident matrix. A killed run continues from its last epoch. The one-class SVM and gradient
boosting are trained on the same features. The stack of network and boosting is fitted on the
validation part; calibration and thresholds come from the calibration part, which no training has
seen.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from intake.master import read_sites
from intake.store import load_scans
from models import bundle, gbm, oneclass, predict
from models.calibration import Calibration
from models.stack import Stack
from monitoring.calibrate import LEAST_REPLICATES, calibrated
from monitoring.reference import Reference
from pipelines import fitting, params, tracking
from pipelines.measures.blocks import scored_target
from pipelines.measures.headline import MAIN
from pipelines.measures.settings import Settings
from pipelines.measures.thresholds import choose
from pipelines.params import ParamsError
from pipelines.parts import Part, load_part
from pipelines.progress import Progress, say
from pipelines.traffic import span, traffic
from trail.scan import ANOMALIES


def main(argv: list[str] | None = None) -> int:
    """Run the stage; see `--help`."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.train", description=__doc__)
    parser.add_argument("--sequences", type=Path, default=Path("work/sequences"))
    parser.add_argument("--labelled", type=Path, default=Path("work/labelled"))
    parser.add_argument("--validated", type=Path, default=Path("work/validated"))
    parser.add_argument("--out", type=Path, default=Path("models/weights"))
    parser.add_argument("--checkpoints", type=Path, default=Path("work/checkpoints"))
    asked = parser.parse_args(argv)
    settings = params.load()
    train(asked, settings)
    return 0


def train(asked: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Train all models, calibrate them, choose thresholds and write the weights folder."""
    drift = settings["train"]["drift"]
    serves(settings["train"])
    if drift["replicates"] < LEAST_REPLICATES:
        raise ParamsError(
            f"train.drift.replicates is {drift['replicates']}; a threshold that a tenth of the "
            f"months reach needs {LEAST_REPLICATES} of them"
        )
    learned, held = load_part(asked.sequences, "train"), load_part(asked.sequences, "validation")
    key = training_key(settings, (learned, held))
    run = Run(settings["register"]["model"], key, settings)
    out: Path = asked.out
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    say(f"train: {len(learned):,} scans to learn from, {len(held):,} to stop on")
    network = fitting.fit(learned, held, settings["train"], asked.checkpoints / key[:16], run.epoch)
    fitting.write(network, out)
    _baselines(learned, held, settings["train"], out)
    if serves(settings["train"]) == "stack":
        counts = fitting.weights(held, settings["train"])
        Stack.fit(predict.logits(out, held), scored_target(held), counts).save(out)
    known = load_part(asked.sequences, "calibration")
    _calibrate(known, settings, out)
    _context(asked, out, settings)
    _reference(asked, learned, known, drift, out)
    digest = bundle.seal(out)
    run.finish(digest, out)
    shutil.rmtree(asked.checkpoints / key[:16], ignore_errors=True)
    say(f"train: weights in {out}, digest {digest[:12]}")


def training_key(settings: Mapping[str, Any], parts: tuple[Part, ...]) -> str:
    """What this training is made of; the same inputs continue the same run."""
    key = hashlib.sha256(json.dumps(settings["train"], sort_keys=True).encode())
    for part in parts:
        for column in (part.features, part.target, part.offsets):
            key.update(np.ascontiguousarray(column).view(np.uint8).data)
    return key.hexdigest()


def serves(settings: Mapping[str, Any]) -> str:
    """The model that answers, `serves` of the section `train`.

    Raises:
        ParamsError: there is no such model.
    """
    name = str(settings["serves"])
    if name not in MAIN:
        raise ParamsError(f"train.serves is {name!r}; write one of {', '.join(MAIN)}")
    return name


class Run:
    """The MLflow run of a training, found again by its key."""

    def __init__(self, model: str, key: str, settings: Mapping[str, Any]) -> None:
        """Find or make the run; log parameters and environment once."""
        from mlflow.entities import Param

        self._store = tracking.client()
        tags = {
            "stage": "train",
            "git_commit": tracking.git_commit(),
            "data_hash": tracking.data_hash(),
            **tracking.environment(),
        }
        self.id = tracking.run_for(self._store, model, "training_key", key, tags)
        logged = {
            name: str(value)
            for section in ("label", "sequence", "train")
            for name, value in tracking.flat(settings[section], f"{section}.").items()
        }
        self._store.log_batch(self.id, params=[Param(k, v) for k, v in logged.items()])

    def epoch(self, step: int, figures: Mapping[str, float]) -> None:
        """Log the figures of one epoch."""
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now, step) for name, value in figures.items()]
        self._store.log_batch(self.id, metrics=metrics)

    def finish(self, digest: str, out: Path) -> None:
        """Tag the run with what came out of it, attach the small files, close it."""
        self._store.set_tag(self.id, "weights_digest", digest)
        for name in ("thresholds.json", "calibration.json", "curves.csv"):
            self._store.log_artifact(self.id, str(out / name))
        self._store.set_terminated(self.id)


def _baselines(learned: Part, held: Part, settings: Mapping[str, Any], out: Path) -> None:
    with Progress("gradient boosting", len(ANOMALIES), "models") as step:
        gbm.fit(
            learned.features,
            learned.target,
            held.features,
            held.target,
            settings["gbm"],
            out / "gbm",
            (fitting.weights(learned, settings), fitting.weights(held, settings)),
            step,
        )
    honest = (learned.target == 0).all(axis=1)
    oneclass.fit(
        predict.standardised(out, learned.features[honest]),
        settings["svm"],
        out / "svm.safetensors",
    )


def _calibrate(part: Part, settings: Mapping[str, Any], out: Path) -> None:
    """Probabilities and thresholds of every model, from the calibration part."""
    measure, target = Settings.read(settings["evaluate"]), scored_target(part)
    calibration, chosen = {}, {}
    found: dict[str, npt.NDArray[np.float32]] = {"rules": part.rules / np.float32(100)}
    for name, logits in predict.logits(out, part).items():
        fitted = Calibration.fit(logits, target)
        calibration[name] = fitted.to_json()
        found[name] = fitted(logits)
    for name, score in found.items():
        chosen[name] = choose(score, target, part.lot, measure).value
    _write_json(out / "calibration.json", calibration)
    _write_json(out / "thresholds.json", chosen)


def _context(asked: argparse.Namespace, out: Path, settings: Mapping[str, Any]) -> None:
    """Master data and network statistics that scoring needs."""
    shutil.copyfile(asked.labelled / "network.json", out / "network.json")
    for name in ("sites.csv", "registry.csv"):
        if (asked.validated / name).exists():
            shutil.copyfile(asked.validated / name, out / name)
    made_by = {name: settings[name] for name in ("label", "sequence", "train", "evaluate")}
    _write_json(out / "params.json", made_by)


def _reference(
    asked: argparse.Namespace,
    learned: Part,
    calibration: Part,
    settings: Mapping[str, Any],
    out: Path,
) -> None:
    """The drift reference, with thresholds, from the newest traffic."""
    seed, replicates = settings["seed"], settings["replicates"]
    validated: Path = asked.validated
    intake = load_scans(validated / "scans.parquet", read_sites(validated / "sites.csv"))
    batch = traffic(out, validated, intake, *span(intake.scans, learned, calibration))
    if not len(batch):
        say("train: no scans after the training part; there is no drift reference")
        return
    with Progress("drift reference", 2 * replicates, "streams") as step:
        made = calibrated(Reference.make(batch), batch, seed, replicates, progress=step)
    made.save(out)
    known, found = made.calibration, made.calibration.estimate
    told = "no estimate" if found is None else f"{found:.0%} of honest months would alarm"
    say(f"train: drift reference of {made.n:,} scans, {made.days} days: {known.status}, {told}")


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    sys.exit(main())
