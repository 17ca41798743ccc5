"""Where the platform is and where its services listen, read from the environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

ROOT: Final = Path(__file__).resolve().parents[1]
"""The checkout that this code lies in."""

LOOPBACK: Final = "127.0.0.1"

PORTS: Final = {
    "serving": ("TRAILWATCH_PORT", 8000),
    "monitor": ("TRAILWATCH_MONITOR_PORT", 8001),
    "airflow": ("TRAILWATCH_AIRFLOW_PORT", 8080),
    "mlflow": ("TRAILWATCH_MLFLOW_PORT", 5000),
    "postgres": ("TRAILWATCH_POSTGRES_PORT", 5433),
    "redis": ("TRAILWATCH_REDIS_PORT", 6380),
    "prometheus": ("TRAILWATCH_PROMETHEUS_PORT", 9090),
    "grafana": ("TRAILWATCH_GRAFANA_PORT", 3000),
}
"""Each port: the variable that changes it, and the port without it."""

OWN_SERVER: Final = "server"
"""As `TRAILWATCH_HISTORY`: a Valkey server of the platform's own."""


class DeployError(RuntimeError):
    """The platform cannot be brought up; says why and what to do."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the platform.

    Attributes:
        home: `TRAILWATCH_HOME`: the project folder, with `dags/` and the repository.
        state: `TRAILWATCH_STATE`: folder of everything that is written; `state/` in the home.
        ml_bin: `TRAILWATCH_ML_BIN`: folder of the ML environment's programs.
        airflow_bin: `TRAILWATCH_AIRFLOW_BIN`: folder of the Airflow environment's programs.
        postgres: `TRAILWATCH_POSTGRES`: URL of a PostgreSQL server, "" for one of the platform's
            own. Its user has to own, or be able to create, the four databases.
        history: `TRAILWATCH_HISTORY`: as serving reads it, or `server` for a Valkey of the
            platform's own; "" is LMDB in the state folder.
        model: `TRAILWATCH_MODEL`: the registered model that serves.
        remote: `TRAILWATCH_DVC_REMOTE`: where DVC pushes to; a folder in the state folder.
        runs: `TRAILWATCH_RUNS`: folder of the workspaces of the DAGs' runs.
        ports: port of each service, by its name in `PORTS`.
        given: the environment that was read.
    """

    home: Path
    state: Path
    ml_bin: Path
    airflow_bin: Path
    postgres: str
    history: str
    model: str
    remote: str
    runs: Path
    ports: Mapping[str, int]
    given: Mapping[str, str] = field(repr=False)

    @classmethod
    def read(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Read the environment.

        Raises:
            DeployError: a value cannot be used.
        """
        given = dict(os.environ if environment is None else environment)

        def text(name: str, default: object = "") -> str:
            return given.get(f"TRAILWATCH_{name}", "").strip() or str(default)

        home = Path(text("HOME", ROOT)).resolve()
        state = Path(text("STATE", home / "state")).resolve()
        return cls(
            home=home,
            state=state,
            ml_bin=Path(text("ML_BIN", Path(sys.executable).parent)).absolute(),
            airflow_bin=Path(text("AIRFLOW_BIN", ROOT / ".venv-airflow" / "bin")).absolute(),
            postgres=_postgres(text("POSTGRES")),
            history=text("HISTORY"),
            model=text("MODEL", "trailwatch"),
            remote=text("DVC_REMOTE", state / "dvc-remote"),
            runs=Path(text("RUNS", state / "runs")).resolve(),
            ports=_ports(given),
            given=given,
        )

    @property
    def folder(self) -> Path:
        """Folder of the platform itself: secrets, logs, databases."""
        return self.state / "platform"

    @property
    def logs(self) -> Path:
        """Folder with a log of each service."""
        return self.folder / "logs"

    def url(self, name: str) -> str:
        """URL of a service by its name in `PORTS`."""
        return f"http://{LOOPBACK}:{self.ports[name]}"


def _postgres(url: str) -> str:
    parts = urlsplit(url)
    if url and (parts.scheme not in ("postgresql", "postgres") or not parts.hostname):
        raise DeployError(
            "TRAILWATCH_POSTGRES is no PostgreSQL URL; give "
            "postgresql://user:password@host:port/database, or nothing for a server of its own"
        )
    return url


def _ports(given: Mapping[str, str]) -> dict[str, int]:
    ports: dict[str, int] = {}
    for name, (variable, default) in PORTS.items():
        text = given.get(variable, "").strip() or str(default)
        if not text.isdecimal() or not 0 < int(text) < 65_536:
            raise DeployError(f"{variable} is {text!r}; give a port from 1 to 65535")
        same = next((other for other, port in ports.items() if port == int(text)), None)
        if same is not None:
            raise DeployError(
                f"{variable} and {PORTS[same][0]} are both {text}; give each its own port"
            )
        ports[name] = int(text)
    return ports
