"""What explanations are worth: the table of causes, and explainers whose worth is known."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.calibration import Calibration
from models.explain import Attribution
from pipelines.measures import explanations
from pipelines.measures.causes import CAUSES, named
from pipelines.measures.explanations import (
    BASELINES,
    GOOD_P,
    HIT,
    REMOVED,
    TOP,
    Case,
    Drawn,
    deletion,
    draw,
    hits,
    measure,
    paired_p,
    short_of,
    wanted,
)
from tests.pipelines.test_measures_synthetic import SUBTYPES as MADE
from tests.pipelines.test_measures_synthetic import make
from trail.features import FEATURES
from trail.scan import ANOMALIES, EVENT_TYPES
from world.subtypes import SUBTYPES

EVEN = Calibration(np.ones(5), np.zeros(5))
WIDTH = 40


def test_every_kind_of_tampering_that_can_be_told_has_a_cause_and_no_other():
    assert set(CAUSES) == {subtype.name for subtype in SUBTYPES if not subtype.control}
    assert all(CAUSES.values())


def test_causes_are_features_and_neither_operations_nor_places_in_the_trail():
    used = frozenset().union(*CAUSES.values())
    assert used <= set(FEATURES)
    bystanders = {f"op_{name}" for name in EVENT_TYPES} | {"op_place", "direction", "first_op"}
    bystanders |= {"is_first", "position_log", "group_log", "registry", "network", "site_known"}
    assert not used & bystanders


def test_a_cause_has_the_rule_of_its_own_type_only():
    for subtype in SUBTYPES:
        rules = {name for name in CAUSES.get(subtype.name, ()) if name.startswith("rule_")}
        assert rules <= {f"rule_{ANOMALIES[subtype.anomaly]}"}


def test_causes_are_found_by_column():
    for name, causes in CAUSES.items():
        assert {FEATURES[i] for i in np.flatnonzero(named(name))} == causes
    with pytest.raises(KeyError):
        named("jump_plausible")


@given(st.lists(st.booleans(), min_size=1, max_size=5), st.integers(1, 4))
def test_all_orders_together_hit_as_often_as_chance(cause, top):
    cause = np.array(cause)
    orders = [np.array(o, np.float32) for o in itertools.permutations(range(len(cause)))]
    found = hits([(order, cause) for order in orders], top)
    if top >= len(cause) - cause.sum() + 1 or not cause.any():
        assert found.cases == 0
        assert math.isnan(found.hit) and math.isnan(found.corrected)
    else:
        assert found.cases == len(orders)
        assert found.hit == pytest.approx(found.chance)
        assert found.corrected == pytest.approx(0)


def test_a_perfect_explainer_always_hits_and_the_worst_never():
    cause = np.arange(WIDTH) < 5
    assert hits([(cause.astype(np.float32), cause)] * 3, TOP).corrected == 1
    worst = hits([((~cause).astype(np.float32), cause)] * 3, TOP)
    assert worst.hit == 0 and worst.corrected < 0


class Known:
    """A model whose log-odds are a weighted sum of all scans, and that is explained exactly.

    With `noise` the explanation has nothing to do with the model.
    """

    def __init__(self, weight: np.ndarray, noise: np.random.Generator | None = None) -> None:
        self.length = 6
        self.typical = np.full(len(weight), 0.25, np.float32)
        self._weight = weight
        self._noise = noise

    def log_odds(self, features):
        assert features.dtype == np.float32
        sums = (features @ self._weight).sum(axis=1) - 11
        return np.repeat(sums[:, None], 5, axis=1)

    def attribute(self, features, anomaly, baseline="mean"):
        window = features[-self.length :]
        against = np.broadcast_to(
            self.typical if baseline == "mean" else np.float32(0), window.shape
        )
        both = self.log_odds(np.stack([window, against]))[:, anomaly].tolist()
        parts = (window - against) * self._weight
        if self._noise is not None:
            parts = self._noise.normal(size=parts.shape)
        return Attribution(parts.astype(np.float32), both[0], both[1], 1)


def one_feature(cases: int = 25, scans: int = 8) -> tuple[np.ndarray, list[Drawn]]:
    """Weights of a model for which one feature counts, and cases where one scan has it."""
    rng = np.random.default_rng(1)
    weight = np.zeros(WIDTH, np.float32)
    weight[7] = 6
    drawn = []
    for k in range(len(ANOMALIES)):
        made = []
        for _ in range(cases):
            features = rng.random((scans, WIDTH), np.float32)
            features[:, 7] = 0.25
            features[-2, 7] = 1 + rng.random()
            made.append(Case(features, np.arange(scans) == scans - 2, k))
        drawn.append(Drawn(made, [np.isin(np.arange(WIDTH), (7, 8))] * cases))
    return weight, drawn


def test_a_perfect_explainer_gets_everything_right():
    weight, drawn = one_feature()
    steps = []
    found = measure(Known(weight), EVEN, drawn, 3, steps.append)
    assert sum(steps) == len(BASELINES) * 5 * 25
    assert set(found.tree) == set(BASELINES)
    for one in found.tree["mean"].values():
        assert one["cases"] == one[f"{HIT}_cases"] == one["localisation_cases"] == 25
        assert one[f"{HIT}_corrected"] == one["localisation"] == 1
        assert one["localisation_chance"] == pytest.approx(1 / 6)
        assert one["deletion"] > 0.2 > one["deletion_random"] >= 0
        assert one["deletion_p"] < GOOD_P
        assert one["completeness_p95"] < 1e-5
    assert short_of(found.tree["mean"]) == []


def test_a_random_explainer_gets_nothing_right():
    weight, drawn = one_feature(cases=120)
    noise = np.random.default_rng(5)
    found = measure(Known(weight, noise), EVEN, drawn, 3, lambda step: None)
    for by_type in found.tree.values():
        for name in (f"{HIT}_corrected", "localisation_corrected"):
            assert abs(np.mean([one[name] for one in by_type.values()])) < 0.1
        assert np.median([one["deletion_p"] for one in by_type.values()]) > GOOD_P
        assert min(one["completeness_p95"] for one in by_type.values()) > 0.05
    assert len(short_of(found.tree["mean"])) >= 10


def test_deleting_the_feature_that_matters_leaves_what_is_usual():
    weight, drawn = one_feature()
    known, case = Known(weight), drawn[0].cases[0]
    left = deletion(known, EVEN, case, known.attribute(case.features, 0), np.random.default_rng(0))
    assert left.shape == (len(REMOVED), 2)
    before, usual = known.attribute(case.features, 0).log_odds, 6 * 6 * 0.25 - 11
    assert left[0] == pytest.approx(1 / (1 + np.exp(-before)), abs=1e-5)
    assert left[1:, 0] == pytest.approx(1 / (1 + np.exp(-usual)), abs=1e-5)
    assert (np.diff(left[:, 1]) <= 1e-7).all()  # whatever goes, it comes no nearer to an anomaly


def test_curves_begin_at_the_probability_and_have_every_type():
    weight, drawn = one_feature()
    found = measure(Known(weight), EVEN, drawn, 3, lambda step: None)
    assert len(found.curves) == len(BASELINES) * len(ANOMALIES) * len(REMOVED)
    for row in found.curves:
        if row["removed"] == 0:
            assert row["first"] == pytest.approx(row["random"])
    last = {r["type"]: r for r in found.curves if r["removed"] == TOP and r["baseline"] == "mean"}
    for kind, one in found.tree["mean"].items():
        assert last[kind]["random"] > last[kind]["first"]
        assert one["deletion"] > one["deletion_random"]


def test_a_type_without_cases_has_no_figures():
    weight, drawn = one_feature()
    found = measure(Known(weight), EVEN, [*drawn[:4], Drawn([], [])], 3, lambda step: None)
    missing = found.tree["mean"][ANOMALIES[4]]
    assert missing["cases"] == 0
    for name in (HIT, "localisation", "deletion", "deletion_p", "completeness_p95"):
        assert math.isnan(missing[name])
        assert not math.isnan(found.tree["mean"][ANOMALIES[0]][name])


@pytest.fixture(scope="module")
def made():
    part, scores, answers = make(lots=30, items=96, seed=5)
    features = np.arange(len(part.lot), dtype=np.float32)[:, None]
    return replace(part, features=features), scores["lstm"] > 0.5, answers


@pytest.fixture
def anything_named(monkeypatch):
    monkeypatch.setattr(explanations, "named", lambda name: np.array([MADE.index(name)]))


def rows_of(drawn: list[Drawn]) -> list[list[int]]:
    """The scan that each case ends with; the made feature is its row."""
    return [[int(case.features[-1, 0]) for case in one.cases] for one in drawn]


@pytest.mark.usefixtures("anything_named")
def test_cases_are_rightly_flagged_and_injected(made):
    part, flagged, answers = made
    drawn = draw(part, flagged, answers, MADE, 12, 1)
    natural = np.isin(part.event_id, answers.event_id)
    for k, (one, rows) in enumerate(zip(drawn, rows_of(drawn), strict=True)):
        assert 0 < len(rows) <= 12
        assert len(set(rows)) == len(rows)
        for row, case, cause in zip(rows, one.cases, one.named, strict=True):
            assert flagged[row, k] and part.target[row, k] == 1 and case.anomaly == k
            assert not part.control[row] and not natural[row]
            start = part.offsets[part.trail[row]]
            assert case.features[:, 0].tolist() == list(range(start, row + 1))
            assert (case.cause == part.cause[start : row + 1]).all()
            assert cause == part.subtype[row]
    assert rows_of(draw(part, flagged, answers, MADE, 12, 1)) == rows_of(drawn)
    assert rows_of(draw(part, flagged, answers, MADE, 12, 2)) != rows_of(drawn)


@pytest.mark.usefixtures("anything_named")
def test_trails_that_others_touched_are_left_out(made):
    part, flagged, answers = made
    rows = rows_of(draw(part, flagged, answers, MADE, 200, 1))[0]
    theirs = replace(part, event_id=part.event_id.copy(), label_source=part.label_source.copy())
    # The world hides something in one of these trails, an analyst has judged another.
    one, other = part.trail[rows[0]], part.trail[rows[-1]]
    assert one != other
    theirs.event_id[part.offsets[one]] = answers.event_id[answers.anomaly >= 0][0]
    theirs.label_source[part.offsets[other]] = explanations.ANALYST
    left = rows_of(draw(theirs, flagged, answers, MADE, 200, 1))[0]
    assert set(rows) - set(left) == {r for r in rows if part.trail[r] in (one, other)}


@pytest.mark.usefixtures("anything_named")
def test_no_kind_in_a_lot_comes_twice_before_all_came_once(made):
    part, flagged, answers = made
    # A box of one kind in one lot is most of what was flagged.
    crowded = replace(part, lot=np.where(np.arange(len(part.lot)) % 3 > 0, 3, part.lot))
    everything = [
        len({(crowded.lot[r], part.subtype[r]) for r in rows})
        for rows in rows_of(draw(crowded, flagged, answers, MADE, 10_000, 1))
    ]
    each = min(everything)
    for rows in rows_of(draw(crowded, flagged, answers, MADE, each, 1)):
        assert len({(crowded.lot[r], part.subtype[r]) for r in rows}) == each


@pytest.mark.usefixtures("anything_named")
def test_a_box_is_drawn_as_often_as_a_single_item(made):
    part, flagged, answers = made
    right = np.flatnonzero(flagged[:, 0] & (part.target[:, 0] == 1))
    kind = part.subtype.copy()
    kind[right] = np.where(np.arange(len(right)) < 12, 1, 2)
    # Twelve scans of one kind, each in a lot of its own, and one lot with all others.
    lot = part.lot.copy()
    lot[right] = np.where(np.arange(len(right)) < 12, np.arange(len(right)) + 10_000, 9_999)
    mixed = replace(part, subtype=kind, lot=lot)
    box = set(right[12:].tolist())
    assert len(box) > 24
    drawn = [rows_of(draw(mixed, flagged, answers, MADE, 1, seed))[0][0] for seed in range(150)]
    assert np.mean([row in box for row in drawn]) == pytest.approx(1 / 13, abs=0.06)


def test_pairs_are_tested_one_sided():
    assert math.isnan(paired_p(np.empty(0)))
    assert paired_p(np.zeros(9)) == 1
    assert paired_p(np.linspace(0.1, 0.9, 20)) < 0.001
    assert paired_p(-np.linspace(0.1, 0.9, 20)) > 0.99


def test_the_number_of_cases_is_checked():
    assert wanted({"explained": 40}) == 40
    with pytest.raises(ValueError, match=r"evaluate\.explained is 0; write 1 or more"):
        wanted({"explained": 0})
    with pytest.raises(KeyError):
        wanted({})


def test_what_is_missing_is_not_short():
    figures = {f"{HIT}_corrected": 0.8, "localisation": None, "deletion_p": 0.001}
    assert short_of({"jump": {**figures, "completeness_p95": 0.06}}) == [
        "jump, hit@3 corrected 0.8",
        "jump, completeness error 0.06",
    ]
