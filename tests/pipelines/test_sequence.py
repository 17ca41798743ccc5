"""Features and targets of the parts, and the views with a context missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines import label, sequence
from pipelines.parts import FOLDS, PARTS, fold_of, load_part
from tests.pipelines.small_world import LABEL, SEQUENCE, validated
from trail.features import FEATURES
from trail.network import Network


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sequence")
    valid = validated(folder)
    label.label(valid, folder / "labelled", LABEL)
    sequence.sequence(folder / "labelled", valid, folder / "sequences", SEQUENCE)
    return folder


@pytest.fixture(scope="module")
def parts(folder):
    return {name: load_part(folder / "sequences", name) for name in PARTS}


def test_rows_are_in_trail_order_and_nothing_is_padded(parts):
    for name, part in parts.items():
        assert part.features.shape == (len(part), len(FEATURES))
        assert np.isfinite(part.features).all()
        assert part.offsets[0] == 0
        assert part.offsets[-1] == len(part)
        within = np.ones(len(part), bool)
        within[part.offsets[:-1]] = False
        later = np.flatnonzero(within)
        assert (part.time_us[later] >= part.time_us[later - 1]).all()
        assert (part.trail[later] == part.trail[later - 1]).all()
        if name != "train":
            assert len(np.unique(part.row)) == len(part)


def test_only_training_is_seen_without_its_contexts(parts):
    for name, part in parts.items():
        missing = {
            column: float((part.features[:, FEATURES.index(column)] == 0).mean())
            for column in ("network", "registry")
        }
        assert (missing["network"] > 0.05) == (name == "train")
        assert (missing["registry"] > 0.05) == (name == "train")


def test_training_has_every_scan_in_full_sight_and_some_again(parts):
    part = parts["train"]
    rows, count = np.unique(part.row, return_counts=True)
    assert len(part) > len(rows)
    assert count.max() > 1


def test_a_training_lot_is_seen_against_the_network_of_the_others(folder, parts):
    labelled = folder / "labelled"
    whole = Network.from_json(json.loads((labelled / "network.json").read_text()))
    others = sequence._networks(labelled / "network_folds.json")
    used = [network.edges[:, 2].sum() for network in others]
    assert sum(used) == (FOLDS - 1) * whole.edges[:, 2].sum(), "each lot is left out once"
    column = FEATURES.index("edge_used_log")
    for name, part in parts.items():
        fold = fold_of(part.lot)
        for k in np.unique(fold).tolist():
            network = others[k] if name == "train" else whole
            seen = np.expm1(part.features[fold == k, column])
            assert set(np.round(seen).astype(int)) <= {0, *network.edges[:, 2].tolist()}


def columns(starts, **of):
    n = len(starts)
    blank = {"grade": -np.ones(n, int), "anomaly": -np.ones(n, int), "cause": np.zeros(n, bool)}
    return {**blank, **{name: np.array(value) for name, value in of.items()}}, np.array(
        starts, bool
    )


def test_without_mates_only_the_blatant_is_known():
    mine, starts = columns([1, 0], grade=[1, 3], anomaly=[4, 4], cause=[True, True])
    assert sequence._unseen(mine, starts, "mates").tolist() == [False, True]


def test_after_a_late_start_half_an_inversion_is_not_known():
    mine, starts = columns(
        [1, 0, 1, 0],
        grade=[0, 0, 0, 0],
        anomaly=[3, 3, 3, -1],
        cause=[True, True, True, False],
    )
    assert sequence._unseen(mine, starts, "start").tolist() == [False, False, True, True]


def test_after_a_late_start_a_movement_without_its_departure_is_not_known():
    mine, starts = columns(
        [1, 0, 1, 0],
        grade=[0, 0, 0, 0],
        anomaly=[4, -1, -1, 4],
        cause=[True, False, False, True],
    )
    assert sequence._unseen(mine, starts, "start").tolist() == [True, True, False, False]


def test_another_list_of_features_is_refused(folder, tmp_path):
    import shutil

    shutil.copytree(folder / "sequences" / "test", tmp_path / "test")
    path = tmp_path / "test" / "features.json"
    path.write_text(path.read_text().replace("op_step", "op_stride"))
    with pytest.raises(ValueError, match="other features"):
        load_part(tmp_path, "test")
    with pytest.raises(FileNotFoundError, match="dvc repro sequence"):
        load_part(tmp_path, "train")


def test_late_start_drops_what_came_before():
    from tests.trail.small import HONEST, code, scans_of

    serials = (1, 2, 3)
    scans = scans_of([(code(lot=l, serial=s), HONEST) for l in range(1, 41) for s in serials])
    rows = sequence._late_start(scans, np.arange(len(scans)), seed=1)
    left = np.bincount(scans.epc[rows], minlength=len(scans.codes))
    for epc in np.unique(scans.epc[rows]):
        kept = np.sort(scans.time_us[rows][scans.epc[rows] == epc])
        whole = np.sort(scans.time_us[scans.epc == epc])
        assert (kept == whole[-len(kept) :]).all()
    by_lot = left.reshape(-1, len(serials))
    alike = (by_lot == by_lot[:, :1]).all(axis=1)
    assert 0.4 < alike.mean() < 0.95, "of some lots each trail begins at a place of its own"
    assert set(left[left > 0]) >= {1, len(HONEST) - 1}
