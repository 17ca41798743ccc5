"""Batches of trails, taken by index from one resident matrix; padding lives only in a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Index = npt.NDArray[np.int64]


def spans(offsets: Int64, length: int) -> tuple[Int64, Int64, Int64]:
    """Windows that together give every scan its last `length` scans.

    A trail of up to `length` scans is one window, every scan of which is read. A longer one adds a
    window for each further scan, of which only the last scan is read.

    Returns:
        start, size and first scan to read of each window, all int64.
    """
    size = np.diff(offsets)
    start = offsets[:-1]
    head_size = np.minimum(size, length)
    extra = size - head_size
    longer = np.repeat(np.arange(len(size)), extra)
    if not len(longer):
        return start, head_size, np.zeros(len(start), np.int64)
    nth = np.arange(len(longer)) - np.repeat(np.cumsum(extra) - extra, extra)
    more_start = start[longer] + nth + 1
    return (
        np.concatenate([start, more_start]),
        np.concatenate([head_size, np.full(len(longer), length)]),
        np.concatenate([np.zeros(len(start), np.int64), np.full(len(longer), length - 1)]),
    )


def batches(size: Int64, most_scans: int) -> Iterator[Index]:
    """Groups of windows of like size, each of at most about `most_scans` scans, padding included.

    Windows are taken shortest first, so that a batch hardly pads.
    """
    order = np.argsort(size, kind="stable")
    start = 0
    while start < len(order):
        widest = size[order[start]]
        count = max(int(most_scans // max(int(widest), 1)), 1)
        stop = min(start + count, len(order))
        widest = size[order[stop - 1]]
        stop = start + max(min(stop - start, int(most_scans // max(int(widest), 1))), 1)
        yield order[start:stop]
        start = stop


def padded(start: Int64, size: Int64) -> tuple[Index, npt.NDArray[np.bool_]]:
    """Row numbers (batch, widest) of windows, and which of them are real; padding repeats a row."""
    steps = np.arange(int(size.max(initial=0)))
    real = steps[None, :] < size[:, None]
    return np.where(real, start[:, None] + steps[None, :], start[:, None]), real


def run(
    features: Float32,
    offsets: Int64,
    length: int,
    forward: Callable[[Float32], Float32],
    outputs: int = 5,
    most_scans: int = 16_384,
    progress: Callable[[int], object] | None = None,
) -> Float32:
    """Apply a causal model to every scan, each seeing at most its last `length` scans.

    Args:
        features: float32 (n, F) in trail order.
        offsets: int64 (t + 1,), boundaries of the trails.
        length: scans that a verdict looks back on.
        forward: maps float32 (batch, time, F) to float32 (batch, time, outputs).
        outputs: columns of the result.
        most_scans: size of a batch.
        progress: called with the number of windows done since the last call.

    Returns:
        float32 (n, outputs).
    """
    result = np.empty((len(features), outputs), dtype=np.float32)
    start, size, first = spans(offsets, length)
    for batch in batches(size, most_scans):
        rows, real = padded(start[batch], size[batch])
        read = real & (np.arange(rows.shape[1])[None, :] >= first[batch][:, None])
        result[rows[read]] = forward(features[rows])[read]
        if progress is not None:
            progress(len(batch))
    return result
