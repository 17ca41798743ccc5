"""Write a simulated world into a folder: `python -m world --help`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pc

from trail.sites import UNKNOWN_TIER, Sites
from world import export
from world.legs import tier_of_name
from world.network import Network, from_files
from world.profile import DWELL_DAYS, PROFILES
from world.simulate import HELD_OUT, Options, World, simulate

EPILOG = """\
files written (all at once, each as a whole):
  scans.parquet    event_id and the columns of an export, by event time, UTC
  sites.csv        the site master: seq,location_id,scan_location,Latitude,Longitude,tier
  registry.csv     genuine products: epc_company,epc_product
  answers.parquet  which scans are tampered with, and how; for evaluation only
  world.json       the options that made them; the same options make the same bytes

examples:
  python -m world --out data
      the default world: hard profile, about 600,000 scans
  python -m world --out /tmp/w3 --held-out W3 --scans 200000
      the same kind of world in another country
  python -m world --out /tmp/mine --profile installation --sites sites.csv --legs legs.csv
      a world on your own sites; the leg statistics need the columns from_scan_location,
      to_scan_location, time_taken_hours_min, time_taken_hours_max, time_taken_hours_count

held-out worlds:
""" + "\n".join(f"  {name}  {what}" for name, what in HELD_OUT.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        network = _network(given.sites, given.legs, given.registry)
        options = Options(
            seed=given.seed,
            scans=given.scans,
            profile=given.profile,
            dwell=given.dwell,
            start=given.start,
            days=given.days,
            natural_share=given.natural_share,
            natural_subtypes=tuple(given.subtype) if given.subtype else None,
            held_out=given.held_out,
            network=network,
        ).checked()
        if given.out.exists() and not given.out.is_dir():
            raise ValueError(f"--out {given.out} is a file; name a folder")
        began = time.perf_counter()
        world = simulate(options, _Progress())
    except (ValueError, OSError, pa.ArrowInvalid) as error:
        print(f"world: {error}", file=sys.stderr)
        return 2
    took_s = time.perf_counter() - began
    write(world, given.out, {"sites": _name(given.sites), "legs": _name(given.legs)})
    count = len(world.scans)
    print(
        f"{count:,} scans in {took_s:.1f} s ({count / took_s:,.0f} scans/s), "
        f"{len(world.answers):,} of them touched by tampering -> {given.out}"
    )
    return 0


def write(world: World, folder: Path, sources: dict[str, str | None] | None = None) -> None:
    """Write the five files of a world; each appears as a whole or not at all.

    Args:
        world: what to write.
        folder: made where it does not exist.
        sources: names of the files that the network came from, for world.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    export.write_parquet(world.scans, folder / "scans.parquet")
    export.write_parquet(world.answers, folder / "answers.parquet")
    export.write_csv(world.sites, folder / "sites.csv")
    export.write_csv(world.registry, folder / "registry.csv")
    options = world.options
    subtypes = options.natural_subtypes
    export.write_json(
        {
            "seed": options.seed,
            "scans_asked": options.scans,
            "scans": len(world.scans),
            "lots": options.lot_count(),
            "profile": options.profile,
            "dwell": options.dwell,
            "start": str(options.start),
            "days": options.days,
            "natural_share": options.natural_share,
            "natural_subtypes": sorted(subtypes) if subtypes is not None else None,
            "held_out": options.held_out,
            "network": sources if options.network is not None else "made up",
        },
        folder / "world.json",
    )


def read_sites(path: Path) -> Sites:
    """A site master from CSV; tiers are -1 where the file has no `tier` column.

    Raises:
        ValueError: a needed column is missing, or a value cannot be read.
    """
    table = _table(path, ("location_id", "scan_location", "Latitude", "Longitude"))
    tier = [UNKNOWN_TIER] * len(table)
    if "tier" in table.column_names:
        tier = [tier_of_name(str(name or "")) for name in table["tier"].to_pylist()]
    return Sites.of(
        [str(i) for i in table["location_id"].to_pylist()],
        [str(n) for n in table["scan_location"].to_pylist()],
        tier,
        table["Latitude"].to_pylist(),
        table["Longitude"].to_pylist(),
    )


def _table(path: Path, needed: Sequence[str]) -> pa.Table:
    table = pc.read_csv(path)
    missing = [name for name in needed if name not in table.column_names]
    if missing:
        raise ValueError(f"{path} lacks the column {missing[0]!r}; it needs {', '.join(needed)}")
    return table


def _network(sites: Path | None, legs: Path | None, registry: Path | None) -> Network | None:
    if sites is None and legs is None:
        if registry is not None:
            raise ValueError("--registry goes with --sites and --legs; give all three")
        return None
    if sites is None or legs is None:
        raise ValueError("--sites and --legs go together; give both")
    goods = _table(registry, ("epc_company", "epc_product")) if registry else None
    return from_files(read_sites(sites), pc.read_csv(legs), goods)


def _name(path: Path | None) -> str | None:
    return path.name if path else None


class _Progress:
    """A bar on a terminal, a plain line now and then elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._tenth = 0

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._terminal:
            bar = "#" * (30 * done // total)
            end = "\n" if done == total else ""
            print(f"\r{what} [{bar:<30}] {done}/{total}", end=end, file=sys.stderr, flush=True)
        elif 4 * done // total > self._tenth:
            self._tenth = 4 * done // total % 4
            print(f"{what} {done}/{total}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m world",
        description="Simulate a supply chain whose every anomaly is known, and write its scans.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FOLDER", help="where the files go")
    add("--seed", type=int, default=7, help="of everything (default 7)")
    add("--scans", type=int, default=600_000, help="about how many (default 600000)")
    add("--profile", default="hard", metavar="NAME", help=f"{', '.join(PROFILES)} (default hard)")
    add(
        "--dwell",
        metavar="NAME",
        help=f"{' or '.join(DWELL_DAYS)} stays (default short; long in the installation profile)",
    )
    add("--start", type=_day, default=date(2025, 1, 6), metavar="DATE", help="first commissioning")
    add("--days", type=int, help="days of commissioning (default 240, with long stays 1000)")
    add(
        "--natural-share",
        type=float,
        default=0.005,
        metavar="SHARE",
        help="EPCs with hidden tampering (default 0.005)",
    )
    add(
        "--subtype",
        action="append",
        metavar="NAME",
        help="hide only this subtype of tampering; may be given again",
    )
    add("--held-out", metavar="W1..W8", help="a world unlike the default, see below")
    add("--sites", type=Path, metavar="FILE", help="site master (CSV) of your own network")
    add("--legs", type=Path, metavar="FILE", help="leg statistics (CSV) of your own network")
    add("--registry", type=Path, metavar="FILE", help="its genuine products (CSV)")
    return parser


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no date; write it as 2025-01-06") from None


if __name__ == "__main__":
    sys.exit(main())
