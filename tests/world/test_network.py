import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pytest

from tests.world.small import SHARED
from trail.scan import Tier
from trail.sites import Sites
from world.legs import tier_of_name
from world.network import from_files, made_up, passable


def test_the_made_up_network_has_the_shape_of_a_country():
    network = made_up()
    tier = network.sites.tier
    assert [int((tier == t).sum()) for t in range(5)] == [4, 4, 5, 15, 50]
    assert len(set(network.sites.names)) == 78 and all(i.isdigit() for i in network.sites.ids)
    for factory in network.factories:
        near = network.sites.distance_km(
            np.array([factory], np.int32), network.warehouse[factory : factory + 1]
        )
        assert 1.5 < near[0] < 6.5
    assert (np.bincount(network.sites.region, minlength=78)[tier == Tier.HUB] > 10).all()


def test_every_product_can_be_made_and_sold():
    network = made_up()
    for p in range(len(network.product)):
        warehouses = network.warehouse[network.makers[p]]
        assert len(warehouses) and passable(network, p)[warehouses].all()
        assert 1 <= network.markets[p].sum() < 5


def test_edges_go_down_one_tier_and_side_edges_stay_in_tier_and_region():
    network = made_up()
    step = network.sites.tier[network.end] - network.sites.tier[network.start]
    region = network.sites.region
    assert (step[~network.side] == 1).all() and (step[network.side] == 0).all()
    assert (region[network.start] == region[network.end])[network.side].all()
    assert not (region[network.start] == region[network.end])[~network.side].all()


def test_another_topology_is_another_country_and_a_new_factory_joins():
    assert made_up(topology=1).sites.names != made_up().sites.names
    more = made_up(more_factories=1, catalogue=5)
    assert len(more.factories) == 5
    assert not set(more.product.tolist()) & set(made_up().product.tolist())


def chain(legs, names="FABCDE", near=0.01):
    lat = [50.0 + near if n == "F" else 50.0 + 0.3 * i for i, n in enumerate(names, start=-1)]
    sites = Sites.of(
        [str(i) for i in range(len(names))], list(names), [-1] * len(names), lat, [8.0] * len(names)
    )
    start, end = zip(*legs, strict=True)
    table = pa.table(
        {
            "from_scan_location": list(start),
            "to_scan_location": list(end),
            "time_taken_hours_min": [1.0] * len(legs),
            "time_taken_hours_max": [4.0] * len(legs),
            "time_taken_hours_count": [10] * len(legs),
        }
    )
    return sites, table


def test_tiers_are_learned_from_the_graph_of_legs():
    legs = [("A", "B"), ("B", "C"), ("C", "D"), ("B", "E")]
    network = from_files(*chain(legs))
    tiers = dict(zip(network.sites.names, network.sites.tier.tolist(), strict=True))
    assert tiers == {"A": 1, "B": 2, "C": 3, "D": 4, "E": 3, "F": 0}
    assert network.warehouse[0] == 1 and set(network.least_h) == {1.0}


def test_a_site_without_legs_far_from_any_warehouse_stays_unused():
    with pytest.raises(ValueError, match="tier"):
        from_files(*chain([("A", "B"), ("B", "C"), ("C", "D")], near=3.0))


def test_bad_leg_files_are_refused_with_what_would_do():
    sites, legs = chain([("A", "B"), ("B", "C"), ("C", "D")])
    with pytest.raises(ValueError, match="time_taken_hours_count"):
        from_files(sites, legs.drop_columns(["time_taken_hours_count"]))
    with pytest.raises(ValueError, match="circle"):
        from_files(*chain([("A", "B"), ("B", "A")]))
    with pytest.raises(ValueError, match="scan_location"):
        from_files(*chain([("X", "Y")]))
    with pytest.raises(ValueError, match="'Depot'"):
        tier_of_name("Depot")
    assert [tier_of_name(t) for t in ("r_stock", "2", "")] == [4, 2, -1]


@pytest.mark.skipif(not SHARED.exists(), reason="no installation files here")
def test_the_tiers_of_a_real_installation_are_learned():
    master = pc.read_csv(SHARED / "installation" / "sites.csv")
    legs = pc.read_csv(SHARED / "installation" / "leg_statistics.csv")
    ids = [str(i) for i in master["location_id"].to_pylist()]
    names = master["scan_location"].to_pylist()
    sites = Sites.of(ids, names, [-1] * len(ids), master["Latitude"], master["Longitude"])
    network = from_files(sites, legs)
    kinds = ["공장", "창고", "물류센터", "도매상", "소매상"]
    for name, tier in zip(names, network.sites.tier, strict=True):
        last = max(range(5), key=lambda t: (name.rfind(kinds[t]), t))
        assert tier == last, name
    assert len(network.factories) == 4 and len(network.start) == 82
