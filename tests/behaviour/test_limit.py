"""The world tells which times were typed by hand, and what they cost the judges of a jump."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench import limit
from intake.columns import to_scans
from intake.master import read_sites
from tests.serving.champion import small_champion
from trail.scan import Op
from world.export import write_csv
from world.simulate import Options, simulate

SMALL = Options(seed=3, scans=20_000, natural_share=0.0)
TYPED = {"manual_sd_h": 0.0}
TOLD = "boosting of 2 more worlds, only jumps and wrong times"


def test_typed_times_are_as_many_as_the_profile_says():
    world = simulate(SMALL)
    (typed,) = limit.recorded_wrongly(SMALL, TYPED)
    assert len(typed) == world.scans.num_rows
    assert 0.003 < typed.mean() < 0.008
    (of_easy,) = limit.recorded_wrongly(replace(SMALL, profile="easy"), TYPED)
    assert not of_easy.any()


def test_boxes_are_recorded_late_together():
    late, none = limit.recorded_wrongly(SMALL, {"late_mean_h": 0.0}, {})
    assert 0.002 < late.mean() < 0.02
    assert not none.any()


def test_what_was_typed_is_off_and_no_commissioning(tmp_path):
    world = simulate(SMALL)
    write_csv(world.sites, tmp_path / "sites.csv")
    scans = to_scans(world.scans, read_sites(tmp_path / "sites.csv")).scans
    typed = limit.recorded_wrongly(SMALL, TYPED)[0][scans.row]
    assert not (scans.op[typed] == Op.AGGREGATION).any()
    # Read alone, as nobody types two items wrongly by the same seconds.
    portal = np.stack([scans.lot, scans.site, scans.op, scans.time_us], axis=1)
    _, which, size = np.unique(portal, axis=0, return_inverse=True, return_counts=True)
    assert np.mean(size[which.ravel()][typed] == 1) > 0.95


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    home, out = small_champion().home, tmp_path_factory.mktemp("limit") / "page.md"
    words = ["--weights", home / "models/weights", "--scans", 20_000, "--worlds", 1]
    words += ["--fed", 1, 2, "--out", out]
    before = Path.cwd()
    os.chdir(home)
    try:
        assert limit.main([str(word) for word in words]) == 0
    finally:
        os.chdir(before)
    return str(out.read_text())


def test_each_judge_is_measured_with_and_without_typed_times(page):
    rows = [
        line.split("|")[1:-1] for line in page.splitlines() if re.search(r"\| [01]\.\d{3} ", line)
    ]
    names = [row[0].strip() for row in rows]
    assert {"gbm", "lstm", "stack", "boosting of 1 more world"} <= set(names)
    assert {"boosting of 2 more worlds", TOLD} <= set(names)
    for row in rows:
        whole, untyped, right, wrong = (float(cell.split()[0]) for cell in row[1:5])
        assert 0 < whole <= untyped <= right <= 1
        assert whole <= wrong <= 1


def test_who_learned_nothing_but_wrong_times_tells_them_and_nothing_else(page):
    (row,) = (line.split("|")[1:-1] for line in page.splitlines() if f"| {TOLD} |" in line)
    whole, wrong = (float(row[i].split()[0]) for i in (1, 4))
    assert wrong > whole + 0.1


def test_it_says_what_to_do_without_models(tmp_path, capsys):
    assert limit.main(["--weights", str(tmp_path)]) == 2
    assert "make run" in capsys.readouterr().err
