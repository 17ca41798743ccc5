"""Which files there are, and the blocks of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from intake import delimited, header, jsonl, parquet
from intake.block import Block
from intake.errors import IntakeError

TEXT_SUFFIXES: Final = (".csv", ".tsv", ".txt")
SUFFIXES: Final = (*TEXT_SUFFIXES, ".parquet", ".jsonl")


@dataclass(frozen=True, slots=True)
class Source:
    """A file of scans.

    Attributes:
        path: where it lies.
        name: relative to what the user named, for reports.
    """

    path: Path
    name: str


def find_files(path: str | Path) -> tuple[list[Source], list[str]]:
    """Files of scans at a path, sorted by name, and a sentence for each file left aside.

    In a folder (with its folders), empty files and files without a column `epc_code` (a site
    master, leg statistics) are left aside; a file that is named itself must be a file of scans.

    Raises:
        IntakeError: nothing is there, the type is unknown, or a folder holds no scans.
    """
    top = Path(path)
    if top.is_file():
        if top.suffix.lower() not in SUFFIXES:
            raise IntakeError(
                f"{top.name}: files of type {top.suffix or 'none'!r} are not read; "
                f"use one of {', '.join(SUFFIXES)}"
            )
        return [Source(top, top.name)], []
    if not top.is_dir():
        raise IntakeError(f"{str(path)!r} does not exist; give a file or a folder of scans")
    sources, aside = [], []
    for file in sorted(p for p in top.rglob("*") if p.is_file()):
        name = file.relative_to(top).as_posix()
        if file.suffix.lower() not in SUFFIXES or any(p.startswith(".") for p in name.split("/")):
            continue
        reason = _not_scans(file)
        if reason:
            aside.append(f"{name} was left aside: {reason}")
        else:
            sources.append(Source(file, name))
    if not sources:
        seen = "; ".join(aside) or f"no file of type {', '.join(SUFFIXES)}"
        raise IntakeError(
            f"no scans in the folder {str(path)!r} ({seen}); put files of scans there"
        )
    return sources, aside


def read_blocks(source: Source) -> Iterator[Block]:
    """The rows of a file, a block at a time.

    Raises:
        IntakeError: the file as a whole cannot be used; names what was found and the remedy.
    """
    suffix = source.path.suffix.lower()
    if suffix in TEXT_SUFFIXES:
        head = delimited.read_head(source.path)
        delimited.require(head, source.name)
        yield from delimited.read_blocks(source.path, head)
    elif source.path.stat().st_size == 0:
        raise IntakeError(f"{source.name} is empty; export the scans again")
    elif suffix == ".parquet":
        yield from parquet.read_blocks(source.path)
    else:
        yield from jsonl.read_blocks(source.path)


def _not_scans(file: Path) -> str:
    """Why a file in a folder is none of scans; empty where it is one, or wants to be."""
    if file.stat().st_size == 0:
        return "it is empty"
    suffix = file.suffix.lower()
    if suffix in TEXT_SUFFIXES:
        head = delimited.read_head(file)
        names, one_column = list(head.names), len(head.names) == 1
    else:
        names = parquet.read_names(file) if suffix == ".parquet" else jsonl.read_names(file)
        one_column = False
    mentions = any(header.key("epc_code") in header.key(name) for name in names)
    if "epc_code" in header.match(names, file.name) or (one_column and mentions):
        return ""
    return "it has no column epc_code"
