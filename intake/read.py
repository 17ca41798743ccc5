"""The one entry: a file or a folder of scans becomes integer columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from intake import files
from intake.columns import Collector, to_scans
from intake.errors import IntakeError
from intake.store import load_scans, write_scans
from intake.table import Intake
from trail.sites import Sites

__all__ = ["Intake", "IntakeError", "load_scans", "read_scans", "to_scans", "write_scans"]

Progress = Callable[[float, int], None]
"""Called with the share of the input read (0-1) and the number of rows so far."""


def read_scans(
    path: str | Path,
    sites: Sites | None = None,
    zone: str = "UTC",
    progress: Progress | None = None,
) -> Intake:
    """Read a file or a folder of scans (.csv, .tsv, .txt, .parquet, .jsonl).

    Every row comes back as a scan or in the quarantine with its reason. A malformed EPC is no
    bad row, nor are unknown sites, future times or repeated rows.

    Args:
        path: a file, or a folder whose files are read in order of their names.
        sites: the site master; None: every site is unknown.
        zone: IANA name of the zone for times that name none.
        progress: called after every block.

    Returns:
        The scans in input order, and all that goes with them.

    Raises:
        IntakeError: nothing is there to read, or a file as a whole cannot be used.
    """
    sources, notes = files.find_files(path)
    collector = Collector(sites, zone)
    sizes = [max(source.path.stat().st_size, 1) for source in sources]
    for i, source in enumerate(sources):
        for block in files.read_blocks(source):
            collector.add(source.name, block)
            if progress is not None:
                done = (sum(sizes[:i]) + block.share * sizes[i]) / sum(sizes)
                progress(done, collector.read)
    if not collector.read:
        names = ", ".join(source.name for source in sources)
        raise IntakeError(f"{names}: a header and no rows; export the scans again")
    intake = collector.finish()
    return replace(intake, notes=(*notes, *_notes(intake)))


def _notes(intake: Intake) -> list[str]:
    notes = []
    known = intake.sites.known.tolist()
    unknown = [site for site, is_known in zip(intake.sites.ids, known, strict=True) if not is_known]
    if unknown and any(known):
        few = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        notes.append(f"not in the site master, {len(unknown)} of the sites: {few}")
    if repeated := intake.repeated:
        notes.append(f"kept, {repeated} of the scans: exact repeats of an earlier row")
    return notes
