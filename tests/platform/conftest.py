"""What the tests of the platform share: a small trained project, made once."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipelines.homes import Home
from tests.platform.homes_up import trained_home


@pytest.fixture(scope="session")
def trained() -> Iterator[Home]:
    """A project with a trained model; read-only."""
    with trained_home() as made:
        yield made


@pytest.fixture(scope="module")
def home(trained: Home) -> Iterator[Home]:
    """A copy of it."""
    folder = Path(tempfile.mkdtemp(prefix="trailwatch-"))
    try:
        shutil.copytree(trained.folder, folder / "home", symlinks=True)
        yield Home(folder / "home")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
