"""The decision to retrain: a pure state machine over evaluations, runs and people's words.

    ok -> warn -> drift -> requested -> training -> cooldown     (-> warming_up after a promotion)

Two things are kept apart: the *level*, what the statistics say, with hysteresis for each column;
and the *episode*, what is done about it. An episode opens with drift, asks for one retraining at
most, and ends with a promotion, with a rejected or failed challenger, or by itself when the drift
recedes first. The budget bounds requests whatever happens, a person's included; everything else
(cooldown, back-off, snooze, a reference too small to be calibrated) only holds automatic ones.

Nothing here has a clock: every event brings its time, in microseconds. Time never runs backwards;
an event from before the last one counts as of the same moment. Each event returns a `Change`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

SECOND: Final = 1_000_000
DAY: Final = 86_400 * SECOND
FORMAT: Final = 1
"""Of a policy's JSON."""


class Level(StrEnum):
    """What the statistics say."""

    OK = "ok"
    WARN = "warn"
    """The short windows differ, or a new site waits for labels: nothing is retrained for it."""
    DRIFT = "drift"
    WARMING_UP = "warming_up"
    """The windows hold too few scans of this champion yet."""


class Phase(StrEnum):
    """What is done about it."""

    IDLE = "idle"
    HELD = "held"
    """There is drift, and something keeps a retraining from being asked for: see `holds`."""
    REQUESTED = "requested"
    TRAINING = "training"
    COOLDOWN = "cooldown"


class Hold(StrEnum):
    """What keeps an automatic retraining from being asked for."""

    DRY_RUN = "dry_run"
    SNOOZED = "snoozed"
    REFERENCE = "insufficient_reference"
    BUDGET = "budget"
    COOLDOWN = "cooldown"
    BACKOFF = "backoff"


class RefusedError(ValueError):
    """A person asked for what cannot be; says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The figures of the policy; times in microseconds.

    Attributes:
        enter: score from which a column is in alarm.
        leave: score below which it leaves it again.
        cooldown_us: after an episode that asked for a retraining has ended.
        budget: (period, most requests within it).
        backoff_us: after the first rejected challenger, doubled for each further one of a champion.
        most_backoff_us: and never more than this.
        most_snooze_us: the longest snooze.
        new_scans: scans at a new site from which it is a warning.
        new_boxes, new_days, new_labels: what a new site needs before it is worth a retraining.
    """

    enter: float = 1.0
    leave: float = 0.7
    cooldown_us: int = 7 * DAY
    budget: tuple[tuple[int, int], ...] = ((7 * DAY, 1), (30 * DAY, 2))
    backoff_us: int = 14 * DAY
    most_backoff_us: int = 112 * DAY
    most_snooze_us: int = 30 * DAY
    new_scans: int = 50
    new_boxes: int = 20
    new_days: int = 3
    new_labels: int = 10


DEFAULTS: Final = Limits()


@dataclass(frozen=True, slots=True)
class NewSite:
    """A site that the reference has never seen.

    Attributes:
        site: its id.
        n: scans there.
        boxes: boxes there.
        days: days with scans there.
        labels: scans there on which an analyst has given a verdict.
    """

    site: str
    n: int
    boxes: int
    days: int
    labels: int

    def status(self, limits: Limits = DEFAULTS) -> str:
        """`new_location` (young), `needs_labels` (enough scans), `ready` (worth a retraining)."""
        if self.boxes < limits.new_boxes or self.days < limits.new_days:
            return "new_location"
        return "needs_labels" if self.labels < limits.new_labels else "ready"


@dataclass(frozen=True, slots=True)
class Reading:
    """What the policy needs of an evaluation.

    Attributes:
        at_us: when.
        version: the champion whose reference was used.
        retrain: score of each column, the largest over the windows of the retrain tier.
        warn: the same of the warn tier.
        calibrated: the thresholds keep their promise; else nothing is retrained by itself.
        warm: a window of the retrain tier holds enough scans to be read.
        sites: sites that the reference has never seen.
    """

    at_us: int
    version: str
    retrain: Mapping[str, float]
    warn: Mapping[str, float]
    calibrated: bool = True
    warm: bool = True
    sites: tuple[NewSite, ...] = ()


