"""Opening a history store by its URL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from serving.history import History
from serving.history.disk import LmdbShelf
from serving.history.embedded import Embedded
from serving.history.keeping import Keeping, wall_us
from serving.history.memory import MemoryShelf
from serving.history.server import Server
from serving.history.wires import SCHEMES, without_password

_REMEDY = "give lmdb:<folder>, redis://host:port/db, rediss://..., unix://<socket>, or memory:"


def open_history(
    url: str,
    *,
    keep_days_after_sale: float,
    keep_days_idle: float,
    durable: str = "process",
    clock: Callable[[], int] = wall_us,
) -> History:
    """Open a store.

    Args:
        url: `lmdb:<folder>`, `memory:`, or a URL of Redis or Valkey: `redis://host:port/db`,
            `rediss://...`, `unix://<socket>`, with the options of redis-py and these two in its
            query: `namespace=<text>` keeps several histories in one database apart, and
            `cluster=yes|no` says what is otherwise asked of the server.
        keep_days_after_sale: days that a trail is kept after its sale.
        keep_days_idle: days that an unsold trail, or a lot, is kept after it was last touched.
        durable: "process" or "power"; of LMDB only. What a server survives is its own setting.
        clock: microseconds since 1970; servers have their own.

    Raises:
        ValueError: the URL or a setting cannot be used.
        HistoryError: LMDB's folder cannot be used. A server need not be there yet.
    """
    keeping = Keeping.days(keep_days_after_sale, keep_days_idle)
    if durable not in ("process", "power"):
        raise ValueError(f"durable is {durable!r}; give process or power")
    scheme, _, rest = url.partition(":")
    if scheme == "memory" and not rest.strip("/"):
        return Embedded(MemoryShelf(), keeping, clock)
    if scheme == "lmdb" and rest:
        return Embedded(LmdbShelf(Path(rest), power=durable == "power"), keeping, clock)
    if scheme in SCHEMES and rest.startswith("//"):
        return Server(url, keeping)
    raise ValueError(f"{without_password(url)!r} is no history store; {_REMEDY}")
