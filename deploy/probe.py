"""Is a service healthy? Only the standard library, so that both environments can ask.

python -m deploy.probe http URL                  the URL answers with a 2xx
python -m deploy.probe beat URL COMPONENT        Airflow hears this component's heart
python -m deploy.probe port HOST:PORT            something accepts connections
"""

from __future__ import annotations

import json
import socket
import sys
import urllib.error
import urllib.request
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlsplit

_PATIENCE_S: Final = 5.0
# Never through a proxy: the services are on this machine or in this network.
_DIRECT: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def probe(kind: str, target: str, component: str = "", since: float = 0.0) -> str:
    """Why a service is not healthy; "" where it is.

    Args:
        kind: "http", "beat" or "port".
        target: a URL, or `host:port`.
        component: for "beat": scheduler, dag_processor or triggerer.
        since: for "beat": heartbeats before this time (seconds since 1970) do not count.
    """
    try:
        if kind == "port":
            parts = urlsplit(f"//{target}")
            socket.create_connection((str(parts.hostname), int(parts.port or 0)), 2.0).close()
            return ""
        answer = _get(target)
        return _heart(json.loads(answer), component, since) if kind == "beat" else ""
    except urllib.error.HTTPError as error:
        return f"{target} answers {error.code}"
    except (OSError, ValueError) as error:
        return f"{target} does not answer: {getattr(error, 'reason', None) or error}"


def _get(url: str) -> bytes:
    with _DIRECT.open(url, timeout=_PATIENCE_S) as answer:
        return bytes(answer.read())


def _heart(health: dict[str, Any], component: str, since: float) -> str:
    heard = health.get(component) or {}
    beat = heard.get(f"latest_{component}_heartbeat")
    if heard.get("status") != "healthy" or beat is None:
        return f"Airflow hears no heartbeat of the {component}"
    if datetime.fromisoformat(beat).timestamp() < since:
        return f"Airflow has not heard the {component} since it started"
    return ""


def main(words: list[str]) -> int:
    """0 when healthy, 1 when not, 2 when asked wrongly."""
    if len(words) < 2 or words[0] not in ("http", "beat", "port"):
        print(__doc__, file=sys.stderr)
        return 2
    why = probe(words[0], words[1], words[2] if len(words) > 2 else "")
    if why:
        print(why, file=sys.stderr)
    return 1 if why else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
