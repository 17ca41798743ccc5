"""The record of a job and its folder: what is where, and how it is written and locked."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec

RESULT_FORMATS: Final = ("csv", "parquet")
UPLOAD: Final = "upload"
QUARANTINE: Final = "quarantine.csv"
CHILD_LOG: Final = "child.log"

_RECORD: Final = "job.json"
_LOCK: Final = "lock"
_CANCEL: Final = "cancel"
_ID: Final = re.compile(r"[0-9a-f]{32}")


class State(StrEnum):
    """How far a job is."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def over(self) -> bool:
        """Nothing more will happen to the job."""
        return self in (State.DONE, State.FAILED, State.CANCELLED)


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a job.

    Attributes:
        id: 32 hexadecimal digits; those of later jobs are larger.
        file: name of the upload, as it was given but without folders.
        bytes: size of the upload.
        by: who sent it, "" where nobody is named.
        state: see `State`.
        progress: 0 to 1; begins again at 0 with each attempt.
        read: rows read so far; in the end scored + quarantined.
        scored: rows judged.
        quarantined: rows that could not be read.
        flagged: scans flagged, by wire name of the anomaly; empty until it is done.
        created_us: when it was sent, microseconds since 1970 in UTC.
        started_us: when its last attempt began, 0 before.
        finished_us: when it was over, 0 before.
        attempts: how often scoring began.
        deaths: why attempts ended that said nothing themselves; the second is the last.
        error: why it failed, for a person; "" otherwise.
        notes: sentences about the file that a user wants to know.
        digest: of the bundle that judged, "" before.
        peak_mib: most memory that scoring took, MiB; 0 before it is over.
        expired: its result was kept its time and removed.
    """

    id: str
    file: str
    bytes: int
    created_us: int
    by: str = ""
    state: State = State.QUEUED
    progress: float = 0.0
    read: int = 0
    scored: int = 0
    quarantined: int = 0
    flagged: dict[str, int] = {}
    started_us: int = 0
    finished_us: int = 0
    attempts: int = 0
    deaths: list[str] = []
    error: str = ""
    notes: list[str] = []
    digest: str = ""
    peak_mib: int = 0
    expired: bool = False


class Report(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a child says of its job, one JSON object a line; fields as those of `Job`."""

    state: State | msgspec.UnsetType = msgspec.UNSET
    progress: float | msgspec.UnsetType = msgspec.UNSET
    read: int | msgspec.UnsetType = msgspec.UNSET
    scored: int | msgspec.UnsetType = msgspec.UNSET
    quarantined: int | msgspec.UnsetType = msgspec.UNSET
    flagged: dict[str, int] | msgspec.UnsetType = msgspec.UNSET
    notes: list[str] | msgspec.UnsetType = msgspec.UNSET
    digest: str | msgspec.UnsetType = msgspec.UNSET
    error: str | msgspec.UnsetType = msgspec.UNSET
    peak_mib: int | msgspec.UnsetType = msgspec.UNSET

    def onto(self, job: Job) -> Job:
        """The job with what is said here."""
        said = {
            name: value
            for name, value in msgspec.structs.asdict(self).items()
            if value is not msgspec.UNSET
        }
        return msgspec.structs.replace(job, **said)


def is_id(text: str) -> bool:
    """Whether a text can be the id of a job, and so the name of its folder."""
    return _ID.fullmatch(text) is not None


class Folder:
    """The folder of a job. Only who holds its lock writes its record."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def upload(self) -> Path:
        """Folder that holds the uploaded file and nothing else."""
        return self.path / UPLOAD

    @property
    def quarantine(self) -> Path:
        return self.path / QUARANTINE

    def result(self, form: str) -> Path:
        """The verdicts in one of `RESULT_FORMATS`."""
        return self.path / f"result.{form}"

    def stamp(self) -> tuple[int, int] | None:
        """Changes with every record written; None where there is none."""
        try:
            stat = (self.path / _RECORD).stat()
        except FileNotFoundError:
            return None
        return stat.st_ino, stat.st_mtime_ns

    def read(self) -> Job | None:
        """The record; None where there is none, or the job is gone.

        Raises:
            OSError: it cannot be read.
            msgspec.DecodeError: it is no record.
        """
        try:
            raw = (self.path / _RECORD).read_bytes()
        except FileNotFoundError:
            return None
        return msgspec.json.decode(raw, type=Job)

    def write(self, job: Job, *, sync: bool = False) -> None:
        """Replace the record as a whole.

        Args:
            job: the record.
            sync: return only when it would survive a loss of power.

        Raises:
            OSError: it cannot be written; the old one stands.
        """
        fresh = self.path / f"{_RECORD}.fresh"
        with fresh.open("wb") as file:
            file.write(msgspec.json.encode(job))
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(fresh, self.path / _RECORD)

    def lock(self) -> int | None:
        """Take the lock; see `lock`."""
        return lock(self.path / _LOCK)

    def ask_to_cancel(self) -> None:
        """Leave word for whoever runs the job."""
        (self.path / _CANCEL).touch()

    @property
    def asked_to_cancel(self) -> bool:
        return (self.path / _CANCEL).exists()

    def forget_to_cancel(self) -> None:
        """Remove that word."""
        (self.path / _CANCEL).unlink(missing_ok=True)

    def clear(self, *, upload: bool, results: bool) -> None:
        """Remove the upload, the results, or both."""
        if upload:
            shutil.rmtree(self.upload, ignore_errors=True)
        if results:
            for path in (*(self.result(form) for form in RESULT_FORMATS), self.quarantine):
                path.unlink(missing_ok=True)
            for rest in self.path.glob("tmp*"):  # of a child that was killed while it wrote
                shutil.rmtree(rest, ignore_errors=True)

    def remove(self) -> None:
        """Remove the job; it vanishes at once, its files right after."""
        gone = self.path.with_name(f"{GONE}{self.path.name}")
        self.path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


NEW: Final = ".new-"
"""Folders that begin so are uploads under way."""
GONE: Final = ".gone-"
"""Folders that begin so are to be removed."""


def lock(path: Path) -> int | None:
    """Take a lock that lives as long as the returned file descriptor, or a child's copy of it.

    Returns:
        The descriptor; None where somebody else holds the lock or its folder is gone.
    """
    try:
        held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(held)
        return None
    return held
