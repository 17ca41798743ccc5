"""The registry tells which bundle stands behind an alias, and never hands out a broken one."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from models import bundle, registry
from tests.models.small_bundles import ROOT, environment, move, registered, small_bundle


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Two bundles, registered as versions 1 and 2 of `small` in a SQLite store; read-only."""
    base = tmp_path_factory.mktemp("registry")
    folders = [small_bundle(base / name / "bundle", seed) for seed, name in enumerate("ab")]
    registered(base / "home", "small", *folders)
    return base


@pytest.fixture
def home(small, tmp_path):
    """A copy of the store; its files lie where they were registered."""
    shutil.copy(small / "home" / "mlflow.db", tmp_path / "mlflow.db")
    return tmp_path


def ask(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process ask the store of `home`."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")


def digest(small: Path, name: str) -> str:
    return bundle.verify(small / name / "bundle")


class Child:
    """A watching child process and the lines that it prints."""

    def __init__(self, home: Path, *words: str, every: float = 0.2, **more: str) -> None:
        command = [sys.executable, "-m", "models.registry", "watch", "--model", "small"]
        self.process = subprocess.Popen(
            [*command, "--cache", str(home / "cache"), "--every", str(every), *words],
            cwd=ROOT,
            env=environment(home, **more),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def line(self) -> dict:
        return json.loads(self.process.stdout.readline())

    def until(self, event: str, **wanted: object) -> dict:
        """The next line of this kind; the child prints one at least every few polls."""
        patience = time.monotonic() + 300
        while time.monotonic() < patience:
            line = self.line()
            if line["event"] == event and wanted.items() <= line.items():
                return line
        raise AssertionError(f"no line {event} {wanted}")


@contextmanager
def watching(home: Path, *words: str, **more):
    child = Child(home, *words, **more)
    try:
        yield child
    finally:
        child.process.stdin.close()
        assert child.process.wait(timeout=20) == 0


def test_versions_come_into_the_cache_whole_and_changes_are_told(small, home):
    with watching(home, "--aliases", "champion,challenger") as child:
        first, second = child.line(), child.line()
        assert (first["alias"], first["version"]) == ("champion", "1")
        assert (second["alias"], second["version"]) == ("challenger", "2")
        assert child.line() == {"event": "checked"}
        for line, name in ((first, "a"), (second, "b")):
            assert line["digest"] == digest(small, name)
            assert bundle.verify(Path(line["folder"])) == digest(small, name)
            assert Path(line["folder"]).parent == home / "cache"
        assert sorted(p.name for p in (home / "cache").iterdir()) == sorted(
            f"{i}-{digest(small, name)[:12]}" for i, name in ((1, "a"), (2, "b"))
        )
        move(home, "small", champion="2", challenger="")
        assert child.until("version")["version"] == "2"
        assert child.until("gone")["alias"] == "challenger"
        # Nothing is told twice.
        for _ in range(3):
            assert child.line() == {"event": "checked"}


def artifacts(small: Path, name: str) -> Path:
    """Where the store keeps a bundle."""
    wanted = digest(small, name)
    for path in (small / "home" / "mlartifacts").rglob("bundle/digest.json"):
        if json.loads(path.read_text())["sha256"] == wanted:
            return path.parent
    raise AssertionError(f"{name} is not in the store")


@contextmanager
def broken(folder: Path, how: str):
    """Break a registered bundle, and mend it."""
    kept = folder.with_name("kept")
    shutil.copytree(folder, kept)
    try:
        if how == "changed byte":
            content = bytearray((folder / "lstm.onnx").read_bytes())
            content[len(content) // 2] ^= 1
            (folder / "lstm.onnx").write_bytes(content)
        elif how == "missing file":
            (folder / "network.json").unlink()
        elif how == "other features":
            listed = {"version": 1, "features": ["phase_of_moon"]}
            (folder / "features.json").write_text(json.dumps(listed))
            (folder / "digest.json").write_text(json.dumps({"sha256": bundle._digest(folder)}))
        elif how == "another bundle":
            (folder / "params.json").write_text('{"other": 1}')
            bundle.seal(folder)
        yield
    finally:
        shutil.rmtree(folder)
        kept.rename(folder)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("changed byte", "was changed"),
        ("missing file", "was changed"),
        ("other features", "bundle of version 2 was trained on other features"),
        ("another bundle", "registered with bundle"),
    ],
)
def test_a_broken_bundle_is_refused_once_and_leaves_no_trace(small, home, how, says, monkeypatch):
    ask(home, monkeypatch)
    lines: list[dict] = []
    with broken(artifacts(small, "b"), how):
        registry.watch("small", ["challenger"], 0, home / "cache", lines.append, rounds=6)
    told = [line for line in lines if line["event"] != "checked"]
    assert [line["event"] for line in told] == ["refused"]
    assert told[0]["version"] == "2"
    assert re.search(says, told[0]["error"])
    assert list((home / "cache").iterdir()) == []


