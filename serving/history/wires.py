"""Wires: commands to a Redis or Valkey server or cluster, and their errors as `HistoryError`."""

from __future__ import annotations

import hashlib
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl, urlencode

import redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    ConnectionError,
    NoScriptError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TimeoutError,
)
from redis.retry import Retry

from serving.history import HistoryError

T = TypeVar("T")

SCHEMES: Final = ("redis", "rediss", "unix")
_TIMEOUTS: Final = {"socket_timeout": 5.0, "socket_connect_timeout": 1.0}
"""Seconds; the URL may name others."""
_YES_NO: Final = {"yes": True, "no": False, "": None}


class Script:
    """A Lua script, made of files of this folder, one after the other."""

    def __init__(self, *files: str) -> None:
        folder = Path(__file__).parent
        self.text = "\n".join((folder / file).read_text(encoding="utf-8") for file in files)
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def command(self, keys: Sequence[bytes], arguments: Sequence[bytes | int]) -> list[Any]:
        """The command that runs it, where the server knows it."""
        return ["EVALSHA", self.sha, len(keys), *keys, *arguments]


class Wires:
    """Connections of one store; made when first needed, and again when they broke.

    Args:
        url: of redis-py, with `namespace` and `cluster` in its query.
        scripts: all that will be run.

    Raises:
        ValueError: the URL cannot be used.
    """

    def __init__(self, url: str, scripts: Sequence[Script]) -> None:
        address, _, options = url.partition("?")
        query = dict(parse_qsl(options, keep_blank_values=True))
        self.namespace = query.pop("namespace", "")
        cluster = query.pop("cluster", "")
        if cluster not in _YES_NO or not self.namespace.isascii() or set("{}") & {*self.namespace}:
            raise ValueError(f"{without_password(url)}: cluster is yes or no, a namespace is ASCII")
        self._url = f"{address}?{urlencode(query)}"
        self.name = without_password(url)
        try:
            pool = redis.ConnectionPool.from_url(self._url, **self._options(self._plain_connect))
            pool.make_connection()  # without connecting: it knows the options of a connection
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.name} is no URL of a server: {error}") from error
        self._cluster: bool | None = _YES_NO[cluster]
        self._scripts = {script.sha: script for script in scripts}
        self._client: Any = None
        self._lock = threading.Lock()
        self.connects = 0
        """Connections made so far; one more may mean another server behind the same address."""

    @property
    def cluster(self) -> bool:
        """Whether the server is part of a cluster; asks it, if nobody has said.

        Raises:
            HistoryError: it cannot be asked.
        """
        if self._cluster is None:
            self._cluster = bool(self.told(self._ask))
        return self._cluster

    def run(self, commands: list[list[Any]]) -> list[Any]:
        """Answers of commands, each with keys of one slot only where it is a cluster.

        Raises:
            HistoryError: the server cannot be reached in time, or answers with an error. Commands
                may have been done all the same.
        """
        send = self._to_nodes if self.cluster else self._to_server
        return self.told(lambda: send(commands))

    def told(self, job: Callable[[], T]) -> T:
        """Do something, errors of the server becoming `HistoryError`."""
        try:
            return job()
        except ResponseError as error:
            raise HistoryError(
                f"{self.name} refuses ({error}); see to the server's memory, rights and role"
            ) from error
        except (RedisError, RedisClusterException, OSError) as error:
            raise HistoryError(
                f"{self.name} does not answer ({error}); start the server or correct the URL"
            ) from error

    def close(self) -> None:
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    def _ask(self) -> int:
        with redis.Redis.from_url(self._url, **self._options(self._plain_connect)) as client:
            return int(client.info("cluster").get("cluster_enabled", 0))

    def _to_server(self, commands: list[list[Any]]) -> list[Any]:
        client = self._connected()
        if len(commands) == 1:
            try:
                return [client.execute_command(*commands[0])]
            except NoScriptError:
                return [client.execute_command(*self._with_text(commands[0]))]
        with client.pipeline(transaction=False) as pipe:
            return self._piped(pipe, commands, client)

    def _to_nodes(self, commands: list[list[Any]]) -> list[Any]:
        client = self._connected()
        at: defaultdict[Any, list[int]] = defaultdict(list)
        for i, command in enumerate(commands):
            at[client.get_node_from_key(_first_key(command))].append(i)
        answers: list[Any] = [None] * len(commands)
        for node, places in at.items():
            try:
                with client.get_redis_connection(node).pipeline(transaction=False) as pipe:
                    part = self._piped(pipe, [commands[i] for i in places], client)
            except (ConnectionError, TimeoutError):
                with suppress(RedisError, RedisClusterException, OSError):
                    client.nodes_manager.initialize()  # another node may have taken its place
                raise
            for i, answer in zip(places, part, strict=True):
                answers[i] = answer
        return answers

    def _piped(self, pipe: Any, commands: list[list[Any]], client: Any) -> list[Any]:
        """Answers of commands sent together; what was refused for its script or its node again."""
        for command in commands:
            pipe.execute_command(*command)
        answers: list[Any] = pipe.execute(raise_on_error=False)
        for i, answer in enumerate(answers):
            if isinstance(answer, ResponseError):
                answers[i] = client.execute_command(*self._with_text(commands[i]))
            elif isinstance(answer, Exception):
                raise answer
        return answers

    def _with_text(self, command: list[Any]) -> list[Any]:
        script = self._scripts.get(command[1]) if command[0] == "EVALSHA" else None
        return command if script is None else ["EVAL", script.text, *command[2:]]

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None and self._cluster:
                options = self._options(self._cluster_connect)
                self._client = redis.RedisCluster.from_url(self._url, **options)
            elif self._client is None:
                options = self._options(self._plain_connect)
                self._client = redis.Redis.from_url(self._url, **options)
            return self._client

    def _options(self, connect: Callable[[Any], None]) -> dict[str, Any]:
        # Once more, as a pooled connection may have died since; never after a timeout.
        retry = Retry(NoBackoff(), 1, (ConnectionError,))
        return {**_TIMEOUTS, "retry": retry, "protocol": 2, "redis_connect_func": connect}

    def _plain_connect(self, connection: Any) -> None:
        connection.on_connect()
        self.connects += 1

    def _cluster_connect(self, _: Any) -> None:
        self.connects += 1


def _first_key(command: list[Any]) -> bytes:
    key: bytes = command[3] if command[0].startswith("EVAL") else command[1]
    return key


def without_password(url: str) -> str:
    """A URL as it may stand in a message."""
    scheme, slashes, rest = url.rpartition("://")
    return scheme + slashes + rest.rpartition("@")[2].partition("?")[0]
