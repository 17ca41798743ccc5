"""The benchmark card says what the reports of the worlds say, and shows its plots."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest

from bench import calibrating, card, card_page
from pipelines.measures import explanations
from pipelines.measures.blocks import Block
from tests.serving.champion import small_champion

WORLDS = ("base", "W3", "W7", "W8")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    home = small_champion().home
    out = tmp_path_factory.mktemp("card") / "card.md"
    words = ["--weights", home / "models/weights", "--sequences", home / "work/sequences"]
    words += ["--scans", 12_000, "--seeds", 2, "--out", out, "--worlds", *WORLDS]
    assert card.main([str(word) for word in words]) == 0
    return out


def test_every_world_and_every_model_has_its_figures(page):
    text = page.read_text()
    for world in WORLDS:
        row = next(line for line in text.splitlines() if line.startswith(f"| {world} |"))
        found = re.findall(r"(0\.\d{3}|1\.000) \[([\d.]+), ([\d.]+)\]", row)
        assert len(found) == 5, "rules, svm, gbm, lstm and the stack"
        for mid, low, high in found:
            assert float(low) - 0.001 <= float(mid) <= float(high) + 0.001
    for subtype in card.UNSEEN:
        assert f"`{subtype}`" in text
    assert "--worlds base W3 W7 W8" in text
    for way in calibrating.WAYS:
        assert len(re.findall(rf"^\| {re.escape(way)} \|( [\d.]+ \|){{7}}$", text, re.M)) == 1
    for baseline in explanations.BASELINES:
        assert re.search(rf"^\| {baseline} \| epcFake \| [1-9]", text, re.M)


def test_its_plots_lie_beside_it(page):
    shown = re.findall(r"!\[.*?\]\((.*?)\)", page.read_text())
    assert len(shown) == 3
    for path in shown:
        assert (page.parent / path).read_bytes().startswith(b"\x89PNG")


def test_lots_and_trails_of_two_seeds_stay_apart():
    def block(lots: list[int], trails: list[int]) -> Block:
        n = len(lots)
        plain = {name: np.zeros(n, np.int64) for name in Block.__slots__}
        plain |= {"lot": np.array(lots), "trail": np.array(trails)}
        return Block(**{**plain, "name": "injected", "scores": {"rules": np.zeros((n, 5))}})

    both = card.together([block([7, 7, 9], [0, 0, 1]), block([7, 8], [0, 1])])
    assert len(np.unique(both.lot)) == 4
    assert both.trail.tolist() == [0, 0, 1, 2, 3]
    assert both.scores["rules"].shape == (5, 5)


def test_verdicts_are_parted_by_how_sure_they_are():
    n = 6
    plain = {name: np.zeros(n, np.int64) for name in Block.__slots__}
    score, target = np.zeros((n, 5), np.float32), np.zeros((n, 5), np.int8)
    score[:, 2] = [0.9, 0.8, 0.7, 0.2, 0.1, 0.01]  # 87, 75, 62, 17, 8, 1 where 0.6 is the threshold
    target[:, 2] = [1, 0, 1, 1, -1, 0]
    block = Block(
        **{**plain, "name": "injected", "scores": {card_page.SERVED: score}, "target": target}
    )
    told = card_page.bands(block, np.full(5, 0.6, np.float32))
    assert [row[1:] for row in told] == [["2", "50.000%"], ["1", "100.000%"], ["2", "50.000%"]]


@pytest.mark.full
def test_its_own_models_are_trained_once_and_beside_the_default_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAILWATCH_HOME", str(tmp_path))
    others = card.ROOT / "models/weights/digest.json"
    before = others.read_bytes() if others.exists() else None
    try:
        folder = card.trained(60_000, "card-test")
        digest = folder / "models/weights/digest.json"
        made = digest.stat().st_mtime_ns
        assert json.loads(digest.read_text())["sha256"]
        assert card.trained(60_000, "card-test") == folder
        assert digest.stat().st_mtime_ns == made
        assert card._lots(folder / "work/sequences", "calibration") >= 2
    finally:
        shutil.rmtree(card.ROOT / "workspaces/card-test", ignore_errors=True)
    assert (others.read_bytes() if others.exists() else None) == before


def test_without_weights_it_says_what_to_run(tmp_path, capsys):
    assert card.main(["--weights", str(tmp_path)]) == 2
    assert "make run" in capsys.readouterr().err
