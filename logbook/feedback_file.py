"""Analysts' verdicts as the file that overrides labels in the next training.

`python -m logbook.feedback_file data/verdicts.csv` writes what the `label` stage reads. Rows are by
time: where people disagree, the last word counts there too.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from logbook import Feedback, LogError, PredictionLog
from logbook.opened import default_url, open_log
from trail.scan import ANOMALIES

COLUMNS: Final = ("event_id", "epc_code", "event_time", "anomaly", "verdict", "analyst", "why")

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NO_TEXT: Final = re.compile(
    r"|#N/A|#N/A N/A|#NA|-?1\.#IND|-?1\.#QNAN|-?NaN|-?nan|<NA>|N/A|NA|NULL|None|n/a|null"
)
"""What readers of CSV take for nothing."""


@dataclass(frozen=True, slots=True)
class Written:
    """What came of a file.

    Attributes:
        verdicts: rows written.
        left_out: verdicts that no row can hold, with the reason.
    """

    verdicts: int
    left_out: list[tuple[Feedback, str]]


def write(feedback: Iterable[Feedback], path: Path) -> Written:
    """Write verdicts, in their order; the file is there whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(COLUMNS)
    rows = 0
    left_out = []
    for one in feedback:
        if reason := _unwritable(one):
            left_out.append((one, reason))
            continue
        out.writerow(
            (
                one.event_id if one.event_id >= 0 else "",
                _plain(one.epc),
                _time(one.time_us),
                one.anomaly,
                "right" if one.right else "wrong",
                _plain(one.who),
                _plain(one.why),
            )
        )
        rows += 1
    _replace(path, text.getvalue())
    return Written(rows, left_out)


def by_scan(feedback: Iterable[Feedback], log: PredictionLog) -> list[Feedback]:
    """Verdicts that name scans by code and time, for data that has no event ids."""
    named = []
    for one in feedback:
        record = log.event(one.event_id) if one.event_id >= 0 else None
        if record is not None:
            one = replace(one, epc=record.scan.epc, time_us=record.scan.time_us)
        named.append(replace(one, event_id=-1))
    return named


def _unwritable(feedback: Feedback) -> str:
    """Why a verdict cannot be a row, or ""."""
    if feedback.anomaly not in ANOMALIES:
        return f"there is no anomaly {feedback.anomaly!r}"
    if feedback.event_id >= 0:
        return ""
    if _NO_TEXT.fullmatch(feedback.epc.strip()):
        return f"readers of CSV take the code {feedback.epc!r} for nothing"
    if _plain(feedback.epc) != feedback.epc:
        return f"a file of text cannot hold the code {feedback.epc!r}"
    if not _time(feedback.time_us):
        return f"there is no date for the time {feedback.time_us} us"
    return ""


def _plain(text: str) -> str:
    """Text without what UTF-8 or readers of CSV cannot hold."""
    return text.encode("utf-8", "replace").decode().replace("\x00", "\ufffd").replace("\r", " ")


def _time(time_us: int) -> str:
    try:
        moment = _EPOCH + timedelta(microseconds=time_us)
    except OverflowError:
        return ""
    return moment.isoformat(timespec="microseconds")


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, fresh = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(fresh, 0o644)
        os.replace(fresh, path)
    except BaseException:
        Path(fresh).unlink(missing_ok=True)
        raise


def main(argv: list[str] | None = None) -> int:
    """Write the verdicts that count in the log."""
    parser = argparse.ArgumentParser(prog="python -m logbook.feedback_file", description=__doc__)
    parser.add_argument("out", type=Path, help="file to write, such as data/verdicts.csv")
    home = Path(os.environ.get("TRAILWATCH_HOME", "."))
    own = default_url(home, os.environ.get("TRAILWATCH_MODEL", "trailwatch"))
    parser.add_argument(
        "--log",
        default=os.environ.get("TRAILWATCH_LOG") or own,
        help="URL of the log; default TRAILWATCH_LOG, else that of `make serve`",
    )
    parser.add_argument(
        "--by-scan", action="store_true", help="name scans by code and time, never by event id"
    )
    asked = parser.parse_args(argv)
    try:
        log = open_log(asked.log)
        try:
            feedback = log.feedback()
            if asked.by_scan:
                feedback = by_scan(feedback, log)
            written = write(feedback, asked.out)
        finally:
            log.close()
    except (LogError, ValueError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    for one, reason in written.left_out:
        print(f"left out what {one.who} said on {one.anomaly}: {reason}", file=sys.stderr)
    print(f"{written.verdicts} verdicts in {asked.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
