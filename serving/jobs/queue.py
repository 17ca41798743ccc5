"""The queue: takes uploads, runs jobs in child processes one after another, keeps and expires them.

All state is on disk, so that several service processes share a folder: a job is run by whoever
holds the lock of its folder, and one of `at_once` slots. Both locks are handed to the child too
and live as long as it does; a child ends when its service does, for its standard input then ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from serving.jobs.errors import Fault, JobError
from serving.jobs.record import CHILD_LOG, GONE, NEW, Folder, Job, Report, State, is_id, lock
from serving.jobs.upload import file_name
from serving.settings import PREFIX, Settings

MOST_DEATHS: Final = 2
"""Attempts of a job that may end without a word; after the last of them it has failed."""
STALE_S: Final = 60.0
"""Age from which on an unlocked upload is one whose service died."""

_MIB: Final = 1 << 20
_WRITE_BYTES: Final = _MIB
_SWEEP_S: Final = 60.0
_CANCEL_S: Final = 10.0
_REST_S: Final = 2.0
_LOG: Final = logging.getLogger("trailwatch")
_ROOT: Final = Path(__file__).parents[2]


class Jobs:
    """The jobs of a folder; one object a service process.

    Args:
        folder: where they are kept; made when needed.
        settings: size limit of uploads, master data, zone, durability.
        bundle: folder of the bundle to judge with now, None while there is none; asked when a job
            is sent and again when it begins.
        at_once: jobs that run at a time, over all processes of the folder.
        keep_days: days that a result is kept, and then its record without it.
        keep_free_mib: MiB of disk that uploads and results leave free for everything else.
        look_s: seconds between looks at the folder, for what other processes did.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        bundle: Callable[[], Path | None],
        *,
        at_once: int = 1,
        keep_days: float = 7.0,
        keep_free_mib: int = 512,
        look_s: float = 0.25,
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.bundle = bundle
        self.at_once = at_once
        self.keep_s = keep_days * 86_400
        self.keep_free = keep_free_mib * _MIB
        self.look_s = look_s
        self._sync = settings.durable == "power"
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._threads: list[threading.Thread] = []
        self._known: dict[str, tuple[tuple[int, int], Job]] = {}

    def start(self) -> None:
        """Begin to run what is queued; jobs that a dead service left are taken up."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._stopping.clear()
        works: list[Callable[[], None]] = [self._keep_house]
        works += [partial(self._work, slot) for slot in range(self.at_once)]
        for work in works:
            thread = threading.Thread(target=work, name="jobs", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Stop running; jobs under way go back to the queue, and that is no death."""
        self._stopping.set()
        self._wake.set()
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    # What requests ask for.

    async def submit(
        self,
        chunks: AsyncIterator[bytes],
        name: str,
        *,
        content_type: str = "",
        length: int | None = None,
        by: str = "",
    ) -> Job:
        """Take a file as it streams in, and queue it.

        Args:
            chunks: its bytes.
            name: what it is called, "" where nothing says so.
            content_type: tells its type where the name does not.
            length: bytes announced, None where nothing is.
            by: who sends it.

        Raises:
            JobError: it cannot be taken; nothing of it is left on disk, nor is when `chunks` fails.
        """
        file = file_name(name, content_type)
        if self.bundle() is None:
            raise JobError(
                Fault.NO_CHAMPION,
                "there is no model yet to judge with; train one, then send it again",
            )
        self._check_size(length or 0)
        upload = _Upload(self.folder, file)
        try:
            buffer = bytearray()
            async for chunk in chunks:
                buffer += chunk
                if len(buffer) >= _WRITE_BYTES:
                    self._check_size(upload.size + len(buffer), here=len(buffer))
                    await asyncio.to_thread(upload.write, buffer)
                    buffer = bytearray()
            self._check_size(upload.size + len(buffer), here=len(buffer))
            await asyncio.to_thread(upload.write, buffer)
            if not upload.size:
                raise JobError(Fault.BAD_UPLOAD, f"{file} is empty; export the scans again")
            job = Job(id=upload.id, file=file, bytes=upload.size, created_us=_now_us(), by=by)
            await asyncio.to_thread(upload.commit, job, self._sync)
        except BaseException as error:
            await asyncio.shield(asyncio.to_thread(upload.discard))
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise JobError(
                    Fault.NO_SPACE, "the service's disk is full; try again later"
                ) from error
            raise
        self._wake.set()
        return job

    def status(self, job_id: str) -> Job:
        """The record of a job.

        Raises:
            JobError: there is none.
        """
        job = self._read(job_id) if is_id(job_id) else None
        if job is None:
            raise _unknown(job_id)
        return job

    def newest(self, limit: int) -> list[Job]:
        """Records, latest first, at most `limit`."""
        found: list[Job] = []
        for job_id in reversed(self._ids()):
            if len(found) >= limit:
                break
            job = self._read(job_id)
            if job is not None:
                found.append(job)
        return found

    def figures(self) -> dict[str, int]:
        """Jobs by state, for metrics."""
        counts = Counter(job.state.value for job in self.newest(sys.maxsize))
        return {state.value: counts[state.value] for state in State}

    def result(self, job_id: str, form: str) -> Path:
        """File of a job's verdicts.

        Args:
            job_id: a job.
            form: "csv" or "parquet".

        Raises:
            JobError: there is no such job, it is not done, or its result is gone.
        """
        return self._kept(job_id, lambda folder: folder.result(form))

    def quarantine(self, job_id: str) -> Path:
        """File of the rows that could not be read, with reasons; raises as `result`."""
        return self._kept(job_id, lambda folder: folder.quarantine)

    def cancel(self, job_id: str) -> Job | None:
        """Cancel a job that is not over; remove one that is.

        Its files are gone when this returns, unless the child that scores it still ends.

        Returns:
            The cancelled job (or one that ended meanwhile, or still runs), None for a removed one.

        Raises:
            JobError: there is none.
        """
        folder = self._folder(job_id)
        over = self.status(job_id).state.over
        try:
            if over:
                folder.remove()
                return None
            folder.ask_to_cancel()
        except FileNotFoundError:  # somebody else has just removed it
            raise _unknown(job_id) from None
        self._wake.set()
        deadline = time.monotonic() + _CANCEL_S
        while time.monotonic() < deadline:
            held = folder.lock()
            if held is not None:
                try:
                    job = self.status(job_id)
                    return job if job.state.over else self._end(job, State.CANCELLED)
                finally:
                    os.close(held)
            time.sleep(0.02)
        return self.status(job_id)

    async def watch(self, job_id: str) -> AsyncIterator[Job]:
        """The job now, and whenever it has changed; ends when it is over.

        Raises:
            JobError: there is none; a job that is removed meanwhile ends the iteration.
        """
        said = await asyncio.to_thread(self.status, job_id)
        yield said
        while not said.state.over:
            await asyncio.sleep(self.look_s)
            try:
                job = await asyncio.to_thread(self.status, job_id)
            except JobError:
                return
            if job != said:
                said = job
                yield said

    # Reading the folder.

    def _folder(self, job_id: str) -> Folder:
        return Folder(self.folder / job_id)

    def _ids(self) -> list[str]:
        """Ids of the jobs that there are, oldest first."""
        try:
            return sorted(filter(is_id, os.listdir(self.folder)))
        except FileNotFoundError:
            return []

    def _read(self, job_id: str) -> Job | None:
        """The record of a job; decoded again only where it has changed."""
        folder = self._folder(job_id)
        stamp = folder.stamp()
        if stamp is None:
            self._known.pop(job_id, None)
            return None
        known = self._known.get(job_id)
        if known is not None and known[0] == stamp:
            return known[1]
        try:
            job = folder.read()
        except msgspec.DecodeError:
            _LOG.exception("the record of job %s cannot be read", job_id)
            return None
        if job is not None:
            self._known[job_id] = stamp, job
        return job

    def _kept(self, job_id: str, path_in: Callable[[Folder], Path]) -> Path:
        job = self.status(job_id)
        if job.expired:
            days = self.keep_s / 86_400
            raise JobError(
                Fault.EXPIRED,
                f"results are kept {days:g} days, this one is gone; send the file again",
            )
        if job.state is not State.DONE:
            why = f": {job.error}" if job.error else ""
            raise JobError(
                Fault.NOT_DONE, f"job {job_id} is {job.state}, so there is no result{why}"
            )
        return path_in(self._folder(job_id))

    def _check_size(self, size: int, here: int | None = None) -> None:
        """Whether an upload of `size` bytes may be, of which `here` are still to be written."""
        if size > self.settings.most_upload_mib * _MIB:
            raise JobError(
                Fault.TOO_LARGE,
                f"the file has more than {self.settings.most_upload_mib} MiB; split it, or raise "
                f"{PREFIX}MOST_UPLOAD_MIB",
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free - (size if here is None else here) < self.keep_free:
            raise JobError(Fault.NO_SPACE, "the service's disk is nearly full; try again later")

    # Running jobs.

    def _work(self, slot: int) -> None:
        """Run one job after another in a slot; nothing that goes wrong ends this."""
        while not self._stopping.is_set():
            ran = False
            try:
                held = lock(self.folder / f"slot-{slot}.lock")
                if held is not None:
                    try:
                        ran = self._run_next(held)
                    finally:
                        os.close(held)
            except Exception:
                _LOG.exception("a job could not be run")
                self._stopping.wait(_REST_S)
            if not ran:
                self._wake.wait(self.look_s)
                self._wake.clear()

    def _run_next(self, slot: int) -> bool:
        """Run the oldest job that waits; whether there was one."""
        bundle = self.bundle()
        for job_id in self._ids():
            known = self._known.get(job_id)
            if known is not None and known[1].state.over:
                continue
            job = self._read(job_id)
            if job is None or job.state.over:
                continue
            held = self._folder(job_id).lock()
            if held is None:
                continue
            try:
                if self._run_locked(job_id, bundle, (slot, held)):
                    return True
            finally:
                os.close(held)
        return False

    def _run_locked(self, job_id: str, bundle: Path | None, locks: tuple[int, int]) -> bool:
        """Run a job whose lock is held, if it is still to be run; whether something was done."""
        folder = self._folder(job_id)
        job = self._read(job_id)
        if job is None or job.state.over:
            return False
        if folder.asked_to_cancel:
            self._end(job, State.CANCELLED)
            return True
        if job.state is State.RUNNING:
            job = self._died(job, "the service stopped while it ran")
            if job.state.over:
                return True
        if bundle is None:
            return False
        job = msgspec.structs.replace(
            job,
            state=State.RUNNING,
            attempts=job.attempts + 1,
            started_us=_now_us(),
            progress=0.0,
            read=0,
            scored=0,
            quarantined=0,
        )
        folder.write(job, sync=self._sync)
        try:
            with (folder.path / CHILD_LOG).open("wb") as said:
                child = self._child(folder, bundle, locks, said.fileno())
        except OSError as error:
            self._died(job, f"no process could be started: {error.strerror}")
            return True
        with child:
            try:
                job = self._follow(child, folder, job)
            except BaseException:
                child.kill()
                raise
        if not job.state.over:
            self._ended_early(child, folder, job)
        else:
            self._end(job, job.state)
        return True

    def _child(
        self, folder: Folder, bundle: Path, locks: tuple[int, int], errors: int
    ) -> subprocess.Popen[bytes]:
        words = ["--folder", str(folder.path), "--bundle", str(bundle)]
        words += ["--zone", self.settings.zone, "--keep-free", str(self.keep_free)]
        for name in ("sites", "registry"):
            if given := getattr(self.settings, name):
                words += [f"--{name}", given]
        path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        return subprocess.Popen(
            [sys.executable, "-m", "serving.jobs", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            pass_fds=locks,
            start_new_session=True,  # so that Ctrl-C reaches it through `stop` alone
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )

    def _follow(self, child: subprocess.Popen[bytes], folder: Folder, job: Job) -> Job:
        """Write down what a child says, until it ends or must; returns the job as it then is."""
        assert child.stdout is not None
        rest = b""
        with selectors.DefaultSelector() as ready:
            ready.register(child.stdout, selectors.EVENT_READ)
            while True:
                if self._stopping.is_set() or folder.asked_to_cancel:
                    child.kill()
                if not ready.select(self.look_s):
                    continue
                chunk = os.read(child.stdout.fileno(), 65_536)
                if not chunk:
                    child.wait()
                    return job
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    job = msgspec.json.decode(line, type=Report).onto(job)
                if not job.state.over:
                    self._note(folder, job)

    def _note(self, folder: Folder, job: Job) -> None:
        """Write down progress, as far as there is room for it."""
        try:
            folder.write(job)
        except OSError as error:
            _LOG.warning("progress of job %s is not written: %s", job.id, error)

    def _ended_early(self, child: subprocess.Popen[bytes], folder: Folder, job: Job) -> None:
        """What becomes of a job whose child ended without having said how it went."""
        if folder.asked_to_cancel:
            self._end(job, State.CANCELLED)
        elif self._stopping.is_set():
            again = msgspec.structs.replace(
                job, state=State.QUEUED, progress=0.0, attempts=job.attempts - 1
            )
            folder.write(again, sync=self._sync)
        else:
            self._died(job, _cause(child.returncode, folder.path / CHILD_LOG))

    def _died(self, job: Job, cause: str) -> Job:
        """Note a death: back to the queue after the first, failed after the last."""
        deaths = [*job.deaths, cause]
        _LOG.warning("job %s died in attempt %d: %s", job.id, job.attempts, cause)
        job = msgspec.structs.replace(job, deaths=deaths, state=State.QUEUED, progress=0.0)
        if len(deaths) >= MOST_DEATHS:
            told = "; then ".join(dict.fromkeys(deaths))
            error = f"scoring died {len(deaths)} times: {told}; send the file again, or split it"
            return self._end(msgspec.structs.replace(job, error=error), State.FAILED)
        folder = self._folder(job.id)
        folder.clear(upload=False, results=True)
        folder.write(job, sync=self._sync)
        return job

    def _end(self, job: Job, state: State) -> Job:
        """Write down that a job is over, and remove what it no longer needs.

        Unless it is done, that is removed first: it makes room for the record on a full disk.
        """
        done = state is State.DONE
        job = msgspec.structs.replace(
            job, state=state, finished_us=_now_us(), progress=1.0 if done else job.progress
        )
        folder = self._folder(job.id)
        if not done:
            folder.clear(upload=True, results=True)
        folder.write(job, sync=self._sync)
        folder.clear(upload=True, results=not done)
        folder.forget_to_cancel()
        return job

    # Keeping house.

    def _keep_house(self) -> None:
        while True:
            try:
                self.sweep()
            except Exception:
                _LOG.exception("old jobs could not be removed")
            if self._stopping.wait(min(_SWEEP_S, max(self.keep_s / 4, self.look_s))):
                return

    def sweep(self) -> None:
        """Remove results whose time is over, later their records, and what dead services left."""
        now_us, ids = _now_us(), self._ids()
        for job_id in self._known.keys() - set(ids):
            self._known.pop(job_id, None)
        for job_id in ids:
            job = self._read(job_id)
            if job is None or not job.state.over:
                continue
            age_s = (now_us - job.finished_us) / 1e6
            folder = self._folder(job_id)
            if age_s > 2 * self.keep_s:
                with contextlib.suppress(FileNotFoundError):
                    folder.remove()
            elif age_s > self.keep_s and not job.expired:
                held = folder.lock()
                if held is not None:
                    folder.clear(upload=True, results=True)
                    folder.write(msgspec.structs.replace(job, expired=True))
                    os.close(held)
        for path in self.folder.iterdir():
            if path.name.startswith(GONE) or (path.name.startswith(NEW) and _abandoned(path)):
                shutil.rmtree(path, ignore_errors=True)


class _Upload:
    """A file on its way in: a locked folder that becomes a job's when the file is complete.

    A request may be broken off while one of its calls still runs in a thread; so each call waits
    for the one before it, and after the last there is nothing more to do.
    """

    def __init__(self, folder: Path, file: str) -> None:
        self.id = f"{_now_us():016x}{secrets.token_hex(8)}"
        self.size = 0
        self._home = folder / self.id
        self._new = Folder(folder / f"{NEW}{self.id}")
        self._new.upload.mkdir(parents=True)
        self._lock = self._new.lock()
        self._file = (self._new.upload / file).open("wb", buffering=0)
        self._turn = threading.Lock()
        self._over = False

    def write(self, data: bytearray) -> None:
        with self._turn:
            view = memoryview(data)
            while view and not self._over:
                view = view[self._file.write(view) :]
            self.size += len(data)

    def commit(self, job: Job, sync: bool) -> None:
        """Make it a job."""
        with self._turn:
            if self._over:
                return
            if sync:
                os.fsync(self._file.fileno())
            self._new.write(job, sync=sync)
            os.rename(self._new.path, self._home)
            if sync:
                above = os.open(self._home.parent, os.O_RDONLY)
                os.fsync(above)
                os.close(above)
            self._release()

    def discard(self) -> None:
        """Leave nothing, unless it is a job already."""
        with self._turn:
            if not self._over:
                shutil.rmtree(self._new.path, ignore_errors=True)
                self._release()

    def _release(self) -> None:
        self._over = True
        self._file.close()
        if self._lock is not None:
            os.close(self._lock)


def _unknown(job_id: str) -> JobError:
    return JobError(Fault.UNKNOWN_JOB, f"there is no job {job_id[:64]!r}, or no more")


def _abandoned(path: Path) -> bool:
    """Whether an upload's service has died."""
    try:
        if time.time() - path.stat().st_mtime < STALE_S:
            return False
    except FileNotFoundError:
        return False
    held = Folder(path).lock()
    if held is None:
        return False
    os.close(held)
    return True


def _cause(status: int, log: Path) -> str:
    """Why a child ended, in words."""
    if status < 0:
        name = signal.Signals(-status).name
        memory = ", perhaps for want of memory" if -status == signal.SIGKILL else ""
        return f"the scoring process was ended by {name}{memory}"
    last = log.read_text("utf-8", "replace").strip().splitlines()[-1:]
    said = f": {last[0][:300]}" if last else ""
    return f"the scoring process ended with status {status}{said}"


def _now_us() -> int:
    return time.time_ns() // 1000
