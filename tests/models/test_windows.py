"""Windows over trails: every scan sees its last scans, whatever the batches."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import windows
from models.lstm import Shape, TrailLSTM

sizes = st.lists(st.integers(1, 30), min_size=1, max_size=12)


def offsets_of(size):
    return np.concatenate([[0], np.cumsum(size)]).astype(np.int64)


@given(sizes, st.integers(1, 12))
def test_every_scan_is_read_once_and_looks_back_as_far_as_it_may(size, length):
    offsets = offsets_of(size)
    start, count, first = windows.spans(offsets, length)
    read = {}
    for s, c, f in zip(start.tolist(), count.tolist(), first.tolist(), strict=True):
        for place in range(f, c):
            assert s + place not in read
            read[s + place] = s
    assert sorted(read) == list(range(offsets[-1]))
    trail = np.repeat(np.arange(len(size)), size)
    for row, begin in read.items():
        expected = max(int(offsets[trail[row]]), row - length + 1)
        if row - offsets[trail[row]] < length:
            expected = int(offsets[trail[row]])
        assert begin == expected


@given(sizes, st.integers(1, 200))
def test_batches_take_every_window_once(size, most):
    size = np.array(size)
    batches = list(windows.batches(size, most))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(size)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * size[batch].max() <= most


@settings(max_examples=20, deadline=None)
@given(sizes, st.integers(1, 8), st.integers(1, 64))
def test_result_does_not_depend_on_batches(size, length, most):
    offsets = offsets_of(size)
    features = np.random.default_rng(0).normal(size=(int(offsets[-1]), 3)).astype(np.float32)

    def forward(batch):
        return np.cumsum(batch, axis=1)[:, :, :1]

    one = windows.run(features, offsets, length, forward, outputs=1, most_scans=most)
    other = windows.run(features, offsets, length, forward, outputs=1, most_scans=10**6)
    assert np.allclose(one, other, atol=1e-5)


def test_the_network_is_causal_and_padding_changes_nothing():
    torch.manual_seed(0)
    network = TrailLSTM(Shape(inputs=4, hidden=8, length=20)).eval()
    features = np.random.default_rng(1).normal(size=(13, 4)).astype(np.float32)

    def forward(batch):
        with torch.inference_mode():
            return network(torch.from_numpy(batch)).numpy()

    together = windows.run(features, np.array([0, 3, 13]), 20, forward)
    alone = windows.run(features[3:9], np.array([0, 6]), 20, forward)
    assert np.allclose(together[3:9], alone, atol=1e-6)


def test_no_trails_at_all():
    result = windows.run(np.empty((0, 3), np.float32), np.array([0]), 5, lambda b: b[:, :, :1], 1)
    assert result.shape == (0, 1)


def test_a_long_trail_is_scored_by_its_last_scans_only():
    torch.manual_seed(0)
    network = TrailLSTM(Shape(inputs=2, hidden=4, length=5)).eval()
    features = np.random.default_rng(2).normal(size=(12, 2)).astype(np.float32)

    def forward(batch):
        with torch.inference_mode():
            return network(torch.from_numpy(batch)).numpy()

    whole = windows.run(features, np.array([0, 12]), 5, forward)
    last = forward(features[None, 7:12])[0, -1]
    assert whole[11] == pytest.approx(last, abs=1e-6)
