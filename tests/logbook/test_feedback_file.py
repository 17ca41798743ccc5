"""Feedback goes to the label stage as it was given."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logbook import Feedback, feedback_file
from logbook.opened import open_log
from pipelines import verdicts
from tests.logbook.logged import entry, scan
from trail.scan import ANOMALIES

LAST_US = 7_000_000_000_000_000


def words() -> st.SearchStrategy[Feedback]:
    text = st.text(max_size=30)
    return st.builds(
        Feedback,
        event_id=st.one_of(st.just(-1), st.integers(0, 2**63 - 1)),
        epc=st.one_of(text, st.sampled_from(["NA", "nan", " 1 ", 'a"b,c\n', "\x00", "1\r2"])),
        time_us=st.integers(0, LAST_US),
        anomaly=st.sampled_from(ANOMALIES),
        right=st.booleans(),
        who=text,
        why=text,
        given_us=st.integers(0, 9),
    )


@settings(max_examples=40, deadline=None)
@given(given=st.lists(words(), max_size=6))
def test_the_label_stage_reads_back_what_was_written(
    given: list[Feedback], tmp_path_factory: pytest.TempPathFactory
):
    folder = tmp_path_factory.mktemp("data")
    written = feedback_file.write(given, folder / "verdicts.csv")
    left_out = [one for one, _ in written.left_out]
    expected = verdicts.Said({}, {})
    for one in given:
        if one in left_out:
            continue
        said = (ANOMALIES.index(one.anomaly), int(one.right))
        if one.event_id >= 0:
            expected.by_event.setdefault(one.event_id, []).append(said)
        else:
            expected.by_scan.setdefault((one.epc.strip(), one.time_us), []).append(said)
    assert verdicts.read(folder) == expected
    assert written.verdicts + len(left_out) == len(given)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"epc": "NA"}, "for nothing"),
        ({"epc": "  "}, "for nothing"),
        ({"epc": "a\x00"}, "cannot hold"),
        ({"epc": "\ud800"}, "cannot hold"),
        ({"time_us": 2**62}, "no date"),
        ({"anomaly": "dust"}, "no anomaly"),
    ],
)
def test_what_no_row_can_hold_is_named(tmp_path: Path, other: dict[str, object], reason: str):
    values = {"event_id": -1, "epc": "e", "time_us": 1, "anomaly": "jump", "right": True}
    odd = Feedback(**{**values, "who": "a", "why": "b", "given_us": 1, **other})
    good = Feedback(**values, who="a", why="b", given_us=1)
    written = feedback_file.write([odd, good], tmp_path / "verdicts.csv")
    [(one, said)] = written.left_out
    assert one == odd
    assert reason in said
    assert verdicts.read(tmp_path) == verdicts.Said({}, {("e", 1): [(4, 1)]})


def test_the_command_writes_what_counts_in_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    url = f"sqlite:{tmp_path / 'log.db'}"
    log = open_log(url)
    log.append(entry("a", [scan(5)]))
    log.add_feedback(Feedback(5, "", 0, "jump", True, "ann", "seen", 1))
    log.add_feedback(Feedback(5, "", 0, "jump", False, "ann", "looked again", 2))
    log.add_feedback(Feedback(6, "f", 7, "locErr", True, "bob", "", 3))
    log.close()
    monkeypatch.setenv("TRAILWATCH_LOG", url)
    out = tmp_path / "data" / "verdicts.csv"
    assert feedback_file.main([str(out)]) == 0
    assert "2 verdicts" in capsys.readouterr().out
    assert verdicts.read(out.parent) == verdicts.Said({5: [(4, 0)], 6: [(2, 1)]}, {})
    assert feedback_file.main([str(out), "--log", url, "--by-scan"]) == 0
    five = (scan(5).epc, scan(5).time_us)
    assert verdicts.read(out.parent) == verdicts.Said({}, {five: [(4, 0)], ("f", 7): [(2, 1)]})


def test_a_file_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "verdicts.csv"
    out.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert feedback_file.main([str(out), "--log", f"sqlite:{tmp_path / 'log.db'}"]) == 1
    assert "No space left" in capsys.readouterr().err
    assert out.read_text() == "old"
    assert [path.name for path in tmp_path.glob(".verdicts*")] == []


def test_a_log_that_cannot_be_named_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert feedback_file.main([str(tmp_path / "out.csv"), "--log", "ftp://x"]) == 1
    assert "sqlite:<file>" in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()
