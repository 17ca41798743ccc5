"""Jobs: large files, scored apart from the requests, as `make score` scores them.

A job is a folder: `job.json` (its record, replaced atomically), the upload, and in the end the
verdicts as CSV and Parquet and the rows that could not be read. A child process
(`python -m serving.jobs`) scores it at low priority, so that neither the event loop nor the
scoring of requests waits for it, and its death is a matter of its job alone.

A file is judged for itself: against the bundle and the master data, without the history store,
and nothing of it enters the prediction log.
"""

from serving.jobs.errors import Fault, JobError
from serving.jobs.queue import Jobs
from serving.jobs.record import Job, State

__all__ = ["Fault", "Job", "JobError", "Jobs", "State"]
