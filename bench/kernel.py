"""The kernel against its floor, against pandas, against itself at ten times the size, and online.

The floor is what any method must pay: read the Parquet file, turn strings into integers, sort by
(EPC, time). Online the floor is the decoding of a request: its JSON read and its codes parsed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench import groupby
from bench.clock import in_turn
from intake.read import read_scans
from intake.store import load_scans, write_scans
from serving import rows
from trail import epc, network
from trail.facts import BoundContext, Context, facts_of, previous_of
from trail.features import FEATURES, encode, matrix
from trail.mates import LotTable, table_of
from trail.registry import Registry
from trail.rules import judge
from trail.scan import EVENT_TYPES, TIER_NAMES, Scans
from trail.sites import Sites
from trail.trails import sort
from world.export import write_parquet
from world.simulate import Options, simulate

EPCS = 50
"""Codes in a request, one new scan each; with their histories they make some 480 scans."""
LOTS = (1, 48)
"""Lots that the codes of a request come from."""
REPEATS = 20
"""Requests that are timed as one."""


def run(quick: bool) -> list[str]:
    """Lines of ratios; `quick` takes a tenth of the scans."""
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    small = 100_000 if quick else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        path, sites, context = _data(Path(folder), small, seed=1)
        scans = load_scans(path, sites).scans
        lines = _offline(path, sites, context, scans)
    lines.append(_growth(scans, context, 3 if quick else 10))
    return [*lines, *_online(scans, sites, context.bound())]


def _offline(path: Path, sites: Sites, context: Context, scans: Scans) -> list[str]:
    """Files to features: the floor, the kernel and its parts, and pandas."""
    learned = context.network
    assert learned is not None
    usual = groupby.features(path, sites, learned).shape[1]
    jobs: dict[str, Callable[[], object]] = {
        "floor": lambda: _floor(path),
        "whole": lambda: _streamed(path, sites, context),
        "held": lambda: encode(load_scans(path, sites).scans, context),
        "load": lambda: load_scans(path, sites),
        "encode": lambda: encode(scans, context),
        "rules": lambda: [judge(f) for _, f in facts_of(sort(scans), context)],
        "pandas": lambda: groupby.features(path, sites, learned),
    }
    n, k = len(scans), len(FEATURES)
    ns = {name: 1e9 * took / n for name, took in in_turn(jobs, rounds=5).items()}
    whole = ns["whole"]
    return [
        f"{n:,} scans, {k} features and five rules; processor ns a scan: "
        + ", ".join(f"{name} {value:.0f}" for name, value in ns.items()),
        f"ns a scan and feature: whole path {whole / k:.1f}, encode {ns['encode'] / k:.1f}, "
        f"pandas {ns['pandas'] / usual:.1f}",
        f"whole path / floor                     {whole / ns['floor']:.2f}",
        f"the same, all features held at once    {ns['held'] / ns['floor']:.2f}",
        f"pandas, {usual} features / whole path, {k}  {ns['pandas'] / whole:.2f}",
        f"the same, a feature                    {ns['pandas'] / usual / (whole / k):.2f}",
    ]


def _streamed(path: Path, sites: Sites, context: Context) -> None:
    """From the file to features and findings chunk by chunk, as files are scored."""
    for _, known in facts_of(sort(load_scans(path, sites).scans), context):
        matrix(known, judge(known))


def _data(folder: Path, scans: int, seed: int) -> tuple[Path, Sites, Context]:
    world = simulate(Options(seed=seed, scans=scans))
    write_parquet(world.scans, folder / "scans.parquet")
    sites = _sites(world.sites)
    intake = read_scans(folder / "scans.parquet", sites)
    write_scans(intake, folder / "validated.parquet")
    trails = sort(intake.scans)
    learned = network.fit(trails.scans, previous_of(trails.starts), intake.sites)
    listed = world.registry
    registry = Registry.of(listed["epc_company"].to_numpy(), listed["epc_product"].to_numpy())
    return folder / "validated.parquet", intake.sites, Context(intake.sites, learned, registry)


def _sites(table: pa.Table) -> Sites:
    return Sites.of(
        [str(i) for i in table["location_id"].to_pylist()],
        table["scan_location"].to_pylist(),
        [TIER_NAMES.index(name) for name in table["tier"].to_pylist()],
        table["Latitude"].to_numpy(),
        table["Longitude"].to_numpy(),
    )


def _floor(path: Path) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    table = pq.read_table(path, columns=["epc_code", "location_id", "event_type", "event_time"])
    codes = {
        name: table[name].cast(pa.string()).combine_chunks().dictionary_encode()
        for name in ("epc_code", "location_id", "event_type")
    }
    time = table["event_time"].cast(pa.int64()).to_numpy()
    return np.lexsort((time, np.asarray(codes["epc_code"].indices)))


def _growth(scans: Scans, context: Context, times: int) -> str:
    """Cost a scan of `times` as many lots, in one call, against one."""
    codes = scans.codes
    many_codes = replace(
        codes,
        **{
            name: np.tile(getattr(codes, name), times)
            for name in ("company", "product", "lot", "serial", "made_day", "fault")
        },
        lot_key=np.concatenate([codes.lot_key ^ np.int64(i << 40) for i in range(times)]),
        text=pa.concat_arrays([codes.text] * times),
    )
    n = len(scans)
    many = Scans(
        epc=np.concatenate([scans.epc + np.int32(i * len(codes)) for i in range(times)]),
        site=np.tile(scans.site, times),
        op=np.tile(scans.op, times),
        time_us=np.tile(scans.time_us, times),
        row=np.arange(n * times),
        codes=many_codes,
    )
    took = in_turn(
        {
            "one": lambda: [judge(f) for _, f in facts_of(sort(scans), context)],
            "many": lambda: [judge(f) for _, f in facts_of(sort(many), context)],
        },
        rounds=3,
    )
    return f"cost a scan, {n * times:,} / {n:,} scans     {took['many'] / times / took['one']:.2f}"


@dataclass(frozen=True)
class _Request:
    """A request as it comes, and what the service remembers of it.

    Attributes:
        body: JSON of the new scans, one a code.
        scans: every scan of these codes, the new ones counted in.
        table: counters of their lots.
    """

    body: bytes
    scans: Scans
    table: LotTable


def _online(scans: Scans, sites: Sites, context: BoundContext) -> list[str]:
    """Requests whose codes come from one lot or from many, against their decoding."""
    requests = {lots: _request(scans, sites, lots) for lots in LOTS}
    jobs: dict[str, Callable[[], object]] = {}
    for lots, request in requests.items():
        jobs[f"decode {lots}"] = _repeated(_decoder(request.body))
        jobs[f"encode {lots}"] = _repeated(_encoder(request, context))
    us = {name: 1e6 * took / REPEATS for name, took in in_turn(jobs, rounds=9).items()}
    return [
        f"online, {EPCS} new scans, {len(request.scans)} in all, lots: {lots} with "
        f"{len(request.table):,} groups; processor us: decode {us[f'decode {lots}']:.0f}, "
        f"encode {us[f'encode {lots}']:.0f}; encode / decode  "
        f"{us[f'encode {lots}'] / us[f'decode {lots}']:.1f}"
        for lots, request in requests.items()
    ]


def _request(scans: Scans, sites: Sites, lots: int) -> _Request:
    rng = np.random.default_rng(5)
    lot, size = np.unique(scans.lot, return_counts=True)
    large = lot[size > 10 * EPCS]  # a malformed code is a lot of its own
    chosen = rng.choice(large, min(lots, len(large)), replace=False)
    whole = scans.take(np.isin(scans.lot, chosen))
    trails = sort(whole)
    codes = rng.choice(np.unique(whole.epc), EPCS, replace=False)
    asked = whole.take(np.isin(whole.epc, codes))
    used, place = np.unique(asked.epc, return_inverse=True)
    asked = replace(asked, epc=place.astype(np.int32), codes=asked.codes.take(used))
    ordered = sort(asked).scans
    newest = ordered.take(np.append(np.flatnonzero(np.diff(ordered.epc)), len(ordered) - 1))
    return _Request(_body(newest, sites), asked, table_of(trails.scans, previous_of(trails.starts)))


def _body(scans: Scans, sites: Sites) -> bytes:
    times = scans.time_us.astype("datetime64[us]").astype(str)
    rows_ = [
        {
            "epc_code": scans.codes.text[int(code)].as_py(),
            "location_id": sites.ids[site],
            "event_type": EVENT_TYPES[op],
            "event_time": f"{time}Z",
        }
        for code, site, op, time in zip(scans.epc, scans.site, scans.op, times, strict=True)
    ]
    return msgspec.json.encode({"data": rows_})


def _decoder(body: bytes) -> Callable[[], object]:
    return lambda: epc.parse(pa.array(rows.read(body, "UTC", EPCS)[0].epc))


def _encoder(request: _Request, context: BoundContext) -> Callable[[], object]:
    return lambda: encode(request.scans, context, request.table)


def _repeated(job: Callable[[], object]) -> Callable[[], object]:
    return lambda: [job() for _ in range(REPEATS)]
