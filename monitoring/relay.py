"""The relay: what the policy has asked for reaches Airflow once, and what came of it comes back.

A request is delivered as a DAG run whose id it has had since it was decided. Whatever breaks
between the delivery and its note in the ledger, the next try meets a 409 and finds its own run
there. What a person must mend (a password, a DAG that is not there, a paused one) becomes an
alarm and is tried ever more rarely; what passes by itself (no answer, 5xx) is tried again soon.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import httpx

from monitoring import policy as policies
from monitoring.store import DELIVERED, OPEN, PENDING, TRAINING, Asked, Lease, Store, Transaction

SECOND: Final = 1_000_000
AIRFLOW: Final = "airflow"
"""Kind of the alarm that Airflow cannot be used as it is set up."""
PAUSED: Final = "dag_paused"
UNREACHABLE: Final = "airflow_unreachable"

_PATIENCE_S: Final = 5.0
_LOG: Final = logging.getLogger("trailwatch.drift")


class UnreachableError(Exception):
    """Airflow does not answer now, or with an error of its own; it may by itself later."""


class MisconfiguredError(Exception):
    """Airflow answers, and will go on to refuse until a person changes something."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How often Airflow is asked, in seconds.

    Attributes:
        first: pause after the first try without an answer; doubled for each further one.
        longest: and never longer than this.
        wrong: the same after the first refusal.
        wrong_longest: and never longer than this.
        follow: between two looks at a run.
        check: between two looks whether a request could be delivered, while there is none.
        timeout: for an answer.
    """

    first: float = 2.0
    longest: float = 300.0
    wrong: float = 60.0
    wrong_longest: float = 3600.0
    follow: float = 15.0
    check: float = 600.0
    timeout: float = _PATIENCE_S


class Airflow:
    """The few calls of Airflow's REST API (v2) that are needed. Not safe for several threads."""

    def __init__(
        self, url: str, user: str, password: str, dag: str, timeout_s: float = _PATIENCE_S
    ) -> None:
        """Nothing is asked yet.

        Args:
            url: where its API server is, without `/api/v2`.
            user: who may trigger and read the DAG.
            password: and their password.
            dag: id of the DAG that retrains.
            timeout_s: for an answer.
        """
        self.dag = dag
        self._login = {"username": user, "password": password}
        self._token = ""
        self._client = httpx.Client(base_url=url.rstrip("/"), timeout=timeout_s, trust_env=False)

    def is_paused(self) -> bool:
        """Whether the DAG is paused: its runs then wait without an error.

        Raises:
            UnreachableError, MisconfiguredError: see there.
        """
        answer = self._asked("GET", f"/api/v2/dags/{self.dag}")
        if answer.status_code != 200:
            raise self._refused(answer)
        return bool(_json(answer).get("is_paused"))

    def trigger(self, dag_run_id: str, conf: dict[str, Any]) -> bool:
        """Ask for a run; False where there is one with this id.

        Raises:
            UnreachableError, MisconfiguredError: see there.
        """
        body = {"dag_run_id": dag_run_id, "logical_date": None, "conf": conf}
        answer = self._asked("POST", f"/api/v2/dags/{self.dag}/dagRuns", body)
        if answer.status_code == 409:
            return False
        if answer.status_code not in (200, 201):
            raise self._refused(answer)
        return True

    def run(self, dag_run_id: str) -> dict[str, Any] | None:
        """A run, with `state` and `conf`; None where there is none.

        Raises:
            UnreachableError, MisconfiguredError: see there.
        """
        answer = self._asked("GET", f"/api/v2/dags/{self.dag}/dagRuns/{dag_run_id}")
        if answer.status_code == 404:
            return None
        if answer.status_code != 200:
            raise self._refused(answer)
        return _json(answer)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _asked(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        fresh = not self._token
        if fresh:
            self._log_in()
        answer = self._sent(method, path, body)
        # 401: the token is old; 403, as for a user without the right: its secret has changed.
        if answer.status_code in (401, 403) and not fresh:
            self._log_in()
            answer = self._sent(method, path, body)
        if answer.status_code == 401 or (answer.status_code == 403 and "JWT" in answer.text):
            self._token = ""
            raise MisconfiguredError("Airflow takes its own token for nothing; set its jwt_secret")
        return answer

    def _sent(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        try:
            answer = self._client.request(method, path, json=body, headers=headers)
        except httpx.TransportError as error:
            raise UnreachableError(f"{type(error).__name__}: {error}"[:200]) from error
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise MisconfiguredError(f"TRAILWATCH_AIRFLOW_URL cannot be used: {error}") from error
        if answer.status_code >= 500 or answer.status_code in (408, 425, 429):
            raise UnreachableError(f"Airflow answered {answer.status_code}")
        return answer

    def _log_in(self) -> None:
        self._token = ""
        answer = self._sent("POST", "/auth/token", self._login)
        if answer.status_code in (400, 401, 403, 422):
            raise MisconfiguredError(
                f"Airflow refuses user {self._login['username']!r} ({answer.status_code}); correct "
                "TRAILWATCH_AIRFLOW_USER and TRAILWATCH_AIRFLOW_PASSWORD"
            )
        token = _json(answer).get("access_token") if answer.status_code in (200, 201) else None
        if not isinstance(token, str) or not token:
            raise MisconfiguredError(
                f"what TRAILWATCH_AIRFLOW_URL names answers {answer.status_code} to /auth/token; "
                "is it Airflow 3?"
            )
        self._token = token

    def _refused(self, answer: httpx.Response) -> MisconfiguredError:
        reasons = {
            403: f"user {self._login['username']!r} may not trigger the DAG {self.dag!r}",
            404: f"Airflow has no DAG {self.dag!r}; deploy it, or correct TRAILWATCH_AIRFLOW_DAG",
        }
        said = " ".join(answer.text.split())[:200]
        reason = reasons.get(answer.status_code, f"Airflow answered {answer.status_code}: {said}")
        return MisconfiguredError(reason)


class Relay:
    """Delivers what is pending, and follows what was delivered."""

    def __init__(
        self,
        store: Store,
        airflow: Airflow | None,
        pace: Pace = Pace(),
        clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Prepare.

        Args:
            store: where requests wait.
            airflow: who takes them; None: nobody is named, and that is an alarm.
            pace: how often to ask.
            clock: seconds since 1970.
            jitter: a number from 0 to 1 by which pauses vary.
        """
        self._store = store
        self._airflow = airflow
        self._pace = pace
        self._clock = clock
        self._jitter = jitter
        self._check_at = 0.0

    def work(self, lease: Lease) -> None:
        """One round over all open requests that are due.

        Raises:
            StoreError, LeaseLostError: see `monitoring.store`.
        """
        waiting = self._store.requests(*OPEN)
        for asked in waiting:
            if asked.due_us <= self._clock() * SECOND:
                self._one(lease, asked)
        if waiting:
            self._check_at = 0.0
        elif self._clock() >= self._check_at or self._check_at > self._clock() + self._pace.check:
            self._check_at = self._clock() + self._pace.check
            self._check(lease)

    def _check(self, lease: Lease) -> None:
        """Tell before there is a request that it could not be delivered."""
        paused, problem, kind = False, "", AIRFLOW
        try:
            if self._airflow is not None:
                paused = self._airflow.is_paused()
        except UnreachableError as error:
            problem, kind = str(error), UNREACHABLE
        except MisconfiguredError as error:
            problem = str(error)
        with self._store.change(lease) as step:
            for one in (AIRFLOW, UNREACHABLE):
                step.alarm(one, problem if one == kind else "")
            self._tell_paused(step, paused)

    def _tell_paused(self, step: Transaction, paused: bool) -> None:
        dag = "" if self._airflow is None else self._airflow.dag
        told = f"the DAG {dag!r} is paused: its runs wait until somebody unpauses it"
        step.alarm(PAUSED, told if paused else "")

    def _one(self, lease: Lease, asked: Asked) -> None:
        if self._airflow is None:
            problem = "TRAILWATCH_AIRFLOW_URL is not set: nobody takes requests for retraining"
            self._again(lease, asked, problem, AIRFLOW)
            return
        try:
            paused = self._airflow.is_paused()
            if asked.outcome == PENDING:
                self._deliver(lease, asked, self._airflow)
            else:
                self._follow(lease, asked, self._airflow)
        except UnreachableError as error:
            self._again(lease, asked, str(error), UNREACHABLE)
        except MisconfiguredError as error:
            self._again(lease, asked, str(error), AIRFLOW)
        else:
            with self._store.change(lease) as step:
                step.alarm(AIRFLOW, "")
                step.alarm(UNREACHABLE, "")
                self._tell_paused(step, paused)

    def _deliver(self, lease: Lease, asked: Asked, airflow: Airflow) -> None:
        ours = airflow.trigger(asked.dag_run_id, asked.conf)
        if not ours:
            there = airflow.run(asked.dag_run_id)
            if there is None:  # deleted in between: the next try makes it
                raise UnreachableError("a run with this id came and went")
            ours = (there.get("conf") or {}).get("request") == asked.conf["request"]
        with self._store.change(lease) as step:
            now = step.request(asked.dag_run_id)
            if now is None or now.outcome != PENDING:
                return  # the champion changed meanwhile; the DAG's first task will find that
            if ours:
                step.update(
                    asked.dag_run_id,
                    outcome=DELIVERED,
                    delivered_us=step.at_us,
                    due_us=0,
                    tries=0,
                    error="",
                )
                step.note("delivered", {"dag_run_id": asked.dag_run_id})
                _LOG.info("delivered %s", asked.dag_run_id)
            else:
                self._renumber(step, asked)

    def _renumber(self, step: Transaction, asked: Asked) -> None:
        """Another request, of a state that was lost, has this id: ask under the next one."""
        step.update(
            asked.dag_run_id,
            outcome="taken",
            finished_us=step.at_us,
            error="a run of another request has this id",
        )
        change = policies.renumbered(step.monitor.policy, asked.episode, step.now_us)
        step.apply(change)
        if change.request is not None:
            step.report(asked.episode, number=change.request.episode.number)

    def _follow(self, lease: Lease, asked: Asked, airflow: Airflow) -> None:
        run = airflow.run(asked.dag_run_id)
        state = "gone" if run is None else str(run.get("state"))
        with self._store.change(lease) as step:
            now = step.request(asked.dag_run_id)
            if now is None or now.outcome not in (DELIVERED, TRAINING):
                return
            due_us = int((self._clock() + self._pace.follow) * SECOND)
            step.update(asked.dag_run_id, due_us=due_us, tries=0, error="")
            policy, at_us = step.monitor.policy, step.now_us
            if state in ("success", "failed", "gone"):
                step.update(asked.dag_run_id, outcome=state, finished_us=step.at_us)
                why = {"failed": "its run failed", "gone": "its run is gone from Airflow"}
                step.apply(
                    policies.finished(
                        policy, asked.episode, state == "success", at_us, why=why.get(state, "")
                    )
                )
            elif state == "running" and now.outcome == DELIVERED:
                step.update(asked.dag_run_id, outcome=TRAINING)
                step.apply(policies.started(policy, asked.episode, at_us))

    def _again(self, lease: Lease, asked: Asked, problem: str, alarm: str) -> None:
        """Note why it did not work, and when to try again."""
        pace = self._pace
        first, longest = (
            (pace.first, pace.longest) if alarm == UNREACHABLE else (pace.wrong, pace.wrong_longest)
        )
        pause_s = min(first * 2 ** min(asked.tries, 30), longest) * (0.5 + self._jitter() / 2)
        with self._store.change(lease) as step:
            step.update(
                asked.dag_run_id,
                tries=asked.tries + 1,
                due_us=int((self._clock() + pause_s) * SECOND),
                error=problem[:500],
            )
            other = AIRFLOW if alarm == UNREACHABLE else UNREACHABLE
            step.alarm(alarm, problem)
            step.alarm(other, "")
        log = _LOG.error if asked.tries == 0 else _LOG.debug
        log("%s: %s; again in %.0f s", asked.dag_run_id, problem, pause_s)


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        told = answer.json()
    except ValueError as error:
        raise MisconfiguredError("TRAILWATCH_AIRFLOW_URL answers, but not as Airflow") from error
    if not isinstance(told, dict):
        raise MisconfiguredError("TRAILWATCH_AIRFLOW_URL answers, but not as Airflow")
    return told