@dataclass(frozen=True, slots=True)
class Episode:
    """A drift and what was done about it.

    Attributes:
        number: growing by one over the whole life of a model, rollbacks included.
        version: the champion that it is about.
        opened_us: when it opened.
        reason: columns in alarm, and sites as `new_location <id>`; or who asked.
        manual: a person asked.
        requested_us: when a retraining was asked for, None before.
        started_us: when its run began.
        trained_us: when its run succeeded; a promotion should follow.
    """

    number: int
    version: str
    opened_us: int
    reason: tuple[str, ...]
    manual: bool = False
    requested_us: int | None = None
    started_us: int | None = None
    trained_us: int | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """The state of a model's policy.

    Attributes:
        version: the champion, "" before one is known.
        at_us: time of the last event.
        level: what the statistics say.
        alarming: columns (and sites) of the retrain tier in alarm.
        warning: columns of the warn tier in alarm.
        calibrated: as in the last reading.
        episode: the open one.
        last_episode: number of the last one that opened.
        alarms: how often the level became `drift`.
        requests: times of the requests that still count for the budget.
        cooldown_until_us: no automatic request before.
        retry_at_us: after a rejected challenger, no new episode of this champion before.
        rejected: challengers of this champion that were rejected or failed, in a row.
        person: why a person is asked to look, "" where nobody is.
        acked: who has seen that, and the episode.
        snoozed_until_us: a person wants no automatic request before.
        dry_run: decide, and ask for nothing.
        would_have: number of the episode that would have been asked for but for the dry run.
    """

    version: str = ""
    at_us: int = 0
    level: Level = Level.WARMING_UP
    alarming: tuple[str, ...] = ()
    warning: tuple[str, ...] = ()
    calibrated: bool = True
    episode: Episode | None = None
    last_episode: int = 0
    alarms: int = 0
    requests: tuple[int, ...] = ()
    cooldown_until_us: int = 0
    retry_at_us: int = 0
    rejected: int = 0
    person: str = ""
    acked: str = ""
    snoozed_until_us: int = 0
    dry_run: bool = False
    would_have: int = 0

    @property
    def phase(self) -> Phase:
        """What is being done."""
        episode = self.episode
        if episode is not None and episode.requested_us is not None:
            return Phase.REQUESTED if episode.started_us is None else Phase.TRAINING
        if self.waits_until_us is not None:
            return Phase.COOLDOWN
        return Phase.IDLE if episode is None else Phase.HELD

    @property
    def state(self) -> str:
        """Level and phase as one word of the chain, for a metric."""
        if self.phase in (Phase.REQUESTED, Phase.TRAINING, Phase.COOLDOWN):
            return self.phase.value
        return self.level.value

    @property
    def waits_until_us(self) -> int | None:
        """End of the cooldown or of the back-off, None where neither runs."""
        until = max(self.cooldown_until_us, self.retry_at_us)
        return until if until > self.at_us else None

    def budget_left(self, limits: Limits = DEFAULTS, at_us: int | None = None) -> list[int]:
        """Requests left in each period of the budget, shortest first."""
        now = max(self.at_us, at_us or 0)
        return [
            most - sum(1 for then in self.requests if then > now - period)
            for period, most in limits.budget
        ]

    def holds(self, limits: Limits = DEFAULTS) -> tuple[Hold, ...]:
        """What keeps an automatic request from being made now; empty where nothing does."""
        holds = {
            Hold.DRY_RUN: self.dry_run,
            Hold.SNOOZED: self.snoozed_until_us > self.at_us,
            Hold.REFERENCE: not self.calibrated,
            Hold.BUDGET: min(self.budget_left(limits)) <= 0,
            Hold.COOLDOWN: self.cooldown_until_us > self.at_us,
            Hold.BACKOFF: self.retry_at_us > self.at_us,
        }
        return tuple(hold for hold, on in holds.items() if on)

    def to_json(self) -> str:
        """As text, for the state database."""
        return json.dumps({"format": FORMAT, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> Policy:
        """Read what `to_json` wrote.

        Raises:
            ValueError: it is of another format.
        """
        told: dict[str, Any] = json.loads(text)
        if told.pop("format", None) != FORMAT:
            raise ValueError(
                f"the policy's state is not of format {FORMAT}; use the Trailwatch that wrote it"
            )
        episode = told.pop("episode")
        for name in ("alarming", "warning", "requests"):
            told[name] = tuple(told[name])
        if episode is not None:
            episode = Episode(**{**episode, "reason": tuple(episode["reason"])})
        return cls(**{**told, "level": Level(told["level"])}, episode=episode)


@dataclass(frozen=True, slots=True)
class Request:
    """A retraining that is to be asked for.

    Attributes:
        episode: whose number, version and reasons it carries.
    """

    episode: Episode


@dataclass(frozen=True, slots=True)
class Change:
    """What an event brings.

    Attributes:
        policy: the state after it.
        request: a retraining to ask for, to be written with the state.
        opened: the episode that opened.
        closed: (episode, outcome) that ended: promoted, superseded, rejected, failed
            or receded.
        notes: (kind, facts) for the history.
    """

    policy: Policy
    request: Request | None = None
    opened: Episode | None = None
    closed: tuple[Episode, str] | None = None
    notes: tuple[tuple[str, dict[str, Any]], ...] = field(default=())


def evaluated(policy: Policy, reading: Reading, limits: Limits = DEFAULTS) -> Change:
    """An evaluation: the level follows, an episode may open, recede, or ask for a retraining.

    A reading of another champion than the policy's is left out.
    """
    if reading.version != policy.version:
        return Change(policy)
    policy = _at(policy, reading.at_us)
    ready = tuple(
        f"new_location {site.site}" for site in reading.sites if site.status(limits) == "ready"
    )
    columns = [name for name in policy.alarming if not name.startswith("new_location ")]
    alarming = _in_alarm(columns, reading.retrain, limits) + ready
    warning = _in_alarm(policy.warning, reading.warn, limits)
    level = _level(reading, alarming, warning, limits)
    entered = level == Level.DRIFT and policy.level != Level.DRIFT
    after = replace(
        policy,
        level=level,
        alarming=alarming,
        warning=warning,
        calibrated=reading.calibrated,
        alarms=policy.alarms + entered,
    )
    notes: list[tuple[str, dict[str, Any]]] = []
    if level != policy.level:
        notes.append(("level", {"from": policy.level, "to": level, "columns": list(alarming)}))
    decided = _decided(after, limits)
    return replace(decided, notes=(*notes, *decided.notes))


def unpromoted(policy: Policy, number: int, at_us: int, limits: Limits = DEFAULTS) -> Change:
    """The run of an episode succeeded, and no promotion followed: its challenger was refused.

    How long to wait for the promotion is a matter of real time, and so the caller's.
    """
    policy = _at(policy, at_us)
    episode = _asked(policy, number)
    if episode is None or episode.trained_us is None:
        return Change(policy)
    return _unsuccessful(policy, episode, "rejected", "its challenger was refused", limits)


def champion(policy: Policy, version: str, at_us: int, limits: Limits = DEFAULTS) -> Change:
    """Another version is the champion: the episode of the one before is over."""
    policy = _at(policy, at_us)
    if version == policy.version:
        return Change(policy)
    episode = policy.episode
    asked = episode is not None and episode.requested_us is not None
    after = replace(
        policy,
        version=version,
        level=Level.WARMING_UP,
        alarming=(),
        warning=(),
        episode=None,
        cooldown_until_us=policy.at_us + limits.cooldown_us if asked else policy.cooldown_until_us,
        retry_at_us=0,
        rejected=0,
        person="",
        acked="",
    )
    notes: list[tuple[str, dict[str, Any]]] = [
        ("champion", {"from": policy.version, "to": version})
    ]
    closed = None
    if episode is not None:
        closed = (episode, "superseded" if episode.started_us is None else "promoted")
        notes.append(_closing(*closed))
    return Change(after, closed=closed, notes=tuple(notes))


def started(policy: Policy, number: int, at_us: int) -> Change:
    """The run of an episode has begun."""
    policy = _at(policy, at_us)
    episode = _asked(policy, number)
    if episode is None or episode.started_us is not None:
        return Change(policy)
    episode = replace(episode, started_us=policy.at_us)
    return Change(replace(policy, episode=episode), notes=(("training", {"episode": number}),))


def finished(
    policy: Policy, number: int, ok: bool, at_us: int, limits: Limits = DEFAULTS, why: str = ""
) -> Change:
    """The run of an episode has ended; where it succeeded, a promotion may follow."""
    policy = _at(policy, at_us)
    episode = _asked(policy, number)
    if episode is None or episode.trained_us is not None:
        return Change(policy)
    if not ok:
        return _unsuccessful(policy, episode, "failed", why or "its run failed", limits)
    began = policy.at_us if episode.started_us is None else episode.started_us
    episode = replace(episode, started_us=began, trained_us=policy.at_us)
    return Change(replace(policy, episode=episode), notes=(("trained", {"episode": number}),))


def renumbered(policy: Policy, number: int, at_us: int) -> Change:
    """The number of an episode that waits for its delivery was used before (the state was lost).

    It asks again under the next number; the budget counts it once.
    """
    policy = _at(policy, at_us)
    episode = _asked(policy, number)
    if episode is None or episode.started_us is not None:
        return Change(policy)
    episode = replace(episode, number=policy.last_episode + 1)
    after = replace(policy, episode=episode, last_episode=episode.number)
    note = ("renumbered", {"from": number, "to": episode.number})
    return Change(after, request=Request(episode), notes=(note,))


def acked(policy: Policy, who: str, at_us: int) -> Change:
    """A person has seen it: nobody is asked any more."""
    policy = _at(policy, at_us)
    number = policy.episode.number if policy.episode is not None else policy.last_episode
    return Change(
        replace(policy, person="", acked=who),
        notes=(("acked", {"who": who, "episode": number}),),
    )


def snoozed(
    policy: Policy, who: str, until_us: int, at_us: int, limits: Limits = DEFAULTS
) -> Change:
    """A person wants no automatic retraining for a while; a time gone by ends the snooze.

    Raises:
        RefusedError: the snooze is too long.
    """
    policy = _at(policy, at_us)
    if until_us > policy.at_us + limits.most_snooze_us:
        days = limits.most_snooze_us // DAY
        raise RefusedError(f"a snooze lasts {days} days at most; ask for less, and again later")
    return Change(
        replace(policy, snoozed_until_us=until_us),
        notes=(("snoozed", {"who": who, "until_us": until_us}),),
    )


def dry_run(policy: Policy, who: str, on: bool, at_us: int) -> Change:
    """From now on decide without asking for anything, or (`on` false) ask again."""
    policy = _at(policy, at_us)
    return Change(replace(policy, dry_run=on), notes=(("dry_run", {"who": who, "on": on}),))


def retrain(policy: Policy, who: str, at_us: int, limits: Limits = DEFAULTS) -> Change:
    """A person asks for a retraining now; only the budget and a dry run refuse it.

    Raises:
        RefusedError: it was asked for already, the budget is spent, a dry run is on, or there is
            no champion.
    """
    policy = _at(policy, at_us)
    episode = policy.episode
    if not policy.version:
        raise RefusedError("there is no champion whose drift could be answered; register a model")
    if episode is not None and episode.requested_us is not None:
        raise RefusedError(f"episode {episode.number} has asked for a retraining already; wait")
    if policy.dry_run:
        raise RefusedError("a dry run is on; end it first")
    if min(policy.budget_left(limits)) <= 0:
        raise RefusedError(
            "the budget of retrainings is spent; wait, or start the DAG in Airflow yourself"
        )
    notes: tuple[tuple[str, dict[str, Any]], ...] = ()
    opened = None
    if episode is None:
        policy, episode = _opened(policy, (f"asked for by {who}",), manual=True)
        opened, notes = episode, (_opening(episode),)
    else:
        episode = replace(episode, manual=True, reason=(*episode.reason, f"asked for by {who}"))
    change = _requested(policy, episode, limits)
    return replace(change, opened=opened, notes=(*notes, *change.notes))


def _level(
    reading: Reading, alarming: tuple[str, ...], warning: tuple[str, ...], limits: Limits
) -> Level:
    if alarming:
        return Level.DRIFT
    if not reading.warm:
        return Level.WARMING_UP
    strange = any(site.n >= limits.new_scans for site in reading.sites)
    return Level.WARN if warning or strange else Level.OK


def _in_alarm(
    before: tuple[str, ...] | list[str], scores: Mapping[str, float], limits: Limits
) -> tuple[str, ...]:
    """Columns in alarm, by name. One that cannot be read now stays what it was."""
    entered = {name for name, score in scores.items() if score >= limits.enter}
    stay = {name for name in before if not scores.get(name, math.inf) < limits.leave}
    return tuple(sorted(entered | stay))


def _decided(policy: Policy, limits: Limits) -> Change:
    """Open, recede or ask, where the level calls for it."""
    episode = policy.episode
    if episode is not None and episode.requested_us is not None:
        return Change(policy)
    if policy.level != Level.DRIFT:
        if episode is None or episode.manual:
            return Change(policy)
        gone = (episode, "receded")
        return Change(replace(policy, episode=None), closed=gone, notes=(_closing(*gone),))
    opened = None
    notes: list[tuple[str, dict[str, Any]]] = []
    if episode is None:
        if policy.retry_at_us > policy.at_us:
            return Change(policy)  # its drift has had its answer; the next try is later
        policy, episode = _opened(policy, policy.alarming)
        opened = episode
        notes.append(_opening(episode))
    else:
        known = set(episode.reason)
        further = tuple(name for name in policy.alarming if name not in known)
        episode = replace(episode, reason=episode.reason + further)
        policy = replace(policy, episode=episode)
    holds = policy.holds(limits)
    if not holds:
        change = _requested(policy, episode, limits)
        return replace(change, opened=opened, notes=(*notes, *change.notes))
    if holds == (Hold.DRY_RUN,) and policy.would_have != episode.number:
        policy = replace(policy, would_have=episode.number)
        notes.append(("would_request", {"episode": episode.number, "reason": episode.reason}))
    return Change(policy, opened=opened, notes=tuple(notes))


def _opened(
    policy: Policy, reason: tuple[str, ...], manual: bool = False
) -> tuple[Policy, Episode]:
    number = policy.last_episode + 1
    episode = Episode(number, policy.version, policy.at_us, reason, manual)
    return replace(policy, episode=episode, last_episode=number, acked=""), episode


def _requested(policy: Policy, episode: Episode, limits: Limits) -> Change:
    now = policy.at_us
    episode = replace(episode, requested_us=now)
    longest = max(period for period, _ in limits.budget)
    counted = tuple(then for then in policy.requests if then > now - longest)
    after = replace(policy, episode=episode, requests=(*counted, now))
    note = ("requested", {"episode": episode.number, "reason": list(episode.reason)})
    return Change(after, request=Request(episode), notes=(note,))


def _unsuccessful(
    policy: Policy, episode: Episode, outcome: str, why: str, limits: Limits
) -> Change:
    """A challenger that did not make it: back off, and ask for a person."""
    tries = policy.rejected + 1
    wait = min(limits.backoff_us * 2 ** min(tries - 1, 30), limits.most_backoff_us)
    after = replace(
        policy,
        episode=None,
        rejected=tries,
        retry_at_us=policy.at_us + wait,
        cooldown_until_us=policy.at_us + limits.cooldown_us,
        person=f"episode {episode.number}: {why}",
        acked="",
    )
    closed = (episode, outcome)
    return Change(after, closed=closed, notes=(_closing(*closed),))


def _asked(policy: Policy, number: int) -> Episode | None:
    """The open episode, where it has this number and a run."""
    episode = policy.episode
    if episode is None or episode.number != number or episode.requested_us is None:
        return None
    return episode


def _at(policy: Policy, at_us: int) -> Policy:
    return replace(policy, at_us=max(policy.at_us, at_us))


def _opening(episode: Episode) -> tuple[str, dict[str, Any]]:
    return "opened", {"episode": episode.number, "reason": list(episode.reason)}


def _closing(episode: Episode, outcome: str) -> tuple[str, dict[str, Any]]:
    return "closed", {"episode": episode.number, "outcome": outcome}
