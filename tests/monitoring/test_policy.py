"""The policy: which evaluations lead to which requests, and the laws that hold for all of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring import policy as p
from monitoring.policy import DAY, DEFAULTS, Hold, Level, NewSite, Phase, Policy, Reading

HOUR = DAY // 24


def of(version: str = "7", **other: object) -> Policy:
    return replace(p.champion(Policy(), version, 0).policy, **other)


def reading(at: int, score: float = 0.2, warn: float = 0.2, **other: object) -> Reading:
    values = {"version": "7", "retrain": {"gap_s": score}, "warn": {"gap_s": warn}, **other}
    return Reading(at, **values)


def requested(at: int = DAY) -> Policy:
    change = p.evaluated(of(), reading(at, 1.2))
    assert change.request is not None
    return change.policy


def test_honest_traffic_is_ok_and_asks_for_nothing():
    change = p.evaluated(of(), reading(HOUR))
    assert change.policy.level == Level.OK
    assert change.policy.phase == Phase.IDLE
    assert (change.request, change.opened) == (None, None)


def test_until_the_windows_hold_enough_it_warms_up():
    assert p.evaluated(of(), reading(HOUR, warm=False)).policy.level == Level.WARMING_UP


def test_the_warn_tier_warns_and_never_asks():
    change = p.evaluated(of(), reading(HOUR, 0.9, 30.0))
    assert change.policy.level == Level.WARN
    assert change.request is None


def test_drift_opens_an_episode_and_asks_once():
    change = p.evaluated(of(), reading(HOUR, 1.0))
    assert change.policy.level == Level.DRIFT
    assert change.opened.reason == ("gap_s",)
    assert change.request.episode.number == 1
    assert change.policy.phase == Phase.REQUESTED
    for hour in range(2, 200):
        again = p.evaluated(change.policy, reading(hour * HOUR, 3.0))
        assert again.request is None
        change = again


def test_an_alarm_is_entered_at_one_and_left_below_seven_tenths():
    held = of(calibrated=False)
    levels = []
    for i, score in enumerate([0.99, 1.0, 0.71, 0.7, 0.69, 0.99]):
        held = p.evaluated(held, reading(i * HOUR, score, calibrated=False)).policy
        levels.append(held.level)
    assert levels == [Level.OK, *[Level.DRIFT] * 3, Level.OK, Level.OK]


@pytest.mark.parametrize("score", [None, float("nan")], ids=["absent", "nan"])
def test_a_column_that_cannot_be_read_stays_what_it_was(score: float | None):
    held = p.evaluated(of(), reading(HOUR, 1.5, calibrated=False)).policy
    scores = {} if score is None else {"gap_s": score}
    after = p.evaluated(held, reading(2 * HOUR, calibrated=False, retrain=scores)).policy
    assert after.level == Level.DRIFT
    assert p.evaluated(of(), reading(HOUR, retrain=scores)).policy.level == Level.OK


def test_a_drift_that_recedes_before_the_request_closes_its_episode():
    held = p.evaluated(of(), reading(HOUR, 1.5, calibrated=False))
    assert held.policy.phase == Phase.HELD
    gone = p.evaluated(held.policy, reading(2 * HOUR, 0.1))
    assert gone.closed == (held.opened, "receded")
    assert gone.policy.requests == ()
    assert gone.policy.phase == Phase.IDLE


def test_a_reference_that_is_too_small_refuses_and_says_so():
    change = p.evaluated(of(), reading(HOUR, 5.0, calibrated=False))
    assert change.request is None
    assert change.policy.holds() == (Hold.REFERENCE,)
    assert p.evaluated(change.policy, reading(2 * HOUR, 5.0)).request is not None


def test_from_the_request_to_the_promotion():
    now = p.started(requested(), 1, 2 * DAY)
    assert now.policy.phase == Phase.TRAINING
    now = p.finished(now.policy, 1, True, 2 * DAY + HOUR)
    assert now.policy.phase == Phase.TRAINING
    now = p.champion(now.policy, "8", 2 * DAY + HOUR + 1)
    assert now.closed[1] == "promoted"
    assert now.policy.level == Level.WARMING_UP
    assert now.policy.phase == Phase.COOLDOWN
    assert now.policy.waits_until_us == 9 * DAY + HOUR + 1
    assert now.policy.alarming == ()


def test_a_promotion_seen_before_the_end_of_its_run_is_one():
    now = p.champion(p.started(requested(), 1, 2 * DAY).policy, "8", 3 * DAY)
    assert now.closed[1] == "promoted"
    assert p.finished(now.policy, 1, True, 3 * DAY + 1).policy.episode is None


def test_a_champion_that_changes_before_the_run_began_supersedes_the_episode():
    assert p.champion(requested(), "6", 2 * DAY).closed[1] == "superseded"


def test_drift_in_the_cooldown_waits_and_then_asks():
    now = p.champion(p.started(requested(), 1, 2 * DAY).policy, "8", 3 * DAY).policy
    early = p.evaluated(now, reading(5 * DAY, 2.0, version="8"))
    assert early.opened.number == 2
    assert early.request is None
    assert Hold.COOLDOWN in early.policy.holds()
    late = p.evaluated(early.policy, reading(10 * DAY, 2.0, version="8"))
    assert late.request.episode.number == 2


def test_a_success_without_a_promotion_is_a_rejected_challenger():
    now = p.started(requested(), 1, 2 * DAY).policy
    assert p.unpromoted(now, 1, 3 * DAY).closed is None
    now = p.finished(now, 1, True, 3 * DAY).policy
    late = p.unpromoted(now, 1, 4 * DAY)
    assert late.closed[1] == "rejected"
    assert "refused" in late.policy.person
    assert p.unpromoted(late.policy, 1, 5 * DAY).closed is None


def test_rejected_challengers_back_off_ever_longer_and_ask_for_a_person():
    policy, at, waits = of(), DAY, []
    for number in range(1, 7):
        change = p.evaluated(policy, reading(at, 2.0))
        assert change.request.episode.number == number
        change = p.finished(change.policy, number, False, at)
        assert change.closed[1] == "failed"
        assert change.policy.person.startswith(f"episode {number}")
        waits.append((change.policy.retry_at_us - at) // DAY)
        policy, at = change.policy, change.policy.retry_at_us
        before = p.evaluated(policy, reading(at - 1, 2.0))
        assert (before.request, before.opened) == (None, None)
    assert waits == [14, 28, 56, 112, 112, 112]


def test_a_person_asked_has_seen_it():
    failed = p.finished(requested(), 1, False, 2 * DAY).policy
    seen = p.acked(failed, "ann", 3 * DAY).policy
    assert (seen.person, seen.acked) == ("", "ann")
    assert seen.retry_at_us == failed.retry_at_us


def test_a_snooze_holds_automatic_requests_until_its_end():
    snoozed = p.snoozed(of(), "ann", 3 * DAY, HOUR).policy
    held = p.evaluated(snoozed, reading(DAY, 2.0))
    assert held.policy.holds() == (Hold.SNOOZED,)
    assert held.request is None
    assert p.evaluated(held.policy, reading(3 * DAY, 2.0)).request is not None
    with pytest.raises(p.RefusedError, match="30 days"):
        p.snoozed(of(), "ann", 31 * DAY, HOUR)


def test_a_dry_run_tells_once_what_it_would_have_asked_for():
    dry = p.dry_run(of(), "ann", True, 1).policy
    first = p.evaluated(dry, reading(DAY, 2.0))
    assert first.request is None
    assert "would_request" in [kind for kind, _ in first.notes]
    assert "would_request" not in [
        kind for kind, _ in p.evaluated(first.policy, reading(2 * DAY, 2.0)).notes
    ]
    real = p.dry_run(first.policy, "ann", False, 3 * DAY).policy
    assert p.evaluated(real, reading(3 * DAY, 2.0)).request is not None


def test_a_person_may_ask_past_cooldown_back_off_and_snooze_but_not_past_the_budget():
    failed = p.finished(requested(DAY), 1, False, DAY).policy
    with pytest.raises(p.RefusedError, match="budget"):
        p.retrain(failed, "ann", 2 * DAY)
    asked = p.retrain(p.snoozed(failed, "ann", 20 * DAY, 2 * DAY).policy, "ann", 8 * DAY)
    assert asked.request.episode.number == 2
    assert asked.request.episode.manual
    with pytest.raises(p.RefusedError, match="already"):
        p.retrain(asked.policy, "ann", 20 * DAY)
    with pytest.raises(p.RefusedError, match="no champion"):
        p.retrain(Policy(), "ann", 0)


def test_a_persons_request_joins_the_open_episode():
    held = p.evaluated(of(), reading(DAY, 2.0, calibrated=False)).policy
    asked = p.retrain(held, "ann", DAY + 1)
    assert asked.opened is None
    assert asked.request.episode.number == 1
    assert asked.request.episode.reason == ("gap_s", "asked for by ann")


@pytest.mark.parametrize(
    ("site", "status"),
    [
        (NewSite("F9", 400, 19, 9, 99), "new_location"),
        (NewSite("F9", 400, 99, 2, 99), "new_location"),
        (NewSite("F9", 400, 20, 3, 9), "needs_labels"),
        (NewSite("F9", 400, 20, 3, 10), "ready"),
    ],
    ids=["few boxes", "few days", "few labels", "enough"],
)
def test_a_new_site_asks_for_retraining_after_enough_boxes_days_and_labels(
    site: NewSite, status: str
):
    assert site.status() == status
    change = p.evaluated(of(), reading(DAY, sites=(site,)))
    assert (change.request is not None) == (status == "ready")
    if status == "ready":
        assert change.request.episode.reason == ("new_location F9",)
    else:
        assert change.policy.level == Level.WARN


def test_a_few_scans_at_a_new_site_are_no_warning():
    few = NewSite("F9", 3, 1, 1, 0)
    assert p.evaluated(of(), reading(DAY, sites=(few,))).policy.level == Level.OK


def test_a_reading_of_another_champion_changes_nothing():
    assert p.evaluated(of(), reading(DAY, 9.0, version="6")).policy == of()


def test_events_of_another_run_change_nothing():
    now = requested()
    assert p.started(now, 9, now.at_us).policy == now
    assert p.finished(now, 9, True, now.at_us).policy == now


def test_a_number_that_was_used_before_is_left_to_its_owner():
    now = p.renumbered(requested(), 1, 2 * DAY)
    assert now.request.episode.number == 2
    assert now.policy.requests == requested().requests
    assert p.renumbered(now.policy, 1, 3 * DAY).request is None
    running = p.started(now.policy, 2, 3 * DAY).policy
    assert p.renumbered(running, 2, 3 * DAY).request is None


def test_a_state_of_another_format_is_refused():
    with pytest.raises(ValueError, match="format"):
        Policy.from_json(of().to_json().replace('"format": 1', '"format": 2'))


_scores = st.floats(0, 3) | st.just(float("nan"))
_events = st.lists(
    st.tuples(
        st.sampled_from(
            ["read"] * 6
            + ["start", "succeed", "fail", "refuse", "promote", "ack", "snooze", "dry", "retrain"]
        ),
        st.integers(-3 * DAY, 6 * DAY) | st.integers(0, HOUR),
        _scores,
        st.booleans(),
    ),
    min_size=20,
    max_size=120,
)


def _applied(policy: Policy, kind: str, at: int, score: float, yes: bool) -> p.Change:
    number = policy.last_episode
    if kind == "read":
        site = (NewSite("F9", 100, 30, 5, 30),) if yes and score > 2.8 else ()
        scores = {"a": score, "b": score / 2}
        return p.evaluated(
            policy, Reading(at, policy.version, scores, scores, yes or score < 2, True, site)
        )
    if kind == "start":
        return p.started(policy, number, at)
    if kind in ("succeed", "fail"):
        return p.finished(policy, number, kind == "succeed", at)
    if kind == "refuse":
        return p.unpromoted(policy, number, at)
    if kind == "promote":
        return p.champion(policy, str(int(policy.version) + (1 if yes else -1)), at)
    if kind == "ack":
        return p.acked(policy, "ann", at)
    if kind == "snooze":
        return p.snoozed(policy, "ann", at + 2 * DAY, at)
    if kind == "dry":
        return p.dry_run(policy, "ann", yes, at)
    return p.retrain(policy, "ann", at)


@settings(max_examples=300, deadline=None)
@given(_events)
def test_laws_over_any_sequence_of_events(events: list[tuple[str, int, float, bool]]):
    policy, at = of("100"), 0
    times: list[int] = []
    numbers: list[int] = []
    opened: list[int] = []
    for kind, passed, score, yes in events:
        at = max(0, at + passed)
        before = policy
        try:
            change = _applied(policy, kind, at, score, yes)
        except p.RefusedError:
            continue
        policy = change.policy
        assert policy.at_us >= before.at_us
        assert Policy.from_json(policy.to_json()) == policy
        if change.opened is not None:
            opened.append(change.opened.number)
            assert before.episode is None or change.closed is not None
        if change.request is not None:
            times.append(policy.at_us)
            numbers.append(change.request.episode.number)
            assert change.request.episode.version == policy.version
            if kind != "retrain":
                assert before.snoozed_until_us <= policy.at_us
                assert before.cooldown_until_us <= policy.at_us
                assert before.retry_at_us <= policy.at_us
            assert not before.dry_run
        if change.closed is not None:
            assert policy.episode is None or policy.episode.number > change.closed[0].number
    for period, most in DEFAULTS.budget:
        for end in times:
            assert sum(1 for then in times if end - period < then <= end) <= most
    assert len(set(numbers)) == len(numbers)
    assert opened == list(range(1, len(opened) + 1))
