"""Where things lie in a data folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from intake.errors import IntakeError

_TABLES = (".csv", ".tsv", ".parquet")


@dataclass(frozen=True, slots=True)
class Layout:
    """The parts of a data folder; what is absent is None.

    Attributes:
        scans: file or folder for `intake.read.read_scans`.
        sites: the site master.
        registry: genuine companies and products.
        legs: leg statistics by (from, to).
        verdicts: analysts' verdicts, `pipelines.verdicts`.
        answers: what was tampered with; only `evaluate` may open it.
        world: how a simulated world was made.
    """

    scans: Path
    sites: Path | None
    registry: Path | None
    legs: Path | None
    verdicts: Path | None
    answers: Path | None
    world: Path | None


def find(data: str | Path) -> Layout:
    """Find the parts of a data folder.

    Scans are `scans.parquet` (or .csv, .tsv) or any files under `scans/`; the masters are
    `sites`, `registry` and `legs`, each .csv, .tsv or .parquet.

    Raises:
        IntakeError: the folder is missing, has no scans, or has them twice.
    """
    folder = Path(data)
    if not folder.is_dir():
        raise IntakeError(f"the data folder {str(data)!r} does not exist; make it with `make data`")
    scans = _one(folder, "scans")
    under = folder / "scans"
    if scans is not None and under.is_dir():
        raise IntakeError(f"scans lie both in {str(scans)!r} and in {str(under)!r}; keep one")
    if scans is None and not under.is_dir():
        raise IntakeError(
            f"no scans in {str(data)!r}; put scans.parquet there, or files into its folder scans/"
        )
    answers, world = folder / "answers.parquet", folder / "world.json"
    return Layout(
        scans=scans or under,
        sites=_one(folder, "sites"),
        registry=_one(folder, "registry"),
        legs=_one(folder, "legs"),
        verdicts=_one(folder, "verdicts"),
        answers=answers if answers.exists() else None,
        world=world if world.exists() else None,
    )


def _one(folder: Path, stem: str) -> Path | None:
    found = [folder / f"{stem}{suffix}" for suffix in _TABLES]
    found = [path for path in found if path.is_file()]
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise IntakeError(f"{str(folder)!r} has both {names}; keep one of them")
    return found[0] if found else None
