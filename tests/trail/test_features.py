"""Properties of encode() that training and serving rely on."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trail.small import DAY, HONEST, HUB, HUB_FAR, REGISTRY, SITES, any_scans, code, scans_of
from trail import network
from trail.facts import Context, facts_of, previous_of
from trail.features import CONTEXT_OF, FEATURES, encode
from trail.mates import merge, table_of
from trail.registry import Registry
from trail.rules import judge
from trail.scan import Op
from trail.trails import sort


def honest(lots: int = 3, items: int = 24, shift_s: float = 1000.0):
    return scans_of(
        [
            (code(lot=l + 1, serial=s + 1), [(o, p, t + l * shift_s) for o, p, t in HONEST])
            for l in range(lots)
            for s in range(items)
        ]
    )


def context(registry: Registry = REGISTRY) -> Context:
    trails = sort(honest())
    return Context(SITES, network.fit(trails.scans, previous_of(trails.starts), SITES), registry)


CONTEXT = context()


def by_row(encoded):
    result = np.empty_like(encoded.features)
    result[encoded.trails.scans.row] = encoded.features
    return result


def sorted_ties(scans, matrix):
    """Rows ordered by what the scan says, so that scans that say the same may swap."""
    key = np.lexsort((*matrix.T, scans.site, scans.op, scans.time_us, scans.epc))
    return matrix[key]


def test_names_are_distinct_and_every_feature_has_a_context():
    assert len(set(FEATURES)) == len(FEATURES)
    assert set(CONTEXT_OF) == set(FEATURES)
    assert not any("site_id" in name or "location" in name for name in FEATURES)


@settings(max_examples=100, deadline=None)
@given(any_scans)
def test_every_feature_is_a_finite_number(scans):
    for seen in (CONTEXT, Context(SITES, None, Registry.none())):
        encoded = encode(scans, seen)
        assert encoded.features.shape == (len(scans), len(FEATURES))
        assert np.isfinite(encoded.features).all()
        assert ((encoded.rules >= 0) & (encoded.rules <= 100)).all()


@settings(max_examples=100, deadline=None)
@given(any_scans, st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(scans, random):
    order = list(range(len(scans)))
    random.shuffle(order)
    mixed = scans.take(np.array(order))
    straight, shuffled = encode(scans, CONTEXT), encode(mixed, CONTEXT)
    assert np.array_equal(
        sorted_ties(straight.trails.scans, straight.features),
        sorted_ties(shuffled.trails.scans, shuffled.features),
    )


@settings(max_examples=60, deadline=None)
@given(any_scans, st.integers(1, 30))
def test_chunk_boundaries_do_not_matter(scans, size):
    trails = sort(scans)
    whole = [judge(f).score for _, f in facts_of(trails, CONTEXT)]
    cut = [judge(f).score for _, f in facts_of(trails, CONTEXT, size=size)]
    assert np.array_equal(np.concatenate(whole), np.concatenate(cut))


@settings(max_examples=100, deadline=None)
@given(any_scans, st.integers(0, 100))
def test_nothing_looks_into_the_future(scans, percent):
    moment = np.percentile(scans.time_us, percent, method="lower")
    known = scans.time_us <= moment
    whole = encode(scans, CONTEXT)
    past = encode(scans.take(known), CONTEXT)
    kept = whole.trails.scans.time_us <= moment
    assert np.array_equal(
        sorted_ties(whole.trails.scans.take(kept), whole.features[kept]),
        sorted_ties(past.trails.scans, past.features),
    )


@settings(max_examples=100, deadline=None)
@given(any_scans, st.integers(0, 100))
def test_a_trail_split_between_two_calls_gives_the_same(scans, percent):
    moment = np.percentile(scans.time_us, percent, method="lower")
    old = sort(scans.take(scans.time_us <= moment))
    stored = table_of(old.scans, previous_of(old.starts))
    both = sort(scans)
    new = both.scans.time_us > moment
    touched = np.isin(both.scans.epc, both.scans.epc[new])
    request = both.scans.take(touched)
    request_trails = sort(request)
    fresh = request_trails.scans.time_us > moment
    added = table_of(request_trails.scans, previous_of(request_trails.starts), fresh)
    if not fresh.any():
        return
    online = encode(request, CONTEXT, merge(stored, added))
    offline = encode(scans, CONTEXT)
    assert np.array_equal(
        by_row_of(online, online.trails.scans.time_us > moment),
        by_row_of(offline, offline.trails.scans.time_us > moment),
    )


def by_row_of(encoded, keep):
    return sorted_ties(encoded.trails.scans.take(keep), encoded.features[keep])


def test_an_honest_trail_is_flagged_by_no_rule():
    assert encode(honest(), CONTEXT).rules.max() < 50


def test_honest_goods_of_an_unknown_network_are_flagged_by_no_rule():
    moved = {site: f"x{site}" for site in SITES.ids}
    elsewhere = replace(SITES, ids=tuple(moved[site] for site in SITES.ids))
    seen = Context(elsewhere, CONTEXT.network, Registry.none())
    encoded = encode(honest(), seen)
    assert encoded.rules.max() < 50
    assert encoded.features[:, FEATURES.index("edge_known")].max() == 0


def test_a_site_that_learned_nothing_is_not_called_never_used():
    trail = [(Op.WMS_OUT, 1, 0.0), (Op.HUB_IN, 8, 7200.0)]
    encoded = encode(scans_of([(code(lot=1, serial=1), trail)]), CONTEXT)
    assert encoded.features[:, FEATURES.index("edge_unused")].max() == 0


@pytest.mark.parametrize("gap_days", [30, 300])
def test_a_long_silence_alone_is_flagged_by_no_rule(gap_days):
    trail = HONEST[:5] + [(o, p, t + gap_days * DAY) for o, p, t in HONEST[5:]]
    items = [(code(lot=1, serial=s), trail) for s in range(1, 30)]
    assert encode(scans_of(items), CONTEXT).rules.max() < 50


def test_a_one_minute_jump_is_flagged():
    trail = [*HONEST[:3], (Op.HUB_IN, HUB_FAR, 2 * DAY + 60)]
    encoded = encode(scans_of([(code(lot=1, serial=1), trail)]), CONTEXT)
    assert encoded.rules[-1, 4] > 90


def test_a_location_loop_is_flagged():
    loop = [*HONEST[:5], (Op.HUB_IN, HUB, 4 * DAY + 1800), (Op.HUB_OUT, HUB, 4 * DAY + 3600)]
    encoded = encode(scans_of([(code(lot=1, serial=1), loop)]), CONTEXT)
    assert encoded.rules[5, 3] >= 50


def test_a_network_survives_json():
    import json

    again = network.Network.from_json(json.loads(json.dumps(CONTEXT.network.to_json())))
    scans = honest(lots=1)
    one = encode(scans, CONTEXT).features
    other = encode(scans, Context(SITES, again, REGISTRY)).features
    assert np.array_equal(one, other)
