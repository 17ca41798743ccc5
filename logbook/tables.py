"""The tables of the log, the same in SQLite and PostgreSQL.

A column's kind is one of `int`, `text` and `bytes`; a database says how it writes them. Words that
many verdicts share (version, digest, source, confidence) stand once, in `origins`. `counters` is
one row: the last numbers given out, and how many rows there are, so that nobody has to count.
"""

from __future__ import annotations

from typing import Final

VERSION: Final = 2
"""Of this layout; a log of an older one is brought up to it, one of a newer one is refused."""

Kinds = dict[str, str]

COLUMNS: Final[dict[str, Kinds]] = {
    "log_schema": {"version": "int"},
    "counters": {
        "id": "int",
        "request": "int",
        "scan": "int",
        "origin": "int",
        "requests": "int",
        "scans": "int",
        "given": "int",
        "revised": "int",
        "shadow": "int",
        "waiting": "int",
    },
    "requests": {
        "id": "int",
        "receipt": "text",
        "received_us": "int",
        "route": "text",
        "sites_version": "text",
        "degraded": "int",
    },
    "scans": {
        "id": "int",
        "request": "int",
        "place": "int",
        "epc": "text",
        "time_us": "int",
        "event_id": "int",
        "op": "int",
        "location_id": "text",
        "lot": "int",
        "file_id": "int",
        "remembered": "int",
        "whole": "text",
        "monitored": "bytes",
    },
    "origins": {
        "id": "int",
        "model_version": "text",
        "digest": "text",
        "source": "text",
        "confidence": "text",
    },
    "verdicts": {
        "scan": "int",
        "request": "int",
        "kind": "int",
        "origin": "int",
        "numbers": "bytes",
        "evidence": "text",
    },
    "feedback": {
        "subject": "text",
        "event_id": "int",
        "epc": "text",
        "time_us": "int",
        "anomaly": "text",
        "is_right": "int",
        "who": "text",
        "why": "text",
        "given_us": "int",
    },
}

CONFLICTS: Final = {
    "requests": "receipt",
    "scans": "epc, time_us, event_id, op, location_id",
    "origins": "model_version, digest, source, confidence",
    "verdicts": "scan, request, kind, origin",
    "feedback": "subject",
}
"""What makes a row the same row, by table. A number given out twice is none of these: an error."""

_NULL: Final = {("scans", "whole"), ("scans", "monitored")}
_CONSTRAINTS: Final = {
    "log_schema": "",
    "counters": "PRIMARY KEY (id)",
    "requests": f"PRIMARY KEY (id), UNIQUE ({CONFLICTS['requests']})",
    # Led by the code: it finds trails too, and the codes of a box lie side by side in it.
    "scans": f"PRIMARY KEY (id), UNIQUE ({CONFLICTS['scans']})",
    "origins": f"PRIMARY KEY (id), UNIQUE ({CONFLICTS['origins']})",
    "verdicts": f"PRIMARY KEY ({CONFLICTS['verdicts']})",
    "feedback": f"PRIMARY KEY ({CONFLICTS['feedback']})",
}
_INDEXES: Final = (
    "CREATE INDEX requests_received ON requests (received_us)",
    "CREATE INDEX scans_request ON scans (request, place)",
    "CREATE INDEX scans_lot ON scans (lot, id)",
    "CREATE INDEX scans_event ON scans (event_id, id) WHERE event_id >= 0",
    "CREATE INDEX scans_waiting ON scans (id) WHERE remembered = 0",
)


_STEPS: Final = {2: ("ALTER TABLE scans ADD COLUMN monitored {bytes}",)}
"""What leads from the layout before to one of a version."""


def migration(version: int, kinds: Kinds) -> list[str]:
    """The statements that bring a log of an older version up to this one; none for this one."""
    steps = [step for to in range(version + 1, VERSION + 1) for step in _STEPS[to]]
    if not steps:
        return []
    return [
        *(step.format_map(kinds) for step in steps),
        f"UPDATE log_schema SET version = {VERSION}",
    ]


def creation(kinds: Kinds, clustered: str = "") -> list[str]:
    """The statements that make an empty log.

    Args:
        kinds: how the database writes each kind of column.
        clustered: what it appends to a table that lies in the order of its primary key.
    """
    made = []
    for table, columns in COLUMNS.items():
        parts = [
            f"{name} {kinds[kind]}" + ("" if (table, name) in _NULL else " NOT NULL")
            for name, kind in columns.items()
        ]
        constraints = [_CONSTRAINTS[table]] if _CONSTRAINTS[table] else []
        suffix = f" {clustered}" if table == "verdicts" and clustered else ""
        made.append(f"CREATE TABLE {table} ({', '.join(parts + constraints)}){suffix}")
    zeros = ", ".join("0" for _ in COLUMNS["counters"])
    return [
        *made,
        *_INDEXES,
        f"INSERT INTO counters VALUES ({zeros})",
        f"INSERT INTO log_schema VALUES ({VERSION})",
    ]
