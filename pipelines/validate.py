"""Stage validate: data/ -> work/validated, work/quarantine, work/data_docs.

Reads the scans, keeps every row that cannot be read in a quarantine file with its reason, and
holds the rest against the expectations. One that fails with severity `error` stops the run, with
a message that says which and how many rows; `work/data_docs/index.html` shows them all.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import re
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.csv

from intake import layout
from intake.errors import IntakeError
from intake.master import read_registry, read_sites, write_registry, write_sites
from intake.read import read_scans
from intake.store import write_scans
from intake.table import Intake
from pipelines import datadocs, expectations, params
from pipelines.expectations import ERROR, Limits, Outcome
from pipelines.progress import Progress, percent, say

_QUOTED: Final = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")


def main(argv: list[str] | None = None) -> int:
    """Run the stage; see `--help`."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.validate", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("work/validated"))
    asked = parser.parse_args(argv)
    try:
        failed = validate(asked.data, asked.out, params.load()["validate"])
    except (IntakeError, params.ParamsError) as error:
        print(f"validate: {error}", file=sys.stderr)
        return 1
    for outcome in failed:
        print(f"validate: stopped by {outcome.sentence()}", file=sys.stderr)
    return 1 if failed else 0


def validate(data: Path, out: Path, settings: dict[str, Any]) -> list[Outcome]:
    """Run the stage.

    Args:
        data: the data folder, laid out as in `intake.layout`.
        out: folder for what is valid; `quarantine` and `data_docs` are made beside it.
        settings: section `validate` of params.yaml.

    Returns:
        The failed expectations that stop the run; where there are any, `out` is not written.

    Raises:
        IntakeError: the data cannot be read at all.
    """
    found = layout.find(data)
    zone = settings["zone"]
    limits = _limits(settings)
    sites = read_sites(found.sites) if found.sites else None
    registry = read_registry(found.registry) if found.registry else None
    with Progress("validate: read", 100, "%") as step:
        intake = read_scans(found.scans, sites, zone, percent(step))
    for folder in (out, out.parent / "quarantine", out.parent / "data_docs"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    pyarrow.csv.write_csv(intake.quarantine, out.parent / "quarantine" / "quarantine.csv")
    say(
        f"validate: read {intake.read:,} rows = {len(intake.scans):,} scans + "
        f"{len(intake.quarantine):,} quarantined"
    )
    for note in intake.notes:
        say(f"validate: {note}")
    outcomes = check(intake, limits, sites is not None, out.parent / "data_docs")
    _tell(outcomes, out)
    stops = [o for o in outcomes if not o.success and o.check.severity == ERROR]
    if not stops:
        write_scans(intake, out / "scans.parquet")
        write_sites(intake.sites, out / "sites.csv")
        if registry is not None:
            write_registry(registry, out / "registry.csv")
        if found.verdicts is not None:
            shutil.copyfile(found.verdicts, out / found.verdicts.name)
        summary = summarise(intake, outcomes, limits, zone, found)
        text = json.dumps(summary, indent=1, ensure_ascii=False)
        (out / "summary.json").write_text(f"{text}\n", encoding="utf-8")
    return stops


def check(intake: Intake, limits: Limits, has_master: bool, docs: Path) -> list[Outcome]:
    """Hold an intake against the expectations, and write Data Docs into a folder."""
    held = expectations.checks(limits, intake, has_master)
    say(f"validate: {len(held)} expectations")
    newest = int(intake.scans.time_us.max()) if len(intake.scans) else 0
    run_time = dt.datetime.fromtimestamp(newest // 1_000_000, dt.UTC)
    outcomes = datadocs.run(held, expectations.tables(intake, limits), docs, run_time)
    chosen = ", chosen at random" if len(intake.scans) > limits.sample_rows else ""
    note = (
        f"{intake.read:,} rows read = {len(intake.scans):,} scans + {len(intake.quarantine):,} "
        f"quarantined; {min(len(intake.scans), limits.sample_rows):,} scans checked{chosen}."
    )
    datadocs.settle(docs, outcomes, note)
    return outcomes


def summarise(
    intake: Intake, outcomes: list[Outcome], limits: Limits, zone: str, found: layout.Layout
) -> dict[str, Any]:
    """What the stage found, the same for the same data."""
    scans, sites = intake.scans, intake.sites
    span = np.array([scans.time_us.min(), scans.time_us.max()]).astype("datetime64[us]")
    return {
        "read": intake.read,
        "scans": len(scans),
        "quarantined": len(intake.quarantine),
        "reasons": reasons(intake),
        "repeated": intake.repeated,
        "codes": len(scans.codes),
        "malformed_codes": int((scans.codes.fault > 0).sum()),
        "sites": {"known": int(sites.known.sum()), "unknown": int((~sites.known).sum())},
        "zone": zone,
        "first_event": f"{span[0]}Z",
        "last_event": f"{span[1]}Z",
        **expectations.freshness(intake),
        "files": [{"name": name, "rows": rows} for name, rows in intake.files],
        "notes": list(intake.notes),
        "checked_scans": min(len(scans), limits.sample_rows),
        "abstained": [
            f"{what}: no {what} in the data folder"
            for what, path in (("sites", found.sites), ("registry", found.registry))
            if path is None
        ],
        "expectations": [
            {
                "asset": o.check.asset,
                "name": o.check.name,
                "severity": o.check.severity,
                "success": o.success,
                "failed": o.failed,
                "rows": o.rows,
                "examples": list(o.examples),
            }
            for o in outcomes
        ],
    }


def reasons(intake: Intake) -> dict[str, int]:
    """How many quarantined rows there are for each kind of reason, the most frequent first."""
    kinds = Counter(_QUOTED.sub("...", text) for text in intake.quarantine["reason"].to_pylist())
    return dict(sorted(kinds.items(), key=lambda item: (-item[1], item[0])))


def _limits(settings: dict[str, Any]) -> Limits:
    known = {name: settings[name] for name in Limits.__slots__ if name in settings}
    return Limits(**{"max_unreadable_share": settings["max_unreadable_share"], **known})


def _tell(outcomes: list[Outcome], out: Path) -> None:
    for outcome in outcomes:
        if not outcome.success and outcome.check.severity != ERROR:
            say(f"validate: warning: {outcome.sentence()}")
    met = sum(outcome.success for outcome in outcomes)
    page = out.parent / "data_docs" / "index.html"
    say(f"validate: {met} of {len(outcomes)} expectations met; open {page}")


if __name__ == "__main__":
    sys.exit(main())
