"""Rows of JSON become the columns that files become, or every fault of every row is told."""

from __future__ import annotations

import json
import time
from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intake import times
from intake.columns import to_scans
from serving import rows
from serving.rows import BodyError, Rows
from trail.scan import EVENT_TYPES, Op

CODE = "001.8804823.1293291.010004.20250701.000004002"
GOOD = {
    "event_id": 12345,
    "epc_code": CODE,
    "location_id": 101,
    "business_step": "Factory",
    "event_type": "Aggregation",
    "event_time": "2024-01-15T08:30:00Z",
    "file_id": 1,
}
MOMENT_US = 1_705_307_400_000_000


def body(*data: object) -> bytes:
    return json.dumps({"data": data}).encode()


def read(*data: object, zone: str = "UTC", most: int = 100):
    return rows.read(body(*data), zone, most)


def faults(*data: object) -> list[tuple[int | None, str]]:
    return [(bad.index, bad.field) for bad in read(*data)[1]]


def columns(of: Rows) -> dict[str, list]:
    return {
        name: list(getattr(of, name))
        for name in ("epc", "location", "op", "time_us", "event_id", "file_id", "place")
    }


def test_a_row_becomes_columns():
    got, bad = read(GOOD)
    assert not bad
    assert columns(got) == {
        "epc": [CODE],
        "location": ["101"],
        "op": [Op.AGGREGATION],
        "time_us": [MOMENT_US],
        "event_id": [12345],
        "file_id": [1],
        "place": [0],
    }
    assert got.op.dtype == np.int8 and got.time_us.dtype == np.int64


@pytest.mark.parametrize(
    "change",
    [
        {"event_id": "12345"},
        {"event_id": 12345.0},
        {"event_id": " 12345 "},
        {"file_id": "1"},
        {"location_id": "101"},
        {"location_id": " 101.0 "},
        {"location_id": 101.0},
        {"event_type": "aggregation"},
        {"event_type": " Aggregation\t"},
        {"event_time": "2024-01-15 08:30:00"},
        {"event_time": "2024/1/15 8:30"},
        {"event_time": "2024-01-15T17:30:00+09:00"},
        {"event_time": 1705307400},
        {"event_time": 1705307400.0},
        {"event_time": "1705307400000"},
        {"epc_code": f" {CODE}\n"},
        {"operator_id": None, "nested": {"x": [1, 2, {"y": None}]}, "huge": 10**40},
    ],
)
def test_other_spellings_of_a_value_are_the_same_row(change: dict):
    got, bad = read({**GOOD, **change})
    assert not bad
    assert columns(got) == columns(read(GOOD)[0])


def test_camel_case_names_are_the_same_row_even_mixed():
    camel = {
        "eventId": 12345,
        "epcCode": CODE,
        "locationId": 101,
        "eventType": "Aggregation",
        "eventTime": "2024-01-15T08:30:00Z",
        "fileId": 1,
    }
    mixed = {**GOOD, "eventId": 12345}
    del mixed["event_id"]
    got, bad = read(GOOD, camel, mixed, {**camel, "event_id": None})
    assert not bad
    for name, values in columns(got).items():
        assert values == ([0, 1, 2, 3] if name == "place" else [values[0]] * 4)


def test_ids_may_be_missing():
    needed = {k: v for k, v in GOOD.items() if k not in ("event_id", "file_id")}
    got, bad = read(needed, {**needed, "event_id": None, "file_id": ""})
    assert not bad
    assert got.event_id.tolist() == got.file_id.tolist() == [-1, -1]


