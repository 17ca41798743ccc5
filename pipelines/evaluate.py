"""Stage evaluate: weights, sequences -> metrics.json, plots, model card.

Rules, one-class SVM, gradient boosting and LSTM on the same scans of the test split, each block of
truth apart: what `label` injected, what the world itself hides (its answers are opened here and
nowhere else), what analysts judged. One line goes to the performance history.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models import predict
from models.calibration import Calibration
from models.explain import Explainer
from models.stack import served
from pipelines import params, tracking
from pipelines.measures import blocks, curves, explanations, figures
from pipelines.measures.card import Provenance, card
from pipelines.measures.headline import headline, main_model, rounded
from pipelines.measures.report import TUNED, Operating, Tree, flags, report
from pipelines.measures.settings import Settings
from pipelines.measures.summary import summary
from pipelines.measures.thresholds import choose
from pipelines.parts import PARTS, Part, load_part
from pipelines.progress import Progress, say
from trail.scan import ANOMALIES

Float32 = npt.NDArray[np.float32]

ANSWERS = "answers.parquet"
COMMAND = "python -m pipelines.evaluate"
HISTORY = "performance_history.csv"


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What was measured and what it was measured on."""

    metrics: Tree
    block: blocks.Block
    operating: Mapping[str, Operating]
    deletion: Sequence[curves.Row]


def main(argv: list[str] | None = None) -> int:
    """Run the stage; see `--help`."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--sequences", type=Path, default=Path("work/sequences"))
    parser.add_argument("--weights", type=Path, default=Path("models/weights"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("."))
    asked = parser.parse_args(argv)
    section = params.load()["evaluate"]
    settings = Settings.read(section)
    found = evaluate(asked, settings, explanations.wanted(section))
    digest = weights_digest(asked.weights)
    origin = Provenance(
        command=COMMAND,
        data_hash=tracking.data_hash(asked.data.with_name(f"{asked.data.name}.dvc")),
        weights_digest=digest,
        parts=_sizes(asked.sequences),
    )
    write(found, settings, origin, asked.out)
    reads = append_history(asked.out / HISTORY, found.metrics, origin, datetime.now(UTC))
    tracking.log_evaluation(asked.weights, found.metrics, asked.out / "reports")
    say(summary(found.metrics))
    say(f"The test lots of these data have been read {reads} time(s), see {HISTORY}.")
    return 0


def evaluate(asked: argparse.Namespace, settings: Settings, explained: int) -> Evaluated:
    """Score the test split, measure each block of it, explain some flagged scans of each type."""
    test = load_part(asked.sequences, "test")
    say(f"evaluate: scoring {len(test):,} scans of the test split")
    scores = predict.scores(asked.weights, test)
    operating = thresholds(asked, settings, list(scores))
    answers = read_answers(asked.data / ANSWERS)
    names = subtype_names()
    injected = blocks.injected(test, scores, answers)
    say(f"evaluate: injected block, {len(injected):,} scans")
    of_injected = report(injected, operating, settings, names)
    of_natural = None
    if answers is None:
        say("evaluate: no natural block, these data come without answers")
    else:
        natural = blocks.natural(test, scores, answers)
        say(f"evaluate: natural block, {len(natural):,} scans")
        of_natural = report(natural, operating, settings, names)
    tree = headline(of_injected, of_natural)
    judged = blocks.verdicts(test, scores)
    if (judged.target == 1).any():
        say(f"evaluate: analysts' verdicts, {len(judged):,} scans")
        tree["verdicts"] = report(judged, operating, settings, names)
    answers_by = served(asked.weights)
    flagged = scores[answers_by] >= operating[answers_by].threshold
    drawn = explanations.draw(test, flagged, answers, names, explained, settings.seed)
    why = explain(asked.weights, drawn, settings)
    tree["explanation"] = why.tree
    return Evaluated(rounded(tree), injected, operating, why.curves)


def explain(
    weights: Path, drawn: Sequence[explanations.Drawn], settings: Settings
) -> explanations.Measured:
    """Explain the model's verdicts on the cases, and measure the explanations."""
    calibration = json.loads((weights / "calibration.json").read_text())[served(weights)]
    cases = sum(len(one.cases) for one in drawn)
    say(f"evaluate: explaining {cases} flagged scans, against each baseline")
    explainer = Explainer(weights, weights_digest(weights))
    with Progress("explanations", len(explanations.BASELINES) * cases, "scans") as step:
        return explanations.measure(
            explainer, Calibration.from_json(calibration), drawn, settings.seed, step
        )


