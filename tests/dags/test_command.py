"""A task's process: what it is told, what it does not learn, and what becomes of its end."""

from __future__ import annotations

import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowException, AirflowSkipException

from tests.dags.conftest import ROOT

RUN = {"run_id": "manual__1", "params": {"epochs": 2, "force": False}}


@pytest.fixture
def task(tmp_path, monkeypatch):
    """A task whose module is a file of this test's own, run by this Python."""
    from trailwatch import command

    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(os.path.realpath(os.sys.executable))
    monkeypatch.setenv("TRAILWATCH_ML_BIN", str(tmp_path / "bin"))
    monkeypatch.setattr(command, "HOME", tmp_path)

    def made(code: str, **options) -> command.Command:
        (tmp_path / "told.py").write_text(code)
        with DAG(dag_id="d", schedule=None, params=dict.fromkeys(RUN["params"])):
            return command.Command(task_id="t", module="told", words=["stage", "x"], **options)

    return made


def test_the_last_line_is_what_it_returns(task):
    assert task("print('a'); print('b')").execute(RUN) == "b"


def test_it_is_told_the_run_and_its_options(task):
    said = task("import sys, json; print(json.dumps(sys.argv[1:]))", options={"model": "m"})
    words = json.loads(said.execute(RUN))
    assert words[:6] == ["stage", "x", "--run", "manual__1", "--dag", "d"]
    assert json.loads(words[7]) == {"epochs": 2, "force": False, "model": "m"}


def test_what_the_monitor_notes_beside_the_params_is_handed_on(task):
    said = task("import sys; print(sys.argv[-1])", options={})
    noted = {"params": {"request": "ab", "reason": ["x"], "episode": 3, "manual": False}}
    assert json.loads(said.execute({**RUN, **noted})) == noted["params"]


def test_a_failure_says_its_cause(task):
    with pytest.raises(AirflowException, match="no space left"):
        task("import sys; print('one'); print('no space left'); sys.exit(1)").execute(RUN)


def test_nothing_to_do_skips_with_the_reason(task):
    with pytest.raises(AirflowSkipException, match="no new data"):
        task("import sys; print('skipped: no new data'); sys.exit(99)").execute(RUN)


def test_airflows_secrets_stay_with_airflow(task, monkeypatch):
    secrets = {
        "AIRFLOW__CORE__FERNET_KEY": "s1",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "s2",
        "AIRFLOW__API_AUTH__JWT_SECRET": "s3",
        "AIRFLOW_CONN_X": "s4",
        "TRAILWATCH_AIRFLOW_PASSWORD": "s5",
        "TRAILWATCH_ALERT_WEBHOOK": "s6",
        "SOMETHING_ELSE": "s7",
    }
    for name, value in {
        **secrets,
        "MLFLOW_TRACKING_URI": "http://m",
        "TRAILWATCH_LOG": "l",
    }.items():
        monkeypatch.setenv(name, value)
    said = task("import os, json; print(json.dumps(dict(os.environ)))").execute(RUN)
    given = json.loads(said)
    assert secrets.keys().isdisjoint(given)
    assert set(secrets.values()).isdisjoint(given.values())
    assert given["MLFLOW_TRACKING_URI"] == "http://m" and given["TRAILWATCH_LOG"] == "l"


def test_a_stopped_task_leaves_no_process(task, tmp_path):
    code = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "open('pids', 'w').write(f'{os.getpid()} {child.pid}')\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    one = task(code)
    ended = []

    def execute():
        try:
            one.execute(RUN)
        except AirflowException as error:
            ended.append(error)

    thread = threading.Thread(target=execute)
    thread.start()
    pids = tmp_path / "pids"
    while not (pids.exists() and len(pids.read_text().split()) == 2):
        assert thread.is_alive()
        thread.join(0.05)
    one.on_kill()
    thread.join(30)
    assert ended and not thread.is_alive()
    for pid in map(int, pids.read_text().split()):
        assert _goes(pid)


def _goes(pid: int, within_s: float = 10.0) -> bool:
    """It ends soon after its signal; without an init, a child may stay as a zombie."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


@pytest.fixture
def webhook():
    got = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self):
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", got
    server.shutdown()
    server.server_close()


FAILED = {
    "ti": SimpleNamespace(dag_id="retrain", task_id="train", run_id="r1", log_url="http://log"),
    "exception": AirflowException("train failed: no space left on device"),
}


def test_a_failed_task_is_told_to_the_webhook(webhook, monkeypatch):
    from trailwatch.alert import alert

    url, got = webhook
    monkeypatch.setenv("TRAILWATCH_ALERT_WEBHOOK", url)
    alert(FAILED)
    (message,) = got
    assert message["text"].startswith("Trailwatch: retrain.train failed in run r1: train failed")
    assert (message["cause"], message["log"]) == (str(FAILED["exception"]), "http://log")


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:9/", "no url"])
def test_an_alert_is_logged_also_where_no_webhook_takes_it(url, monkeypatch, caplog):
    from trailwatch.alert import alert

    monkeypatch.setenv("TRAILWATCH_ALERT_WEBHOOK", url)
    alert(FAILED)
    assert "retrain.train failed in run r1: train failed: no space left" in caplog.text


def test_the_graph_is_that_of_the_checkout():
    from trailwatch import graph

    assert graph.HOME.resolve() == ROOT