def test_an_id_may_be_any_int64_from_zero():
    got, _ = read({**GOOD, "event_id": 2**63 - 1, "file_id": 0})
    assert got.event_id.tolist() == [2**63 - 1] and got.file_id.tolist() == [0]


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("epc_code", None, "missing"),
        ("epc_code", "", "empty"),
        ("epc_code", " NULL ", "empty"),
        ("epc_code", 5, "5 is no text"),
        ("epc_code", ["x"], "a list"),
        ("epc_code", "00\x00 1", "U+0000"),
        ("epc_code", "00\x85 1", "U+0085"),
        ("epc_code", "00\ud800 1", "no character"),
        ("epc_code", "9" * 1001, "1001 characters"),
        ("location_id", None, "missing"),
        ("location_id", True, "true"),
        ("location_id", 1.5, "1.5"),
        ("location_id", {"id": 1}, "an object"),
        ("location_id", "a\x1bb", "U+001B"),
        ("location_id", 10**60, "integer of more than"),
        ("event_type", None, "missing"),
        ("event_type", "Teleport", "'Teleport' is no known operation"),
        ("event_type", 0, "0 is no text"),
        ("event_time", None, "missing"),
        ("event_time", "yesterday", "'yesterday'"),
        ("event_time", "2024-02-30 10:00:00", "2024-02-30"),
        ("event_time", "1969-12-31T23:59:59Z", "1970-2200"),
        ("event_time", "2201-01-01", "1970-2200"),
        ("event_time", False, "false"),
        ("event_time", 10**80, "integer of more than"),
        ("event_time", 17, "'17'"),
        ("event_id", -1, "-1 is no whole number"),
        ("event_id", 2**63, "larger than"),
        ("event_id", "9" * 5000, "larger than"),
        ("event_id", "12a", "'12a'"),
        ("event_id", "١٢", "no whole number"),
        ("event_id", 1.5, "1.5"),
        ("event_id", 1e300, "1e+300"),
        ("event_id", True, "true"),
        ("file_id", [1], "a list"),
    ],
)
def test_a_value_that_cannot_be_read_is_told_with_row_field_and_reason(field, value, says):
    row = {**GOOD, field: value}
    good, bad = read(GOOD, row)
    assert [(b.index, b.field) for b in bad] == [(1, field)]
    assert says in bad[0].reason
    assert good.place.tolist() == [0]


@pytest.mark.parametrize("raw", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"9" * 5000])
def test_numbers_that_are_none_are_told(raw: bytes):
    text = body(GOOD, {**GOOD, "event_time": "@"}, {**GOOD, "location_id": "@"}, GOOD)
    good, bad = rows.read(text.replace(b'"@"', raw), "UTC", 100)
    assert [(b.index, b.field) for b in bad] == [(1, "event_time"), (2, "location_id")]
    assert good.place.tolist() == [0, 3]


@pytest.mark.parametrize(
    ("raw", "field"), [(b"NaN", "'weight'"), (b'"a\x01b"', "'weight'"), (b'"a\nb"', "'weight'")]
)
def test_what_is_no_json_is_told_in_unknown_fields_too(raw: bytes, field: str):
    text = body({**GOOD, "weight": "@"}, GOOD).replace(b'"@"', raw)
    good, bad = rows.read(text, "UTC", 100)
    assert [(b.index, b.field) for b in bad] == [(0, field)]
    assert good.place.tolist() == [1]


def test_bytes_that_are_no_utf8_are_the_row_s_fault():
    text = body(GOOD, {**GOOD, "epc_code": "A@B" * 9}).replace(b"@", b"\xff")
    good, bad = rows.read(text, "UTC", 100)
    assert [(b.index, b.field) for b in bad] == [(1, "epc_code")]
    assert good.place.tolist() == [0]


def test_every_fault_of_every_row_is_told_in_order():
    worst = {"epc_code": 1, "location_id": None, "event_type": "x", "event_time": "x", "fileId": -1}
    assert faults(worst, GOOD, 7, {**GOOD, "event_time": "soon", "event_id": "x"}) == [
        (0, "epc_code"),
        (0, "location_id"),
        (0, "event_type"),
        (0, "event_time"),
        (0, "file_id"),
        (2, "data"),
        (3, "event_time"),
        (3, "event_id"),
    ]


def test_a_malformed_code_and_an_unknown_site_and_a_future_time_are_no_faults():
    odd = {
        **GOOD,
        "epc_code": "not an EPC, 서울",
        "location_id": "서울 7번",
        "event_time": "2190-01-01",
    }
    got, bad = read(odd)
    assert not bad
    assert got.epc == ["not an EPC, 서울"] and got.location == ["서울 7번"]


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"[]", "body"),
        (b"null", "body"),
        (b"{}", "data"),
        (b'{"data": null}', "data"),
        (b'{"data": {}}', "data"),
        (b'{"data": []}', "data"),
        (b'{"data": [1]} x', "body"),
        (b'{"data": [{"x": [NaN]}]}', "body"),
        (b'{"data": [{"x": ["\x01"]}]}', "body"),
        (b"\xff\xfe{", "body"),
        (b'{"data": ' + b"[" * 100_000, "data"),
        (b'{"data": [{"x": ' + b"[" * 2000 + b"]" * 2000 + b"}]}", "body"),
        (body(*[GOOD] * 1001), "data"),
        (b'{"data": [' + b"{}," * 100_000 + b"{}]}", "data"),
    ],
)
def test_a_body_without_rows_is_refused_as_a_whole(text: bytes, field: str):
    with pytest.raises(BodyError) as error:
        rows.read(text, "UTC", 1000)
    assert error.value.bad.field == field and error.value.bad.index is None


