"""The truth about scans: which belong to tampering, and from when it can be known."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from trail.scan import Bool, Int8, Int32, Int64

Int16 = npt.NDArray[np.int16]
UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Truth:
    """One row a scan, all of one length n.

    A scan is positive for its anomaly when it is a cause scan at or after the evidence; cause
    scans before it do not count either way, nor do scans with the anomaly's bit in `blur`.

    Attributes:
        anomaly: int8 (n,), an `Anomaly` on cause scans, else -1.
        subtype: int16 (n,), position in `SUBTYPES` on every scan of a tampered EPC that is a
            cause or blurred, else -1.
        control: bool (n,), the subtype is a control.
        grade: int8 (n,), grade of the subtype, -1 for controls and where there is none.
        cause: bool (n,), the scan belongs to the cause.
        evidence: bool (n,), the first scan at which it can be known; at most one an EPC.
        synthetic: bool (n,), the scan was added or altered.
        blur: uint8 (n,), bits (1 << Anomaly) of columns that are physically also true, or
            ambiguous, at this scan.
    """

    anomaly: Int8
    subtype: Int16
    control: Bool
    grade: Int8
    cause: Bool
    evidence: Bool
    synthetic: Bool
    blur: UInt8

    def __len__(self) -> int:
        return len(self.anomaly)

    def take(self, index: npt.NDArray[np.integer] | Bool) -> Truth:
        """The rows at `index` (positions or mask)."""
        return Truth(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


@dataclass(frozen=True)
class Marks:
    """What tampering noted of each scan before its recorded time was known (length n).

    Attributes:
        subtype: int16 (n,), -1 none.
        cause: bool (n,).
        known: bool (n,), a cause scan from which it can be known.
        of_pair: bool (n,), known at the later scan of the cause only.
        within_us: int64 (n,), known only so soon after the trail's scan before; 0 is no matter.
        synthetic: bool (n,).
        blur: uint8 (n,).
    """

    subtype: Int16
    cause: Bool
    known: Bool
    of_pair: Bool
    within_us: Int64
    synthetic: Bool
    blur: UInt8

    def take(self, index: npt.NDArray[np.integer] | Bool) -> Marks:
        """The rows at `index`."""
        return Marks(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


def settle(
    marks: Marks,
    epc: Int32,
    time: Int64,
    anomaly_of: npt.NDArray[np.integer],
    grade_of: npt.NDArray[np.integer],
    control_of: Bool,
) -> Truth:
    """The truth at recorded times.

    Args:
        marks: of n scans.
        epc: int32 (n,), which EPC.
        time: int64 (n,), recorded time.
        anomaly_of: anomaly of each subtype.
        grade_of: grade of each subtype.
        control_of: bool, of each subtype.
    """
    known = marks.known & _soon(marks.within_us, epc, time)
    pair = np.flatnonzero(marks.of_pair & marks.cause)
    known[_last_of_each(epc[pair], time[pair], pair)] = True
    evidence = np.zeros(len(epc), dtype=bool)
    told = np.flatnonzero(known & marks.cause)
    evidence[_last_of_each(epc[told], -time[told], told)] = True
    there = marks.subtype >= 0
    subtype = np.where(there, marks.subtype, 0)
    return Truth(
        anomaly=np.where(marks.cause, anomaly_of[subtype], -1).astype(np.int8),
        subtype=marks.subtype,
        control=there & control_of[subtype],
        grade=np.where(there, grade_of[subtype], -1).astype(np.int8),
        cause=marks.cause,
        evidence=evidence,
        synthetic=marks.synthetic,
        blur=marks.blur,
    )


def _soon(within_us: Int64, epc: Int32, time: Int64) -> Bool:
    """Which scans follow the one before them in their trail within so many microseconds, or need
    not, bool (n,).
    """
    soon = np.ones(len(epc), dtype=bool)
    limited = np.unique(epc[within_us > 0])
    at = np.flatnonzero(np.isin(epc, limited)) if len(limited) else limited
    at = at[np.lexsort((time[at], epc[at]))]
    gap = np.diff(time[at], prepend=0)
    gap[np.flatnonzero(np.diff(epc[at], prepend=-1))] = np.iinfo(np.int64).max
    soon[at] = (within_us[at] == 0) | (gap <= within_us[at])
    return soon


def _last_of_each(epc: Int32, time: Int64, position: npt.NDArray[np.intp]) -> Int64:
    """Of the scans of each EPC, the position of the last in time; among equals the later row."""
    order = np.lexsort((position, time, epc))
    last = np.flatnonzero(np.diff(epc[order], append=-1))
    return position[order][last] if len(order) else position
