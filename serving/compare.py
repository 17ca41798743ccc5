"""Champion against challenger, from what the log holds of both.

In shadow both judged the same scans: they are compared scan by scan. In an A/B test each judged its
own share of the EPCs: shares are compared. Where analysts gave feedback, so is the cost of misses
and false alarms, with an interval by bootstrap over lots, because errors cluster by lot.

Feedback is mostly on what somebody was told of: misses are rarely reviewed, so that costs here are
lower bounds, and those of the one that answered are known best.
"""

from __future__ import annotations

import argparse
import json
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Final

import numpy as np
import numpy.typing as npt

from logbook import Feedback, Kind, LogError, PredictionLog, Record
from logbook.opened import open_log
from serving.settings import Settings, SettingsError
from trail.scan import ANOMALIES, Bool, Float32, Float64, Int64

Int8 = npt.NDArray[np.int8]

FLAGGED: Final = 50.0
"""Score from which a scan is flagged."""
COSTS: Final = ((20.0, 20.0), (20.0, 20.0), (5.0, 20.0), (5.0, 5.0), (20.0, 5.0))
"""Cost of a miss and of a false alarm, by anomaly."""

_AT_ONCE: Final = 5_000
_EARLIER: Final = 5_000
"""Scans before the first one of a time that are looked at too: requests overlap."""
_SCANS: Final = 1_000
"""Costs are given for this many scans."""
_UNKNOWN: Final = -1

Costs = Sequence[tuple[float, float]]
Span = tuple[float, float]


class NothingToCompareError(ValueError):
    """The log holds no verdicts of two versions; says what would make some."""


@dataclass(frozen=True, slots=True)
class Arm:
    """What one version said of n scans.

    Attributes:
        version: its version.
        id: int64 (n,), number of the scan in the log.
        epc: int64 (n,), number of its code.
        lot: int64 (n,), lot key.
        score: float32 (n, 5).
        truth: int8 (n, 5), what feedback says: 1 there is, 0 there is none, -1 unknown.
    """

    version: str
    id: Int64
    epc: Int64
    lot: Int64
    score: Float32
    truth: Int8

    @property
    def flag(self) -> Bool:
        """Bool (n, 5)."""
        return np.asarray(self.score >= FLAGGED)

    def take(self, index: Bool | Int64) -> Arm:
        """Some of its scans."""
        return Arm(
            self.version,
            self.id[index],
            self.epc[index],
            self.lot[index],
            self.score[index],
            self.truth[index],
        )

    def cost(self, costs: Costs) -> Float64:
        """What each scan is known to have cost, float64 (n, 5)."""
        miss, alarm = np.asarray(costs, dtype=np.float64).T
        missed = (self.truth == 1) & ~self.flag
        cost: Float64 = missed * miss + ((self.truth == 0) & self.flag) * alarm
        return cost


@dataclass(frozen=True, slots=True)
class Agreement:
    """How many scans or EPCs both flag, only one, or none."""

    both: int
    champion_only: int
    challenger_only: int
    none: int


@dataclass(frozen=True, slots=True)
class Difference:
    """A figure of both, and challenger - champion.

    Attributes:
        champion: of the champion.
        challenger: of the challenger.
        difference: challenger - champion.
        interval: its 95 % interval by lot; None where there are fewer than two lots.
    """

    champion: float
    challenger: float
    difference: float
    interval: Span | None


