"""`docker-compose.yaml`, rendered from the same services as `make up` starts.

python -m deploy secrets
docker compose --env-file state/platform/secrets.env up --build --detach
"""

from __future__ import annotations

from typing import Any, Final

import yaml

from deploy import embedded
from deploy.services import Place, Service, services
from deploy.settings import LOOPBACK, PORTS

FILE: Final = "docker-compose.yaml"

IMAGES: Final = {
    "postgres": "postgres:18.6-trixie",
    "redis": "redis:8.0.3",
    "prometheus": "prom/prometheus:v3.7.3",
    "grafana": "grafana/grafana:12.3.1",
}
"""Images that are not built here, by version."""

_ROOT: Final = "/trailwatch"
_STATE: Final = f"{_ROOT}/state"
_FOLDERS: Final = {"postgres": "/var/lib/postgresql/data", "redis": "/data"}
_INSIDE: Final = {"postgres": 5432, "redis": 6379}
_HEADER: Final = """\
# Written by `python -m deploy compose` from deploy/services.py; change it there.
#
#   python -m deploy secrets
#   docker compose --env-file state/platform/secrets.env up --build --detach
#
# docs/platform.md tells more.
"""


def rendered() -> str:
    """The file's text."""
    return _HEADER + yaml.safe_dump(_document(), sort_keys=False, width=100)


def containers() -> Place:
    """The compose network: services are reached by name, secrets come from the env file."""
    password = _secret("POSTGRES_PASSWORD")
    return Place(
        host=lambda name: name,
        bind="0.0.0.0",
        port=_port,
        secret=_secret,
        root=_ROOT,
        home=_ROOT,
        state=_STATE,
        runs=f"{_STATE}/runs",
        folder=lambda name: _FOLDERS.get(name, f"{_STATE}/platform/{name}"),
        ml="/opt/ml/bin",
        airflow="/opt/airflow/bin",
        model="${TRAILWATCH_MODEL:-trailwatch}",
        remote=f"${{TRAILWATCH_DVC_REMOTE:-{_STATE}/dvc-remote}}",
        database=lambda name, driver: (
            f"postgresql{driver and '+'}{driver}://{embedded.USER}:{password}"
            f"@postgres:5432/{name or 'postgres'}"
        ),
        own_server=True,
        history="",
        own_history=True,
        postgres=("postgres",),
        postgres_user="",
        redis=("redis-server", "/etc/redis.conf"),
        monitor=True,
    )


def _port(name: str) -> int:
    return _INSIDE.get(name, PORTS[name][1])


def _secret(name: str) -> str:
    return f"${{{name}:?make it with python -m deploy secrets}}"


def _document() -> dict[str, Any]:
    place = containers()
    all_services = services(place)
    once = {service.name for service in all_services if service.once}
    rendered = {service.name: _service(service, once, place) for service in all_services}
    return {
        "name": "trailwatch",
        "services": {**rendered, "prometheus": _prometheus(), "grafana": _grafana()},
        "configs": {"redis": {"content": f"requirepass {_secret('REDIS_PASSWORD')}\n"}},
        "secrets": {
            "trailwatch_key": {"environment": "TRAILWATCH_API_KEY"},
            "grafana_password": {"environment": "GRAFANA_ADMIN_PASSWORD"},
        },
        "volumes": {name: {} for name in ("postgres", "redis", "state", "prometheus", "grafana")},
    }


