"""Who may do what: API keys with scopes, or nobody but this machine.

A key is sent as `Authorization: Bearer <key>`; a browser's WebSocket, which cannot send headers,
offers the subprotocols `trailwatch` and `bearer.<key>` and is accepted with the first. The
settings hold hashes only. Without any key the service takes requests of this machine alone, and
of no web page but its own.

    python -m serving.security NAME SCOPES    makes a key; scopes like score+read
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from fastapi import FastAPI, WebSocketException, params
from fastapi.openapi.models import HTTPBearer
from fastapi.routing import iter_route_contexts
from fastapi.security.base import SecurityBase
from starlette.requests import HTTPConnection

from serving.limits import Buckets
from serving.problems import Problem
from serving.settings import PREFIX, Settings, SettingsError

SCOPES: Final = ("score", "read", "feedback", "admin")
SUBPROTOCOL: Final = "trailwatch"

_ENTRY: Final = re.compile(r"([\w.-]{1,64}):([a-z+]+):([0-9a-fA-F]{64})", re.ASCII)
_OFFERED_KEY: Final = "bearer."


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    Attributes:
        name: of the key, or the address where there are no keys.
        scopes: what it may do.
    """

    name: str
    scopes: frozenset[str]


class Gate:
    """Decides on every request; one a process.

    Args:
        settings: keys, host and rate.

    Raises:
        SettingsError: an entry of the keys cannot be read, or there are none and the host is
            open to other machines.
    """

    def __init__(self, settings: Settings) -> None:
        self.keys = parse_keys(settings.api_keys)
        self.buckets = Buckets(settings.requests_per_minute)
        if not self.keys and not is_loopback(settings.host):
            raise SettingsError(
                f"{PREFIX}HOST is {settings.host!r}, which other machines can reach, and there is "
                f"no API key; make one with `python -m serving.security NAME SCOPES` and put its "
                f"entry into {PREFIX}API_KEYS, or listen on 127.0.0.1"
            )

    def admit(self, connection: HTTPConnection, scope: str) -> Caller:
        """Who asks, when it may.

        Raises:
            Problem: 401 without a valid key, 403 without the scope, 429 too often.
        """
        address = connection.client.host if connection.client else "local"
        if not self.keys:
            _check_local(connection, address)
            self.buckets.take(f"address {address}")
            return Caller(address, frozenset(SCOPES))
        caller = self._holder(_given_key(connection))
        if caller is None:
            self.buckets.take(f"address {address}")
            raise Problem(
                401,
                "send a valid API key as `Authorization: Bearer <key>`",
                "unauthorised",
                headers={"WWW-Authenticate": 'Bearer realm="trailwatch"'},
            )
        self.buckets.take(f"key {caller.name}")
        if scope not in caller.scopes:
            raise Problem(403, f"key {caller.name!r} lacks the scope {scope!r}", "forbidden")
        return caller

    def _holder(self, key: str) -> Caller | None:
        """Whose key it is; all are compared, in constant time."""
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        found = None
        for kept, caller in self.keys:
            if hmac.compare_digest(kept, digest):
                found = caller
        return found


class Allow(SecurityBase):
    """The decision of a route: callers whose key has a scope."""

    def __init__(self, scope: str) -> None:
        if scope not in SCOPES:
            raise ValueError(f"scope {scope!r} is none of {', '.join(SCOPES)}")
        self.scope = scope
        self.model = HTTPBearer(description="An API key, see `python -m serving.security`.")
        self.scheme_name = "key"

    async def __call__(self, connection: HTTPConnection) -> Caller:
        """The caller; see `Gate.admit` for what is raised. A WebSocket is closed with 1008."""
        gate: Gate = connection.app.state.gate
        try:
            caller = gate.admit(connection, self.scope)
        except Problem as problem:
            if connection.scope["type"] == "websocket":
                raise WebSocketException(1008, str(problem.detail)[:100]) from problem
            raise
        connection.scope["trailwatch.caller"] = caller.name
        return caller


