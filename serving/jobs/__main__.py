"""Score the upload of one job: `python -m serving.jobs`; the service starts it, nobody else.

It reports on standard output, one JSON object a line, and ends when its standard input does.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import resource
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from serving.jobs.record import RESULT_FORMATS, Folder, Report, State

NICE: Final = 10
READING: Final = 0.2
"""Share of the work that reading is; writing is `WRITING`, scoring the rest."""
WRITING: Final = 0.2
EVERY_S: Final = 0.25


def main(words: list[str] | None = None) -> int:
    """Run the command; always 0 where the job could be told how it went."""
    parser = argparse.ArgumentParser(prog="python -m serving.jobs", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="the job's folder")
    parser.add_argument("--bundle", type=Path, required=True, help="the bundle that judges")
    parser.add_argument("--zone", default="UTC", help="zone of times that name none")
    parser.add_argument("--sites", type=Path, help="site master, instead of the bundle's")
    parser.add_argument("--registry", type=Path, help="genuine products, instead of the bundle's")
    parser.add_argument("--keep-free", type=int, default=0, help="bytes of disk to leave free")
    asked = parser.parse_args(words)
    says = Reporter(os.fdopen(os.dup(1), "wb", buffering=0))
    os.dup2(2, 1)  # whatever a library prints is no report
    threading.Thread(target=_end_with_the_service, daemon=True).start()
    _stand_back()
    try:
        score(asked, says)
    except Exception as error:
        says.now(state=State.FAILED, error=_told(error), peak_mib=_peak_mib())
        with contextlib.suppress(OSError):  # the log lies on the disk that may be full
            traceback.print_exc()
    return 0


def score(asked: argparse.Namespace, says: Reporter) -> None:
    """Read, judge and write, as `pipelines.score` does."""
    # Imported here, for the thread that watches the service must run first.
    from intake.master import read_registry, read_sites
    from intake.read import read_scans
    from models import results
    from models.bundle import Bundle
    from models.scoring import registry_that_applies
    from models.scoring import score as judged
    from trail.registry import Registry

    folder = Folder(asked.folder)
    bundle = Bundle(asked.bundle)
    says.now(digest=bundle.digest)
    sites = read_sites(asked.sites or bundle.folder / "sites.csv")
    own = bundle.folder / "registry.csv"
    registry, applies_always = Registry.none(), True
    if asked.registry is not None:
        registry = read_registry(asked.registry)
    elif asked.sites is None and own.exists():
        registry, applies_always = read_registry(own), False

    upload = _only_file(folder.upload)
    intake = read_scans(
        upload,
        sites,
        asked.zone,
        lambda share, rows: says.soon(progress=READING * share, read=rows),
    )
    n, notes = len(intake.scans), list(intake.notes)
    if not applies_always:
        registry = registry_that_applies(registry, intake.scans, intake.sites)
    if not registry.at_hand:
        notes.append("companies and products were not checked: no registry applies to these scans")
    says.now(read=intake.read, quarantined=len(intake.quarantine), notes=notes)

    done = 0

    def scored_more(count: int) -> None:
        nonlocal done
        done += count
        share = done / max(n, 1)
        says.soon(progress=READING + (1 - READING - WRITING) * share, scored=done)

    scored = judged(bundle, intake.scans, intake.sites, registry, scored_more)
    written = 0

    def wrote_more(count: int) -> None:
        nonlocal written
        written += count
        _keep_free(asked.folder, asked.keep_free)
        share = min(written / max(n * len(RESULT_FORMATS), 1), 1)
        says.soon(progress=1 - WRITING + WRITING * share, scored=n)

    _keep_free(asked.folder, asked.keep_free)
    for form in RESULT_FORMATS:
        tables = results.tables(intake.scans, intake.event_id, scored)
        results.write(folder.result(form), tables, wrote_more)
    results.write(folder.quarantine, iter([intake.quarantine]))
    counts = scored.counts()
    says.now(state=State.DONE, progress=1.0, scored=n, flagged=counts, peak_mib=_peak_mib())


class Reporter:
    """Writes reports, those of progress not more often than every `EVERY_S` seconds."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._said = 0.0

    def now(self, **fields: Any) -> None:
        """Say something at once."""
        self._said = time.monotonic()
        self._out.write(msgspec.json.encode(Report(**fields)) + b"\n")

    def soon(self, **fields: Any) -> None:
        """Say something unless something was just said."""
        if time.monotonic() - self._said >= EVERY_S:
            self.now(**fields)


def _only_file(folder: Path) -> Path:
    files = list(_files(folder))
    if len(files) != 1:
        raise ValueError("the uploaded file is gone; send it again")
    return files[0]


def _files(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError):
        yield from folder.iterdir()


def _keep_free(folder: Path, least: int) -> None:
    if shutil.disk_usage(folder).free < least:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _told(error: Exception) -> str:
    """An error as the job's text."""
    from intake.errors import IntakeError
    from models.bundle import BundleError

    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the service's disk is full; send the file again when there is room"
    if isinstance(error, MemoryError):
        return "the file does not fit into memory; split it between lots and send the parts"
    if isinstance(error, (IntakeError, BundleError)):
        return str(error)
    return f"scoring failed: {type(error).__name__}: {error}"


def _peak_mib() -> int:
    """Most memory this process has held, MiB."""
    with contextlib.suppress(OSError):  # where there is no such file
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) >> 10
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit >> 20


def _end_with_the_service() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


def _stand_back() -> None:
    """Let requests go first, and let the kernel take this process when memory runs out."""
    os.nice(NICE)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    sys.exit(main())
