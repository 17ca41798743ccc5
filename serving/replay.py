"""Reproduce the verdicts of a receipt: `python -m serving.replay RECEIPT [--bundle FOLDER]`.

The log says which scans of the same lots were known then; they go through the same kernel and the
same bundle, and the scores are compared bit for bit. Where they differ, or something is no longer
at hand, it says what has changed. Exit status: 0 the same, 1 not, 2 it could not be tried.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from logbook import LogError, PredictionLog, Record
from logbook.opened import open_log
from models.bundle import Bundle, BundleError
from serving.history import History, HistoryError
from serving.history.opened import open_history
from serving.judge import Judge, Model
from serving.scorer import NO_HISTORY, Judged, Scorer, rows_of, scans_of
from serving.settings import Settings
from serving.sites import SiteBook
from trail.facts import previous_of
from trail.mates import table_of
from trail.trails import sort


class ReplayError(ValueError):
    """A receipt that cannot be replayed; says why and what would help."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of it.

    Attributes:
        scans: scans that the receipt brought.
        same: how many of their verdicts came out bit for bit.
        largest: largest difference of a score.
        changed: what is known to be another than then, in words.
    """

    scans: int
    same: int
    largest: float
    changed: list[str]


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the module."""
    parser = argparse.ArgumentParser(prog="python -m serving.replay", description=__doc__)
    parser.add_argument("receipt")
    parser.add_argument("--bundle", type=Path, help="the bundle that judged, if it is elsewhere")
    asked = parser.parse_args(argv)
    try:
        settings = Settings.read()
        history = open_history(
            settings.history_url,
            keep_days_after_sale=settings.keep_days_after_sale,
            keep_days_idle=settings.keep_days_idle,
        )
        found = replay(asked.receipt, settings, history, open_log(settings.log_url), asked.bundle)
    except (ValueError, HistoryError, LogError, OSError) as error:
        print(f"replay: {error}", file=sys.stderr)
        return 2
    for line in found.changed:
        print(f"changed since then: {line}")
    if found.same == found.scans:
        print(f"{found.scans} verdicts reproduced, bit for bit")
        return 0
    print(
        f"{found.same} of {found.scans} verdicts reproduced; scores differ by up to "
        f"{found.largest:.3g} of 100"
    )
    return 1


def replay(
    receipt: str,
    settings: Settings,
    history: History,
    log: PredictionLog,
    folder: Path | None = None,
) -> Replayed:
    """Judge the scans of a receipt again with what was known then.

    Raises:
        ReplayError: the receipt or its bundle is not at hand, or history was away then.
        HistoryError, LogError: a store is away.
    """
    found = log.request(receipt)
    if found is None or not found[1]:
        raise ReplayError(f"receipt {receipt!r} is not in the log; was it forgotten?")
    request, records = found
    if any(record.given.source == NO_HISTORY for record in records):
        raise ReplayError(f"receipt {receipt!r} was judged without history; nothing to reproduce")
    judge = Judge(settings)
    scorer = Scorer(settings, history, log, judge)
    model = _model(records, settings, folder, judge)
    lots = sorted({record.scan.lot for record in records})
    known = log.lots_before(lots, max(record.id for record in records))
    by = "svm" if request.route.endswith("/svm") else "model" if model else "rules"
    judged = _judged(scorer, SiteBook(history, scorer.master()), known, records, model, by)
    mine = {_key(record): i for i, record in enumerate(judged[1])}
    same, largest = 0, 0.0
    for record in records:
        i = mine[_key(record)]
        score = np.array(record.given.score, np.float32)
        gap = float(np.abs(score - judged[0].score[judged[0].place[i]]).max())
        same += gap == 0.0
        largest = max(largest, gap)
    changed = []
    if request.sites_version != scorer.sites_version:
        changed.append("the site book (sites were added or corrected)")
    if any(record.given.digest != (model.bundle.digest if model else "") for record in records):
        changed.append("another bundle than the one that judged was given")
    return Replayed(len(records), same, largest, changed)


def _judged(
    scorer: Scorer,
    book: SiteBook,
    known: Sequence[Record],
    records: Sequence[Record],
    model: Model | None,
    by: str,
) -> tuple[Judged, list[Record]]:
    """Verdicts on the trails of the receipt, and the records of those trails."""
    rows = rows_of(known)
    scans = scans_of(rows, book.numbers(rows.location, rows.op))
    trails = sort(scans)
    table = table_of(trails.scans, previous_of(trails.starts))
    codes = {record.scan.epc for record in records}
    own = [record for record in known if record.scan.epc in codes]
    rows = rows_of(own)
    asked = scans_of(rows, book.numbers(rows.location, rows.op))
    return scorer.judged_with(asked, table, model, by), own


def _model(
    records: Sequence[Record], settings: Settings, folder: Path | None, judge: Judge
) -> Model | None:
    """The model that judged; None: the rules did.

    Raises:
        ReplayError: its bundle is not at hand.
    """
    digests = {record.given.digest for record in records}
    versions = {record.given.model_version for record in records}
    if digests == {""}:
        return None
    if len(digests) > 1:
        raise ReplayError(
            "two models judged this request (a challenger answered for its share); "
            "such a receipt cannot be replayed in one go"
        )
    wanted = digests.pop()
    places = [folder] if folder else _places(settings)
    for place in places:
        stated = place / "digest.json"
        if folder or (stated.is_file() and json.loads(stated.read_text())["sha256"] == wanted):
            try:
                bundle = Bundle(place)
            except BundleError as error:
                raise ReplayError(str(error)) from error
            return Model(settings.model, versions.pop(), bundle, judge.registry_of(bundle))
    raise ReplayError(f"bundle {wanted[:12]} is not at hand; give its folder with --bundle")


def _places(settings: Settings) -> list[Path]:
    """Where bundles lie: the setting, and what was fetched from the registry."""
    fetched = settings.home / "state" / settings.model / "bundles"
    found = [path.parent for path in sorted(fetched.rglob("digest.json"))]
    return [*([Path(settings.bundle)] if settings.bundle else []), *found]


def _key(record: Record) -> int:
    return record.id


if __name__ == "__main__":
    sys.exit(main())
