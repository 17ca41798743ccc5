"""The site book's entries as text, the same in every store."""

from __future__ import annotations

import json
import math

from serving.history import SiteEntry


def entry_text(entry: SiteEntry) -> bytes:
    """One entry as a JSON list; unknown degrees are null."""
    degrees = [None if math.isnan(x) else x for x in (entry.latitude, entry.longitude)]
    fields = [entry.id, entry.name, int(entry.tier), *degrees, bool(entry.known)]
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def entry_from(text: bytes) -> SiteEntry:
    """The entry that `entry_text` wrote."""
    name, title, tier, latitude, longitude, known = json.loads(text)
    degrees = [math.nan if x is None else float(x) for x in (latitude, longitude)]
    return SiteEntry(name, title, tier, degrees[0], degrees[1], known)
