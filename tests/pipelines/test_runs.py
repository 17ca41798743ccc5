"""Runs of the DAGs, task by task, with real git, DVC and MLflow: they end well whatever happens.

One small world is trained on once; every other test continues from there.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

from logbook import Kind
from logbook.opened import default_url, open_log
from pipelines.runs import checked
from pipelines.runspace import Places, Run, RunError
from pipelines.stage import _cause, _room
from tests.logbook.logged import entry, scan, verdict
from tests.pipelines.homes import Home, make

STAGES = ("validate", "label", "sequence", "train", "evaluate", "register")
NO_WAIT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
NOBODY = "http://127.0.0.1:9"
PATIENCE_S = 300


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return make(tmp_path_factory.mktemp("runs") / "home")


def versions(home: Home) -> list[dict[str, str]]:
    """Tags of every version of the model."""
    from mlflow import MlflowClient

    store = MlflowClient(f"sqlite:///{home.folder / 'mlflow.db'}")
    return [dict(version.tags) for version in store.search_model_versions("name = 'trailwatch'")]


def outputs(folder: Path) -> dict[str, str]:
    """Hash of every output of every stage, as dvc.lock has it."""
    locked = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    return {out["path"]: out["md5"] for stage in locked.values() for out in stage["outs"]}


def killed(home: Home, run: str, stage: str, sign: str) -> list[psutil.Process]:
    """Start a stage and kill its outermost process, and nothing else, when a file has come.

    Returns:
        What is left running in the workspace.
    """
    process = home.start("pipelines.runs", "stage", stage, "--run", run)
    until = time.monotonic() + PATIENCE_S
    while not list(home.workspace(run).glob(sign)):
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < until
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
    return working(home.workspace(run))


def stale_lock(workspace: Path, output: str) -> None:
    """The lock of a process that is gone, under the number of one that lives."""
    lock = {"write": {str(workspace / output): {"pid": os.getpid(), "cmd": "dvc repro"}}}
    lock_of(workspace).write_text(json.dumps(lock))


def lock_of(workspace: Path) -> Path:
    """DVC's lock."""
    return workspace / ".dvc" / "tmp" / "rwlock"


