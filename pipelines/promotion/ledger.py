"""The ledger of promotions: what was decided of a model, by whom, why, and on which figures.

It is append-only. Triggers of the database refuse to change or remove an entry, and to add one that
is not the next; each entry carries the hash of the one before, so that a change made around the
triggers is noticed when the ledger is read.

MLflow moves an alias without asking what it pointed to. So whoever moves one does it while alone
with the ledger (`Ledger.alone`): a process that dies gives that up at once, and a half-done move
stands in the ledger for the next one to finish.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

VARIABLE: Final = "TRAILWATCH_LEDGER"
DEFAULT_FILE: Final = "ledger.db"
WAIT_S: Final = 60.0
"""How long a move waits for another one."""

_REMEDY = "give sqlite:///<file> or postgresql://user:password@host:port/database"


class LedgerError(RuntimeError):
    """The ledger cannot be used; says why and what to do."""


class Kind(StrEnum):
    """What an entry says."""

    FOUND = "found"
    """The alias pointed elsewhere than the ledger said: it was moved without the ledger."""
    PROMOTE = "promote"
    """The champion is to change; only carried out when an entry `DONE` settles it."""
    ROLLBACK = "rollback"
    """Likewise, back to an earlier champion."""
    DONE = "done"
    ABANDONED = "abandoned"
    """A move that died half-way, after which somebody pointed the alias elsewhere."""
    REFUSED = "refused"
    WAITING = "waiting"
    """Every gate was passed; a person has to approve."""
    REJECTED = "rejected"
    HELD = "held"
    """Every gate was passed; nobody wanted a promotion."""


MOVES: Final = (Kind.PROMOTE, Kind.ROLLBACK)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger.

    Attributes:
        model: registered model.
        number: place in the model's ledger, from 1 without gaps.
        at: when, UTC, as ISO 8601 text.
        kind: what it says.
        who: who said so.
        why: their reason.
        origin: champion before, "" where there was none.
        target: the version that it is about.
        settles: number of the entry that this one settles, 0 for none.
        decision: the whole decision with its figures, {} where there was nothing to measure.
        previous: hash of the entry before, "" for the first.
        hash: of all the above.
    """

    model: str
    number: int
    at: str
    kind: Kind
    who: str
    why: str
    origin: str
    target: str
    settles: int
    decision: Mapping[str, Any]
    previous: str
    hash: str = ""

    def sealed(self) -> str:
        """What `hash` must be."""
        fields = {name: value for name, value in asdict(self).items() if name != "hash"}
        text = json.dumps(fields, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


_META = sa.MetaData()
_LEDGER = sa.Table(
    "promotion_ledger",
    _META,
    sa.Column("model", sa.String(256), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    *(
        sa.Column(name, sa.Text, nullable=False)
        for name in ("at", "kind", "who", "why", "origin", "target")
    ),
    sa.Column("settles", sa.Integer, nullable=False),
    *(sa.Column(name, sa.Text, nullable=False) for name in ("decision", "previous", "hash")),
)

_LAST = "SELECT max(number) FROM promotion_ledger WHERE model = NEW.model"
_LAST_HASH = f"SELECT hash FROM promotion_ledger WHERE model = NEW.model AND number = ({_LAST})"
_IS_NEXT = (
    f"NEW.number = coalesce(({_LAST}), 0) + 1 AND NEW.previous = coalesce(({_LAST_HASH}), '')"
)
_SQLITE_TRIGGERS = (
    *(
        f"CREATE TRIGGER IF NOT EXISTS promotion_ledger_{verb.lower()} BEFORE {verb} "
        "ON promotion_ledger BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
        for verb in ("UPDATE", "DELETE")
    ),
    # Also against INSERT OR REPLACE, which fires no trigger for the row that it removes.
    "CREATE TRIGGER IF NOT EXISTS promotion_ledger_insert BEFORE INSERT ON promotion_ledger "
    f"WHEN NOT ({_IS_NEXT}) BEGIN SELECT RAISE(ABORT, 'not the next entry of the ledger'); END",
)
_POSTGRES_TRIGGERS = (
    "CREATE OR REPLACE FUNCTION promotion_ledger_kept() RETURNS trigger LANGUAGE plpgsql AS $$ "
    "BEGIN RAISE EXCEPTION 'the ledger is append-only'; END $$",
    "CREATE OR REPLACE FUNCTION promotion_ledger_next() RETURNS trigger LANGUAGE plpgsql AS $$ "
    f"BEGIN IF NOT ({_IS_NEXT}) THEN RAISE EXCEPTION 'not the next entry of the ledger'; END IF; "
    "RETURN NEW; END $$",
    "CREATE OR REPLACE TRIGGER promotion_ledger_row BEFORE UPDATE OR DELETE ON promotion_ledger "
    "FOR EACH ROW EXECUTE FUNCTION promotion_ledger_kept()",
    "CREATE OR REPLACE TRIGGER promotion_ledger_all BEFORE TRUNCATE ON promotion_ledger "
    "FOR EACH STATEMENT EXECUTE FUNCTION promotion_ledger_kept()",
    "CREATE OR REPLACE TRIGGER promotion_ledger_insert BEFORE INSERT ON promotion_ledger "
    "FOR EACH ROW EXECUTE FUNCTION promotion_ledger_next()",
)
_CREATION_LOCK: Final = 0x7072_6F6D_6F74


def default_url(tracking: str, home: Path) -> str:
    """Where the ledger is: `TRAILWATCH_LEDGER`, else with MLflow's database, else in `home`.

    Args:
        tracking: MLflow's tracking URI. Beside its SQLite file, or in its PostgreSQL database; a
            server's database is not known here.
        home: folder of local state.
    """
    named = os.environ.get(VARIABLE, "").strip()
    if named:
        return named
    if tracking.startswith("sqlite:///"):
        beside = Path(tracking.removeprefix("sqlite:///")).absolute().with_name(DEFAULT_FILE)
        return f"sqlite:///{beside}"
    if tracking.startswith("postgres"):
        return tracking
    return f"sqlite:///{home / DEFAULT_FILE}"


class Ledger:
    """The ledger that a URL names, for all models."""

    def __init__(self, url: str) -> None:
        """Open it; its table and triggers are made where they are missing.

        Raises:
            LedgerError: there is no such kind of database, or it cannot be opened.
        """
        self._url = _parsed(url)
        self._name = self._url.render_as_string(hide_password=True)
        self._engine = sa.create_engine(
            self._url, poolclass=sa.NullPool, connect_args=_connect_args(self._url)
        )
        self._sqlite = self._url.get_backend_name() == "sqlite"
        if self._sqlite:
            Path(str(self._url.database)).parent.mkdir(parents=True, exist_ok=True)
            sa.event.listen(self._engine, "connect", _leave_transactions_to_us)
            sa.event.listen(self._engine, "begin", _take_the_write_lock)
        with self._errors(), self._engine.begin() as connection:
            self._create(connection)

    def _create(self, connection: sa.Connection) -> None:
        if sa.inspect(connection).has_table(_LEDGER.name):
            return
        if not self._sqlite:
            connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_CREATION_LOCK})"))
        _META.create_all(connection)
        for statement in _SQLITE_TRIGGERS if self._sqlite else _POSTGRES_TRIGGERS:
            connection.exec_driver_sql(statement)

    def entries(self, model: str) -> list[Entry]:
        """All entries of a model, the first one first.

        Raises:
            LedgerError: an entry was changed, removed or put in between; or it cannot be read.
        """
        ours = sa.select(_LEDGER).where(_LEDGER.c.model == model).order_by(_LEDGER.c.number)
        with self._errors(), self._engine.begin() as connection:
            found = [_entry(row) for row in connection.execute(ours).mappings()]
        before = ""
        for number, entry in enumerate(found, 1):
            sound = entry.number == number and entry.previous == before
            if not sound or entry.hash != entry.sealed():
                raise LedgerError(
                    f"the ledger {self._name} was changed: entry {entry.number} of {model!r} is "
                    "not what was written; restore it from a backup before anything is promoted"
                )
            before = entry.hash
        return found

    def append(
        self,
        model: str,
        kind: Kind,
        *,
        who: str,
        why: str = "",
        origin: str = "",
        target: str = "",
        settles: int = 0,
        decision: Mapping[str, Any] | None = None,
    ) -> Entry:
        """Add an entry; arguments as the attributes of `Entry`.

        Raises:
            LedgerError: it cannot be written.
        """
        last = (
            sa.select(_LEDGER.c.number, _LEDGER.c.hash)
            .where(_LEDGER.c.model == model)
            .order_by(_LEDGER.c.number.desc())
            .limit(1)
        )
        with self._errors(), self._engine.begin() as connection:
            if not self._sqlite:
                connection.execute(sa.text("LOCK TABLE promotion_ledger IN EXCLUSIVE MODE"))
            row = connection.execute(last).one_or_none()
            number, previous = (0, "") if row is None else (int(row[0]), str(row[1]))
            at = datetime.now(UTC).isoformat(timespec="milliseconds")
            entry = Entry(
                model=model,
                number=number + 1,
                at=at,
                kind=kind,
                who=who,
                why=why,
                origin=origin,
                target=target,
                settles=settles,
                decision=dict(decision or {}),
                previous=previous,
            )
            values = {**asdict(entry), "hash": entry.sealed(), "kind": str(kind)}
            values["decision"] = _text(entry.decision)
            connection.execute(sa.insert(_LEDGER).values(values))
        return Entry(**{**asdict(entry), "hash": entry.sealed()})

    @contextmanager
    def alone(self, model: str, wait_s: float = WAIT_S) -> Iterator[None]:
        """Nobody else moves this model's champion meanwhile; ends with the process, too.

        Raises:
            LedgerError: somebody else has been at it for longer than `wait_s` seconds.
        """
        taken = self._file_lock(wait_s) if self._sqlite else self._server_lock(model, wait_s)
        with taken:
            yield

    @contextmanager
    def _file_lock(self, wait_s: float) -> Iterator[None]:
        path = Path(f"{self._url.database}.lock")
        until = time.monotonic() + wait_s
        with path.open("a") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= until:
                        raise self._busy(wait_s) from None
                    time.sleep(0.05)
            yield

    @contextmanager
    def _server_lock(self, model: str, wait_s: float) -> Iterator[None]:
        digest = hashlib.sha256(f"{_LEDGER.name} {model}".encode()).digest()
        key = int.from_bytes(digest[:8], "big", signed=True)
        with self._errors():
            connection = self._engine.connect()
        try:
            with self._errors():
                self._lock(connection, key, wait_s)
            yield
        finally:
            connection.close()  # which gives the lock back

    def _lock(self, connection: sa.Connection, key: int, wait_s: float) -> None:
        # Without a transaction: one that stays open for long would hold back the server's vacuum.
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(sa.text(f"SET lock_timeout = {int(wait_s * 1000)}"))
        try:
            connection.execute(sa.text("SELECT pg_advisory_lock(:key)"), {"key": key})
        except sa.exc.OperationalError as error:
            if "lock timeout" not in str(error):
                raise
            raise self._busy(wait_s) from None

    def _busy(self, wait_s: float) -> LedgerError:
        return LedgerError(
            f"the ledger {self._name} has been held by another promotion for {wait_s:.0f} s; "
            "wait for it, or end its process"
        )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.SQLAlchemyError as error:
            cause = getattr(error, "orig", None) or error
            said = " ".join(str(cause).split())
            raise LedgerError(
                f"the ledger {self._name}: {said}; correct {VARIABLE} or start the database"
            ) from error


