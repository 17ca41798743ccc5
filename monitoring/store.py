"""The monitor's state: one database, every step one transaction.

The reader's offset in the prediction log, the detector, the policy, the outbox and the history
change together or not at all, so that a monitor that is killed anywhere goes on where its last
transaction ended. Requests stay for good: they are the outbox, and the ledger of what was
delivered, which Airflow's own `db clean` does not reach. SQLite by default, PostgreSQL by URL.

A lease lets one evaluator in. Each of its transactions renews the lease and fails where another
holds it, so that an evaluator that slept through its own lease cannot write. A person's word
(`Store.change`) needs no lease: the row's lock puts it between two steps of the evaluator.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from monitoring.policy import Change, Episode, Policy

VERSION: Final = 1
"""Of the tables; a database of a newer one is refused."""
MOST_HISTORY: Final = 50_000
"""Rows of history that are kept of a model."""
PENDING: Final = "pending"
DELIVERED: Final = "delivered"
TRAINING: Final = "training"
OPEN: Final = (PENDING, DELIVERED, TRAINING)
"""Outcomes of a request that is not at its end."""
FINAL: Final = ("success", "failed", "gone", "cancelled", "taken")
_SECOND: Final = 1_000_000
_WAIT_S: Final = 10.0
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_.~-]")

_META: Final = sa.MetaData()
_BIG: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_SCHEMA: Final = sa.Table("drift_schema", _META, sa.Column("version", sa.Integer, nullable=False))
_MONITORS: Final = sa.Table(
    "drift_monitors",
    _META,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("policy", sa.Text, nullable=False),
    sa.Column("offset", _BIG, nullable=False),
    sa.Column("seen_us", _BIG, nullable=False),
    sa.Column("reread_us", _BIG, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("detector", sa.LargeBinary),
    sa.Column("reference", sa.Text, nullable=False),
    sa.Column("evaluation", sa.Text),
    sa.Column("evaluated_us", _BIG, nullable=False),
    sa.Column("now_us", _BIG, nullable=False),
    sa.Column("clock", sa.Text, nullable=False),
    sa.Column("lag", _BIG, nullable=False),
    sa.Column("counts", sa.Text, nullable=False),
    sa.Column("alarms", sa.Text, nullable=False),
    sa.Column("lease_owner", sa.Text, nullable=False),
    sa.Column("lease_until_us", _BIG, nullable=False),
    sa.Column("lease_token", _BIG, nullable=False),
)
_REQUESTS: Final = sa.Table(
    "drift_requests",
    _META,
    sa.Column("dag_run_id", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, nullable=False, index=True),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("episode", _BIG, nullable=False),
    sa.Column("conf", sa.Text, nullable=False),
    sa.Column("created_us", _BIG, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("due_us", _BIG, nullable=False),
    sa.Column("error", sa.Text, nullable=False),
    sa.Column("delivered_us", _BIG),
    sa.Column("finished_us", _BIG),
)
_REPORTS: Final = sa.Table(
    "drift_reports",
    _META,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("episode", _BIG, primary_key=True),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("due_us", _BIG, nullable=False),
    sa.Column("link", sa.Text, nullable=False),
    sa.Column("error", sa.Text, nullable=False),
)
_HISTORY: Final = sa.Table(
    "drift_history",
    _META,
    sa.Column("id", _BIG, primary_key=True, autoincrement=True),
    sa.Column("model", sa.Text, nullable=False, index=True),
    sa.Column("at_us", _BIG, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("facts", sa.Text, nullable=False),
)


class StoreError(RuntimeError):
    """The state database cannot be used; says which, and what to do."""


class LeaseLostError(RuntimeError):
    """Another evaluator works on this model; whoever gets this has changed nothing."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to evaluate.

    Attributes:
        owner: who has it.
        token: grows with each new holder.
        seconds: how long it lasts without being renewed.
    """

    owner: str
    token: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for a retraining: a row of outbox and ledger.

    Attributes:
        dag_run_id: its id in Airflow.
        version, episode: what it is for.
        conf: what the DAG run is told.
        created_us: when it was decided, by the wall clock.
        outcome: pending, delivered, training, or one of `FINAL`: success, failed, gone (from
            Airflow), cancelled (the champion changed first), taken (its id was another request's).
        tries: deliveries that failed in a row.
        due_us: not to be tried or asked after before.
        error: why the last try failed, "" where it did not.
        delivered_us, finished_us: when, None before.
    """

    dag_run_id: str
    version: str
    episode: int
    conf: dict[str, Any]
    created_us: int
    outcome: str
    tries: int
    due_us: int
    error: str
    delivered_us: int | None
    finished_us: int | None


