"""Analysts' verdicts: a file beside the data that overrides every other label.

`verdicts.csv` or `verdicts.parquet` in the data folder, with the columns `epc_code, location_id,
event_type, event_time` (or just `event_id`), `anomaly` (a wire name), `verdict` (right or wrong:
is it this anomaly? unknown: then the scan does not count for it, neither in training nor in
measuring), and for people `analyst` and `why`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from pipelines.parts import LabelSource
from trail.scan import ANOMALIES, Scans

_NAMES: Final = ("verdicts.csv", "verdicts.tsv", "verdicts.parquet")
_UNKNOWN: Final = -1
_WORDS: Final = {
    "right": 1,
    "true": 1,
    "1": 1,
    "wrong": 0,
    "false": 0,
    "0": 0,
    "unknown": _UNKNOWN,
}


@dataclass(frozen=True, slots=True)
class Said:
    """What analysts said, by event id or by (code, time in microseconds)."""

    by_event: dict[int, list[tuple[int, int]]]
    by_scan: dict[tuple[str, int], list[tuple[int, int]]]

    def __len__(self) -> int:
        return len(self.by_event) + len(self.by_scan)


def read(data: Path) -> Said:
    """Read the verdicts in a data folder; none is fine.

    Raises:
        ValueError: a column is missing, or a row has an unknown anomaly or verdict.
    """
    import pandas as pd

    said = Said({}, {})
    for name in _NAMES:
        path = data / name
        if not path.exists():
            continue
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
        else:
            table = pd.read_csv(path, dtype=str, sep="\t" if path.suffix == ".tsv" else ",")
        missing = {"anomaly", "verdict"} - set(table.columns)
        if missing:
            raise ValueError(f"{path} lacks the column {sorted(missing)[0]!r}; add it")
        for i, row in enumerate(table.to_dict("records")):
            _add(said, path, i, {str(k): v for k, v in row.items() if not pd.isna(v)})
    return said


def _add(said: Said, path: Path, i: int, row: dict[str, object]) -> None:
    import pandas as pd

    anomaly, word = str(row.get("anomaly", "")), str(row.get("verdict", "")).strip().lower()
    if anomaly not in ANOMALIES:
        raise ValueError(f"{path}, row {i}: anomaly {anomaly!r}; write one of {list(ANOMALIES)}")
    if word not in _WORDS:
        raise ValueError(f"{path}, row {i}: verdict {word!r}; write right or wrong, or unknown")
    entry = (ANOMALIES.index(anomaly), _WORDS[word])
    if "event_id" in row:
        said.by_event.setdefault(int(str(row["event_id"])), []).append(entry)
    elif "epc_code" in row and "event_time" in row:
        time = pd.Timestamp(str(row["event_time"]))
        time = time.tz_localize("UTC") if time.tzinfo is None else time.tz_convert("UTC")
        key = (str(row["epc_code"]).strip(), time.value // 1000)
        said.by_scan.setdefault(key, []).append(entry)
    else:
        raise ValueError(f"{path}, row {i}: give event_id, or epc_code and event_time")


def override(
    said: Said,
    scans: Scans,
    event_id: npt.NDArray[np.int64],
    target: npt.NDArray[np.int8],
    source: npt.NDArray[np.integer],
) -> None:
    """Write the verdicts into targets (n, 5) and label sources (n,), in place."""
    if not len(said):
        return
    for i in np.flatnonzero(np.isin(event_id, list(said.by_event))):
        for k, value in said.by_event[int(event_id[i])]:
            _override(target, source, int(i), k, value)
    if said.by_scan:
        for i in np.flatnonzero(np.isin(scans.time_us, [time for _, time in said.by_scan])):
            key = (scans.codes.text[int(scans.epc[i])].as_py(), int(scans.time_us[i]))
            for k, value in said.by_scan.get(key, []):
                _override(target, source, int(i), k, value)


def _override(
    target: npt.NDArray[np.int8], source: npt.NDArray[np.integer], i: int, k: int, value: int
) -> None:
    target[i, k] = value
    if value != _UNKNOWN:
        source[i] = LabelSource.ANALYST
