"""docker-compose.yaml: what is committed, what its schema allows, and what starts natively."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
import yaml

from deploy import compose, passwords
from deploy.services import native, services
from deploy.settings import ROOT, Settings

PLATFORM = {"prometheus", "grafana"}


@pytest.fixture(scope="module")
def document() -> dict:
    return yaml.safe_load((ROOT / compose.FILE).read_text())


@pytest.fixture(scope="module")
def natively(tmp_path_factory: pytest.TempPathFactory) -> dict:
    home = tmp_path_factory.mktemp("home")
    settings = Settings.read({"TRAILWATCH_HOME": str(home), "TRAILWATCH_HISTORY": "server"})
    place = native(settings, passwords.load(settings.folder))
    return {service.name: service for service in services(place)}


def test_the_committed_file_is_what_is_rendered():
    assert (ROOT / compose.FILE).read_text() == compose.rendered(), "python -m deploy compose"


def test_it_keeps_to_the_compose_specification(document):
    schemas = files("check_jsonschema") / "builtin_schemas" / "vendor"
    schema = json.loads((schemas / "compose-spec.json").read_text())
    jsonschema.validate(document, schema)
    document["services"]["mlflow"]["comand"] = "?"
    with pytest.raises(jsonschema.ValidationError, match="comand"):
        jsonschema.validate(document, schema)
    del document["services"]["mlflow"]["comand"]


def test_the_same_services_run_natively(document, natively):
    assert set(natively) | {"monitor"} == set(document["services"]) - PLATFORM


def test_commands_are_those_of_the_native_services(document, natively):
    """But for where programs and folders are, and the address that is listened on."""
    for name, service in natively.items():
        here = [plain(word) for word in service.command]
        there = [plain(word) for word in document["services"][name]["command"]]
        if name == "postgres":  # the image brings its own socket folder
            here = [word for word in here if not word.startswith("unix_socket")][: len(there)]
        assert here == there, name


def plain(word: str) -> str:
    """A word without what a place decides."""
    if word.startswith("/"):
        name = Path(word).name
        return {"valkey-server": "redis-server", "data": "redis"}.get(name, name)
    word = word.replace("127.0.0.1", "0.0.0.0")
    return re.sub(r"^(port=)?\d{4,5}$", r"\1N", word)


def test_environments_name_the_same_variables(document, natively):
    for name, service in natively.items():
        more = {"POSTGRES_USER", "POSTGRES_PASSWORD"} if name == "postgres" else set()
        there = set(document["services"][name].get("environment", {}))
        assert there == set(service.environment) | more, name


def test_images_are_pinned_by_version(document):
    for name, service in document["services"].items():
        if "build" in service:
            stages = (ROOT / "deploy" / "Dockerfile").read_text()
            assert f" AS {service['build']['target']}\n" in stages
            assert (ROOT / service["build"]["dockerfile"]).is_file()
        else:
            assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+[\w.-]*", service["image"]), name
    assert re.search(r"^FROM python:3\.11\.\d+-", (ROOT / "deploy/Dockerfile").read_text(), re.M)


def test_no_password_has_a_default(document):
    made = {*passwords.MADE, "TRAILWATCH_API_KEY_ENTRY"}
    text = (ROOT / compose.FILE).read_text()
    text = re.sub(r"\s+", " ", text)
    used = re.findall(r"\$\{([A-Z_]+)(.*?)\}", text)
    for name, rest in used:
        if name in made:
            assert rest.startswith(":?"), name
        else:
            assert name.startswith("TRAILWATCH_") and rest.startswith(":-"), name
    by_file = {secret["environment"] for secret in document["secrets"].values()}
    assert {name for name, _ in used if name in made} | by_file == made
    for name, service in document["services"].items():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD$|SECRET|FERNET|_KEYS$|CONN$|_LOG$|STORE_URI", variable):
                assert "${" in value, f"{name}: {variable}"


def test_ports_are_published_for_this_machine_only(document):
    published = [p for s in document["services"].values() for p in s.get("ports", [])]
    assert len(published) >= 8
    assert all(port.startswith("127.0.0.1:${TRAILWATCH_") for port in published)


def test_every_service_that_stays_is_asked_for_its_health(document, natively):
    once = {name for name, service in natively.items() if service.once}
    for name, service in document["services"].items():
        assert ("healthcheck" in service) == (name not in once), name


def test_what_is_mounted_from_here_is_here(document):
    for service in document["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (ROOT / source).exists(), source
            else:
                assert source in document["volumes"]


def test_the_dashboard_draws_what_the_services_publish():
    board = json.loads((ROOT / "deploy/grafana/dashboards/trailwatch.json").read_text())
    asked = " ".join(t["expr"] for panel in board["panels"] for t in panel["targets"])
    titles = " ".join(panel["title"] for panel in board["panels"])
    for subject in ("Requests", "Latency", "Anomalies", "Drift"):
        assert subject in titles
    sources = ("serving/telemetry.py", "monitoring/status.py")
    published = "".join((ROOT / source).read_text() for source in sources)
    named = set(re.findall(r"(?:trailwatch|drift|retrain)_[a-z_]+", asked))
    assert len(named) >= 8
    plain_names = {re.sub("_bucket$", "", name) for name in named}
    lacking = {
        name
        for name in plain_names
        if f'"{name}"' not in published and f'"{name.removesuffix("_total")}"' not in published
    }
    assert lacking == set()
