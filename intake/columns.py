"""Strings to integers, once: blocks of columns become scans, and the rest quarantined rows."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from intake import times
from intake.block import Block
from intake.errors import IntakeError
from intake.header import match, require
from intake.table import QUARANTINE_SCHEMA, Intake
from intake.text import (
    Coded,
    TextFault,
    canonical_id,
    coded,
    identifiers,
    plain,
    shown,
    undecodable,
)
from trail import epc
from trail.scan import EVENT_TYPES, REQUIRED_COLUMNS, Scans
from trail.sites import Sites

Bool = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]

_OPS: Final = {name.lower(): op for op, name in enumerate(EVENT_TYPES)}
_TEXT_FAULTS: Final = {
    TextFault.MISSING: "{} is empty",
    TextFault.UNDECODABLE: "{} holds bytes that are not UTF-8",
}
_NO_SITES: Final = Sites.of([], [], [], [], [])


def to_scans(table: pa.Table, sites: Sites | None = None, zone: str = "UTC") -> Intake:
    """A table in memory as scans.

    Args:
        table: at least the required columns, in any spelling that `intake.header` knows.
        sites: the site master; None: every site is unknown.
        zone: IANA name of the zone for times that name none.

    Raises:
        IntakeError: a column is missing or holds no text, or the zone is unknown.
    """
    found = match(table.column_names, "the table")
    require(found, table.column_names, "the table")
    collector = Collector(sites, zone)
    first = 0
    for batch in table.to_batches():
        row = np.arange(first, first + batch.num_rows, dtype=np.int64)
        first += batch.num_rows
        columns = {name: batch.column(place) for name, place in found.items()}
        collector.add("", Block(columns, row))
    return collector.finish()


class Collector:
    """Takes blocks, keeps integers, and puts them together at the end."""

    def __init__(self, sites: Sites | None = None, zone: str = "UTC") -> None:
        times.check_zone(zone)
        self.zone = zone
        self.master = _NO_SITES if sites is None else sites
        self.read = 0
        self.files: dict[str, int] = {}
        self.site_of = dict(self.master.index)
        self.name_of: dict[int, str] = {}
        self.parts: dict[str, list[npt.NDArray[np.generic]]] = {
            name: [] for name in ("site", "op", "time_us", "row")
        }
        self.codes: list[pa.DictionaryArray] = []
        self.ids: dict[str, list[pa.StringArray | int]] = {"event_id": [], "file_id": []}
        self.bad: list[pa.Table] = []

    def add(self, file: str, block: Block) -> None:
        """Take a block of a file; its rows follow those of the blocks before it."""
        first = self.read - self.files.setdefault(file, 0)
        self.files[file] += len(block.row) + len(block.broken)
        self.read += len(block.row) + len(block.broken)
        if block.broken:
            self.bad.append(_broken_rows(file, block))
        if not len(block.row):
            return
        code, place, kind = (
            coded(block.columns[name], name) for name in ("epc_code", "location_id", "event_type")
        )
        op = np.array([_OPS.get(v.lower(), -1) for v in kind.values.to_pylist()] + [-1], np.int8)
        time_us, time_fault = times.parse(block.columns["event_time"], self.zone)
        good = (code.fault[code.place] == 0) & (place.fault[place.place] == 0)
        good &= (op[kind.place] >= 0) & (kind.fault[kind.place] == 0) & (time_fault == 0)
        if not good.all():
            rows = np.flatnonzero(~good)
            texts = {"epc_code": code, "location_id": place, "event_type": kind}
            reasons = _reasons(block, rows, texts, op, time_fault)
            self.bad.append(_bad_rows(file, block, rows, reasons))
        self._keep(block, good, first, code, self._site(place, good), op[kind.place], time_us)

    def finish(self) -> Intake:
        """Everything taken so far.

        Raises:
            IntakeError: there are more distinct EPC codes than one table can hold.
        """
        arrays = {name: _joined(parts) for name, parts in self.parts.items()}
        place, codes = _unified(self.codes)
        site = arrays["site"].astype(np.int32)
        op = arrays["op"].astype(np.int8)
        scans = Scans(
            epc=place,
            site=site,
            op=op,
            time_us=arrays["time_us"].astype(np.int64),
            row=arrays["row"].astype(np.int64),
            codes=epc.parse(codes),
        )
        unknown = list(self.site_of)[len(self.master) :]
        sites = _named(self.master.with_unknown(unknown), self.name_of)
        return Intake(
            scans=scans,
            sites=sites.with_tiers_from(site, op),
            event_id=_ids(self.ids["event_id"]),
            file_id=_ids(self.ids["file_id"]),
            quarantine=_quarantine(self.bad),
            read=self.read,
            files=tuple(self.files.items()),
        )

    def _site(self, location: Coded, good: Bool) -> npt.NDArray[np.int32]:
        """Site of each row, int32 (m,); sites that only bad rows name stay out."""
        k = len(location.values)
        used = np.bincount(location.place[good], minlength=k + 1)[:k] > 0
        site = np.full(k + 1, -1, dtype=np.int32)
        for i in np.flatnonzero(used).tolist():
            name = canonical_id(location.values[i].as_py())
            site[i] = self.site_of.setdefault(name, len(self.site_of))
        return site[location.place]

    def _keep(
        self,
        block: Block,
        good: Bool,
        first: int,
        code: Coded,
        site: npt.NDArray[np.int32],
        op: npt.NDArray[np.int8],
        time_us: Int64,
    ) -> None:
        for name, values in (
            ("site", site),
            ("op", op),
            ("time_us", time_us),
            ("row", first + block.row),
        ):
            self.parts[name].append(values[good])
        places = pa.array(np.minimum(code.place[good], max(len(code.values) - 1, 0)))
        self.codes.append(pa.DictionaryArray.from_arrays(places, code.values))
        mask = pa.array(good)
        for name, kept in self.ids.items():
            if name in block.columns:
                kept.append(identifiers(block.columns[name].filter(mask), name))
            else:
                kept.append(int(good.sum()))
        if "scan_location" in block.columns:
            self._learn_names(block.columns["scan_location"], site, good)

    def _learn_names(self, column: pa.Array, site: npt.NDArray[np.int32], good: Bool) -> None:
        """The first name that scans give a site which the master leaves nameless."""
        master = self.master.names
        nameless = [
            i
            for i in np.unique(site[good]).tolist()
            if i not in self.name_of and not (i < len(master) and master[i])
        ]
        if not nameless:
            return
        named = coded(column, "scan_location")
        rows = np.flatnonzero(good & (named.fault[named.place] == 0))
        rows = rows[np.isin(site[rows], nameless)]
        sites, first = np.unique(site[rows], return_index=True)
        for i, row in zip(sites.tolist(), rows[first].tolist(), strict=True):
            self.name_of[i] = named.values[int(named.place[row])].as_py()


def _reasons(
    block: Block,
    rows: Int64,
    texts: dict[str, Coded],
    op: npt.NDArray[np.int8],
    time_fault: npt.NDArray[np.int8],
) -> list[str]:
    """Why each of some rows of a block is bad, in words: all that is wrong with it."""
    said: list[list[str]] = [[] for _ in rows]
    for name, column in texts.items():
        wrong = {i: _TEXT_FAULTS[f].format(name) for i, f in enumerate(column.fault.tolist()) if f}
        if name == "event_type":
            for i in np.flatnonzero((op < 0) & (column.fault == 0)).tolist():
                wrong[i] = f"event_type {column.values[i].as_py()!r} is no known operation"
        for reasons, place in zip(said, column.place[rows].tolist(), strict=True):
            if place in wrong:
                reasons.append(wrong[place])
    late = np.flatnonzero(time_fault[rows])
    raw = shown(block.columns["event_time"], rows[late], "event_time")
    undecoded = _undecoded(block.columns["event_time"], rows[late])
    for i, fault, text, wrong_bytes in zip(
        late.tolist(), time_fault[rows[late]].tolist(), raw, undecoded, strict=True
    ):
        if wrong_bytes:
            said[i].append(_TEXT_FAULTS[TextFault.UNDECODABLE].format("event_time"))
        else:
            said[i].append(times.reason(fault, text or ""))
    return ["; ".join(reasons) for reasons in said]


def _undecoded(column: pa.Array, rows: Int64) -> list[bool]:
    wrong = undecodable(plain(column.take(pa.array(rows)), "event_time"))
    return [False] * len(rows) if wrong is None else wrong.tolist()


def _unified(parts: list[pa.DictionaryArray]) -> tuple[npt.NDArray[np.int32], pa.StringArray]:
    """Codes of all blocks as places in one table of distinct codes, in order of appearance."""
    if not parts:
        return np.zeros(0, dtype=np.int32), pa.array([], pa.string())
    size = sum(part.dictionary.nbytes for part in parts)
    kind = pa.string() if size < 2**31 else pa.large_string()
    column = pa.chunked_array([part.cast(pa.dictionary(pa.int32(), kind)) for part in parts])
    column = column.unify_dictionaries()
    values = column.chunk(0).dictionary
    place = _joined([np.asarray(chunk.indices) for chunk in column.chunks])
    used = np.bincount(place, minlength=len(values)) > 0
    if not used.all():  # codes that only bad rows have
        place = (np.cumsum(used) - 1)[place]
        values = values.filter(pa.array(used))
    if column.num_chunks == 1:  # several have been made distinct; in one, trimming made twins
        distinct = values.dictionary_encode()
        place, values = np.asarray(distinct.indices)[place], distinct.dictionary
    try:
        return place.astype(np.int32), values.cast(pa.string())
    except pa.ArrowInvalid as error:
        raise IntakeError(
            f"{len(values)} distinct EPC codes are too many for one table; score the files apart"
        ) from error


def _named(sites: Sites, name_of: dict[int, str]) -> Sites:
    if not name_of:
        return sites
    names = [name_of.get(i, name) for i, name in enumerate(sites.names)]
    return Sites.of(sites.ids, names, sites.tier, sites.latitude, sites.longitude, sites.known)


def _joined(parts: list[npt.NDArray[np.generic]]) -> npt.NDArray[np.generic]:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _ids(parts: list[pa.StringArray | int]) -> pa.StringArray | None:
    """Identifiers of all scans; None where no file has them."""
    if all(isinstance(part, int) for part in parts):
        return None
    arrays = [pa.nulls(part, pa.string()) if isinstance(part, int) else part for part in parts]
    kind = pa.string() if sum(array.nbytes for array in arrays) < 2**31 else pa.large_string()
    return pa.concat_arrays([array.cast(kind) for array in arrays])


def _broken_rows(file: str, block: Block) -> pa.Table:
    nothing = [None] * len(block.broken)
    return _table(
        file,
        [broken.row for broken in block.broken],
        [broken.reason for broken in block.broken],
        dict.fromkeys(REQUIRED_COLUMNS, nothing),
        [broken.raw for broken in block.broken],
    )


def _bad_rows(file: str, block: Block, rows: Int64, reasons: list[str]) -> pa.Table:
    values = {name: shown(block.columns[name], rows, name) for name in REQUIRED_COLUMNS}
    return _table(file, block.row[rows].tolist(), reasons, values, [None] * len(rows))


def _table(
    file: str,
    rows: list[int],
    reasons: list[str],
    values: dict[str, list[str | None]] | dict[str, list[None]],
    raw: list[str] | list[None],
) -> pa.Table:
    columns = {"file": [file] * len(rows), "row": rows, "reason": reasons, **values, "raw": raw}
    return pa.table(columns, schema=QUARANTINE_SCHEMA)


def _quarantine(parts: list[pa.Table]) -> pa.Table:
    """All quarantined rows; within a block those of wrong fields stand first, so sort by row."""
    if not parts:
        return QUARANTINE_SCHEMA.empty_table()
    tables: dict[str, list[pa.Table]] = {}
    for part in parts:
        tables.setdefault(part["file"][0].as_py(), []).append(part)
    return pa.concat_tables(
        [pa.concat_tables(of_file).sort_by("row") for of_file in tables.values()]
    ).combine_chunks()
