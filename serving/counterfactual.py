"""What would have been normal: a scan moved in time, or to another site, and judged again.

What was scanned in the same second at the same portal moves along, for it travels together; only
where the scan would change places with earlier ones of its trail it moves alone, because nobody
knows whose places its mates would have to change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Final

import numpy as np

from serving.judge import Model
from trail.facts import BoundContext, previous_of
from trail.features import Encoded, encode
from trail.mates import LotTable, merge, table_of
from trail.network import Steps
from trail.rules import FLAG
from trail.scan import (
    DAY_US,
    HOUR_US,
    OP_DIRECTION,
    SECOND_US,
    SITE_TIER_OF_OP,
    Anomaly,
    Bool,
    Scans,
)
from trail.trails import sort

MINUTE_US: Final = 60 * SECOND_US
FURTHEST_US: Final = 30 * DAY_US
"""How far a scan is moved in time."""
MOST_SITES: Final = 16
"""Sites that are tried."""
ENOUGH_SITES: Final = 3
"""Sites that are told."""
_GRID_MIN: Final = (
    *(1, 2, 5, 10, 20, 30, 45, 60, 90, 120, 150, 180, 240, 300, 360, 480, 600, 720, 960),
    *(1440, 2160, 2880, 4320, 5760, 7200, 10_080, 14_400, 20_160, 28_800, 43_200),
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """What would have been normal, all else being equal.

    Attributes:
        kind: "later", "earlier" or "site".
        time_us: the time from which on ("later") or up to which ("earlier") the scan would have
            been normal, whole minutes since 1970 in UTC; None for a site.
        sites: ids of the sites where it would have been normal, the likeliest first.
        together: items that moved along, this one included.
        sentence: for a person.
    """

    kind: str
    time_us: int | None
    sites: tuple[str, ...]
    together: int
    sentence: str


@dataclass(frozen=True, slots=True)
class Case:
    """A scan in its trail, as it is judged.

    Attributes:
        model: who judges; None: the rules.
        context: what it is seen against.
        scans: its trail.
        table: counters of its lot.
        at: its place in `scans`.
        together: items that were moved with it, this one included.
    """

    model: Model | None
    context: BoundContext
    scans: Scans
    table: LotTable
    at: int
    together: int = 1

    def encoded(self) -> tuple[Encoded, int]:
        """Its trail encoded, and its row there."""
        encoded = encode(self.scans, self.context, self.table)
        return encoded, int(np.flatnonzero(encoded.trails.order == self.at)[0])

    def flags(self) -> Bool:
        """Its flags, bool (5,)."""
        encoded, row = self.encoded()
        if self.model is None:
            return np.asarray(encoded.findings.score[row] >= FLAG)
        return np.asarray(self.model.verdicts(encoded).flag[row])

    def moved(self, time_us: int | None = None, site: int | None = None) -> Case:
        """The same with the scan at another time or site."""
        changes = {name: v for name, v in (("time_us", time_us), ("site", site)) if v is not None}
        previous, group = self.previous, self.group
        swaps = (
            time_us is not None
            and previous is not None
            and time_us <= int(self.scans.time_us[previous])
        )
        if swaps or group is None:
            return self._moved_alone(changes)
        scans, at = self.scans, self.at
        own = (scans.time_us == scans.time_us[at]) & (scans.site == scans.site[at])
        own &= scans.op == scans.op[at]
        table = _changed(self.table, np.arange(len(self.table)) == group, changes)
        return replace(
            self,
            scans=_changed(scans, own, changes),
            table=merge(table, _none_of(table)),  # in order again
            together=int(self.table.n[group]),
        )

    def _moved_alone(self, changes: dict[str, int]) -> Case:
        """Count the trail out of the lot, and in again as it would be."""
        scans = _changed(self.scans, np.arange(len(self.scans)) == self.at, changes)
        was = _counted(self.scans)
        rest = merge(self.table, replace(was, n=-was.n, moved=-was.moved))
        table = merge(_without_nothing(rest), _counted(scans))
        return replace(self, scans=scans, table=table, together=1)

    @property
    def group(self) -> int | None:
        """Row of `table` that counts the scan."""
        scans, at, table = self.scans, self.at, self.table
        same = (table.lot == scans.lot[at]) & (table.time_us == scans.time_us[at])
        same &= (table.site == scans.site[at]) & (table.op == scans.op[at])
        found = np.flatnonzero(same)
        return int(found[0]) if len(found) else None

    @property
    def previous(self) -> int | None:
        """Place of the scan before it in its trail."""
        time_us, at = self.scans.time_us, self.at
        earlier = np.flatnonzero(time_us < time_us[at])
        return int(earlier[np.argmax(time_us[earlier])]) if len(earlier) else None


def counterfactual(
    case: Case, anomaly: int, steps: Steps | None, row: int, zone: tzinfo = UTC
) -> Counterfactual | None:
    """What would not have been flagged, and no other way either; None where nothing was found.

    Args:
        case: the scan.
        anomaly: column of the type that it is flagged for.
        steps: what the network says of the trail, None without one.
        row: row of the scan in `steps`.
        zone: zone of the times in the sentence.
    """
    before = case.flags()
    if not before[anomaly]:
        return None

    def normal(moved: Case) -> bool:
        after = moved.flags()
        return not after[anomaly] and not (after & ~before).any()

    if anomaly == Anomaly.LOC:
        return _elsewhere(case, normal)

    def normal_at(time_us: int) -> bool:
        return normal(case.moved(time_us))

    for way in _WAYS.get(anomaly, ()):
        found = _at_another_time(case, normal_at, way, _usual_us(steps, row))
        if found is not None:
            word = "from" if way > 0 else "up to"
            when = (_EPOCH + timedelta(microseconds=found)).astimezone(zone)
            said = f"It would be normal {word} {when:%Y-%m-%d %H:%M}{' on' if way > 0 else ''}"
            together = case.moved(found).together
            kind = "later" if way > 0 else "earlier"
            return Counterfactual(kind, found, (), together, said + _with(together) + ".")
    return None


_WAYS: Final[dict[int, tuple[int, ...]]] = {
    Anomaly.FAKE: (1,),
    Anomaly.DUP: (1,),
    Anomaly.ORDER: (-1, 1),
    Anomaly.JUMP: (1,),
}
"""Where to look first: a jump would have needed more time, a wrong order mostly came too late."""


def _usual_us(steps: Steps | None, row: int) -> list[int]:
    """Times after the previous scan at which such a step begins to be usual."""
    if steps is None:
        return []
    hours = [float(column[row]) for column in (steps.low_h, steps.expected_h, steps.high_h)]
    return [int(h * HOUR_US) for h in hours if h > 0]


def _at_another_time(
    case: Case, normal: Callable[[int], bool], way: int, usual_us: list[int]
) -> int | None:
    """The nearest time that way, in whole minutes, at which the scan is normal.

    A grid that grows coarser finds an interval with an end that is normal, halving it the minute:
    a shorter normal stretch between two points of the grid may be missed.
    """
    start = int(case.scans.time_us[case.at])
    flagged = _minute(start, -way)
    for minute in _grid(case, way, usual_us):
        if normal(minute * MINUTE_US):
            return _border(normal, flagged, minute) * MINUTE_US
        flagged = minute
    return None


def _grid(case: Case, way: int, usual_us: list[int]) -> list[int]:
    """Minutes to try, ever further away; a scan that is moved on stays before the next one."""
    times, start = case.scans.time_us, int(case.scans.time_us[case.at])
    tried = {start + way * minutes * MINUTE_US for minutes in _GRID_MIN}
    if way > 0:
        later = times[times > start].tolist()
        limit = min([start + FURTHEST_US, *(time_us - 1 for time_us in later)])
        if case.previous is not None:
            tried |= {int(times[case.previous]) + after for after in usual_us}
    else:
        limit = max(start - FURTHEST_US, int(times.min()) - DAY_US)
        # Just before and just after each scan that it may have to change places with.
        for time_us in times[times < start].tolist():
            tried |= {time_us - 1, time_us + MINUTE_US}
    inside = {_minute(t, way) for t in tried if 0 < way * (t - start) <= way * (limit - start)}
    return sorted(inside, reverse=way < 0)


def _minute(time_us: int, way: int) -> int:
    """The whole minute at a time, or the next one that way."""
    return -(-time_us // MINUTE_US) if way > 0 else time_us // MINUTE_US


def _border(normal: Callable[[int], bool], flagged: int, fine: int) -> int:
    """The normal minute next to a flagged one, by halving."""
    while abs(fine - flagged) > 1:
        middle = (flagged + fine) // 2
        if normal(middle * MINUTE_US):
            fine = middle
        else:
            flagged = middle
    return fine


def _elsewhere(case: Case, normal: Callable[[Case], bool]) -> Counterfactual | None:
    fine, together = [], 1
    for site in _sites_to_try(case):
        moved = case.moved(site=site)
        if normal(moved):
            fine.append(site)
            together = moved.together
        if len(fine) == ENOUGH_SITES:
            break
    if not fine:
        return None
    sites = case.context.sites
    names = [sites.names[i] or f"site {sites.ids[i]}" for i in fine]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
    said = f"It would be normal at {listed}{_with(together)}."
    return Counterfactual("site", None, tuple(sites.ids[i] for i in fine), together, said)


def _sites_to_try(case: Case) -> list[int]:
    """Sites for this operation: where its mates went, where it was, where goods from there go."""
    if case.previous is None:
        return []
    scans, sites, here = case.scans, case.context.sites, int(case.scans.site[case.at])
    was, op = int(scans.site[case.previous]), int(scans.op[case.at])
    tried = _sites_of_mates(case)
    if OP_DIRECTION[op] != 1:
        tried.append(was)
    if case.model is not None:
        network = case.model.bundle.network
        place = {site: i for i, site in enumerate(network.site_ids)}.get(sites.ids[was], -1)
        used = network.edges[network.edges[:, 0] == place]
        index = sites.index
        ends = used[np.argsort(-used[:, 2], kind="stable"), 1].tolist()
        tried += [index[network.site_ids[i]] for i in ends if network.site_ids[i] in index]
    fits = [i for i in dict.fromkeys(tried) if sites.tier[i] in (-1, SITE_TIER_OF_OP[op])]
    return [i for i in fits if i != here][:MOST_SITES]


def _sites_of_mates(case: Case) -> list[int]:
    """Where the items of the previous scan's group went with this operation, most of them first."""
    assert case.previous is not None
    table = case.table
    group = replace(case, at=case.previous).group
    if group is None:
        return []
    moves = np.flatnonzero(table.start == group)
    moves = moves[table.op[table.end[moves]] == case.scans.op[case.at]]
    best = moves[np.argsort(-table.moved[moves], kind="stable")]
    return [int(site) for site in table.site[table.end[best]]]


