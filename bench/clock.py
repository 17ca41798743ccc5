"""Timing two or more things in turn, so that a machine's moods hit all of them alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping


def in_turn(
    what: Mapping[str, Callable[[], object]], rounds: int = 5, wall: bool = False
) -> dict[str, float]:
    """Median seconds of processor time (or wall time) of each, over interleaved rounds.

    The first round warms up and is not counted.
    """
    clock = time.perf_counter if wall else time.process_time
    seen: dict[str, list[float]] = {name: [] for name in what}
    for round_ in range(rounds + 1):
        for name, job in what.items():
            gc.collect()
            began = clock()
            job()
            took = clock() - began
            if round_:
                seen[name].append(took)
    return {name: statistics.median(times) for name, times in seen.items()}
