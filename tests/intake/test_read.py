"""The one entry: formats, types, real files, any text, and size."""

import csv
import datetime as dt
import io
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intake import delimited
from intake.columns import Collector, to_scans
from intake.master import read_sites
from intake.read import IntakeError, read_scans
from trail.scan import EVENT_TYPES, Op

NAMES = ("epc_code", "location_id", "event_type", "event_time")
EPC = "001.8804823.1293291.010004.20250701.000004002"
MOMENT = dt.datetime(2025, 7, 1, 10, 34, 17, tzinfo=dt.UTC)
US = int(MOMENT.timestamp()) * 1_000_000


def read_bytes(path, raw, block_bytes=delimited.BLOCK_BYTES):
    path.write_bytes(raw)
    collector = Collector()
    for block in delimited.read_blocks(path, delimited.read_head(path), block_bytes):
        collector.add(path.name, block)
    return collector.finish()


@pytest.mark.parametrize(
    ("location", "event_time"),
    [
        (pa.array(["1", "1.0", None]), pa.array([MOMENT] * 3, pa.timestamp("ms", "Asia/Seoul"))),
        (pa.array([1, 1, None], pa.int16()), pa.array([1751366057] * 3)),
        (pa.array([1.0, 1.0, None]), pa.array([1751366057000.0] * 3)),
        (
            pa.array(["1", "1", None]).dictionary_encode(),
            pa.array([MOMENT] * 3, pa.timestamp("ns")),
        ),
        (pa.array(["1", "1", None], pa.large_string()), pa.array(["2025-07-01T10:34:17Z"] * 3)),
        (pa.array([b"1", b"1", None]), pa.array(["2025-07-01 10:34:17"] * 3).dictionary_encode()),
    ],
)
def test_parquet_of_any_types(tmp_path, location, event_time):
    kind = pa.array(["HUB_Inbound"] * 3).dictionary_encode()
    columns = [pa.array([EPC] * 3), location, kind, event_time]
    table = pa.table([*columns, pa.array([7.0, 8.0, 9.0])], names=[*NAMES, "event_id"])
    pq.write_table(table, tmp_path / "scans.parquet")
    for intake in (read_scans(tmp_path / "scans.parquet"), to_scans(table)):
        assert intake.scans.time_us.tolist() == [US, US]
        assert intake.scans.op.tolist() == [Op.HUB_IN] * 2
        assert intake.sites.ids == ("1",)
        assert intake.event_id.to_pylist() == ["7", "8"]
        assert intake.quarantine["reason"].to_pylist() == ["location_id is empty"]


def test_parquet_without_a_needed_column_or_with_a_list(tmp_path):
    pq.write_table(pa.table({"epc_code": [EPC]}), tmp_path / "a.parquet")
    with pytest.raises(IntakeError, match="no column location_id, event_type, event_time; found"):
        read_scans(tmp_path / "a.parquet")
    table = pa.table([[EPC], [[1]], ["POS_Sell"], ["2025-07-01"]], names=NAMES)
    with pytest.raises(IntakeError, match=r"column location_id has type list"):
        to_scans(table)


def test_identifiers_where_only_one_file_has_them(tmp_path):
    row = f"{EPC},1,POS_Sell,2025-07-01\n"
    (tmp_path / "a.csv").write_text(f"{','.join(NAMES)}\n{row}")
    (tmp_path / "b.csv").write_text(f"event_id,{','.join(NAMES)}\n5,{row},{row}")
    assert read_scans(tmp_path).event_id.to_pylist() == [None, "5", None]


def test_progress_ends_at_one(tmp_path):
    path = tmp_path / "scans.csv"
    path.write_text(f"{','.join(NAMES)}\n" + f"{EPC},1,POS_Sell,2025-07-01\n" * 5)
    told = []
    read_scans(path, progress=lambda share, rows: told.append((share, rows)))
    assert told[-1] == (1.0, 5)


def test_real_journey(installation):
    sites = read_sites(installation / "sites.csv")
    intake = read_scans(installation / "journey.tsv", sites, zone="Asia/Seoul")
    assert (intake.read, len(intake.scans), len(intake.scans.codes)) == (13, 13, 2)
    assert intake.scans.op[:10].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert intake.scans.time_us[0] == US - 9 * 3_600_000_000
    assert intake.sites.known.all()
    assert intake.sites.names[intake.scans.site[0]] == "인천공장"


