"""The drift reference: how each feature and each score was distributed when a model was trained."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]

QUANTILES: Final = 200
"""Steps of the stored distribution function; a KS distance is then exact to 1/200."""
LEVELS: Final = 16
"""A column with at most this many values is categorical: its levels are stored exactly."""


def reference(
    columns: Float32, names: tuple[str, ...], time_us: npt.NDArray[np.int64]
) -> dict[str, Any]:
    """Describe columns of honest scans.

    Args:
        columns: float32 (n, c), features or scores.
        names: c names.
        time_us: int64 (n,), event times, for the span covered.

    Returns:
        Plain values: `n`, `days`, and for each name either `edges` (quantiles 0..1 in equal
        steps) or `levels` with `shares`; `missing` is the share of values that are not finite.
    """
    described: dict[str, Any] = {}
    for i, name in enumerate(names):
        values = columns[:, i]
        finite = values[np.isfinite(values)]
        levels, counts = np.unique(finite, return_counts=True)
        entry: dict[str, Any] = {"missing": float(1 - len(finite) / max(len(values), 1))}
        if len(levels) <= LEVELS:
            entry["levels"] = [float(level) for level in levels]
            entry["shares"] = [float(c / len(finite)) for c in counts]
        else:
            steps = np.linspace(0, 1, QUANTILES + 1)
            entry["edges"] = [float(q) for q in np.quantile(finite, steps, method="nearest")]
        described[name] = entry
    days = float((time_us.max() - time_us.min()) / 86_400e6) if len(time_us) else 0.0
    return {"n": len(columns), "days": round(days, 3), "columns": described}
