"""Files of scans to read, and the count that must always add up."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from intake.read import Intake, read_scans

INSTALLATION = Path(__file__).resolve().parents[3] / "shared" / "data" / "installation"


@pytest.fixture(scope="session")
def installation() -> Path:
    """Real files of an installation."""
    if not INSTALLATION.is_dir():
        pytest.skip("the installation's files are not here")
    return INSTALLATION


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Intake]:
    """Write bytes to a file, read it, and check that every row is accounted for."""

    def write_and_read(raw: bytes, name: str = "scans.csv", **options) -> Intake:
        path = tmp_path / name
        path.write_bytes(raw)
        intake = read_scans(path, **options)
        assert intake.read == len(intake.scans) + len(intake.quarantine)
        rows = sorted(intake.scans.row.tolist() + intake.quarantine["row"].to_pylist())
        assert rows == list(range(intake.read))
        return intake

    return write_and_read


@pytest.fixture(scope="session")
def full() -> bool:
    """Whether the long tests are wanted."""
    return bool(os.environ.get("TRAILWATCH_FULL"))
