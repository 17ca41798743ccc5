"""The result type that rules and models share."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trail.scan import ANOMALIES, Bool, Float32


class Source(StrEnum):
    """Who gave a verdict."""

    MODEL = "model"
    RULES = "rules"
    COLD = "rules (cold)"


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Final verdicts on n scans in trail order.

    Attributes:
        score: float32 (n, 5), 0-100; flagged from 50 on.
        flag: bool (n, 5).
        by_rule: bool (n, 5), the flag is a rule's, not the model's.
        cold: bool (n,), too little history: the rules answered.
        model: float32 (n, 5), calibrated probabilities of the model, 0 where none was asked.
    """

    score: Float32
    flag: Bool
    by_rule: Bool
    cold: Bool
    model: Float32

    def source(self, i: int) -> Source:
        """Who gave the verdict on scan i."""
        if self.cold[i]:
            return Source.COLD
        return Source.RULES if self.by_rule[i].any() else Source.MODEL

    def counts(self) -> dict[str, int]:
        """Flagged scans by anomaly."""
        return {name: int(self.flag[:, i].sum()) for i, name in enumerate(ANOMALIES)}
