"""States of a monitor, written as the monitor writes them."""

from __future__ import annotations

import time
from copy import deepcopy
from typing import Any

from monitoring import policy as p
from monitoring.policy import DAY, NewSite, Policy, Reading
from monitoring.store import Store, open_store

REFERENCE = {"id": "r1", "n": 56000, "clusters": 1400, "days": 28}
EVALUATION: dict[str, Any] = {
    "every_s": 60.0,
    "clock_us": 0,
    "calibration": {
        "status": "calibrated",
        "reason": "",
        "unit": "weekday",
        "target_p_30d": 0.1,
        "estimate_p_30d": 0.05,
        "ci95": [0.01, 0.17],
        "blocks": 28,
    },
    "max_score": 1.31,
    "features": {
        "gap_s": {
            "type": "numeric",
            "score": 1.31,
            "d": 0.18,
            "threshold": 0.137,
            "window": "7d",
            "n": 14000,
            "p_value_iid": 1e-9,
        }
    },
    "windows": {"7d": {"tier": "retrain", "n": 14000, "status": "judged"}},
    "measures": [["gap_s", "7d", 1.31, 0.137], ["gap_s", "1d", 0.4, 0.3]],
    "locations": {"F9": {"status": "new_location", "n": 410, "labels": 0, "boxes": 11, "days": 2}},
}


def written(
    url: str,
    score: float = 1.31,
    model: str = "trailwatch",
    age_s: float = 0.0,
    every_s: float = 60.0,
) -> tuple[Store, int]:
    """A state after one evaluation with this score, so old; the store, and when it was."""
    store = open_store(url, model, create=True)
    lease = store.lease("a monitor", 60)
    assert lease is not None
    at = time.time_ns() // 1000 - int(age_s * 1e6)
    with store.change(lease) as step:
        mine = step.monitor
        mine.reference, mine.digest = dict(REFERENCE), "d"
        mine.evaluation = deepcopy(EVALUATION)
        mine.evaluation.update(clock_us=at, max_score=score, every_s=every_s)
        mine.evaluated_us, mine.lag = at, 12
        mine.counts = {"counted": 14000}
        step.apply(p.champion(mine.policy, "7", at - DAY))
        sites = (NewSite("F9", 410, 11, 2, 0),)
        step.apply(p.evaluated(mine.policy, Reading(at, "7", {"gap_s": score}, {}, sites=sites)))
        step.note("evaluation", {"level": mine.policy.level})
    store.release(lease)
    return store, at


def policy_of(store: Store) -> Policy:
    """The policy now."""
    monitor = store.monitor()
    assert monitor is not None
    return monitor.policy
