"""Where things are: the monitor's settings, read from the environment and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from logbook.opened import default_url as default_log
from monitoring.environment import SettingsError as SettingsError
from monitoring.environment import given, wrong
from monitoring.store import default_url

CLOCKS: Final = ("received", "event")


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of one monitor; each is the variable `TRAILWATCH_<NAME>` in upper case.

    Attributes:
        home: folder of local state (log, drift state) and of the local MLflow store.
        model: registered model whose champion is watched.
        bundle: a bundle folder instead of a registered model, "" for the registry.
        log: URL of the prediction log.
        drift: URL of the state database, `sqlite:<file>` or `postgresql://...`; "" for one beside
            the log.
        drift_clock: time of a scan that moves the windows: "received" (when it was asked about) or
            "event" (when it happened: for replays with an accelerated clock).
        drift_every_s: seconds between two evaluations.
        drift_read_s: seconds between two looks into the log.
        drift_lease_s: seconds after which another evaluator takes over from one that fell silent.
        drift_settle_s: seconds that a promotion may take after its run has succeeded.
        drift_report: "on" or "off": an HTML report and plots for each episode.
        poll_s: seconds between looks at the registry's alias.
        airflow_url: Airflow's API server; "" where there is none.
        airflow_user: who may trigger the DAG.
        airflow_password: their password.
        airflow_dag: id of the DAG that retrains.
        airflow_follow_s: seconds between two looks at a run.
        monitor_host: address on which the monitor answers by itself.
        monitor_port: its port; 0: it does not listen.
    """

    home: Path = Path(".")
    model: str = "trailwatch"
    bundle: str = ""
    log: str = ""
    drift: str = ""
    drift_clock: str = "received"
    drift_every_s: float = 60.0
    drift_read_s: float = 5.0
    drift_lease_s: float = 30.0
    drift_settle_s: float = 300.0
    drift_report: str = "on"
    poll_s: float = 10.0
    airflow_url: str = ""
    airflow_user: str = ""
    airflow_password: str = field(default="", repr=False)
    airflow_dag: str = "retrain"
    airflow_follow_s: float = 15.0
    monitor_host: str = "127.0.0.1"
    monitor_port: int = 0

    @classmethod
    def read(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Read the environment.

        Raises:
            SettingsError: a value cannot be used.
        """
        return replace(cls(), **given(cls(), environment))._checked()

    def _checked(self) -> Settings:
        for name, allowed in (("drift_clock", CLOCKS), ("drift_report", ("on", "off"))):
            if getattr(self, name) not in allowed:
                raise wrong(name, getattr(self, name), f"give one of {', '.join(allowed)}")
        for name in ("drift_every_s", "drift_read_s", "drift_lease_s", "poll_s"):
            if not getattr(self, name) > 0:
                raise wrong(name, getattr(self, name), "give seconds, more than 0")
        if not 0 <= self.monitor_port < 65_536:
            raise wrong("monitor_port", self.monitor_port, "give a port up to 65535, or 0")
        return self

    @property
    def log_url(self) -> str:
        """URL of the prediction log; SQLite in the home folder by default."""
        return self.log or default_log(self.home, self.model)

    @property
    def drift_url(self) -> str:
        """URL of the state database; beside the log by default."""
        return self.drift or default_url(self.log_url)
