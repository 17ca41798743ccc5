"""Stages are reproducible, run only when something changed, and survive a kill."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml

from tests.behaviour.champions import Champion, environment, project, set_params

STAGES = ("validate", "label", "sequence", "train", "evaluate", "register")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Champion:
    """A project with a small world and a short training, run once."""
    home = project(tmp_path_factory.mktemp("tiny") / "home")
    subprocess.run(
        [sys.executable, "-m", "world", "--out", "data", "--scans", "60000", "--seed", "5"],
        cwd=home,
        env=environment(home),
        check=True,
        capture_output=True,
    )
    set_params(
        home,
        train__epochs=2,
        train__gbm__trees=5,
        train__svm__scans=2000,
        train__svm__components=50,
        evaluate__bootstrap=100,
        evaluate__explained=3,
    )
    champion = Champion(home, "trailwatch")
    champion.command("pipelines.run")
    return champion


def lock(tiny: Champion) -> dict:
    return yaml.safe_load((tiny.home / "dvc.lock").read_text())


def test_a_forced_run_gives_identical_hashes(tiny):
    before = lock(tiny)
    assert set(before["stages"]) == set(STAGES)
    tiny.command("dvc", "repro", "--force")
    assert lock(tiny) == before


@pytest.mark.parametrize(
    ("change", "stage"),
    [
        ({"validate__max_unreadable_share": 0.02}, "validate"),
        ({"label__share": 0.03}, "label"),
        ({"sequence__seed": 99}, "sequence"),
        ({"train__dropout": 0.45}, "train"),
        ({"register__model": "other"}, "register"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_changed_parameter_concerns_one_stage(tiny, change, stage):
    path = tiny.home / "params.yaml"
    kept = path.read_text()
    try:
        set_params(tiny.home, **change)
        printed = tiny.command("dvc", "status").stdout
        assert re.findall(r"^(\w+):$", printed, re.M) == [stage]
    finally:
        path.write_text(kept)


def test_a_changed_parameter_reruns_what_depends_on_it_and_nothing_else(tiny):
    set_params(tiny.home, evaluate__analyst_minutes_per_alert=9)
    printed = tiny.command("dvc", "repro").stdout
    assert re.findall(r"Running stage '(\w+)'", printed) == ["evaluate", "register"]
    assert "Running stage" not in tiny.command("dvc", "repro").stdout


def test_a_killed_training_goes_on_where_it_was(tiny):
    set_params(tiny.home, train__epochs=8, train__patience=8)
    command = [sys.executable, "-m", "pipelines.train", "--out", "killed/weights"]
    process = subprocess.Popen(
        command, cwd=tiny.home, env=environment(tiny.home), stdout=subprocess.DEVNULL
    )
    checkpoints = tiny.home / "work" / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("*/state.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert list(checkpoints.glob("*/state.json"))
    tiny.command("pipelines.train", "--out", "killed/weights")
    tiny.command("pipelines.train", "--out", "whole/weights")
    killed = (tiny.home / "killed/weights/digest.json").read_text()
    assert killed == (tiny.home / "whole/weights/digest.json").read_text()
    assert not list(checkpoints.glob("*/state.json"))
    runs = tiny_runs(tiny)
    assert sorted(runs.values()) == ["FINISHED"] * len(runs)


def tiny_runs(tiny: Champion) -> dict[str, str]:
    printed = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-c"),
            "from pipelines import tracking\n"
            "store = tracking.client()\n"
            "home = tracking.experiment('trailwatch', store)\n"
            "for r in store.search_runs([home]): print(r.info.run_id, r.info.status)",
        ],
        cwd=tiny.home,
        env=environment(tiny.home),
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return dict(line.split() for line in printed.splitlines())


def test_unreadable_rows_beyond_the_limit_stop_the_run(tiny, tmp_path):
    rows = ["epc_code,location_id,event_type,event_time"]
    rows += [f"x{i},1,Teleport,2025-01-01 00:00:00" for i in range(50)]
    rows += [f"x{i},1,Aggregation,2025-01-01 00:00:{i % 60:02d}" for i in range(50)]
    (tmp_path / "bad.csv").write_text("\n".join(rows) + "\n")
    done = tiny.command("pipelines.run", "--model", "bad", "--data", tmp_path / "bad.csv", ok=False)
    assert done.returncode == 1
    assert "50" in done.stderr
    assert "unreadable" in done.stderr
    quarantine = tiny.home / "workspaces/bad/work/quarantine/quarantine.csv"
    assert len(quarantine.read_text().splitlines()) == 51
