"""Making a decision known: files, tags of the version, artifacts of its run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipelines.progress import say
from pipelines.promotion.ledger import Entry, Kind

if TYPE_CHECKING:
    from mlflow import MlflowClient

TAG: Final = "promotion"
FOLDER: Final = "promotion"
OUTCOMES: Final = {
    Kind.PROMOTE: "promoted",
    Kind.REFUSED: "refused",
    Kind.WAITING: "waiting",
    Kind.HELD: "held",
    Kind.REJECTED: "rejected",
    Kind.ROLLBACK: "rolled back",
}
_LONGEST: Final = 4_000
"""Characters of a tag's value that every MLflow store takes."""


def write(decision: Mapping[str, Any], out: Path) -> None:
    """Write the decision as JSON, and its plot beside it where there are gates to draw."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(decision, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    plot = out.with_suffix(".png")
    if decision.get("gates"):
        from pipelines.promotion.figure import forest

        plot.write_bytes(forest(decision))
    else:
        plot.unlink(missing_ok=True)


def full(entry: Entry) -> dict[str, Any]:
    """The decision of an entry, with its place in the ledger."""
    return {
        **entry.decision,
        "outcome": OUTCOMES[entry.kind],
        "ledger": {"number": entry.number, "hash": entry.hash},
    }


def publish(store: MlflowClient, entry: Entry) -> None:
    """Tag the version that an entry is about, and attach the decision to the version's run.

    Doing it again changes nothing. A run that does not take artifacts is told of, and no reason not
    to go on: the ledger holds them.

    Raises:
        MlflowException: the version cannot be tagged.
    """
    from mlflow.exceptions import MlflowException

    version = entry.origin if entry.kind is Kind.ROLLBACK else entry.target
    if not version:
        return
    for name, value in _tags(entry).items():
        store.set_model_version_tag(entry.model, version, name, value[:_LONGEST])
    run = store.get_model_version(entry.model, version).run_id
    if not entry.decision or not run:
        return
    try:
        with tempfile.TemporaryDirectory() as folder:
            write(full(entry), Path(folder) / "promotion.json")
            store.log_artifacts(run, folder, f"{FOLDER}/{entry.number:04d}")
    except (MlflowException, OSError) as error:
        said = " ".join(str(error).split())[:200]
        say(f"promote: the decision could not be attached to run {run} ({said})")


def _tags(entry: Entry) -> dict[str, str]:
    tags = {
        TAG: OUTCOMES[entry.kind],
        f"{TAG}_by": entry.who,
        f"{TAG}_why": entry.why,
        f"{TAG}_at": entry.at,
        f"{TAG}_ledger": f"{entry.number} {entry.hash}",
    }
    if entry.decision:
        tags[f"{TAG}_refused_by"] = ", ".join(entry.decision.get("refused_by", []))
        for gate in entry.decision.get("gates", []):
            if gate["name"] in ("map", "f_beta") and gate["interval"]:
                tags[f"{TAG}_{gate['name']}_gain"] = gate["note"]
    return tags
