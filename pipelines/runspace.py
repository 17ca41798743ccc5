"""Where one run works: a clone of its own at a pinned commit, with the shared DVC cache.

`<runs>/<dag>/<run>/` holds `run.json`, what is known of the run, and `workspace/`, the clone. Two
runs, or a run and a person's `dvc repro`, so never lock each other. Whatever was killed half-way is
done again from what run.json pins.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import psutil
import yaml

from logbook.opened import default_url
from pipelines import params
from pipelines.progress import say

RUN_ID: Final = "TRAILWATCH_RUN_ID"
"""Variable by which a run's processes know it, and are known."""
_LONGEST: Final = 80
_PATIENCE_S: Final = 30
_NAMES: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_AUTHOR: Final = {
    f"GIT_{role}_{what}": value
    for role in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "Trailwatch"), ("EMAIL", "trailwatch@localhost"))
}


class RunError(RuntimeError):
    """A run cannot go on; says what is wrong and what to do."""


class Skip(Exception):  # noqa: N818
    """A run has nothing to do; says why."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are, from the environment.

    Attributes:
        home: the checkout, `TRAILWATCH_HOME`.
        runs: folder of all runs, `TRAILWATCH_RUNS`.
        model: registered model, `TRAILWATCH_MODEL`.
        log: URL of the prediction log, `TRAILWATCH_LOG`.
        remote: URL of the DVC remote, `TRAILWATCH_DVC_REMOTE`; "" for the one in .dvc/config, or
            a folder beside the runs.
        service: URL of a service whose site book is asked, `TRAILWATCH_SERVING_URL`; "" for none.
    """

    home: Path
    runs: Path
    model: str
    log: str
    remote: str
    service: str

    @classmethod
    def read(cls, given: Mapping[str, str] | None = None) -> Places:
        """Read the environment."""
        env = os.environ if given is None else given
        home = Path(env.get("TRAILWATCH_HOME") or ".").resolve()
        model = env.get("TRAILWATCH_MODEL") or "trailwatch"
        return cls(
            home=home,
            runs=(home / (env.get("TRAILWATCH_RUNS") or "state/runs")).resolve(),
            model=model,
            log=env.get("TRAILWATCH_LOG") or default_url(home, model),
            remote=env.get("TRAILWATCH_DVC_REMOTE") or "",
            service=env.get("TRAILWATCH_SERVING_URL") or "",
        )


