"""How the services come and go: a live table on a terminal, a line for each change elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

_COLOURS: Final = {
    "healthy": "green",
    "done": "green",
    "starting": "yellow",
    "paused": "red",
    "unhealthy": "red",
    "failed": "bold red",
}
_GOOD: Final = ("healthy", "done")

Row = tuple[str, str, str]
"""A service's name, its state, and why it is so."""


class Display:
    """Shows rows again and again; use it as a context."""

    def __init__(self, known: Iterable[Row] = ()) -> None:
        """Begin; what is `known` gets no line of its own."""
        self._began = time.monotonic()
        self._shown = {name: state for name, state, _ in known}
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, rows: list[Row]) -> None:
        """Show how the services are now."""
        if self._live is not None:
            self._live.update(_table(rows, time.monotonic() - self._began), refresh=True)
            return
        for name, state, why in rows:
            if state != "waiting" and self._shown.get(name) != state:
                note = f": {why}" if why and state not in ("starting", "stopped", *_GOOD) else ""
                passed = time.monotonic() - self._began
                print(f"[{passed:5.1f} s] {name} {state}{note}", flush=True)
            self._shown[name] = state


def _table(rows: list[Row], passed_s: float) -> Table:
    from rich.markup import escape
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    good = sum(state in _GOOD for _, state, _ in rows)
    table.add_row(
        f"{good}/{len(rows)}",
        ProgressBar(total=max(1, len(rows)), completed=good, width=20),
        f"{passed_s:.0f} s",
    )
    for name, state, why in rows:
        colour = _COLOURS.get(state, "dim")
        table.add_row(name, f"[{colour}]{state}[/]", f"[dim]{escape(why)}[/]")
    return table
