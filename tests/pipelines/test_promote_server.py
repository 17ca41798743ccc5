"""Promotion as on the platform: MLflow is a server, store and ledger are in PostgreSQL."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from models import registry
from pipelines import register
from pipelines.promotion import moves
from pipelines.promotion.ledger import Kind, Ledger
from tests.deploy.platforms import until
from tests.logbook.logged import postgres_server
from tests.models.small_bundles import small_bundle
from tests.pipelines import racing
from tests.pipelines.promoted import MODEL, variant, write_holdout, write_params
from tests.serving.served import free_port

pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[2]
PATIENCE_S = 300
GOOD, EQUAL, LATER, LOUD = "1", "2", "3", "4"
PLAIN = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


@contextmanager
def mlflow_server(store: str, folder: Path) -> Iterator[str]:
    """A server over a database; its URL."""
    port = free_port()
    words = ("-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1")
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=folder,
            env={
                **os.environ,
                **PLAIN,
                "MLFLOW_BACKEND_STORE_URI": store,
                "MLFLOW_ARTIFACTS_DESTINATION": str(folder / "artifacts"),
            },
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, (folder / "server.log").read_text()[-3000:]
        try:
            return httpx.get(f"{url}/health", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    try:
        until(answers, PATIENCE_S, "the server answers")
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Iterator[tuple[Path, str, str]]:
    """A project folder with a hold-out and four registered bundles; the URLs of MLflow, ledger."""
    home = tmp_path_factory.mktemp("served")
    with postgres_server() as server:
        store, ledger = server.url(), server.url()
        store = store.replace("postgresql://", "postgresql+psycopg://")
        with mlflow_server(store, home) as url, pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", url)
            patch.setenv("TRAILWATCH_LEDGER", ledger)
            patch.setenv("TRAILWATCH_HOME", str(home))
            write_params(home)
            write_holdout(home / "work" / "labelled" / "test.parquet")
            _register(home)
            racing.register_bare()
            yield home, url, ledger


def _register(home: Path) -> None:
    """The first one with the figures and reports of its evaluation, as the stage does it."""
    good = small_bundle(home / "good" / "bundle")
    others = {"equal": {"note": 1}, "later": {"note": 2}, "loud": {"threshold": 0.001}}
    made = [
        good,
        *(variant(good, home / name / "bundle", **what) for name, what in others.items()),
    ]
    figures = {"map": {"lstm": 0.75, "rules": 0.5}}
    (home / "metrics.json").write_text(json.dumps(figures))
    (home / "reports").mkdir()
    (home / "reports" / "model_card.md").write_text("# A card\n")
    for folder in made:
        register.register(MODEL, folder, home / "metrics.json")


def command(home: Path, *words: str) -> subprocess.Popen[str]:
    """`python -m pipelines.promote`, as a process that runs."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "pipelines.promote", "--by", "ann", *words],
        cwd=home,
        env={**os.environ, **PLAIN, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = process.communicate(timeout=PATIENCE_S)
    return process.returncode, said


def champion(model: str = MODEL) -> str | None:
    return registry.alias(registry.client(), model, registry.CHAMPION)


def test_a_version_is_described_and_its_run_has_what_was_evaluated(shop):
    store = registry.client()
    version = store.get_model_version(MODEL, GOOD)
    assert "0.75" in version.description and "0.5" in version.description
    assert "champion" in store.get_registered_model(MODEL).description
    run = store.get_run(version.run_id)
    assert run.info.run_name.startswith("register ")
    assert run.data.metrics["map.lstm"] == 0.75
    cards = [item.path for item in store.list_artifacts(version.run_id, "evaluation")]
    assert cards == ["evaluation/model_card.md"]


def test_of_two_commands_at_once_one_promotes_and_the_other_is_told(shop):
    home, _, ledger = shop
    both = [
        command(home, "--version", number, "--out", f"{number}.json") for number in (EQUAL, LATER)
    ]
    ends = [ended(process) for process in both]
    assert sorted(status for status, _ in ends) == [0, 1], ends
    winner, loser = (EQUAL, LATER) if ends[0][0] == 0 else (LATER, EQUAL)
    assert champion() == winner
    late = json.loads((home / f"{loser}.json").read_text())
    assert (late["outcome"], late["refused_by"]) == ("refused", ["champion"])
    entries = Ledger(ledger).entries(MODEL)
    assert [(e.kind, e.target) for e in entries if e.kind in (Kind.PROMOTE, Kind.DONE)] == [
        (Kind.PROMOTE, winner),
        (Kind.DONE, winner),
    ]
    kept = registry.client().get_model_version(MODEL, winner)
    assert kept.tags["promotion"] == "promoted"
    files = registry.client().list_artifacts(kept.run_id, "promotion")
    assert len(files) == 1


def test_a_worse_one_is_refused_by_its_gate_and_a_rollback_is_timed(shop):
    home, _, ledger = shop
    before = champion()
    status, said = ended(command(home, "--version", LOUD, "--out", "loud.json"))
    assert status == 0, said
    decision = json.loads((home / "loud.json").read_text())
    assert decision["outcome"] == "refused" and "fpr.jump" in decision["refused_by"]
    assert champion() == before
    status, said = ended(command(home, "--rollback", "--why", "alarms"))
    assert status == 0, said
    assert champion() == GOOD
    took = re.search(r"it took ([\d.]+) s, the move itself ([\d.]+) s", said)
    assert took is not None and float(took[2]) < 10, said
    assert Ledger(ledger).entries(MODEL)[-1].kind is Kind.DONE


def test_moves_at_once_and_moves_that_die_leave_one_champion(shop):
    _, url, ledger = shop
    store, book = registry.client(), Ledger(ledger)
    with racing.forking() as forks:
        ends = forks(url, ledger, ("2", ""), ("3", ""), ("4", ""))
        assert sorted(status for status, _ in ends) == [0, 1, 1], ends
        winner = str(2 + [status for status, _ in ends].index(0))
        assert champion(racing.MODEL) == winner
        for dies in ("before the alias", "after the alias"):
            store.set_registered_model_alias(racing.MODEL, registry.CHAMPION, "1")
            with book.alone(racing.MODEL):
                moves.settle(book, store, racing.MODEL, lambda entry: None)
            assert forks(url, ledger, ("3", dies)) == [(-signal.SIGKILL, "")]
            with book.alone(racing.MODEL):
                assert moves.settle(book, store, racing.MODEL, lambda entry: None) == "3"
            assert champion(racing.MODEL) == "3"
    kinds = [entry.kind for entry in book.entries(racing.MODEL)]
    assert kinds.count(Kind.PROMOTE) == kinds.count(Kind.DONE) == 3