def test_a_mended_bundle_is_taken_without_a_new_version(small, home, monkeypatch):
    ask(home, monkeypatch)
    lines: list[dict] = []
    watch = registry.Watch("small", ["challenger"], home / "cache", lines.append)
    with broken(artifacts(small, "b"), "missing file"):
        watch.look()
    for _ in range(3):
        watch.look()
    assert [line["event"] for line in lines] == ["refused", "version"]


def test_a_version_that_stays_broken_is_tried_ever_more_rarely(small, home, monkeypatch):
    ask(home, monkeypatch)
    tries: list[int] = []
    watch = registry.Watch("small", ["challenger"], home / "cache", lambda line: None)

    def refuse(*_: object) -> None:
        tries.append(look)
        raise bundle.BundleError("broken")

    monkeypatch.setattr(registry, "cached", refuse)
    for look in range(40):  # noqa: B007 - read by refuse
        watch.look()
    assert tries == [0, 2, 5, 10, 19, 36]


def test_a_cached_copy_that_was_changed_is_fetched_anew(small, home, monkeypatch):
    ask(home, monkeypatch)
    registry.client()
    version = registry.Version("1", digest(small, "a"))
    folder, _ = registry.cached("small", version, home / "cache")
    (folder / "lstm.onnx").write_bytes(b"")
    again, found = registry.cached("small", version, home / "cache")
    assert (again, found) == (folder, version.digest)
    assert bundle.verify(folder) == version.digest


def test_looking_makes_no_store(tmp_path, monkeypatch):
    ask(tmp_path, monkeypatch)
    lines: list[dict] = []
    registry.watch("small", ["champion"], 0, tmp_path / "cache", lines.append, rounds=2)
    assert [line["event"] for line in lines] == ["gone", "checked", "checked"]
    assert not (tmp_path / "mlflow.db").exists()


def test_a_store_that_cannot_be_asked_is_an_error_and_no_missing_champion(home, monkeypatch):
    ask(home, monkeypatch)
    lines: list[dict] = []
    watch = registry.Watch("small", ["champion"], home / "cache", lines.append)
    watch.look()
    (home / "mlflow.db").write_bytes(b"no database at all" * 500)
    with pytest.raises(Exception, match=r"database|sqlite"):
        watch.look()
    assert [line["event"] for line in lines] == ["version"]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def test_a_store_behind_http_is_watched_through_its_outage(small, home):
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    server = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    server += [
        "--backend-store-uri",
        f"sqlite:///{home}/mlflow.db",
        "--disable-security-middleware",
    ]
    started = subprocess.Popen(
        [*server, "--serve-artifacts", "--artifacts-destination", str(home / "artifacts")],
        cwd=home,
        env=environment(home),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        with watching(home, MLFLOW_TRACKING_URI=uri, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0") as child:
            found = child.until("version")
            assert found["version"] == "1"
            assert bundle.verify(Path(found["folder"])) == digest(small, "a")
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()
            assert child.until("error")["error"]
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()


def test_the_child_ends_when_its_parent_is_killed(home):
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'models.registry', 'watch', '--model',"
        f" 'small', '--cache', {str(home / 'cache')!r}], stdin=subprocess.PIPE,"
        " stdout=subprocess.DEVNULL)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(home),
        stdout=subprocess.PIPE,
        text=True,
    )
    child = int(parent.stdout.readline())
    assert Path(f"/proc/{child}").exists()
    time.sleep(0.5)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(child)


def running(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def fetched(home: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "models.registry", "fetch", *words],
        cwd=ROOT,
        env=environment(home),
        capture_output=True,
        text=True,
    )


def test_fetch_prints_folder_and_version(small, home):
    done = fetched(home, "--model", "small", "--alias", "challenger")
    folder, version = done.stdout.strip().split("\t")
    assert version == "2"
    assert bundle.verify(Path(folder)) == digest(small, "b")


def test_fetch_says_what_is_missing(home):
    done = fetched(home, "--model", "other")
    assert done.returncode == 1
    assert "'other' has no champion" in done.stderr
    assert done.stdout == ""
