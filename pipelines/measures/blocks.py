"""The blocks of truth, which are never pooled: injected, natural, analysts' verdicts.

The injected block asks whether tampering like that of training is found; the natural one, whose
answers no other stage has seen, whether the model has learned anything but the injection; the
verdicts, what analysts think of the trails that they have looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipelines.measures.lots import Float32, Int64
from pipelines.measures.ranking import Bool
from trail.scan import ANOMALIES

Int8 = npt.NDArray[np.int8]
Int16 = npt.NDArray[np.int16]

ANALYST = 2
"""`label_source` of a verdict."""


class Part(Protocol):
    """What is measured of a part of the data: n scans sorted by (lot, EPC, time)."""

    @property
    def target(self) -> Int8:
        """int8 (n, 5): 1 anomalous, 0 honest, -1 not counted."""

    @property
    def pace(self) -> Float32:
        """float32 (n,), time since the scan before over the usual time of such a step, not a number
        where none is known.
        """

    @property
    def lot(self) -> Int64:
        """int64 (n,), lot key."""

    @property
    def trail(self) -> npt.NDArray[Any]:
        """Number of the scan's trail, (n,)."""

    @property
    def time_us(self) -> Int64:
        """int64 (n,), microseconds in UTC."""

    @property
    def op(self) -> Int8:
        """int8 (n,), a `trail.scan.Op`."""

    @property
    def anomaly(self) -> Int8:
        """int8 (n,), the type that the trail was injected with, -1 none."""

    @property
    def subtype(self) -> Int16:
        """int16 (n,), the kind of tampering, -1 none."""

    @property
    def grade(self) -> Int8:
        """int8 (n,), 0 blatant to 3 only context can tell, else none or a control."""

    @property
    def control(self) -> Bool:
        """bool (n,), tampering that cannot be told."""

    @property
    def cause(self) -> Bool:
        """bool (n,), scans that belong to the cause."""

    @property
    def evidence(self) -> Bool:
        """bool (n,), the first scan at which it can be known."""

    @property
    def synthetic(self) -> Bool:
        """bool (n,), scans of an EPC that was tampered with after the split."""

    @property
    def label_source(self) -> Int8:
        """int8 (n,), 2 where an analyst has said what it is."""

    @property
    def event_id(self) -> Int64:
        """int64 (n,), -1 where there is none."""


@dataclass(frozen=True, slots=True)
class Block:
    """Scans with one kind of truth, and every model's scores of them.

    Attributes:
        name: "injected", "natural" or "verdicts".
        target: int8 (n, 5), as `Part.target`, with every trail of a control at -1.
        scores: float32 (n, 5) in [0, 1], by model.
        lot, pace, time_us, op, anomaly, subtype, grade, control, cause, evidence: as in `Part`,
            (n,).
        trail: int64 (n,), from 0, without gaps.
        position: int64 (n,), place of the scan in its trail, from 1.
    """

    name: str
    target: Int8
    scores: Mapping[str, Float32]
    lot: Int64
    trail: Int64
    position: Int64
    pace: Float32
    time_us: Int64
    op: Int8
    anomaly: Int8
    subtype: Int16
    grade: Int8
    control: Bool
    cause: Bool
    evidence: Bool

    def __len__(self) -> int:
        return len(self.lot)

    def days(self) -> float:
        """Days from the first to the last scan, at least one."""
        if not len(self):
            return 1.0
        return max(1.0, float(self.time_us.max() - self.time_us.min()) / 86_400e6)


@dataclass(frozen=True, slots=True)
class Answers:
    """The natural truth, one row a scan that the world's own tampering touched.

    Attributes:
        event_id: int64 (m,).
        anomaly: int8 (m,), column in `ANOMALIES`, also of scans that are only touched; -1 none.
        subtype: int16 (m,), index into the names of the subtypes, -1 unknown.
        grade: int8 (m,).
        control, cause, evidence: bool (m,).
        blur: int8 (m,), a bit for each type (1 << column) for which the scan is not counted.
    """

    event_id: Int64
    anomaly: Int8
    subtype: Int16
    grade: Int8
    control: Bool
    cause: Bool
    evidence: Bool
    blur: Int8


def scored_target(part: Part) -> Int8:
    """`part.target` with every scan of a control's trail at -1: nobody can tell a control."""
    return _without(part.target, part.control, _numbered(part.trail))


def injected(part: Part, scores: Mapping[str, Float32], answers: Answers | None) -> Block:
    """The trails that neither the world has tampered with nor an analyst judged."""
    trail = _numbered(part.trail)
    kept = ~_trails_with(part.label_source == ANALYST, trail)
    if answers is not None:
        kept &= ~_trails_with(_tampered(part, answers), trail)
    return _block("injected", part, scores, kept, scored_target(part), None)