@dataclass(frozen=True, slots=True)
class OfType:
    """The comparison on one anomaly.

    Attributes:
        scans: agreement on scans; None in an A/B test, as are `epcs`, and the two next.
        epcs: agreement on EPCs; an EPC is flagged where one of its scans is.
        score: mean score difference, challenger - champion.
        score_95: 95th percentile of its absolute value.
        flagged: flagged scans, per 1,000.
        flagged_epcs: flagged EPCs, per 1,000.
        reviewed: scans with feedback, of champion and of challenger.
        missed: of them, anomalies without a flag.
        false_alarms: of them, flags without an anomaly.
        cost: known cost per 1,000 scans; None where there is no feedback.
    """

    scans: Agreement | None
    epcs: Agreement | None
    score: float | None
    score_95: float | None
    flagged: Difference
    flagged_epcs: Difference
    reviewed: tuple[int, int]
    missed: tuple[int, int]
    false_alarms: tuple[int, int]
    cost: Difference | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two versions compared.

    Attributes:
        mode: "shadow" or "ab".
        champion: version that answered (in an A/B test: for the larger share).
        challenger: the other one.
        scans: scans of champion and of challenger; in shadow the same ones.
        epcs: EPCs, likewise.
        lots: lots that they belong to.
        types: by anomaly.
        cost: known cost of all types per 1,000 scans; None where there is no feedback.
        others: further pairs that the log holds, (champion, challenger, scans).
    """

    mode: str
    champion: str
    challenger: str
    scans: tuple[int, int]
    epcs: tuple[int, int]
    lots: int
    types: dict[str, OfType]
    cost: Difference | None
    others: list[tuple[str, str, int]]


def compare(
    log: PredictionLog,
    *,
    since_us: int = 0,
    champion: str = "",
    challenger: str = "",
    costs: Costs = COSTS,
    replicates: int = 2_000,
    seed: int = 17,
) -> list[Comparison]:
    """Compare versions on the scans received since a time.

    Args:
        log: the prediction log.
        since_us: microseconds since 1970 in UTC.
        champion: only with this version as champion; "" takes what was logged last.
        challenger: likewise.
        costs: cost of a miss and of a false alarm, by anomaly.
        replicates: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        The comparison in shadow, and that of an A/B test, where there are such.

    Raises:
        NothingToCompareError: there is neither.
        LogError: the log cannot be read.
    """
    seen = _Seen(_truth(log.feedback()))
    for record in _records(log, since_us):
        seen.add(record)
    draw = _Bootstrap(replicates, seed)
    wanted = _Wanted(champion, challenger)
    made = [_shadow(seen, wanted, costs, draw), _ab(seen, wanted, costs, draw)]
    found = [one for one in made if one is not None]
    if not found:
        raise NothingToCompareError(seen.nothing(wanted))
    return found


# Reading


def _records(log: PredictionLog, since_us: int) -> Iterator[Record]:
    last = max(0, _before(log, since_us) - _EARLIER) if since_us > 0 else 0
    while records := log.since(last, _AT_ONCE):
        yield from (record for record in records if record.received_us >= since_us)
        last = records[-1].id


def _before(log: PredictionLog, since_us: int) -> int:
    """A number below which scans were received before a time, by halving."""
    low, high = 0, int(log.figures()["last_id"])
    while low < high:
        middle = (low + high) // 2
        found = log.since(middle, 1)
        if found and found[0].received_us < since_us:
            low = found[0].id
        else:
            high = middle
    return low


@dataclass(frozen=True, slots=True)
class _Truth:
    """What analysts said: (5,) of 1, 0 and -1, by event id or by (code, time)."""

    by_event: dict[int, list[int]]
    by_scan: dict[tuple[str, int], list[int]]

    def of(self, record: Record) -> list[int] | None:
        """What they said of a scan."""
        scan = record.scan
        if scan.event_id >= 0 and scan.event_id in self.by_event:
            return self.by_event[scan.event_id]
        return self.by_scan.get((scan.epc, scan.time_us))


def _truth(feedback: list[Feedback]) -> _Truth:
    truth = _Truth({}, {})
    for one in feedback:  # by time: the last word counts, as it does for the labels
        if one.anomaly not in ANOMALIES:
            continue
        nothing = [_UNKNOWN] * len(ANOMALIES)
        if one.event_id >= 0:
            said = truth.by_event.setdefault(one.event_id, nothing)
        else:
            said = truth.by_scan.setdefault((one.epc, one.time_us), nothing)
        said[ANOMALIES.index(one.anomaly)] = int(one.right)
    return truth


class _Columns:
    """Rows of an `Arm`, growing; `other` are the scores of the challenger in shadow."""

    def __init__(self) -> None:
        self.id = array("q")
        self.epc = array("q")
        self.lot = array("q")
        self.score = array("f")
        self.other = array("f")
        self.reviewed: list[tuple[int, list[int]]] = []

    def add(
        self,
        record: Record,
        epc: int,
        truth: list[int] | None,
        score: tuple[float, ...],
        other: tuple[float, ...] = (),
    ) -> None:
        if truth is not None:
            self.reviewed.append((len(self.id), truth))
        self.id.append(record.id)
        self.epc.append(epc)
        self.lot.append(record.scan.lot)
        self.score.extend(score)
        self.other.extend(other)

    def arm(self, version: str, score: array[float]) -> Arm:
        n = len(self.id)
        truth = np.full((n, len(ANOMALIES)), _UNKNOWN, dtype=np.int8)
        for place, said in self.reviewed:
            truth[place] = said
        return Arm(
            version,
            np.asarray(self.id, dtype=np.int64),
            np.asarray(self.epc, dtype=np.int64),
            np.asarray(self.lot, dtype=np.int64),
            np.asarray(score, dtype=np.float32).reshape(n, len(ANOMALIES)),
            truth,
        )


class _Seen:
    """What was read of the log: verdicts by pair of versions, and by version that answered."""

    def __init__(self, truth: _Truth) -> None:
        self._truth = truth
        self._epcs: dict[str, int] = {}
        self.pairs: dict[tuple[str, str], _Columns] = {}
        self.answered: dict[str, _Columns] = {}
        self.scans = 0

    def add(self, record: Record) -> None:
        self.scans += 1
        given = record.given
        if not given.model_version:  # the rules alone answered
            return
        epc = self._epcs.setdefault(record.scan.epc, len(self._epcs))
        truth = self._truth.of(record)
        self.answered.setdefault(given.model_version, _Columns()).add(
            record, epc, truth, given.score
        )
        heard = set()
        # Of several shadow verdicts the one of the same request: it knew what the answer knew.
        for _, _, said in sorted(record.verdicts, key=lambda told: told[1] != record.receipt):
            if said.kind == Kind.SHADOW and said.model_version not in heard:
                heard.add(said.model_version)
                pair = given.model_version, said.model_version
                self.pairs.setdefault(pair, _Columns()).add(
                    record, epc, truth, given.score, said.score
                )

    def nothing(self, wanted: _Wanted) -> str:
        """Why there is nothing to compare, and what to do."""
        if wanted.champion or wanted.challenger:
            found = sorted({*self.pairs, *((one, "") for one in self.answered)})
            told = ", ".join(" with ".join(filter(None, pair)) for pair in found) or "none"
            return f"no such versions among those logged: {told}; name others"
        return (
            f"nothing to compare: {self.scans} scans, judged by "
            f"{', '.join(sorted(self.answered)) or 'the rules alone'}; register a challenger and "
            "set TRAILWATCH_CHALLENGER=shadow (or ab), or look further back"
        )


@dataclass(frozen=True, slots=True)
class _Wanted:
    champion: str
    challenger: str

    def __call__(self, champion: str, challenger: str) -> bool:
        return self.champion in ("", champion) and self.challenger in ("", challenger)


# Comparing


def _shadow(seen: _Seen, wanted: _Wanted, costs: Costs, draw: _Bootstrap) -> Comparison | None:
    pairs = {pair: columns for pair, columns in seen.pairs.items() if wanted(*pair)}
    if not pairs:
        return None
    last = max(pairs, key=lambda pair: pairs[pair].id[-1])
    columns = pairs[last]
    champion = columns.arm(last[0], columns.score)
    challenger = columns.arm(last[1], columns.other)
    others = [(*pair, len(one.id)) for pair, one in seen.pairs.items() if pair != last]
    return _compared("shadow", champion, challenger, costs, draw, sorted(others))


def _ab(seen: _Seen, wanted: _Wanted, costs: Costs, draw: _Bootstrap) -> Comparison | None:
    arms = [columns.arm(version, columns.score) for version, columns in seen.answered.items()]
    arms.sort(key=lambda arm: (-len(arm.id), arm.version))
    tests = [
        test
        for i, one in enumerate(arms)
        for other in arms[i + 1 :]
        if (test := _side_by_side(*_ordered(one, other, wanted)))
        and wanted(test[0].version, test[1].version)
    ]
    if not tests:
        return None
    tests.sort(key=lambda test: int(test[1].id[-1]))
    champion, challenger = tests.pop()
    others = [(one.version, other.version, len(one.id) + len(other.id)) for one, other in tests]
    return _compared("ab", champion, challenger, costs, draw, sorted(others))


def _ordered(one: Arm, other: Arm, wanted: _Wanted) -> tuple[Arm, Arm]:
    """Champion and challenger: as it was asked, or the larger share first."""
    asked_otherwise = wanted(other.version, one.version) and not wanted(one.version, other.version)
    return (other, one) if asked_otherwise else (one, other)


def _side_by_side(one: Arm, other: Arm) -> tuple[Arm, Arm] | None:
    """The scans of two versions while both answered, of EPCs that only one of them judged.

    Versions that followed each other have no such scans.
    """
    first, last = max(one.id[0], other.id[0]), min(one.id[-1], other.id[-1])
    arms = [arm.take((arm.id >= first) & (arm.id <= last)) for arm in (one, other)]
    mixed = np.intersect1d(arms[0].epc, arms[1].epc)
    one, other = (arm.take(~np.isin(arm.epc, mixed)) for arm in arms)
    return (one, other) if len(one.id) and len(other.id) else None


def _compared(
    mode: str,
    champion: Arm,
    challenger: Arm,
    costs: Costs,
    draw: _Bootstrap,
    others: list[tuple[str, str, int]],
) -> Comparison:
    lots, place = np.unique(np.concatenate((champion.lot, challenger.lot)), return_inverse=True)
    of_lot = place[: len(champion.id)], place[len(champion.id) :]
    arms = champion, challenger
    reviewed = bool(any((arm.truth != _UNKNOWN).any() for arm in arms))
    paid = [arm.cost(costs) for arm in arms]
    whole = tuple(np.ones(len(arm.id)) for arm in arms)

    def per_scan(values: Sequence[Float64]) -> Difference:
        return draw.difference(len(lots), of_lot, values, whole)

    types = {}
    for k, name in enumerate(ANOMALIES):
        flags = [arm.flag[:, k] for arm in arms]
        truth = [arm.truth[:, k] for arm in arms]
        epcs = [_by_epc(arm, flag) for arm, flag in zip(arms, flags, strict=True)]
        paired = mode == "shadow"
        apart = challenger.score[:, k].astype(np.float64) - champion.score[:, k] if paired else None
        known = any((one != _UNKNOWN).any() for one in truth)
        types[name] = OfType(
            scans=_agreement(*flags) if paired else None,
            epcs=_agreement(epcs[0][0], epcs[1][0]) if paired else None,
            score=float(apart.mean()) if apart is not None else None,
            score_95=float(np.percentile(np.abs(apart), 95)) if apart is not None else None,
            flagged=per_scan([flag.astype(np.float64) for flag in flags]),
            flagged_epcs=draw.difference(
                len(lots),
                [of_lot[i][epcs[i][1]] for i in range(2)],
                [one.astype(np.float64) for one, _ in epcs],
                [np.ones(len(one)) for one, _ in epcs],
            ),
            reviewed=_counts((one != _UNKNOWN) for one in truth),
            missed=_counts((one == 1) & ~flag for one, flag in zip(truth, flags, strict=True)),
            false_alarms=_counts((one == 0) & flag for one, flag in zip(truth, flags, strict=True)),
            cost=per_scan([one[:, k] for one in paid]) if known else None,
        )
    return Comparison(
        mode=mode,
        champion=champion.version,
        challenger=challenger.version,
        scans=(len(champion.id), len(challenger.id)),
        epcs=_counts(np.unique(arm.epc) >= 0 for arm in arms),
        lots=len(lots),
        types=types,
        cost=per_scan([one.sum(axis=1) for one in paid]) if reviewed else None,
        others=others,
    )


def _counts(masks: Iterator[Bool]) -> tuple[int, int]:
    first, second = (int(mask.sum()) for mask in masks)
    return first, second


def _by_epc(arm: Arm, flag: Bool) -> tuple[Bool, Int64]:
    """Whether each EPC is flagged, and the place of its first scan."""
    _, first, inverse = np.unique(arm.epc, return_index=True, return_inverse=True)
    flagged = np.bincount(inverse, weights=flag, minlength=len(first)) > 0
    return np.asarray(flagged), np.asarray(first, dtype=np.int64)


def _agreement(champion: Bool, challenger: Bool) -> Agreement:
    return Agreement(
        both=int((champion & challenger).sum()),
        champion_only=int((champion & ~challenger).sum()),
        challenger_only=int((~champion & challenger).sum()),
        none=int((~champion & ~challenger).sum()),
    )


@dataclass(frozen=True, slots=True)
class _Bootstrap:
    """Draws lots with replacement, the same ones for both versions.

    Source: Field & Welsh, Bootstrapping clustered data (JRSS B, 2007); percentile intervals.
    """

    replicates: int
    seed: int

    def difference(
        self,
        lots: int,
        of_lot: Sequence[npt.NDArray[np.integer]],
        values: Sequence[Float64],
        weights: Sequence[Float64],
    ) -> Difference:
        """Means per 1,000 of both versions, and their difference.

        Args:
            lots: how many lots there are.
            of_lot: of each version, the lot of each row, from 0.
            values: of each version, the value of each row.
            weights: of each version, what each row counts.
        """
        sums = [
            (_sums(lot, value, lots), _sums(lot, weight, lots))
            for lot, value, weight in zip(of_lot, values, weights, strict=True)
        ]
        means = [_SCANS * value.sum() / weight.sum() for value, weight in sums]
        return Difference(
            float(means[0]),
            float(means[1]),
            float(means[1] - means[0]),
            self._interval(lots, sums) if lots > 1 else None,
        )

    def _interval(self, lots: int, sums: list[tuple[Float64, Float64]]) -> Span | None:
        random = np.random.default_rng(self.seed)
        told = []
        for _ in range(self.replicates):
            drawn = np.bincount(random.integers(lots, size=lots), minlength=lots)
            (value, weight), (other, other_weight) = ((a @ drawn, b @ drawn) for a, b in sums)
            if weight and other_weight:  # else a version has none of the lots drawn
                told.append(other / other_weight - value / weight)
        if not told:
            return None
        low, high = np.percentile(told, (2.5, 97.5))
        return float(_SCANS * low), float(_SCANS * high)


def _sums(lot: npt.NDArray[np.integer], values: Float64, lots: int) -> Float64:
    return np.bincount(lot, values, lots).astype(np.float64)


# Telling


def table(comparison: Comparison) -> list[str]:
    """Lines of text that tell a comparison."""
    one = comparison
    both = one.mode == "shadow"
    scans = f"{one.scans[0]:,}" if both else f"{one.scans[0]:,} and {one.scans[1]:,}"
    epcs = f"{one.epcs[0]:,}" if both else f"{one.epcs[0]:,} and {one.epcs[1]:,}"
    lines = [
        f"{'Shadow' if both else 'A/B test'}: champion {one.champion}, challenger {one.challenger}",
        f"{scans} scans of {epcs} EPCs in {one.lots:,} lots",
        "",
        _line("", ANOMALIES),
    ]
    of_types = list(one.types.values())
    for what, agreements in (
        ("scans", [of.scans for of in of_types]),
        ("EPCs", [of.epcs for of in of_types]),
    ):
        for name, words in _AGREEMENT.items():
            if both:
                cells = [f"{getattr(agreement, name):,}" for agreement in agreements]
                lines.append(_line(f"{what} flagged by {words}", cells))
    if both:
        lines.append(_line("score, mean difference", [f"{of.score:+.2f}" for of in of_types]))
        lines.append(
            _line("score, 95 % differ by at most", [f"{of.score_95:.2f}" for of in of_types])
        )
    lines += _differences("flagged scans per 1,000", [of.flagged for of in of_types])
    lines += _differences("flagged EPCs per 1,000", [of.flagged_epcs for of in of_types])
    lines.append("")
    if one.cost is None:
        lines.append("No feedback on these scans: costs are unknown (POST /feedback).")
    else:
        for words, pairs in (
            ("reviewed scans", [of.reviewed for of in of_types]),
            ("of them missed", [of.missed for of in of_types]),
            ("of them false alarms", [of.false_alarms for of in of_types]),
        ):
            cells = [f"{a:,}" if both and a == b else f"{a:,} / {b:,}" for a, b in pairs]
            lines.append(_line(words, cells))
        lines += _differences("known cost per 1,000 scans", [of.cost for of in of_types])
        lines.append(f"All types: {_told(one.cost)}; less is better")
    lines += [f"Also logged: {a} with {b} ({n:,} scans)" for a, b, n in one.others]
    return lines


_AGREEMENT: Final = {
    "both": "both",
    "champion_only": "the champion only",
    "challenger_only": "the challenger only",
    "none": "none",
}


def _line(name: str, cells: Sequence[str]) -> str:
    return f"{name:<34}" + "".join(f"{cell:>17}" for cell in cells)


def _differences(name: str, found: Sequence[Difference | None]) -> list[str]:
    means = [f"{one.champion:.2f} / {one.challenger:.2f}" if one else "-" for one in found]
    spans = [
        f"[{one.interval[0]:+.2f}, {one.interval[1]:+.2f}]" if one and one.interval else "-"
        for one in found
    ]
    return [_line(name, means), _line("  difference, 95 % by lot", spans)]


def _told(one: Difference) -> str:
    span = one.interval
    by_lot = f" [{span[0]:+.2f}, {span[1]:+.2f}] (95 % by lot)" if span else " (too few lots)"
    return (
        f"champion {one.champion:.2f}, challenger {one.challenger:.2f} per 1,000 scans, "
        f"difference {one.difference:+.2f}{by_lot}"
    )


# The command


def _costs(text: str) -> Costs:
    pairs = [tuple(float(number) for number in pair.split("/")) for pair in text.split(",")]
    if len(pairs) != len(ANOMALIES) or any(len(pair) != 2 or min(pair) < 0 for pair in pairs):
        raise ValueError(text)
    return [(miss, alarm) for miss, alarm in pairs]


def _moment_us(text: str) -> int:
    moment = datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1_000_000)


def main(argv: list[str] | None = None) -> int:
    """Compare and print; 1 where there is nothing to compare."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    costs = ",".join(f"{miss:g}/{alarm:g}" for miss, alarm in COSTS)
    add = parser.add_argument
    add("--log", help="URL of the log; default TRAILWATCH_LOG")
    add("--since", type=_moment_us, default=0, metavar="DATE", help="such as 2026-10-01, in UTC")
    add("--champion", default="", help="version; default the last one logged")
    add("--challenger", default="", help="version; default the last one logged")
    add(
        "--costs",
        type=_costs,
        default=COSTS,
        metavar="MISS/ALARM,...",
        help=f"of {', '.join(ANOMALIES)}; default {costs}",
    )
    add("--replicates", type=int, default=2_000, help="of the bootstrap; default 2000")
    add("--json", action="store_true", help="print JSON instead of a table")
    asked = parser.parse_args(argv)
    try:
        log = open_log(asked.log or Settings.read().log_url)
        try:
            found = compare(
                log,
                since_us=asked.since,
                champion=asked.champion,
                challenger=asked.challenger,
                costs=asked.costs,
                replicates=asked.replicates,
            )
        finally:
            log.close()
    except (LogError, SettingsError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    if asked.json:
        print(json.dumps([asdict(one) for one in found], indent=2))
    else:
        print("\n\n".join("\n".join(table(one)) for one in found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
