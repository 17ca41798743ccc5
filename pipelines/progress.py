"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

_EVERY_S = 5.0


def say(line: str) -> None:
    """Print one line at once."""
    print(line, flush=True)


class Progress:
    """Counts work done; call it with what was done since, and what to say of it."""

    def __init__(self, what: str, total: int, unit: str, done: int = 0) -> None:
        """Begin at `done` of `total` units."""
        self._what, self._total, self._unit, self._done = what, total, unit, done
        self._said = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, desc=what, unit=f" {unit}")

    def __call__(self, step: int, note: str = "") -> None:
        """`step` more units are done."""
        self._done += step
        if self._bar is not None:
            self._bar.set_postfix_str(note)
            self._bar.update(step)
        elif time.monotonic() - self._said >= _EVERY_S:
            self._line(note)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif kind is None:
            self._line("done")

    def _line(self, note: str) -> None:
        self._said = time.monotonic()
        share = f"{self._done:,}/{self._total:,} {self._unit}"
        say(f"{self._what}: {share}{', ' if note else ''}{note}")


def percent(step: Callable[[int], object]) -> Callable[[float, int], None]:
    """Turn reports of (share done, rows) into steps of whole percent."""
    shown = 0

    def report(share: float, rows: int) -> None:
        nonlocal shown
        now = int(share * 100)
        step(now - shown)
        shown = now

    return report
