"""What can be wrong with a request about jobs."""

from __future__ import annotations

from enum import StrEnum


class Fault(StrEnum):
    """Kind of a `JobError`, for a program."""

    BAD_UPLOAD = "bad-upload"
    """It is empty, cut short, or no form with one file."""
    UNKNOWN_TYPE = "unknown-type"
    """Neither name nor content type tells a type of file that is read."""
    TOO_LARGE = "too-large"
    """It is larger than the service takes."""
    NO_SPACE = "no-space"
    """The disk is full, or nearly."""
    NO_CHAMPION = "no-champion"
    """There is no model to judge with."""
    UNKNOWN_JOB = "unknown-job"
    """There is no such job, or no more."""
    NOT_DONE = "not-done"
    """The job has no result: not yet, or it failed or was cancelled."""
    EXPIRED = "expired"
    """The result was kept its time and is gone."""


class JobError(Exception):
    """A request about jobs that cannot be met.

    Attributes:
        fault: what kind of fault it is.
    """

    def __init__(self, fault: Fault, message: str) -> None:
        """A fault, and for a person what is wrong and what to do."""
        super().__init__(message)
        self.fault = fault
