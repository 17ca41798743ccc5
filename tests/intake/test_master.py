"""Site master, registry, legs, and where they lie."""

import re

import numpy as np
import pytest

from intake.errors import IntakeError
from intake.layout import find
from intake.master import read_legs, read_registry, read_sites, write_registry, write_sites

LEG = "from_scan_location,to_scan_location," + ",".join(
    f"time_taken_hours_{name}" for name in ("mean", "std", "min", "max", "count")
)


@pytest.fixture
def file(tmp_path):
    def write(text, name="table.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_sites_in_any_spelling(file):
    sites = read_sites(
        file(
            "\ufeffLocation_ID;scan_location;LAT;Longitude;tier\r\n"
            "1.0; 서울 ;37.5;127;POS_Sell\r\n2;;;;3\n"
        )
    )
    assert sites.ids == ("1", "2")
    assert sites.names == ("서울", "")
    assert sites.tier.tolist() == [4, 3]
    assert sites.latitude[0] == 37.5
    assert np.isnan(sites.latitude[1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scan_location\nx\n", "no column location_id; found 'scan_location'"),
        ("location_id,lat\n", "a header and no sites"),
        ("location_id,scan_location\n1,a\n,b\n", "row 1: location_id '' is empty"),
        ("location_id,lat\n1,1\n1.0,2\n", "row 1: location_id '1.0' stands in row 0 already"),
        ("location_id,lat,lon\n1,91,2\n", "row 0: latitude '91' is not a number from -90 to 90"),
        ("location_id,lat,lon\n1,x,2\n", "row 0: latitude 'x' is not a number"),
        ("location_id,lat,lon\n1,,2\n", "latitude '' is empty while the other"),
        ("location_id,tier\n1,Depot\n", "row 0: tier 'Depot' is no tier; use Factory"),
        ("location_id,tier\n1,7\n", "tier '7' is no tier"),
        ("location_id,tier\n1\n", "row 0: 1 field(s) where the header has 2"),
        ("location_id,lat,latitude\n1,2,3\n", "are the same column latitude"),
        (b"location_id,scan_location\n1,\xff\n", "line 2 is not UTF-8"),
        ("", "is empty"),
    ],
)
def test_wrong_site_masters(file, text, message):
    with pytest.raises(IntakeError, match=re.escape(message)):
        read_sites(file(text))


def test_sites_come_back(file, tmp_path):
    first = read_sites(
        file('location_id,scan_location,lat,lon,tier\n1,a,0.1,3e-7,0\n2,"b,\n",,,\n')
    )
    sites = first.with_unknown(["9"])
    write_sites(sites, tmp_path / "out.csv")
    back = read_sites(tmp_path / "out.csv")
    assert (back.ids, back.known.tolist()) == (sites.ids, [True, True, False])
    np.testing.assert_array_equal(back.latitude, sites.latitude)
    np.testing.assert_array_equal(back.tier, sites.tier)


def test_registry(file, tmp_path):
    registry = read_registry(file("epc_product,epc_company\n0000012,8804823\n7.0,8804823.0\n"))
    assert registry.pair.tolist() == [88048230000007, 88048230000012]
    write_registry(registry, tmp_path / "out.csv")
    assert read_registry(tmp_path / "out.csv").pair.tolist() == registry.pair.tolist()
    with pytest.raises(IntakeError, match="row 0: epc_product 'x' is not a number"):
        read_registry(file("epc_company,epc_product\n1,x\n"))


def test_legs(file):
    legs = read_legs(file(f"{LEG}\na,b,2,0.5,1,3,10\n"))
    assert legs.to_pylist()[0]["time_taken_hours_mean"] == 2.0
    for row, message in {
        "a,b,5,0,1,3,10": "'5' does not lie between min and max",
        "a,b,2,0,1,3,0": "_count '0' is not a number from 1",
        "a,,2,0,1,3,1": "to_scan_location '' is empty",
        "a,b,,0,1,3,1": "_mean '' is empty",
    }.items():
        with pytest.raises(IntakeError, match=message):
            read_legs(file(f"{LEG}\n{row}\n"))
    with pytest.raises(IntakeError, match="stands in row 0 already"):
        read_legs(file(f"{LEG}\na,b,2,0,1,3,1\na,b,2,0,1,3,1\n"))


def test_real_masters(installation):
    sites = read_sites(installation / "sites.csv")
    legs = read_legs(installation / "leg_statistics.csv")
    assert (len(sites), legs.num_rows) == (58, 82)
    assert sites.names[0] == "인천공장"
    assert np.isfinite(sites.latitude).all()
    assert set(legs["from_scan_location"].to_pylist()) <= set(sites.names)


def test_data_folder(tmp_path):
    with pytest.raises(IntakeError, match="does not exist; make it with `make data`"):
        find(tmp_path / "data")
    with pytest.raises(IntakeError, match="no scans in"):
        find(tmp_path)
    (tmp_path / "scans").mkdir()
    (tmp_path / "sites.tsv").touch()
    found = find(tmp_path)
    assert (found.scans, found.sites) == (tmp_path / "scans", tmp_path / "sites.tsv")
    assert found.registry is found.answers is found.world is found.legs is None
    (tmp_path / "sites.csv").touch()
    with pytest.raises(IntakeError, match=r"both sites.csv and sites.tsv; keep one"):
        find(tmp_path)
    (tmp_path / "sites.csv").unlink()
    (tmp_path / "scans.parquet").touch()
    with pytest.raises(IntakeError, match="scans lie both in"):
        find(tmp_path)