def thresholds(
    asked: argparse.Namespace, settings: Settings, models: Sequence[str]
) -> dict[str, Operating]:
    """How each model flags; the rules twice, from their own threshold and from a chosen one.

    Thresholds lie with the weights. A model that has none there gets its own from the calibration
    part, in the same way.
    """
    path = asked.weights / "thresholds.json"
    stored = json.loads(path.read_text()) if path.exists() else {}
    missing = [model for model in models if model not in stored]
    if missing:
        say(f"evaluate: choosing thresholds of {', '.join(missing)} on the calibration part")
        part = load_part(asked.sequences, "calibration")
        scores, target = predict.scores(asked.weights, part), blocks.scored_target(part)
        for model in missing:
            stored[model] = choose(scores[model], target, part.lot, settings).value
    own = np.full(len(ANOMALIES), settings.rule_flag / 100, dtype=np.float32)
    found = {}
    for model in models:
        row = np.array([stored[model][kind] for kind in ANOMALIES], dtype=np.float32)
        if model == "rules":
            found[model] = Operating(model, own)
        found[TUNED if model == "rules" else model] = Operating(model, row)
    return found


def read_answers(path: Path) -> blocks.Answers | None:
    """The natural truth, or None where the data come without."""
    import pyarrow.parquet as pq

    if not path.exists():
        return None
    columns = pq.read_table(path).to_pydict()
    size = len(columns["event_id"])
    kinds = {name: k for k, name in enumerate(ANOMALIES)}
    subtypes = {name: k for k, name in enumerate(subtype_names())}
    return blocks.Answers(
        event_id=np.array(columns["event_id"], dtype=np.int64),
        anomaly=np.array([_code(v, kinds) for v in columns["anomaly"]], dtype=np.int8),
        subtype=np.array([_code(v, subtypes) for v in columns["subtype"]], dtype=np.int16),
        grade=np.array([_code(v, {}) for v in columns["grade"]], dtype=np.int8),
        control=np.array(columns["control"], dtype=bool),
        cause=np.array(columns["y_cause"], dtype=bool),
        evidence=np.array(columns["y_evid"], dtype=bool),
        blur=np.array(columns.get("blur", [0] * size), dtype=np.int8),
    )


def _code(value: str | int | None, names: Mapping[str, int]) -> int:
    """Number of a name; a number is itself, nothing is -1."""
    if isinstance(value, str):
        return names.get(value, -1)
    return -1 if value is None else int(value)


def subtype_names() -> list[str]:
    """Names of the kinds of tampering, by their number."""
    from world.subtypes import NAMES

    return list(NAMES)


def write(found: Evaluated, settings: Settings, origin: Provenance, out: Path) -> None:
    """Write metrics.json, reports/model_card.md and reports/plots/ under `out`."""
    say("evaluate: writing metrics.json, plots and the model card")
    plots = out / "reports" / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    for old in (*plots.glob("*.png"), *plots.glob("*.csv")):
        old.unlink()
    text = json.dumps(found.metrics, indent=1, ensure_ascii=False)
    (out / "metrics.json").write_text(text + "\n", encoding="utf-8")
    tables = _tables(found, settings)
    for name, rows in tables.items():
        (plots / f"{name}.csv").write_text(curves.table(rows), encoding="utf-8")
    for name, png in _plots(found, tables).items():
        (plots / f"{name}.png").write_bytes(png)
    told = card(found.metrics, settings, origin)
    (out / "reports" / "model_card.md").write_text(told, encoding="utf-8")


