"""Event times: every form that is read, and none that is not."""

import datetime as dt
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intake.errors import IntakeError
from intake.times import TimeFault, parse

UTC = dt.UTC
MOMENT = dt.datetime(2025, 7, 1, 10, 34, 17, tzinfo=UTC)
US = int(MOMENT.timestamp()) * 1_000_000
FORMS = {
    "2025-07-01 10:34:17": 0,
    "2025-07-01T10:34:17": 0,
    " 2025-07-01 10:34:17 ": 0,
    "2025-07-01 10:34:17.123": 123_000,
    "2025-07-01 10:34:17,5": 500_000,
    "2025-07-01T10:34:17.123456789": 123_456,
    "2025-07-01T10:34:17Z": 0,
    "2025-07-01 10:34:17 UTC": 0,
    "2025-07-01T19:34:17+09:00": 0,
    "2025-07-01T19:34:17.25+0900": 250_000,
    "2025-07-01T05:04:17-05:30": 0,
    "2025-07-01T19:34:17+09": 0,
    "2025/07/01 10:34": -17_000_000,
    "2025/7/1 10:34:17": 0,
    "2025.07.01 10:34:17": 0,
    "20250701103417": 0,
    "20250701T103417Z": 0,
    "1751366057": 0,
    "1751366057.5": 500_000,
    "1751366057123": 123_000,
    "1751366057123456": 123_456,
    "1751366057123456789": 123_456,
}


@pytest.mark.parametrize(("text", "more"), FORMS.items())
def test_each_form_alone(text, more):
    time_us, fault = parse(pa.array([text]))
    assert (time_us.tolist(), fault.tolist()) == ([US + more], [0])


def test_all_forms_in_one_column():
    texts = [*FORMS, None, "", "NaT", "tomorrow", "2025-02-29", "1969-12-31", "2201-01-01"] * 5
    time_us, fault = parse(pa.array(texts))
    expected = [US + more for more in FORMS.values()] + [0] * 7
    assert time_us.tolist() == expected * 5
    late = [TimeFault.MISSING] * 3 + [TimeFault.UNREADABLE] * 2 + [TimeFault.OUTSIDE] * 2
    assert fault.tolist() == ([0] * len(FORMS) + late) * 5
    encoded = pa.array(texts).dictionary_encode()
    assert parse(encoded)[0].tolist() == time_us.tolist()
    assert parse(encoded)[1].tolist() == fault.tolist()


@pytest.mark.parametrize(
    "text",
    [
        "2025-13-01",
        "2025-07-32",
        "2025-07-00",
        "2025-07-01 24:00",
        "2025-07-01 10:60:00",
        "7/1/2025",
        "2025-07-01 10:34:17+99:00",
        "2025-07-01Z",
        "2025-07",
        "12",
        "0",
        "-1751366057",
        "１７５１３６６０５７",
        "2025-07/01",
        "x" * 100,
        "1751366057.",
        "99999999999999999999",
        "2025-07-01 10:34:17 KST",
    ],
)
def test_no_time(text):
    assert parse(pa.array(["2025-07-01 10:34:17", text]))[1].tolist() == [0, TimeFault.UNREADABLE]


def test_future_times_are_fine():
    assert parse(pa.array(["2150-01-01 00:00:00"]))[1].tolist() == [0]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([MOMENT], pa.timestamp("ns", "Asia/Seoul")), US),
        (pa.array([MOMENT], pa.timestamp("s")), US),
        (pa.array([MOMENT.date()], pa.date32()), US - (10 * 3600 + 34 * 60 + 17) * 1_000_000),
        (pa.array([1751366057]), US),
        (pa.array([1751366057000]), US),
        (pa.array([1751366057.5]), US + 500_000),
        (pa.array([1751366057000.0]), US),
        (pa.array([b"2025-07-01 10:34:17"]), US),
        (pa.array(["2025-07-01 10:34:17"], pa.large_string()), US),
    ],
)
def test_typed_columns(column, expected):
    with_null = pa.concat_arrays([column, pa.nulls(1, column.type)])
    time_us, fault = parse(with_null)
    assert time_us.tolist() == [expected, 0]
    assert fault.tolist() == [0, TimeFault.MISSING]


