"""A made-up part: lots with boxes, clustered false alarms, five types, grades and controls."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.measures.blocks import Answers
from trail.scan import ANOMALIES, HOUR_US, Op

SUBTYPES = (
    *(f"{kind}_{grade}" for kind in ANOMALIES for grade in range(4)),
    *(f"{kind}_control" for kind in ANOMALIES),
    "never_injected",
)
OPS = np.array([0, 1, 2, 3, 4, 5, 6, 7, 9])


@dataclass(frozen=True)
class MadePart:
    """Scans sorted by (lot, EPC, time), with the attributes that evaluation reads."""

    features: np.ndarray
    offsets: np.ndarray
    target: np.ndarray
    rules: np.ndarray
    lot: np.ndarray
    row: np.ndarray
    event_id: np.ndarray
    time_us: np.ndarray
    op: np.ndarray
    anomaly: np.ndarray
    subtype: np.ndarray
    grade: np.ndarray
    control: np.ndarray
    cause: np.ndarray
    evidence: np.ndarray
    synthetic: np.ndarray
    label_source: np.ndarray
    trail: np.ndarray

    @property
    def pace(self) -> np.ndarray:
        """Nothing is known of it."""
        return np.full(len(self.lot), np.nan, np.float32)


def make(lots: int = 12, items: int = 60, seed: int = 0, share: float = 0.12):
    """A part, the scores of four models, and the natural answers."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 10, lots * items)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    n = int(offsets[-1])
    trail = np.repeat(np.arange(lots * items), lengths)
    place = np.arange(n) - offsets[trail]
    lot = trail // items
    box = trail // 12
    dwell = rng.integers(20, 80, (lots * items // 12 + 1, 10)).cumsum(axis=1)
    time_us = (dwell[box, place] + 24 * (lot * 200 // lots)) * HOUR_US
    part = MadePart(
        features=np.zeros((n, 3), np.float32),
        offsets=offsets,
        target=np.zeros((n, 5), np.int8),
        rules=np.zeros((n, 5), np.float32),
        lot=lot.astype(np.int64) * 7 + 3,
        row=np.arange(n),
        event_id=np.arange(n) + 1000,
        time_us=time_us.astype(np.int64),
        op=OPS[np.minimum(place, 8)].astype(np.int8),
        anomaly=np.full(n, -1, np.int8),
        subtype=np.full(n, -1, np.int16),
        grade=np.full(n, -1, np.int8),
        control=np.zeros(n, bool),
        cause=np.zeros(n, bool),
        evidence=np.zeros(n, bool),
        synthetic=np.zeros(n, bool),
        label_source=np.zeros(n, np.int8),
        trail=trail,
    )
    hardness = np.zeros((n, 5))
    answers: dict[str, list] = {name: [] for name in Answers.__dataclass_fields__}
    for number in np.flatnonzero(rng.random(lots * items) < share):
        _tamper(part, rng, int(number), hardness, answers, natural=rng.random() < 0.08)
    return part, _scores(part, rng, hardness), _columns(answers)


def _tamper(part, rng, number, hardness, answers, natural):
    start, end = part.offsets[number], part.offsets[number + 1]
    kind, grade = int(rng.integers(5)), int(rng.choice(5, p=[0.22, 0.22, 0.22, 0.22, 0.12]))
    first = int(rng.integers(start, end))
    told = min(first + int(rng.integers(0, 2)), end - 1)
    cause = np.arange(first, min(end, told + 2))
    control = grade == 4
    if not control:
        hardness[cause[cause >= told], kind] = 4 - grade
    subtype = 20 + kind if control else kind * 4 + grade
    if natural:
        subtype = len(SUBTYPES) - 1 if not control and rng.random() < 0.4 else subtype
        for scan in range(start, end):
            mine = scan in cause
            answers["event_id"].append(part.event_id[scan])
            answers["anomaly"].append(kind if mine else -1)
            answers["subtype"].append(subtype if mine else -1)
            answers["grade"].append(grade if mine else -1)
            answers["control"].append(control)
            answers["cause"].append(mine)
            answers["blur"].append(1 << (kind + 1) % 5 if mine else 0)
            answers["evidence"].append(scan == told and not control)
        return
    part.synthetic[start:end] = True
    part.control[start:end] = control
    part.anomaly[start:end] = kind
    part.subtype[start:end] = subtype
    part.grade[start:end] = grade
    part.cause[cause] = True
    part.evidence[told] = not control
    if not control:
        part.target[cause, kind] = np.where(cause >= told, 1, -1)


def _scores(part, rng, hardness):
    n = len(part.lot)
    # Some lots are noisy as a whole: their false alarms cluster.
    noisy = np.unique(part.lot, return_inverse=True)[1]
    lift = rng.exponential(0.5, noisy.max() + 1)[noisy][:, None]

    def probability(skill, spread):
        logit = rng.normal(-6, spread, (n, 5)) + lift + skill * hardness + 2.5 * (hardness > 0)
        return (1 / (1 + np.exp(-logit))).astype(np.float32)

    part.rules[:] = np.where(hardness >= 4, rng.choice([0, 40, 70, 100], (n, 5)), 0)
    part.rules[rng.random((n, 5)) < 0.01] = 60
    part.event_id[part.synthetic] = -1
    svm = probability(0.2, 1.8).max(axis=1, keepdims=True)
    return {
        "rules": (part.rules / 100).astype(np.float32),
        "svm": np.repeat(svm, 5, axis=1),
        "gbm": probability(1.8, 1.2),
        "lstm": probability(2.0, 1.1),
    }


def _columns(answers):
    kinds = dict.fromkeys(("anomaly", "grade", "blur"), np.int8)
    kinds |= {"event_id": np.int64, "subtype": np.int16}
    return Answers(**{k: np.array(v, kinds.get(k, bool)) for k, v in answers.items()})


def test_the_made_part_is_sorted_and_whole():
    part, scores, answers = make()
    assert (np.diff(part.trail) >= 0).all()
    same = np.diff(part.trail) == 0
    assert (np.diff(part.time_us)[same] > 0).all()
    assert {s.shape for s in scores.values()} == {part.target.shape}
    assert np.isin(answers.event_id, part.event_id).all()
    assert part.op.max() == Op.SALE
