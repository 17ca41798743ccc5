"""Versions of a small model to promote, and a small labelled hold-out to judge them on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from safetensors.numpy import load_file, save_file

from intake.store import to_table
from intake.table import QUARANTINE_SCHEMA, Intake
from models import bundle, lstm, onnx
from models.stack import served
from tests.models.small_bundles import FAST, LATE, STRAYED
from tests.trail.small import HONEST, SITES, code, scans_of
from trail.scan import ANOMALIES, Anomaly

ROOT = Path(__file__).parents[2]
MODEL = "small"
LOTS = 14
BAD = ((FAST, Anomaly.JUMP), (STRAYED, Anomaly.LOC), (LATE, Anomaly.ORDER))
"""Trails whose last scan is an anomaly; nothing of the hold-out is a fake or a double."""


def variant(folder: Path, out: Path, **changes: object) -> Path:
    """A copy of a bundle with another digest.

    Args:
        folder: the bundle.
        out: where the copy goes; MLflow knows it by its last name.
        changes: `noise`: standard deviations of noise on the weights; `threshold`: of all types;
            `note`: anything, for an equal bundle; `file`: name of a file more; `network`: what is
            replaced in network.json.
    """
    shutil.copytree(folder, out)
    if "noise" in changes:
        _noisy(out, float(str(changes["noise"])))
    if "threshold" in changes:
        levels = json.loads((out / "thresholds.json").read_text())
        levels[served(out)] = dict.fromkeys(ANOMALIES, changes["threshold"])
        (out / "thresholds.json").write_text(json.dumps(levels))
    if "file" in changes:
        (out / str(changes["file"])).write_bytes(b"\x80\x04N.")
    (out / "params.json").write_text(json.dumps({"note": str(changes)}))
    (out / "provenance.json").write_text(json.dumps({"weights_digest": f"of {out.parent.name}"}))
    bundle.seal(out)
    return out


def _noisy(folder: Path, amount: float) -> None:
    rng = np.random.default_rng(0)
    weights = load_file(folder / "lstm.safetensors")
    for name, value in weights.items():
        if name not in ("mean", "scale"):
            noise = amount * float(value.std()) * rng.normal(size=value.shape)
            weights[name] = (value + noise).astype(np.float32)
    save_file(weights, folder / "lstm.safetensors")
    shape = lstm.Shape(**json.loads((folder / "lstm.json").read_text()))
    onnx.export(lstm.load(shape, folder / "lstm.safetensors"), folder / "lstm.onnx")


def write_holdout(path: Path, lots: int = LOTS, analysed: bool = False) -> Path:
    """Lots of forty honest trails and six to twelve bad ones, as the stage `label` writes them.

    Args:
        path: the Parquet file.
        lots: number of lots.
        analysed: the labels are analysts' verdicts and nothing was injected.
    """
    trails, last = [], {}
    for lot in range(20, 20 + lots):
        trails += [(code(lot=lot, serial=s), _stretched(HONEST, lot)) for s in range(1, 41)]
        for i in range(6 + 3 * (lot % 3)):
            trail, kind = BAD[i % 3]
            trails.append((code(lot=lot, serial=41 + i), _stretched(trail, lot)))
            last[trails[-1][0]] = kind
    scans = scans_of(trails)
    n = len(scans)
    ends = np.append(scans.epc[1:] != scans.epc[:-1], True)
    kind_of = np.full(len(scans.codes), -1, dtype=np.int8)
    for i, text in enumerate(scans.codes.text.to_pylist()):
        kind_of[i] = last.get(text, -1)
    kind = kind_of[scans.epc]
    bad = ends & (kind >= 0)
    intake = Intake(scans, SITES, None, None, QUARANTINE_SCHEMA.empty_table(), n)
    source = 2 if analysed else 1
    columns = {
        "event_id": scans.row,
        "anomaly": np.where(bad, kind, -1).astype(np.int8),
        "subtype": np.where(bad, kind, -1).astype(np.int16),
        "grade": np.where(bad, 1, -1).astype(np.int8),
        "control": np.zeros(n, bool),
        "cause": bad,
        "evidence": bad,
        "is_synthetic": (kind >= 0) & (not analysed),
        "label_source": np.where(kind >= 0, source, 2 if analysed else 0).astype(np.int8),
    }
    for k, name in enumerate(ANOMALIES):
        # What a far shop or a late hub says of the other types is not counted.
        columns[f"target_{name}"] = np.where(bad & (kind != k), -1, bad).astype(np.int8)
    table = to_table(intake)
    for name, column in columns.items():
        table = table.append_column(name, pa.array(column))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def _stretched(trail: list[tuple[int, int, float]], lot: int) -> list[tuple[int, int, float]]:
    return [(op, site, at * (1 + (lot % 5) / 12)) for op, site, at in trail]


def write_params(folder: Path, **promote: object) -> None:
    """The project's params.yaml for the small model, with quicker and other settings of promote."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["register"]["model"] = MODEL
    values["promote"] |= {"bootstrap": 300, "explained": 30, **promote}
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
