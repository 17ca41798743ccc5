"""A challenger is judged with its champion, gate by gate, and every decision can be undone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import bundle, lstm, onnx, registry
from models.bundle import Bundle, BundleError
from models.registry import Version, Watch
from pipelines import params, promote, register
from pipelines.measures.blocks import Block
from pipelines.measures.operating import count
from pipelines.promotion import gates, holdout, latency, paired
from pipelines.promotion.candidates import Candidate, no_unpickling
from pipelines.promotion.ledger import Kind, Ledger
from pipelines.promotion.settings import Settings
from tests.models.small_bundles import small_bundle
from tests.pipelines.promoted import MODEL, variant, write_holdout, write_params
from tests.trail.small import HONEST, SITES, code, scans_of
from trail import network
from trail.facts import previous_of
from trail.features import FEATURES
from trail.rules import FLAG
from trail.scan import ANOMALIES
from trail.trails import sort

GOOD, EQUAL, NOISY, LOUD, FOREIGN = "1", "2", "3", "4", "5"


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    """Five versions of a small model in a SQLite store, the first one champion; read-only."""
    base = tmp_path_factory.mktemp("promote")
    good = small_bundle(base / "good" / "bundle", stacked=False)  # a stack is hard to spoil
    made = [
        good,
        variant(good, base / "equal" / "bundle", note="equal"),
        variant(good, base / "noisy" / "bundle", noise=2),
        variant(good, base / "loud" / "bundle", threshold=0.001),
        variant(good, base / "foreign" / "bundle", file="scaler.pkl"),
    ]
    write_holdout(base / "work" / "labelled" / "test.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{base / 'mlflow.db'}")
        patch.setenv("TRAILWATCH_HOME", str(base))
        for folder in made:
            register.register(MODEL, folder, Path("no metrics"))
    return base


@pytest.fixture
def home(shop, tmp_path, monkeypatch) -> Path:
    """A project folder with that store and hold-out, where this process stands."""
    shutil.copy(shop / "mlflow.db", tmp_path / "mlflow.db")
    (tmp_path / "work").symlink_to(shop / "work")
    write_params(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("TRAILWATCH_HOME", str(tmp_path))
    monkeypatch.delenv("TRAILWATCH_LEDGER", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str, status: int = 0) -> dict:
    """Run the command; returns what it decided."""
    assert promote.main(["--by", "ann", *words]) == status
    out = Path("promotion.json")
    return json.loads(out.read_text()) if out.exists() else {}


def champion() -> str | None:
    return registry.alias(registry.client(), MODEL, registry.CHAMPION)


def entries() -> list:
    return Ledger("sqlite:///ledger.db").entries(MODEL)


def gate(decision: dict, name: str) -> dict:
    [found] = [one for one in decision["gates"] if one["name"] == name]
    return found


# Decisions


def test_an_equal_challenger_is_promoted_and_everybody_can_know_why(home, capsys):
    decision = run("--version", EQUAL, "--why", "weekly")
    assert decision["outcome"] == "promoted" and decision["refused_by"] == []
    assert champion() == EQUAL
    for name in ("map", "f_beta"):
        assert gate(decision, name)["figure"] == 0.0
        assert gate(decision, name)["verdict"] == "passed"
    assert gate(decision, "floor.epcDup")["verdict"] == "not judged"
    assert gate(decision, "evidence")["verdict"] == "passed"
    assert {one["verdict"] for one in decision["gates"]} == {"passed", "not judged"}
    assert Path("promotion.png").read_bytes().startswith(b"\x89PNG")
    kinds = [(e.kind, e.origin, e.target) for e in entries()]
    moved = [(Kind.PROMOTE, GOOD, EQUAL), (Kind.DONE, GOOD, EQUAL)]
    assert kinds == [(Kind.FOUND, "", GOOD), *moved]
    told = entries()[1]
    assert (told.who, told.why) == ("ann", "weekly")
    assert decision["ledger"] == {"number": 2, "hash": told.hash}
    assert told.decision["gates"] == decision["gates"]
    store = registry.client()
    version = store.get_model_version(MODEL, EQUAL)
    assert version.tags["promotion"] == "promoted"
    assert version.tags["promotion_ledger"] == f"2 {told.hash}"
    assert store.get_registered_model(MODEL).tags["previous_champion"] == GOOD
    logged = {file.path for file in store.list_artifacts(version.run_id, "promotion/0002")}
    assert logged == {"promotion/0002/promotion.json", "promotion/0002/promotion.png"}
    assert "version 2, against version 1: promoted" in capsys.readouterr().out
    # Once more there is nothing to decide.
    assert run("--version", EQUAL)["outcome"] == "nothing to decide"
    assert len(entries()) == 3


@pytest.mark.parametrize(
    ("version", "refused_by"),
    [(NOISY, {"map", "f_beta"}), (LOUD, {"f_beta", "fpr.jump"}), (FOREIGN, {"loads"})],
    ids=["noisy", "loud", "foreign"],
)
def test_a_worse_challenger_is_refused_by_the_gates_that_it_failed(home, version, refused_by):
    decision = run("--version", version)
    assert decision["outcome"] == "refused"
    assert set(decision["refused_by"]) >= refused_by
    failed = {one["name"] for one in decision["gates"] if one["verdict"] == "failed"}
    assert failed == set(decision["refused_by"])
    assert champion() == GOOD
    assert [e.kind for e in entries()] == [Kind.FOUND, Kind.REFUSED]
    tags = registry.client().get_model_version(MODEL, version).tags
    assert tags["promotion"] == "refused"
    assert tags["promotion_refused_by"] == ", ".join(decision["refused_by"])


def test_nobody_is_promoted_where_nobody_wanted_it(home):
    """And the challenger is the one that the alias names."""
    registry.client().set_registered_model_alias(MODEL, registry.CHALLENGER, EQUAL)
    decision = run("--mode", "never")
    assert (decision["outcome"], decision["challenger"]["version"]) == ("held", EQUAL)
    assert champion() == GOOD
    assert entries()[-1].kind is Kind.HELD


def test_a_decision_waits_for_approval(home):
    assert run("--version", EQUAL, "--mode", "approval")["outcome"] == "waiting"
    assert champion() == GOOD
    assert run("--reject", "--why", "not before Monday")["outcome"] == "rejected"
    run("--approve", status=1)  # nothing waits any more
    run("--version", EQUAL, "--mode", "approval")
    decision = run("--approve", "--why", "go")
    assert decision["outcome"] == "promoted" and decision["why"] == "go"
    assert champion() == EQUAL
    waited = [e for e in entries() if e.kind is Kind.WAITING]
    [approved] = [e for e in entries() if e.kind is Kind.PROMOTE]
    assert approved.settles == waited[-1].number
    assert approved.decision["gates"] == waited[-1].decision["gates"]
    run("--approve", status=1)


def test_what_was_judged_against_another_champion_cannot_be_approved(home, capsys):
    run("--version", EQUAL, "--mode", "approval")
    registry.client().set_registered_model_alias(MODEL, registry.CHAMPION, LOUD)
    run("--approve", status=1)
    assert "is version 4 by now, not 1" in capsys.readouterr().err
    assert champion() == LOUD


def test_a_champion_that_changes_while_it_is_judged_stays(home, capsys, monkeypatch):
    judge = gates.judge

    def slowly(*words: object) -> gates.Judgement:
        found = judge(*words)  # type: ignore[arg-type]
        registry.client().set_registered_model_alias(MODEL, registry.CHAMPION, LOUD)
        return found

    monkeypatch.setattr(gates, "judge", slowly)
    decision = run("--version", EQUAL, status=1)
    assert (decision["outcome"], decision["refused_by"]) == ("refused", ["champion"])
    assert "is version 4 by now, not 1; decide again" in capsys.readouterr().err
    assert champion() == LOUD
    kinds = [(e.kind, e.target) for e in entries()]
    assert kinds == [(Kind.FOUND, GOOD), (Kind.FOUND, LOUD), (Kind.REFUSED, EQUAL)]


def test_without_a_champion_the_other_gates_decide(home):
    registry.client().delete_registered_model_alias(MODEL, registry.CHAMPION)
    assert run("--version", NOISY)["outcome"] == "refused"
    decision = run("--version", EQUAL)
    assert decision["champion"] is None
    for name in ("map", "f_beta", "latency"):
        assert gate(decision, name)["verdict"] == "not judged"
    assert decision["outcome"] == "promoted" and champion() == EQUAL
    run("--rollback", status=1)


def test_a_service_follows_a_promotion_and_a_rollback(home, capsys):
    seen: list[dict] = []
    watch = Watch(MODEL, [registry.CHAMPION], home / "cache", seen.append)
    watch.look()
    run("--version", EQUAL)
    watch.look()
    run("--rollback", "--why", "alarms")
    watch.look()
    assert [line["version"] for line in seen] == [GOOD, EQUAL, GOOD]
    said = capsys.readouterr().out
    assert "is version 1 again, not 2; it took " in said
    back = entries()[-2]
    assert (back.kind, back.origin, back.target, back.why) == (Kind.ROLLBACK, EQUAL, GOOD, "alarms")
    tags = registry.client().get_model_version(MODEL, EQUAL).tags
    assert (tags["promotion"], tags["promotion_why"]) == ("rolled back", "alarms")
    run("--rollback", status=1)
    assert "no earlier champion" in capsys.readouterr().err


def test_nobody_goes_back_to_a_bundle_that_no_service_could_load(home, capsys):
    run("--version", EQUAL)
    store = registry.client()
    store.set_model_version_tag(MODEL, GOOD, registry.DIGEST_TAG, "0" * 64)
    run("--rollback", status=2)
    assert "was registered with bundle 000000000000" in capsys.readouterr().err
    assert champion() == EQUAL


def test_an_alias_that_was_moved_by_hand_stands_in_the_ledger(home, capsys):
    run("--version", FOREIGN)
    registry.client().set_registered_model_alias(MODEL, registry.CHAMPION, LOUD)
    run("--rollback", status=1)  # which had not known of it
    assert promote.main(["--history"]) == 0
    table = capsys.readouterr().out
    assert "refused" in table and "loads" in table
    run("--version", FOREIGN)
    assert [(e.kind, e.target) for e in entries()][-2:] == [
        (Kind.FOUND, LOUD),
        (Kind.REFUSED, FOREIGN),
    ]
    run("--rollback")
    assert champion() == GOOD


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (("--version", "77"), 1, "has no version 77"),
        (("--model", "nobody"), 1, "'nobody' has no challenger"),
        (("--version", EQUAL, "--holdout", "gone/test"), 2, "does not exist; run `dvc repro"),
        (("--version", EQUAL, "--holdout", "raw.parquet"), 2, "has no column"),
        (("--version", EQUAL, "--ledger", "redis://x"), 2, "sqlite:///<file> or postgresql"),
        (("--rollback",), 1, "no earlier champion"),
        (("--approve",), 1, "waits for approval"),
    ],
    ids=["version", "model", "holdout", "labels", "ledger", "rollback", "approve"],
)
def test_what_cannot_be_done_says_why(home, capsys, words, status, says):
    columns = ["row", "epc_code", "location_id", "event_type", "event_time"]
    pq.write_table(pq.read_table("work/labelled/test.parquet", columns=columns), "raw.parquet")
    run(*words, status=status)
    assert says in capsys.readouterr().err
    assert champion() == GOOD


def test_too_few_lots_prove_nothing(home):
    write_holdout(home / "few.parquet", lots=4)
    decision = run("--version", EQUAL, "--holdout", "few.parquet")
    assert decision["refused_by"] == ["lots"]


# Figures


def candidate(folder: Path, number: str = "1") -> Candidate:
    loaded = Bundle(folder)
    return Candidate(Version(number, loaded.digest), folder, loaded)


@pytest.fixture
def settings(tmp_path) -> Settings:
    write_params(tmp_path)
    return Settings.read(params.load(tmp_path / "params.yaml"))


def test_analysts_verdicts_are_judged_apart(shop, tmp_path, settings):
    known = holdout.load(write_holdout(tmp_path / "test.parquet", analysed=True))
    both = candidate(shop / "noisy" / "bundle"), candidate(shop / "good" / "bundle")
    found = gates.judge(MODEL, *both, known, settings)
    assert {"map", "map.verdicts", "f_beta.verdicts"} <= set(found.failed)
    by_name = {one.name: one for one in found.gates}
    assert by_name["map"].figure is None  # nothing was injected
    assert by_name["map.verdicts"].figure is not None


def slow_network() -> network.Network:
    """Of a world where everything takes twenty times as long: usual journeys look impossible."""
    trails = []
    for s in range(1, 161):
        stretch = 20 * (1 + (s % 9) / 16)
        trails.append(
            (code(lot=9, serial=s), [(op, site, at * stretch) for op, site, at in HONEST])
        )
    scans = sort(scans_of(trails))
    return network.fit(scans.scans, previous_of(scans.starts), SITES)


def test_each_bundle_sees_the_holdout_with_its_own_statistics(shop, tmp_path, settings):
    """A champion of another network is judged as if it were asked alone."""
    good = shop / "good" / "bundle"
    other = shutil.copytree(good, tmp_path / "bundle")
    (other / "network.json").write_text(json.dumps(slow_network().to_json()))
    bundle.seal(other)
    known = holdout.load(shop / "work" / "labelled" / "test.parquet")
    alone = gates.judge(MODEL, candidate(other), None, known, settings)
    together = gates.judge(MODEL, candidate(good), candidate(other), known, settings)
    same = gates.judge(MODEL, candidate(good), candidate(good), known, settings)
    assert together.champion == alone.challenger
    assert together.champion != same.champion
    assert together.challenger == same.challenger


def test_a_larger_network_is_slower(shop, tmp_path):
    rng = np.random.default_rng(0)
    shape = lstm.Shape(len(FEATURES), hidden=96, dropout=0.0)
    mean, scale = lstm.standardisation(rng.normal(size=(50, len(FEATURES))).astype(np.float32))
    torch.manual_seed(0)
    small = shop / "good" / "bundle"
    large = shutil.copytree(small, tmp_path / "large")
    onnx.export(lstm.TrailLSTM(shape, mean, scale).eval(), large / "lstm.onnx")
    slower, mine_ms, other_ms = latency.ratio(large, small, rounds=15)
    assert slower > 1.5
    assert slower == pytest.approx(mine_ms / other_ms)
    assert latency.ratio(small, large, rounds=15)[0] < 1 / 1.5


def test_boosting_takes_its_time_too(tmp_path):
    stacked = small_bundle(tmp_path / "bundle")
    alone = shutil.copytree(stacked, tmp_path / "alone")
    (alone / "stack.json").unlink()
    assert latency.ratio(stacked, alone, rounds=15)[0] > 1


def test_nothing_is_unpickled_while_it_is_forbidden():
    packed = bytes(ForkingPickler.dumps(Path("a")))
    assert ForkingPickler.loads(packed) == Path("a")
    with no_unpickling(), pytest.raises(BundleError, match=r"unpickles pathlib\."):
        ForkingPickler.loads(packed)
    assert ForkingPickler.loads(packed) == Path("a")


def block_of(rows: list[tuple[int, int, float, float]]) -> Block:
    """Scans as (lot, truth of `jump`, score of both models); a trail each."""
    n = len(rows)
    lot, truth, mine, other = (np.array(column) for column in zip(*rows, strict=True))
    target = np.zeros((n, 5), np.int8)
    target[:, 4] = truth
    scores = {}
    for name, column in (("challenger", mine), ("champion", other)):
        scores[name] = np.zeros((n, 5), np.float32)
        scores[name][:, 4] = column
    none, number = np.full(n, -1), np.arange(n)
    no = np.zeros(n, bool)
    return Block(
        name="injected",
        target=target,
        scores=scores,
        lot=lot.astype(np.int64),
        trail=number,
        position=np.ones(n, np.int64),
        pace=np.ones(n, np.float32),
        time_us=number,
        op=none.astype(np.int8),
        anomaly=none.astype(np.int8),
        subtype=none.astype(np.int16),
        grade=none.astype(np.int8),
        control=no,
        cause=no,
        evidence=no,
    )


_score = st.sampled_from([0.0, 10.0, 49.99, 50.0, 75.0, 100.0])
_rows = st.lists(
    st.tuples(st.integers(1, 4), st.sampled_from([0, 0, 1, -1]), _score, _score),
    min_size=1,
    max_size=40,
)
_PROJECT = Settings.read(params.load(Path(__file__).parents[2] / "params.yaml"))
_SETTINGS = replace(_PROJECT, bootstrap=50)


@given(_rows)
def test_cost_weighted_f_beta_is_f_beta_where_one_type_occurs(rows):
    block = block_of(rows)
    found = paired.figures(block, _SETTINGS)["challenger"]
    counts = count(block.scores["challenger"][:, 4] >= FLAG, block.target[:, 4])
    wanted = counts.f_beta(_SETTINGS.measures.betas["jump"])
    assert found.f_beta["jump"] == pytest.approx(wanted, nan_ok=True)
    assert found.f_beta["all"] == pytest.approx(wanted, nan_ok=True)


@given(_rows)
def test_gains_are_antisymmetric_and_none_against_oneself(rows):
    found = paired.figures(block_of(rows), _SETTINGS)
    mine, other = found["challenger"], found["champion"]
    there, back = paired.gains(mine, other), paired.gains(other, mine)
    for by_type, reverse in ((there.ap, back.ap), (there.f_beta, back.f_beta)):
        for kind in ("all", *ANOMALIES):
            assert by_type[kind].mid == pytest.approx(-reverse[kind].mid, nan_ok=True)
            assert by_type[kind].low == pytest.approx(-reverse[kind].high, nan_ok=True, abs=1e-6)
    alone = paired.gains(mine, mine)
    assert {alone.f_beta["all"].low, alone.f_beta["all"].high} <= {0.0} or np.isnan(
        alone.f_beta["all"].low
    )


@pytest.mark.parametrize(
    "change", [{"fpr_bound": 0}, {"margins": {"map": -0.1, "f_beta": 0}}, {"least_lots": 0}]
)
def test_settings_out_of_range_are_refused(tmp_path, change):
    write_params(tmp_path, **change)
    with pytest.raises(ValueError, match="write"):
        Settings.read(params.load(tmp_path / "params.yaml"))


def test_settings_of_the_project_are_sound():
    assert 0 < _PROJECT.map_margin <= 0.05 and 0 < _PROJECT.f_beta_margin <= 0.05
    assert all(0 < floor < 1 for floor in _PROJECT.floors.values())
