"""Controls on worlds of their own: measured by lot, and a model that tells one is named."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from bench import controls
from tests.serving.champion import small_champion

SCANS = 40_000


@pytest.fixture(scope="module")
def block():
    return controls.scored(small_champion().home / "models/weights", SCANS, 2)


def test_a_model_that_knows_the_answer_leaks_and_chance_does_not(block):
    chance = np.random.default_rng(1).random((len(block), 5), np.float32)
    answer = chance + block.control[:, None]
    found = controls.told(replace(block, scores={"chance": chance, "answer": answer}))
    for of in found.values():
        assert of.lots > 0
        assert of.auc["answer"].auc == 1
        assert of.auc["chance"].low < 0.55
        assert of.auc["chance"].high > 0.45
    text = controls.page(found, "answer", len(block), "command")
    assert set(found) == set(re.findall(r"`(\w+)`", text.split("for answer:")[1].split(".")[0]))
    assert "for chance: none." in controls.page(found, "chance", len(block), "command")


def test_the_page_has_each_control_by_each_model(tmp_path):
    out = tmp_path / "page.md"
    weights = small_champion().home / "models/weights"
    words = ["--weights", weights, "--scans", SCANS, "--worlds", 1, "--out", out]
    assert controls.main([str(word) for word in words]) == 0
    text = out.read_text()
    for control in controls.CONTROLS:
        assert text.count(f"| `{control.name}` |") == 2
    assert "lstm | stack" in text


def test_it_says_what_to_do_without_models(tmp_path, capsys):
    assert controls.main(["--weights", str(tmp_path)]) == 2
    assert "make run" in capsys.readouterr().err
