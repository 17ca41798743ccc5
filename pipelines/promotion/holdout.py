"""The hold-out: recent labelled scans that neither champion nor challenger has learned from.

Each bundle judges them as it would when serving: encoded with its own network statistics, sites and
registry, hard rules included, at its own thresholds.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from intake.errors import IntakeError
from intake.master import read_registry, read_sites
from intake.store import load_scans
from intake.table import Intake
from models.bundle import Bundle
from models.scoring import registry_that_applies, score
from trail.facts import Context
from trail.registry import Registry
from trail.scan import ANOMALIES, Bool, Float32, Int8, Int64, Scans
from trail.trails import sort

Int16 = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class Holdout:
    """Truth on n scans in trail order; a `pipelines.measures.blocks.Part`.

    Attributes:
        path: the labelled scans.
        place: intp (n,), where each scan stands in the file.
        trail: int64 (n,), number of its trail.
        row: int64 (n,), its row number.
        target, lot, time_us, op, anomaly, subtype, grade, control, cause, evidence, synthetic,
            label_source, event_id: as in `Part`.
    """

    path: Path
    place: npt.NDArray[np.intp]
    trail: Int64
    row: Int64
    target: Int8
    lot: Int64
    time_us: Int64
    op: Int8
    anomaly: Int8
    subtype: Int16
    grade: Int8
    control: Bool
    cause: Bool
    evidence: Bool
    synthetic: Bool
    label_source: Int8
    event_id: Int64

    def __len__(self) -> int:
        return len(self.op)

    @property
    def pace(self) -> Float32:
        """Not known: each bundle has its own network."""
        return np.full(len(self), np.nan, np.float32)

    def described(self) -> dict[str, Any]:
        """What a decision says of it."""
        span = (self.time_us.min(), self.time_us.max())
        first, last = (str(np.datetime64(int(t), "us").astype("datetime64[s]")) for t in span)
        return {
            "sha256": hashlib.sha256(self.path.read_bytes()).hexdigest(),
            "scans": len(self),
            "lots": len(np.unique(self.lot)),
            "first_scan": first,
            "last_scan": last,
            "anomalous_scans": {
                name: int((self.target[:, k] == 1).sum()) for k, name in enumerate(ANOMALIES)
            },
        }


def labelled(path: Path) -> Path:
    """The labelled scans that a path means: a Parquet file, or those beside a folder of sequences.

    Raises:
        FileNotFoundError: there are none.
    """
    found = path
    if path.suffix != ".parquet":
        found = path.parent.parent / "labelled" / f"{path.name}.parquet"
    if not found.is_file():
        raise FileNotFoundError(
            f"the hold-out {found} does not exist; run `dvc repro label`, or name labelled scans "
            "with --holdout"
        )
    return found


def load(path: Path) -> Holdout:
    """Read labelled scans that the stage `label` wrote.

    Raises:
        IntakeError: the file has no scans or no labels.
    """
    scans = load_scans(path).scans
    if not len(scans):
        raise IntakeError(f"the hold-out {path} holds no scans; name another with --holdout")
    trails = sort(scans)
    mine = trails.order
    names = ["event_id", "anomaly", "subtype", "grade", "control", "cause", "evidence"]
    names += ["is_synthetic", "label_source", *(f"target_{name}" for name in ANOMALIES)]
    missing = set(names) - set(pq.read_schema(path).names)
    if missing:
        raise IntakeError(
            f"the hold-out {path} has no column {sorted(missing)[0]}; name scans that the stage "
            "label wrote"
        )
    table = pq.read_table(path, columns=names)
    column = {name: table[name].to_numpy()[mine] for name in names}
    target = np.stack([column.pop(f"target_{name}") for name in ANOMALIES], axis=1)
    return Holdout(
        path=path,
        place=mine,
        trail=np.cumsum(trails.starts, dtype=np.int64) - 1,
        row=trails.scans.row,
        target=target.astype(np.int8),
        lot=trails.scans.lot,
        time_us=trails.scans.time_us,
        op=trails.scans.op,
        synthetic=column.pop("is_synthetic"),
        **column,
    )


@dataclass(frozen=True, slots=True)
class Seen:
    """The hold-out's scans as one bundle sees them, in the order of the file."""

    intake: Intake
    context: Context

    @property
    def scans(self) -> Scans:
        """The scans."""
        return self.intake.scans


def seen_by(bundle: Bundle, path: Path) -> Seen:
    """The scans of a file in a bundle's own context: its sites, its network, its registry."""
    intake = load_scans(path, read_sites(bundle.folder / "sites.csv"))
    listed = bundle.folder / "registry.csv"
    registry = Registry.none()
    if listed.exists():
        registry = registry_that_applies(read_registry(listed), intake.scans, intake.sites)
    return Seen(intake, Context(intake.sites, bundle.network, registry))


def judged(bundle: Bundle, seen: Seen, holdout: Holdout) -> Float32:
    """Scores of a bundle as it would answer with them, float32 (n, 5), in trail order."""
    found = score(bundle, seen.scans, seen.intake.sites, seen.context.registry)
    return found.score[holdout.place]
