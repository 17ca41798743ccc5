"""The kernel against its floor, against pandas, and against itself at ten times the size.

The floor is what any method must pay: read the Parquet file, turn strings into integers, sort by
(EPC, time).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bench.clock import in_turn
from intake.read import read_scans
from intake.store import load_scans, write_scans
from trail import network
from trail.facts import Context, facts_of, previous_of
from trail.features import FEATURES, encode
from trail.registry import Registry
from trail.rules import judge
from trail.scan import Scans
from trail.sites import Sites
from trail.trails import sort
from world.export import write_parquet
from world.simulate import Options, simulate


def run(quick: bool) -> list[str]:
    """Lines of ratios; `quick` takes a tenth of the scans."""
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    small = 100_000 if quick else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        path, sites, context = _data(Path(folder), small, seed=1)
        scans = load_scans(path, sites).scans
        n = len(scans)

        def whole() -> None:
            """Label by rules and encode, from Parquet to features."""
            encode(load_scans(path, sites).scans, context)

        took = in_turn(
            {
                "floor": lambda: _floor(path),
                "whole": whole,
                "encode": lambda: encode(scans, context),
                "rules": lambda: [judge(f) for _, f in facts_of(sort(scans), context)],
                "pandas": lambda: _pandas(path),
            },
            rounds=3,
        )
        lines = [
            f"{n:,} scans, {len(FEATURES)} features and five rules; processor ns a scan: "
            + ", ".join(f"{name} {1e9 * value / n:.0f}" for name, value in took.items()),
            f"whole path / floor                     {took['whole'] / took['floor']:.2f}",
            f"pandas groupby, 8 features / whole     {took['pandas'] / took['whole']:.2f}",
        ]
        lines.append(_growth(scans, context, 3 if quick else 10))
    return lines


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
    from trail.scan import TIER_NAMES

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


def _pandas(path: Path) -> pd.DataFrame:
    """Eight of the features of the own trail the usual way."""
    table = pd.read_parquet(path, columns=["epc_code", "location_id", "event_type", "event_time"])
    table = table.sort_values(["epc_code", "event_time"], kind="stable")
    trails = table.groupby("epc_code", observed=True, sort=False)
    result = pd.DataFrame(index=table.index)
    result["gap_s"] = trails["event_time"].diff().dt.total_seconds()
    result["previous_site"] = trails["location_id"].shift()
    result["previous_op"] = trails["event_type"].shift()
    result["position"] = trails.cumcount()
    result["first_op"] = trails["event_type"].transform("first")
    result["two_back"] = trails["location_id"].shift(2)
    result["sold"] = (
        (table["event_type"] == "POS_Sell").groupby(table["epc_code"], observed=True).cumsum()
    )
    box = ["location_id", "event_type", "event_time"]
    result["group"] = table.groupby(box, observed=True)["epc_code"].transform("size")
    return result


def _growth(scans: Scans, context: Context, times: int) -> str:
    """Cost a scan of `times` as many lots, in one call, against one."""
    from dataclasses import replace

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
        rounds=1,
    )
    return f"cost a scan, {n * times:,} / {n:,} scans     {took['many'] / times / took['one']:.2f}"
