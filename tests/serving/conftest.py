"""What tests of the service share."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.bundle import Bundle
from tests.behaviour.champions import Champion
from tests.serving.champion import small_champion


@pytest.fixture(scope="session")
def champion() -> Champion:
    """A project folder with a small registered champion; read-only."""
    return small_champion()


@pytest.fixture(scope="session")
def bundle_folder(champion: Champion) -> Path:
    """Its bundle as a folder; read-only."""
    return champion.home / "work" / "bundle"


@pytest.fixture(scope="session")
def bundle(bundle_folder: Path) -> Bundle:
    """Its bundle, loaded."""
    return Bundle(bundle_folder)
