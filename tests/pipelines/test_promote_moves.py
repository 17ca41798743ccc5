"""Two promotions never interleave, and one that dies half-way is finished by the next command."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from models import registry
from pipelines.promotion import moves
from pipelines.promotion.ledger import Kind, Ledger
from tests.pipelines.racing import MODEL, forking, register_bare


@pytest.fixture(scope="module")
def forks():
    with forking() as running:
        yield running


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A SQLite store with a model of four versions, the first one champion; read-only."""
    home = tmp_path_factory.mktemp("moves")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")
        register_bare()
    return home


@pytest.fixture
def home(made, tmp_path, monkeypatch) -> Path:
    """A copy of that store, which this process asks."""
    (tmp_path / "mlflow.db").write_bytes((made / "mlflow.db").read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return tmp_path


def urls(home: Path) -> tuple[str, str]:
    """Of the store and of the ledger."""
    return f"sqlite:///{home / 'mlflow.db'}", f"sqlite:///{home / 'ledger.db'}"


def ledger_of(home: Path) -> Ledger:
    return Ledger(urls(home)[1])


def settled(home: Path) -> str:
    with ledger_of(home).alone(MODEL):
        return moves.settle(ledger_of(home), registry.client(), MODEL, lambda entry: None)


def test_of_promotions_at_once_exactly_one_wins(home, forks):
    ends = forks(*urls(home), ("2", ""), ("3", ""), ("4", ""))
    assert sorted(status for status, _ in ends) == [0, 1, 1]
    winner = str(2 + [status for status, _ in ends].index(0))
    for status, said in ends:
        if status:
            assert said.startswith("StaleError")
            assert f"is version {winner} by now, not 1; decide again" in said
    assert registry.alias(registry.client(), MODEL, registry.CHAMPION) == winner
    kinds = [(e.kind, e.target) for e in ledger_of(home).entries(MODEL)]
    assert kinds == [(Kind.FOUND, "1"), (Kind.PROMOTE, winner), (Kind.DONE, winner)]
    assert registry.client().get_registered_model(MODEL).tags[registry.PREVIOUS_TAG] == "1"


@pytest.mark.parametrize("dies", ["before the alias", "after the alias"])
def test_a_promotion_that_was_killed_is_finished_by_the_next_command(home, forks, dies):
    assert forks(*urls(home), ("3", dies)) == [(-signal.SIGKILL, "")]
    store = registry.client()
    before = "1" if dies == "before the alias" else "3"
    assert registry.alias(store, MODEL, registry.CHAMPION) == before
    begun = moves.unfinished(ledger_of(home).entries(MODEL))
    assert begun is not None and begun.target == "3"
    for _ in range(2):  # the second time there is nothing left to do
        assert settled(home) == "3"
        assert registry.alias(store, MODEL, registry.CHAMPION) == "3"
        kinds = [e.kind for e in ledger_of(home).entries(MODEL)]
        assert kinds == [Kind.FOUND, Kind.PROMOTE, Kind.DONE]
    # Who decided against the champion of before is told.
    with pytest.raises(moves.StaleError, match="is version 3 by now, not 1"):
        promote(home, "1", "4")


def promote(home: Path, expected: str, target: str, kind: Kind = Kind.PROMOTE) -> None:
    moves.move(
        ledger_of(home),
        registry.client(),
        MODEL,
        kind,
        expected=expected,
        target=target,
        who="ann",
        why="",
        publish=lambda entry: None,
    )


def test_a_move_that_cannot_be_made_known_is_made_known_later(home):
    store, ledger = registry.client(), ledger_of(home)

    def unreachable(entry: object) -> None:
        raise OSError("no route")

    with pytest.raises(OSError, match="no route"):
        moves.move(
            ledger,
            store,
            MODEL,
            Kind.PROMOTE,
            expected="1",
            target="2",
            who="ann",
            why="",
            publish=unreachable,
        )
    told: list[object] = []
    with ledger.alone(MODEL):
        assert moves.settle(ledger, store, MODEL, told.append) == "2"
        assert moves.settle(ledger, store, MODEL, told.append) == "2"
    assert [entry.target for entry in told] == ["2"]  # type: ignore[attr-defined]


def test_a_half_done_move_is_given_up_where_the_alias_was_pointed_elsewhere(home):
    promote(home, "1", "2")
    ledger_of(home).append(MODEL, Kind.PROMOTE, who="ann", origin="2", target="3")  # and died
    registry.client().set_registered_model_alias(MODEL, registry.CHAMPION, "4")
    assert settled(home) == "4"
    entries = ledger_of(home).entries(MODEL)
    assert [e.kind for e in entries[-2:]] == [Kind.ABANDONED, Kind.FOUND]
    assert moves.champion_of(entries) == "4"
    assert moves.before(entries) == "2"


def test_a_rollback_leads_back_step_by_step(home):
    store = registry.client()
    for expected, target in (("1", "2"), ("2", "3"), ("3", "4")):
        promote(home, expected, target)
    walked = []
    while target := moves.before(ledger_of(home).entries(MODEL)):
        now = registry.alias(store, MODEL, registry.CHAMPION)
        promote(home, str(now), target, Kind.ROLLBACK)
        previous = store.get_registered_model(MODEL).tags.get(registry.PREVIOUS_TAG, "")
        walked.append((registry.alias(store, MODEL, registry.CHAMPION), previous))
    assert walked == [("3", "2"), ("2", "1"), ("1", "")]


def test_a_rollback_of_a_champion_that_went_meanwhile_is_refused(home):
    promote(home, "1", "2")
    promote(home, "2", "3")
    promote(home, "3", "2", Kind.ROLLBACK)
    with pytest.raises(moves.StaleError):
        promote(home, "3", "2", Kind.ROLLBACK)
    assert registry.alias(registry.client(), MODEL, registry.CHAMPION) == "2"


def test_a_move_takes_no_longer_than_a_glance(home):
    promote(home, "1", "2")
    began = time.thread_time()
    promote(home, "2", "1", Kind.ROLLBACK)
    assert time.thread_time() - began < 2