async def everybody() -> None:
    """The decision of a route that tells nothing secret: whoever can reach it."""


def allow(scope: str) -> params.Depends:
    """A dependency for routes and routers: only keys with this scope."""
    return params.Depends(Allow(scope))


PUBLIC: Final = params.Depends(everybody)
"""A dependency for routes that are open to everybody."""


def undecided(app: FastAPI) -> list[str]:
    """Routes and WebSockets of the app that carry no decision about who may use them."""
    return [
        route.path or repr(route.original_route)
        for route in iter_route_contexts(app.routes)
        if not any(
            isinstance(call, Allow) or call is everybody
            for call in _calls(getattr(route, "dependant", None))
        )
    ]


def _calls(dependant: object) -> Iterator[object]:
    if dependant is not None:
        yield getattr(dependant, "call", None)
        for further in getattr(dependant, "dependencies", ()):
            yield from _calls(further)


def parse_keys(text: str) -> list[tuple[bytes, Caller]]:
    """Hashes of keys and who holds them.

    Raises:
        SettingsError: an entry is not `name:scope+scope:sha256`, or a name stands twice.
    """
    keys: list[tuple[bytes, Caller]] = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        parts = _ENTRY.fullmatch(entry)
        scopes = frozenset(parts[2].split("+")) if parts else frozenset()
        if parts is None or not scopes <= set(SCOPES):
            raise SettingsError(
                f"{PREFIX}API_KEYS has an entry {entry.split(':')[0]!r} that cannot be read; write "
                f"name:scope+scope:sha256 with scopes of {', '.join(SCOPES)}"
            )
        if any(caller.name == parts[1] for _, caller in keys):
            raise SettingsError(f"{PREFIX}API_KEYS names {parts[1]!r} twice; give another name")
        keys.append((bytes.fromhex(parts[3]), Caller(parts[1], scopes)))
    return keys


def make_key(name: str, scopes: str) -> tuple[str, str]:
    """A new key, and its entry for the settings.

    Raises:
        SettingsError: the name or a scope cannot be used.
    """
    key = f"tw_{secrets.token_urlsafe(32)}"
    entry = f"{name}:{scopes}:{hashlib.sha256(key.encode()).hexdigest()}"
    parse_keys(entry)
    return key, entry


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host by this name or address."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _given_key(connection: HTTPConnection) -> str:
    scheme, _, key = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    if connection.scope["type"] == "websocket":
        offered = connection.headers.get("sec-websocket-protocol", "").split(",")
        for protocol in (word.strip() for word in offered):
            if protocol.startswith(_OFFERED_KEY):
                return protocol.removeprefix(_OFFERED_KEY)
    return ""


def _check_local(connection: HTTPConnection, address: str) -> None:
    """Without keys: only this machine, and no page of another site in its browser.

    A page elsewhere may send requests here too; its browser then names the page's site as
    `Origin`, or, where the page made its own name mean this machine, as `Host`.
    """
    if connection.client and not is_loopback(address):
        raise Problem(403, "without API keys only this machine may ask; set keys", "forbidden")
    host = connection.headers.get("host", "")
    name = urlsplit(f"//{host}").hostname or ""
    if not is_loopback(name):
        raise Problem(
            403, f"without API keys {name!r} cannot be asked, only localhost; set keys", "forbidden"
        )
    origin = connection.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        raise Problem(403, "without API keys no other web site may ask; set keys", "forbidden")


def main(words: list[str]) -> int:
    """Make a key and print it with its entry."""
    if len(words) != 2:
        print("usage: python -m serving.security NAME SCOPES", file=sys.stderr)
        print(f"SCOPES joins some of {', '.join(SCOPES)} with +, like score+read", file=sys.stderr)
        return 2
    try:
        key, entry = make_key(*words)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"key, for the caller:     {key}")
    print(f"entry for {PREFIX}API_KEYS: {entry}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