def test_real_factory_scans_with_numbers_as_floats(installation):
    sites = read_sites(installation / "sites.csv")
    intake = read_scans(installation / "factory_scans.csv", sites)
    assert (intake.read, len(intake.scans), len(intake.quarantine)) == (14_000, 14_000, 0)
    assert {intake.sites.ids[i] for i in set(intake.scans.site.tolist())} == {"1", "2", "3", "4"}
    assert intake.sites.known.all()
    assert not intake.scans.codes.fault.any()


def test_real_order_errors(installation):
    intake = read_scans(installation / "order_errors.csv")
    assert (intake.read, len(intake.scans), len(intake.quarantine)) == (600, 600, 0)


def test_real_folder_leaves_the_masters_aside(installation):
    intake = read_scans(installation)
    assert [rows for _, rows in intake.files] == [14_000, 13, 600]
    assert len(intake.scans) == 14_613
    assert [note.split()[0] for note in intake.notes] == ["leg_statistics.csv", "sites.csv"]


printable = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\x00"))
fields = st.tuples(
    st.sampled_from([EPC, "fake", "", 'a"b', "a,b", "가 나"]),
    st.sampled_from(["1", "1.0", " 2", "", "서울"]),
    st.sampled_from([*EVENT_TYPES, "aggregation", "Fly", ""]),
    st.sampled_from(["2025-07-01 10:34:17", "2025-07-01T10:34:17Z", "1751366057", "soon", ""]),
    printable,
)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(fields, min_size=1, max_size=30),
    delimiter=st.sampled_from(",\t;"),
    end=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    block=st.sampled_from([17, 200, 1 << 20]),
)
def test_what_csv_writes_is_read(tmp_path_factory, rows, delimiter, end, quoting, block):
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerow((*NAMES, "product_name"))
    writer.writerows(rows)
    path = tmp_path_factory.mktemp("csv") / "scans.csv"
    intake = read_bytes(path, text.getvalue().encode(), block)
    assert intake.read == len(rows) == len(intake.scans) + len(intake.quarantine)
    good = [
        i for i, row in enumerate(rows) if all(row[:4]) and row[2] != "Fly" and row[3] != "soon"
    ]
    stray = [i for i in good if "\r" in rows[i][4] or rows[i][4].count("\n") > 40]
    assert set(good) - set(stray) <= set(intake.scans.row.tolist()) <= set(good)
    for row, epc, op in zip(intake.scans.row, intake.scans.epc, intake.scans.op, strict=True):
        assert intake.scans.codes.text[int(epc)].as_py() == rows[row][0].strip()
        assert EVENT_TYPES[op].lower() == rows[row][2].lower()


@settings(max_examples=60, deadline=None)
@given(raw=st.binary(max_size=400), block=st.sampled_from([7, 64, 1 << 20]))
def test_any_bytes_after_a_header_are_accounted_for(tmp_path_factory, raw, block):
    head = ",".join(NAMES).encode() + b"\n"
    path = tmp_path_factory.mktemp("csv") / "scans.csv"
    intake = read_bytes(path, head + raw, block)
    rows = sorted(intake.scans.row.tolist() + intake.quarantine["row"].to_pylist())
    assert rows == list(range(intake.read))


def big_file(path, n):
    """Codes of five scans each; every 1000th row has a field too many."""
    stamp = np.datetime_as_string(np.datetime64("2025-07-01", "s") + np.arange(86_400)).tolist()
    with path.open("w") as file:
        file.write(f"event_id,{','.join(NAMES)}\n")
        for start in range(0, n, 100_000):
            file.writelines(
                f"{i},001.8804823.1293291.{i // 50_000 + 1:06d}.20250701.{i // 5 % 10_000 + 1:09d},"
                f"{i % 58 + 1},{EVENT_TYPES[i % 5]},{stamp[i % 86_400]}{',x' * (i % 1000 == 999)}\n"
                for i in range(start, min(start + 100_000, n))
            )


def test_large_file(tmp_path, full):
    n = 10_000_000 if full else 200_000
    path = tmp_path / "scans.csv"
    big_file(path, n)
    begun = time.process_time()
    intake = read_scans(path)
    took = time.process_time() - begun
    assert (intake.read, len(intake.quarantine)) == (n, n // 1000)
    assert intake.quarantine["row"].to_pylist() == list(range(999, n, 1000))
    ids = np.array(intake.event_id.take(pa.array([0, len(intake.scans) - 1])).to_pylist(), int)
    assert ids.tolist() == intake.scans.row[[0, -1]].tolist() == [0, n - 2]
    assert len(intake.scans.codes) == n // 5
    assert took < 5 + n / 200_000  # five times slower than measured: another machine may be slower
