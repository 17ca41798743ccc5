"""The radix sort against numpy's own sort by several keys."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trail.order import order_by

MANY = 1100


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 62), min_size=1, max_size=5),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 2, 999, 1000, MANY]),
)
def test_rows_stand_as_lexsort_puts_them(bits, seed, n):
    rng = np.random.default_rng(seed)
    keys = [rng.integers(0, 2**b, size=n) >> rng.integers(0, b + 1) for b in bits]
    assert np.array_equal(order_by(*keys), np.lexsort(keys))


@pytest.mark.parametrize("kind", [np.int8, np.int32, np.int64])
def test_narrow_keys_are_not_cut_off(kind):
    rng = np.random.default_rng(0)
    keys = [rng.integers(0, np.iinfo(kind).max, size=MANY, dtype=kind) for _ in range(3)]
    assert np.array_equal(order_by(*keys), np.lexsort(keys))


def test_rows_that_agree_keep_their_order():
    assert np.array_equal(order_by(np.zeros(MANY, np.int64)), np.arange(MANY))


def test_no_rows_have_an_order():
    assert len(order_by(np.zeros(0, np.int64), np.zeros(0, np.int8))) == 0
