"""Promotion: may the challenger become champion? A decision with gates, and a way back.

    python -m pipelines.promote --by ann --why "weekly training"
    python -m pipelines.promote --mode approval      then --approve or --reject
    python -m pipelines.promote --rollback --by ann --why "too many alarms in Busan"
    python -m pipelines.promote --history

Challenger and champion judge the same hold-out; every gate, figure and verdict goes to OUT, into
the ledger, and to MLflow. The status is 0 whenever a decision was made, also where it is
"refused"; 1 where there is nothing to decide or somebody else was quicker; 2 where something is
missing or cannot be reached.
"""

from __future__ import annotations

import argparse
import getpass
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from models import registry
from models.bundle import BundleError
from pipelines import params
from pipelines.progress import say
from pipelines.promotion import moves, published
from pipelines.promotion.ledger import Entry, Kind, Ledger, LedgerError, default_url

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from pipelines.promotion.gates import Judgement

MODES: Final = {"auto": Kind.PROMOTE, "approval": Kind.WAITING, "never": Kind.HELD}


class NothingToDoError(RuntimeError):
    """There is nothing to decide, approve or go back to; says why."""


def main(argv: list[str] | None = None) -> int:
    """Run the command; see `--help`. Returns the status."""
    began = time.monotonic()
    asked = _parser().parse_args(argv)
    from mlflow.exceptions import MlflowException

    try:
        command = Command(asked)
        if asked.history:
            command.history()
        elif asked.rollback:
            command.rollback(began)
        elif asked.approve or asked.reject:
            command.answer()
        else:
            command.decide()
    except (moves.StaleError, NothingToDoError) as error:
        print(f"promote: {error}", file=sys.stderr)
        return 1
    except (LedgerError, BundleError, MlflowException, KeyError, ValueError, OSError) as error:
        print(f"promote: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.promote",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", help="registered model; that of params.yaml by default")
    parser.add_argument("--version", default="", help="the challenger's alias by default")
    parser.add_argument(
        "--mode", choices=MODES, default="auto", help="what to do if all gates pass"
    )
    parser.add_argument("--by", default="", help="who decides; your user name by default")
    parser.add_argument("--why", default="", help="your reason, for the ledger")
    parser.add_argument("--holdout", type=Path, default=Path("work/sequences/test"))
    parser.add_argument("--out", type=Path, default=Path("promotion.json"))
    parser.add_argument("--ledger", default="", help="its URL, instead of TRAILWATCH_LEDGER")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--approve", action="store_true", help="what waits for approval")
    instead.add_argument("--reject", action="store_true", help="what waits for approval")
    instead.add_argument("--rollback", action="store_true", help="to the champion before")
    instead.add_argument("--history", action="store_true", help="print the ledger")
    return parser


class Command:
    """What the command line asks, on one model."""

    def __init__(self, asked: argparse.Namespace) -> None:
        """Open registry and ledger."""
        self._asked = asked
        self.model: str = asked.model or params.load()["register"]["model"]
        self.who: str = asked.by or _user()
        self.store: MlflowClient = registry.client()
        url = asked.ledger or default_url(registry.tracking_uri(), registry.home())
        self.ledger = Ledger(url)

    def history(self) -> None:
        """Print the ledger."""
        say(table(self.ledger.entries(self.model)))

    def decide(self) -> None:
        """Judge the challenger, and do what the mode says if it passes."""
        expected = self._settled()
        challenger = self._challenger()
        if challenger.number == expected:
            said = f"version {expected} of {self.model!r} is the champion already"
            decision = self._decision(challenger, None, {}, None)
            self._write({**decision, "outcome": "nothing to decide", "message": said})
            say(f"promote: {said}")
            return
        decision = self._judged(challenger, expected)
        refused_by = decision["refused_by"]
        kind = Kind.REFUSED if refused_by else MODES[self._asked.mode]
        if kind is Kind.PROMOTE:
            entry = self._promoted(decision, expected, challenger.number)
        else:
            entry = self._noted(kind, decision, expected, challenger.number)
        self._write(published.full(entry))
        say(summary(published.full(entry)))

    def answer(self) -> None:
        """Approve or reject what waits."""
        approved = bool(self._asked.approve)
        self._settled()
        open_ = moves.waiting(self.ledger.entries(self.model), self._asked.version)
        if open_ is None:
            which = f" of version {self._asked.version}" if self._asked.version else ""
            raise NothingToDoError(f"no decision{which} on {self.model!r} waits for approval")
        decision = {**open_.decision, "by": self.who, "why": self._asked.why}
        if approved:
            self._usable(open_.target)
            entry = self._moved(
                Kind.PROMOTE, open_.origin, open_.target, decision=decision, settles=open_.number
            )
        else:
            entry = self._noted(
                Kind.REJECTED, decision, open_.origin, open_.target, settles=open_.number
            )
        self._write(published.full(entry))
        outcome = published.OUTCOMES[entry.kind]
        say(f"promote: version {open_.target} of {self.model!r} is {outcome}")

    def rollback(self, began: float) -> None:
        """Back to the champion before, further back each time."""
        expected = registry.alias(self.store, self.model, registry.CHAMPION) or ""
        # A move that died half-way is finished first; then it is what is gone back from.
        begun = moves.unfinished(self.ledger.entries(self.model))
        if begun is not None:
            expected = self._settled()
        target = moves.before(self.ledger.entries(self.model))
        if not target:
            raise NothingToDoError(f"{self.model!r} has no earlier champion to go back to")
        self._usable(target)
        ready = time.monotonic()
        self._moved(Kind.ROLLBACK, expected, target)
        now = time.monotonic()
        say(
            f"promote: the champion of {self.model!r} is version {target} again, not {expected}; "
            f"it took {now - began:.1f} s, the move itself {now - ready:.1f} s"
        )

    def _settled(self) -> str:
        """The champion's version, with what died half-way finished."""
        with self.ledger.alone(self.model):
            return moves.settle(self.ledger, self.store, self.model, self._publish)

    def _publish(self, entry: Entry) -> None:
        published.publish(self.store, entry)

    def _challenger(self) -> registry.Version:
        number = self._asked.version
        if number:
            found = registry.find_version(self.store, self.model, number)
            missing = f"{self.model!r} has no version {number}"
        else:
            found = registry.behind(self.store, self.model, registry.CHALLENGER)
            missing = f"{self.model!r} has no challenger; register one with: dvc repro register"
        if found is None:
            raise NothingToDoError(missing)
        return found

    def _usable(self, number: str) -> None:
        """Refuse a version whose bundle this program must not use: no service could follow."""
        found = registry.find_version(self.store, self.model, number)
        if found is None:
            raise NothingToDoError(f"{self.model!r} has no version {number} any more")
        with tempfile.TemporaryDirectory() as cache:
            registry.cached(self.model, found, Path(cache))

    def _judged(self, challenger: registry.Version, expected: str) -> dict[str, Any]:
        # These imports take seconds, which a rollback does not have.
        from pipelines.promotion import gates, holdout
        from pipelines.promotion.candidates import candidate
        from pipelines.promotion.settings import Settings

        settings = Settings.read(params.load())
        known = holdout.load(holdout.labelled(self._asked.holdout))
        champion = registry.find_version(self.store, self.model, expected) if expected else None
        with tempfile.TemporaryDirectory() as cache:
            both = [
                candidate(self.model, version, Path(cache)) if version else None
                for version in (challenger, champion)
            ]
            assert both[0] is not None
            judgement = gates.judge(self.model, both[0], both[1], known, settings)
        return self._decision(challenger, champion, known.described(), judgement)

    def _decision(
        self,
        challenger: registry.Version,
        champion: registry.Version | None,
        holdout: Mapping[str, Any],
        judgement: Judgement | None,
    ) -> dict[str, Any]:
        return {
            "model": self.model,
            "outcome": "",
            "refused_by": judgement.failed if judgement else [],
            "mode": self._asked.mode,
            "by": self.who,
            "why": self._asked.why,
            "challenger": _side(challenger, judgement.challenger if judgement else None),
            "champion": champion and _side(champion, judgement.champion if judgement else None),
            "holdout": dict(holdout),
            "gates": [gate.to_json() for gate in judgement.gates] if judgement else [],
            "gains": judgement.gains if judgement else None,
        }

    def _promoted(self, decision: dict[str, Any], expected: str, number: str) -> Entry:
        try:
            return self._moved(Kind.PROMOTE, expected, number, decision=decision)
        except moves.StaleError as error:
            # It was judged against a champion that is none any more: that is a decision, too.
            late = {**decision, "refused_by": ["champion"], "message": str(error)}
            entry = self._noted(Kind.REFUSED, late, expected, number)
            self._write(published.full(entry))
            raise

    def _moved(
        self,
        kind: Kind,
        expected: str,
        target: str,
        decision: Mapping[str, Any] | None = None,
        settles: int = 0,
    ) -> Entry:
        return moves.move(
            self.ledger,
            self.store,
            self.model,
            kind,
            expected=expected,
            target=target,
            who=self.who,
            why=self._asked.why,
            publish=self._publish,
            decision=decision,
            settles=settles,
        )

    def _noted(
        self, kind: Kind, decision: Mapping[str, Any], origin: str, target: str, settles: int = 0
    ) -> Entry:
        """A decision that moves nothing."""
        entry = self.ledger.append(
            self.model,
            kind,
            who=self.who,
            why=self._asked.why,
            origin=origin,
            target=target,
            settles=settles,
            decision=decision,
        )
        self._publish(entry)
        return entry

    def _write(self, decision: Mapping[str, Any]) -> None:
        published.write(decision, self._asked.out)


def _side(version: registry.Version, figures: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"version": version.number, "digest": version.digest, "figures": figures}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "nobody named"


def summary(decision: Mapping[str, Any]) -> str:
    """What a person wants to know of a decision."""
    lines = []
    for gate in decision["gates"]:
        sign = ">=" if gate["at_least"] else "<="
        figure = "-" if gate["figure"] is None else f"{gate['figure']:.4g}"
        bound = "-" if gate["bound"] is None else f"{gate['bound']:.4g}"
        lines.append(
            f"  {gate['name']:<18} {figure:>10} {sign} {bound:<8} {gate['verdict']:<11} "
            f"{gate['note']}".rstrip()
        )
    champion = decision["champion"]
    against = f", against version {champion['version']}" if champion else ""
    by = f" by {', '.join(decision['refused_by'])}" if decision["refused_by"] else ""
    version = decision["challenger"]["version"]
    told = f"promote: {decision['model']} version {version}{against}: {decision['outcome']}{by}"
    return "\n".join([*lines, told])


def _in_short(decision: Mapping[str, Any]) -> str:
    """What a decision was made on, for one line of a table."""
    parts = []
    for measure, name in (("ap", "mAP"), ("f_beta", "F-beta")):
        gain = ((decision.get("gains") or {}).get(measure) or {}).get("all") or {}
        if gain.get("mid") is not None:
            parts.append(f"{name} {gain['mid']:+.4f}")
    failed = list(decision.get("refused_by", []))
    more = [f"{len(failed) - 3} more"] if len(failed) > 3 else []
    return "; ".join([", ".join(parts), ", ".join([*failed[:3], *more])]).strip("; ")


def table(entries: Sequence[Entry]) -> str:
    """The ledger as a table."""
    rows = [("no", "when (UTC)", "what", "from", "to", "who", "on", "why")]
    for entry in entries:
        figures = f"entry {entry.settles}" if entry.settles else _in_short(entry.decision)
        rows.append(
            (
                str(entry.number),
                entry.at[:19].replace("T", " "),
                str(entry.kind),
                entry.origin or "-",
                entry.target or "-",
                entry.who,
                figures,
                json.dumps(entry.why, ensure_ascii=False)[1:-1],
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    sys.exit(main())
