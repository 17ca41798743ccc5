"""Each check of each rule on the smallest trail that shows it, and its sentence."""

import numpy as np
import pytest

from tests.trail.small import (
    DAY,
    FACTORY,
    HONEST,
    HOUR,
    HUB,
    HUB_FAR,
    MINUTE,
    REGISTRY,
    RETAIL,
    RETAIL_FAR,
    SITES,
    STRANGE,
    WAREHOUSE,
    WHOLESALE,
    WHOLESALE_FAR,
    code,
    scans_of,
)
from trail import network
from trail.facts import Context, facts_of, previous_of
from trail.registry import Registry
from trail.rules import FLAG, RULES, Reason, duration, evidence, explain, judge
from trail.scan import ANOMALIES, Op
from trail.trails import sort

LOT = [(code(lot=1, serial=s), HONEST) for s in range(1, 61)]


def learned():
    trails = sort(scans_of(LOT))
    return network.fit(trails.scans, previous_of(trails.starts), SITES)


NETWORK = learned()


def found(trail, text=None, mates=(), registry=REGISTRY, net=NETWORK):
    """Scores, reasons and sentences of one trail, in its own order."""
    text = text or code(lot=1, serial=7)
    others = [entry for entry in mates if entry[0] != text]
    scans = scans_of([(text, trail), *others])
    trails = sort(scans)
    (_, known), *_ = facts_of(trails, Context(SITES, net, registry), size=10**9)
    part = trails.part(slice(0, len(scans)))
    findings = judge(known)
    mine = [int(np.flatnonzero(trails.order == i)[0]) for i in range(len(trail))]
    sentences = [
        [evidence(int(findings.reason[i, k]), i, known, part, SITES) for k in range(5)]
        for i in mine
    ]
    return findings.score[mine], findings.reason[mine], sentences


MID = HONEST[:5]
OTHER = "001.9999999.1293291.000001.20250701.000000007"

