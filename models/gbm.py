"""Gradient boosting on the features of single scans: the strong baseline, one model an anomaly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.trees import ABSENT, boosters
from trail.features import FEATURES
from trail.scan import ANOMALIES, Anomaly

Float32 = npt.NDArray[np.float32]
Int8 = npt.NDArray[np.int8]

FASTER: Final = {
    "gap_h_log": -1,
    "speed_kmh_log": 1,
    "two_speed_kmh_log": 1,
    "step_z": -1,
    "step_low_ratio": -1,
    "rule_jump": 1,
}
"""Features that say how fast goods came, 1 where more of it is faster."""
_MONOTONE: Final = {
    "monotone_constraints": [FASTER.get(name, 0) for name in FEATURES],
    "monotone_constraints_method": "advanced",
}


def fit(
    features: Float32,
    target: Int8,
    check_features: Float32,
    check_target: Int8,
    settings: Mapping[str, Any],
    folder: Path,
    weights: tuple[Float32, Float32] | None = None,
    progress: Callable[[int], object] | None = None,
) -> dict[str, int]:
    """Train one booster an anomaly, stopped early on the check part; write them as text.

    Args:
        features: float32 (n, F) of the training part.
        target: int8 (n, 5), -1 rows of an anomaly are left out.
        check_features: float32 (m, F) of the validation part.
        check_target: int8 (m, 5).
        settings: `train.gbm` of params.yaml; with `monotone`, what makes a scan faster by one of
            `FASTER` never makes it less of a jump.
        folder: where `<anomaly>.txt` go.
        weights: how much each scan of both parts counts, float32 (n,) and (m,); None is the same.
        progress: called with 1 after each anomaly.

    Returns:
        Trees kept, by anomaly; 0 where the part holds no such anomaly.
    """
    import lightgbm as lgb

    folder.mkdir(parents=True, exist_ok=True)
    mine, other = weights or (
        np.ones(len(target), np.float32),
        np.ones(len(check_target), np.float32),
    )
    trees = {}
    options = {
        "objective": "binary",
        # Smoother than average precision, which a single box of the check part can turn.
        "metric": "binary_logloss",
        "verbosity": -1,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": int(settings["threads"]),
        "seed": int(settings["seed"]),
        "learning_rate": settings["learning_rate"],
        "num_leaves": settings["leaves"],
        "min_data_in_leaf": settings["min_leaf"],
        # Anomalies are so rare that leaves of next to no weight would blow up the scores.
        "min_sum_hessian_in_leaf": settings["min_weight"],
        "feature_fraction": settings["feature_share"],
        "bagging_fraction": settings["row_share"],
        "bagging_freq": 1,
        "lambda_l2": settings["l2"],
        "max_bin": 127,
    }
    for k, name in enumerate(ANOMALIES):
        keep, check = target[:, k] >= 0, check_target[:, k] >= 0
        path = folder / f"{name}.txt"
        trees[name] = 0
        if (target[keep, k] == 1).any() and (check_target[check, k] == 1).any():
            train = lgb.Dataset(
                features[keep], target[keep, k], weight=mine[keep], feature_name=list(FEATURES)
            )
            held = train.create_valid(
                check_features[check], check_target[check, k], weight=other[check]
            )
            limited = settings.get("monotone", False) and k == Anomaly.JUMP
            booster = lgb.train(
                {**options, **(_MONOTONE if limited else {})},
                train,
                num_boost_round=int(settings["trees"]),
                valid_sets=[held],
                callbacks=[lgb.early_stopping(int(settings["patience"]), verbose=False)],
            )
            booster.save_model(str(path), num_iteration=booster.best_iteration)
            trees[name] = int(booster.best_iteration)
        elif path.exists():
            path.unlink()
        if progress is not None:
            progress(1)
    return trees


def logits(folder: Path, features: Float32) -> Float32:
    """Log-odds float32 (n, 5); an anomaly without a model has `trees.ABSENT`."""
    result = np.full((len(features), len(ANOMALIES)), ABSENT, dtype=np.float32)
    for name, booster in boosters(folder).items():
        result[:, ANOMALIES.index(name)] = booster.predict(features, raw_score=True)
    return result
