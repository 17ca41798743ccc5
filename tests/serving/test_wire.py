"""Answers look as existing back ends expect them, byte for byte where it matters."""

from __future__ import annotations

import json

import numpy as np
import pytest

from serving import rows, wire
from serving.rows import BadRow, Rows
from serving.scorer import Answer
from serving.wire import Manner
from trail.scan import ANOMALIES

A = "001.8804823.1293291.010004.20250701.000004002"
B = "001.8804823.1293291.010004.20250701.000004003"
RULES, SVM, LSTM, SCORE = (
    Manner("rules"),
    Manner("svm"),
    Manner("model"),
    Manner("model", full=True),
)


def asked(*rows_given: dict) -> Rows:
    """Rows of (epc, event id, file id) that are otherwise alike."""
    base = {"location_id": 1, "event_type": "Aggregation", "event_time": "2024-01-15T08:30:00Z"}
    good, bad = rows.read(
        json.dumps({"data": [{**base, **row} for row in rows_given]}).encode(), "UTC", 100
    )
    assert not bad
    return good


def answered(n: int, flags: dict[int, dict[str, tuple[float, float]]], **changes: object) -> Answer:
    """Answers on n rows: of some, (score, model's probability) of the flagged types."""
    score, model = np.zeros((2, n, 5), dtype=np.float32)
    for i, types in flags.items():
        for name, (points, probability) in types.items():
            score[i, ANOMALIES.index(name)] = points
            model[i, ANOMALIES.index(name)] = probability
    values: dict = {
        "receipt": "r1",
        "score": score,
        "flag": score >= 50,
        "model": model,
        "rules": np.zeros((n, 5), dtype=np.float32),
        "source": ["model"] * n,
        "confidence": ["high"] * n,
        "evidence": ["why" if i in flags else "" for i in range(n)],
        "version": ["7"] * n,
        "repeated": np.zeros(n, dtype=bool),
        "degraded": False,
        "took_us": 3210,
    }
    return Answer(**{**values, **changes})


def said(of: Rows, answer: Answer, manner: Manner, skipped: list[BadRow] | None = None):
    return json.loads(wire.answer_body(of, answer, manner, skipped))


TWO = asked(
    {"event_id": 12346, "epc_code": A, "file_id": 1},
    {"event_id": 12347, "epc_code": A, "file_id": 1},
)
FLAGGED = {1: {"jump": (87.2, 0.91), "locErr": (64.04, 0.5833)}}
NONE = {f"{name}Count": 0 for name in ANOMALIES}


def test_the_lstm_route_answers_as_existing_back_ends_expect():
    assert said(TWO, answered(2, FLAGGED), LSTM) == {
        "fileId": 1,
        "EventHistory": [
            {
                "eventId": 12347,
                "locErr": True,
                "locErrScore": 64.0,
                "jump": True,
                "jumpScore": 87.2,
                "lstmScore": {"locErr": 58.3, "jump": 91.0},
            }
        ],
        "epcAnomalyStats": [
            {
                "epcCode": A,
                "totalEvents": 2,
                "jumpCount": 1,
                "evtOrderErrCount": 0,
                "epcFakeCount": 0,
                "epcDupCount": 0,
                "locErrCount": 1,
            }
        ],
        "fileAnomalyStats": {
            "totalEvents": 2,
            "jumpCount": 1,
            "evtOrderErrCount": 0,
            "epcFakeCount": 0,
            "epcDupCount": 0,
            "locErrCount": 1,
        },
    }


@pytest.mark.parametrize("manner", [RULES, SVM])
def test_the_other_routes_leave_the_model_out(manner: Manner):
    (event,) = said(TWO, answered(2, FLAGGED), manner)["EventHistory"]
    assert event == {
        "eventId": 12347,
        "locErr": True,
        "locErrScore": 64.0,
        "jump": True,
        "jumpScore": 87.2,
    }


def test_score_also_says_who_why_and_how_surely():
    changes = {"version": ["7", "8"], "repeated": np.array([True, False])}
    got = said(TWO, answered(2, FLAGGED, **changes), SCORE)
    (event,) = got.pop("EventHistory")
    for name in ("epcAnomalyStats", "fileAnomalyStats"):
        assert got.pop(name) == said(TWO, answered(2, FLAGGED), LSTM)[name]
    assert event == {
        "eventId": 12347,
        "index": 1,
        "locErr": True,
        "locErrScore": 64.0,
        "jump": True,
        "jumpScore": 87.2,
        "lstmScore": {"locErr": 58.3, "jump": 91.0},
        "epcCode": A,
        "modelVersion": "8",
        "source": "model",
        "confidence": "high",
        "evidence": "why",
    }
    assert got.pop("modelVersion") in ("7", "8")
    assert got == {
        "fileId": 1,
        "receipt": "r1",
        "degraded": False,
        "scored": 2,
        "repeated": 1,
        "latencyMs": 3.21,
    }


