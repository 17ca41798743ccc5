"""The bundle as an MLflow model, logged from this code: a table of scans in, verdicts out.

`predict` takes a DataFrame with the columns of an export and returns one row a readable scan:
`row`, the five flags, the five scores, source and evidence. MLflow runs this file by itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
from mlflow.pyfunc.model import PythonModel


class Trailwatch(PythonModel):
    """Scores tables of scans with the bundle it was logged with."""

    def load_context(self, context: Any) -> None:
        """Verify and load the bundle, its sites and its registry."""
        from intake.master import read_registry, read_sites
        from models.bundle import Bundle
        from trail.registry import Registry

        folder = Path(context.artifacts["bundle"])
        self.bundle = Bundle(folder)
        self.sites = read_sites(folder / "sites.csv")
        listed = folder / "registry.csv"
        self.registry = read_registry(listed) if listed.exists() else Registry.none()

    def predict(self, context, model_input, params=None):
        """Verdicts on the readable rows of a DataFrame, in its order.

        Without type hints: MLflow would take them for a schema of the input.
        """
        import pandas as pd
        import pyarrow as pa

        from intake.columns import to_scans
        from models.scoring import registry_that_applies, score
        from trail.scan import ANOMALIES

        read = to_scans(pa.Table.from_pandas(model_input, preserve_index=False), self.sites)
        registry = registry_that_applies(self.registry, read.scans, read.sites)
        found = score(self.bundle, read.scans, read.sites, registry)
        columns: dict[str, Any] = {"row": read.scans.row}
        for k, name in enumerate(ANOMALIES):
            columns[name] = found.flag[:, k]
            columns[f"{name}Score"] = found.score[:, k]
        return pd.DataFrame({**columns, "source": found.source, "evidence": found.evidence})


mlflow.models.set_model(Trailwatch())