def test_type_without_times():
    with pytest.raises(IntakeError, match="event_time has type"):
        parse(pa.array([[1]]))


def test_local_time_of_the_installation():
    texts = pa.array(["2025-07-01 10:34:17", "2025-07-01T10:34:17Z", "2025-07-01"])
    time_us, _ = parse(texts, "Asia/Seoul")
    hours = ((time_us - US) / 3.6e9).tolist()
    assert hours[:2] == [-9, 0]
    naive = pa.array([MOMENT.replace(tzinfo=None)], pa.timestamp("us"))
    assert parse(naive, "Asia/Seoul")[0].tolist() == [US - 9 * 3_600_000_000]


def test_hours_that_occur_twice_or_never():
    texts = pa.array(["2025-10-26 02:30:00", "2025-03-30 02:30:00", "2125-03-25 02:30:00"])
    time_us, fault = parse(texts, "Europe/Berlin")
    read = [dt.datetime.fromtimestamp(t / 1e6, UTC).isoformat() for t in time_us.tolist()]
    assert read == [
        "2025-10-26T00:30:00+00:00",
        "2025-03-30T01:00:00+00:00",
        "2125-03-25T01:00:00+00:00",
    ]
    assert not fault.any()


def test_unknown_zone():
    with pytest.raises(IntakeError, match=r"'Asia/Seuol' is not known.*such as 'Asia/Seoul'"):
        parse(pa.array(["2025-07-01"]), "Asia/Seuol")


def test_more_shapes_than_are_looked_for_one_by_one():
    odd = [f"{'x' * (i % 30 + 1)}{chr(65 + i % 26)}{i}" for i in range(3000)]
    _, fault = parse(pa.array([*odd, *FORMS]))
    assert (fault[:3000] == TimeFault.UNREADABLE).all()
    assert not fault[3000:].any()


moments = st.datetimes(dt.datetime(1971, 1, 1), dt.datetime(2199, 12, 31))
offsets = st.integers(-15 * 60, 15 * 60).map(lambda m: dt.timezone(dt.timedelta(minutes=m)))
writers = st.sampled_from(
    [
        lambda t: t.isoformat(),
        lambda t: t.isoformat(" "),
        lambda t: t.strftime("%Y/%m/%d %H:%M:%S.%f%z"),
        lambda t: t.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        lambda t: str(
            int((t - dt.datetime(1970, 1, 1, tzinfo=UTC)) / dt.timedelta(microseconds=1))
        ),
    ]
)


@given(st.lists(st.tuples(moments, offsets, writers), min_size=1, max_size=20))
def test_written_times_come_back(cases):
    texts, expected = [], []
    for moment, offset, write in cases:
        told = moment.replace(tzinfo=offset)
        exact = (told - dt.datetime(1970, 1, 1, tzinfo=UTC)) // dt.timedelta(microseconds=1)
        text = write(told)
        if (
            text.isdecimal() and len(text) != 16
        ):  # before September 2001: too short for microseconds
            text = told.isoformat()
        texts.append(text)
        expected.append(exact)
    time_us, fault = parse(pa.array(texts))
    assert not fault.any()
    assert time_us.tolist() == expected


@given(
    st.lists(moments, min_size=1, max_size=20),
    st.sampled_from(["Asia/Seoul", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]),
)
def test_local_times_agree_with_zoneinfo(times, zone):
    times = [t.replace(microsecond=0) for t in times]
    read, fault = parse(pa.array([t.isoformat(" ") for t in times]), zone)
    for moment, time_us in zip(times, read.tolist(), strict=True):
        local = moment.replace(tzinfo=ZoneInfo(zone))
        back = local.astimezone(UTC).astimezone(ZoneInfo(zone)).replace(tzinfo=None)
        if back == moment:  # it occurs
            assert time_us == int(local.timestamp()) * 1_000_000
    assert not fault.any()


@given(st.lists(st.text(max_size=30), max_size=30))
def test_any_text_has_an_answer(texts):
    time_us, fault = parse(pa.array(texts, pa.string()))
    assert len(time_us) == len(fault) == len(texts)
    assert (time_us[fault != 0] == 0).all()
    assert np.isin(fault, list(TimeFault)).all()
