"""The DAGs as Airflow reads them: quickly, without the ML libraries, and as dvc.yaml says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
import yaml
from airflow.sdk.exceptions import (
    AirflowFailException,
    AirflowSkipException,
    DownstreamTasksSkipped,
)

from tests.dags.conftest import DAGS, ROOT

FORBIDDEN = {
    "torch", "mlflow", "dvc", "numpy", "trail", "world", "models", "intake", "logbook", "pipelines",
    "monitoring", "serving", "deploy", "bench",
}  # fmt: skip
RENDERED = ("retrain", "backfill", "sweep")

PARSE = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
from airflow.dag_processing.dagbag import DagBag
before = set(sys.modules)
began = time.process_time()
bag = DagBag(sys.argv[1])
took = time.process_time() - began
loaded = sorted({name.split(".")[0] for name in set(sys.modules) - before})
print(json.dumps({"errors": bag.import_errors, "took": took, "loaded": loaded}))
"""


@pytest.fixture(scope="module")
def parsed():
    done = subprocess.run(
        [sys.executable, "-c", PARSE, str(DAGS)],
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_all_dags_are_parsed_in_two_seconds(parsed):
    assert parsed["errors"] == {}
    assert parsed["took"] < 2


def test_parsing_loads_no_room_and_no_ml_library(parsed):
    assert FORBIDDEN.isdisjoint(parsed["loaded"])
    assert "trailwatch" in parsed["loaded"]


def test_there_are_four_dags(bag):
    assert set(bag.dags) == {"retrain", "backfill", "sweep", "report"}


@pytest.mark.parametrize("name", RENDERED)
def test_there_is_a_task_for_each_stage_and_it_runs_that_stage(bag, name):
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    dag = bag.dags[name]
    for stage in stages:
        assert dag.get_task(stage).words == ["stage", stage]


@pytest.mark.parametrize("name", RENDERED)
def test_a_stage_waits_for_the_stages_whose_outputs_it_reads(bag, name):
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    made_by = {
        out if isinstance(out, str) else next(iter(out)): stage
        for stage, told in stages.items()
        for out in [*told.get("outs", []), *told.get("metrics", [])]
    }
    dag = bag.dags[name]
    for stage, told in stages.items():
        needs = {
            made_by[out]
            for dep in told["deps"]
            for out in made_by
            if f"{dep}/".startswith(f"{out}/")
        }
        others = dag.get_task(stage).upstream_task_ids & set(stages)
        assert others == needs, stage
        assert needs or dag.get_task(stage).upstream_task_ids == {"snapshot"}


def test_every_dag_task_and_param_says_what_it_is(bag):
    told = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for dag in bag.dags.values():
        assert dag.description and dag.doc_md
        for task in dag.tasks:
            assert task.doc_md == told.get(task.task_id, {}).get("desc", task.doc_md)
            assert task.doc_md, task.task_id
        for name in dag.params:
            schema = dag.params.get_param(name).schema
            assert schema["title"] and dag.params.get_param(name).description, name


def test_retrain_is_weekly_alone_and_tries_again_ever_more_slowly(bag):
    dag = bag.dags["retrain"]
    assert (dag.catchup, dag.max_active_runs) == (False, 1)
    assert "prepare" in dag.doc_md
    for task in dag.tasks:
        assert task.on_failure_callback, task.task_id
        if task.task_id not in ("approval", "clean"):
            assert task.retries == 3 and task.retry_exponential_backoff
            assert task.execution_timeout is not None


@pytest.mark.parametrize(("name", "days"), [("retrain", 7), ("report", 1)])
def test_a_new_platform_waits_for_the_next_date_of_the_schedule(bag, name, days):
    from airflow.sdk import timezone

    kept = _serialized(bag.dags[name])
    first = kept.next_dagrun_info(last_automated_run_info=None)
    assert timezone.utcnow() < first.run_after <= timezone.utcnow() + timedelta(days=days)
    assert {dag for dag in bag.dags if bag.dags[dag].schedule is None} == {"backfill", "sweep"}


def test_nothing_but_what_failed_decides_how_a_run_ended(bag):
    """`clean` runs whatever happened, and does not make a failed run a good one."""
    for name in RENDERED:
        dag = bag.dags[name]
        clean = dag.get_task("clean")
        assert clean.is_teardown and dag.get_task("prepare").is_setup
        assert not clean.on_failure_fail_dagrun
        assert clean.downstream_task_ids == set()


def test_a_person_is_asked_between_gates_and_publishing(bag):
    dag = bag.dags["retrain"]
    assert dag.get_task("approval").upstream_task_ids == {"promote"}
    assert dag.get_task("settle").upstream_task_ids == {"approved"}
    assert dag.get_task("publish").upstream_task_ids == {"promote", "settle"}


@pytest.mark.parametrize(
    ("dag", "bad"),
    [
        ("retrain", {"epochs": 0}),
        ("retrain", {"epochs": "many"}),
        ("retrain", {"window_days": 3}),
        ("retrain", {"window_days": 30.5}),
        ("retrain", {"promotion": "perhaps"}),
        ("retrain", {"promotion": None}),
        ("retrain", {"champion": 7}),
        ("retrain", {"champion": "v7"}),
        ("retrain", {"force": "yes"}),
        ("backfill", {}),
        ("backfill", {"as_of": "last spring"}),
        ("sweep", {"trials": 0}),
        ("report", {"days": 0}),
    ],
)
def test_params_that_cannot_be_used_are_refused(bag, dag, bad):
    from airflow.exceptions import ParamValidationError

    with pytest.raises(ParamValidationError):
        _triggered(bag, dag, bad)


@pytest.mark.parametrize(
    ("dag", "good"),
    [
        ("retrain", {}),
        ("retrain", {"epochs": 5, "window_days": 180, "promotion": "approval", "champion": "12"}),
        ("backfill", {"as_of": "2026-03-01"}),
        ("sweep", {"trials": 3}),
        ("report", {}),
    ],
)
def test_params_that_can_be_used_are_taken(bag, dag, good):
    assert _triggered(bag, dag, good).items() >= good.items()


@pytest.mark.parametrize(
    ("dag", "task", "given"),
    [("retrain", "prepare", {"promotoin": "never"}), ("report", "report", {"day": 2})],
)
def test_a_misspelled_param_fails_at_once_and_names_the_right_ones(bag, dag, task, given):
    with pytest.raises(AirflowFailException, match=f"no param {next(iter(given))}; it has "):
        bag.dags[dag].get_task(task).execute({"params": {**bag.dags[dag].params, **given}})


def _triggered(bag, dag, conf):
    """The params of a run as the API server makes them when it is triggered."""
    return _serialized(bag.dags[dag]).params.deep_merge(conf).validate()


def _serialized(dag):
    from airflow.serialization.serialized_objects import DagSerialization

    return DagSerialization.from_dict(DagSerialization.to_dict(dag))


def test_the_training_waits_in_the_pool_and_queue_that_were_named():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from airflow.dag_processing.dagbag import DagBag\n"
        "dags = DagBag(sys.argv[1]).dags\n"
        "tasks = [dags['retrain'].get_task('train'), dags['sweep'].get_task('trials')]\n"
        "print([(t.pool, t.queue) for t in tasks], dags['retrain'].get_task('label').pool)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(DAGS)],
        env={**os.environ, "TRAILWATCH_TRAIN_POOL": "gpu", "TRAILWATCH_TRAIN_QUEUE": "big"},
        capture_output=True,
        text=True,
        check=True,
    )
    expected = "[('gpu', 'big'), ('gpu', 'big')] default_pool"
    assert done.stdout.strip().splitlines()[-1] == expected


