"""Stage validate: what it writes, what stops it, and that runs are alike."""

import csv
import json
import re

import pytest

from intake.master import read_registry, read_sites
from intake.read import load_scans
from pipelines import expectations, params, validate
from pipelines.expectations import Check, Limits, Outcome

HEADER = "event_id,epc_code,location_id,event_type,event_time"
PARAMS = "validate:\n  zone: UTC\n  max_unreadable_share: 0.01\n"
OPS = ("Aggregation", "WMS_Inbound", "WMS_Outbound", "HUB_Inbound")


def lines(n, first=0):
    return [
        f"{i},001.8804823.1293291.010004.20250701.{i // 4 + 1:09d},{i % 4 + 1},{OPS[i % 4]},"
        f"2025-07-{i % 28 + 1:02d} 10:{i % 60:02d}:17"
        for i in range(first, first + n)
    ]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with data/ and params.yaml; the answers in it cannot be read."""
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    (data / "scans").mkdir(parents=True)
    (data / "sites.csv").write_text(
        "location_id,lat,lon\n" + "".join(f"{i},3{i},127\n" for i in range(1, 5))
    )
    (data / "registry.csv").write_text("epc_company,epc_product\n8804823,1293291\n")
    (data / "answers.parquet").write_bytes(b"nobody opens this")
    (tmp_path / "params.yaml").write_text(PARAMS)
    return tmp_path


def write(home, rows, name="a.csv"):
    (home / "data" / "scans" / name).write_text("\n".join([HEADER, *rows]) + "\n")


def tree(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_run_and_the_same_again(home, capsys):
    write(home, [*lines(300), "1,2,3", "x,y,9,WMS_Inbound,2025-07-03", *lines(2)])
    assert validate.main([]) == 0
    said = capsys.readouterr()
    assert "read 304 rows = 303 scans + 1 quarantined" in said.out
    assert "warning: ExpectColumnValuesToBeNull(unknown_site) of scans: 1 of 303 rows" in said.out
    assert "warning: ExpectColumnValuesToBeUnique(event_id)" in said.out
    out = home / "work" / "validated"
    sites = read_sites(out / "sites.csv")
    intake = load_scans(out / "scans.parquet", sites)
    assert len(intake.scans) == 303
    assert sites.known.tolist() == [True] * 4 + [False]
    assert read_registry(out / "registry.csv").at_hand
    summary = json.loads((out / "summary.json").read_text())
    assert summary["read"] == summary["scans"] + summary["quarantined"] == 304
    assert summary["reasons"] == {"3 fields where the header has 5": 1}
    assert (summary["repeated"], summary["malformed_codes"]) == (2, 1)
    with (home / "work" / "quarantine" / "quarantine.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["file"], row["row"], row["raw"]) == ("a.csv", "300", "1,2,3")
    docs = home / "work" / "data_docs"
    index = (docs / "index.html").read_text()
    assert "ExpectColumnValuesToBeNull(unreadable)" in index
    assert 'href="validations/scans/' in index
    assert not [p for p in docs.rglob("*.html") if 'src="http' in p.read_text()]
    first = tree(home / "work")
    assert validate.main([]) == 0
    assert tree(home / "work") == first


def test_too_many_unreadable_rows_stop_the_run(home, capsys):
    write(home, [*lines(90), *["x,y,1,Fly,2025-07-01"] * 10])
    assert validate.main([]) == 1
    said = capsys.readouterr().err
    assert (
        "stopped by ExpectColumnValuesToBeNull(unreadable) of rows: 10 of 100 rows (10.00%)" in said
    )
    assert "event_type 'Fly' is no known operation" in said
    assert "raise validate.max_unreadable_share (now 0.01) in params.yaml" in said
    work = home / "work"
    assert not list((work / "validated").iterdir())
    assert len((work / "quarantine" / "quarantine.csv").read_text().splitlines()) == 11
    assert '<span class="failed">' in (work / "data_docs" / "index.html").read_text()


def test_nothing_readable_at_all(home, capsys):
    write(home, ["x,y,1,Fly,2025-07-01"] * 3)
    assert validate.main([]) == 1
    assert "3 of 3 rows (100.00%)" in capsys.readouterr().err


def test_another_installations_site_master_stops_the_run(home, capsys):
    write(home, lines(40))
    (home / "data" / "sites.csv").write_text("location_id\n1\n77\n")
    (home / "params.yaml").write_text(f"{PARAMS}  sample_rows: 20\n")
    assert validate.main([]) == 1
    said = capsys.readouterr().err
    assert re.search(r"ToBeNull\(unknown_site\) of scans: 1[1-9] of 20 rows", said)
    assert "Give the site master of this installation" in said


def test_without_masters_their_checks_abstain(home):
    write(home, lines(40))
    for name in ("sites", "registry"):
        (home / "data" / f"{name}.csv").unlink()
    assert validate.main([]) == 0
    summary = json.loads((home / "work" / "validated" / "summary.json").read_text())
    assert [a.split(":")[0] for a in summary["abstained"]] == ["sites", "registry"]
    assert {e["asset"] for e in summary["expectations"]} == {"rows", "scans", "freshness"}
    assert not (home / "work" / "validated" / "registry.csv").exists()


def test_silence_is_measured_inside_the_data(home):
    from intake.read import read_scans

    write(home, [*lines(40), lines(1)[0].replace("2025-07-01", "2025-09-01")])
    found = expectations.freshness(read_scans(home / "data" / "scans"))
    assert 33 < found["longest_silence_days"] < 36
    assert found["days_behind_manufacture"] == 0


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda home: (home / "params.yaml").unlink(), "'params.yaml' does not exist"),
        (lambda home: (home / "params.yaml").write_text("label: {}"), "no key validate; add it"),
        (lambda home: (home / "params.yaml").write_text("validate: {}"), "no key validate."),
        (lambda home: (home / "data" / "sites.csv").write_text("x\n1\n"), "no column location_id"),
        (lambda home: (home / "data" / "scans" / "a.csv").write_text(""), "no scans in the folder"),
        (lambda home: (home / "data" / "scans" / "a.csv").write_text(HEADER), "no rows"),
    ],
)
def test_clear_messages(home, capsys, break_it, message):
    write(home, lines(4))
    break_it(home)
    assert validate.main([]) == 1
    said = capsys.readouterr().err
    assert said.startswith("validate: ")
    assert message in said


def test_a_sentence_names_all_that_is_needed():
    check = Check("scans", "ExpectColumnValuesToBeUnique", "error", "Do this.", {"column": "c"})
    assert Outcome(check, False, 2, 1000, ("a", "b")).sentence() == (
        "ExpectColumnValuesToBeUnique(c) of scans: 2 of 1,000 rows (0.20%) do not meet it; "
        "for example a; b. Do this."
    )


def test_params_name_a_missing_key(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("a:\n  b: {c: 1}\n")
    assert params.load(path) == {"a": {"b": {"c": 1}}}
    with pytest.raises(params.ParamsError, match=r"has no key a\.b\.d; add it"):
        params.load(path)["a"]["b"]["d"]


def test_limits_have_a_default_each():
    assert Limits(0.5).sample_rows == 1_000_000
