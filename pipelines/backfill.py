"""What would have been trained at past dates, side by side: `python -m pipelines.backfill`.

Reads the versions that the DAG `backfill` registered, prints them by date, and attaches the table
to the run of the newest. Each is measured on the newest lots of its own data, and compared with the
rules on those same lots: the gain is what may be compared between dates.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Final

from pipelines import tracking
from pipelines.progress import say

if TYPE_CHECKING:
    from mlflow import MlflowClient

FILE: Final = "backfill.csv"


@dataclass(frozen=True, slots=True)
class Row:
    """A version trained as of a date.

    Attributes:
        as_of: the date, exclusive.
        version: of the registered model.
        run: id of the DAG's run.
        data: hash of its data.
        map: mean average precision on injected tampering, of its own newest lots.
        rules: likewise of the rules.
        gain: the difference.
    """

    as_of: str
    version: int
    run: str
    data: str
    map: float
    rules: float

    @property
    def gain(self) -> float:
        """What it gains over the rules."""
        return self.map - self.rules


def main(argv: list[str] | None = None) -> int:
    """Print the comparison; see `--help`."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.backfill", description=__doc__)
    parser.add_argument("--model", default="trailwatch-backfill", help="that the DAG registers")
    parser.add_argument("--run", default="", help="the DAG's run, for its log only")
    parser.add_argument("--dag", default="backfill", help="the DAG, for its log only")
    asked = parser.parse_args(argv)
    store = tracking.client()
    found = rows(store, asked.model)
    if not found:
        print(f"backfill: {asked.model!r} has no version with a date; run the DAG", file=sys.stderr)
        return 1
    say(table(found))
    last = max(found, key=lambda row: row.version)
    store.log_text(
        str(store.get_model_version(asked.model, str(last.version)).run_id), as_csv(found), FILE
    )
    say(json.dumps({"as_of": last.as_of, "version": last.version, "map": last.map}))
    return 0


def rows(store: MlflowClient, model: str) -> list[Row]:
    """Versions with a date, the newest version of each date, by date."""
    by_date: dict[str, Row] = {}
    versions = store.search_model_versions(f"name = '{model}'")
    for version in sorted(versions, key=lambda version: int(version.version)):
        tags = version.tags
        if "as_of" not in tags or not version.run_id:
            continue
        figures = store.get_run(version.run_id).data.metrics
        by_date[tags["as_of"]] = Row(
            as_of=tags["as_of"],
            version=int(version.version),
            run=tags.get("dag_run_id", ""),
            data=tags.get("data_hash", "")[:12],
            map=float(figures.get("map.stack", figures.get("map.lstm", "nan"))),
            rules=float(figures.get("map.rules", "nan")),
        )
    return [by_date[day] for day in sorted(by_date)]


def table(found: list[Row]) -> str:
    """The comparison for a person."""
    lines = ["as of       version    mAP  rules   gain  data          run"]
    for row in found:
        lines.append(
            f"{row.as_of:<10}  {row.version:>7}  {row.map:>5.3f}  {row.rules:>5.3f}  "
            f"{row.gain:>+5.3f}  {row.data:<12}  {row.run}"
        )
    return "\n".join(lines)


def as_csv(found: list[Row]) -> str:
    """The comparison as a file."""
    text = io.StringIO()
    names = [field.name for field in fields(Row)]
    out = csv.DictWriter(text, [*names, "gain"], lineterminator="\n")
    out.writeheader()
    out.writerows({**asdict(row), "gain": row.gain} for row in found)
    return text.getvalue()


if __name__ == "__main__":
    sys.exit(main())
