"""Requests that wait while the core is at work are scored together when it is free.

One request alone is scored at once. Under load the core then makes one call of the kernel, the
history and the log for many requests, where most of a call's cost does not depend on its size.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Final

from serving.scorer import Answer, Ask

MOST_ROWS: Final = 2_000
"""Rows that are scored together; a request may have more, and is then scored alone."""

Outcome = Answer | Exception | None
_Waiting = tuple[Ask, "asyncio.Future[Answer]"]


class Together:
    """Hands requests to the core; used from the event loop only.

    Args:
        score_some: the core, as `serving.scorer.Scorer.score_some`.
        thread: the one thread that it runs in.
    """

    def __init__(
        self, score_some: Callable[[Sequence[Ask]], list[Outcome]], thread: Executor
    ) -> None:
        self._score_some = score_some
        self._thread = thread
        self._waiting: deque[_Waiting] = deque()
        self._busy = False

    async def score(self, ask: Ask) -> Answer:
        """The answer to a request.

        Raises:
            LogError: the log cannot be written; nothing was acknowledged.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((ask, future))
        if not self._busy:
            self._begin()
        return await future

    def _begin(self) -> None:
        """Send the core what waits, as much as it takes at once."""
        group = self._taken()
        self._busy = bool(group)
        if not group:
            return
        asks = [ask for ask, _ in group]
        try:
            done = asyncio.get_running_loop().run_in_executor(self._thread, self._score_some, asks)
        except RuntimeError as error:  # the service is being stopped
            _tell(group, [error] * len(group))
            self._begin()
            return
        done.add_done_callback(lambda done: self._end(group, done))

    def _taken(self) -> list[_Waiting]:
        group: list[_Waiting] = []
        rows = 0
        while self._waiting:
            rows += len(self._waiting[0][0].rows)
            if group and rows > MOST_ROWS:
                break
            group.append(self._waiting.popleft())
        return group

    def _end(self, group: list[_Waiting], done: asyncio.Future[list[Outcome]]) -> None:
        if done.cancelled():
            for _, future in group:
                future.cancel()
            outcomes: list[Outcome] = [RuntimeError("the service is being stopped")] * len(group)
        elif error := done.exception():
            told = error if isinstance(error, Exception) else RuntimeError(repr(error))
            outcomes = [told] * len(group)
        else:
            outcomes = done.result()
        later = [one for one, outcome in zip(group, outcomes, strict=True) if outcome is None]
        self._waiting.extendleft(reversed(later))
        self._begin()  # first, so that the core need not wait for answers to be written
        _tell(group, outcomes)


def _tell(group: Sequence[_Waiting], outcomes: Sequence[Outcome]) -> None:
    for (_, future), outcome in zip(group, outcomes, strict=True):
        if outcome is None or future.done():  # it waits on; or whoever asked is gone
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