def _with(together: int) -> str:
    if together <= 1:
        return ""
    if together == 2:
        return ", together with the other item scanned with it"
    return f", together with the {together - 1:,} items scanned with it"


def _changed(columns: Any, where: Bool, changes: dict[str, int]) -> Any:
    """A dataclass of columns with other values in some rows."""
    fresh = {name: getattr(columns, name).copy() for name in changes}
    for name, value in changes.items():
        fresh[name][where] = value
    return replace(columns, **fresh)


def _none_of(table: LotTable) -> LotTable:
    return LotTable(**{f.name: getattr(table, f.name)[:0] for f in fields(LotTable)})


def _counted(trail: Scans) -> LotTable:
    trails = sort(trail)
    return table_of(trails.scans, previous_of(trails.starts))


def _without_nothing(table: LotTable) -> LotTable:
    """The table without the groups and moves that nothing is left of."""
    left = table.n > 0
    place = np.cumsum(left) - 1
    kept = (table.moved > 0) & left[table.start] & left[table.end]
    groups = {
        name: getattr(table, name)[left]
        for name in ("lot", "time_us", "site", "op", "n", "serial_min", "serial_max")
    }
    return LotTable(
        **groups,
        start=place[table.start[kept]],
        end=place[table.end[kept]],
        moved=table.moved[kept],
    )