def _service(service: Service, once: set[str], place: Place) -> dict[str, Any]:
    own = service.image in ("ml", "airflow")
    described: dict[str, Any] = {
        **(_built(service.image) if own else {"image": IMAGES[service.image]}),
        "command": list(service.command),
        "restart": "on-failure:5" if service.once else "unless-stopped",
    }
    environment = dict(service.environment)
    match service.name:
        case "postgres":
            environment["POSTGRES_USER"] = embedded.USER
            environment["POSTGRES_PASSWORD"] = place.secret("POSTGRES_PASSWORD")
            described["volumes"] = ["postgres:/var/lib/postgresql"]
            described["shm_size"] = "256mb"
        case "redis":
            described["configs"] = [{"source": "redis", "target": place.redis[1]}]
            described["volumes"] = [f"redis:{place.folder('redis')}"]
    if environment:
        described["environment"] = environment
    if service.port:
        variable, default = PORTS[service.port]
        described["ports"] = [f"{LOOPBACK}:${{{variable}:-{default}}}:{place.port(service.port)}"]
    if service.needs:
        described["depends_on"] = {
            need: {
                "condition": "service_completed_successfully" if need in once else "service_healthy"
            }
            for need in service.needs
        }
    if service.health is not None:
        described["healthcheck"] = _health(_test(service, place), "180s")
    described["stop_signal"] = service.stop.name
    return described


def _test(service: Service, place: Place) -> list[str]:
    assert service.health is not None
    match service.image:
        case "postgres":
            return ["CMD", "pg_isready", "--username", embedded.USER, "--host", "localhost"]
        case "redis":
            return ["CMD", "redis-cli", "-p", str(place.port("redis")), "ping"]
        case _:
            return ["CMD", f"{place.ml}/python", "-m", "deploy.probe", *service.health.words]


def _health(test: list[str], start: str) -> dict[str, Any]:
    return {
        "test": test,
        "interval": "15s",
        "timeout": "10s",
        "retries": 4,
        "start_period": start,
        "start_interval": "2s",
    }


def _built(target: str) -> dict[str, Any]:
    return {
        "image": f"trailwatch-{target}:local",
        "build": {"context": ".", "dockerfile": "deploy/Dockerfile", "target": target},
        # Of group 0, which may write the state: so any user may be chosen who owns the checkout.
        "user": "${TRAILWATCH_UID:-1000}:0",
        "working_dir": _ROOT,
        "volumes": [f".:{_ROOT}", f"state:{_STATE}"],
        "init": True,
    }


def _prometheus() -> dict[str, Any]:
    variable, default = PORTS["prometheus"]
    return {
        "image": IMAGES["prometheus"],
        "command": [
            "--config.file=/etc/prometheus/prometheus.yml",
            "--storage.tsdb.path=/prometheus",
            "--storage.tsdb.retention.time=30d",
        ],
        "restart": "unless-stopped",
        "volumes": [
            "./deploy/prometheus/prometheus.yml:/etc/prometheus/prometheus.yml:ro",
            "prometheus:/prometheus",
        ],
        "secrets": ["trailwatch_key"],
        "ports": [f"{LOOPBACK}:${{{variable}:-{default}}}:9090"],
        "healthcheck": _health(
            ["CMD", "wget", "-q", "-O", "-", "http://localhost:9090/-/healthy"], "30s"
        ),
    }


def _grafana() -> dict[str, Any]:
    variable, default = PORTS["grafana"]
    return {
        "image": IMAGES["grafana"],
        "restart": "unless-stopped",
        "environment": {
            "GF_SECURITY_ADMIN_PASSWORD__FILE": "/run/secrets/grafana_password",
            "GF_ANALYTICS_REPORTING_ENABLED": "false",
            "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
            "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH": "/etc/dashboards/trailwatch.json",
        },
        "volumes": [
            "./deploy/grafana/provisioning:/etc/grafana/provisioning:ro",
            "./deploy/grafana/dashboards:/etc/dashboards:ro",
            "grafana:/var/lib/grafana",
        ],
        "secrets": ["grafana_password"],
        "ports": [f"{LOOPBACK}:${{{variable}:-{default}}}:3000"],
        "depends_on": {"prometheus": {"condition": "service_healthy"}},
        "healthcheck": _health(
            ["CMD", "wget", "-q", "-O", "-", "http://localhost:3000/api/health"], "60s"
        ),
    }
