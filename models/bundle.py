"""The bundle: weights, features, thresholds, network statistics and references, under one digest.

A bundle is a folder of safetensors, text and JSON; nothing in it is pickled. Loading refuses one
whose digest or feature list does not match, so that a verdict is never given with features other
than those that the model learned.
"""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models import windows
from models.calibration import Calibration
from models.stack import PARTS, Stack, served
from trail.features import FEATURES, VERSION
from trail.network import Network
from trail.rules import FLAG, Findings
from trail.scan import ANOMALIES, Bool, Float32
from trail.verdict import Verdicts

DIGEST_FILE: Final = "digest.json"
FEATURES_FILE: Final = "features.json"

BATCH_SCANS: Final = 256
"""Scans that the network sees at a time, padding included: a larger batch pads more, and leaves the
processor's caches."""

_COLD_COLUMNS: Final = tuple(map(FEATURES.index, ("is_first", "group_log", "lot_log")))


class BundleError(ValueError):
    """A bundle that must not be used."""


def seal(folder: Path) -> str:
    """Write the feature list and the digest of all files; returns the digest."""
    listed = {"version": VERSION, "features": list(FEATURES)}
    (folder / FEATURES_FILE).write_text(json.dumps(listed, indent=1) + "\n")
    digest = _digest(folder)
    (folder / DIGEST_FILE).write_text(json.dumps({"sha256": digest}) + "\n")
    return digest


