"""Boosted trees without the library that grew them: as ONNX to judge, as boxes to explain.

A leaf of a tree is a box: an interval of each feature that was asked about on the way to it. What
a feature is worth follows from the boxes exactly, against any baseline.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from trail.features import FEATURES
from trail.scan import ANOMALIES

if TYPE_CHECKING:
    import lightgbm as lgb

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

ABSENT: Final = -20.0
"""Log-odds of an anomaly that boosting has no model of."""
TOLERANCE: Final = 1e-4
"""Of log-odds: hundreds of leaves are added up in 32 bits."""
_OPSETS: Final = {"": 17, "ai.onnx.ml": 1}


def boosters(folder: Path) -> dict[str, lgb.Booster]:
    """The boosters of a folder by anomaly; those without a model are left out."""
    import lightgbm as lgb

    paths = {name: folder / f"{name}.txt" for name in ANOMALIES}
    return {n: lgb.Booster(model_file=str(path)) for n, path in paths.items() if path.exists()}


@dataclass(frozen=True, slots=True)
class Boxes:
    """The leaves of a booster; m intervals in all.

    Attributes:
        value: float64 (leaves,), what a leaf adds to the log-odds.
        leaf: int64 (m,), whose interval it is.
        feature: int64 (m,), of which feature.
        above: float64 (m,), it is larger than this,
        upto: float64 (m,), and at most this.
    """

    value: Float64
    leaf: Int64
    feature: Int64
    above: Float64
    upto: Float64

    @classmethod
    def of(cls, booster: lgb.Booster) -> Boxes:
        """The leaves of all trees of a booster."""
        leaves = [
            found
            for tree in booster.dump_model()["tree_info"]
            for found in _leaves(tree["tree_structure"], {})
        ]
        sides = [
            (leaf, feature, *interval)
            for leaf, (_, box) in enumerate(leaves)
            for feature, interval in box.items()
        ]
        leaf, feature, above, upto = np.array(sides, dtype=np.float64).reshape(-1, 4).T
        value = np.array([value for value, _ in leaves])
        return cls(value, leaf.astype(np.int64), feature.astype(np.int64), above, upto)

    def worth(self, features: Float32, baseline: Float32) -> Float64:
        """Shapley values of the features, float64 (F,): they add up to the difference of the
        log-odds of both.

        In the order in which features turn from the baseline to what they are, a leaf is entered by
        the last of those that only `features` has within its box, before the first of those that
        only the baseline has. Of a such features and b such others, each of the former gets
        1 / (a * C(a + b, a)) of the leaf's value, each of the latter loses 1 / (b * C(a + b, b)).

        Source: Lundberg et al., From local explanations to global understanding with explainable
        AI for trees (2020), interventional Tree SHAP with one baseline.

        Args:
            features: float32 (F,), of one scan.
            baseline: float32 (F,).
        """
        mine, theirs = (
            (row[self.feature] > self.above) & (row[self.feature] <= self.upto)
            for row in (features, baseline)
        )
        leaves = len(self.value)
        ours = np.bincount(self.leaf[mine & ~theirs], minlength=leaves)
        others = np.bincount(self.leaf[theirs & ~mine], minlength=leaves)
        reached = np.bincount(self.leaf[~mine & ~theirs], minlength=leaves) == 0
        most = int(max(ours.max(initial=0), others.max(initial=0))) + 1
        share = np.array(
            [[1 / (a * comb(a + b, a)) if a else 0.0 for b in range(most)] for a in range(most)]
        )
        gain = np.where(reached, self.value * share[ours, others], 0.0)
        loss = np.where(reached, self.value * share[others, ours], 0.0)
        by_side = np.where(mine & ~theirs, gain[self.leaf], 0.0)
        by_side -= np.where(theirs & ~mine, loss[self.leaf], 0.0)
        worth = np.bincount(self.feature, weights=by_side, minlength=len(features))
        return worth.astype(np.float64)


def _leaves(
    node: dict[str, Any], box: dict[int, tuple[float, float]]
) -> Iterator[tuple[float, dict[int, tuple[float, float]]]]:
    """The leaves below a node: value, and interval by feature."""
    if "leaf_value" in node:
        yield float(node["leaf_value"]), box
        return
    feature, cut = _question(node)
    above, upto = box.get(feature, (-np.inf, np.inf))
    yield from _leaves(node["left_child"], {**box, feature: (above, min(upto, cut))})
    yield from _leaves(node["right_child"], {**box, feature: (max(above, cut), upto)})


def _question(node: dict[str, Any]) -> tuple[int, float]:
    """Feature and threshold of a node; the left child is for values up to it.

    The threshold is the largest 32-bit number that is not above the booster's: a 32-bit feature
    takes the same way.
    """
    if node["decision_type"] != "<=":
        raise ValueError(f"a tree asks {node['decision_type']!r}; only '<=' can be exported")
    cut = np.float32(node["threshold"])
    if float(cut) > node["threshold"]:
        cut = np.nextafter(cut, np.float32(-np.inf))
    return int(node["split_feature"]), float(cut)


def export(folder: Path, path: Path) -> float:
    """Write the boosters of a folder as one ONNX graph, features (n, F) -> logits (n, 5), and check
    it against them.

    Returns:
        The largest difference between the log-odds of both, on features at the trees' thresholds
        and just above them.

    Raises:
        RuntimeError: the difference exceeds `TOLERANCE`; nothing is left at `path`.
    """
    from onnx import TensorProto, helper, save

    known = boosters(folder)
    grown = {name: booster.dump_model()["tree_info"] for name, booster in known.items()}
    absent = [{"tree_structure": {"leaf_value": ABSENT}}]
    made = [
        helper.make_node(
            "TreeEnsembleRegressor",
            ["features"],
            [name],
            domain="ai.onnx.ml",
            n_targets=1,
            **_ensemble(grown.get(name, absent)),
        )
        for name in ANOMALIES
    ]
    made.append(helper.make_node("Concat", list(ANOMALIES), ["logits"], axis=1))
    graph = helper.make_graph(
        made,
        "boosting",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", len(FEATURES)])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", len(ANOMALIES)])],
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in _OPSETS.items()]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))
    worst = _difference(known, path)
    if not worst <= TOLERANCE:
        path.unlink()
        raise RuntimeError(
            f"the ONNX export differs from LightGBM by {worst:.2e}, more than {TOLERANCE:.0e}; "
            "check the versions of lightgbm, onnx and onnxruntime"
        )
    return worst


def _difference(known: dict[str, lgb.Booster], path: Path, rows: int = 2000) -> float:
    """Largest difference between log-odds of LightGBM and ONNX Runtime."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    features = rng.normal(size=(rows, len(FEATURES))).astype(np.float32)
    boxes = [Boxes.of(booster) for booster in known.values()]
    for feature in range(len(FEATURES)):
        cuts = np.concatenate([box.upto[box.feature == feature] for box in boxes] or [np.empty(0)])
        cuts = np.unique(cuts[np.isfinite(cuts)]).astype(np.float32)
        cuts[np.abs(cuts) < 1e-30] = 0  # what is as near to 0 as 1e-35, LightGBM takes for 0
        if len(cuts):
            cuts = np.concatenate([cuts, np.nextafter(cuts, np.float32(np.inf))])
            features[:, feature] = rng.choice(cuts, rows)
    found = session.run(None, {"features": features})[0]
    worst = [
        np.abs(found[:, k] - (known[n].predict(features, raw_score=True) if n in known else ABSENT))
        for k, n in enumerate(ANOMALIES)
    ]
    return float(np.max(worst))


