"""Parts of the split on disk: plain arrays, one file a column, nothing padded."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, fields
from enum import IntEnum
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from trail.epc import mix
from trail.features import FEATURES, VERSION
from trail.scan import Scans

PARTS: Final = ("train", "validation", "calibration", "test")
AGAIN: Final = "train_again"
"""The training lots, tampered with anew; they are seen with a context missing."""
STRETCHED: Final = "train_stretched"
"""Some of the training lots, their legs stretched (`pipelines.stretching`) and tampered with."""
BOXED: Final = "train_boxed"
"""Some of the training lots, only whole boxes and pallets tampered with."""
MORE: Final = (AGAIN, STRETCHED, BOXED)
"""What training sees besides its part."""
FOLDS: Final = 8
"""Groups of training lots; each is encoded against a network counted on the others."""


class LabelSource(IntEnum):
    """Where a row of targets comes from."""

    ASSUMED_HONEST = 0
    INJECTED = 1
    ANALYST = 2


def fold_of(lot: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The fold of each lot key, 0 to FOLDS - 1; it depends on the key alone."""
    return (mix(lot.astype(np.uint64)) % np.uint64(FOLDS)).astype(np.int64)


def some_lots(scans: Scans, share: float, seed: int) -> npt.NDArray[np.intp]:
    """Scans of randomly drawn lots that together hold about this share, one lot at least."""
    lot, code = np.unique(scans.lot, return_inverse=True)
    order = np.argsort(uniform(lot, seed), kind="stable")
    size = np.bincount(code, minlength=len(lot))[order]
    before = np.cumsum(size) - size
    drawn = np.zeros(len(lot), bool)
    drawn[order] = before < share * len(scans)
    return np.flatnonzero(drawn[code])


def uniform(key: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.float64]:
    """A number in [0, 1) that depends on key and seed only."""
    mixed = mix(key.astype(np.uint64) ^ mix(np.full(1, seed, np.uint64)))
    return np.asarray((mixed >> np.uint64(11)) / float(2**53))


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the split: n scans in trail order, t trails.

    Attributes:
        features: float32 (n, F), columns as in `trail.features.FEATURES`.
        offsets: int64 (t + 1,), boundaries of the trails.
        target: int8 (n, 5), 1 anomalous, 0 honest, -1 not counted.
        rules: float32 (n, 5), rule scores 0-100: the weak labels.
        lot: int64 (n,), lot key.
        row: int64 (n,), number of the scan in the input; injected scans are numbered beyond it.
        event_id: int64 (n,), -1 where the input had none.
        time_us: int64 (n,), event time.
        op: int8 (n,), operation.
        anomaly: int8 (n,), type of the tampering that the scan belongs to, -1 none.
        subtype: int16 (n,), index into `world.tampering.SUBTYPES`, -1 none.
        grade: int8 (n,), 0-3, -1 for controls and where there is none.
        control: bool (n,), belongs to a tampering that cannot be told.
        cause: bool (n,), the scan is part of the cause.
        evidence: bool (n,), the first scan at which the tampering can be known.
        synthetic: bool (n,), the scan's EPC was tampered with by `label`.
        label_source: int8 (n,), a `LabelSource`.
        trail: int64 (n,), index of the scan's trail.
    """

    features: npt.NDArray[np.float32]
    offsets: npt.NDArray[np.int64]
    target: npt.NDArray[np.int8]
    rules: npt.NDArray[np.float32]
    lot: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    event_id: npt.NDArray[np.int64]
    time_us: npt.NDArray[np.int64]
    op: npt.NDArray[np.int8]
    anomaly: npt.NDArray[np.int8]
    subtype: npt.NDArray[np.int16]
    grade: npt.NDArray[np.int8]
    control: npt.NDArray[np.bool_]
    cause: npt.NDArray[np.bool_]
    evidence: npt.NDArray[np.bool_]
    synthetic: npt.NDArray[np.bool_]
    label_source: npt.NDArray[np.int8]
    trail: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.op)

    @property
    def pace(self) -> npt.NDArray[np.float32]:
        """See `pace_of`."""
        return pace_of(self.features)


def pace_of(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Time since the scan before over the usual time of such a step, not a number where none is
    known, float32 (n,), of features (n, F).
    """
    gap_h, usual_h = (
        np.expm1(features[:, FEATURES.index(name)]) for name in ("gap_h_log", "expected_h_log")
    )
    return np.divide(gap_h, usual_h, out=np.full_like(gap_h, np.nan), where=usual_h > 0)


def save_part(part: Part, folder: Path, name: str) -> None:
    """Write a part to `folder/name/`, one .npy a column, and the list of its features."""
    where = folder / name
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir(parents=True)
    for field in fields(Part):
        np.save(where / f"{field.name}.npy", getattr(part, field.name), allow_pickle=False)
    features = {"version": VERSION, "features": list(FEATURES)}
    (where / "features.json").write_text(json.dumps(features, indent=1) + "\n")


def load_part(folder: Path, name: str) -> Part:
    """Read a part that `save_part` wrote.

    Raises:
        FileNotFoundError: the stage that writes it has not run.
        ValueError: it was written with another list of features.
    """
    where = Path(folder) / name
    if not where.is_dir():
        raise FileNotFoundError(f"{where} is missing; run `dvc repro sequence` first")
    written = json.loads((where / "features.json").read_text())
    if written != {"version": VERSION, "features": list(FEATURES)}:
        raise ValueError(f"{where} was written with other features; run `dvc repro sequence`")
    return Part(
        **{
            field.name: np.load(where / f"{field.name}.npy", allow_pickle=False)
            for field in fields(Part)
        }
    )
