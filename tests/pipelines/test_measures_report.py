"""Blocks, the tree of figures, tables, plots and the card, on a made-up part."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from pipelines.measures import blocks, curves, figures
from pipelines.measures.card import Provenance, card
from pipelines.measures.headline import headline, rounded
from pipelines.measures.report import TUNED, Operating, flags, pairs, report
from pipelines.measures.settings import Settings
from pipelines.measures.summary import summary
from pipelines.measures.thresholds import NEVER, choose
from tests.pipelines.test_measures_synthetic import SUBTYPES, make
from tests.pipelines.test_measures_thresholds import SECTION
from trail.scan import ANOMALIES

SETTINGS = Settings.read(SECTION | {"bootstrap": 100})


@pytest.fixture(scope="module")
def made():
    return make(lots=30, items=96, seed=5)


@pytest.fixture(scope="module")
def operating(made):
    part, scores, _ = made
    own = np.full(5, 0.5, np.float32)
    chosen = {
        (TUNED if model == "rules" else model): Operating(
            model, choose(score, blocks.scored_target(part), part.lot, SETTINGS).row()
        )
        for model, score in scores.items()
    }
    return {"rules": Operating("rules", own), **chosen}


@pytest.fixture(scope="module")
def injected(made):
    return blocks.injected(*made)


@pytest.fixture(scope="module")
def natural(made):
    return blocks.natural(*made)


@pytest.fixture(scope="module")
def tree(injected, natural, operating):
    both = [report(block, operating, SETTINGS, SUBTYPES) for block in (injected, natural)]
    return rounded(headline(*both))


def test_blocks_share_no_tampered_trail(made, injected, natural):
    part, _, answers = made
    tampered = np.isin(part.event_id, answers.event_id[answers.anomaly >= 0])
    touched = np.isin(part.trail, part.trail[tampered])
    assert len(injected) == (~touched).sum()
    assert not (injected.target == 1)[injected.anomaly < 0].any()
    assert len(natural) == (~part.synthetic).sum()
    # No injected scan is in the natural block, where all of a trail's truth is the world's.
    assert (natural.target == 1).sum() > 0
    assert set(np.unique(natural.lot)) <= set(np.unique(part.lot))


def test_natural_truth_counts_from_the_evidence(made, natural):
    for at in np.flatnonzero(natural.cause & ~natural.control):
        trail = natural.trail == natural.trail[at]
        told = np.flatnonzero(trail & natural.evidence)[0]
        kind = natural.anomaly[at]
        assert natural.target[at, kind] == (1 if at >= told else -1)
        # The made-up answers blur the next type on each scan of the cause.
        assert natural.target[at, (kind + 1) % 5] == -1
        assert natural.target[at, (kind + 2) % 5] == 0


def test_controls_are_in_no_block(injected, natural):
    for block in (injected, natural):
        trails = np.unique(block.trail[block.control])
        assert len(trails)
        assert (block.target[np.isin(block.trail, trails)] == -1).all()


def test_trails_are_numbered_anew_and_positions_begin_at_one(injected):
    first = np.flatnonzero(np.diff(injected.trail, prepend=-1))
    assert (injected.position[first] == 1).all()
    assert injected.trail[-1] + 1 == len(first)
    assert (np.diff(injected.position)[np.diff(injected.trail) == 0] == 1).all()


def test_without_answers_every_trail_is_kept(made):
    part, scores, _ = made
    assert len(blocks.injected(part, scores, None)) == len(part.lot)


def test_verdicts_are_a_block_of_their_own(made):
    part, scores, _ = made
    judged = np.zeros(len(part.lot), np.int8)
    honest = np.flatnonzero(~part.synthetic)[0]
    judged[honest] = blocks.ANALYST
    part = replace(part, label_source=judged)
    found = blocks.verdicts(part, scores)
    assert len(found) == (part.trail == part.trail[honest]).sum()
    kept = blocks.injected(part, scores, None)
    assert len(kept) == len(part.lot) - len(found)


def test_average_precision_of_the_tree_is_that_of_scikit_learn(injected, tree):
    for model, score in injected.scores.items():
        values = []
        for k, kind in enumerate(ANOMALIES):
            counted = injected.target[:, k] >= 0
            positive = injected.target[counted, k] == 1
            values.append(average_precision_score(positive, score[counted, k]))
            assert tree["ap"][model][kind] == pytest.approx(values[-1], rel=1e-3)
        assert tree["map"][model] == pytest.approx(np.mean(values), rel=1e-3)


def test_the_headline_has_what_is_promised(tree):
    models = {"rules", "svm", "gbm", "lstm"}
    assert set(tree["map"]) == set(tree["map_natural"]) == models
    for key in ("ap", "recall_at_fpr1"):
        assert set(tree[key]) == models
    for key in ("specificity", "f1", "accuracy"):
        assert set(tree[key]) == models | {TUNED}
        assert set(tree[key]["lstm"]) == set(ANOMALIES)
    assert set(tree["fpr_upper95"]) == set(ANOMALIES)
    gain = tree["vs_rules"]["map_gain"]
    assert 0 < gain["low"] < gain["mid"] < gain["high"]
    assert gain["mid"] == pytest.approx(tree["map"]["lstm"] - tree["map"]["rules"], abs=1e-3)
    assert all(0 <= value <= 1 for value in tree["fpr_upper95"].values())


def test_the_tree_tells_grades_controls_positions_and_business_apart(tree):
    injected = tree["injected"]
    grades = injected["grades"]["lstm"]["jump"]
    assert grades["0"] >= grades["3"]
    assert "never_injected" in {n for by in tree["natural"]["subtypes"].values() for n in by}
    assert "never_injected" not in {n for by in injected["subtypes"].values() for n in by}
    for kind in ANOMALIES:
        (control,) = injected["controls"][kind].values()
        assert control["auc"]["lstm"]["low"] < 0.55
        assert control["auc"]["lstm"]["high"] > 0.45
    assert set(injected["position"]) == {"1", "2-3", "4+"}
    assert injected["position"]["1"]["scans"] == injected["trails"]
    assert set(injected["calibration"]) == {"svm", "gbm", "lstm"}
    assert injected["gain"]["lstm_vs_gbm"]["ap"]["jump"]["p_holm"] <= 1
    # The rules' own threshold lets in the 1 % of scans that they score 60, the chosen one does not.
    own, tuned = (injected["operating"][m]["epcFake"] for m in ("rules", TUNED))
    assert own["specificity"] < 0.995 < tuned["specificity"]
    assert own["saving"] < tuned["saving"]


def test_pairs_are_each_against_the_rules_and_the_learned_among_each_other():
    assert pairs(["rules", "svm", "gbm", "lstm"]) == [
        ("svm", "rules"),
        ("gbm", "rules"),
        ("lstm", "rules"),
        ("lstm", "gbm"),
    ]
    assert ("stack", "lstm") in pairs(["rules", "gbm", "lstm", "stack"])


def test_the_same_input_gives_the_same_tree(injected, operating):
    trees = [report(injected, operating, SETTINGS, SUBTYPES) for _ in range(2)]
    assert json.dumps(rounded(trees[0])) == json.dumps(rounded(trees[1]))


def test_numbers_are_rounded_and_nothing_is_null():
    tree = {"a": math.nan, "b": 0.123456, "c": {"d": 12345.678, "e": 3, "f": True}, "g": math.inf}
    assert rounded(tree) == {
        "a": None,
        "b": 0.1235,
        "c": {"d": 12346, "e": 3, "f": True},
        "g": None,
    }


def test_a_type_without_a_scan_is_not_measured(injected, operating):
    target = np.where(injected.target == 1, 0, injected.target)
    target[:, 1:] = injected.target[:, 1:]
    tree = rounded(
        headline(report(replace(injected, target=target), operating, SETTINGS, SUBTYPES), None)
    )
    assert tree["ap"]["lstm"]["epcFake"] is None
    assert tree["map"]["lstm"] > 0.5
    assert tree["map_natural"] == {}
    assert "not measured" in summary(tree)
    assert figures.ap_figure(tree["injected"], tree["natural"])
    assert card(tree, SETTINGS, Provenance("run", "none", "abc", []))


def test_curves_are_thin_and_end_where_they_must(injected):
    rows = curves.pr_rows(injected)
    for kind in ANOMALIES:
        curve = [r for r in rows if r["type"] == kind and r["model"] == "lstm"]
        assert 10 < len(curve) <= curves.PR_POINTS + 1
        assert curve[-1]["recall"] == 1
        assert [r["recall"] for r in curve] == sorted(r["recall"] for r in curve)
    assert curves.thinned(np.zeros(0), 5).size == 0
    cost = [r for r in curves.cost_rows(injected, SETTINGS) if r["model"] == "lstm"]
    assert len(cost) == 5 * curves.COST_POINTS
    assert min(r["cost_share"] for r in cost) < 0.6
    assert sum(r["scans"] for r in curves.reliability_rows(injected) if r["type"] == "jump") == (
        3 * (injected.target[:, 4] >= 0).sum()
    )


def test_cost_at_the_threshold_is_that_of_the_curve(injected, tree, operating):
    rows = curves.cost_rows(injected, SETTINGS)
    at = float(operating["lstm"].threshold[4])
    curve = [r for r in rows if r["model"] == "lstm" and r["type"] == "jump"]
    share = np.interp(at, [r["threshold"] for r in curve], [r["cost_share"] for r in curve])
    assert 1 - share == pytest.approx(
        tree["injected"]["operating"]["lstm"]["jump"]["saving"], abs=0.05
    )


def test_confusion_rows_name_the_type_that_stands_out(injected, operating):
    rows = curves.confusion_rows(injected, injected.scores["lstm"], operating["lstm"].threshold)
    tampered = [r for r in rows if r["actual"] != "honest"]
    assert len(tampered) == (injected.target == 1).sum()
    assert np.mean([r["actual"] == r["predicted"] for r in tampered]) > 0.5
    assert all(r["predicted"] != "none" for r in rows if r["actual"] == "honest")


def test_a_table_has_stable_text():
    assert (
        curves.table([{"a": "x", "b": 1 / 3}, {"a": "y", "b": math.nan}]) == "a,b\nx,0.3333\ny,\n"
    )
    assert curves.table([]) == ""


def test_plots_are_pictures_that_name_no_version(injected, tree, operating):
    found = tree["injected"]
    flagged = {name: flags(injected, how) for name, how in operating.items()}
    marks = {"lstm": {"jump": 0.3, "locErr": NEVER}}
    for png in (
        figures.pr_figure(curves.pr_rows(injected), found["ap"]),
        figures.reliability_figure(curves.reliability_rows(injected)),
        figures.cost_figure(curves.cost_rows(injected, SETTINGS), marks),
        figures.confusion_figure(found["confusion"]["lstm"], "lstm"),
        figures.ap_figure(found, tree["natural"]),
        figures.recall_figure(found, "Recall"),
        figures.grades_figure(found),
        figures.delay_figure(curves.delay_rows(injected, flagged), list(flagged)),
    ):
        assert png.startswith(b"\x89PNG")
        assert b"Software" not in png


def test_the_card_says_what_a_person_must_know(tree):
    parts = [("train", 360_000, 80_000, 700), ("test", 120_000, 27_000, 240)]
    text = card(tree, SETTINGS, Provenance("python -m pipelines.evaluate", "md5", "f" * 64, parts))
    for heading in (
        "## Data",
        "## Average precision, injected tampering",
        "## Average precision, natural tampering",
        "## Controls",
        "## At the operating thresholds",
        "## What it cannot do",
    ):
        assert heading in text
    assert "python -m pipelines.evaluate" in text
    assert "360,000" in text
    assert "nan" not in text
    widths = [len(line.split("|")) for line in text.splitlines() if line.startswith("|")]
    assert min(widths) > 3


def test_the_summary_is_a_table_of_models_and_types(tree):
    lines = summary(tree).splitlines()
    assert lines[1].split()[:5] == list(ANOMALIES)
    (row,) = [line for line in lines[:7] if line.startswith("LSTM")]
    assert f"{tree['map']['lstm']:.3f} [" in row
    assert "+0." in row
