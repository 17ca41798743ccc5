"""Champion against challenger, counted by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logbook import Entry, Feedback, Kind, LoggedScan, LoggedVerdict, PredictionLog, Request
from logbook.opened import open_log
from serving import compare as compare_
from serving.compare import COSTS, Agreement, Comparison, NothingToCompareError, compare
from tests.logbook.logged import scan, verdict
from trail.scan import ANOMALIES

LOC = ANOMALIES.index("locErr")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'log.db'}"


@pytest.fixture
def log(url: str) -> Iterator[PredictionLog]:
    log = open_log(url)
    yield log
    log.close()


def said(version: str, loc: float, kind: Kind = Kind.GIVEN) -> LoggedVerdict:
    score = [1.0] * 5
    score[LOC] = loc
    return verdict(kind, model_version=version, score=tuple(score))


_requests = count(1)


def append(
    log: PredictionLog,
    scans: list[LoggedScan],
    champion: list[float],
    challenger: list[float] | None = None,
    version: str = "3",
    at: int = 0,
    challenger_version: str = "4",
) -> None:
    """A request whose scans have these locErr scores."""
    shadow = [
        (one, said(challenger_version, score, Kind.SHADOW))
        for one, score in zip(scans, challenger or [], strict=challenger is not None)
    ]
    given = [said(version, score) for score in champion]
    log.append(Entry(Request(f"r{next(_requests)}", at, "/score"), scans, given, shadow=shadow))


def review(log: PredictionLog, one: LoggedScan, right: bool, at: int = 0) -> None:
    log.add_feedback(
        Feedback(one.event_id, one.epc, one.time_us, "locErr", right, "ann", "seen", at)
    )


def only(found: list[Comparison]) -> Comparison:
    [one] = found
    return one


# In shadow


def test_agreement_is_counted_by_scan_and_by_epc(log: PredictionLog):
    scans = [scan(i, epc=epc) for i, epc in enumerate("aabbcdd")]
    append(log, scans, [90, 1, 1, 60, 49, 50, 1], [90, 70, 1, 1, 49.9, 1, 80])
    one = only(compare(log))
    assert (one.mode, one.champion, one.challenger) == ("shadow", "3", "4")
    assert (one.scans, one.epcs, one.lots) == ((7, 7), (4, 4), 1)
    loc = one.types["locErr"]
    assert loc.scans == Agreement(both=1, champion_only=2, challenger_only=2, none=2)
    assert loc.epcs == Agreement(both=2, champion_only=1, challenger_only=0, none=1)
    assert one.types["jump"].scans == Agreement(0, 0, 0, 7)
    assert loc.flagged.champion == pytest.approx(3000 / 7)
    assert loc.flagged_epcs.difference == pytest.approx(-1000 / 4)


def test_score_differences_are_challenger_less_champion(log: PredictionLog):
    append(log, [scan(i) for i in range(4)], [10, 20, 30, 40], [11, 18, 33, 44])
    loc = only(compare(log)).types["locErr"]
    assert loc.score == pytest.approx((1 - 2 + 3 + 4) / 4)
    assert loc.score_95 == pytest.approx(np.percentile([1, 2, 3, 4], 95))


def test_a_shadow_verdict_is_compared_with_the_answer_of_its_request(log: PredictionLog):
    append(log, [scan(1)], [10], [20])
    later = [(scan(1), said("4", 90, Kind.SHADOW))]
    revised = [(scan(1), said("3", 95, Kind.REVISED))]
    log.append(Entry(Request("later", 1, "/score"), [], [], revised=revised, shadow=later))
    assert only(compare(log)).types["locErr"].score == pytest.approx(10)


def test_costs_are_those_of_misses_and_false_alarms(log: PredictionLog):
    scans = [scan(i) for i in (1, 2, 3, 4, 1001, 1002)]
    append(log, scans, [90, 90, 1, 1, 1, 90], [90, 1, 90, 1, 1, 1])
    for one, right in zip(scans, (True, False, True, True, False, False), strict=True):
        review(log, one, right)
    both = only(compare(log))
    loc = both.types["locErr"]
    assert loc.reviewed == (6, 6)
    assert loc.missed == (2, 1)
    assert loc.false_alarms == (2, 0)
    miss, alarm = COSTS[LOC]
    assert loc.cost.champion == pytest.approx(1000 * (2 * miss + 2 * alarm) / 6)
    assert loc.cost.challenger == pytest.approx(1000 * miss / 6)
    assert loc.cost.difference == pytest.approx(-1000 * (miss + 2 * alarm) / 6)
    # Each draw is the first lot twice, the second twice, or both.
    first, second = -1000 * (miss + alarm) / 4, -1000 * alarm / 2
    assert loc.cost.interval == pytest.approx((min(first, second), max(first, second)))
    assert both.cost == loc.cost
    assert both.types["jump"].cost is None


def test_what_is_not_reviewed_costs_nothing(log: PredictionLog):
    append(log, [scan(1), scan(2)], [90, 90], [1, 1])
    assert only(compare(log)).cost is None
    review(log, scan(1), right=False)
    assert only(compare(log)).cost.champion == pytest.approx(1000 * COSTS[LOC][1] / 2)


def test_the_last_word_is_the_truth(log: PredictionLog):
    append(log, [scan(1), scan(10)], [90, 90], [1, 1])
    review(log, scan(1), right=True, at=1)
    log.add_feedback(Feedback(1, "", 0, "locErr", False, "bob", "no", 2))
    review(log, scan(10), right=False, at=3)  # it has no event id
    assert only(compare(log)).types["locErr"].false_alarms == (2, 0)


def test_the_same_verdicts_differ_by_nothing(log: PredictionLog):
    scans = [scan(1000 * i) for i in range(6)]
    levels = [90.0, 1, 90, 1, 90, 1]
    append(log, scans, levels, levels)
    for i, one in enumerate(scans):
        review(log, one, right=i < 3)
    cost = only(compare(log)).cost
    assert cost.champion > 0
    assert (cost.difference, cost.interval) == (0, (0, 0))


def test_one_lot_has_no_interval(log: PredictionLog):
    append(log, [scan(1), scan(2)], [90, 1], [1, 1])
    review(log, scan(1), right=False)
    assert only(compare(log)).cost.interval is None


@settings(max_examples=15, deadline=None)
@given(
    flags=st.lists(st.tuples(*[st.booleans()] * 3, st.integers(0, 5)), min_size=1, max_size=30),
    times=st.integers(1, 7),
)
def test_costs_scale_and_lots_are_drawn_together(
    flags: list[tuple[bool, bool, bool, int]],
    times: int,
    tmp_path_factory: pytest.TempPathFactory,
):
    log = open_log(f"sqlite:{tmp_path_factory.mktemp('log') / 'log.db'}")
    scans = [scan(1000 * lot + i * 10 + 1) for i, (*_, lot) in enumerate(flags)]
    levels = np.where(np.array([[a, b] for a, b, *_ in flags]), 90.0, 1.0)
    append(log, scans, list(levels[:, 0]), list(levels[:, 1]))
    for one, (*_, right, _) in zip(scans, flags, strict=True):
        review(log, one, right)
    once = only(compare(log, replicates=200)).cost
    more = only(compare(log, replicates=200, costs=[(times * a, times * b) for a, b in COSTS])).cost
    log.close()
    assert more.difference == pytest.approx(times * once.difference)
    assert (more.interval is None) == (once.interval is None) == (len({f[3] for f in flags}) == 1)
    if once.interval is not None:
        assert more.interval == pytest.approx([times * end for end in once.interval])
        ours = [[a, b, right, lot] for a, b, right, lot in flags]
        extremes = [_rate([f for f in ours if f[3] == lot]) for lot in {f[3] for f in ours}]
        assert min(extremes) - 1e-6 <= once.interval[0] <= once.interval[1] <= max(extremes) + 1e-6


def _rate(flags: list[list[int]]) -> float:
    """The difference of cost per 1,000 scans within one lot."""
    miss, alarm = COSTS[LOC]

    def cost(flag: bool, right: bool) -> float:
        return miss * (right and not flag) + alarm * (flag and not right)

    return 1000 * sum(cost(b, r) - cost(a, r) for a, b, r, _ in flags) / len(flags)


def test_the_pair_logged_last_is_compared_and_others_are_named(log: PredictionLog):
    append(log, [scan(1)], [1], [90], version="2", challenger_version="3")
    append(log, [scan(2), scan(3)], [1, 90], [90, 1])
    one = only(compare(log))
    assert (one.champion, one.challenger, one.scans) == ("3", "4", (2, 2))
    assert one.others == [("2", "3", 1)]
    asked = only(compare(log, champion="2"))
    assert (asked.champion, asked.challenger, asked.others) == ("2", "3", [("3", "4", 2)])
    with pytest.raises(NothingToCompareError, match=r"no such versions.*2 with 3"):
        compare(log, champion="9")


# In an A/B test


def test_shares_of_epcs_are_compared_where_both_answered(log: PredictionLog):
    append(log, [scan(1, epc="early")], [90])
    for i in range(10):
        append(log, [scan(100 + 2 * i, epc=f"a{i // 2}")], [90 if i < 4 else 1])
        if i < 3:
            append(log, [scan(101 + 2 * i, epc=f"b{i}")], [90], version="4")
    one = only(compare(log))
    assert (one.mode, one.champion, one.challenger) == ("ab", "3", "4")
    assert one.scans == (2, 3)  # from the challenger's first answer to its last
    assert one.epcs == (2, 3)
    loc = one.types["locErr"]
    assert (loc.scans, loc.score) == (None, None)
    assert (loc.flagged.champion, loc.flagged.challenger) == (1000, 1000)
    assert one.cost is None
    other = only(compare(log, champion="4"))
    assert (other.champion, other.challenger, other.scans) == ("4", "3", (3, 2))


def test_costs_of_shares_are_per_scan_of_each(log: PredictionLog):
    scans = [scan(i, epc=f"e{i}") for i in (1, 1001, 2, 1002, 3)]
    append(log, scans[:1], [90])
    append(log, scans[1:2], [90], version="4")
    append(log, scans[2:3], [1])
    append(log, scans[3:4], [90], version="4")
    append(log, scans[4:], [1])
    review(log, scans[1], right=False)
    one = only(compare(log))
    assert one.types["locErr"].cost.challenger == pytest.approx(1000 * COSTS[LOC][1] / 2)
    assert one.types["locErr"].reviewed == (0, 1)


def test_an_epc_that_both_judged_meanwhile_is_left_out(log: PredictionLog):
    append(log, [scan(100, epc="b1")], [1])  # before the test
    for i in range(4):
        append(log, [scan(2 * i, epc="moved" if i == 1 else f"a{i}")], [1])
        append(log, [scan(2 * i + 1, epc="moved" if i == 2 else f"b{i}")], [1], version="4")
    append(log, [scan(200, epc="a2")], [1], version="4")  # promoted
    assert only(compare(log)).epcs == (2, 2)


def test_versions_that_followed_each_other_are_no_test(log: PredictionLog):
    append(log, [scan(1), scan(2)], [1, 1])
    append(log, [scan(3), scan(4)], [1, 1], version="4")
    with pytest.raises(NothingToCompareError, match="judged by 3, 4"):
        compare(log)


def test_answers_of_the_rules_alone_are_nobodys(log: PredictionLog):
    append(log, [scan(1)], [90], version="")
    append(log, [scan(2)], [90], version="4")
    append(log, [scan(3)], [90], version="")
    with pytest.raises(NothingToCompareError):
        compare(log)


# Since


def test_only_scans_received_since_a_time_count(
    log: PredictionLog, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(compare_, "_AT_ONCE", 3)
    monkeypatch.setattr(compare_, "_EARLIER", 2)
    for i in range(20):
        append(log, [scan(i)], [1], [90], at=1000 + i)
    for first in (0, 1000, 1001, 1010, 1019):
        assert only(compare(log, since_us=first)).scans[0] == min(20, 1020 - first)
    with pytest.raises(NothingToCompareError, match="0 scans"):
        compare(log, since_us=1020)


# The command


def test_the_command_prints_a_table_or_json(
    log: PredictionLog, url: str, capsys: pytest.CaptureFixture[str]
):
    moment = 1_790_812_800_000_000  # 2026-10-01 in UTC
    append(log, [scan(5)], [1], [90], at=moment - 1)
    append(log, [scan(1), scan(1001)], [90, 1], [90, 90], at=moment)
    review(log, scan(1001), right=False)
    assert compare_.main(["--log", url, "--since", "2026-10-01"]) == 0
    told = capsys.readouterr().out
    assert "Shadow: champion 3, challenger 4" in told
    assert "2 scans of 2 EPCs in 2 lots" in told
    assert [line.split()[-5:] for line in told.splitlines() if "the challenger only" in line] == [
        ["0", "0", "1", "0", "0"]
    ] * 2
    assert "All types: champion 0.00, challenger 10000.00 per 1,000 scans" in told
    assert compare_.main(["--log", url, "--json", "--costs", "1/2,1/2,1/2,1/2,1/2"]) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert found["scans"] == [3, 3]
    assert found["types"]["locErr"]["cost"]["challenger"] == pytest.approx(2000 / 3)
    assert list(found["types"]) == list(ANOMALIES)


def test_the_command_says_when_there_is_nothing_to_compare(
    log: PredictionLog, url: str, capsys: pytest.CaptureFixture[str]
):
    assert compare_.main(["--log", url]) == 1
    assert "nothing to compare: 0 scans" in capsys.readouterr().err
    append(log, [scan(1)._replace()], [1])
    assert compare_.main(["--log", url]) == 1
    assert "TRAILWATCH_CHALLENGER=shadow" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong", [["--costs", "1/2"], ["--costs", "1,2,3,4,5"], ["--since", "soon"]]
)
def test_options_that_cannot_be_read_are_refused(wrong: list[str]):
    with pytest.raises(SystemExit) as caught:
        compare_.main(wrong)
    assert caught.value.code == 2
