"""Where things are: the service's settings, read from the environment and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from zoneinfo import ZoneInfo

from logbook.opened import default_url
from monitoring.environment import PREFIX as PREFIX
from monitoring.environment import SettingsError as SettingsError
from monitoring.environment import given, wrong


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of one serving process; each is the variable `TRAILWATCH_<NAME>` in upper case.

    Attributes:
        home: folder of local state (history, log, uploads) and of the local MLflow store.
        host: address to listen on.
        port: port to listen on.
        model: registered model whose champion judges.
        bundle: a bundle folder instead of a registered model, "" for the registry.
        sites: site master file, "" for the bundle's own.
        registry: file of genuine products, "" for the bundle's own where it applies.
        history: `lmdb:<folder>`, `redis://host:port/db` (also `rediss://`), or `memory:`.
        log: `sqlite:<file>` or `postgresql://...`.
        drift: URL of the monitor's state, `sqlite:<file>` or `postgresql://...`; "" for one beside
            the log.
        monitor: "apart" (`python -m monitoring` runs elsewhere, or nowhere) or "inside" (as a child
            of this process).
        zone: IANA zone of times that name none.
        durable: "process" (against its death) or "power" (against power loss): of log and LMDB.
        poll_s: seconds between looks at the registry's aliases.
        challenger: "off", "shadow" (judges silently) or "ab" (answers for its share).
        challenger_share: share of the EPCs that the challenger judges, 0 to 1.
        keep_days_after_sale: days that a trail is kept after its sale.
        keep_days_idle: days that an unsold trail or a lot is kept after its last scan.
        keep_log_days: days that requests, scans and verdicts stay in the log; 0 is for ever.
            Feedback always stays.
        keep_job_days: days that a job's result is kept, and then its record without it.
        keep_free_mib: MiB of disk that uploads and results leave free for everything else.
        jobs_at_once: large files that are judged at a time, over all processes of the folder.
        most_rows: rows a scoring request may hold.
        most_body_mib: MiB a request's body may have (uploads of jobs are apart).
        most_upload_mib: MiB an uploaded file may have.
        requests_per_minute: of one key or address; 0 is no limit.
        concurrent: scoring requests at a time; more are told to come again.
        workers: processes that answer; they share history, log and jobs. Limits, and what
            `/metrics` counts, are of one process each.
        explain: "warm" (torch is loaded in the background after the start, so that no explanation
            waits for it) or "lazy" (with the first one, which takes seconds; saves memory).
        api_keys: "" or `name:scope+scope:sha256-of-the-key` entries, separated by commas.
    """

    home: Path = Path(".")
    host: str = "127.0.0.1"
    port: int = 8000
    model: str = "trailwatch"
    bundle: str = ""
    sites: str = ""
    registry: str = ""
    history: str = ""
    log: str = ""
    drift: str = ""
    monitor: str = "apart"
    zone: str = "UTC"
    durable: str = "process"
    poll_s: float = 10.0
    challenger: str = "off"
    challenger_share: float = 0.1
    keep_days_after_sale: float = 90.0
    keep_days_idle: float = 400.0
    keep_log_days: float = 0.0
    keep_job_days: float = 7.0
    keep_free_mib: int = 512
    jobs_at_once: int = 1
    most_rows: int = 20_000
    most_body_mib: int = 16
    most_upload_mib: int = 4_096
    requests_per_minute: int = 0
    concurrent: int = 64
    workers: int = 1
    explain: str = "warm"
    api_keys: str = ""

    @classmethod
    def read(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Read the environment.

        Raises:
            SettingsError: a value cannot be used.
        """
        return replace(cls(), **given(cls(), environment))._checked()

    def _checked(self) -> Settings:
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise wrong(name, value, f"give one of {', '.join(allowed)}")
        if not 0 <= self.challenger_share <= 1:
            raise wrong("challenger_share", self.challenger_share, "give a share from 0 to 1")
        if not 0 < self.port < 65_536:
            raise wrong("port", self.port, "give a port from 1 to 65535")
        for name, least in _LEAST.items():
            if not getattr(self, name) >= least:
                raise wrong(name, getattr(self, name), f"give at least {least}")
        if self.workers > 1 and self.history.startswith("memory:"):
            raise wrong(
                "workers",
                self.workers,
                "they cannot share a history in memory; let it be lmdb:<folder> or redis://...",
            )
        if self.workers > 1 and self.monitor == "inside":
            raise wrong("monitor", self.monitor, "each worker would run one; let it run apart")
        try:
            ZoneInfo(self.zone)
        except (ValueError, OSError) as error:
            raise wrong("zone", self.zone, "give an IANA zone such as Asia/Seoul") from error
        return self

    @property
    def history_url(self) -> str:
        """URL of the history store; LMDB in the home folder by default."""
        return self.history or f"lmdb:{self.home / 'state' / self.model / 'history'}"

    @property
    def log_url(self) -> str:
        """URL of the prediction log; SQLite in the home folder by default."""
        return self.log or default_url(self.home, self.model)

    @property
    def uploads(self) -> Path:
        """Folder of uploaded files and their results."""
        return self.home / "state" / self.model / "jobs"


_CHOICES = {
    "durable": ("process", "power"),
    "challenger": ("off", "shadow", "ab"),
    "monitor": ("apart", "inside"),
    "explain": ("warm", "lazy"),
}
_LEAST = {
    **dict.fromkeys(("most_rows", "most_body_mib", "most_upload_mib", "concurrent"), 1),
    **dict.fromkeys(("jobs_at_once", "workers"), 1),
    **dict.fromkeys(("keep_log_days", "keep_job_days", "keep_free_mib"), 0),
}
