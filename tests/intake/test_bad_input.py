"""Bad input: each a clear message or a quarantined row, and counts that add up."""

import pytest

from intake import delimited
from intake.read import IntakeError, read_scans
from trail.epc import Fault

EPC = b"001.8804823.1293291.010004.20250701.000004002"
HEADER = b"epc_code,location_id,event_type,event_time\n"
ROW = EPC + b",1,Aggregation,2025-07-01 10:34:17\n"


def reasons(intake):
    return dict(
        zip(
            intake.quarantine["row"].to_pylist(),
            intake.quarantine["reason"].to_pylist(),
            strict=True,
        )
    )


@pytest.mark.parametrize("raw", [b"", b"\n\r\n", b"\xef\xbb\xbf"])
def test_empty_file(read, raw):
    with pytest.raises(IntakeError, match=r"scans.csv is empty; export"):
        read(raw)


@pytest.mark.parametrize("name", ["scans.parquet", "scans.jsonl"])
def test_empty_file_of_another_kind(read, name):
    with pytest.raises(IntakeError, match=r"is empty"):
        read(b"", name)


@pytest.mark.parametrize("raw", [HEADER, HEADER[:-1], b"\xef\xbb\xbf" + HEADER + b"\n\n"])
def test_header_only(read, raw):
    with pytest.raises(IntakeError, match="a header and no rows"):
        read(raw)


@pytest.mark.parametrize("delimiter", [b"\t", b";", b","])
def test_delimiters_are_found(read, delimiter):
    assert len(read((HEADER + ROW).replace(b",", delimiter)).scans) == 1


def test_wrong_delimiter(read):
    with pytest.raises(IntakeError, match=r"epc_code\|location_id.*TAB, comma, semicolon.*save"):
        read((HEADER + ROW).replace(b",", b"|"))


def test_rows_with_another_delimiter_than_the_header(read):
    intake = read(HEADER + ROW.replace(b",", b"\t") + ROW)
    assert reasons(intake) == {0: "1 field where the header has 4"}
    assert intake.quarantine["raw"][0].as_py() == ROW.replace(b",", b"\t").decode().rstrip()


def test_missing_column(read):
    with pytest.raises(
        IntakeError, match=r"no column event_type, event_time; found 'epc_code', 'l"
    ):
        read(b"epc_code,location_id\nx,1\n")


def test_column_twice(read):
    with pytest.raises(IntakeError, match="column epc_code stands there 2 times"):
        read(b"epc_code," + HEADER + b"x," + ROW)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("last", [True, False])
def test_bom_and_line_ends(read, end, mark, last):
    raw = (HEADER + ROW * 3).replace(b"\n", end)
    intake = read(mark + (raw if last else raw.removesuffix(end)))
    assert len(intake.scans) == 3
    assert intake.sites.ids == ("1",)


def test_names_in_other_spellings(read):
    head = b"epcCode, Location_ID ,EVENT TYPE,eventTime,eventId,fileId,businessStep\n"
    intake = read(head + ROW[:-1] + b",7.0,1,Factory\n")
    assert intake.event_id.to_pylist() == ["7"]
    assert intake.file_id.to_pylist() == ["1"]


def test_rows_with_the_wrong_number_of_fields(read):
    intake = read(HEADER + ROW + b"a,b\n\n" + ROW + b"a,b,c,d,e\r\n" + ROW)
    assert intake.scans.row.tolist() == [0, 2, 4]
    assert reasons(intake) == {
        1: "2 fields where the header has 4",
        3: "5 fields where the header has 4",
    }
    assert intake.quarantine["raw"].to_pylist() == ["a,b", "a,b,c,d,e"]


def test_bytes_that_are_not_utf8(read):
    intake = read(
        HEADER + ROW + b"\xb0\xa1," + ROW[len(EPC) + 1 :] + ROW.replace(b",1,", b",\xff,")
    )
    assert reasons(intake) == {
        1: "epc_code holds bytes that are not UTF-8",
        2: "location_id holds bytes that are not UTF-8",
    }
    assert intake.quarantine["epc_code"][0].as_py() == "\\xb0\\xa1"
    assert intake.quarantine["location_id"][1].as_py() == "\\xff"


@pytest.mark.parametrize("column", range(4))
@pytest.mark.parametrize("quote", [b"", b'"'])
def test_bad_bytes_in_any_needed_column(read, column, quote):
    fields = ROW.rstrip().split(b",")
    fields[column] = quote + fields[column] + b"\xff" + quote
    intake = read(HEADER + ROW + b",".join(fields) + b"\n" + ROW)
    assert intake.scans.row.tolist() == [0, 2]
    assert "bytes that are not UTF-8" in reasons(intake)[1]


def test_bad_bytes_in_other_columns_cost_nothing(read):
    korean = "인천공장".encode("cp949")
    intake = read(b"scan_location,product_name," + HEADER + korean + b"," + korean + b"," + ROW)
    assert len(intake.scans) == 1
    assert intake.sites.names == ("",)


def test_utf16(read):
    with pytest.raises(IntakeError, match="save it as UTF-8"):
        read((HEADER + ROW).decode().encode("utf-16"))


def test_mixed_times_and_zones(read):
    times = [
        b"2025-07-01 10:34:17",
        b"2025-07-01T01:34:17Z",
        b"2025-07-01T10:34:17.000+09:00",
        b"2025/07/01 10:34:17",
        b"1751333657",
        b"1751333657000",
    ]
    rows = b"".join(EPC + b",1,Aggregation," + time + b"\n" for time in times)
    intake = read(HEADER + rows + EPC + b",1,Aggregation,yesterday\n", zone="Asia/Seoul")
    assert set(intake.scans.time_us.tolist()) == {1751333657_000_000}
    assert "event_time 'yesterday' is not a time" in reasons(intake)[6]


