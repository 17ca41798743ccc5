"""Tables and files of a world, in the format of installations' exports."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from trail.epc import HEADER, EpcTable
from trail.scan import (
    ANOMALIES,
    BUSINESS_STEPS,
    EVENT_TYPES,
    SECOND_US,
    TIER_NAMES,
    Int8,
    Int32,
    Int64,
    Scans,
)
from trail.sites import Sites
from world.subtypes import SUBTYPES
from world.text import date_number, digits, strings
from world.truth import Truth

SHELF_LIFE_DAYS: Final = 183
HUB_TYPE_ENDINGS: Final = (
    "Factory",
    "WMS_Inbound",
    "WMS_Outbound",
    "Logi_HUB_Inbound",
    "Logi_HUB_Outbound",
    "Stock_Inbound",
    "Stock_Outbound",
    "Stock_Inbound",
    "Stock_Outbound",
    "POS_Sell",
)
_DAY_S: Final = 86400


def time_text(time_s: Int64) -> pa.DictionaryArray:
    """Whole seconds since 1970 as "2025-07-01 10:34:17", dictionary-encoded."""
    distinct, inverse = np.unique(time_s, return_inverse=True)
    text = np.empty((len(distinct), 19), dtype=np.uint8)
    date = digits(date_number(distinct // _DAY_S), 8)
    second = distinct % _DAY_S
    text[:, [0, 1, 2, 3, 5, 6, 8, 9]] = date
    text[:, [4, 7]] = ord("-")
    text[:, 10] = ord(" ")
    text[:, [13, 16]] = ord(":")
    for column, part in ((11, second // 3600), (14, second // 60 % 60), (17, second % 60)):
        text[:, column : column + 2] = digits(part, 2)
    return pa.DictionaryArray.from_arrays(pa.array(inverse.astype(np.int32)), strings(text))


def scan_table(
    sites: Sites,
    product_names: Mapping[int, str],
    scans: Scans,
) -> pa.Table:
    """Scans as an export has them, event_id from 1 first, in the given order."""
    codes, epc, site, op = scans.codes, scans.epc, scans.site, scans.op
    location = np.array([int(i) if i.isdigit() else -1 for i in sites.ids], dtype=np.int64)
    where: pa.Array = pa.array(location[site])
    if (location < 0).any():
        where = _coded(site, sites.ids)
    columns: dict[str, pa.Array] = {
        "event_id": pa.array(np.arange(1, len(epc) + 1, dtype=np.int64)),
        "scan_location": _coded(site, sites.names),
        "location_id": where,
        "hub_type": _hub_type(sites, site, op),
        "business_step": _coded(op, BUSINESS_STEPS),
        "event_type": _coded(op, EVENT_TYPES),
        "operator_id": where,
        "device_id": where,
        "epc_code": pa.DictionaryArray.from_arrays(pa.array(epc), codes.text),
    }
    columns |= _parts(product_names, codes, epc)
    columns["event_time"] = time_text(scans.time_us // SECOND_US)
    columns |= _dates(codes, epc)
    return pa.table(columns)


def answer_table(scans: Scans, truth: Truth) -> pa.Table:
    """One row a scan that tampering touched; event_id as in `scan_table`.

    `y_cause` is false on rows that are there for their `blur` alone.
    """
    at = np.flatnonzero(truth.subtype >= 0)
    anomaly = np.array([int(s.anomaly) for s in SUBTYPES])[truth.subtype[at]]
    return pa.table(
        {
            "event_id": at + 1,
            "epc_code": scans.codes.text.take(pa.array(scans.epc[at])),
            "anomaly": pa.array([ANOMALIES[a] for a in anomaly], pa.string()),
            "subtype": pa.array([SUBTYPES[s].name for s in truth.subtype[at]], pa.string()),
            "grade": truth.grade[at],
            "control": truth.control[at],
            "y_cause": truth.cause[at],
            "y_evid": truth.evidence[at],
            "blur": truth.blur[at],
        }
    )


def _coded(index: npt.NDArray[np.integer], values: tuple[str, ...]) -> pa.DictionaryArray:
    """Dictionary-encoded strings; values that occur twice stand once in the dictionary."""
    distinct = list(dict.fromkeys(values))
    place = np.array([distinct.index(v) for v in values], dtype=np.int32)
    return pa.DictionaryArray.from_arrays(pa.array(place[index]), pa.array(distinct, pa.string()))


def _hub_type(sites: Sites, site: Int32, op: Int8) -> pa.DictionaryArray:
    key = site.astype(np.int64) * len(EVENT_TYPES) + op
    distinct, inverse = np.unique(key, return_inverse=True)
    words = tuple(
        f"{sites.names[k // 10].split(' ')[0][:3].upper()}{sites.ids[k // 10]}_"
        f"{HUB_TYPE_ENDINGS[k % 10]}"
        for k in distinct.tolist()
    )
    return _coded(inverse, words)


def in_order_of_appearance(scans: Scans) -> Scans:
    """The same scans; their table has only codes that occur, in the order in which they do."""
    used, first, inverse = np.unique(scans.epc, return_index=True, return_inverse=True)
    by_first = np.argsort(first, kind="stable")
    rank = np.empty(len(used), dtype=np.int32)
    rank[by_first] = np.arange(len(used), dtype=np.int32)
    return replace(scans, epc=rank[inverse], codes=rows(scans.codes, used[by_first]))


def rows(codes: EpcTable, index: npt.NDArray[np.integer]) -> EpcTable:
    """The rows of a table of codes at `index`."""
    columns = {
        name: getattr(codes, name)[index]
        for name in ("company", "product", "lot", "serial", "made_day", "fault", "lot_key")
    }
    return EpcTable(text=codes.text.take(pa.array(index)), **columns)


def _parts(product_names: Mapping[int, str], codes: EpcTable, epc: Int32) -> dict[str, pa.Array]:
    """What an export repeats of the code; null where the code has no such part."""
    header = np.where(codes.company >= 0, HEADER, -1).astype(np.int32)
    date = date_number(np.maximum(codes.made_day, 0).astype(np.int64))
    made = np.where(codes.made_day >= 0, date, -1).astype(np.int32)
    parts = {
        "epc_header": header,
        "epc_company": codes.company,
        "epc_product": codes.product,
        "epc_lot": codes.lot,
        "epc_manufacture": made,
        "epc_serial": codes.serial,
    }
    columns: dict[str, pa.Array] = {}
    for name, value in parts.items():
        column = value[epc]
        columns[name] = pa.array(column, mask=column < 0)
    names = list(product_names.values())
    numbers = np.array(list(product_names), dtype=np.int64)
    order = np.argsort(numbers)
    at = np.clip(np.searchsorted(numbers[order], codes.product), 0, len(numbers) - 1)
    known = numbers[order][at] == codes.product
    index = np.where(known, order[at], -1).astype(np.int32)[epc]
    columns["product_name"] = pa.DictionaryArray.from_arrays(
        pa.array(index, mask=index < 0), pa.array(names, pa.string())
    )
    return columns


def _dates(codes: EpcTable, epc: Int32) -> dict[str, pa.Array]:
    day, inverse = np.unique(codes.made_day, return_inverse=True)
    made = [str(np.datetime64(int(d), "D")) if d >= 0 else None for d in day]
    ends = date_number(np.maximum(day, 0).astype(np.int64) + SHELF_LIFE_DAYS)
    index = inverse.astype(np.int32)[epc]
    unknown = codes.made_day[epc] < 0
    return {
        "manufacture_date": pa.DictionaryArray.from_arrays(
            pa.array(index, mask=unknown), pa.array([m or "" for m in made], pa.string())
        ),
        "expiry_date": pa.array(ends[index].astype(np.int32), mask=unknown),
    }


def site_table(sites: Sites) -> pa.Table:
    """The site master: seq, location_id, scan_location, Latitude, Longitude, tier."""
    return pa.table(
        {
            "seq": np.arange(1, len(sites) + 1),
            "location_id": list(sites.ids),
            "scan_location": list(sites.names),
            "Latitude": np.round(sites.latitude, 6),
            "Longitude": np.round(sites.longitude, 6),
            "tier": [TIER_NAMES[t] if t >= 0 else "" for t in sites.tier],
        }
    )


def write_csv(table: pa.Table, path: Path) -> None:
    """A small table as CSV, through a file beside it, so that no reader sees a half."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.column_names)
    writer.writerows(zip(*(column.to_pylist() for column in table.columns), strict=True))
    _replace(path, text.getvalue().encode())


def write_json(value: Mapping[str, object], path: Path) -> None:
    """A JSON document, written as a whole or not at all."""
    _replace(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_parquet(table: pa.Table, path: Path) -> None:
    """A Parquet file, written as a whole or not at all; the same bytes for the same table."""
    beside = path.with_name(path.name + ".part")
    pq.write_table(table, beside, compression="zstd", row_group_size=1 << 20)
    os.replace(beside, path)


def _replace(path: Path, content: bytes) -> None:
    beside = path.with_name(path.name + ".part")
    beside.write_bytes(content)
    os.replace(beside, path)