def test_clean_scans_give_an_empty_report():
    assert said(TWO, answered(2, {}), LSTM) == {
        "fileId": 1,
        "EventHistory": [],
        "epcAnomalyStats": [],
        "fileAnomalyStats": {"totalEvents": 0, **NONE},
    }


def test_several_files_give_an_array_in_order_of_appearance():
    of = asked(
        {"event_id": 1, "epc_code": A, "file_id": 9},
        {"event_id": 2, "epc_code": A, "file_id": "3"},
        {"event_id": 3, "epc_code": B, "file_id": 9},
        {"event_id": 4, "epc_code": B},
    )
    flags = {0: {"jump": (50.0, 0)}, 2: {"jump": (100.0, 0), "epcDup": (99.96, 0)}, 3: {}}
    got = said(of, answered(4, flags), RULES)
    assert [report.get("fileId") for report in got] == [9, 3, None]
    assert "fileId" not in got[2]
    assert [[event["eventId"] for event in r["EventHistory"]] for r in got] == [[1, 3], [], []]
    assert got[0]["EventHistory"][1]["epcDupScore"] == 100.0
    assert [(s["epcCode"], s["totalEvents"]) for s in got[0]["epcAnomalyStats"]] == [(A, 1), (B, 2)]
    assert got[0]["fileAnomalyStats"] == {
        **NONE,
        "totalEvents": 3,
        "jumpCount": 2,
        "epcDupCount": 1,
    }
    assert got[1]["fileAnomalyStats"]["totalEvents"] == 0


def test_a_scan_without_id_is_named_by_its_place_in_the_request():
    of = asked({"epc_code": A}, {"epc_code": B})
    (event,) = said(of, answered(2, FLAGGED), RULES)["EventHistory"]
    assert event["index"] == 1 and "eventId" not in event


def test_where_no_model_was_asked_no_model_is_named():
    alone = answered(2, FLAGGED, version=["", ""], source=["rules", "rules"])
    for manner in (LSTM, SCORE):
        got = said(TWO, alone, manner)
        assert "lstmScore" not in got["EventHistory"][0]
        assert "modelVersion" not in got and "modelVersion" not in got["EventHistory"][0]


def test_skipped_rows_stand_in_the_first_report():
    of = asked(*({"epc_code": A, "file_id": i} for i in (1, 2)))
    bad = [BadRow(0, "event_time", "is missing"), BadRow(3, "data", "7 is no object")]
    first, second = said(of, answered(2, {}), RULES, bad)
    assert first["rejected"] == [
        {"index": 0, "field": "event_time", "reason": "is missing"},
        {"index": 3, "field": "data", "reason": "7 is no object"},
    ]
    assert "rejected" not in second
    assert said(TWO, answered(2, {}), SCORE, [])["rejected"] == []


def nulls(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(nulls, value.values()))
    if isinstance(value, list):
        return any(map(nulls, value))
    return value is None


@pytest.mark.parametrize("manner", [RULES, SVM, LSTM, SCORE])
@pytest.mark.parametrize("ids", [{}, {"event_id": 0, "file_id": 0}])
def test_nothing_is_ever_null_and_flags_are_never_false(manner: Manner, ids: dict):
    of = asked({"epc_code": A, **ids}, {"epc_code": "nonsense"})
    got = said(of, answered(2, FLAGGED), manner)
    assert not nulls(got)
    reports = got if isinstance(got, list) else [got]
    events = [event for report in reports for event in report["EventHistory"]]
    assert events and all(event.get(name, True) for event in events for name in ANOMALIES)


@pytest.mark.parametrize("manner", [RULES, SVM, LSTM, SCORE])
def test_documented_examples_have_the_fields_of_real_answers(manner: Manner):
    def shape(value: object) -> object:
        if isinstance(value, dict):
            return {name: shape(v) for name, v in value.items()}
        return [shape(v) for v in value] if isinstance(value, list) else type(value)

    example = wire.example_answer(manner)
    assert shape(example) == shape(said(TWO, answered(2, FLAGGED), manner))
    assert rows.read(json.dumps(wire.EXAMPLE_REQUEST).encode(), "UTC", 10)[1] == []