def test_settling_needs_an_answer(bag):
    settle = bag.dags["retrain"].get_task("settle")

    class Instance:
        def __init__(self, said):
            self.said = said

        def xcom_pull(self, task_ids, key):
            assert (task_ids, key) == ("approval", "answer")
            return self.said

    def arguments(said):
        return settle.arguments({"ti": Instance(said), "run_id": "r"})

    with pytest.raises(AirflowSkipException):
        arguments(None)
    asked = bag.dags["retrain"].get_task("train").arguments({"run_id": "r"})
    assert asked == ["stage", "train", "--run", "r", "--dag", "retrain", "--take-over"]
    yes = {"chosen_options": ["Approve"], "responded_by_user": {"id": "1", "name": "ann"}}
    assert arguments(yes)[-4:] == ["--answer", "approve", "--by", "ann"]
    no = {"chosen_options": ["Reject"], "responded_by_user": None}
    assert arguments(no)[-4:] == ["--answer", "reject", "--by", "nobody in time"]


@pytest.mark.parametrize("option", ["Approve", "Reject"])
def test_an_answer_is_handed_on_whatever_it_is(bag, option):
    approval = bag.dags["retrain"].get_task("approval")
    pushed = {}

    class Instance:
        map_index = -1

        def xcom_push(self, key, value):
            pushed[key] = value

    user = {"id": "1", "name": "ann"}
    event = {
        "chosen_options": [option],
        "params_input": {},
        "responded_at": datetime.now(UTC),
        "responded_by_user": user,
        "timedout": False,
    }
    context = {"ti": Instance(), "task": approval}
    if option == "Approve":
        assert approval.execute_complete(context, event)["chosen_options"] == [option]
    else:
        with pytest.raises(DownstreamTasksSkipped):
            approval.execute_complete(context, event)
    assert pushed["answer"] == {"chosen_options": [option], "responded_by_user": user}


def test_nobody_is_asked_where_the_gates_have_decided(bag):
    class Instance:
        def xcom_pull(self, task_ids):
            assert task_ids == "promote"
            return json.dumps({"outcome": "refused"})

    with pytest.raises(AirflowSkipException, match="the outcome is 'refused'"):
        bag.dags["retrain"].get_task("approval").execute({"ti": Instance()})