def _digest(folder: Path) -> str:
    """SHA-256 over the names and contents of all files but the digest's own."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != DIGEST_FILE):
        name = path.relative_to(folder).as_posix()
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{name}\0{content}\n".encode())
    return total.hexdigest()


def verify(folder: Path) -> str:
    """Check a bundle's digest and feature list; returns the digest.

    Raises:
        BundleError: a file is missing, changed or added, or the features are others.
    """
    for name in (DIGEST_FILE, FEATURES_FILE):
        if not (folder / name).is_file():
            raise BundleError(f"{folder} is no bundle: {name} is missing; train or register again")
    stated = json.loads((folder / DIGEST_FILE).read_text())["sha256"]
    found = _digest(folder)
    if stated != found:
        raise BundleError(
            f"bundle {folder} was changed: its digest is {found[:12]}, it states {stated[:12]}; "
            "use an untouched copy"
        )
    listed = json.loads((folder / FEATURES_FILE).read_text())
    if listed["version"] != VERSION:
        raise BundleError(
            f"bundle {folder} has features of version {listed['version']}, this program computes "
            f"version {VERSION}; train again"
        )
    if listed["features"] != list(FEATURES):
        other = sorted(set(listed["features"]) ^ set(FEATURES)) or ["their order"]
        raise BundleError(
            f"bundle {folder} was trained on other features ({', '.join(other[:5])}); train again"
        )
    return str(stated)


class Bundle:
    """A verified bundle, ready to judge encoded scans with ONNX Runtime."""

    def __init__(self, folder: Path, threads: int = 1) -> None:
        """Verify and load.

        Args:
            folder: the bundle.
            threads: threads of ONNX Runtime.

        Raises:
            BundleError: see `verify`; or a part's export is missing.
        """
        import onnxruntime as ort

        self.folder = folder
        self.digest = verify(folder)
        self.served = served(folder)
        self.length = int(self._json("lstm.json")["length"])
        self.network = Network.from_json(self._json("network.json"))
        self._calibration, self.threshold = self._decision(self.served)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        stacked = self.served == "stack"
        self._stack = Stack.load(folder) if stacked else None
        self._sessions: dict[str, ort.InferenceSession] = {}
        for part in PARTS if stacked else ("lstm",):
            path = folder / f"{part}.onnx"
            if not path.is_file():
                raise BundleError(f"bundle {folder} has no {path.name}; register it first")
            self._sessions[part] = ort.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )

    def _json(self, name: str) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.folder / name).read_text())
        return value

    def _decision(self, model: str) -> tuple[Calibration, Float32]:
        """Calibration and thresholds (5,) of one of the learned models."""
        thresholds = self._json("thresholds.json")[model]
        return (
            Calibration.from_json(self._json("calibration.json")[model]),
            np.array([thresholds[name] for name in ANOMALIES], dtype=np.float32),
        )

    def probabilities(self, features: Float32, offsets: npt.NDArray[np.int64]) -> Float32:
        """Calibrated probabilities of the model that answers, float32 (n, 5)."""
        found = windows.run(
            features, offsets, self.length, partial(self._run, "lstm"), most_scans=BATCH_SCANS
        )
        if self._stack is not None:
            found = self._stack({"lstm": found, "gbm": self._run("gbm", features)})
        return self._calibration(found)

    def _run(self, part: str, features: Float32) -> Float32:
        """Log-odds of the network, of (batch, time, F), or of boosting, of (n, F)."""
        return np.asarray(self._sessions[part].run(None, {"features": features})[0])

    def judge(
        self, features: Float32, offsets: npt.NDArray[np.int64], findings: Findings
    ) -> Verdicts:
        """Final verdicts: the larger of the hard rules and the calibrated model.

        A scan whose trail and lot are unknown so far is judged by the rules alone.

        Args:
            features: float32 (n, F) in trail order.
            offsets: int64 (t + 1,), boundaries of the trails.
            findings: what the rules found in the same scans.
        """
        return decided(self.probabilities(features, offsets), self.threshold, features, findings)

    def judge_model(self, features: Float32, offsets: npt.NDArray[np.int64]) -> Verdicts:
        """Verdicts of the model alone, without the rules; arguments as for `judge`."""
        return _alone(self.probabilities(features, offsets), self.threshold)

    def judge_svm(self, features: Float32) -> Verdicts:
        """Verdicts of the one-class SVM alone: the same strangeness, calibrated for each anomaly.

        It sees each scan by itself, so `features`, float32 (n, F), may stand in any order. An
        anomaly that it cannot tell from honest scans has a threshold above 1 and is never flagged.

        Raises:
            BundleError: the bundle has no one-class SVM.
        """
        from models.predict import svm_logits

        if not (self.folder / "svm.safetensors").is_file():
            raise BundleError(f"bundle {self.folder} has no svm.safetensors; train again")
        calibration, threshold = self._decision("svm")
        return _alone(calibration(svm_logits(self.folder, features)), threshold)


def decided(
    probability: Float32, threshold: Float32, features: Float32, findings: Findings
) -> Verdicts:
    """Final verdicts from the model's calibrated probabilities; see `Bundle.judge`.

    Args:
        probability: float32 (n, 5).
        threshold: float32 (5,), the probabilities flagged from.
        features: float32 (n, F).
        findings: what the rules found in the same scans.
    """
    cold = _cold(features)
    soft = graded(probability, threshold)
    judged = np.maximum(soft, findings.hard)
    score = np.where(cold[:, None], findings.score, judged).astype(np.float32)
    flag = score >= FLAG
    by_rule = flag & (cold[:, None] | (soft < FLAG))
    return Verdicts(score, flag, by_rule, cold, probability)


def _alone(probability: Float32, threshold: Float32) -> Verdicts:
    """Verdicts of a model that no rule has a say in."""
    score = graded(probability, threshold)
    none = np.zeros(len(score), dtype=bool)
    return Verdicts(score, score >= FLAG, np.zeros(score.shape, bool), none, probability)


def _cold(features: Float32) -> Bool:
    """First sighting, alone, of a lot that nothing was commissioned of: no history of any kind."""
    is_first, group_log, lot_log = (features[:, column] for column in _COLD_COLUMNS)
    alone = group_log <= np.log1p(np.float32(1)) + 1e-6
    return np.asarray((is_first > 0) & alone & (lot_log == 0))


def graded(probability: Float32, threshold: Float32) -> Float32:
    """Probabilities as scores 0-100 that reach 50 just at the threshold, float32 (n, 5)."""
    below = 50 * probability / np.maximum(threshold, 1e-6)
    above = 50 + 50 * (probability - threshold) / np.maximum(1 - threshold, 1e-6)
    return np.where(probability < threshold, np.minimum(below, 49.99), above).astype(np.float32)