def _entry(row: sa.RowMapping) -> Entry:
    values: dict[str, Any] = {name: row[name] for name in Entry.__dataclass_fields__}
    return Entry(**{**values, "kind": Kind(row["kind"]), "decision": json.loads(row["decision"])})


def _text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _parsed(url: str) -> sa.URL:
    """The URL as SQLAlchemy has it, with the driver that is installed."""
    text = url
    if url.startswith("sqlite:") and not url.startswith("sqlite:/"):
        text = f"sqlite:///{url.removeprefix('sqlite:')}"
    try:
        parsed = sa.make_url(text.replace("postgres://", "postgresql://", 1))
    except sa.exc.ArgumentError as error:
        raise LedgerError(f"the ledger's URL cannot be read; {_REMEDY}") from error
    if parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:"):
        return parsed
    if parsed.get_backend_name() == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    raise LedgerError(
        f"the ledger's URL is {parsed.render_as_string(hide_password=True)!r}; {_REMEDY}"
    )


def _connect_args(url: sa.URL) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return {"timeout": WAIT_S}
    return {"connect_timeout": 5, "application_name": "trailwatch-promote"}


def _leave_transactions_to_us(connection: Any, _record: Any) -> None:
    connection.isolation_level = None


def _take_the_write_lock(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
