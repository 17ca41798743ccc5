"""Verdicts as files: the same whatever the slices, whole or not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import results
from models.scoring import Scored
from tests.trail.small import any_scans
from trail.scan import ANOMALIES


def scored_at_random(n: int, seed: int) -> Scored:
    rng = np.random.default_rng(seed)
    score = rng.uniform(0, 100, (n, len(ANOMALIES))).astype(np.float32)
    said = ["", 'it says "no", twice\nand more']
    return Scored(score, score >= 50, ["model"] * n, [said[i % 2] for i in range(n)])


@given(any_scans, st.integers(1, 7), st.integers(0, 99), st.booleans())
def test_slices_make_the_same_table(scans, rows, seed, with_ids):
    n = len(scans)
    ids = pa.array([None if i % 3 == 0 else str(i) for i in range(n)]) if with_ids else None
    scored = scored_at_random(n, seed)
    (whole,) = results.tables(scans, ids, scored)
    parts = list(results.tables(scans, ids, scored, rows))
    assert max(len(part) for part in parts) <= rows
    assert pa.concat_tables(parts) == whole
    assert whole["row"].to_pylist() == scans.row.tolist()
    assert ("event_id" in whole.column_names) == with_ids
    for k, name in enumerate(ANOMALIES):
        assert whole[name].to_pylist() == scored.flag[:, k].tolist()


@pytest.mark.parametrize("suffix", results.SUFFIXES)
def test_what_is_written_in_parts_is_read_as_one(tmp_path: Path, suffix: str):
    parts = [pa.table({"row": [i, i + 1], "evidence": ["", 'a "b", c']}) for i in (0, 2, 4)]
    counts: list[int] = []
    out = tmp_path / "new" / f"verdicts{suffix}"
    results.write(out, iter(parts), counts.append)
    read = pyarrow.csv.read_csv if suffix == ".csv" else pq.read_table
    assert read(out).to_pydict() == pa.concat_tables(parts).to_pydict()
    assert counts == [2, 2, 2]
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_a_file_that_cannot_be_finished_is_not_there_and_an_old_one_stands(tmp_path: Path):
    out = tmp_path / "verdicts.csv"
    out.write_text("old")

    def parts():
        yield pa.table({"row": [1]})
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        results.write(out, parts())
    assert out.read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]
    with pytest.raises(ValueError, match=r"verdicts\.txt"):
        results.write(tmp_path / "verdicts.txt", iter([]))
