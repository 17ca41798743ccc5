from __future__ import annotations

import socket
import urllib.parse

import pytest

from deploy.databases import url_of
from deploy.settings import PORTS, DeployError, Settings
from tests.deploy.platforms import platform


def test_every_port_has_its_variable(tmp_path):
    given = {variable: str(20_000 + i) for i, (variable, _) in enumerate(PORTS.values())}
    found = Settings.read({"TRAILWATCH_HOME": str(tmp_path), **given}).ports
    assert list(found.values()) == [20_000 + i for i in range(len(PORTS))]
    assert Settings.read({}).ports == {name: port for name, (_, port) in PORTS.items()}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"TRAILWATCH_MLFLOW_PORT": "http"}, "TRAILWATCH_MLFLOW_PORT"),
        ({"TRAILWATCH_MLFLOW_PORT": "70000"}, "65535"),
        ({"TRAILWATCH_MLFLOW_PORT": "8080"}, "TRAILWATCH_AIRFLOW_PORT"),
        ({"TRAILWATCH_POSTGRES": "mysql://root@localhost"}, "TRAILWATCH_POSTGRES"),
    ],
    ids=["no number", "too large", "twice", "not PostgreSQL"],
)
def test_what_cannot_be_used_is_named(given, words):
    with pytest.raises(DeployError, match=words):
        Settings.read(given)


def test_a_taken_port_is_named_with_its_variable_and_nothing_is_started():
    with platform() as made, socket.socket() as other:
        port = made.settings.ports["mlflow"]
        other.bind(("127.0.0.1", port))
        other.listen()
        done = made.command("up")
        assert done.returncode == 2
        assert f"port {port}" in done.stderr
        assert "TRAILWATCH_MLFLOW_PORT" in done.stderr
        assert "Traceback" not in done.stderr
        assert not made.processes()


def test_an_environment_that_is_not_installed_is_named(tmp_path):
    with platform(TRAILWATCH_AIRFLOW_BIN=str(tmp_path)) as made:
        done = made.command("up")
    assert done.returncode == 2
    assert "make setup" in done.stderr and "TRAILWATCH_AIRFLOW_BIN" in done.stderr


def test_a_database_is_named_in_the_servers_url():
    server = "postgres://a:b%40c@db.example:6543/main?sslmode=require"
    assert url_of(server, "x") == "postgresql://a:b%40c@db.example:6543/x?sslmode=require"
    assert url_of(server, "x", "psycopg").startswith("postgresql+psycopg://a:b%40c@")
    assert urllib.parse.urlsplit(url_of(server, "")).path == "/main"
