"""Airflow as it sees the DAGs: their folder on the path, examples off, nothing sent anywhere."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DAGS = ROOT / "dags"

os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="trailwatch-airflow-"))
os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "false")
os.environ.setdefault("AIRFLOW__USAGE_DATA_COLLECTION__ENABLED", "false")
sys.path.insert(0, str(DAGS))


@pytest.fixture(scope="session")
def bag():
    """All DAGs, loaded once."""
    from airflow.dag_processing.dagbag import DagBag

    loaded = DagBag(str(DAGS))
    assert loaded.import_errors == {}
    return loaded
