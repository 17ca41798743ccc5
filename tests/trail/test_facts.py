"""Facts of a trail against a slow, obvious reckoning with loops."""

import numpy as np
from hypothesis import given, settings

from tests.trail.small import SITES, any_scans
from trail.facts import LOOK_BACK, Context, facts
from trail.registry import Registry
from trail.scan import Op
from trail.trails import sort

NO_NETWORK = Context(SITES, None, Registry.none()).bound()


def reckoned(scans, first, i):
    """What `Facts` says of scan i of the trail that begins at `first`."""
    earlier = range(first, i)
    seconds = [(scans.time_us[i] - scans.time_us[j]) / 1e6 for j in range(i + 1)]
    sales = [j for j in earlier if scans.op[j] == Op.SALE]
    near = [j for j in earlier if i - j <= LOOK_BACK and scans.op[j] == scans.op[i]]
    here = [j for j in near if scans.site[j] == scans.site[i]]
    return {
        "position": i - first,
        "first_op": scans.op[first],
        "commissioned": any(scans.op[j] == Op.AGGREGATION for j in range(first, i + 1)),
        "sold_before": len(sales),
        "sold_elsewhere": bool(sales) and scans.site[sales[-1]] != scans.site[i],
        "since_sale_s": seconds[sales[-1]] if sales else 0.0,
        "op_before": len(near),
        "repeat_gap_s": seconds[here[-1]] if here else -1.0,
        "op_drop": max(scans.op[j] for j in range(first, i + 1)) - scans.op[i],
        "gap_s": seconds[i - 1] if i > first else 0.0,
        "two_gap_s": seconds[i - 2] if i > first + 1 else 0.0,
        "same_site": i > first and scans.site[i] == scans.site[i - 1],
        "back_and_forth": i > first + 1
        and scans.site[i - 2] == scans.site[i]
        and scans.site[i - 1] != scans.site[i],
        "op_step": scans.op[i] - scans.op[i - 1] if i > first else 0,
        "km_known": i > first and bool(SITES.known[scans.site[i - 1 : i + 1]].all()),
    }


@settings(max_examples=150, deadline=None)
@given(any_scans)
def test_facts_agree_with_the_slow_reckoning(scans):
    trails = sort(scans)
    found = facts(trails.scans, trails.starts, NO_NETWORK)
    first = 0
    for i in range(len(scans)):
        first = i if trails.starts[i] else first
        for name, value in reckoned(trails.scans, first, i).items():
            assert np.isclose(getattr(found, name)[i], value, rtol=1e-12), (name, i)
