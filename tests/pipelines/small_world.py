"""A small validated world for tests of single stages, made once a test run."""

from __future__ import annotations

from pathlib import Path

from pipelines import validate
from world.__main__ import write
from world.simulate import Options, simulate

VALIDATE = {"zone": "UTC", "max_unreadable_share": 0.01, "earliest_event": "2000-01-01"}
LABEL = {
    "seed": 11,
    "parts": {"train": 0.5, "validation": 0.12, "calibration": 0.13, "test": 0.25},
    "share": 0.03,
    "share_train": 0.04,
    "stretched": 0.3,
    "boxed": 0.5,
    "leave_out": [],
}
SEQUENCE = {
    "seed": 12,
    "without": {
        "network": 0.1,
        "registry": 0.1,
        "network_and_registry": 0.1,
        "sites": 0.1,
        "mates": 0.1,
        "start": 0.1,
    },
}


def validated(folder: Path, scans: int = 60_000) -> Path:
    """`folder/work/validated` of a small world, by the real stage."""
    write(simulate(Options(seed=3, scans=scans)), folder / "data")
    out = folder / "work" / "validated"
    assert not validate.validate(folder / "data", out, VALIDATE)
    return out
