"""The stage evaluate, end to end on a made-up part with made-up scores."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from contextlib import redirect_stdout
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from models import bundle, lstm
from models.calibration import Calibration
from pipelines import evaluate, params
from pipelines.measures import explanations
from pipelines.measures.summary import summary
from pipelines.parts import Part, save_part
from tests.pipelines.test_measures_synthetic import SUBTYPES, make
from tests.pipelines.test_measures_thresholds import SECTION
from trail.features import FEATURES
from trail.scan import ANOMALIES

ROOT = Path(__file__).parents[2]
CSVS = ("ap", "confusion", "cost", "delay", "explanation", "grades", "pr", "reliability")
PNGS = (*CSVS, "recall")


def _save(folder: Path, name: str, seed: int):
    made, scores, answers = make(lots=24, items=96, seed=seed)
    columns = {field.name: getattr(made, field.name) for field in fields(Part)}
    rng = np.random.default_rng(seed)
    columns["features"] = rng.random((len(made.lot), len(FEATURES)), np.float32)
    save_part(Part(**columns), folder, name)
    return len(made.lot), scores, answers


@dataclass
class Place:
    """A folder with sequences, weights and data, and what was logged; two runs were made there."""

    root: Path
    logged: list
    digest: str
    first: Path
    second: Path
    told: str

    def run(self, out: str, data: str = "data") -> Path:
        """Evaluate into the folder `out`."""
        where = self.root / out
        where.mkdir(exist_ok=True)
        words = [f"--{name}={self.root / name}" for name in ("sequences", "weights")]
        assert evaluate.main([*words, f"--data={self.root / data}", f"--out={where}"]) == 0
        return where


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Models that answer from a table by part size, evaluated twice: a run takes seconds."""
    root = tmp_path_factory.mktemp("evaluate")
    known = {}
    for name, seed in (("calibration", 1), ("test", 2)):
        size, scores, answers = _save(root / "sequences", name, seed)
        known[size] = scores
    (root / "data").mkdir()
    pq.write_table(_table(answers), root / "data" / "answers.parquet")
    (root / "weights").mkdir()
    stored = {model: dict.fromkeys(ANOMALIES, 0.4) for model in ("lstm", "gbm")}
    (root / "weights" / "thresholds.json").write_text(json.dumps(stored))
    digest = _network(root / "weights")
    logged, told = [], io.StringIO()
    tracking = evaluate.tracking
    section = {"evaluate": SECTION | {"bootstrap": 100, "explained": 4}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(params, "load", lambda: section)
        patch.setattr(evaluate.predict, "scores", lambda weights, part: known[len(part)])
        patch.setattr(evaluate, "subtype_names", lambda: list(SUBTYPES))
        patch.setattr(explanations, "named", lambda name: np.arange(len(FEATURES)) < 20)
        patch.setattr(tracking, "log_evaluation", lambda *a: logged.append(a), raising=False)
        made = Place(root, logged, digest, root / "one", root / "two", "")
        with redirect_stdout(told):
            made.run("one")
        made.told = told.getvalue()
        made.second.mkdir()
        shutil.copy(made.first / evaluate.HISTORY, made.second)
        made.run("two")
        yield made


def _network(weights: Path) -> str:
    """A network that has learned nothing, so that there is something to explain; the digest."""
    torch.manual_seed(0)
    shape = lstm.Shape(len(FEATURES), hidden=4, dropout=0.0)
    lstm.save(lstm.TrailLSTM(shape), weights / "lstm.safetensors")
    (weights / "lstm.json").write_text(json.dumps(shape.to_json()))
    even = Calibration(np.ones(5), np.zeros(5)).to_json()
    (weights / "calibration.json").write_text(json.dumps({"lstm": even}))
    return bundle.seal(weights)


def _table(answers) -> pa.Table:
    return pa.table(
        {
            "event_id": answers.event_id,
            "epc_code": [f"code {i}" for i in answers.event_id],
            "anomaly": [ANOMALIES[k] if k >= 0 else None for k in answers.anomaly],
            "subtype": [SUBTYPES[k] if k >= 0 else None for k in answers.subtype],
            "grade": answers.grade,
            "control": answers.control,
            "y_cause": answers.cause,
            "y_evid": answers.evidence,
            "blur": answers.blur,
        }
    )


def test_everything_is_written_and_logged(place):
    metrics = json.loads((place.first / "metrics.json").read_text())
    assert set(metrics["map"]) == set(metrics["map_natural"]) == {"rules", "svm", "gbm", "lstm"}
    assert metrics["vs_rules"]["map_gain"]["low"] > 0
    # Thresholds that lie with the weights are used, the others chosen.
    operating = metrics["injected"]["operating"]
    assert operating["lstm"]["jump"]["threshold"] == 0.4
    assert operating["rules"]["jump"]["threshold"] == 0.5
    assert operating["rules_tuned"]["jump"]["threshold"] != 0.5
    assert "never_injected" in {n for by in metrics["natural"]["subtypes"].values() for n in by}
    plots = place.first / "reports" / "plots"
    assert sorted(p.stem for p in plots.glob("*.png")) == sorted((*PNGS, "recall_natural"))
    assert sorted(p.stem for p in plots.glob("*.csv")) == sorted(CSVS)
    assert summary(metrics) in place.told
    assert place.logged[0] == (place.root / "weights", metrics, place.first / "reports")


def test_the_card_links_plots_that_are_there(place):
    text = (place.first / "reports" / "model_card.md").read_text()
    links = re.findall(r"\]\((.+?)\)", text)
    assert len(links) == 10
    assert all((place.first / "reports" / link).is_file() for link in links)
    assert str(place.root) not in text


def test_the_same_input_gives_the_same_files(place):
    files = [p.relative_to(place.first) for p in place.first.rglob("*") if p.is_file()]
    assert len(files) == 2 + 1 + len(PNGS) + 1 + len(CSVS)
    for name in files:
        if name.name != evaluate.HISTORY:
            assert (place.first / name).read_bytes() == (place.second / name).read_bytes(), name


def test_history_grows_by_a_line_an_evaluation(place):
    with (place.second / evaluate.HISTORY).open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", lines[0]["time_utc"])
    metrics = json.loads((place.second / "metrics.json").read_text())
    assert float(lines[1]["map_lstm"]) == metrics["map"]["lstm"]
    assert float(lines[1]["gain_low"]) == metrics["vs_rules"]["map_gain"]["low"]
    assert lines[0]["weights_digest"] == place.digest[:12]


def test_it_says_how_often_the_test_lots_were_read(place, tmp_path):
    assert "read 1 time(s)" in place.told
    metrics, now = json.loads((place.first / "metrics.json").read_text()), datetime.now(UTC)
    path = tmp_path / evaluate.HISTORY
    reads = [
        evaluate.append_history(path, metrics, evaluate.Provenance("", data, "", []), now)
        for data in ("a", "a", "b", "a")
    ]
    assert reads == [1, 2, 1, 3]


def test_a_history_with_fewer_columns_goes_on(place, tmp_path):
    path = tmp_path / evaluate.HISTORY
    path.write_text("time_utc,data_hash,map_lstm\n2026-01-01T00:00:00Z,a,0.5\n")
    metrics = json.loads((place.first / "metrics.json").read_text())
    metrics["map"]["stack"] = 0.75
    origin = evaluate.Provenance("", "a", "", [])
    assert evaluate.append_history(path, metrics, origin, datetime.now(UTC)) == 2
    with path.open() as file:
        old, new = csv.DictReader(file)
    assert (old["map_lstm"], old["map_stack"]) == ("0.5", "")
    assert (float(new["map_lstm"]), new["map_stack"]) == (metrics["map"]["lstm"], "0.75")


def test_explanations_are_measured_for_every_type_and_baseline(place):
    metrics = json.loads((place.first / "metrics.json").read_text())
    assert list(metrics["explanation"]) == list(explanations.BASELINES)
    for by_type in metrics["explanation"].values():
        assert list(by_type) == list(ANOMALIES)
        assert {one["cases"] for one in by_type.values()} == {4}
        assert all(one["completeness_p95"] < 0.05 for one in by_type.values())
    assert "explanations: 40/40 scans, done" in place.told
    card = (place.first / "reports" / "model_card.md").read_text()
    assert card.count("\n| zeros |") == len(ANOMALIES)


def test_data_without_answers_have_no_natural_block(place):
    out = place.run("bare", data="elsewhere")
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["map_natural"] == metrics["natural"] == {}
    assert "come without answers" in (out / "reports" / "model_card.md").read_text()
    assert not (out / "reports" / "plots" / "recall_natural.png").exists()


def test_names_and_numbers_of_the_answers_are_the_same(place, tmp_path):
    path = place.root / "data" / "answers.parquet"
    by_name = evaluate.read_answers(path)
    columns = pq.read_table(path).to_pydict()
    columns["anomaly"] = [ANOMALIES.index(a) if a else -1 for a in columns["anomaly"]]
    columns["subtype"] = [SUBTYPES.index(s) if s else None for s in columns["subtype"]]
    pq.write_table(pa.table(columns), tmp_path / path.name)
    by_number = evaluate.read_answers(tmp_path / path.name)
    for field in fields(by_name):
        assert (getattr(by_name, field.name) == getattr(by_number, field.name)).all()


def test_only_evaluate_opens_the_natural_answers():
    word = re.compile(r"answers\.parquet|\.answers\b|\bANSWERS\b|\bread_answers\b")
    # The first opens them; the second says where they lie, the third copies them unread.
    names = ("pipelines/evaluate.py", "intake/layout.py", "pipelines/snapshot.py")
    allowed = {ROOT / name for name in names}
    rooms = ("trail", "models", "intake", "pipelines", "serving", "monitoring", "dags", "bench")
    for path in (path for room in rooms for path in (ROOT / room).rglob("*.py")):
        if path not in allowed:
            assert not word.search(path.read_text(encoding="utf-8")), path