def _ensemble(trees: list[dict[str, Any]]) -> dict[str, Any]:
    """Attributes of a TreeEnsembleRegressor, one row a node and one a leaf."""
    columns: dict[str, Any] = {}

    def put(prefix: str, **row: object) -> None:
        for name, value in row.items():
            columns.setdefault(f"{prefix}_{name}", []).append(value)

    def add(tree: int, node: dict[str, Any], ids: Iterator[int]) -> int:
        me = next(ids)
        named = {"treeids": tree, "nodeids": me}
        if "leaf_value" in node:
            put("target", **named, ids=0, weights=float(node["leaf_value"]))
            put("nodes", **named, featureids=0, values=0.0, modes="LEAF")
            put("nodes", truenodeids=0, falsenodeids=0)
            return me
        feature, cut = _question(node)
        row = len(columns.get("nodes_nodeids", ()))
        put("nodes", **named, featureids=feature, values=cut, modes="BRANCH_LEQ")
        put("nodes", truenodeids=0, falsenodeids=0)  # a tree begins with its root's row
        columns["nodes_truenodeids"][row] = add(tree, node["left_child"], ids)
        columns["nodes_falsenodeids"][row] = add(tree, node["right_child"], ids)
        return me

    for number, tree in enumerate(trees):
        add(number, tree["tree_structure"], count())
    return columns
