"""Which type is flagged when which is the truth."""

from __future__ import annotations

import numpy as np

from pipelines.measures.blocks import Int8
from pipelines.measures.lots import Float64
from pipelines.measures.ranking import Bool
from trail.scan import ANOMALIES

ROWS = (*ANOMALIES, "honest")
COLUMNS = (*ANOMALIES, "none")


def confusion(flag: Bool, target: Int8) -> Float64:
    """Share of the scans of each truth (row) on which each type is flagged (column), (6, 6).

    Rows as `ROWS`: a scan is of every type of which it is a positive, and honest if it is of none
    and counts for all. Columns as `COLUMNS`. A scan may raise several flags, so that a row can sum
    to more than one. Not a number where there is no such scan.
    """
    raised = np.column_stack([flag, ~flag.any(axis=1)])
    truth = np.column_stack([target == 1, (target == 0).all(axis=1)])
    number = truth.sum(axis=0).astype(np.float64)
    summed = truth.T.astype(np.float64) @ raised.astype(np.float64)
    empty = np.full(summed.shape, np.nan)
    return np.divide(summed, number[:, None], out=empty, where=number[:, None] > 0)
