"""What promotion is told: the section `promote` of params.yaml, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.measures.settings import Settings as Measures
from trail.scan import ANOMALIES


@dataclass(frozen=True, slots=True)
class Settings:
    """Section `promote` of params.yaml, and what it shares with `evaluate`.

    Attributes:
        seed: seed of the lot bootstrap and of samples.
        bootstrap: replicates of the lot bootstrap.
        least_lots: lots that the hold-out must have.
        least_verdicts: anomalous scans that analysts must have confirmed for their verdicts to be
            judged on, apart from injected truth.
        map_margin: how much mAP may be lost, at the lower 95 % bound of the paired difference.
        f_beta_margin: likewise of cost-weighted F-beta.
        floors: least average precision, by wire name.
        fpr_bound: most that the upper 95 % bound (by lot) of a false positive rate may be.
        latency_ratio: most that a forward pass may take, as a ratio to the champion's.
        explained: scans that are explained.
        completeness: most that the P95 of the completeness error may be.
        evidence_top: k of hit@k.
        evidence_floor: least chance-corrected hit@k.
        measures: costs and betas.
    """

    seed: int
    bootstrap: int
    least_lots: int
    least_verdicts: int
    map_margin: float
    f_beta_margin: float
    floors: Mapping[str, float]
    fpr_bound: float
    latency_ratio: float
    explained: int
    completeness: float
    evidence_top: int
    evidence_floor: float
    measures: Measures

    @classmethod
    def read(cls, whole: Mapping[str, Any]) -> Settings:
        """The settings in params.yaml, a mapping as `pipelines.params.load` gives it.

        Raises:
            KeyError: an entry is missing.
            ValueError: an entry is out of range.
        """
        section = whole["promote"]
        margins, evidence = section["margins"], section["evidence"]
        settings = cls(
            seed=int(section["seed"]),
            bootstrap=int(section["bootstrap"]),
            least_lots=int(section["least_lots"]),
            least_verdicts=int(section["least_verdicts"]),
            map_margin=float(margins["map"]),
            f_beta_margin=float(margins["f_beta"]),
            floors={name: float(section["floors"][name]) for name in ANOMALIES},
            fpr_bound=float(section["fpr_bound"]),
            latency_ratio=float(section["latency_ratio"]),
            explained=int(section["explained"]),
            completeness=float(section["completeness"]),
            evidence_top=int(evidence["top"]),
            evidence_floor=float(evidence["floor"]),
            measures=Measures.read(whole["evaluate"]),
        )
        settings._check()
        return settings

    def _check(self) -> None:
        for name in ("bootstrap", "least_lots", "least_verdicts", "explained", "evidence_top"):
            if getattr(self, name) < 1:
                raise ValueError(f"promote: {name} is {getattr(self, name)}; write 1 or more")
        for name in ("map_margin", "f_beta_margin"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"promote: {name} is {getattr(self, name)}; write what may be lost, from 0 on"
                )
        for name, floor in self.floors.items():
            if not 0 <= floor <= 1:
                raise ValueError(f"promote.floors.{name} is {floor}; write 0 to 1")
        for name in ("fpr_bound", "completeness", "latency_ratio"):
            if not getattr(self, name) > 0:
                raise ValueError(f"promote.{name} is {getattr(self, name)}; write more than 0")
