"""Features the usual way, with pandas: what the kernel is measured against.

As good as pandas can do it: categories instead of strings, `groupby` with its compiled functions
only (no `apply`), look-ups by position. It leaves out the registry, step times by distance class
and the rules.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from trail.network import Network
from trail.scan import EVENT_TYPES
from trail.sites import Sites

KEY = ["lot", "event_time", "site", "op"]


def features(path: Path, sites: Sites, network: Network) -> pd.DataFrame:
    """Features of the scans in a file: own trail, box and lot, and network; one column each."""
    table = _read(path, sites).sort_values(["epc", "event_time", "op", "site"], kind="stable")
    made = _of_trail(table, sites)
    return pd.concat(
        [made, _of_mates(table, made["gap_s"]), _of_network(table, made, sites, network)], axis=1
    )


def _read(path: Path, sites: Sites) -> pd.DataFrame:
    columns = ["epc_code", "location_id", "event_type", "event_time"]
    table = pd.read_parquet(path, columns=columns)
    codes = table["epc_code"].cat.categories
    parts = codes.str.extract(r"^\d{3}[.-](\d{7})[.-](\d{7})[.-](\d{6})[.-]\d{8}[.-](\d{9})$")
    numbers = parts.fillna(-1).astype("int64").to_numpy()
    product = numbers[:, 0] * 10_000_000 + numbers[:, 1]
    lot = pd.factorize(pd.MultiIndex.from_arrays([product, numbers[:, 2]]))[0]
    epc = table["epc_code"].cat.codes.to_numpy()
    index, ops = sites.index, {name: op for op, name in enumerate(EVENT_TYPES)}
    place = table["location_id"].cat
    kind = table["event_type"].cat
    return pd.DataFrame(
        {
            "epc": epc,
            "lot": lot[epc],
            "product": product[epc],
            "serial": numbers[epc, 3],
            "site": np.array([index[name] for name in place.categories])[place.codes],
            "op": np.array([ops[name] for name in kind.categories])[kind.codes],
            "event_time": table["event_time"],
        }
    )


def _of_trail(table: pd.DataFrame, sites: Sites) -> pd.DataFrame:
    trails = table.groupby("epc", sort=False)
    op, site, time = table["op"], table["site"], table["event_time"]
    was = trails[["op", "site", "event_time"]].shift()
    two = trails[["site", "event_time"]].shift(2)
    made = pd.DataFrame(index=table.index)
    made["position"] = trails.cumcount()
    made["is_first"] = made["position"] == 0
    made["first_op"] = trails["op"].transform("first")
    made["previous_op"] = was["op"]
    made["previous_site"] = was["site"]
    made["gap_s"] = (time - was["event_time"]).dt.total_seconds()
    start = was["site"].fillna(site).astype("int64")
    made["km"] = sites.distance_km(start.to_numpy(), site.to_numpy())
    made["speed_kmh"] = made["km"] / np.maximum(made["gap_s"], 1) * 3600
    made["same_site"] = was["site"] == site
    made["op_step"] = op - was["op"]
    made["op_drop"] = trails["op"].cummax() - op
    made["tier_step"] = sites.tier[site] - sites.tier[start]
    far = two["site"].fillna(site).astype("int64")
    made["two_km"] = sites.distance_km(far.to_numpy(), site.to_numpy())
    made["two_gap_s"] = (time - two["event_time"]).dt.total_seconds()
    made["back_and_forth"] = (two["site"] == site) & ~made["same_site"]
    sale = op == len(EVENT_TYPES) - 1
    made["sold_before"] = sale.groupby(table["epc"], sort=False).cumsum() - sale
    sold = time.where(sale).groupby(table["epc"], sort=False).ffill()
    made["since_sale_s"] = (
        time - sold.groupby(table["epc"], sort=False).shift()
    ).dt.total_seconds()
    made["op_before"] = table.groupby(["epc", "op"], sort=False).cumcount()
    again = table.groupby(["epc", "op", "site"], sort=False)["event_time"].diff()
    made["repeat_gap_s"] = again.dt.total_seconds()
    made["commissioned"] = (op == 0).groupby(table["epc"], sort=False).cummax()
    return made


def _of_mates(table: pd.DataFrame, gap_s: pd.Series) -> pd.DataFrame:
    made = pd.DataFrame(index=table.index)
    boxes = table.groupby(KEY, sort=True)
    box = boxes.ngroup()
    made["group"] = boxes["epc"].transform("size")
    trails = table["epc"]
    left = box.groupby(trails, sort=False).shift()
    made["group_before"] = made["group"].groupby(trails, sort=False).shift()
    step = pd.DataFrame(
        {"left": left, "box": box, "site": table["site"], "time": table["event_time"]}
    ).dropna()
    made["together"] = step.groupby(["left", "box"], sort=False)["time"].transform("size")
    by_left = step.groupby("left", sort=False)["time"]
    made["departed"] = by_left.rank(method="max")
    made["departed_here"] = step.groupby(["left", "site"], sort=False)["time"].rank(method="max")
    made["lag_s"] = (step["time"] - by_left.transform("min")).dt.total_seconds()
    for kind in ("op", "site"):
        alike = table.groupby(["lot", kind], sort=False)["event_time"]
        made[f"lot_at_{kind}"] = alike.rank(method="max")
    in_time = table.sort_values(["lot", "event_time"], kind="stable")
    born, lot = in_time["op"] == 0, in_time["lot"]
    so_far = pd.DataFrame(
        {
            "lot_commissioned": born.groupby(lot, sort=False).cumsum(),
            "serial_low": in_time["serial"].where(born, 2**31).groupby(lot, sort=False).cummin(),
            "serial_high": in_time["serial"].where(born, -1).groupby(lot, sort=False).cummax(),
        }
    )
    moment = [in_time["lot"], in_time["event_time"]]
    return made.join(so_far.groupby(moment, sort=False).transform("last"))


def _of_network(
    table: pd.DataFrame, trail: pd.DataFrame, sites: Sites, network: Network
) -> pd.DataFrame:
    made = pd.DataFrame(index=table.index)
    place = pd.Series({site: i for i, site in enumerate(network.site_ids)})
    of_site = place.reindex(sites.ids).fillna(-1).astype("int64").to_numpy()
    end = of_site[table["site"]]
    moved = trail["previous_site"].notna()
    start = np.where(moved, of_site[trail["previous_site"].fillna(0).astype("int64")], -1)
    k = len(network.site_ids)
    used = pd.Series(network.edges[:, 2], index=network.edges[:, 0] * k + network.edges[:, 1])
    edge = pd.Series(start * k + end, index=table.index).where(moved, -1)
    made["edge_used"] = edge.map(used).fillna(0)
    left = np.bincount(network.edges[:, 0], network.edges[:, 2], minlength=k + 1)
    made["edge_share"] = made["edge_used"] / np.maximum(left[start], 1)
    routes = pd.DataFrame(
        {"center": network.routes.center, "spread": network.routes.spread, "n": network.routes.n},
        index=network.routes.key,
    )
    route = edge * 100 + trail["previous_op"].fillna(0).astype("int64") * 10 + table["op"]
    times = routes.reindex(route)
    hours = np.log1p(trail["gap_s"].to_numpy() / 3600)
    spread = np.maximum(times["spread"].to_numpy(), 0.02)
    made["expected_h"] = np.expm1(times["center"].to_numpy())
    made["step_z"] = (hours - times["center"].to_numpy()) / spread
    made["step_support"] = times["n"].to_numpy()
    product, hub, n = network.markets.T
    sold = pd.Series(n, index=pd.MultiIndex.from_arrays([product, hub]))
    share = sold / sold.groupby(level=0).transform("sum")
    region = sites.region
    hub_of_site = np.where(region >= 0, of_site[region], -1)
    cell = pd.MultiIndex.from_arrays([table["product"], hub_of_site[table["site"]]])
    made["market_share"] = share.reindex(cell).to_numpy()
    return made