def test_duplicate_rows_are_kept_and_counted(read):
    intake = read(HEADER + ROW * 3 + ROW.replace(b"17", b"18"))
    assert (len(intake.scans), intake.repeated) == (4, 2)
    assert any("exact repeats" in note for note in intake.notes)


def test_unknown_site(read):
    from trail.sites import Sites

    sites = Sites.of(["1"], ["here"], [-1], [37.0], [127.0])
    intake = read(
        b"scan_location," + HEADER + b"a," + ROW + b"b," + ROW.replace(b",1,", b",9.0,"),
        sites=sites,
    )
    assert intake.sites.ids == ("1", "9")
    assert intake.sites.names == ("here", "b")
    assert intake.sites.known.tolist() == [True, False]
    assert intake.sites.tier.tolist() == [0, 0]
    assert intake.scans.site.tolist() == [0, 1]


def test_sites_that_only_bad_rows_name_stay_out(read):
    intake = read(HEADER + ROW + ROW.replace(b",1,", b",8,").replace(b"Agg", b"Ugg"))
    assert intake.sites.ids == ("1",)


def test_unknown_operation(read):
    intake = read(
        HEADER + ROW.replace(b"Aggregation", b" aggREGATION ") + ROW.replace(b"Agg", b"Ugg")
    )
    assert reasons(intake) == {1: "event_type 'Uggregation' is no known operation"}


def test_malformed_epc_is_no_bad_row(read):
    intake = read(HEADER + ROW.replace(EPC, b" fake ") + ROW.replace(EPC, b"fake") + ROW)
    assert len(intake.scans) == 3
    assert intake.scans.codes.text.to_pylist() == ["fake", EPC.decode()]
    assert intake.scans.codes.fault.tolist() == [Fault.STRUCTURE, 0]


@pytest.mark.parametrize("nothing", [b"", b"  ", b"NULL", b"nan"])
def test_empty_epc_is_a_bad_row(read, nothing):
    assert reasons(read(HEADER + ROW + nothing + ROW[len(EPC) :])) == {1: "epc_code is empty"}


def test_several_reasons_stand_together(read):
    reason = reasons(read(HEADER + b",,Fly,\n"))[0]
    assert reason == (
        "epc_code is empty; location_id is empty; event_type 'Fly' is no known operation; "
        "event_time is empty"
    )


def test_quotes_and_line_ends_inside_them(read):
    head = b"name," + HEADER
    raw = (
        head
        + b'"a\nb",'
        + ROW
        + b'"x, ""y""",'
        + ROW
        + b'5" tv,'
        + ROW
        + b'"open,'
        + ROW
        + b"z,"
        + ROW
    )
    intake = read(raw)
    assert intake.scans.row.tolist() == [0, 1, 2, 4]
    assert reasons(intake) == {3: "a quote is opened and never closed"}


def test_stray_carriage_return(read):
    intake = read(HEADER + ROW + b"a\rb,1,Aggregation,2025-07-01\n" + ROW)
    assert "cannot be split" in reasons(intake)[1]


def test_endless_line(read, monkeypatch):
    monkeypatch.setattr(delimited, "LINE_BYTES", 1 << 20)
    with pytest.raises(IntakeError, match="a line of more than"):
        read(HEADER + b"x" * (8 << 20))


def test_missing_path(tmp_path):
    with pytest.raises(IntakeError, match="does not exist; give a file or a folder"):
        read_scans(tmp_path / "nothing.csv")


def test_unknown_type(read):
    with pytest.raises(IntakeError, match=r"'\.xlsx' are not read; use one of \.csv"):
        read(b"x", "scans.xlsx")


def test_broken_parquet(read):
    with pytest.raises(IntakeError, match="cannot be read as Parquet"):
        read(b"PAR1 no", "scans.parquet")


def test_directory_without_scans(tmp_path):
    with pytest.raises(IntakeError, match=r"no scans in the folder .*no file of type"):
        read_scans(tmp_path)
    (tmp_path / "sites.csv").write_text("location_id,latitude\n1,2\n")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(IntakeError, match=r"sites.csv was left aside: it has no column epc_code"):
        read_scans(tmp_path)


def test_directory_of_scans(tmp_path):
    (tmp_path / "b.tsv").write_bytes((HEADER + ROW * 2).replace(b",", b"\t"))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.csv").write_bytes(HEADER + ROW + b"x\n")
    (tmp_path / "sites.csv").write_text("location_id,latitude\n1,2\n")
    intake = read_scans(tmp_path)
    assert intake.files == (("a/1.csv", 2), ("b.tsv", 2))
    assert intake.scans.row.tolist() == [0, 2, 3]
    assert intake.quarantine.select(["file", "row"]).to_pylist() == [{"file": "a/1.csv", "row": 1}]
    assert any(note.startswith("sites.csv was left aside") for note in intake.notes)


def test_lines_of_json(read):
    good = (
        b'{"epcCode": "%s", "locationId": 1, "eventType": "Aggregation", "eventTime": 1751333657}'
    )
    intake = read(good % EPC + b"\n[1]\nnonsense\n" + good % b"" + b"\n", "scans.jsonl")
    assert intake.scans.time_us.tolist() == [1751333657_000_000]
    assert reasons(intake) == {
        1: "the line is no JSON object",
        2: "the line is no JSON object",
        3: "epc_code is empty",
    }
