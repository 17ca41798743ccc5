"""Requests that wait for the core are handed to it together, and each gets its own answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from serving.rows import Rows
from serving.scorer import Answer, Ask
from serving.together import MOST_ROWS, Outcome, Together

NONE = np.empty((0, 5), np.float32)


def ask(name: str, rows: int = 1) -> Ask:
    column = np.zeros(rows, np.int64)
    return Ask(Rows([name] * rows, ["1"] * rows, column, column, column, column, column), "/score")


def name_of(one: Ask) -> str:
    return one.rows.epc[0]


def answer(name: str) -> Answer:
    return Answer(name, NONE, NONE, NONE, NONE, [], [], [], [], NONE, False, 0)


class Core:
    """Notes what comes together; busy until it is let go."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.free = threading.Event()
        self.waits: set[str] = set()
        self.wrong: set[str] = set()

    def score_some(self, asks: Sequence[Ask]) -> list[Outcome]:
        self.groups.append([name_of(one) for one in asks])
        assert self.free.wait(10)
        return [self._outcome(i, name_of(one)) for i, one in enumerate(asks)]

    def _outcome(self, i: int, name: str) -> Outcome:
        if name in self.wrong:
            return ValueError(name)
        return None if i and name in self.waits else answer(name)


async def scored(core: Core, asks: list[Ask]) -> list[Answer | BaseException]:
    """Ask for the first, then for all others while it is being scored."""
    with ThreadPoolExecutor(1) as thread:
        together = Together(core.score_some, thread)
        tasks = []
        for one in asks:
            tasks.append(asyncio.create_task(together.score(one)))
            await asyncio.sleep(0)
        core.free.set()
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)


def test_what_came_meanwhile_is_scored_together_and_each_gets_its_own_answer():
    core = Core()
    names = [f"e{i}" for i in range(9)]
    told = asyncio.run(scored(core, [ask(name) for name in names]))
    assert core.groups == [names[:1], names[1:]]
    assert [one.receipt for one in told] == names


def test_what_has_to_wait_comes_first_in_the_next_round():
    core = Core()
    core.waits = {"c", "d"}
    told = asyncio.run(scored(core, [ask(name) for name in "abcde"]))
    assert core.groups == [["a"], ["b", "c", "d", "e"], ["c", "d"], ["d"]]
    assert [one.receipt for one in told] == list("abcde")


def test_an_error_goes_to_whom_it_concerns():
    core = Core()
    core.wrong = {"b"}
    a, b, c = asyncio.run(scored(core, [ask(name) for name in "abc"]))
    assert isinstance(b, ValueError) and (a.receipt, c.receipt) == ("a", "c")


def test_a_core_that_breaks_leaves_nobody_waiting():
    def broken(_: Sequence[Ask]) -> list[Outcome]:
        raise SystemError("broken")

    async def both() -> list[object]:
        with ThreadPoolExecutor(1) as thread:
            together = Together(broken, thread)
            one, other = (together.score(ask(name)) for name in "ab")
            return await asyncio.wait_for(asyncio.gather(one, other, return_exceptions=True), 10)

    assert [type(told) for told in asyncio.run(both())] == [SystemError, SystemError]


@pytest.mark.parametrize("rows", [MOST_ROWS // 2, MOST_ROWS + 1])
def test_no_more_rows_are_taken_at_once_than_is_right(rows: int):
    core = Core()
    asyncio.run(scored(core, [ask(name, rows) for name in "abcd"]))
    expected = [["a"], ["b", "c"], ["d"]] if rows < MOST_ROWS else [["a"], ["b"], ["c"], ["d"]]
    assert core.groups == expected


def test_who_has_gone_is_left_out():
    core = Core()

    async def left() -> str:
        with ThreadPoolExecutor(1) as thread:
            together = Together(core.score_some, thread)
            tasks = [asyncio.create_task(together.score(ask(name))) for name in "abc"]
            await asyncio.sleep(0)
            tasks[1].cancel()
            core.free.set()
            return (await asyncio.wait_for(tasks[2], 10)).receipt

    assert asyncio.run(left()) == "c"
