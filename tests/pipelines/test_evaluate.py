"""The stage evaluate, end to end on a made-up part with made-up scores."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import evaluate, params
from pipelines.measures.settings import Settings
from pipelines.measures.summary import summary
from pipelines.parts import Part, save_part
from tests.pipelines.test_measures_synthetic import SUBTYPES, make
from tests.pipelines.test_measures_thresholds import SECTION
from trail.features import FEATURES
from trail.scan import ANOMALIES

ROOT = Path(__file__).parents[2]
PNGS = ("ap", "confusion", "cost", "delay", "grades", "pr", "recall", "reliability")
CSVS = ("ap", "confusion", "cost", "delay", "grades", "pr", "reliability")


def _save(folder: Path, name: str, seed: int):
    made, scores, answers = make(lots=24, items=96, seed=seed)
    columns = {field.name: getattr(made, field.name) for field in fields(Part)}
    columns["features"] = np.zeros((len(made.lot), len(FEATURES)), np.float32)
    save_part(Part(**columns), folder, name)
    return len(made.lot), scores, answers


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with sequences, weights and data; models answer from a table by part size."""
    known = {}
    for name, seed in (("calibration", 1), ("test", 2)):
        size, scores, answers = _save(tmp_path / "sequences", name, seed)
        known[size] = scores
    pq.write_table(
        pa.table(
            {
                "event_id": answers.event_id,
                "epc_code": [f"code {i}" for i in answers.event_id],
                "anomaly": [ANOMALIES[k] if k >= 0 else None for k in answers.anomaly],
                "subtype": [SUBTYPES[k] if k >= 0 else None for k in answers.subtype],
                "grade": answers.grade,
                "control": answers.control,
                "y_cause": answers.cause,
                "y_evid": answers.evidence,
            }
        ),
        _folder(tmp_path / "data") / "answers.parquet",
    )
    stored = {model: dict.fromkeys(ANOMALIES, 0.4) for model in ("lstm", "gbm")}
    (_folder(tmp_path / "weights") / "thresholds.json").write_text(json.dumps(stored))
    logged = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(params, "load", lambda: {"evaluate": SECTION | {"bootstrap": 100}})
    monkeypatch.setattr(evaluate.predict, "scores", lambda weights, part: known[len(part)])
    monkeypatch.setattr(evaluate, "subtype_names", lambda: list(SUBTYPES))
    monkeypatch.setattr(evaluate, "weights_digest", lambda folder: "a" * 64)
    monkeypatch.setattr(
        evaluate.tracking, "log_evaluation", lambda *told: logged.append(told), raising=False
    )
    return tmp_path, logged


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _run(where: Path, out: str = "out") -> Path:
    (where / out).mkdir(exist_ok=True)
    words = [f"--{name}={where / name}" for name in ("sequences", "weights", "data")]
    assert evaluate.main([*words, f"--out={where / out}"]) == 0
    return where / out


def test_everything_is_written_and_logged(place, capsys):
    where, logged = place
    out = _run(where)
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics["map"]) == set(metrics["map_natural"]) == {"rules", "svm", "gbm", "lstm"}
    assert metrics["vs_rules"]["map_gain"]["low"] > 0
    # Thresholds that lie with the weights are used, the others chosen.
    assert metrics["injected"]["operating"]["lstm"]["jump"]["threshold"] == 0.4
    assert metrics["injected"]["operating"]["rules"]["jump"]["threshold"] == 0.5
    assert metrics["injected"]["operating"]["rules_tuned"]["jump"]["threshold"] != 0.5
    assert "never_injected" in {n for by in metrics["natural"]["subtypes"].values() for n in by}
    plots = out / "reports" / "plots"
    assert sorted(p.stem for p in plots.glob("*.png")) == sorted((*PNGS, "recall_natural"))
    assert sorted(p.stem for p in plots.glob("*.csv")) == sorted(CSVS)
    told = capsys.readouterr().out
    assert summary(metrics) in told
    ((weights, seen, folder),) = logged
    assert (weights, seen, folder) == (where / "weights", metrics, out / "reports")


def test_the_card_links_plots_that_are_there(place):
    out = _run(place[0])
    text = (out / "reports" / "model_card.md").read_text()
    links = re.findall(r"\]\((.+?)\)", text)
    assert len(links) == 9
    assert all((out / "reports" / link).is_file() for link in links)
    assert str(place[0]) not in text


def test_the_same_input_gives_the_same_files(place):
    first, second = (_run(place[0], out) for out in ("one", "two"))
    names = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    for name in names:
        if name.name != evaluate.HISTORY:
            assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_history_grows_by_a_line_an_evaluation(place):
    out = _run(place[0])
    _run(place[0])
    with (out / evaluate.HISTORY).open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", lines[0]["time_utc"])
    metrics = json.loads((out / "metrics.json").read_text())
    assert float(lines[1]["map_lstm"]) == metrics["map"]["lstm"]
    assert float(lines[1]["gain_low"]) == metrics["vs_rules"]["map_gain"]["low"]
    assert lines[0]["weights_digest"] == "a" * 12


def test_data_without_answers_have_no_natural_block(place):
    where, _ = place
    (where / "data" / "answers.parquet").unlink()
    out = _run(where)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["map_natural"] == metrics["natural"] == {}
    assert "come without answers" in (out / "reports" / "model_card.md").read_text()
    assert not (out / "reports" / "plots" / "recall_natural.png").exists()


def test_names_and_numbers_of_the_answers_are_the_same(place):
    where, _ = place
    path = where / "data" / "answers.parquet"
    by_name = evaluate.read_answers(path)
    columns = pq.read_table(path).to_pydict()
    columns["anomaly"] = [ANOMALIES.index(a) if a else -1 for a in columns["anomaly"]]
    columns["subtype"] = [SUBTYPES.index(s) if s else None for s in columns["subtype"]]
    pq.write_table(pa.table(columns), path)
    by_number = evaluate.read_answers(path)
    for field in fields(by_name):
        assert (getattr(by_name, field.name) == getattr(by_number, field.name)).all()


def test_params_of_the_project_are_sound():
    settings = Settings.read(params.load()["evaluate"])
    assert settings.bootstrap >= 2000
    assert settings.betas["locErr"] == 0.5
    assert settings.betas["jump"] == 2


def test_only_evaluate_opens_the_natural_answers():
    word = re.compile(r"answers\.parquet|\.answers\b|\bANSWERS\b|\bread_answers\b")
    # The first opens them; the second says where they lie, and opens nothing.
    allowed = {ROOT / "pipelines" / "evaluate.py", ROOT / "intake" / "layout.py"}
    rooms = ("trail", "models", "intake", "pipelines", "serving", "monitoring", "dags", "bench")
    for path in (path for room in rooms for path in (ROOT / room).rglob("*.py")):
        if path not in allowed:
            assert not word.search(path.read_text(encoding="utf-8")), path
