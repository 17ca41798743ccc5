"""Jobs: large files, scored apart from the requests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from fastapi import APIRouter, Query, Request, Response, WebSocket
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.responses import FileResponse
from starlette.websockets import WebSocketDisconnect

from serving.jobs import Fault, Job, JobError, Jobs, State
from serving.jobs.upload import REST_BYTES, SUFFIX_OF_TYPE, FormFile, disposition_name
from serving.problems import Problem, documented
from serving.security import SUBPROTOCOL, allow

T = TypeVar("T")

MOST_LISTED: Final = 1000
_UNBOUNDED: Final = 1 << 62
"""Bytes of a body: uploads have their own limit, which `Jobs.submit` counts."""
_STATUS: Final = {
    Fault.BAD_UPLOAD: 400,
    Fault.UNKNOWN_TYPE: 415,
    Fault.TOO_LARGE: 413,
    Fault.NO_SPACE: 507,
    Fault.NO_CHAMPION: 503,
    Fault.UNKNOWN_JOB: 404,
    Fault.NOT_DONE: 409,
    Fault.EXPIRED: 410,
}
_RETRY_S: Final = {Fault.NO_SPACE: 60, Fault.NO_CHAMPION: 60}
_MEDIA_TYPE: Final = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}
_BINARY: Final[dict[str, Any]] = {"schema": {"type": "string", "format": "binary"}}
_RANGES: Final[dict[int | str, dict[str, Any]]] = {
    206: {"description": "The part that `Range` asks for."},
    416: {"description": "There is no such part."},
}
_FORM: Final[dict[str, Any]] = {
    "schema": {
        "type": "object",
        "required": ["file"],
        "properties": {"file": {"type": "string", "format": "binary"}},
    }
}

router = APIRouter(prefix="/jobs", tags=["jobs"], dependencies=[allow("score")])


class JobStatus(BaseModel):
    """How a job is. Times are ISO 8601 in UTC."""

    model_config = ConfigDict(use_enum_values=True)

    id: str = Field(examples=["00065a1b2c3d4e5f0123456789abcdef"])
    state: State
    progress: float = Field(
        description="0 to 1; begins again with each attempt", examples=[0.42], ge=0, le=1
    )
    file: str = Field(description="Name of the upload", examples=["scans.csv"])
    bytes: int = Field(description="Size of the upload", examples=[7340032])
    by: str = Field(description="Key or address that sent it", examples=["erp"])
    read: int = Field(description="Rows read so far; in the end scored + quarantined")
    scored: int = Field(description="Rows judged so far")
    quarantined: int = Field(description="Rows that could not be read")
    flagged: dict[str, int] = Field(
        description="Flagged scans by type, once done", examples=[{"jump": 12}]
    )
    notes: list[str] = Field(description="What to know about the file")
    model: str = Field(description="Digest of the bundle that judges; empty before it begins")
    attempts: int = Field(description="How often scoring began; 2 after a death")
    peak_mib: int = Field(description="Most memory that scoring took, MiB, once it is over")
    error: str | None = Field(description="Why it failed")
    created: str = Field(examples=["2026-03-01T09:30:00.125Z"])
    started: str | None
    finished: str | None
    expired: bool = Field(description="Its result was kept its time and is gone")

    @classmethod
    def of(cls, job: Job) -> JobStatus:
        """A record as callers see it."""
        return cls(
            id=job.id,
            state=job.state,
            progress=round(job.progress, 4),
            file=job.file,
            bytes=job.bytes,
            by=job.by,
            read=job.read,
            scored=job.scored,
            quarantined=job.quarantined,
            flagged=job.flagged,
            notes=job.notes,
            model=job.digest,
            attempts=job.attempts,
            peak_mib=job.peak_mib,
            error=job.error or None,
            created=_time(job.created_us),
            started=_time(job.started_us) if job.started_us else None,
            finished=_time(job.finished_us) if job.finished_us else None,
            expired=job.expired,
        )


class JobList(BaseModel):
    """Jobs, newest first."""

    jobs: list[JobStatus]


JobId = Annotated[str, "id of a job"]


@router.post(
    "",
    summary="Score a large file",
    status_code=202,
    max_body_size=_UNBOUNDED,
    responses=documented(400, 401, 403, 413, 415, 422, 429, 500, 503, 507),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                **dict.fromkeys((*SUFFIX_OF_TYPE, "application/octet-stream"), _BINARY),
                "multipart/form-data": _FORM,
            },
        }
    },
)
async def send(
    request: Request,
    response: Response,
    filename: Annotated[
        str, Query(max_length=1000, description="Name of the file; its end tells the type")
    ] = "",
) -> JobStatus:
    """Send CSV, TSV, Parquet or JSON lines: as the body, or as the one file of a form.

    The type is told by the file's name (`filename`, or that of `Content-Disposition`), else by
    its content type. The upload goes to disk as it comes; the answer names the job to ask about.

    The file is judged for itself, as `make score` does: the scans that the service remembers play
    no part, and nothing of the file enters its history or its log. It is judged by the champion
    of the time when the job begins.
    """
    with _told():
        job = await _submit(request, jobs_of(request), filename)
    response.headers["Location"] = request.url_for("one_job", job_id=job.id).path
    return JobStatus.of(job)


@router.get("", summary="List jobs", responses=documented(401, 403, 422, 429, 500))
async def list_jobs(
    request: Request, limit: Annotated[int, Query(ge=1, le=MOST_LISTED)] = 100
) -> JobList:
    """Jobs of all callers, newest first."""
    found = await _in_thread(jobs_of(request).newest, limit)
    return JobList(jobs=[JobStatus.of(job) for job in found])


@router.get("/{job_id}", summary="How a job is", responses=documented(401, 403, 404, 429, 500))
async def one_job(job_id: JobId, request: Request) -> JobStatus:
    """State, progress and counts of a job."""
    return JobStatus.of(await _in_thread(jobs_of(request).status, job_id))


@router.get(
    "/{job_id}/result",
    summary="The verdicts of a job",
    response_class=FileResponse,
    responses={
        200: {"content": {"text/csv": _BINARY, "application/vnd.apache.parquet": _BINARY}},
        **_RANGES,
        **documented(401, 403, 404, 409, 410, 422, 429, 500),
    },
)
async def result(
    job_id: JobId,
    request: Request,
    form: Annotated[Literal["csv", "parquet"], Query(alias="format")] = "csv",
) -> FileResponse:
    """One row a scan, in the order of the file, with the columns that `make score` writes.

    409 while there is none, 410 when it was kept its time. Takes `Range`, so that a download that
    was broken off can go on.
    """
    jobs = jobs_of(request)
    path = await _in_thread(jobs.result, job_id, form)
    return await _file(jobs, job_id, path, f"verdicts.{form}", _MEDIA_TYPE[form])


@router.get(
    "/{job_id}/quarantine",
    summary="The rows that could not be read",
    response_class=FileResponse,
    responses={
        200: {"content": {"text/csv": _BINARY}},
        **_RANGES,
        **documented(401, 403, 404, 409, 410, 429, 500),
    },
)
async def quarantine(job_id: JobId, request: Request) -> FileResponse:
    """CSV: where each row stands in the file, and why it could not be read; often a header only."""
    jobs = jobs_of(request)
    path = await _in_thread(jobs.quarantine, job_id)
    return await _file(jobs, job_id, path, "quarantine.csv", _MEDIA_TYPE["csv"])


@router.delete(
    "/{job_id}",
    summary="Cancel or remove a job",
    response_model=JobStatus,
    responses={
        202: {"model": JobStatus, "description": "It is being cancelled."},
        204: {"description": "It was over, and is removed."},
        **documented(401, 403, 404, 429, 500),
    },
)
async def remove(job_id: JobId, request: Request) -> Response:
    """A job that is not over is cancelled, and its files are gone; one that is over is removed."""
    job = await _in_thread(jobs_of(request).cancel, job_id)
    if job is None:
        return Response(status_code=204)
    status = 200 if job.state.over else 202
    return Response(JobStatus.of(job).model_dump_json(), status, media_type="application/json")


@router.websocket("/{job_id}/progress")
async def progress(websocket: WebSocket, job_id: JobId) -> None:
    """The job now and whenever it changes, as `GET /jobs/{id}` tells it; closes at its end.

    A browser sends its key as subprotocol, see `serving.security`. Closed with 1000 after the
    last message, with 4404 where there is no such job.
    """
    offered = websocket.scope.get("subprotocols", [])
    await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
    telling = asyncio.create_task(_tell(websocket, job_id))
    leaving = asyncio.create_task(_left(websocket))
    try:
        await asyncio.wait({telling, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (telling, leaving):
            task.cancel()
        await asyncio.gather(telling, leaving, return_exceptions=True)
    if not telling.cancelled() and (error := telling.exception()) is not None:
        raise error


def jobs_of(connection: HTTPConnection) -> Jobs:
    """The jobs of the service that a request or WebSocket has reached: `app.state.jobs`."""
    jobs: Jobs = connection.app.state.jobs
    return jobs


async def _submit(request: Request, jobs: Jobs, name: str) -> Job:
    """Queue what a request brings."""
    by = str(request.scope.get("trailwatch.caller", ""))
    content_type = request.headers.get("content-type", "")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise JobError(
            Fault.UNKNOWN_TYPE, f"the body is compressed ({encoding[:50]}); send it as it is"
        )
    length = request.headers.get("content-length", "")
    announced = int(length) if length.isdecimal() else None
    body = _body(request)
    if content_type.lower().startswith("multipart/"):
        form = FormFile(body, content_type)
        inner = await form.open()
        return await jobs.submit(
            form.chunks(),
            name or inner,
            content_type=form.content_type,
            length=None if announced is None else max(announced - REST_BYTES, 0),
            by=by,
        )
    name = name or disposition_name(request.headers.get("content-disposition", ""))
    return await jobs.submit(body, name, content_type=content_type, length=announced, by=by)


async def _body(request: Request) -> AsyncIterator[bytes]:
    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect:  # nobody is there to be told, but the upload must not stay
        raise JobError(Fault.BAD_UPLOAD, "the upload was broken off; send it again") from None


async def _file(jobs: Jobs, job_id: str, path: Path, end: str, media_type: str) -> FileResponse:
    stem = Path((await _in_thread(jobs.status, job_id)).file).stem
    return FileResponse(path, media_type=media_type, filename=f"{stem}.{end}")


async def _tell(websocket: WebSocket, job_id: str) -> None:
    try:
        async for job in jobs_of(websocket).watch(job_id):
            await websocket.send_text(JobStatus.of(job).model_dump_json())
        await websocket.close(1000)
    except JobError as error:
        await websocket.close(4404, str(error)[:100])
    except WebSocketDisconnect:
        pass  # it left while it was told


async def _left(websocket: WebSocket) -> None:
    """Wait until the caller is gone; what it says meanwhile does not matter."""
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass


async def _in_thread(call: Callable[..., T], *values: object) -> T:
    """Look at the disk without keeping other requests waiting."""
    with _told():
        return await asyncio.to_thread(call, *values)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Faults become problems."""
    try:
        yield
    except JobError as error:
        wait_s = _RETRY_S.get(error.fault)
        headers = None if wait_s is None else {"Retry-After": str(wait_s)}
        raise Problem(_STATUS[error.fault], str(error), error.fault, headers=headers) from error


def _time(at_us: int) -> str:
    text = datetime.fromtimestamp(at_us / 1e6, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")