def working(workspace: Path) -> list[psutil.Process]:
    """Processes in a workspace."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(workspace):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


@dataclass(frozen=True)
class Told:
    """What was seen while run `first` went its way.

    Attributes:
        home: where.
        left: processes that the killed training left running.
        outputs: hashes that the run's stages made.
        down: what the stage `register` said while MLflow was down.
        promoted: what `promote` said.
    """

    home: Home
    left: list[psutil.Process]
    outputs: dict[str, str]
    down: str
    promoted: str


@pytest.fixture(scope="module")
def told(home: Home) -> Told:
    """A run that ends well although its training is killed, DVC's lock is stale, MLflow is down,
    and a person runs `dvc repro` in the home, where everything is done from scratch.
    """
    home.task("first", "prepare", "--options", '{"promotion": "never"}')
    home.task("first", "snapshot")
    person = home.start("dvc", "repro", "--no-run-cache")
    try:
        for name in ("validate", "label", "sequence"):
            home.task("first", "stage", name)
        left = killed(home, "first", "train", "work/checkpoints/*/state.json")
        stale_lock(home.workspace("first"), "models/weights")
        home.task("first", "stage", "train")
        lock_of(home.workspace("first")).write_text("")  # killed while DVC wrote it
        home.task("first", "stage", "evaluate")
        nobody = {"MLFLOW_TRACKING_URI": NOBODY, **NO_WAIT}
        down = home.task("first", "stage", "register", status=1, **nobody)
        home.task("first", "stage", "register")
        said, _ = person.communicate(timeout=PATIENCE_S)
    finally:
        if person.poll() is None:
            os.killpg(person.pid, signal.SIGKILL)
    assert person.returncode == 0, said
    made = outputs(home.workspace("first"))
    promoted = home.task("first", "promote")
    home.task("first", "publish")
    return Told(home, left, made, down, promoted)


@pytest.fixture(scope="module")
def finished(told: Told) -> Home:
    """The home after that."""
    return told.home


def test_a_run_makes_what_a_plain_dvc_repro_makes(told: Told):
    assert told.outputs == outputs(told.home.folder)
    assert {"work/validated", "models/weights", "work/bundle", "metrics.json"} <= set(told.outputs)


def test_what_a_killed_training_left_is_stopped(told: Told):
    assert told.left
    assert not [process for process in told.left if process.is_running()]
    lock = lock_of(told.home.workspace("first"))
    assert not lock.exists() or lock.read_text() == "{}"
    assert working(told.home.workspace("first")) == []


def test_a_registry_that_is_down_is_named(told: Told):
    assert told.down.startswith("stage: register failed: ")
    assert "127.0.0.1" in told.down


def test_gates_decide_in_the_workspace(told: Told):
    said = json.loads(told.promoted)
    assert (said["outcome"], said["version"]) == ("nothing to decide", "1")
    kept = told.home.workspace("first").parent / "promotion.json"
    assert json.loads(kept.read_text())["outcome"] == "nothing to decide"


def test_a_version_says_what_it_is_made_of(finished: Home):
    (tags,) = versions(finished)
    pinned = yaml.safe_load((finished.folder / "data.dvc").read_text())["outs"][0]["md5"]
    assert tags["dag_run_id"] == "first" and tags["dag_id"] == "retrain"
    assert tags["data_hash"] == pinned
    assert tags["git_commit"] == finished.git("rev-parse", "HEAD")
    assert len(tags["dvc_lock_hash"]) == 64


def test_a_published_run_can_be_taken_over(finished: Home, tmp_path: Path):
    """By somebody who has the repository and the remote, and nothing else."""
    finished.git(
        "clone",
        "--quiet",
        "--branch",
        "runs/retrain/first",
        str(finished.folder),
        str(tmp_path / "c"),
    )
    remote = finished.folder / "state" / "dvc-remote"
    for words in (
        ("dvc", "remote", "add", "--local", "--default", "there", str(remote)),
        ("dvc", "pull", "--quiet"),
        ("dvc", "status", "--quiet"),
    ):
        process = finished.start(*words, at=tmp_path / "c")
        said, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, said
    assert (tmp_path / "c" / "work" / "bundle" / "lstm.onnx").exists()
    assert outputs(tmp_path / "c") == outputs(finished.folder)


def test_every_task_can_be_called_again(finished: Home):
    commit = finished.git("rev-parse", "runs/retrain/first")
    finished.task("first", "prepare", "--options", "{}")
    finished.task("first", "snapshot")
    finished.task("first", "stage", "register")
    finished.task("first", "publish")
    assert finished.git("rev-parse", "runs/retrain/first") == commit
    assert len(versions(finished)) == 1


def test_without_news_a_run_is_skipped_with_the_reason(finished: Home):
    finished.task("idle", "prepare", "--options", "{}")
    assert "no new data since run first" in finished.task("idle", "snapshot", status=99)
    finished.task("idle", "clean")
    assert not finished.workspace("idle").exists()


def test_a_run_for_another_champion_is_skipped(finished: Home):
    said = finished.task("late", "prepare", "--options", '{"champion": "7"}', status=99)
    assert "version 1, no longer version 7" in said
    assert not finished.workspace("late").exists()


def on_a_full_disk(home: Home, run: str, *words: str) -> str:
    """The last line of a task that cannot write a file of more than 100 kB, and fails."""

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = subprocess.run(
        [sys.executable, "-m", "pipelines.runs", *words, "--run", run],
        cwd=home.folder,
        env=home.environment(),
        preexec_fn=full,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout
    return done.stdout.strip().splitlines()[-1]


def test_news_are_a_new_version_of_the_data_and_a_full_disk_harms_nothing(finished: Home):
    log = open_log(default_url(finished.folder, "trailwatch"))
    log.append(entry("r1", [scan(i) for i in range(50)]))
    log.close()
    assert on_a_full_disk(finished, "news", "prepare").startswith("prepare: ")
    blocked = finished.folder / "params.yaml" / "no-folder"
    finished.task("news", "prepare", TRAILWATCH_DVC_REMOTE=str(blocked))
    finished.task("news", "snapshot")
    workspace = finished.workspace("news")
    pinned = yaml.safe_load((workspace / "data.dvc").read_text())["outs"][0]["md5"]
    assert pinned != yaml.safe_load((finished.folder / "data.dvc").read_text())["outs"][0]["md5"]
    assert "Snapshot: 50 scans" in finished.git("log", "-1", "--format=%s", at=workspace)
    said = finished.task("news", "publish", TRAILWATCH_DVC_REMOTE=str(blocked), status=1)
    assert said.startswith("publish: the DVC remote") and str(blocked) in said
    finished.task("news", "publish")
    assert finished.git("show", "runs/retrain/news:data.dvc").count(pinned) == 1


def test_what_the_service_itself_thinks_of_old_scans_is_no_news(finished: Home):
    log = open_log(default_url(finished.folder, "trailwatch"))
    told = verdict(Kind.REVISED, model_version="4", score=(99.0, 0.0, 0.0, 0.0, 0.0))
    again = scan(9_000, epc=scan(1).epc, time_us=scan(1).time_us + 1)
    log.append(entry("r2", [again], revised=[(scan(1), told)]))
    log.close()
    finished.task("seen", "prepare", "--options", "{}")
    finished.task("seen", "snapshot")  # one scan more is news
    finished.task("seen", "publish")
    log = open_log(default_url(finished.folder, "trailwatch"))
    log.append(entry("r3", [again], revised=[(scan(2), told)]))
    log.close()
    finished.task("opinion", "prepare", "--options", "{}")
    said = finished.task("opinion", "snapshot", status=99)
    assert "no new data since run seen" in said
    record = json.loads((finished.workspace("opinion").parent / "run.json").read_text())
    assert record["snapshot"]["unjudged"] == 2


def test_a_run_that_was_cleaned_up_can_be_gone_on_with(finished: Home):
    kept = outputs(finished.workspace("first"))
    finished.task("first", "clean")
    assert not finished.workspace("first").exists()
    finished.task("first", "prepare")
    assert outputs(finished.workspace("first")) == kept
    assert (finished.workspace("first") / "work" / "bundle" / "lstm.onnx").exists()
    commit = finished.git("rev-parse", "runs/retrain/first")
    assert finished.git("rev-parse", "HEAD", at=finished.workspace("first")) == commit


@pytest.mark.full
def test_a_stage_on_a_full_disk_says_so_and_goes_on_when_there_is_room(finished: Home):
    options = '{"force": true, "window_days": 100}'
    finished.task("tight", "prepare", "--options", options)
    finished.task("tight", "snapshot")
    said = on_a_full_disk(finished, "tight", "stage", "validate")
    assert said.startswith("stage: validate failed: ")
    # The second is what SQLite, in which DVC keeps its state, says of the same.
    assert "File too large" in said or "disk I/O error" in said
    finished.task("tight", "stage", "validate")


@pytest.mark.full
def test_the_best_trial_becomes_the_settings_of_a_challenger(finished: Home):
    sweep = ("--dag", "sweep")
    options = '{"trials": 1, "epochs": 1, "promotion": "never"}'
    finished.task("s", "prepare", *sweep, "--options", options)
    finished.task("s", "snapshot", *sweep)
    for name in ("validate", "label", "sequence"):
        finished.task("s", "stage", name, *sweep)
    finished.task("s", "trials", *sweep)
    workspace = finished.folder / "state" / "runs" / "sweep" / "s" / "workspace"
    best = json.loads((workspace.parent / "best.json").read_text())
    settings = yaml.safe_load((workspace / "params.yaml").read_text())["train"]
    assert {name: settings[name] for name in best["params"]} == best["params"]
    assert "Take trial 0" in finished.git("log", "-1", "--format=%s", at=workspace)
    assert (workspace / "params.yaml").read_text().count("#") > 5, "comments stay"
    finished.task("s", "trials", *sweep)
    assert "Take trial 0" in finished.git("log", "-1", "--format=%s", at=workspace)


@pytest.mark.full
def test_a_past_date_is_trained_and_compared(finished: Home):
    dag = ("--dag", "backfill")
    options = '{"as_of": "2025-08-15", "epochs": 1, "model": "trailwatch-backfill"}'
    finished.task("b", "prepare", *dag, "--options", options)
    finished.task("b", "snapshot", *dag)
    for name in STAGES:
        finished.task("b", "stage", name, *dag)
    finished.task("b", "publish", *dag)
    process = finished.start("pipelines.backfill")
    said, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0 and "2025-08-15        1" in said
    assert len(versions(finished)) == 1


@pytest.mark.full
def test_a_day_is_reported_to_mlflow(finished: Home):
    from mlflow import MlflowClient

    log = open_log(default_url(finished.folder, "trailwatch"))
    log.append(entry("r2", [scan(i) for i in range(100, 200)]))
    log.close()
    process = finished.start("pipelines.report", "--run", "d1", "--options", '{"days": 2}')
    said, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, said
    store = MlflowClient(f"sqlite:///{finished.folder / 'mlflow.db'}")
    experiment = store.get_experiment_by_name("trailwatch-reports")
    (run,) = store.search_runs([experiment.experiment_id])
    assert run.data.tags["dag_run_id"] == "d1"
    assert {item.path for item in store.list_artifacts(run.info.run_id)} >= {"data_docs"}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            [
                "> python -m pipelines.x",
                "OSError: [Errno 28] No space left on device",
                "ERROR: failed to reproduce 'x': failed to run: python, exited with 1",
            ],
            "No space left",
        ),
        (
            [
                "lstm: 1/2 epochs",
                "ERROR: failed to reproduce 'x': failed to run: y, exited with -9",
            ],
            "killed by signal 9; before that: lstm: 1/2 epochs",
        ),
        (
            [
                "Running stage 'x':",
                "ERROR: unexpected error - disk I/O error",
                "",
                "Having any troubles? Hit us up at https://dvc.org/support, we are always happy",
            ],
            "disk I/O error",
        ),
        ([], "it said nothing"),
    ],
)
def test_the_cause_of_a_failed_stage_is_found(lines, said):
    assert said in _cause(lines)


def test_a_disk_with_little_room_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipelines.stage._LITTLE", 0)
    assert _room(tmp_path) == ""
    monkeypatch.setattr("pipelines.stage._LITTLE", 2**60)
    assert f"left on the disk of {tmp_path}" in _room(tmp_path)


def test_two_processes_do_not_work_on_one_run(tmp_path: Path):
    run = Run("a", "retrain", Places.read({"TRAILWATCH_HOME": str(tmp_path)}))
    again = Run("a", "retrain", run.places)
    with run.alone(), pytest.raises(RunError, match="another process works on run"):
        again.alone().__enter__()
    with again.alone():
        pass


HOLD = """
import sys, time
from pipelines.runspace import Places, Run
with Run("a", "retrain", Places.read()).alone():
    print("held", flush=True)
    time.sleep(600)
