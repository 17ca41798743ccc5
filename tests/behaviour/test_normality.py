"""The model of what is normal finds what honest trails never do, without having been told."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from bench import normality
from tests.serving.champion import small_champion
from trail.features import FEATURES
from trail.scan import EVENT_TYPES

OPS = [f"op_{name}" for name in EVENT_TYPES]


def trails(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Trails of four operations in their order, each about an hour after the one before."""
    rng = np.random.default_rng(seed)
    features = np.zeros((4 * count, len(FEATURES)), np.float32)
    place = np.tile(np.arange(4), count)
    features[np.arange(len(place)), [FEATURES.index(OPS[p]) for p in place]] = 1
    features[:, FEATURES.index("is_first")] = place == 0
    features[:, FEATURES.index("same_site")] = place % 2
    for name, value in (("edge_known", 1), ("edge_share", 0.5)):
        features[:, FEATURES.index(name)] = value
    hours = np.where(place == 0, 0, rng.normal(1.0, 0.1, len(place)))
    features[:, FEATURES.index("gap_h_log")] = hours
    return features, np.arange(0, 4 * count + 1, 4)


def test_another_order_another_place_and_another_time_are_strange():
    features, offsets = trails(600, 1)
    model = normality.fit(features, offsets, 20, 12, 512)
    usual = normality.surprise(model, *trails(300, 2), 20)
    odd, at = trails(300, 3)
    odd[[2, 6]] = odd[[6 + 1, 2 - 1]]  # the third scans of two trails are of other operations
    odd[4 * 10 + 2, FEATURES.index("edge_unused")] = 1
    odd[4 * 20 + 3, FEATURES.index("gap_h_log")] = 4.0
    strange = normality.strangeness(normality.surprise(model, odd, at, 20), usual)
    expected = {2, 6, 42, 83}
    # What follows a strange scan may be strange, too.
    others = [i for i in range(len(odd)) if i not in expected | {3, 7, 43}]
    assert min(strange[i] for i in expected) > np.quantile(strange[others], 0.99)


def test_it_is_causal():
    features, offsets = trails(50, 4)
    model = normality.fit(features, offsets, 20, 1, 512)
    before = model(torch.from_numpy(features[None, :4])).detach()
    changed = features[None, :4].copy()
    changed[0, 3, FEATURES.index("gap_h_log")] = 9.0
    after = model(torch.from_numpy(changed)).detach()
    assert torch.equal(before[:, :3], after[:, :3])
    assert after[0, 3, 2] > before[0, 3, 2]


def test_honest_trails_hold_no_tampered_scan():
    from tests.behaviour.test_ablation import marked_part

    whole = marked_part()
    features, offsets = normality.honest_trails(whole)
    assert features.tolist() == whole.features[~whole.synthetic].tolist()
    assert offsets[-1] == (~whole.synthetic).sum()


def test_the_page_has_every_kind(tmp_path):
    home, out = small_champion().home, tmp_path / "page.md"
    words = ["--weights", home / "models/weights", "--sequences", home / "work/sequences"]
    words += ["--scans", 12_000, "--epochs", 1, "--out", out]
    assert normality.main([str(word) for word in words]) == 0
    rows = re.findall(r"^\| `(\w+)` \|(?: [\d.]+ \|){4} (yes|no) \|$", out.read_text(), re.M)
    unseen = {name for name, trained in rows if trained == "no"}
    assert unseen and unseen <= {s.name for s in normality.SUBTYPES if s.natural_only}
    assert len(rows) > 15


def test_without_weights_it_says_what_to_run(tmp_path, capsys):
    assert normality.main(["--weights", str(tmp_path)]) == 2
    assert "make run" in capsys.readouterr().err


@pytest.mark.parametrize(("usual", "rare"), [([0.0, 1.0, 2.0], [3.0]), ([0.0] * 9, [0.1])])
def test_what_is_rarer_than_all_that_is_usual_is_stranger(usual, rare):
    def three(values):
        return np.repeat(np.array(values, np.float32)[:, None], 3, axis=1)

    known = normality.strangeness(three(usual), three(usual))
    assert normality.strangeness(three(rare), three(usual))[0] > known.max()
