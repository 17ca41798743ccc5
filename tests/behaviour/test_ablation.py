"""Variants are trained on what they say, measured beside the network as it is, and kept."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

from bench import ablation
from pipelines import fitting
from tests.pipelines.test_fitting import part
from tests.serving.champion import small_champion

ONLY = ("as it is", "without the rules")


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    home, folder = small_champion().home, tmp_path_factory.mktemp("ablation")
    words = ["--weights", home / "models/weights", "--sequences", home / "work/sequences"]
    words += ["--scans", 12_000, "--seeds", 1, "--worlds", "W3", "--only", *ONLY]
    words += ["--keep", folder / "kept.jsonl", "--out", folder / "page.md"]
    before = Path.cwd()
    os.chdir(home)
    try:
        assert ablation.main([str(word) for word in words]) == 0
    finally:
        os.chdir(before)
    return [str(word) for word in words]


def test_each_variant_is_measured_in_each_world(words):
    text = Path(words[-1]).read_text()
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
