"""The result type that rules and models share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from trail.scan import ANOMALIES, Bool, Float32


class Source(StrEnum):
    """Who gave a verdict."""

    MODEL = "model"
    RULES = "rules"
    COLD = "rules: too little history"


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Verdicts on n scans.

    Attributes:
        score: float32 (n, 5), 0-100, in the order of `ANOMALIES`.
        flag: bool (n, 5), the scan is flagged for the anomaly.
        source: n sources.
        evidence: n sentences, "" where nothing is flagged.
    """

    score: Float32
    flag: Bool
    source: Sequence[Source]
    evidence: Sequence[str]

    def counts(self) -> dict[str, int]:
        """Flagged scans by anomaly."""
        return {name: int(self.flag[:, i].sum()) for i, name in enumerate(ANOMALIES)}
