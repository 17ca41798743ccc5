"""`python -m serving`: the service on a port, for this machine unless the settings say more."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import signal
import socket
import sys
from typing import Any, Final

import uvicorn
from fastapi import FastAPI

from logbook import LogError
from serving import workers
from serving.app import check, create_app
from serving.history import HistoryError
from serving.routes.health import who_judges
from serving.settings import PREFIX, Settings, SettingsError
from serving.telemetry import log_json

CANNOT_START: Final = 2
_GRACE_S: Final = 30
_IDLE_S: Final = 30
_LOG: Final = logging.getLogger("trailwatch")
_UVICORN: Final[dict[str, Any]] = {
    "loop": "uvloop",
    "http": "httptools",
    "lifespan": "on",
    "log_config": None,
    "access_log": False,
    "server_header": False,
    "timeout_keep_alive": _IDLE_S,
    "timeout_graceful_shutdown": _GRACE_S,
}
_OPTIONS: Final = {
    "home": "folder of the state and of the local registry",
    "host": "address to listen on",
    "port": "port to listen on",
    "model": "registered model whose champion judges",
    "sites": "site master file",
    "registry": "file of genuine products",
    "history": "lmdb:<folder>, redis://host:port/db, or memory:",
    "workers": "processes that answer",
}


class _Server(uvicorn.Server):
    """Says where it listens and who judges, once it does."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, settings: Settings) -> None:
        super().__init__(config)
        self._app = app
        self._settings = settings

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        address = _address(self._settings)
        print(f"Trailwatch listens on {address} (API: {address}/docs)")
        print(f"It judges with {who_judges(self._app.state.service)}.")
        if not self._app.state.gate.keys:
            print("There are no API keys: only this machine may ask.")
        sys.stdout.flush()


def environment_of(words: list[str]) -> dict[str, str]:
    """What the command line says, as variables of the environment."""
    parser = argparse.ArgumentParser(prog="python -m serving", description="Serve verdicts.")
    for name, meaning in _OPTIONS.items():
        parser.add_argument(f"--{name}", help=f"{meaning} (else {PREFIX}{name.upper()})")
    given = {name: text for name, text in vars(parser.parse_args(words)).items() if text}
    return {PREFIX + name.upper(): text for name, text in given.items()}


def listening(host: str, port: int) -> socket.socket:
    """A socket bound to an address.

    Raises:
        SettingsError: the port is taken, or the address is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SettingsError(
                f"port {port} of {host} is taken; stop what listens there, or choose another "
                f"({PREFIX}PORT, or make serve PORT={port + 1})"
            ) from error
        raise SettingsError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return bound


def main(words: list[str]) -> int:
    """Serve until SIGTERM or SIGINT.

    Returns:
        0 after a signal, 2 where the settings or a store do not let it start.
    """
    log_json()
    # uvicorn raises the signal that stopped it once more, after it has stopped
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        given = environment_of(words)
        settings = Settings.read({**os.environ, **given})
        if settings.workers > 1:
            os.environ.update(given)  # workers read it themselves
            return _with_workers(settings)
        app = create_app(settings)
        bound = listening(settings.host, settings.port)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return CANNOT_START
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # failures are told below
    config = uvicorn.Config(app, **_UVICORN)
    with bound:
        try:
            _Server(config, app, settings).run([bound])
        except KeyboardInterrupt:
            return 0
        except SystemExit:
            return _told(getattr(app.state, "failed", None))
    return 0


def _with_workers(settings: Settings) -> int:
    """Serve with several processes; as `main`.

    Raises:
        SettingsError: the settings cannot be used.
    """
    try:
        with listening(settings.host, settings.port) as bound:
            check(settings)
            print(
                f"Trailwatch starts {settings.workers} workers on {_address(settings)} "
                f"(API: {_address(settings)}/docs)",
                flush=True,
            )
            workers.run(settings, bound, _UVICORN)
    except (HistoryError, LogError) as error:
        print(error, file=sys.stderr)
        return CANNOT_START
    return 0


def _address(settings: Settings) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{settings.port}"


def _told(failed: Exception | None) -> int:
    """The exit status, after saying why the service could not start."""
    if failed is None:
        return 0
    if isinstance(failed, SettingsError | HistoryError | LogError):
        print(failed, file=sys.stderr)
        return CANNOT_START
    _LOG.error("the service could not start", exc_info=failed)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
