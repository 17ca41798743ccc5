"""One-class SVM: how unlike honest scans a scan is, whatever the anomaly.

The RBF kernel is approximated with Nystroem components and the SVM solved in the primal, so that
it trains on all honest scans; the parts are plain arrays, evaluated here without pickle.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]


def fit(features: Float32, settings: Mapping[str, Any], path: Path) -> None:
    """Fit on honest scans and write the arrays as safetensors.

    Args:
        features: float32 (n, F), standardised, honest scans only.
        settings: `train.svm` of params.yaml: components, gamma, nu, scans, seed.
        path: the file to write.

    Source: Schoelkopf et al., Estimating the support of a high-dimensional distribution (2001);
    scikit-learn `SGDOneClassSVM` with `Nystroem`.
    """
    from safetensors.numpy import save_file
    from sklearn.kernel_approximation import Nystroem
    from sklearn.linear_model import SGDOneClassSVM

    rng = np.random.default_rng(int(settings["seed"]))
    most = min(int(settings["scans"]), len(features))
    sample = features[np.sort(rng.choice(len(features), most, replace=False))]
    gamma = float(settings["gamma"]) / features.shape[1]
    kernel = Nystroem(
        gamma=gamma, n_components=int(settings["components"]), random_state=int(settings["seed"])
    )
    mapped = kernel.fit_transform(sample)
    svm = SGDOneClassSVM(nu=float(settings["nu"]), random_state=int(settings["seed"]))
    svm.fit(mapped)
    save_file(
        {
            "components": np.ascontiguousarray(kernel.components_, dtype=np.float32),
            "weights": np.ascontiguousarray(
                kernel.normalization_.T @ svm.coef_.ravel(), dtype=np.float32
            ),
            "offset": np.array(svm.offset_, dtype=np.float32).reshape(1),
            "gamma": np.array([gamma], dtype=np.float32),
        },
        str(path),
    )


def novelty(path: Path, features: Float32, chunk: int = 50_000) -> Float32:
    """Distance beyond the support of honest scans, float32 (n,); larger is stranger.

    Args:
        path: the file that `fit` wrote.
        features: float32 (n, F), standardised as for `fit`.
        chunk: rows at a time.
    """
    from safetensors.numpy import load_file

    # Weights of both signs nearly cancel: in float32 a scan's place in the batch would show.
    arrays = {name: value.astype(np.float64) for name, value in load_file(str(path)).items()}
    components, weights = arrays["components"], arrays["weights"]
    gamma, offset = float(arrays["gamma"][0]), float(arrays["offset"][0])
    norm = (components**2).sum(axis=1)
    result = np.empty(len(features), dtype=np.float32)
    for start in range(0, len(features), chunk):
        rows = features[start : start + chunk].astype(np.float64)
        away = (rows**2).sum(axis=1)[:, None] + norm - 2 * rows @ components.T
        kernel = np.exp(-gamma * np.maximum(away, 0))
        result[start : start + chunk] = offset - kernel @ weights
    return result
