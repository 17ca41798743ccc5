"""Column names: what a file calls a column, and what it is called here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from intake.errors import IntakeError
from trail.scan import REQUIRED_COLUMNS

OPTIONAL_COLUMNS: Final = ("event_id", "file_id", "scan_location")
"""Read where they are there; every other column is left in the file."""

WANTED_COLUMNS: Final = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)


def key(name: str) -> str:
    """What two spellings of a name have in common: `eventId`, `EVENT_ID`, ` Event Id `."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def match(
    names: Sequence[str], file: str, wanted: Sequence[str] = WANTED_COLUMNS
) -> dict[str, int]:
    """Positions in `names`, the columns of a file, of the wanted columns that are there.

    Raises:
        IntakeError: a wanted column stands there twice.
    """
    found: dict[str, int] = {}
    keys = [key(name) for name in names]
    for column in wanted:
        places = [i for i, k in enumerate(keys) if k == key(column)]
        exact = [i for i in places if names[i].strip() == column]
        places = exact if len(exact) == 1 else places
        if len(places) > 1:
            same = ", ".join(repr(names[i]) for i in places)
            raise IntakeError(
                f"{file}: column {column} stands there {len(places)} times ({same}); keep one"
            )
        if places:
            found[column] = places[0]
    return found


def require(
    found: dict[str, int],
    names: Sequence[str],
    file: str,
    required: Sequence[str] = REQUIRED_COLUMNS,
) -> None:
    """Demand the required columns.

    Raises:
        IntakeError: some are missing; names them and the columns found.
    """
    missing = [column for column in required if column not in found]
    if missing:
        raise IntakeError(
            f"{file}: no column {', '.join(missing)}; found {', '.join(map(repr, names))}. "
            f"Rename or add the column: needed are {', '.join(required)}"
        )
