"""Moving the champion: compare and swap, finished after a crash, and the way back.

A move is an entry of the ledger, then the alias, then tags, then an entry `done`. Whoever comes
next finds a move without `done` and finishes it; doing any part twice changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from models import registry
from pipelines.promotion.ledger import MOVES, Entry, Kind, Ledger

if TYPE_CHECKING:
    from mlflow import MlflowClient

Publish = Callable[[Entry], object]


class StaleError(RuntimeError):
    """The champion is not the one that was decided about."""


def champion_of(entries: Sequence[Entry]) -> str:
    """Champion as the ledger has it, "" for none: that of the last move that was carried out."""
    walked = _walked(entries)
    return walked[-1] if walked else ""


def before(entries: Sequence[Entry]) -> str:
    """The champion that a rollback leads back to, "" where there is none.

    Promotions stack up and a rollback takes the topmost off: a second one leads further back, and
    never forward again.
    """
    walked = _walked(entries)
    return next((version for version in reversed(walked[:-1]) if version), "")


def _walked(entries: Sequence[Entry]) -> list[str]:
    done = {entry.settles for entry in entries if entry.kind is Kind.DONE}
    walked: list[str] = []
    for entry in entries:
        if entry.kind is Kind.FOUND or (entry.kind is Kind.PROMOTE and entry.number in done):
            walked.append(entry.target)
        elif entry.kind is Kind.ROLLBACK and entry.number in done:
            while walked and walked[-1] != entry.target:
                walked.pop()
    return walked


def unfinished(entries: Sequence[Entry]) -> Entry | None:
    """The move that was begun and neither carried out nor given up; the last one at most."""
    closed = {e.settles for e in entries if e.kind in (Kind.DONE, Kind.ABANDONED)}
    begun = [e for e in entries if e.kind in MOVES and e.number not in closed]
    return begun[-1] if begun else None


def waiting(entries: Sequence[Entry], version: str = "") -> Entry | None:
    """The last decision that waits for approval, of a version or of any."""
    answered = {e.settles for e in entries if e.kind in (Kind.PROMOTE, Kind.REJECTED)}
    open_ = [e for e in entries if e.kind is Kind.WAITING and e.number not in answered]
    mine = [e for e in open_ if version in ("", e.target)]
    return mine[-1] if mine else None


def settle(ledger: Ledger, store: MlflowClient, model: str, publish: Publish) -> str:
    """Finish what died half-way, and write down what was moved without the ledger.

    Call it while alone with the ledger. Returns the champion's version, "" where there is none.
    """
    entries = ledger.entries(model)
    now = registry.alias(store, model, registry.CHAMPION) or ""
    begun = unfinished(entries)
    if begun is not None:
        if now in (begun.origin, begun.target):
            _carry_out(ledger, store, begun, publish)
            return begun.target
        ledger.append(
            model,
            Kind.ABANDONED,
            who=begun.who,
            why=f"the alias pointed to {now or 'nothing'} when it was to be finished",
            origin=begun.origin,
            target=begun.target,
            settles=begun.number,
        )
    if champion_of(entries) != now:
        ledger.append(
            model,
            Kind.FOUND,
            who="the registry",
            why="the alias was moved without the ledger" if entries else "it was there before",
            origin=champion_of(entries),
            target=now,
        )
    return now


def move(
    ledger: Ledger,
    store: MlflowClient,
    model: str,
    kind: Kind,
    *,
    expected: str,
    target: str,
    who: str,
    why: str,
    publish: Publish,
    decision: Mapping[str, Any] | None = None,
    settles: int = 0,
) -> Entry:
    """Make a version champion if the champion is still the expected one.

    Args:
        ledger: where it is written down first.
        store: the model registry.
        model: registered model.
        kind: `PROMOTE` or `ROLLBACK`.
        expected: the champion that was decided about, "" for none.
        target: the version to be champion.
        who: who wants it.
        why: their reason.
        publish: makes the decision known, told the entry; it may be called again after a crash.
        decision: figures.
        settles: entry that this one settles.

    Raises:
        StaleError: the champion is another one by now; nothing was changed.
        LedgerError, MlflowException: cannot be written; the next command finishes what was begun.
    """
    with ledger.alone(model):
        now = settle(ledger, store, model, publish)
        if now != expected:
            raise StaleError(
                f"the champion of {model!r} is version {now or 'none'} by now, not "
                f"{expected or 'none'}; decide again against that one"
            )
        begun = ledger.append(
            model,
            kind,
            who=who,
            why=why,
            origin=expected,
            target=target,
            settles=settles,
            decision=decision,
        )
        _carry_out(ledger, store, begun, publish)
        return begun


def _carry_out(ledger: Ledger, store: MlflowClient, begun: Entry, publish: Publish) -> None:
    """Alias, tags, done."""
    entries = ledger.entries(begun.model)
    previous = begun.origin
    if begun.kind is Kind.ROLLBACK:
        done = Entry(**{**_fields(begun), "kind": Kind.DONE, "settles": begun.number})
        previous = before([*entries, done])
    registry.move_champion(store, begun.model, begun.target, previous)
    publish(begun)
    ledger.append(
        begun.model,
        Kind.DONE,
        who=begun.who,
        origin=begun.origin,
        target=begun.target,
        settles=begun.number,
    )


def _fields(entry: Entry) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in Entry.__dataclass_fields__}