CASES = [
    # name, trail, code, with its lot, scan, anomaly, reason, flagged, part of the sentence
    ("malformed", HONEST[:1], "rubbish", False, 0, 0, Reason.MALFORMED, True, "3.7.7.6.8.9"),
    ("company", HONEST[:1], OTHER, False, 0, 0, Reason.COMPANY, True, "company"),
    (
        "product",
        HONEST[:1],
        code().replace("1293291", "7777777"),
        False,
        0,
        0,
        Reason.PRODUCT,
        True,
        "product",
    ),
    (
        "too early",
        [(Op.AGGREGATION, FACTORY, -10 * DAY)],
        None,
        False,
        0,
        0,
        Reason.TOO_EARLY,
        True,
        "manufacture date",
    ),
    (
        "serial range",
        HONEST[5:],
        code(lot=1, serial=900),
        True,
        0,
        0,
        Reason.SERIAL_RANGE,
        True,
        "900",
    ),
    (
        "never commissioned",
        HONEST[5:],
        code(lot=1, serial=30),
        True,
        0,
        0,
        Reason.NOT_COMMISSIONED,
        True,
        "commissioning record",
    ),
    (
        "commissioned late",
        [(Op.AGGREGATION, FACTORY, 5 * HOUR)],
        code(lot=1, serial=30),
        True,
        0,
        0,
        Reason.LATE_COMMISSIONING,
        False,
        "5.0 hours",
    ),
    (
        "same second",
        [*MID, (Op.RETAIL_IN, RETAIL_FAR, 4 * DAY)],
        None,
        False,
        5,
        1,
        Reason.SAME_SECOND,
        True,
        "same second",
    ),
    (
        "second sale",
        [*HONEST, (Op.SALE, RETAIL_FAR, 20 * DAY)],
        None,
        False,
        10,
        1,
        Reason.SECOND_SALE,
        True,
        "Far shop",
    ),
    (
        "two places",
        [*MID, (Op.RETAIL_IN, RETAIL_FAR, 4 * DAY + 10 * MINUTE)],
        None,
        False,
        5,
        1,
        Reason.TWO_PLACES,
        True,
        "no single object",
    ),
    (
        "wrong site",
        [*MID, (Op.WHOLESALE_IN, FACTORY, 5 * DAY)],
        None,
        False,
        5,
        2,
        Reason.WRONG_SITE,
        True,
        "W_Stock_Inbound",
    ),
    (
        "backwards",
        [*HONEST[:9], (Op.WMS_IN, WAREHOUSE, 20 * DAY)],
        None,
        False,
        9,
        2,
        Reason.BACKWARDS,
        True,
        "back up the chain",
    ),
    (
        "back one tier",
        [*HONEST[:7], (Op.HUB_IN, HUB, 9 * DAY)],
        None,
        False,
        7,
        2,
        Reason.BACKWARDS,
        False,
        "back up the chain",
    ),
    (
        "skips",
        [HONEST[0], (Op.RETAIL_IN, RETAIL, 9 * DAY)],
        None,
        False,
        1,
        2,
        Reason.SKIPS,
        True,
        "Skipped",
    ),
    (
        "unused edge",
        [*HONEST[:7], (Op.RETAIL_IN, WAREHOUSE, 9 * DAY)],
        None,
        False,
        7,
        2,
        Reason.WRONG_SITE,
        True,
        "does not belong",
    ),
    (
        "after sale",
        [*HONEST, (Op.RETAIL_IN, RETAIL, 20 * DAY)],
        None,
        False,
        10,
        3,
        Reason.AFTER_SALE,
        True,
        "after the sale",
    ),
    (
        "in after out",
        [(Op.WHOLESALE_OUT, WHOLESALE, 0), (Op.WHOLESALE_IN, WHOLESALE, 39 * MINUTE)],
        None,
        False,
        1,
        3,
        Reason.IN_AFTER_OUT,
        True,
        "39 minutes after it had left",
    ),
    (
        "twice",
        [*HONEST[:6], (Op.WHOLESALE_IN, WHOLESALE, 6 * DAY)],
        None,
        False,
        6,
        3,
        Reason.TWICE,
        True,
        "second time",
    ),
    (
        "left late",
        [*HONEST[:6], (Op.HUB_OUT, HUB, 5 * DAY)],
        None,
        False,
        6,
        3,
        Reason.LEFT_LATE,
        True,
        "further down",
    ),
    (
        "too fast",
        [*HONEST[:3], (Op.HUB_IN, HUB_FAR, 2 * DAY + 70 * MINUTE)],
        None,
        False,
        3,
        4,
        Reason.TOO_FAST,
        True,
        "km/h",
    ),
    (
        "impossible",
        [*HONEST[:3], (Op.HUB_IN, HUB_FAR, 2 * DAY + MINUTE)],
        None,
        False,
        3,
        4,
        Reason.IMPOSSIBLE,
        True,
        "km/h",
    ),
    (
        "below route",
        [*HONEST[:3], (Op.HUB_IN, HUB, 2 * DAY + 40 * MINUTE)],
        None,
        False,
        3,
        4,
        Reason.BELOW_ROUTE,
        True,
        "this route takes",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_each_check_says_what_it_found(case):
    _, trail, text, with_lot, scan, anomaly, reason, flagged, words = case
    # These would be seen as unused edges first, were the network known.
    net = None if reason in (Reason.BACKWARDS, Reason.SKIPS) else NETWORK
    score, why, sentences = found(trail, text, LOT if with_lot else (), net=net)
    assert Reason(int(why[scan, anomaly])) == reason
    assert (score[scan, anomaly] >= FLAG) == flagged
    assert words in sentences[scan][anomaly]


def test_every_reason_has_a_case():
    shown = {case[6] for case in CASES}
    assert set(Reason) - shown == {Reason.NONE, Reason.UNUSED_EDGE, Reason.WRONG_MARKET}


def busy_network():
    """Two chains side by side: edges between them, and far markets, are known to be unused."""
    far = {HUB: HUB_FAR, WHOLESALE: WHOLESALE_FAR, RETAIL: RETAIL_FAR}
    other = [(op, far.get(site, site), seconds) for op, site, seconds in HONEST]
    second = code().replace("1293291", "1293292")
    trails = sort(
        scans_of(
            LOT + [(second[:-9] + f"{s:09d}", other) for s in range(1, 61)],
        )
    )
    return network.fit(trails.scans, previous_of(trails.starts), SITES)


def test_an_edge_that_a_busy_network_never_uses_is_flagged():
    trail = [*HONEST[:7], (Op.RETAIL_IN, RETAIL_FAR, 9 * DAY)]
    score, reason, sentences = found(trail, net=busy_network())
    assert reason[7, 2] == Reason.UNUSED_EDGE
    assert score[7, 2] >= FLAG
    assert sentences[7][2] == "No goods ever went from Wholesaler to Far shop."


def test_a_market_without_the_product_is_flagged():
    trail = [(Op.WHOLESALE_IN, WHOLESALE_FAR, 0)]
    score, reason, sentences = found(trail, net=busy_network())
    assert reason[0, 2] == Reason.WRONG_MARKET
    assert score[0, 2] >= FLAG
    assert "0.0 %" in sentences[0][2]


def test_without_master_data_the_checks_abstain():
    trail = [(Op.WHOLESALE_IN, WHOLESALE_FAR, 0), (Op.WHOLESALE_OUT, WHOLESALE_FAR, DAY)]
    score, _, _ = found(trail, text=OTHER, registry=Registry.none(), net=None)
    assert score.max() == 0


def test_an_unknown_site_is_named_as_such():
    trail = [*HONEST[:6], (Op.WHOLESALE_IN, STRANGE, 4 * DAY + 2 * HOUR)]
    _, reason, sentences = found(trail)
    assert reason[6, 1] == Reason.SAME_SECOND
    assert "site 9 (not in the site master)" in sentences[6][1]


def test_a_factory_and_its_warehouse_may_share_a_second():
    score, _, _ = found([(Op.AGGREGATION, FACTORY, 0), (Op.WMS_IN, WAREHOUSE, 0)])
    assert score[1].max() == 0


def test_a_reader_may_repeat_itself():
    trail = [*HONEST[:6], (Op.WHOLESALE_IN, WHOLESALE, 4 * DAY + 2 * HOUR + 60)]
    score, _, _ = found(trail)
    assert score[6, 3] < FLAG


def test_a_rule_explains_itself_in_its_docstring():
    for k in range(len(ANOMALIES)):
        assert len(explain(k)) > 40
        assert "  " not in explain(k)
    assert len(RULES) == len(ANOMALIES)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 seconds"),
        (1, "1 second"),
        (61, "1 minute"),
        (9 * 60, "9 minutes"),
        (3.1 * 3600, "3.1 hours"),
        (12 * 86_400, "12 days"),
        (36 * 3600, "36 hours"),
    ],
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text
