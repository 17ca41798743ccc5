"""The Bayes limit is that of densities that are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from bench import regret
from bench.regret import Legs


def test_the_limit_of_uniform_honest_legs_is_the_share_that_the_bound_buys():
    honest = np.random.default_rng(1).uniform(0.0, 2.0, 2_000_000).astype(np.float32)
    # A hundredth of [0, 2] is a tenth of [0.35, 0.55].
    assert regret.limit(honest) == pytest.approx(0.1, abs=0.005)


def test_the_limit_of_a_rising_density_is_its_rarest_part():
    honest = np.random.default_rng(2).normal(1.0, 0.2, 2_000_000).astype(np.float32)
    upto = norm(1.0, 0.2).ppf(0.01 + norm(1.0, 0.2).cdf(0.35))
    assert regret.limit(honest) == pytest.approx((upto - 0.35) / 0.2, abs=0.02)


def test_legs_that_are_never_so_quick_are_all_told():
    assert regret.limit(np.linspace(0.6, 3, 1000, dtype=np.float32)) == 1.0


def test_rows_are_by_distance_and_regret_is_the_limit_less_the_recall():
    rng, n = np.random.default_rng(3), 40_000
    tampered = rng.random(n) < 0.05
    share = np.where(tampered, rng.uniform(0.35, 0.55, n), rng.uniform(0.0, 2.0, n))
    km = rng.choice([30.0, 150.0], n)
    perfect, blind = tampered.astype(np.float32), np.zeros(n, np.float32)
    legs = Legs(km, share.astype(np.float32), tampered, {"perfect": perfect, "blind": blind})
    near, far = regret.rows([legs])
    assert (near.km, far.km) == ((20.0, 40.0), (100.0, 200.0))
    assert near.tampered + far.tampered == tampered.sum()
    assert near.recall == {"perfect": 1.0, "blind": 0.0}
    text = regret.table([near, far], "perfect")
    assert text[0][0] == "20-40" and float(text[0][-1]) == pytest.approx(near.limit - 1, abs=0.01)