def _tables(found: Evaluated, settings: Settings) -> dict[str, list[curves.Row]]:
    block, main = found.block, main_model(found.metrics)
    flagged = {name: flags(block, how) for name, how in found.operating.items()}
    return {
        "pr": curves.pr_rows(block),
        "reliability": curves.reliability_rows(block),
        "cost": curves.cost_rows(block, settings),
        "confusion": curves.confusion_rows(
            block, block.scores[main], found.operating[main].threshold
        ),
        "grades": curves.grade_rows(found.metrics["injected"]),
        "ap": curves.ap_rows(found.metrics["injected"]),
        "delay": curves.delay_rows(block, flagged),
        "explanation": list(found.deletion),
    }


def _plots(found: Evaluated, tables: Mapping[str, list[curves.Row]]) -> dict[str, bytes]:
    injected, natural = found.metrics["injected"], found.metrics["natural"]
    main = main_model(injected)
    marks = {
        model: {kind: one["threshold"] for kind, one in by_type.items()}
        for model, by_type in injected["operating"].items()
    }
    title = "Recall at 1 % false positives"
    plots = {
        "pr": figures.pr_figure(tables["pr"], injected["ap"]),
        "reliability": figures.reliability_figure(tables["reliability"]),
        "cost": figures.cost_figure(tables["cost"], marks),
        "confusion": figures.confusion_figure(injected["confusion"][main], main),
        "ap": figures.ap_figure(injected, natural),
        "recall": figures.recall_figure(injected, f"{title}, injected"),
        "grades": figures.grades_figure(injected),
        "delay": figures.delay_figure(tables["delay"], list(injected["operating"])),
        "explanation": figures.explanation_figure(
            tables["explanation"], found.metrics["explanation"]
        ),
    }
    if natural:
        plots["recall_natural"] = figures.recall_figure(natural, f"{title}, natural")
    return plots


def append_history(path: Path, metrics: Tree, origin: Provenance, now: datetime) -> int:
    """Add one line: when, from what, and how good.

    Returns:
        Lines of the same data: how often their test lots were read. Whoever changes a model after
        each read has chosen it on them.
    """
    gain = metrics.get("vs_rules", {}).get("map_gain", {})
    line: dict[str, Any] = {
        "time_utc": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "git_commit": tracking.git_commit(),
        "data_hash": origin.data_hash,
        "params_hash": _params_hash(),
        "weights_digest": origin.weights_digest[:12],
    }
    for model in ("rules", "svm", "gbm", "lstm"):
        line[f"map_{model}"] = metrics["map"].get(model)
    for model in ("rules", "svm", "gbm", "lstm"):
        line[f"map_natural_{model}"] = metrics["map_natural"].get(model)
    line |= {f"gain_{key}": gain.get(key) for key in ("low", "mid", "high")}
    line |= {"map_stack": metrics["map"].get("stack")}
    line |= {"map_natural_stack": metrics["map_natural"].get("stack")}
    rows: list[Mapping[str, Any]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            rows += csv.DictReader(file)
    fresh = path.with_name(f".{path.name}")  # all lines anew: older ones may have fewer columns
    with fresh.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(line), lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows([*rows, line])
    os.replace(fresh, path)
    return sum(row["data_hash"] == origin.data_hash for row in (*rows, line))


def _params_hash() -> str:
    text = json.dumps(params.load(), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def weights_digest(folder: Path) -> str:
    """The digest with which the weights were sealed; refuses weights that were changed."""
    from models import bundle

    return bundle.verify(folder)


def _sizes(sequences: Path) -> list[tuple[str, int, int, int]]:
    """Scans, trails and lots of the parts there are."""
    found = []
    for name in PARTS:
        if (sequences / name).is_dir():
            part: Part = load_part(sequences, name)
            found.append((name, len(part), len(part.offsets) - 1, len(np.unique(part.lot))))
    return found


if __name__ == "__main__":
    sys.exit(main())
