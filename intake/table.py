"""What an intake is: scans, what could not be read, and the counts that add up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from trail.epc import mix
from trail.scan import Scans
from trail.sites import Sites

QUARANTINE_SCHEMA: Final = pa.schema(
    [
        ("file", pa.string()),
        ("row", pa.int64()),
        ("reason", pa.string()),
        ("epc_code", pa.string()),
        ("location_id", pa.string()),
        ("event_type", pa.string()),
        ("event_time", pa.string()),
        ("raw", pa.string()),
    ]
)
r"""A row that could not be read: where it stands (0-based data row of its file), why, its needed
values as text, or the whole row (`raw`) where it has no columns. Undecodable bytes are written
like `\xff`."""


@dataclass(frozen=True, slots=True)
class Intake:
    """What was read; every row of the input is in `scans` or in `quarantine`.

    Attributes:
        scans: the n readable rows, in input order; `row` counts over all files, from 0.
        sites: the master, and at its end the unknown sites that scans name.
        event_id: string (n,), null where a row has none; None where no file has the column.
        file_id: likewise.
        quarantine: the rows that could not be read, `QUARANTINE_SCHEMA`.
        read: number of rows in the input.
        files: name and number of rows of each file, in the order read.
        notes: sentences about the input that a user wants to know.

    Raises:
        AssertionError: the counts do not add up.
    """

    scans: Scans
    sites: Sites
    event_id: pa.StringArray | None
    file_id: pa.StringArray | None
    quarantine: pa.Table
    read: int
    files: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.read != len(self.scans) + len(self.quarantine):
            raise AssertionError(
                f"{self.read} rows read, but {len(self.scans)} scans and "
                f"{len(self.quarantine)} quarantined rows"
            )

    @property
    def repeated(self) -> int:
        """Scans that repeat an earlier one's EPC, site, operation and time; by a 64-bit hash.

        Counted when asked: it costs as much as a sort of the scans.
        """
        scans = self.scans
        key = mix((scans.epc.astype(np.uint64) << np.uint64(32)) | scans.site.astype(np.uint64))
        key = mix(key ^ scans.time_us.astype(np.uint64)) ^ scans.op.astype(np.uint64)
        key.sort()
        return int((key[1:] == key[:-1]).sum())
