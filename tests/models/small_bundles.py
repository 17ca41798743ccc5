"""Small bundles for tests: models that have learned in seconds what the rules say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from intake.master import write_registry, write_sites
from models import bundle, gbm, lstm, oneclass, onnx, predict, trees, windows
from models.calibration import Calibration
from models.stack import Stack
from tests.trail.small import (
    DAY,
    HONEST,
    HOUR,
    MINUTE,
    REGISTRY,
    RETAIL_FAR,
    SITES,
    WHOLESALE,
    code,
    scans_of,
)
from trail import network
from trail.facts import Context, previous_of
from trail.features import FEATURES, Encoded, encode
from trail.rules import FLAG
from trail.scan import ANOMALIES, Op, Scans
from trail.trails import sort

ROOT = Path(__file__).parents[2]
STEPS = 500
BOOSTING = {
    "threads": 1,
    "seed": 1,
    "learning_rate": 0.2,
    "leaves": 7,
    "min_leaf": 5,
    "min_weight": 0.01,
    "feature_share": 0.5,
    "row_share": 1.0,
    "l2": 1.0,
    "trees": 20,
    "patience": 20,
}

FAST = [*HONEST[:5], (Op.WHOLESALE_IN, WHOLESALE, 4 * DAY + 4 * MINUTE)]
"""The hub's lorry arrives minutes after it left: flagged as a jump."""
STRAYED = [*HONEST[:5], (Op.WHOLESALE_IN, RETAIL_FAR, 4 * DAY + 2 * HOUR)]
"""A wholesaler's receipt at a far shop: flagged as a wrong place."""
LATE = [*HONEST[:6], (Op.HUB_OUT, HONEST[4][1], 4 * DAY + 5 * HOUR)]
"""Leaves the hub after it was seen further down: flagged as a wrong order."""


def some_scans(lot: int = 1) -> Scans:
    """A lot of forty honest trails that left together, a dozen bad ones among them."""
    honest = [(code(lot=lot, serial=s), HONEST) for s in range(1, 41)]
    bad = [(code(lot=lot, serial=40 + i), (FAST, STRAYED, LATE)[i % 3]) for i in range(12)]
    return scans_of([*honest, *bad])


def learned_network() -> network.Network:
    """Counted on honest trails whose legs and dwells take between the usual and half as much
    again.
    """
    trails = []
    for s in range(1, 161):
        stretch = 1 + (s % 9) / 16
        trails.append((code(lot=9, serial=s), [(op, site, t * stretch) for op, site, t in HONEST]))
    scans = sort(scans_of(trails))
    return network.fit(scans.scans, previous_of(scans.starts), SITES)


def encoded(scans: Scans, learned: network.Network) -> Encoded:
    """Their features."""
    return encode(scans, Context(SITES, learned, REGISTRY))


def small_bundle(folder: Path, seed: int = 0, stacked: bool = True) -> Path:
    """Write a bundle; another seed is another bundle. Not `stacked`, the network alone answers."""
    folder.mkdir(parents=True)
    learned = learned_network()
    parts = [encoded(some_scans(lot), learned) for lot in (1, 2, 3)]
    shape = lstm.Shape(len(FEATURES), hidden=16, dropout=0.0)
    net = _trained(shape, parts, seed)
    lstm.save(net, folder / "lstm.safetensors")
    (folder / "lstm.json").write_text(json.dumps(shape.to_json()))
    onnx.export(net, folder / "lstm.onnx")
    if stacked:
        _stack(folder, parts)
    features = parts[0].features
    mean, scale = lstm.standardisation(features)
    settings = {"seed": 1, "scans": 500, "components": 30, "gamma": 1.0, "nu": 0.05}
    svm = folder / "svm.safetensors"
    oneclass.fit(np.clip((features - mean) / scale, -8, 8), settings, svm)
    (folder / "network.json").write_text(json.dumps(learned.to_json()))
    even = Calibration(np.ones(5), np.zeros(5)).to_json()
    half = dict.fromkeys(ANOMALIES, 0.5)
    for name, value in (("calibration", even), ("thresholds", half)):
        by_model = dict.fromkeys(("lstm", "gbm", "stack", "svm"), value)
        (folder / f"{name}.json").write_text(json.dumps(by_model))
    (folder / "params.json").write_text("{}")
    (folder / "provenance.json").write_text(json.dumps({"weights_digest": f"seed {seed}"}))
    write_sites(SITES, folder / "sites.csv")
    write_registry(REGISTRY, folder / "registry.csv")
    bundle.seal(folder)
    return folder


def _stack(folder: Path, parts: list[Encoded]) -> None:
    """Boosting of the first two parts, stacked with the network on the third."""
    learned = [(part.features, (part.rules >= FLAG).astype(np.int8)) for part in parts]
    features, target = (np.concatenate(column) for column in zip(*learned[:2], strict=True))
    gbm.fit(features, target, *learned[2], BOOSTING, folder / "gbm")
    trees.export(folder / "gbm", folder / "gbm.onnx")
    logits = {
        "lstm": predict.lstm_logits(folder, parts[2].features, parts[2].offsets),
        "gbm": gbm.logits(folder / "gbm", parts[2].features),
    }
    Stack.fit(logits, learned[2][1]).save(folder)


def _trained(shape: lstm.Shape, parts: list[Encoded], seed: int) -> lstm.TrailLSTM:
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    mean, scale = lstm.standardisation(np.concatenate([p.features for p in parts]))
    net = lstm.TrailLSTM(shape, mean, scale)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.02)
    batches = []
    for part in parts:
        start, size, _ = windows.spans(part.offsets, shape.length)
        rows, real = windows.padded(start, size)
        target = (part.rules >= FLAG).astype(np.float32)[rows]
        batches.append([torch.from_numpy(x) for x in (part.features[rows], target, real)])
    for step in range(STEPS):
        features, target, real = batches[step % len(batches)]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            net(features)[real], target[real], pos_weight=torch.tensor(5.0)
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net.eval()


REGISTER = """
import sys
from pathlib import Path
from pipelines import register
for folder in sys.argv[2:]:
    register.register(sys.argv[1], Path(folder), Path("no metrics"))
"""
MOVE = """
import sys
from models import registry
store = registry.client()
for name, version in zip(sys.argv[2::2], sys.argv[3::2]):
    if version:
        store.set_registered_model_alias(sys.argv[1], name, version)
    else:
        store.delete_registered_model_alias(sys.argv[1], name)
"""


def registered(home: Path, model: str, *folders: Path) -> None:
    """Register bundles as versions 1, 2, ... of a model in the store of `home`."""
    home.mkdir(parents=True, exist_ok=True)
    in_store(home, REGISTER, model, *map(str, folders))


def move(home: Path, model: str, **versions: str) -> None:
    """Point aliases of a model to versions; "" removes the alias."""
    in_store(home, MOVE, model, *(word for pair in versions.items() for word in pair))


def in_store(home: Path, code: str, *words: str) -> str:
    """Run code that asks the store of `home`."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *words],
        cwd=home,
        env=environment(home),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def environment(home: Path, **more: str) -> Mapping[str, str]:
    """The environment of a process that uses the store of `home`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_TRACKING")}
    return {
        **kept,
        "TRAILWATCH_HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        **more,
    }
