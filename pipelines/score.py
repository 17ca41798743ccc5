"""Score a file or a folder of scans with the champion: `make score FILE=in OUT=out.csv`.

One row a scan, in input order: the input's row number, `event_id` where given, `epc_code`, the
five flags, the five scores (0-100, flagged from 50 on), who judged, and the evidence. Rows that
cannot be read go to a file beside OUT with their reason; read = scored + quarantined.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np

from intake.errors import IntakeError
from intake.master import read_registry, read_sites
from intake.read import read_scans
from intake.table import Intake
from models import results
from models.bundle import Bundle, BundleError
from models.scoring import Scored, registry_that_applies, score
from pipelines import params, register, tracking
from pipelines.progress import Progress, percent, say
from trail.registry import Registry


def main(argv: list[str] | None = None) -> int:
    """Run the command; see `--help`. Returns 0, or 2 with a message where nothing was scored."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.score", description=__doc__)
    parser.add_argument("--file", type=Path, required=True, help="CSV, TSV, Parquet, or a folder")
    parser.add_argument("--out", type=Path, required=True, help="ends in .csv or .parquet")
    parser.add_argument("--model", help="registered model; its champion judges")
    parser.add_argument("--bundle", type=Path, help="a bundle folder instead of a registered model")
    parser.add_argument("--sites", type=Path, help="site master of this installation")
    parser.add_argument("--registry", type=Path, help="genuine companies and products")
    parser.add_argument("--zone", help="zone of times that name none")
    asked = parser.parse_args(argv)
    try:
        run(asked)
    except (IntakeError, BundleError, ValueError, OSError) as error:
        print(f"score: {error}", file=sys.stderr)
        return 2
    return 0


def run(asked: argparse.Namespace) -> None:
    """Read, judge, write and sum up."""
    if asked.out.suffix not in results.SUFFIXES:
        raise ValueError(f"OUT is {str(asked.out)!r}; let it end in .csv or .parquet")
    bundle, name = champion(asked.model, asked.bundle)
    sites = read_sites(asked.sites or bundle.folder / "sites.csv")
    zone = asked.zone or params.load()["validate"]["zone"]
    with Progress("read", 100, "%") as step:
        intake = read_scans(asked.file, sites, zone, percent(step))
    registry, why = _registry(asked, bundle, intake)
    say(f"score: {len(intake.scans):,} scans with {name}; {why}")
    for note in intake.notes:
        say(f"score: {note}")
    with Progress("score", len(intake.scans), "scans") as step:
        scored = score(bundle, intake.scans, intake.sites, registry, step)
    results.write(asked.out, results.tables(intake.scans, intake.event_id, scored))
    beside = results.quarantine_path(asked.out)
    if len(intake.quarantine):
        results.write(beside, iter([intake.quarantine]))
    else:
        beside.unlink(missing_ok=True)
    say(summary(asked.out, intake, scored))


def champion(model: str | None, folder: Path | None) -> tuple[Bundle, str]:
    """The bundle to judge with, and what to call it.

    Raises:
        BundleError: there is no champion, or the bundle must not be used.
    """
    if folder is not None:
        return Bundle(folder, threads=os.cpu_count() or 1), f"bundle {folder}"
    name = model or params.load()["register"]["model"]
    found = register.fetch(tracking.client(), name)
    if found is None:
        more = "" if model is None else f" MODEL={model} with the options it needs"
        raise BundleError(f"{name!r} has no champion yet; train one with: make run{more}")
    at, version = found
    return Bundle(at, threads=os.cpu_count() or 1), f"{name} version {version}"


def _registry(asked: argparse.Namespace, bundle: Bundle, intake: Intake) -> tuple[Registry, str]:
    """The registry to check against, and a word on it."""
    if asked.registry is not None:
        return read_registry(asked.registry), f"registry {asked.registry}"
    own = bundle.folder / "registry.csv"
    if asked.sites is not None or not own.exists():
        return Registry.none(), "no registry: companies and products are not checked"
    applies = registry_that_applies(read_registry(own), intake.scans, intake.sites)
    if applies.at_hand:
        return applies, "the registry it was trained with"
    return applies, (
        "most scans lie outside the network it was trained on: its registry does not apply; "
        "give SITES= and REGISTRY="
    )


def summary(out: Path, intake: Intake, scored: Scored) -> str:
    """What a person wants to know of a scored file."""
    flagged = np.asarray(scored.flag.any(axis=1))
    codes = len(np.unique(intake.scans.epc[flagged]))
    lines = [
        f"read {intake.read:,} = scored {len(intake.scans):,} + quarantined "
        f"{len(intake.quarantine):,}",
        f"flagged {int(flagged.sum()):,} scans of {codes:,} EPCs "
        f"({flagged.mean() if len(flagged) else 0:.2%} of the scans)",
    ]
    for name, count in scored.counts().items():
        lines.append(f"  {name:<12} {count:>9,}")
    lines.append(f"verdicts: {out}")
    if len(intake.quarantine):
        lines.append(f"not read, with reasons: {results.quarantine_path(out)}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
