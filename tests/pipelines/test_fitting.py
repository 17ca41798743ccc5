"""Fitting learns, stops, resumes after a kill, and refuses a device that is not there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.lstm import Shape, TrailLSTM, standardisation
from pipelines import fitting
from pipelines.parts import Part
from trail.features import CONTEXT_OF, FEATURES

SETTINGS = {
    "seed": 1,
    "device": "cpu",
    "precision": "fp32",
    "threads": 1,
    "hidden": 12,
    "layers": 2,
    "dropout": 0.1,
    "length": 6,
    "batch_scans": 256,
    "learning_rate": 0.01,
    "weight_decay": 0.0,
    "epochs": 6,
    "patience": 10,
    "average": 0.9,
}


def part(seed: int, trails: int = 300) -> Part:
    """Trails whose anomaly is a feature of the scan before: only a memory can find it."""
    rng = np.random.default_rng(seed)
    size = rng.integers(1, 9, trails)
    offsets = np.concatenate([[0], np.cumsum(size)]).astype(np.int64)
    n = int(offsets[-1])
    features = rng.normal(size=(n, 4)).astype(np.float32)
    target = np.zeros((n, 5), np.int8)
    starts = np.zeros(n, bool)
    starts[offsets[:-1]] = True
    before = np.concatenate([[0.0], features[:-1, 0]])
    target[:, 0] = (before > 1) & ~starts
    target[rng.random(n) < 0.05] = -1
    whole = np.zeros(n, np.int64)
    return Part(
        features=features,
        offsets=offsets,
        target=target,
        rules=np.zeros((n, 5), np.float32),
        lot=whole,
        row=np.arange(n),
        event_id=whole,
        time_us=whole,
        op=np.zeros(n, np.int8),
        anomaly=np.full(n, -1, np.int8),
        subtype=np.full(n, -1, np.int16),
        grade=np.full(n, -1, np.int8),
        control=starts & False,
        cause=starts & False,
        evidence=starts & False,
        synthetic=starts & False,
        label_source=np.zeros(n, np.int8),
        trail=np.repeat(np.arange(trails), size),
    )


LEARNED, HELD = part(1), part(2)


def nothing(epoch, figures):
    return None


def same(one, other) -> bool:
    return all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_it_learns_what_only_the_trail_can_tell(tmp_path):
    settings = {**SETTINGS, "epochs": 40, "hidden": 24, "dropout": 0.0}
    fitted = fitting.fit(part(1, 900), HELD, settings, tmp_path / "c", nothing)
    assert fitted.state.best > 0.9


def test_it_learns_from_scans_beyond_its_length(tmp_path):
    def late(part: Part) -> Part:
        """Anomalies that none of a trail's first two scans shows."""
        place = np.arange(len(part)) - np.repeat(part.offsets[:-1], np.diff(part.offsets))
        features = part.features.copy()
        features[:, 1] = place
        target = np.zeros_like(part.target)
        target[:, 0] = (features[:, 0] > 0) & (place >= 2)
        return replace(part, features=features, target=target)

    settings = {**SETTINGS, "length": 2, "epochs": 20, "hidden": 24, "dropout": 0.0}
    fitted = fitting.fit(late(part(1, 900)), late(HELD), settings, tmp_path / "c", nothing)
    assert fitted.state.best > 0.95


def test_the_same_seed_gives_the_same_weights(tmp_path):
    one = fitting.fit(LEARNED, HELD, SETTINGS, tmp_path / "one", nothing)
    other = fitting.fit(LEARNED, HELD, SETTINGS, tmp_path / "other", nothing)
    assert same(one.network, other.network)


@pytest.mark.parametrize("killed_at", [1, 3, 5])
def test_a_killed_training_resumes_to_the_same_weights(tmp_path, killed_at):
    class Killed(BaseException):
        pass

    def kill(epoch, figures):
        if epoch == killed_at:
            raise Killed

    whole = fitting.fit(LEARNED, HELD, SETTINGS, tmp_path / "whole", nothing)
    with pytest.raises(Killed):
        fitting.fit(LEARNED, HELD, SETTINGS, tmp_path / "cut", kill)
    seen = []
    resumed = fitting.fit(
        LEARNED, HELD, SETTINGS, tmp_path / "cut", lambda epoch, _: seen.append(epoch)
    )
    assert seen[0] == killed_at + 1
    assert same(whole.network, resumed.network)
    assert str(whole.state.curves) == str(resumed.state.curves)


