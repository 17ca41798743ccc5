"""The search: it goes on after a kill, keeps to its space, and says why it cannot go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import torch
import yaml
from optuna.trial import TrialState

from pipelines import fitting, sweep
from pipelines.parts import save_part
from tests.logbook.logged import postgres_server
from tests.pipelines.test_fitting import HELD, LEARNED, SETTINGS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A workspace that has reached the stage `train`."""
    for name, part in (("train", LEARNED), ("validation", HELD)):
        save_part(part, tmp_path / "work" / "sequences", name)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"train": {**SETTINGS, "epochs": 2}}))
    return tmp_path


@pytest.fixture(params=[pytest.param("sqlite", marks=pytest.mark.full), "postgresql"])
def storage(request, tmp_path: Path) -> Iterator[str]:
    """The URL of a database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'state' / 'sweeps.db'}"
        return
    with postgres_server() as server:
        yield server.url()


def start(folder: Path, url: str, trials: int) -> subprocess.Popen[str]:
    words = ["--study", "s", "--trials", str(trials), "--out", "best.json"]
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.sweep", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TRAILWATCH_SWEEPS": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def opened(url: str) -> optuna.Study:
    os.environ["TRAILWATCH_SWEEPS"] = url
    try:
        return sweep.opened("s", sweep.default_storage(), 1)
    finally:
        del os.environ["TRAILWATCH_SWEEPS"]


def test_a_killed_search_goes_on_with_the_trial_that_was_running(folder, storage):
    first = start(folder, storage, 3)
    until = time.monotonic() + 120
    study = opened(storage)
    while not [t for t in study.get_trials(states=(TrialState.RUNNING,)) if len(t.params) == 5]:
        assert first.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    first.stdout.close()
    (stale,) = study.get_trials(states=(TrialState.RUNNING,))
    second = start(folder, storage, 3)
    said, _ = second.communicate(timeout=240)
    assert second.returncode == 0, said
    assert "1 trials were running when the search was killed" in said
    trials = opened(storage).trials
    assert trials[stale.number].state is TrialState.FAIL
    again = [t for t in trials if t.user_attrs.get("repeats") == stale.number]
    assert [t.params for t in again] == [stale.params]
    assert sum(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in trials) == 3
    assert not [t for t in trials if not t.state.is_finished()]
    best = json.loads((folder / "best.json").read_text())
    assert best["value"] == max(t.value for t in trials if t.state is TrialState.COMPLETE)
    assert set(best["params"]) == {"length", "hidden", "dropout", "loss", "learning_rate"}
    assert not list((folder / "work" / "checkpoints").rglob("tensors"))


def test_reconciling_twice_queues_a_trial_once(tmp_path):
    study = sweep.opened("s", f"sqlite:///{tmp_path / 's.db'}", 1)
    sweep.suggested(study.ask())
    stale = study.trials[0]
    study.enqueue_trial(stale.params, user_attrs={"repeats": 0})  # as one killed in between
    assert sweep.reconcile(study) == 1
    assert sweep.reconcile(study) == 0
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.FAIL, TrialState.WAITING]


def test_the_space_is_the_one_that_was_asked_for(tmp_path):
    study = sweep.opened("s", f"sqlite:///{tmp_path / 's.db'}", 1)
    seen = [sweep.suggested(study.ask()) for _ in range(40)]
    assert {one["length"] for one in seen} == {5, 10, 15, 20}
    assert {one["loss"] for one in seen} == set(fitting.LOSSES)
    assert all(0 <= one["dropout"] <= 0.5 and 3e-4 <= one["learning_rate"] <= 1e-2 for one in seen)


def test_a_search_whose_trials_all_fail_stops_with_the_cause(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "params.yaml").write_text(yaml.safe_dump({"train": {**SETTINGS, "device": "abacus"}}))
    words = ["--study", "s", "--storage", f"sqlite:///{folder / 's.db'}", "--trials", "9"]
    assert sweep.main(words) == 1
    assert "the last 3 trials failed" in (said := capsys.readouterr().err)
    assert "train.device is 'abacus'" in said


def test_a_focal_loss_weighs_down_what_is_judged_well():
    target = torch.tensor([1.0, 1.0, 0.0])
    logits = torch.tensor([4.0, -4.0, 0.0])
    plain = fitting.elementwise(logits, target, {"loss": "bce"})
    focal = fitting.elementwise(logits, target, {"loss": "focal"})
    assert torch.equal(plain, fitting.elementwise(logits, target, {}))
    assert focal[0] / plain[0] < 1e-3 < 0.9 < focal[1] / plain[1]
    assert focal[2] / plain[2] == pytest.approx(0.25)
    with pytest.raises(ValueError, match="write bce or focal"):
        fitting.elementwise(logits, target, {"loss": "hinge"})


def test_an_anomalous_scan_counts_as_often_as_its_type_says():
    logits, target = torch.zeros(2, 5), torch.tensor([[1.0] * 5, [0.0] * 5])
    plain = fitting.elementwise(logits, target, {"positive_weight": {}})
    weighed = fitting.elementwise(logits, target, {"positive_weight": {"jump": 4, "locErr": 0.25}})
    assert (weighed / plain)[0].tolist() == pytest.approx([1, 1, 0.25, 1, 4])
    assert torch.equal(weighed[1], plain[1])
    with pytest.raises(ValueError, match="'typo'; write epcFake"):
        fitting.elementwise(logits, target, {"positive_weight": {"typo": 2}})


def test_the_database_is_the_one_named_else_the_logs_else_a_file(monkeypatch, tmp_path):
    monkeypatch.setenv("TRAILWATCH_SWEEPS", "postgresql://u@h/d")
    assert sweep.default_storage() == "postgresql+psycopg://u@h/d"
    monkeypatch.delenv("TRAILWATCH_SWEEPS")
    monkeypatch.setenv("TRAILWATCH_LOG", "postgres://u@h/log")
    assert sweep.default_storage() == "postgresql+psycopg://u@h/log"
    monkeypatch.setenv("TRAILWATCH_LOG", "sqlite:log.db")
    monkeypatch.setenv("TRAILWATCH_HOME", str(tmp_path))
    assert sweep.default_storage() == f"sqlite:///{tmp_path / 'state' / 'sweeps.db'}"