class Run:
    """A run by its DAG and its id.

    Attributes:
        id: as Airflow knows it.
        dag: id of its DAG.
        places: where things are.
        folder: of this run.
        workspace: the clone.
    """

    def __init__(self, id: str, dag: str, places: Places) -> None:
        """Name a run; nothing is made yet.

        Raises:
            RunError: the DAG's name or the id cannot be used.
        """
        if not id.strip() or not _NAMES.fullmatch(dag):
            raise RunError(f"run {id!r} of DAG {dag!r}: give an id, and a DAG's name of letters")
        self.id, self.dag, self.places = id, dag, places
        self.name = _plain(id)
        self.folder = places.runs / dag / self.name
        self.workspace = self.folder / "workspace"
        self.branch = f"runs/{dag}/{self.name}"

    @property
    def record(self) -> dict[str, Any]:
        """What is known of the run; empty before it began."""
        path = self.folder / "run.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def note(self, **more: Any) -> dict[str, Any]:
        """Add to the record; it is there whole or as before."""
        record = {**self.record, **more}
        self.folder.mkdir(parents=True, exist_ok=True)
        fresh = self.folder / "run.json.fresh"
        fresh.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        os.replace(fresh, self.folder / "run.json")
        return record

    @contextmanager
    def alone(self, take_over: bool = False) -> Iterator[None]:
        """Hold the run: one process at a time works on it, after what a killed one left has ended.

        Args:
            take_over: stop whoever holds it. A scheduler that tries a task again has given the
                attempt before up, whose process may live on all the same.

        Raises:
            RunError: another process holds it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("a+") as lock:
            if not _locked(lock) and not (take_over and self._taken_over(lock)):
                raise RunError(f"another process works on run {self.id!r}; wait until it has ended")
            lock.seek(0)
            lock.truncate()
            mine = psutil.Process()
            lock.write(json.dumps({"pid": mine.pid, "created": mine.create_time()}))
            lock.flush()
            self._end_leftovers()
            yield

    def _taken_over(self, lock: IO[str]) -> bool:
        """Stop the process that holds the lock, and take it."""
        lock.seek(0)
        holder = json.loads(lock.read() or "{}")
        with suppress(psutil.Error, KeyError):
            process = psutil.Process(holder["pid"])
            if abs(process.create_time() - holder["created"]) < 1:
                say(f"runs: stopping process {process.pid}, an attempt that was given up")
                process.kill()
                process.wait(_PATIENCE_S)
        until = time.monotonic() + _PATIENCE_S
        while not _locked(lock):
            if time.monotonic() > until:
                return False
            time.sleep(0.1)
        return True

    def _end_leftovers(self) -> None:
        """Stop what a killed attempt left running in the workspace, and release DVC's lock."""
        left = [process for process in psutil.process_iter() if self._mine(process)]
        for process in left:
            say(f"runs: stopping process {process.pid}, left by an attempt that was killed")
            with suppress(psutil.Error, OSError):
                process.kill()
        psutil.wait_procs(left, timeout=_PATIENCE_S)
        stale = self.workspace / ".dvc" / "tmp" / "rwlock"
        if stale.exists() and stale.read_text() != "{}":
            # DVC itself lets go of a dead process's lock, but not if another one has its number,
            # and it cannot read the empty file that a kill while it writes leaves.
            say("runs: removing the DVC lock of an attempt that was killed")
            stale.unlink()

    def _mine(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error, OSError):
            if process.pid == os.getpid():
                return False
            at = Path(process.cwd())
            return at.is_relative_to(self.workspace) and process.environ().get(RUN_ID) == self.id
        return False

    def environment(self) -> dict[str, str]:
        """Environment of the run's processes: this one's, with this Python first on the path."""
        as_of = self.record.get("options", {}).get("as_of")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "PYTHONPATH"))}
        return {
            # A server that is down is said to be down after seconds; the scheduler tries again.
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
            **kept,
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
            "TRAILWATCH_HOME": str(self.places.home),
            "TRAILWATCH_DAG_ID": self.dag,
            RUN_ID: self.id,
            **({"TRAILWATCH_AS_OF": as_of} if as_of else {}),
            "DVC_NO_ANALYTICS": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "GX_ANALYTICS_ENABLED": "false",
        }

    def call(self, *words: str, at: Path | None = None) -> str:
        """Run a command in the workspace; returns what it printed.

        Raises:
            RunError: it failed; the message is its own.
        """
        done = subprocess.run(
            words, cwd=at or self.workspace, env=self.environment(), capture_output=True, text=True
        )
        if done.returncode:
            lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
            said = [line for line in lines if line and not line.startswith("Having any troubles")]
            raise RunError(f"{shown(words)}: {' '.join(said[-4:]) or 'failed'}")
        return done.stdout.strip()

    def dvc(self, *words: str) -> str:
        """A DVC command in the workspace."""
        return self.call(sys.executable, "-m", "dvc", *words)

    def git(self, *words: str) -> str:
        """A git command in the workspace."""
        return self.call("git", *words)

    def commit(self, message: str, *paths: str) -> None:
        """Commit some files on the run's branch, if they differ.

        The date is that of the commit before, so that the same content is the same commit however
        often a run is repeated.
        """
        self.git("add", "--", *paths)
        if not self.git("diff", "--cached", "--name-only"):
            return
        date = self.git("show", "--no-patch", "--format=%cI", "HEAD")
        command = ["git", "-c", "core.hooksPath=/dev/null", "-c", "commit.gpgSign=false"]
        done = subprocess.run(
            [*command, "commit", "--quiet", "-m", message],
            cwd=self.workspace,
            env={
                **self.environment(),
                **_AUTHOR,
                "GIT_AUTHOR_DATE": date,
                "GIT_COMMITTER_DATE": date,
            },
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RunError(f"git commit: {done.stderr.strip() or done.stdout.strip()}")


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def prepare(run: Run, options: Mapping[str, Any]) -> bool:
    """Make the run's workspace, unless it is there; returns whether it had to.

    Args:
        run: the run.
        options: what was asked for, see `pipelines.runs`; kept from the first attempt on.

    Raises:
        RunError: the home is no git repository, or the data it pins are nowhere to be found.
    """
    record = run.record
    if not record.get("commit"):
        record = run.note(commit=_head(run.places.home), options=dict(options), id=run.id)
    if (run.folder / "prepared").exists() and (run.workspace / ".git").is_dir():
        say(f"prepare: {run.workspace} is there")
        return False
    remove(run)
    commit = record["commit"]
    words = ("git", "clone", "--quiet", "--no-checkout", str(run.places.home), str(run.workspace))
    run.call(*words, at=run.folder)
    run.git("checkout", "--quiet", "-B", run.branch, commit)
    configure(run)
    _installation(run)
    pin(run)
    _params(run, record["options"])
    (run.folder / "prepared").write_text(f"{commit}\n")
    say(f"prepare: {run.workspace} at commit {commit[:12]}, branch {run.branch}")
    return True


def pin(run: Run) -> None:
    """Bring `data/` to what the workspace's data.dvc pins."""
    if not (run.workspace / "data.dvc").exists():
        raise RunError(
            f"commit {run.record['commit'][:12]} of {run.places.home} pins no data; "
            "`dvc add data`, commit data.dvc, and start a new run"
        )
    try:
        run.dvc("checkout", "--force", "data.dvc")
        return
    except RunError as missing:
        say(f"prepare: {missing}")
    try:
        run.dvc("pull", "--force", "data.dvc")
    except RunError as error:
        _adopt(run, error)


def _adopt(run: Run, missing: RunError) -> None:
    """Take the home's own `data/` into the cache, if it is what data.dvc pins."""
    theirs, mine = run.places.home / "data", run.workspace / "data"
    pinned = data_hash(run)
    if theirs.is_dir():
        shutil.rmtree(mine, ignore_errors=True)
        shutil.copytree(theirs, mine)
        run.dvc("add", "data")
        if data_hash(run) == pinned:
            return
        run.git("checkout", "HEAD", "--", "data.dvc")
    raise RunError(
        f"the data that data.dvc pins ({pinned}) are neither in the DVC cache nor in its remote, "
        f"nor in {theirs}; make them with `make data`, or `dvc push` where they are: {missing}"
    ) from missing


def data_hash(run: Run) -> str:
    """Hash of the data that the workspace pins."""
    pinned = yaml.safe_load((run.workspace / "data.dvc").read_text())
    return str(pinned["outs"][0]["md5"])


def change_params(run: Run, changes: Mapping[str, Any], message: str) -> None:
    """Change entries of params.yaml, named like `train.epochs`, and commit; comments stay."""
    params.change(run.workspace / "params.yaml", changes)
    run.commit(message, "params.yaml")


def remove(run: Run) -> None:
    """Remove the workspace, whole or half-made."""
    (run.folder / "prepared").unlink(missing_ok=True)
    for name in ("workspace", "data.new", "site-cache"):
        shutil.rmtree(run.folder / name, ignore_errors=True)


def shown(words: tuple[str, ...]) -> str:
    """A command as a person would write it."""
    python = words[:2] == (sys.executable, "-m")
    return " ".join(words[2:] if python else words)


def _head(home: Path) -> str:
    done = subprocess.run(
        ["git", "-C", str(home), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    if done.returncode:
        raise RunError(
            f"TRAILWATCH_HOME is {str(home)!r}: {done.stderr.strip()}; a run works in a clone of "
            "it, so make it a git repository with a commit"
        )
    return done.stdout.strip()


def configure(run: Run) -> None:
    """The clone's own DVC settings: the shared cache, the remote, nothing outside its folder.

    Raises:
        RunError: the home's DVC cannot be used.
    """
    from dvc.config import Config
    from dvc.exceptions import DvcException

    home, given = run.places.home, run.places.remote
    try:
        theirs = Config(dvc_dir=str(home / ".dvc"))
    except DvcException as error:
        raise RunError(f"the settings of DVC in {home} cannot be read: {error}") from error
    cache = theirs["cache"].get("dir") or home / ".dvc" / "cache"
    lines = ["[core]", f"    site_cache_dir = {run.folder / 'site-cache'}"]
    own = given or (not theirs["remote"] and str(home / "state" / "dvc-remote"))
    if own:
        url = own if "://" in own else str((home / own).resolve())
        lines += ["    remote = runs", "['remote \"runs\"']", f"    url = {url}"]
    lines += ["[cache]", f"    dir = {cache}", ""]
    (run.workspace / ".dvc" / "config.local").write_text("\n".join(lines))


def _installation(run: Run) -> None:
    """Another model's own params.yaml and data, where it has a workspace in the home."""
    own = run.places.home / "workspaces" / run.places.model
    for name in ("params.yaml", "data.dvc"):
        if (own / name).exists():
            shutil.copyfile(own / name, run.workspace / name)
    if own.is_dir():
        run.commit(f"Take data and settings of {run.places.model}", "params.yaml", "data.dvc")


def _params(run: Run, options: Mapping[str, Any]) -> None:
    changes: dict[str, Any] = {}
    said = yaml.safe_load((run.workspace / "params.yaml").read_text())
    wanted = str(options.get("model") or run.places.model)
    if said["register"]["model"] != wanted:
        changes["register.model"] = wanted
    if options.get("epochs"):
        changes["train.epochs"] = int(options["epochs"])
    if changes:
        told = ", ".join(f"{name} {value}" for name, value in changes.items())
        change_params(run, changes, f"Set {told}")


def _plain(id: str) -> str:
    """An id as the name of a folder and a branch; one that had to be changed ends in a hash."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", id).strip("-")[:_LONGEST]
    if plain == id:
        return plain
    return f"{plain}-{hashlib.sha256(id.encode()).hexdigest()[:8]}".lstrip("-")
