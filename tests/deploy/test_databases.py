"""A PostgreSQL server of one's own, real: its databases, and what is said where it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import psycopg
import pytest

from deploy import passwords
from deploy.databases import NAMES, create
from deploy.services import native, services
from deploy.settings import Settings
from tests.logbook.logged import Server, postgres_server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgres_server() as made:
        yield made


def test_databases_are_made_once(server):
    url = server.url()
    assert create(url) == sorted(NAMES)
    assert create(url) == []
    for name in NAMES:
        with psycopg.connect(url, dbname=name) as connection:
            assert connection.execute("SELECT current_database()").fetchone() == (name,)


def command(url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deploy.databases"],
        env={**os.environ, "TRAILWATCH_POSTGRES": url},
        capture_output=True,
        text=True,
    )


def test_a_user_without_the_right_is_told_what_to_make(server):
    url = server.url()
    with psycopg.connect(url, autocommit=True) as connection:
        for name in NAMES:
            connection.execute(f"DROP DATABASE IF EXISTS {name}")
        connection.execute("CREATE ROLE guest LOGIN")
    done = command(url.replace("postgres:@", "guest:@"))
    assert done.returncode == 2
    assert "trailwatch_mlflow" in done.stderr and "CREATEDB" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_does_not_answer_is_tried_again():
    done = command("postgresql://ann:secret@127.0.0.1:9/postgres")
    assert done.returncode == 1
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr


def test_with_a_server_of_ones_own_none_is_started(tmp_path):
    given = {"TRAILWATCH_HOME": str(tmp_path), "TRAILWATCH_HISTORY": "redis://cache:6379/3"}
    url = "postgresql://ann:secret@db:6000/main?sslmode=require"
    settings = Settings.read({**given, "TRAILWATCH_POSTGRES": url})
    found = {s.name: s for s in services(native(settings, passwords.load(settings.folder)))}
    assert not {"postgres", "redis"} & set(found)
    assert found["databases"].environment["TRAILWATCH_POSTGRES"] == url
    environment = found["serving"].environment
    assert environment["TRAILWATCH_HISTORY"] == "redis://cache:6379/3"
    assert environment["TRAILWATCH_LOG"] == (
        "postgresql://ann:secret@db:6000/trailwatch_log?sslmode=require"
    )
    assert not [s for s in found.values() if "secret" in " ".join(s.command)]