def test_a_kill_between_the_two_moves_of_a_checkpoint_loses_nothing(tmp_path):
    folder = tmp_path / "c"
    fitting.fit(LEARNED, HELD, {**SETTINGS, "epochs": 2}, folder, nothing)
    folder.rename(folder.with_suffix(".old"))
    seen = []
    settings = {**SETTINGS, "epochs": 3}
    fitting.fit(LEARNED, HELD, settings, folder, lambda epoch, _: seen.append(epoch))
    assert seen == [3]


def test_it_stops_when_validation_no_longer_rises(tmp_path):
    settings = {**SETTINGS, "epochs": 60, "patience": 2, "learning_rate": 0.05}
    fitted = fitting.fit(LEARNED, HELD, settings, tmp_path / "c", nothing)
    assert len(fitted.state.curves) == fitted.state.best_epoch + 3 or len(fitted.state.curves) == 60
    best = max(c["validation_map"] for c in fitted.state.curves)
    assert fitted.state.best == best


def test_it_goes_on_from_a_network_that_is_given(tmp_path):
    learned, held = part(1, trails=1500), part(2)
    more = {**SETTINGS, "epochs": 14}
    first = fitting.fit(learned, held, more, tmp_path / "a", lambda *_: None)
    standstill = {**SETTINGS, "epochs": 1, "learning_rate": 1e-9}
    new = fitting.fit(learned, held, standstill, tmp_path / "b", lambda *_: None)
    on = fitting.fit(part(3), held, standstill, tmp_path / "c", lambda *_: None, first.network)
    assert on.state.best == pytest.approx(first.state.best, abs=1e-4)
    assert new.state.best < first.state.best - 0.2


def test_a_hierarchical_network_learns_with_box_and_lot_on_a_level_of_their_own(tmp_path):
    learned = part(1)
    spare = np.zeros((len(learned.features), len(FEATURES) - 4), np.float32)
    learned = replace(learned, features=np.concatenate([learned.features, spare], axis=1))
    settings = {**SETTINGS, "hierarchical": True}
    network = fitting.fit(learned, learned, settings, tmp_path, lambda *_: None).network
    assert {CONTEXT_OF[FEATURES[i]] for i in network.shape.lot} == {"box and lot"}
    assert network.lstm.input_size + len(network.shape.lot) == len(FEATURES)
    flat = fitting.fit(learned, learned, SETTINGS, tmp_path / "flat", lambda *_: None).network
    assert hasattr(network, "upper") and not hasattr(flat, "upper")


def test_scans_that_are_not_counted_do_not_train(tmp_path):
    from dataclasses import replace

    blind = replace(LEARNED, target=np.full_like(LEARNED.target, -1))
    data = fitting._Resident(blind, 6, SETTINGS, torch.device("cpu"))
    from models import lstm

    network = lstm.TrailLSTM(lstm.Shape(4, 8), *standardisation(blind.features))
    optimiser = torch.optim.SGD(network.parameters(), lr=1.0)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    averaged = fitting.AveragedModel(network)
    assert data.epoch(network, averaged, optimiser, 0) == 0
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_stratified_batches_hold_their_share_of_every_week_and_of_anomalies(tmp_path):
    whole = part(1, trails=3000)
    weeks = np.random.default_rng(2).choice(3, 3000, p=[0.6, 0.3, 0.1])
    whole.time_us[:] = weeks[whole.trail] * fitting.WEEK_US
    start, size = whole.offsets[:-1], np.diff(whole.offsets)
    stratum = fitting.strata(whole, start, size)
    bad = np.logical_or.reduceat((whole.target == 1).any(axis=1), start)
    for one in np.unique(stratum):
        mine = stratum == one
        assert len({*zip(size[mine], weeks[mine], bad[mine], strict=True)}) == 1
    mixed = np.random.default_rng(3).permutation(len(size))
    order = fitting.evenly(mixed, stratum)
    assert sorted(order) == list(range(len(size)))
    for mark in (weeks == 2, bad):
        share = [mark[order[i : i + 500]].mean() for i in range(0, 3000, 500)]
        assert np.allclose(share, mark.mean(), atol=0.02)
    settings = {**SETTINGS, "stratified": True, "epochs": 40, "hidden": 24, "dropout": 0.0}
    fitted = fitting.fit(part(1, 900), HELD, settings, tmp_path / "c", nothing)
    assert fitted.state.best > 0.9


