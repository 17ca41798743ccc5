"""The scan: vocabularies and the columnar form that every other room works on."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from trail.epc import EpcTable

Int8 = npt.NDArray[np.int8]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

ANOMALIES: Final = ("epcFake", "epcDup", "locErr", "evtOrderErr", "jump")
"""Wire names of the five anomalies, in the order of every five-column array."""


class Anomaly(IntEnum):
    """Column of an anomaly in every five-column array."""

    FAKE = 0
    DUP = 1
    LOC = 2
    ORDER = 3
    JUMP = 4


class Tier(IntEnum):
    """How far down the chain a site or an operation lies."""

    FACTORY = 0
    WMS = 1
    HUB = 2
    WHOLESALE = 3
    RETAIL = 4
    SALE = 5


TIER_NAMES: Final = ("Factory", "WMS", "Logistics_HUB", "W_Stock", "R_Stock", "POS_Sell")


class Op(IntEnum):
    """Operation of a scan; the value is its place in an honest journey."""

    AGGREGATION = 0
    WMS_IN = 1
    WMS_OUT = 2
    HUB_IN = 3
    HUB_OUT = 4
    WHOLESALE_IN = 5
    WHOLESALE_OUT = 6
    RETAIL_IN = 7
    RETAIL_OUT = 8
    SALE = 9


EVENT_TYPES: Final = (
    "Aggregation",
    "WMS_Inbound",
    "WMS_Outbound",
    "HUB_Inbound",
    "HUB_Outbound",
    "W_Stock_Inbound",
    "W_Stock_Outbound",
    "R_Stock_Inbound",
    "R_Stock_Outbound",
    "POS_Sell",
)
"""`event_type` as it is written in exports, by `Op`."""

BUSINESS_STEPS: Final = (
    "Factory",
    "WMS",
    "WMS",
    "Logistics_HUB",
    "Logistics_HUB",
    "W_Stock_Inbound",
    "W_Stock_Outbound",
    "R_Stock_Inbound",
    "R_Stock_Outbound",
    "POS_Sell",
)
"""`business_step` as exports write it, by `Op`."""

OP_TIER: Final[Int8] = np.array([0, 1, 1, 2, 2, 3, 3, 4, 4, 5], dtype=np.int8)
"""Tier of an operation, by `Op`."""

SITE_TIER_OF_OP: Final[Int8] = np.minimum(OP_TIER, np.int8(Tier.RETAIL))
"""Tier of the site where an operation belongs: a sale happens at a retailer."""

OP_DIRECTION: Final[Int8] = np.array([0, 1, -1, 1, -1, 1, -1, 1, -1, -1], dtype=np.int8)
"""+1 the item arrives at the site, -1 it leaves it (a sale too), 0 it comes into being."""

REQUIRED_COLUMNS: Final = ("epc_code", "location_id", "event_type", "event_time")
EXPORT_COLUMNS: Final = (
    "scan_location",
    "location_id",
    "hub_type",
    "business_step",
    "event_type",
    "operator_id",
    "device_id",
    "epc_code",
    "epc_header",
    "epc_company",
    "epc_product",
    "epc_lot",
    "epc_manufacture",
    "epc_serial",
    "product_name",
    "event_time",
    "manufacture_date",
    "expiry_date",
)
"""Columns of the exports that installations have, in their order."""

SECOND_US: Final = 1_000_000
HOUR_US: Final = 3600 * SECOND_US
DAY_US: Final = 24 * HOUR_US


_COLUMNS: Final = ("epc", "site", "op", "time_us", "row")


@dataclass(frozen=True, slots=True)
class Scans:
    """Scans as integer columns of one length n, in any order.

    Attributes:
        epc: int32 (n,), index into `codes`.
        site: int32 (n,), index into the `Sites` that the scans were read with.
        op: int8 (n,), an `Op`.
        time_us: int64 (n,), event time, microseconds since 1970 in UTC.
        row: int64 (n,), row number in the input, from 0; identifies the scan.
        codes: the distinct EPC codes.
    """

    epc: Int32
    site: Int32
    op: Int8
    time_us: Int64
    row: Int64
    codes: EpcTable

    def __len__(self) -> int:
        return len(self.epc)

    @property
    def lot(self) -> Int64:
        """Lot key of each scan, int64 (n,); the same in every process."""
        return self.codes.lot_key[self.epc]

    def take(self, index: npt.NDArray[np.integer] | Bool | slice) -> Scans:
        """The scans at `index` (positions or mask), with the same table of codes."""
        columns = {name: getattr(self, name) for name in _COLUMNS}
        if isinstance(index, np.ndarray) and index.dtype != np.bool_:
            taken = {name: column.take(index) for name, column in columns.items()}
        else:
            taken = {name: column[index] for name, column in columns.items()}
        return Scans(codes=self.codes, **taken)
