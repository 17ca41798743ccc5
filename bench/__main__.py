"""Benchmarks: `python -m bench [name ...]`; each prints ratios of two things in one run."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable

from bench import drift, explain, history, kernel, log, serving, training

BENCHMARKS: dict[str, Callable[[bool], list[str]]] = {
    "drift": drift.run,
    "explain": explain.run,
    "history": history.run,
    "kernel": kernel.run,
    "log": log.run,
    "serving": serving.run,
    "training": training.run,
}


def main(argv: list[str] | None = None) -> int:
    """Run the named benchmarks, or all."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], help="which; default all")
    parser.add_argument("--quick", action="store_true", help="smaller inputs")
    asked = parser.parse_args(argv)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    for name in asked.names or BENCHMARKS:
        print(f"\n{name}")
        for line in BENCHMARKS[name](asked.quick):
            print(f"  {line}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