"""


def test_an_attempt_that_was_given_up_is_stopped_by_the_next(tmp_path: Path):
    there = {**os.environ, "TRAILWATCH_HOME": str(tmp_path)}
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(command, env=there, stdout=subprocess.PIPE, text=True) as old:
        try:
            assert old.stdout is not None and old.stdout.readline() == "held\n"
            run = Run("a", "retrain", Places.read(there))
            with pytest.raises(RunError, match="another process"):
                run.alone().__enter__()
            with run.alone(take_over=True):
                assert not psutil.pid_exists(old.pid)
        finally:
            old.kill()


def test_names_of_runs_are_folders_and_branches(tmp_path: Path):
    places = Places.read({"TRAILWATCH_HOME": str(tmp_path)})
    names = [
        Run(id, "retrain", places).name
        for id in ("manual__2026-11-23T13:00:00+00:00", "manual__2026-11-23T13-00-00-00-00", "../x")
    ]
    assert len(set(names)) == 3
    assert all("/" not in name and "." not in name and ":" not in name for name in names)
    assert Run("drift__trailwatch__v7__e3", "retrain", places).name == "drift__trailwatch__v7__e3"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"window_days": "7"}, "window_days is '7'"),
        ({"epochs": True}, "epochs is True"),
        ({"promotion": "yes"}, "promotion is 'yes'"),
        ({"as_of": "soon"}, "as_of is 'soon'"),
        ({"as_of": 7}, "as_of is 7"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options, said):
    with pytest.raises(RunError, match=said):
        checked(options)


def test_options_that_a_run_does_not_know_are_not_its_business():
    assert checked({"request": "abc", "epochs": None, "force": True}) == {"force": True}


def test_a_home_without_a_repository_says_so(tmp_path: Path):
    home = Home(tmp_path)
    (tmp_path / "pipelines").symlink_to(Path(__file__).parents[2] / "pipelines")
    said = home.task("x", "prepare", status=1, PYTHONPATH=str(Path(__file__).parents[2]))
    assert "make it a git repository" in said
