"""Controls on worlds of their own: measured by lot, and a model that tells one is named."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench import controls
from tests.serving.champion import small_champion
from world.tampering import NAMES

SCANS = 40_000


def weights() -> Path:
    return small_champion().home / "models/weights"


def test_a_model_that_knows_the_answer_leaks_and_chance_does_not():
    found = {}
    for control in controls.CONTROLS:
        block = controls.scored(weights(), control, controls.FIRST_SEED, SCANS)
        assert set(np.unique(block.subtype[block.subtype >= 0])) == {NAMES.index(control.name)}
        chance = np.random.default_rng(1).random((len(block), 5), np.float32)
        scores = {"chance": chance, "answer": chance + block.control[:, None]}
        of = controls.told(replace(block, scores=scores), control)
        assert of.lots > 0
        assert of.auc["answer"].auc == 1
        assert of.auc["chance"].low < 0.55
        assert of.auc["chance"].high > 0.45
        found[control.name] = of
    text = controls.page(found, "answer", "command")
    assert set(found) == set(re.findall(r"`(\w+)`", text.split("for answer:")[1].split(".")[0]))
    assert "for chance: none." in controls.page(found, "chance", "command")


def test_the_page_has_each_control_by_each_model(tmp_path):
    out = tmp_path / "page.md"
    words = ["--weights", weights(), "--scans", SCANS, "--worlds", 1, "--out", out]
    assert controls.main([str(word) for word in words]) == 0
    text = out.read_text()
    for control in controls.CONTROLS:
        assert text.count(f"| `{control.name}` |") == 2
    assert "lstm | stack" in text


def test_it_says_what_to_do_without_models(tmp_path, capsys):
    assert controls.main(["--weights", str(tmp_path)]) == 2
    assert "make run" in capsys.readouterr().err
