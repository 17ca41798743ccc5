"""Small hand-made scans for tests: sites, codes, and trails written as lists."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from trail.epc import parse
from trail.registry import Registry
from trail.scan import Op, Scans
from trail.sites import Sites

START_US = 1_751_328_000_000_000  # 2025-07-01
MINUTE, HOUR, DAY = 60, 3600, 86_400

FACTORY, WAREHOUSE, HUB, HUB_FAR, WHOLESALE, WHOLESALE_FAR, RETAIL, RETAIL_FAR, STRANGE = range(9)

SITES = Sites.of(
    ids=[str(i + 1) for i in range(9)],
    names=[
        "Factory",
        "Warehouse",
        "Hub",
        "Far hub",
        "Wholesaler",
        "Far wholesaler",
        "Shop",
        "Far shop",
        "",
    ],
    tier=[0, 1, 2, 2, 3, 3, 4, 4, -1],
    latitude=[37.45, 37.46, 37.35, 35.15, 37.55, 35.25, 37.56, 35.26, np.nan],
    longitude=[126.65, 126.66, 127.2, 126.9, 127.05, 126.85, 127.05, 126.86, np.nan],
    known=[True] * 8 + [False],
)
REGISTRY = Registry.of([8804823], [1293291])

HONEST = [
    (Op.AGGREGATION, FACTORY, 0),
    (Op.WMS_IN, WAREHOUSE, HOUR),
    (Op.WMS_OUT, WAREHOUSE, 2 * DAY),
    (Op.HUB_IN, HUB, 2 * DAY + 2 * HOUR),
    (Op.HUB_OUT, HUB, 4 * DAY),
    (Op.WHOLESALE_IN, WHOLESALE, 4 * DAY + 2 * HOUR),
    (Op.WHOLESALE_OUT, WHOLESALE, 8 * DAY),
    (Op.RETAIL_IN, RETAIL, 8 * DAY + HOUR),
    (Op.RETAIL_OUT, RETAIL, 12 * DAY),
    (Op.SALE, RETAIL, 14 * DAY),
]


def code(lot: int = 10004, serial: int = 1) -> str:
    """A genuine code."""
    return f"001.8804823.1293291.{lot:06d}.20250701.{serial:09d}"


def scans_of(trails: Sequence[tuple[str, Sequence[tuple[int, int, float]]]]) -> Scans:
    """Scans of trails given as (code, [(operation, site, seconds since the start), ...])."""
    codes = list(dict.fromkeys(text for text, _ in trails))
    rows = [
        (codes.index(text), site, op, START_US + int(seconds * 1e6))
        for text, trail in trails
        for op, site, seconds in trail
    ]
    epc, site, op, time_us = (list(column) for column in zip(*rows, strict=True))
    return Scans(
        epc=np.array(epc, np.int32),
        site=np.array(site, np.int32),
        op=np.array(op, np.int8),
        time_us=np.array(time_us, np.int64),
        row=np.arange(len(rows)),
        codes=parse(pa.array(codes)),
    )


_scan = st.tuples(
    st.integers(0, 9),
    st.integers(0, len(SITES) - 1),
    st.sampled_from([0, 1, 60, 3600, 3600, 7200, 86_400, 86_400, 30 * DAY]),
)
_trail = st.tuples(
    st.one_of(
        st.builds(code, st.sampled_from([10004, 10005]), st.integers(1, 6)),
        st.sampled_from(["", "rubbish", code() + "9", "002" + code()[3:]]),
    ),
    st.lists(_scan, min_size=1, max_size=14),
)
any_scans = st.lists(_trail, min_size=1, max_size=8).map(scans_of)
"""Scans of any kind: ties, repeats, loops, unknown sites, malformed codes, single scans."""
