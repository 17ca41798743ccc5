"""Variants are trained on what they say, measured beside the network as it is, and kept."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench import ablation
from pipelines import fitting
from tests.pipelines.test_fitting import part
from tests.serving.champion import small_champion

ONLY = ("as it is", "without the rules", "cold: three scans a trail", "never saw grade 2")


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    home, folder = small_champion().home, tmp_path_factory.mktemp("ablation")
    words = ["--weights", home / "models/weights", "--sequences", home / "work/sequences"]
    words += ["--scans", 12_000, "--seeds", 1, "--worlds", "W3", "--only", *ONLY[1:]]
    words += ["--keep", folder / "kept.jsonl", "--out", folder / "page.md"]
    before = Path.cwd()
    os.chdir(home)
    try:
        assert ablation.main([str(word) for word in words]) == 0
    finally:
        os.chdir(before)
    return [str(word) for word in words]


def test_each_variant_is_measured_in_each_world(words):
    text = Path(words[-1]).read_text().split("## ")[0]
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if "|" in line}
    assert set(ONLY) <= set(rows)
    assert len(re.findall(r"[01]\.\d{3}", rows["as it is"])) == 5 + 1 + 1
    for name in ONLY[1:]:
        low, high = re.search(r"\[([+-][\d.]+), ([+-][\d.]+)\]", rows[name]).groups()
        assert float(low) <= float(high)
        assert len(re.findall(r" [+-]0\.\d{3}", rows[name])) == 2 + 1


def test_what_was_kept_is_not_trained_again(words, monkeypatch):
    text = Path(words[-1]).read_text()
    monkeypatch.setattr(fitting, "fit", None)
    assert ablation.main(words) == 0
    assert Path(words[-1]).read_text() == text


def test_positions_and_what_was_never_seen_have_tables_of_their_own(words):
    text = Path(words[-1]).read_text()
    cold = re.findall(r"^\| cold: three scans a trail \|(?: [01]\.\d{3} \|){3}$", text, re.M)
    assert len(cold) == 1
    kinds = re.findall(r"^\| never saw grade 2 \| `(\w+)` \|", text, re.M)
    assert kinds == list(ablation.VARIANTS["never saw grade 2"].left_out)


def marked_part():
    """A part in which every third trail was tampered with, by turns in one of two ways."""
    whole = part(3)
    whole.synthetic[:] = whole.trail % 3 == 0
    numbers = [ablation.NAMES.index(name) for name in ("jump_fast", "dup_second_sale")]
    first = np.isin(np.arange(len(whole)), whole.offsets[:-1])
    whole.subtype[:] = np.where(first & whole.synthetic, np.take(numbers, whole.trail % 2), -1)
    return whole


def test_a_kind_that_was_never_seen_takes_its_whole_trails_along():
    whole = marked_part()
    left = ablation.never_seen("jump_fast").learned(whole, None)
    kept = (whole.trail % 3 != 0) | (whole.trail % 2 == 1)
    assert 0 < (~kept).sum() < len(kept)
    assert left.features.tolist() == whole.features[kept].tolist()
    assert left.offsets[-1] == kept.sum()


def test_tampered_trails_come_twice():
    whole = marked_part()
    more = ablation.tampered_twice(whole, None)
    assert len(more.offsets) - 1 == 300 + 100
    assert more.features[len(whole) :].tolist() == whole.features[whole.synthetic].tolist()
    assert more.target[len(whole) :].tolist() == whole.target[whole.synthetic].tolist()


def test_a_cold_network_sees_three_scans_of_each_trail():
    whole = part(3)
    cold = ablation.first_scans(whole, None)
    assert np.diff(cold.offsets).tolist() == np.minimum(np.diff(whole.offsets), 3).tolist()
    assert (cold.features[cold.offsets[:-1]] == whole.features[whole.offsets[:-1]]).all()
    assert len(cold.target) == cold.offsets[-1]


def test_jitter_leaves_flags_and_the_trails_themselves_alone():
    whole = part(3)
    whole.features[:, 1] = whole.features[:, 1] > 0
    more = ablation.jittered(whole, None).features
    assert (more[: len(whole)] == whole.features).all()
    off = more[len(whole) :] - whole.features
    assert not off[:, 1].any()
    assert off[:, 0].std() == pytest.approx(0.05 * whole.features[:, 0].std(), rel=0.1)


def on_unknown_roads(folder):
    """A hundred trails, the last ten hold whole boxes, thirty before them other roads."""
    whole = part(3, trails=100)
    (folder / "labelled").mkdir()
    for name, first, last in ((ablation.STRETCHED, 60, 90), (ablation.BOXED, 90, 100)):
        rows = whole.offsets[last] - whole.offsets[first]
        scans = pa.table({"row": np.arange(rows)})
        pq.write_table(scans, folder / "labelled" / f"{name}.parquet")
    return whole, argparse.Namespace(sequences=folder / "sequences")


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        ((ablation.STRETCHED,), [*range(60), *range(90, 100)]),
        ((ablation.BOXED,), range(90)),
        ((ablation.STRETCHED, ablation.BOXED), range(60)),
    ],
)
def test_lots_that_are_seen_once_more_in_some_way_are_left_out(tmp_path, names, kept):
    whole, asked = on_unknown_roads(tmp_path)
    left = ablation.without_more(*names)(whole, asked)
    assert left.features.tolist() == whole.features[np.isin(whole.trail, kept)].tolist()


def test_a_share_of_those_lots_are_whole_lots(tmp_path):
    whole, asked = on_unknown_roads(tmp_path)
    whole.lot[:] = whole.trail // 5
    left = ablation.without_more(ablation.STRETCHED, share=0.5)(whole, asked)
    lots = np.unique(left.lot)
    assert [*range(12), 18, 19] == [lot for lot in lots if lot < 12 or lot >= 18]
    assert len(lots) == 12 + 3 + 2
    kept = np.isin(whole.lot, lots)
    assert left.features.tolist() == whole.features[kept].tolist()


def test_half_of_the_lots_are_whole_lots():
    whole = part(3)
    lots = np.repeat(np.arange(10), 30)
    whole.lot[:] = lots[whole.trail]
    half = ablation.of_lots(0.5)(whole, None)
    kept = np.isin(whole.lot, np.unique(half.lot))
    assert len(np.unique(half.lot)) == 5
    assert half.features.tolist() == whole.features[kept].tolist()
    assert half.offsets[-1] == kept.sum() and (np.diff(half.offsets) > 0).all()


def test_wrong_labels_are_as_many_as_they_say():
    whole = part(3, trails=5000)
    counted = whole.target >= 0
    changed = ablation.flipped(whole, None).target != whole.target
    assert not changed[~counted].any()
    assert changed[counted].mean() == pytest.approx(0.05, abs=0.003)
    mistaken = ablation.mistaken(whole, None).target
    bad = whole.target[:, 0] == 1
    assert (mistaken[bad, 0] == 0).mean() == pytest.approx(0.05, abs=0.001)
    assert (mistaken[:, 0] == 1).sum() == bad.sum()


def test_without_weights_it_says_what_to_run(tmp_path, capsys):
    assert ablation.main(["--weights", str(tmp_path)]) == 2
    assert "make run" in capsys.readouterr().err