def test_what_was_read_at_once_counts_less_and_all_count_one_on_average():
    whole = part(1)
    features = np.zeros((len(whole), len(FEATURES)), np.float32)
    size = np.where(np.arange(len(whole)) % 2, 48, 1)
    features[:, FEATURES.index("group_log")] = np.log1p(size)
    whole = replace(whole, features=features)
    weight = fitting.weights(whole, {"crowd_exponent": 0.5})
    assert weight.mean() == pytest.approx(1, abs=1e-5)
    assert weight[0] / weight[1] == pytest.approx(48**0.5, rel=1e-4)
    assert (fitting.weights(whole, {"crowd_exponent": 0}) == 1).all()
    with pytest.raises(ValueError, match="crowd_exponent is 2"):
        fitting.weights(whole, {"crowd_exponent": 2})


def test_the_loss_is_the_mean_by_these_weights():
    torch.manual_seed(1)
    network = TrailLSTM(Shape(inputs=4, hidden=12, length=6)).eval()
    data = fitting._Resident(part(1), 6, SETTINGS, torch.device("cpu"))
    plain = data._loss(network, np.arange(20)).item()
    data._weight = 3 * data._weight
    assert data._loss(network, np.arange(20)).item() == pytest.approx(plain, rel=1e-5)
    data._weight[: int(part(1).offsets[1])] *= 50  # the first trail outweighs the others
    alone = data._loss(network, np.arange(1)).item()
    near = data._loss(network, np.arange(20)).item()
    assert abs(near - alone) < abs(plain - alone)


def loss_of(network, device: str, bf16: bool) -> torch.Tensor:
    settings = {**SETTINGS, "precision": "bf16", "positive_weight": {"jump": 4}}
    data = fitting._Resident(part(1), 6, settings, torch.device(device))
    data._bf16 = bf16
    return data._loss(network.to(device), np.arange(20))


@pytest.mark.parametrize("attention", [False, True])
def test_a_loss_in_bfloat16_is_nearly_the_same_and_trains_in_float32(attention):
    torch.manual_seed(1)
    network = TrailLSTM(Shape(inputs=4, hidden=12, length=6, attention=attention)).eval()
    # oneDNN refuses bfloat16 on processors without AVX-512; torch's own code does not.
    with torch.backends.mkldnn.flags(enabled=False):
        rough = loss_of(network, "cpu", bf16=True)
    assert rough.item() == pytest.approx(loss_of(network, "cpu", bf16=False).item(), rel=5e-3)
    rough.backward()
    assert network.head.weight.grad.dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_gpu_learns_what_the_processor_learns(tmp_path, precision):
    settings = {**SETTINGS, "device": "cuda", "precision": precision, "epochs": 40}
    settings |= {"hidden": 24, "dropout": 0.0}
    fitted = fitting.fit(part(1, 900), HELD, settings, tmp_path / "c", nothing)
    assert fitted.state.best > 0.9
    assert all(value.device.type == "cpu" for value in fitted.network.state_dict().values())


def test_devices():
    assert fitting.device_of("cpu").type == "cpu"
    assert fitting.device_of("auto").type in ("cpu", "cuda")
    with pytest.raises(ValueError, match="'tpu'"):
        fitting.device_of("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no GPU"):
            fitting.device_of("cuda")
