"""Kinds of networks: what each may look at, and that its export is the same network."""

import numpy as np
import pytest
import torch

from models import onnx
from models.lstm import Shape, TrailLSTM, load, save

KINDS = {
    "plain": {},
    "attention": {"attention": True},
    "two levels": {"lot": (1, 4)},
    "two levels and attention": {"lot": (1, 4), "attention": True},
}


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def network(request) -> TrailLSTM:
    torch.manual_seed(4)
    shape = Shape(inputs=6, hidden=8, layers=2, dropout=0.3, **request.param)
    return TrailLSTM(shape).eval()


def trails(batch: int = 5, time: int = 9) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).standard_normal((batch, time, 6), np.float32))


def test_what_comes_later_changes_nothing(network):
    whole, other = trails(), trails()
    other[:, 6:] = 1e3
    with torch.inference_mode():
        one, two, short = network(whole), network(other), network(whole[:, :6])
    assert torch.equal(one[:, :6], two[:, :6])
    assert torch.allclose(one[:, :6], short, atol=1e-6)
    assert not torch.allclose(one[:, 6:], two[:, 6:])


def test_what_came_before_changes_the_last_scan(network):
    other = trails()
    other[:, 0] = -other[:, 0]
    with torch.inference_mode():
        assert not torch.allclose(network(trails())[:, -1], network(other)[:, -1], atol=1e-7)


def test_the_export_is_the_same_network(network, tmp_path):
    assert onnx.export(network, tmp_path / "lstm.onnx") <= onnx.TOLERANCE


def test_it_is_read_back_as_it_was_written(network, tmp_path):
    save(network, tmp_path / "lstm.safetensors")
    again = load(Shape(**network.shape.to_json()), tmp_path / "lstm.safetensors")
    with torch.inference_mode():
        assert torch.equal(again(trails()), network(trails()))


def test_attention_is_a_share_of_every_scan_so_far():
    network = TrailLSTM(Shape(inputs=6, hidden=8, attention=True)).eval()
    with torch.inference_mode():
        weights = network.attention(trails())
    assert weights.shape == (5, 9, 9)
    assert torch.allclose(weights.sum(dim=2), torch.ones(5, 9))
    assert (weights.triu(1) == 0).all() and (weights.tril() > 0).sum() == 5 * 45
    with pytest.raises(ValueError, match="without attention"):
        TrailLSTM(Shape(inputs=6)).attention(trails())


def test_the_lower_level_does_not_see_box_and_lot():
    network = TrailLSTM(Shape(inputs=6, hidden=8, lot=(1, 4))).eval()
    seen: list[torch.Tensor] = []
    network.lstm.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    own, lot = trails(), trails()
    own[..., 0] += 1
    lot[..., 1] += 1
    with torch.inference_mode():
        said = [network(given) for given in (trails(), own, lot)]
    assert seen[0].shape[-1] == 4
    assert not torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])
    assert not torch.equal(said[0], said[1]) and not torch.equal(said[0], said[2])