ZONES = st.sampled_from(["UTC", "Asia/Seoul", "Europe/Berlin", "America/St_Johns"])
MOMENTS = st.datetimes(datetime(1969, 12, 30), datetime(2201, 1, 3))
OFFSETS = st.integers(-24 * 60 + 1, 24 * 60 - 1).map(lambda m: timezone(timedelta(minutes=m)))
ISO = st.builds(
    lambda moment, between, offset, digits, zone: (
        moment.strftime(f"%Y-%m-%d{between}%H:%M:%S")
        + (f".{moment.microsecond:06d}"[: digits + 1] if digits else "")
        + (zone if zone is not None else moment.replace(tzinfo=offset).isoformat()[-6:])
    ),
    MOMENTS,
    st.sampled_from("T "),
    OFFSETS,
    st.integers(0, 6),
    st.sampled_from(["", "", "Z", None]),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(ISO, min_size=1, max_size=8), ZONES)
def test_the_quick_way_reads_times_as_files_are_read(texts: list[str], zone: str):
    quick = rows.plain_times(texts, zone)
    careful, fault = times.parse(pa.array(texts), zone)
    if fault.any():
        assert quick is None
    if quick is not None:
        assert quick.tolist() == careful.tolist()


def test_the_quick_way_takes_the_usual_forms_also_where_clocks_change():
    texts = [
        "2024-03-31 02:30:00",
        "2024-10-27T02:30:00",
        "2050-03-27 02:30:00.5",
        "2024-07-01T00:00:00Z",
    ]
    quick = rows.plain_times(texts, "Europe/Berlin")
    assert quick is not None
    assert quick.tolist() == times.parse(pa.array(texts), "Europe/Berlin")[0].tolist()


TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)
GOOD_ROWS = st.fixed_dictionaries(
    {
        "epc_code": st.one_of(st.just(CODE), TEXTS),
        "location_id": st.one_of(st.integers(0, 10**9), TEXTS),
        "event_type": st.sampled_from(EVENT_TYPES),
        "event_time": st.one_of(ISO, st.sampled_from(["2024-7-1 9:05", "20240701", "x", ""])),
    }
)


@settings(max_examples=200, deadline=None)
@given(st.lists(GOOD_ROWS, min_size=1, max_size=5), ZONES)
def test_serving_reads_and_refuses_the_rows_that_files_do(data: list[dict], zone: str):
    got, bad = rows.read(body(*data), zone, 100)
    table = pa.Table.from_pylist([{k: str(v) for k, v in row.items()} for row in data])
    kept = to_scans(table, zone=zone)
    only_here = {b.index for b in bad if "control character" in b.reason}  # stores hold text
    refused = {b.index for b in bad}
    assert refused - only_here == set(kept.quarantine["row"].to_pylist()) - only_here
    place = {int(row): i for i, row in enumerate(kept.scans.row)}
    for i, index in enumerate(got.place.tolist()):
        k = place[index]
        assert got.epc[i] == kept.scans.codes.text[int(kept.scans.epc[k])].as_py()
        assert got.location[i] == kept.sites.ids[int(kept.scans.site[k])]
        assert got.time_us[i] == kept.scans.time_us[k] and got.op[i] == kept.scans.op[k]


@settings(max_examples=100, deadline=None)
@given(st.lists(GOOD_ROWS, min_size=1, max_size=5), ZONES)
def test_the_patient_way_reads_what_the_quick_way_reads(data: list[dict], zone: str):
    both = [rows.read(body(*data, *more), zone, 100) for more in ([], [{"epc_code": 1}])]
    (quick, _), (patient, bad) = both
    assert columns(quick) == columns(patient)
    assert [b for b in bad if b.index < len(data)] == both[0][1]


def test_fifty_rows_take_well_under_a_millisecond():
    text = body(
        *[
            {
                **GOOD,
                "event_id": i,
                "event_time": f"2024-01-15T08:30:{i:02d}Z",
                "epc_code": f"{CODE[:-2]}{i:02d}",
            }
            for i in range(50)
        ]
    )
    spent = []
    for _ in range(40):
        start = time.perf_counter()
        rows.read(text, "UTC", 100)
        spent.append(time.perf_counter() - start)
    assert min(spent) < 1e-3


def test_twenty_thousand_bad_rows_are_told_in_seconds():
    text = body(*[{**GOOD, "event_time": f"soon {i}", "location_id": 1.5} for i in range(20_000)])
    start = time.perf_counter()
    _, bad = rows.read(text, "UTC", 20_000)
    assert len(bad) == 40_000
    assert time.perf_counter() - start < 5
