"""An explanation is true: judged again, what it says would have been normal is normal."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from models.bundle import Bundle
from serving.counterfactual import MINUTE_US, Case
from serving.explain import Explanation, explain
from serving.history import Recall
from serving.history.opened import open_history
from serving.judge import Model
from serving.sites import SiteBook
from tests.models.small_bundles import FAST, LATE, STRAYED, learned_network, small_bundle
from tests.trail.small import (
    DAY,
    HONEST,
    HOUR,
    REGISTRY,
    RETAIL,
    SITES,
    START_US,
    WHOLESALE,
    any_scans,
    code,
    scans_of,
)
from trail.facts import Context, previous_of
from trail.features import encode
from trail.mates import table_of
from trail.registry import Registry
from trail.scan import ANOMALIES, EVENT_TYPES, Anomaly, Op, Scans
from trail.sites import Sites
from trail.trails import sort

LOT = [(code(lot=5, serial=s), HONEST) for s in range(1, 41)]
TOGETHER = [(code(lot=6, serial=s), FAST if s > 20 else HONEST) for s in range(1, 41)]
FIRST_ID = 1000
ODD = code(lot=5, serial=60)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = small_bundle(tmp_path_factory.mktemp("explain") / "bundle")
    return Model("small", "3", Bundle(folder), REGISTRY)


@dataclass
class Told:
    """Scans that a history remembers, and the explanation of the last scan of one code."""

    scans: Scans
    sites: Sites
    recall: Recall
    at: int
    code: str

    def explain(self, model: Model | None, **more) -> Explanation:
        return explain(model, self.sites, self.recall, self.code, self.at, **more)


def told(trails, text: str) -> Told:
    """Let a history store remember trails, and recall one; event ids grow from FIRST_ID."""
    history = open_history(
        "memory:", keep_days_after_sale=90.0, keep_days_idle=400.0, durable="process"
    )
    book = SiteBook(history, SITES)
    scans = scans_of(trails)
    history.remember(scans, np.arange(len(scans)) + FIRST_ID)
    recall = history.recall([text])
    history.close()
    return Told(scans, book.sites, recall, int(np.argmax(recall.scans.time_us)), text)


@pytest.fixture(scope="module")
def fast():
    return told([*LOT, (ODD, FAST)], ODD)


@pytest.fixture(scope="module")
def strayed():
    return told([*LOT, (ODD, STRAYED)], ODD)


@pytest.fixture(scope="module")
def late():
    return told([*LOT, (ODD, LATE)], ODD)


def flags(model: Model | None, told: Told, **changes: int) -> np.ndarray:
    """Flags of the scan explained if it, and all that was scanned with it, had been different.

    All scans are encoded afresh, without any counters.
    """
    scans, row = told.scans, int(told.recall.event_id[told.at]) - FIRST_ID
    same = (scans.lot == scans.lot[row]) & (scans.time_us == scans.time_us[row])
    same &= (scans.site == scans.site[row]) & (scans.op == scans.op[row])
    fresh = {name: getattr(scans, name).copy() for name in changes}
    for name, value in changes.items():
        fresh[name][same] = value
    network = model.bundle.network if model else None
    registry = REGISTRY if model else Registry.none()
    encoded = encode(replace(scans, **fresh), Context(SITES, network, registry))
    at = int(np.flatnonzero(encoded.trails.order == row)[0])
    return model.verdicts(encoded).flag[at] if model else encoded.findings.score[at] >= 50


def test_a_jump_is_normal_from_a_minute_on_and_flagged_before(model, fast):
    found = fast.explain(model)
    assert (found.anomaly, found.flagged, found.source) == ("jump", True, "model")
    what = found.counterfactual
    assert what is not None
    assert (what.kind, what.together) == ("later", 1)
    assert not flags(model, fast, time_us=what.time_us)[Anomaly.JUMP]
    assert flags(model, fast, time_us=what.time_us - MINUTE_US)[Anomaly.JUMP]
    assert "It would be normal from 2025-07-05 0" in what.sentence


def test_what_was_scanned_together_moves_together(model):
    text = TOGETHER[-1][0]
    box = told(TOGETHER, text)
    found = box.explain(model, anomaly="jump")
    what = found.counterfactual
    assert what is not None
    assert what.together == 20
    assert "together with the 19 items" in what.sentence
    assert not flags(model, box, time_us=what.time_us)[Anomaly.JUMP]
    assert flags(model, box, time_us=what.time_us - MINUTE_US)[Anomaly.JUMP]


def test_a_wrong_place_names_places_that_are_right(model, strayed):
    found = strayed.explain(model)
    assert (found.anomaly, found.flagged) == ("locErr", True)
    what = found.counterfactual
    assert what is not None
    assert what.kind == "site"
    assert what.sites[0] == "5"  # where its mates went
    assert "normal at Wholesaler" in what.sentence
    for site in what.sites:
        assert not flags(model, strayed, site=SITES.ids.index(site))[Anomaly.LOC]


def test_a_wrong_order_is_normal_up_to_a_minute(model, late):
    found = late.explain(model, anomaly="evtOrderErr")
    assert found.flagged
    what = found.counterfactual
    assert what is not None
    assert what.kind == "earlier"
    assert not flags(model, late, time_us=what.time_us)[Anomaly.ORDER]
    assert flags(model, late, time_us=what.time_us + MINUTE_US)[Anomaly.ORDER]


def test_times_are_told_in_the_zone_of_the_installation(model, fast):
    utc = fast.explain(model).counterfactual
    seoul = fast.explain(model, zone=ZoneInfo("Asia/Seoul")).counterfactual
    assert utc is not None and seoul is not None
    assert utc.time_us == seoul.time_us
    assert utc.sentence != seoul.sentence


def test_what_is_not_flagged_needs_no_counterfactual(model):
    honest = told(LOT, LOT[0][0])
    found = honest.explain(model, anomaly="jump")
    assert not found.flagged
    assert found.counterfactual is None
    assert found.attributions is not None


def test_a_counterfactual_is_left_out_on_request(model, fast):
    assert fast.explain(model, with_counterfactual=False).counterfactual is None


def test_the_sentence_and_the_rule_say_why(model, fast):
    found = fast.explain(model)
    assert found.rule.startswith("The movement is impossible")
    assert found.rule_reason in ("too_fast", "below_route")
    assert found.rule_score >= 50
    assert found.sentence == (
        "Arrived 26 km away 4 minutes after the previous scan: 388 km/h; "
        "this route takes 2.0 to 3.0 hours."
    )


def test_attributions_are_of_this_trail_sorted_and_complete(model, fast):
    found = fast.explain(model)
    parts = found.attributions
    assert parts is not None
    assert parts.completeness_error < 0.05
    sizes = [abs(f.log_odds) for f in parts.features]
    assert sizes == sorted(sizes, reverse=True)
    cells = [abs(c.log_odds) for c in parts.cells]
    assert cells == sorted(cells, reverse=True)
    difference = parts.log_odds - parts.baseline_log_odds
    assert sum(s.log_odds for s in parts.scans) == pytest.approx(difference, rel=0.05)
    assert sum(parts.contexts.values()) == pytest.approx(difference, rel=0.05)
    assert [s.event_type for s in parts.scans] == [EVENT_TYPES[op] for op, _, _ in FAST]
    assert [s.location_id for s in parts.scans] == [SITES.ids[site] for _, site, _ in FAST]
    ids = [s.event_id for s in parts.scans]
    assert ids == list(range(ids[0], ids[0] + len(FAST)))
    assert found.event_id == ids[-1]
    assert found.probability is not None and found.threshold is not None
    assert found.probability >= found.threshold
    log_odds = np.log(found.probability / (1 - found.probability))
    assert parts.log_odds == pytest.approx(log_odds, abs=1e-3)


def test_an_earlier_scan_is_explained_by_the_scans_up_to_it(model, fast):
    rows = np.argsort(fast.recall.scans.time_us)
    found = explain(model, fast.sites, fast.recall, ODD, int(rows[2]), "jump")
    assert found.event_type == EVENT_TYPES[FAST[2][0]]
    assert found.attributions is not None
    assert len(found.attributions.scans) == 3


def test_without_a_model_the_rule_explains_alone(fast):
    found = fast.explain(None)
    assert (found.anomaly, found.source, found.model, found.digest) == ("jump", "rules", "", "")
    assert (found.attributions, found.probability, found.threshold) == (None, None, None)
    what = found.counterfactual
    assert what is not None
    assert not flags(None, fast, time_us=what.time_us).any()
    assert flags(None, fast, time_us=what.time_us - MINUTE_US)[Anomaly.JUMP]


def test_the_rules_alone_check_against_the_products_that_are_given(fast):
    other = Registry.of([1], [1])
    assert fast.explain(None, anomaly="epcFake").rule_score == 0
    found = fast.explain(None, anomaly="epcFake", registry=other)
    assert (found.flagged, found.rule_reason) == (True, "company")


def test_a_cold_scan_is_explained_by_the_rules(model):
    lone = told([(code(lot=77), [(Op.WHOLESALE_IN, 4, 0.0)])], code(lot=77))
    found = lone.explain(model)
    assert found.source == "rules (cold)"
    assert found.attributions is None and found.probability is None
    assert found.digest == model.bundle.digest
    json.dumps(found.to_json())


def test_an_explanation_is_json(model, fast, strayed):
    for one in (fast, strayed):
        found = one.explain(model, baseline="zeros").to_json()
        again = json.loads(json.dumps(found, allow_nan=False))
        assert again["attributions"]["baseline"] == "zeros"
        assert again["counterfactual"]["sentence"]
        assert again == json.loads(json.dumps(found))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"anomaly": "speed"}, "no anomaly"),
        ({"baseline": "median"}, "no baseline"),
        ({"at": 99}, "no scan 99"),
        ({"code": "other"}, "not of 'other'"),
    ],
)
def test_nonsense_is_refused_by_name(model, fast, change, says):
    asked = {"code": ODD, "at": fast.at, **change}
    with pytest.raises(ValueError, match=says):
        explain(model, fast.sites, fast.recall, **asked)


SLOW = [*FAST[:-1], (Op.WHOLESALE_IN, WHOLESALE, 4 * DAY + HOUR)]
BACK = [*HONEST[:6], (Op.RETAIL_IN, RETAIL, 6 * DAY), (Op.WHOLESALE_IN, WHOLESALE, 9 * DAY)]


@pytest.mark.parametrize(
    ("trail", "anomaly", "says"),
    [
        (SLOW, Anomaly.JUMP, "Arrived at Wholesaler, 26 km away, 60 minutes after the previous"),
        (BACK, Anomaly.ORDER, "W_Stock_Inbound at Wholesaler once more, 4.9 days after"),
    ],
)
def test_where_no_rule_speaks_the_sentence_says_what_was_seen(trail, anomaly, says):
    one = told([*LOT, (ODD, trail)], ODD)
    found = one.explain(None, anomaly=ANOMALIES[anomaly])
    assert found.rule_reason == ""
    assert says in found.sentence


NETWORK = learned_network()


@given(any_scans, st.data())
def test_a_scan_that_moves_alone_is_counted_as_if_it_had_always_been_there(scans, data):
    case, row = cased(scans, data)
    assume(case.scans.op[case.at] != Op.AGGREGATION)  # a group forgets no serial number
    time_us = START_US + data.draw(st.integers(0, 40 * DAY)) * 1_000_000
    moved = case._moved_alone({"time_us": time_us})
    fresh = scans.time_us.copy()
    fresh[row] = time_us
    assert_same(moved, replace(scans, time_us=fresh), row)


@given(any_scans, st.data())
def test_scans_that_move_to_another_site_together_are_counted_there(scans, data):
    case, row = cased(scans, data)
    site = data.draw(st.integers(0, len(SITES) - 1))
    same = (scans.lot == scans.lot[row]) & (scans.time_us == scans.time_us[row])
    same &= (scans.site == scans.site[row]) & (scans.op == scans.op[row])
    # Scans of one second change places by their sites: then their moves are others.
    for trail in np.unique(scans.epc[same]):
        assume((scans.time_us[scans.epc == trail] == scans.time_us[row]).sum() == 1)
    fresh = scans.site.copy()
    fresh[same] = site
    moved = case.moved(site=site)
    assert moved.together == same.sum()
    assert_same(moved, replace(scans, site=fresh), row)


def cased(scans: Scans, data) -> tuple[Case, int]:
    """A scan of some scans as a case, and its row there."""
    row = data.draw(st.integers(0, len(scans) - 1))
    mine = scans.epc == scans.epc[row]
    trails = sort(scans)
    table = table_of(trails.scans, previous_of(trails.starts))
    context = Context(SITES, NETWORK, REGISTRY).bound()
    at = int(np.flatnonzero(np.flatnonzero(mine) == row)[0])
    return Case(None, context, scans.take(mine), table, at), row


def assert_same(moved: Case, scans: Scans, row: int) -> None:
    whole = encode(scans, moved.context)
    at = int(np.flatnonzero(whole.trails.order == row)[0])
    encoded, mine = moved.encoded()
    assert np.array_equal(encoded.features[mine], whole.features[at])
