"""Scans between stages: they come back as they went, in the same bytes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intake import store
from intake.errors import IntakeError
from intake.read import load_scans, write_scans
from intake.table import QUARANTINE_SCHEMA, Intake
from trail import epc
from trail.scan import Scans
from trail.sites import Sites

COLUMNS = ("epc", "site", "op", "time_us", "row")


def make(rows, ids=True):
    import pyarrow as pa

    codes = pa.array([f"001.8804823.1293291.010004.20250701.{i + 1:09d}" for i in range(40)])
    first = list(dict.fromkeys(row[0] for row in rows))
    scans = Scans(
        epc=np.array([first.index(row[0]) for row in rows], np.int32),
        site=np.array([row[1] for row in rows], np.int32),
        op=np.array([row[2] for row in rows], np.int8),
        time_us=np.array([row[3] for row in rows], np.int64),
        row=np.arange(len(rows), dtype=np.int64) * 3,
        codes=epc.parse(codes.take(pa.array(first, pa.int64()))),
    )
    sites = Sites.of(["a", "b", "c"], ["", "", ""], [0, 1, 2], [0, 1, 2], [0, 1, 2])
    names = pa.array([None if i % 5 == 4 else str(i) for i in range(len(rows))], pa.string())
    empty = QUARANTINE_SCHEMA.empty_table()
    return Intake(scans, sites, names if ids else None, None, empty, len(rows))


scan_rows = st.tuples(
    st.integers(0, 39), st.integers(0, 2), st.integers(0, 9), st.integers(0, 7 * 10**15)
)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(scan_rows, max_size=60), group=st.sampled_from([7, 1 << 20]), ids=st.booleans()
)
def test_scans_come_back(tmp_path_factory, rows, group, ids):
    path = tmp_path_factory.mktemp("store") / "scans.parquet"
    intake = make(rows, ids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "_ROW_GROUP", group)
        write_scans(intake, path)
        first = path.read_bytes()
        write_scans(intake, path)
    assert path.read_bytes() == first
    back = load_scans(path, intake.sites)
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(back.scans, name), getattr(intake.scans, name))
        assert getattr(back.scans, name).dtype == getattr(intake.scans, name).dtype
    assert back.scans.codes.text.to_pylist() == intake.scans.codes.text.to_pylist()
    assert back.sites.ids == intake.sites.ids
    if ids:
        assert back.event_id.to_pylist() == intake.event_id.to_pylist()
    else:
        assert back.event_id is None


def test_without_a_master_every_site_is_unknown(tmp_path):
    write_scans(make([(0, 2, 0, 5), (1, 0, 9, 6)]), tmp_path / "scans.parquet")
    back = load_scans(tmp_path / "scans.parquet")
    assert back.sites.ids == ("a", "c")
    assert not back.sites.known.any()
    assert back.sites.tier.tolist() == [4, 0]


def test_another_file(tmp_path):
    with pytest.raises(IntakeError, match="run the stage validate"):
        load_scans(tmp_path / "scans.parquet")


def test_counts_that_do_not_add_up_are_refused():
    with pytest.raises(AssertionError, match="3 rows read, but 1 scans"):
        replace(make([(0, 0, 0, 0)]), read=3)
