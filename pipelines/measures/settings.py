"""What the evaluation is told: the section `evaluate` of params.yaml, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trail.scan import ANOMALIES


@dataclass(frozen=True, slots=True)
class Settings:
    """Section `evaluate` of params.yaml.

    Attributes:
        fpr_bound: the upper 95 % bound (by lot) of the false positive rate that a threshold keeps.
        bootstrap: replicates of the lot bootstrap.
        seed: seed of the lot bootstrap.
        betas: beta of F-beta, by wire name.
        miss: cost of an anomalous scan that is not flagged, by wire name.
        false_alarm: cost of an honest scan that is flagged, by wire name.
        prevalences: shares of anomalous scans at which precision and workload are reported.
        value_of_product: what a product is worth to the one who loses it.
        analyst_minutes_per_alert: minutes that an analyst spends on one alert.
        rule_flag: rule score (0-100) from which the rules themselves flag.
    """

    fpr_bound: float
    bootstrap: int
    seed: int
    betas: Mapping[str, float]
    miss: Mapping[str, float]
    false_alarm: Mapping[str, float]
    prevalences: tuple[float, ...]
    value_of_product: float
    analyst_minutes_per_alert: float
    rule_flag: float

    @classmethod
    def read(cls, section: Mapping[str, Any]) -> Settings:
        """The settings in `section`, a mapping as yaml gives it.

        Raises:
            KeyError: an entry is missing.
            ValueError: an entry is out of range, or a beta disagrees with the costs: F-beta is the
                cost in another scale only if beta^2 = miss / false alarm.
        """
        costs = section["costs"]
        settings = cls(
            fpr_bound=float(section["fpr_bound"]),
            bootstrap=int(section["bootstrap"]),
            seed=int(section.get("seed", 0)),
            betas={name: float(section["betas"][name]) for name in ANOMALIES},
            miss={name: float(costs[name]["miss"]) for name in ANOMALIES},
            false_alarm={name: float(costs[name]["false_alarm"]) for name in ANOMALIES},
            prevalences=tuple(float(p) for p in section["prevalences"]),
            value_of_product=float(section["value_of_product"]),
            analyst_minutes_per_alert=float(section["analyst_minutes_per_alert"]),
            rule_flag=float(section["rule_flag"]),
        )
        settings._check()
        return settings

    def _check(self) -> None:
        if not 0 < self.fpr_bound <= 1:
            raise ValueError(f"evaluate.fpr_bound is {self.fpr_bound}; write a share in (0, 1]")
        if self.bootstrap < 1:
            raise ValueError(f"evaluate.bootstrap is {self.bootstrap}; write 1 or more")
        for share in self.prevalences:
            if not 0 < share < 1:
                raise ValueError(f"evaluate.prevalences has {share}; write shares in (0, 1)")
        for name in ANOMALIES:
            if self.miss[name] <= 0 or self.false_alarm[name] <= 0:
                raise ValueError(f"evaluate.costs.{name} must be positive")
            ratio = self.miss[name] / self.false_alarm[name]
            if not math.isclose(self.betas[name] ** 2, ratio, rel_tol=0.01):
                raise ValueError(
                    f"evaluate.betas.{name} is {self.betas[name]}, but miss / false_alarm is "
                    f"{ratio:g}; write beta {math.sqrt(ratio):g} or change the costs"
                )
