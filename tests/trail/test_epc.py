import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trail.small import code
from trail.epc import Fault, concat, fault_sentence, parse


def fault_of(text: str) -> Fault:
    return Fault(int(parse(pa.array([text])).fault[0]))


def test_parts_of_a_code():
    table = parse(pa.array(["001.8804823.1293291.010004.20250701.000004002"]))
    assert (table.company[0], table.product[0], table.lot[0]) == (8804823, 1293291, 10004)
    assert table.serial[0] == 4002
    assert np.datetime64(int(table.made_day[0]), "D") == np.datetime64("2025-07-01")
    assert table.fault[0] == 0


def test_dashes_may_stand_for_dots():
    dashed = parse(pa.array([code().replace(".", "-")]))
    assert dashed.fault[0] == 0
    assert dashed.lot_key[0] == parse(pa.array([code()])).lot_key[0]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", Fault.STRUCTURE),
        ("rubbish", Fault.STRUCTURE),
        (code()[:-1], Fault.STRUCTURE),
        (code()[:-1] + "x", Fault.STRUCTURE),
        (code().replace(".", " "), Fault.STRUCTURE),
        (code()[:-2] + "é", Fault.STRUCTURE),
        ("002" + code()[3:], Fault.HEADER),
        (code(lot=0), Fault.LOT),
        (code(serial=0), Fault.SERIAL),
        (code().replace("20250701", "20250229"), Fault.DATE),
        (code().replace("20250701", "20251301"), Fault.DATE),
        (code().replace("20250701", "00000000"), Fault.DATE),
        ("002" + code(lot=0, serial=0)[3:], Fault.HEADER | Fault.LOT | Fault.SERIAL),
    ],
)
def test_what_is_wrong_is_named(text, fault):
    assert fault_of(text) == fault
    for flag in Fault:
        from trail.epc import FAULT_TEXT

        assert (FAULT_TEXT[flag] in fault_sentence(int(fault))) == bool(fault & flag)


def test_malformed_codes_are_lots_of_their_own():
    table = parse(pa.array(["rubbish", "other", code(serial=1), code(serial=2)]))
    assert len(set(table.lot_key.tolist())) == 3
    assert table.lot_key[2] == table.lot_key[3]


def test_lot_keys_are_the_same_in_every_process():
    assert parse(pa.array([code()])).lot_key[0] == 2420053667380379178


def test_a_slice_of_an_array_parses_like_a_copy():
    codes = pa.array([code(serial=i) for i in range(1, 20)])
    assert parse(codes.slice(7, 5)).serial.tolist() == list(range(8, 13))


def test_no_codes_at_all():
    assert len(parse(pa.array([], pa.string()))) == 0


@given(st.lists(st.text(max_size=50), max_size=8))
def test_any_text_is_parsed_without_an_error(texts):
    table = parse(pa.array(texts, pa.string()))
    assert len(table) == len(texts)
    assert (table.serial[table.fault & Fault.STRUCTURE > 0] == -1).all()


@given(
    st.integers(0, 9_999_999),
    st.integers(0, 9_999_999),
    st.integers(1, 999_999),
    st.dates(),
    st.integers(1, 999_999_999),
)
def test_round_trip(company, product, lot, date, serial):
    text = f"001.{company:07d}.{product:07d}.{lot:06d}.{date:%Y%m%d}.{serial:09d}"
    if date.year < 1970:
        return
    table = parse(pa.array([text, "rubbish"]))
    assert table.fault.tolist() == [0, int(Fault.STRUCTURE)]
    parts = [int(getattr(table, name)[0]) for name in ("company", "product", "lot", "serial")]
    assert parts == [company, product, lot, serial]
    assert np.datetime64(int(table.made_day[0]), "D") == np.datetime64(date)


def test_concat_and_take_keep_rows():
    both = concat(parse(pa.array([code(serial=1)])), parse(pa.array(["x", code(serial=3)])))
    assert both.serial.tolist() == [1, -1, 3]
    assert both.take(np.array([2, 0])).text.to_pylist() == [code(serial=3), code(serial=1)]