@dataclass(frozen=True, slots=True)
class Report:
    """The report on an episode: to be made while `link` is "".

    Attributes:
        episode, version: what it is about.
        tries: tries that failed.
        due_us: not to be tried before.
        link: where it is.
        error: why the last try failed.
    """

    episode: int
    version: str
    tries: int
    due_us: int
    link: str
    error: str


@dataclass(slots=True)
class Monitor:
    """The state of a model's monitor.

    Attributes:
        model: the registered model.
        policy: the state of its policy.
        offset: id of the last scan of the log that was read.
        seen_us: when that scan was received.
        reread_us: scans received up to then were read before, from a log that was replaced.
        digest: of the champion's bundle, "" before one is known.
        detector: the detector's state, None before there is one; or where it was not asked for.
        reference: what is told of the reference: `id`, `n`, `clusters`, `days`; {} without one.
        evaluation: what is told of the last evaluation, None before the first.
        evaluated_us: when that was, by the wall clock; 0 before.
        now_us: the clock of windows and policy: the wall clock's, or that of the scans.
        clock: `received` or `event`: which of the two.
        lag: scans in the log that are not read yet.
        counts: scans read, and scans left out by reason.
        alarms: {kind: {`detail`, `since_us`}}: what only a person can mend.
    """

    model: str
    policy: Policy = field(default_factory=Policy)
    offset: int = 0
    seen_us: int = 0
    reread_us: int = 0
    digest: str = ""
    detector: bytes | None = None
    reference: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] | None = None
    evaluated_us: int = 0
    now_us: int = 0
    clock: str = "received"
    lag: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    alarms: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Event:
    """A line of the history.

    Attributes:
        id: its number, growing.
        at_us: when, by the wall clock.
        kind: `evaluation`, `level`, `opened`, `requested`, `closed`, `acked`, ...
        facts: the rest.
    """

    id: int
    at_us: int
    kind: str
    facts: dict[str, Any]


class Transaction:
    """One step: what is read here was not changed by others before it ends.

    Attributes:
        monitor: the state; what is changed in it is written at the end.
    """

    def __init__(self, connection: sa.Connection, monitor: Monitor, at_us: int) -> None:
        self.monitor = monitor
        self._connection = connection
        self._at_us = at_us

    @property
    def at_us(self) -> int:
        """The wall clock's time of this step."""
        return self._at_us

    @property
    def now_us(self) -> int:
        """The policy's time of this step."""
        return self.monitor.now_us if self.monitor.clock == "event" else self._at_us

    def apply(self, change: Change) -> None:
        """Take over a change of the policy: its state, request, report and notes."""
        self.monitor.policy = change.policy
        if change.closed is not None:
            self._cancel(change.closed[0], change.closed[1])
        if change.opened is not None:
            self._insert(
                _REPORTS,
                model=self.monitor.model,
                episode=change.opened.number,
                version=change.opened.version,
                tries=0,
                due_us=0,
                link="",
                error="",
            )
        if change.request is not None:
            self._ask(change.request.episode)
        for kind, facts in change.notes:
            self.note(kind, facts)

    def note(self, kind: str, facts: Mapping[str, Any]) -> None:
        """Add a line to the history."""
        self._insert(
            _HISTORY,
            model=self.monitor.model,
            at_us=self._at_us,
            kind=kind,
            facts=json.dumps(facts),
        )

    def alarm(self, kind: str, detail: str) -> None:
        """Raise an alarm that only a person can end, or ("") end it."""
        known = self.monitor.alarms.get(kind)
        if not detail:
            if self.monitor.alarms.pop(kind, None) is not None:
                self.note("alarm", {"alarm": kind, "detail": "", "on": False})
        elif known is None:
            self.monitor.alarms[kind] = {"detail": detail, "since_us": self._at_us}
            self.note("alarm", {"alarm": kind, "detail": detail, "on": True})
        else:
            known["detail"] = detail

    def request(self, dag_run_id: str) -> Asked | None:
        """A request as it is now."""
        found = self._connection.execute(
            sa.select(_REQUESTS).where(_REQUESTS.c.dag_run_id == dag_run_id)
        ).first()
        return None if found is None else _asked(found)

    def update(self, dag_run_id: str, **values: Any) -> None:
        """Change a request."""
        self._connection.execute(
            sa.update(_REQUESTS).where(_REQUESTS.c.dag_run_id == dag_run_id).values(**values)
        )

    def report(self, episode: int, number: int | None = None, **values: Any) -> None:
        """Change the report on an episode, or give it to another number."""
        if number is not None:
            values["episode"] = number
        self._connection.execute(
            sa.update(_REPORTS)
            .where(_REPORTS.c.model == self.monitor.model, _REPORTS.c.episode == episode)
            .values(**values)
        )

    def prune(self) -> None:
        """Forget the oldest history beyond `MOST_HISTORY` rows."""
        mine = _HISTORY.c.model == self.monitor.model
        oldest = self._connection.execute(
            sa.select(_HISTORY.c.id)
            .where(mine)
            .order_by(_HISTORY.c.id.desc())
            .offset(MOST_HISTORY)
            .limit(1)
        ).scalar()
        if oldest is not None:
            self._connection.execute(sa.delete(_HISTORY).where(mine, _HISTORY.c.id <= oldest))

    def _ask(self, episode: Episode) -> None:
        conf = {
            "champion": episode.version,
            "force": episode.manual,
            "episode": episode.number,
            "reason": list(episode.reason),
            "manual": episode.manual,
            "requested_us": self._at_us,
            # Tells this request from one of a database that was lost, and numbered alike.
            "request": secrets.token_hex(8),
        }
        self._insert(
            _REQUESTS,
            dag_run_id=dag_run_id(self.monitor.model, episode.version, episode.number),
            model=self.monitor.model,
            version=episode.version,
            episode=episode.number,
            conf=json.dumps(conf),
            created_us=self._at_us,
            outcome=PENDING,
            tries=0,
            due_us=0,
            error="",
        )

    def _cancel(self, episode: Episode, outcome: str) -> None:
        """A request that nobody waits for any more is not delivered."""
        self._connection.execute(
            sa.update(_REQUESTS)
            .where(
                _REQUESTS.c.dag_run_id
                == dag_run_id(self.monitor.model, episode.version, episode.number),
                _REQUESTS.c.outcome == PENDING,
            )
            .values(outcome="cancelled", finished_us=self._at_us, error=f"episode {outcome}")
        )

    def _insert(self, table: sa.Table, **values: Any) -> None:
        self._connection.execute(sa.insert(table).values(**values))


