"""Champions that several modules share; one worker trains each, once."""

from __future__ import annotations

import pytest

from tests.behaviour.champions import Champion, trained


@pytest.fixture(scope="session")
def default_champion(tmp_path_factory: pytest.TempPathFactory) -> Champion:
    """The champion of `make run`."""
    return trained(tmp_path_factory.mktemp("default") / "home")