def natural(part: Part, scores: Mapping[str, Float32], answers: Answers) -> Block:
    """The trails that were not injected, with the world's own truth.

    A scan of the cause at or after the trail's first evidence is a positive of its type; a scan of
    the cause before it is not counted for that type, nor is one for the types in its `blur`, which
    the same tampering may well look like; every other scan is honest.
    """
    trail = _numbered(part.trail)
    kept = ~_trails_with(part.synthetic, trail)
    at, row = _found(part, answers)
    truth = _Truth.none(len(trail))
    truth.anomaly[at] = answers.anomaly[row]
    truth.subtype[at] = answers.subtype[row]
    truth.grade[at] = answers.grade[row]
    truth.control[at] = answers.control[row]
    truth.cause[at] = answers.cause[row]
    truth.evidence[at] = answers.evidence[row]
    target = np.zeros((len(trail), len(ANOMALIES)), dtype=np.int8)
    blurred = (answers.blur[row, None] >> np.arange(len(ANOMALIES))) & 1
    target[at] = np.where(blurred, -1, 0)
    cause = np.flatnonzero(truth.cause & (truth.anomaly >= 0))
    told = first_true(truth.evidence, trail)[trail[cause]]
    # Scans of one moment are known together, in whichever order they stand.
    at_us = np.append(part.time_us, np.iinfo(np.int64).max)[told]
    known = part.time_us[cause] >= at_us
    target[cause, truth.anomaly[cause]] = np.where(known, 1, -1)
    return _block("natural", part, scores, kept, _without(target, truth.control, trail), truth)


def verdicts(part: Part, scores: Mapping[str, Float32]) -> Block:
    """The trails that an analyst has judged and that were not injected."""
    trail = _numbered(part.trail)
    kept = _trails_with(part.label_source == ANALYST, trail)
    kept &= ~_trails_with(part.synthetic, trail)
    return _block("verdicts", part, scores, kept, scored_target(part), None)


def first_true(mask: Bool, trail: Int64) -> Int64:
    """Position (0 .. n - 1) of the first scan of each trail in `mask`, n where there is none."""
    trails = int(trail[-1]) + 1 if len(trail) else 0
    first = np.full(trails, len(mask), dtype=np.int64)
    at = np.flatnonzero(mask)[::-1]
    # Written from the last to the first: the first one stays.
    first[trail[at]] = at
    return first


@dataclass(frozen=True, slots=True)
class _Truth:
    anomaly: Int8
    subtype: Int16
    grade: Int8
    control: Bool
    cause: Bool
    evidence: Bool

    @classmethod
    def none(cls, size: int) -> _Truth:
        return cls(
            anomaly=np.full(size, -1, dtype=np.int8),
            subtype=np.full(size, -1, dtype=np.int16),
            grade=np.full(size, -1, dtype=np.int8),
            control=np.zeros(size, dtype=bool),
            cause=np.zeros(size, dtype=bool),
            evidence=np.zeros(size, dtype=bool),
        )


def _block(
    name: str,
    part: Part,
    scores: Mapping[str, Float32],
    kept: Bool,
    target: Int8,
    truth: _Truth | None,
) -> Block:
    source: Part | _Truth = part if truth is None else truth
    trail = _numbered(part.trail[kept])
    starts = np.flatnonzero(np.diff(trail, prepend=-1))
    return Block(
        name=name,
        target=target[kept],
        scores={model: score[kept] for model, score in scores.items()},
        lot=part.lot[kept],
        trail=trail,
        position=np.arange(len(trail)) - starts[trail] + 1 if len(trail) else trail,
        pace=part.pace[kept],
        time_us=part.time_us[kept],
        op=part.op[kept],
        anomaly=source.anomaly[kept],
        subtype=source.subtype[kept],
        grade=source.grade[kept],
        control=source.control[kept],
        cause=source.cause[kept],
        evidence=source.evidence[kept],
    )


def _numbered(trail: npt.NDArray[Any]) -> Int64:
    """Trails numbered from 0 in their order: the scans of a trail stand together."""
    if not len(trail):
        return np.zeros(0, dtype=np.int64)
    return np.concatenate([[0], np.cumsum(trail[1:] != trail[:-1])]).astype(np.int64)


def _trails_with(mask: Bool, trail: Int64) -> Bool:
    """The scans of those trails that have a scan in `mask`."""
    trails = int(trail[-1]) + 1 if len(trail) else 0
    has = np.zeros(trails, dtype=bool)
    has[trail[mask]] = True
    found: Bool = has[trail]
    return found


def _without(target: Int8, control: Bool, trail: Int64) -> Int8:
    masked = target.copy()
    masked[_trails_with(control, trail)] = -1
    return masked


def _found(part: Part, answers: Answers) -> tuple[Int64, Int64]:
    """Scans of the part that have an answer, and the rows of their answers."""
    order = np.argsort(answers.event_id, kind="stable")
    ranked = answers.event_id[order]
    if not len(ranked):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    place = np.minimum(np.searchsorted(ranked, part.event_id), len(ranked) - 1)
    at = np.flatnonzero((ranked[place] == part.event_id) & (part.event_id >= 0))
    return at, order[place[at]]


def _tampered(part: Part, answers: Answers) -> Bool:
    at, row = _found(part, answers)
    mask = np.zeros(len(part.lot), dtype=bool)
    mask[at[answers.anomaly[row] >= 0]] = True
    return mask