class Store:
    """The state of one model's monitor in a database; safe from several threads.

    Every method may raise `StoreError`.
    """

    def __init__(self, engine: sa.Engine, model: str, name: str) -> None:
        """Use `open_store`."""
        self._engine = engine
        self._model = model
        self._name = name

    @contextmanager
    def change(self, lease: Lease | None = None) -> Iterator[Transaction]:
        """A step: everything changed in it is committed together, or (on an error) not at all.

        Args:
            lease: the evaluator's, which is renewed; None for a person's word.

        Raises:
            LeaseLostError: another evaluator has the lease.
        """
        with self._errors(), self._engine.begin() as connection:
            found = connection.execute(
                sa.select(_MONITORS).where(_MONITORS.c.model == self._model).with_for_update()
            ).first()
            if found is None:
                raise StoreError(
                    f"{self._name} has no monitor of {self._model!r}; start `python -m monitoring`"
                )
            if lease is not None and found.lease_token != lease.token:
                raise LeaseLostError(f"{found.lease_owner} evaluates {self._model!r} now")
            transaction = Transaction(connection, _monitor(found), time.time_ns() // 1000)
            yield transaction
            values = _row(transaction.monitor)
            if transaction.monitor.detector == found.detector:
                del values["detector"]
            if lease is not None:
                values["lease_until_us"] = _clock(connection) + int(lease.seconds * _SECOND)
            connection.execute(
                sa.update(_MONITORS).where(_MONITORS.c.model == self._model).values(**values)
            )

    def lease(self, owner: str, seconds: float) -> Lease | None:
        """The lease, where nobody has it; the row of the model is made where there is none."""
        with self._errors():
            self._ensure_row()
            with self._engine.begin() as connection:
                mine = _MONITORS.c.model == self._model
                held = connection.execute(
                    sa.select(_MONITORS.c.lease_until_us, _MONITORS.c.lease_token)
                    .where(mine)
                    .with_for_update()
                ).one()
                now = _clock(connection)
                if held.lease_until_us > now:
                    return None
                token = held.lease_token + 1
                connection.execute(
                    sa.update(_MONITORS)
                    .where(mine)
                    .values(
                        lease_owner=owner,
                        lease_token=token,
                        lease_until_us=now + int(seconds * _SECOND),
                    )
                )
            return Lease(owner, token, seconds)

    def release(self, lease: Lease) -> None:
        """Give the lease back, so that the next evaluator need not wait for its end."""
        with self._errors(), self._engine.begin() as connection:
            connection.execute(
                sa.update(_MONITORS)
                .where(_MONITORS.c.model == self._model, _MONITORS.c.lease_token == lease.token)
                .values(lease_until_us=0)
            )

    def monitor(self, detector: bool = False) -> Monitor | None:
        """The state, with the detector's where asked for; None before the first monitor."""
        columns = [c for c in _MONITORS.c if detector or c.name != "detector"]
        with self._reading() as connection:
            found = connection.execute(
                sa.select(*columns).where(_MONITORS.c.model == self._model)
            ).first()
        return None if found is None else _monitor(found)

    def requests(self, *outcomes: str) -> list[Asked]:
        """Requests with these outcomes, or all; oldest first."""
        asked = sa.select(_REQUESTS).where(_REQUESTS.c.model == self._model)
        if outcomes:
            asked = asked.where(_REQUESTS.c.outcome.in_(outcomes))
        with self._reading() as connection:
            return [_asked(row) for row in connection.execute(asked.order_by(_REQUESTS.c.episode))]

    def reports(self) -> list[Report]:
        """Reports of all episodes, oldest first."""
        asked = sa.select(_REPORTS).where(_REPORTS.c.model == self._model)
        with self._reading() as connection:
            rows = connection.execute(asked.order_by(_REPORTS.c.episode)).all()
        return [Report(r.episode, r.version, r.tries, r.due_us, r.link, r.error) for r in rows]

    def history(
        self, limit: int, before: int | None = None, kinds: tuple[str, ...] = ()
    ) -> list[Event]:
        """Lines of the history, newest first.

        Args:
            limit: how many.
            before: only those with smaller ids.
            kinds: only these; all where empty.
        """
        asked = sa.select(_HISTORY).where(_HISTORY.c.model == self._model)
        if before is not None:
            asked = asked.where(_HISTORY.c.id < before)
        if kinds:
            asked = asked.where(_HISTORY.c.kind.in_(kinds))
        with self._reading() as connection:
            rows = connection.execute(asked.order_by(_HISTORY.c.id.desc()).limit(limit)).all()
        return [Event(row.id, row.at_us, row.kind, json.loads(row.facts)) for row in rows]

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _ensure_row(self) -> None:
        if self.monitor() is not None:
            return
        values = {"lease_owner": "", "lease_until_us": 0, "lease_token": 0}
        try:
            with self._engine.begin() as connection:
                connection.execute(
                    sa.insert(_MONITORS).values(**_row(Monitor(self._model)), **values)
                )
        except sa.exc.IntegrityError:
            return  # another process was quicker

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with self._errors(), self._engine.connect() as connection:
            yield connection.execution_options(reading=True)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            raise _failed(self._name, error) from error


def open_store(url: str, model: str, create: bool = False) -> Store:
    """Open the state database.

    Args:
        url: `sqlite:<file>` or `postgresql://...`, as for the prediction log.
        model: the registered model whose monitor is meant.
        create: make database and tables where they are not there (the monitor does).

    Raises:
        ValueError: there is no such kind of database.
        StoreError: it is not there, cannot be used, or is of a newer Trailwatch.
    """
    address, file = _address(url)
    name = f"the drift state {address.render_as_string(hide_password=True)}"
    if file is not None:
        if not create and not file.exists():
            raise StoreError(f"{name} is not there; start `python -m monitoring`")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{name}: its folder cannot be made ({error})") from error
    engine = _engine(address)
    try:
        if create:
            with engine.begin() as connection:
                if engine.dialect.name == "postgresql":  # two at once may both find no tables
                    connection.execute(sa.text("SELECT pg_advisory_xact_lock(7241)"))
                _META.create_all(connection)
                if connection.execute(sa.select(_SCHEMA.c.version)).first() is None:
                    connection.execute(sa.insert(_SCHEMA).values(version=VERSION))
        with engine.connect() as connection:
            reading = connection.execution_options(reading=True)
            version = reading.execute(sa.select(_SCHEMA.c.version)).scalar_one()
    except SQLAlchemyError as error:
        engine.dispose()
        raise _failed(name, error) from error
    if version > VERSION:
        engine.dispose()
        raise StoreError(
            f"{name} has schema {version}, and this Trailwatch reads up to {VERSION}; "
            "use the newer one that wrote it"
        )
    return Store(engine, model, name)


def default_url(log_url: str) -> str:
    """URL of the drift state where no other is named: beside the prediction log.

    That is a file in the same folder, or tables of their own in the same PostgreSQL database.
    """
    kind, _, place = log_url.partition(":")
    if kind != "sqlite":
        return log_url
    return f"sqlite:{_path(place).with_name('drift.db')}"


def dag_run_id(model: str, version: str, episode: int) -> str:
    """Id of the DAG run of an episode, as Airflow takes it; the same however often it is asked."""
    return f"drift__{_UNSAFE.sub('-', model)}__v{_UNSAFE.sub('-', version)}__e{episode}"


def _address(url: str) -> tuple[sa.URL, Path | None]:
    kind, _, place = url.partition(":")
    if kind == "sqlite" and place:
        path = _path(place)
        return sa.URL.create("sqlite", database=str(path)), path
    if kind in ("postgresql", "postgres") and place.startswith("//"):
        try:
            return sa.make_url(url).set(drivername="postgresql+psycopg"), None
        except (sa.exc.ArgumentError, ValueError) as error:
            raise ValueError("the URL of the drift state cannot be read") from error
    raise ValueError(
        f"the URL of the drift state has the kind {kind!r}; "
        "give sqlite:<file> or postgresql://user:password@host:port/database"
    )


def _path(place: str) -> Path:
    """As `logbook.opened` reads it: sqlite:<file>, or as SQLAlchemy has it, sqlite:///<file>."""
    return Path(place.removeprefix("///") if place.startswith("///") else place)


def _engine(address: sa.URL) -> sa.Engine:
    if address.get_backend_name() == "postgresql":
        waits = {"connect_timeout": 5, "application_name": "trailwatch-drift"}
        server = sa.create_engine(address, connect_args=waits, pool_pre_ping=True, pool_size=2)

        # Neither a lock nor a monitor that fell asleep in a transaction may hold up the others.
        @sa.event.listens_for(server, "connect")
        def patient(connection: Any, _: object) -> None:
            connection.execute(f"SET lock_timeout = {int(_WAIT_S * 1000)}")
            connection.execute("SET idle_in_transaction_session_timeout = 60000")
            connection.commit()

        return server
    engine = sa.create_engine(address, connect_args={"timeout": _WAIT_S})

    # The driver would begin a transaction only at its first change, and two that read before
    # they write could then not both commit.
    @sa.event.listens_for(engine, "connect")
    def connected(connection: Any, _: object) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")

    @sa.event.listens_for(engine, "begin")
    def begun(connection: sa.Connection) -> None:
        reading = connection.get_execution_options().get("reading", False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine


def _clock(connection: sa.Connection) -> int:
    """Microseconds since 1970 by the clock that all evaluators share."""
    if connection.dialect.name == "postgresql":
        seconds = connection.execute(sa.text("SELECT extract(epoch FROM clock_timestamp())"))
        return int(seconds.scalar_one() * _SECOND)
    return time.time_ns() // 1000


def _failed(name: str, error: SQLAlchemyError) -> StoreError:
    told = " ".join(str(getattr(error, "orig", None) or error).split())[:300]
    return StoreError(f"{name}: {told}; see that it is there and that this user may write it")


def _monitor(row: sa.Row[Any]) -> Monitor:
    told = row._mapping
    try:
        policy = Policy.from_json(row.policy)
    except ValueError as error:
        raise StoreError(f"the state of {row.model!r} cannot be read: {error}") from error
    return Monitor(
        model=row.model,
        policy=policy,
        offset=told["offset"],
        seen_us=row.seen_us,
        reread_us=row.reread_us,
        digest=row.digest,
        detector=told.get("detector"),
        reference=json.loads(row.reference),
        evaluation=None if row.evaluation is None else json.loads(row.evaluation),
        evaluated_us=row.evaluated_us,
        now_us=row.now_us,
        clock=row.clock,
        lag=row.lag,
        counts=json.loads(row.counts),
        alarms=json.loads(row.alarms),
    )


def _row(monitor: Monitor) -> dict[str, Any]:
    evaluation = monitor.evaluation
    return {
        "model": monitor.model,
        "policy": monitor.policy.to_json(),
        "offset": monitor.offset,
        "seen_us": monitor.seen_us,
        "reread_us": monitor.reread_us,
        "digest": monitor.digest,
        "detector": monitor.detector,
        "reference": json.dumps(monitor.reference),
        "evaluation": None if evaluation is None else json.dumps(evaluation),
        "evaluated_us": monitor.evaluated_us,
        "now_us": monitor.now_us,
        "clock": monitor.clock,
        "lag": monitor.lag,
        "counts": json.dumps(monitor.counts),
        "alarms": json.dumps(monitor.alarms),
    }


def _asked(row: sa.Row[Any]) -> Asked:
    return Asked(
        row.dag_run_id,
        row.version,
        row.episode,
        json.loads(row.conf),
        row.created_us,
        row.outcome,
        row.tries,
        row.due_us,
        row.error,
        row.delivered_us,
        row.finished_us,
    )
