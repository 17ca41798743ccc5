import json

import pyarrow.parquet as pq
import pytest

from tests.world.small import SHARED
from world.__main__ import main


def test_it_writes_the_five_files_and_says_how_fast(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "w"), "--scans", "9000", "--seed", "3"]) == 0
    names = sorted(p.name for p in (tmp_path / "w").iterdir())
    assert names == ["answers.parquet", "registry.csv", "scans.parquet", "sites.csv", "world.json"]
    options = json.loads((tmp_path / "w" / "world.json").read_text())
    scans = pq.read_table(tmp_path / "w" / "scans.parquet")
    assert options["seed"] == 3 and options["scans"] == len(scans) > 4000
    shown = capsys.readouterr()
    assert "scans/s" in shown.out and "lots 3/3" in shown.err


def test_help_explains_itself(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for words in ("answers.parquet", "examples:", "W6", "--legs", "python -m world --out data"):
        assert words in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--profile", "hrad"], ["'hrad'", "easy, hard, installation"]),
        (["--held-out", "W9"], ["'W9'", "W1, W2"]),
        (["--held-out", "W7"], ["--subtype"]),
        (["--subtype", "fake_moon"], ["'fake_moon'", "fake_malformed"]),
        (["--natural-share", "2"], ["2.0", "0 to 0.2"]),
        (["--sites", "nowhere.csv"], ["--legs", "both"]),
        (["--sites", "nowhere.csv", "--legs", "nowhere.csv"], ["nowhere.csv"]),
        (["--registry", "r.csv"], ["--sites"]),
    ],
)
def test_bad_values_are_named_with_what_would_do(arguments, words, tmp_path, capsys):
    assert main(["--out", str(tmp_path / "w"), "--scans", "2000", *arguments]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    assert not (tmp_path / "w").exists()


def test_bad_dates_files_and_masters_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path / "w"), "--start", "tomorrow"])
    assert "2025-01-06" in capsys.readouterr().err
    (tmp_path / "file").write_text("x")
    assert main(["--out", str(tmp_path / "file"), "--scans", "2000"]) == 2
    assert "name a folder" in capsys.readouterr().err
    (tmp_path / "sites.csv").write_text("location_id,scan_location\n1,A\n")
    (tmp_path / "legs.csv").write_text("x\n1\n")
    arguments = ["--sites", str(tmp_path / "sites.csv"), "--legs", str(tmp_path / "legs.csv")]
    assert main(["--out", str(tmp_path / "w"), *arguments]) == 2
    assert "'Latitude'" in capsys.readouterr().err


@pytest.mark.skipif(not SHARED.exists(), reason="no installation files here")
def test_a_users_network_makes_a_world(tmp_path):
    folder = SHARED / "installation"
    arguments = ["--sites", str(folder / "sites.csv"), "--legs", str(folder / "leg_statistics.csv")]
    out = ["--out", str(tmp_path / "w"), "--profile", "installation", "--scans", "20000"]
    assert main([*out, *arguments]) == 0
    options = json.loads((tmp_path / "w" / "world.json").read_text())
    assert options["network"] == {"sites": "sites.csv", "legs": "leg_statistics.csv"}
    assert options["dwell"] == "long"
    first = (tmp_path / "w" / "sites.csv").read_text().splitlines()[1]
    assert first.endswith("Factory")
