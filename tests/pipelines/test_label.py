"""The split, the injection, and the three kinds of label."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from intake.store import load_scans
from pipelines import label, verdicts
from pipelines.parts import BOXED, PARTS, STRETCHED, LabelSource
from tests.pipelines.small_world import LABEL, validated
from tests.trail.small import DAY, HONEST, SITES, code, scans_of
from trail.epc import parse
from trail.scan import ANOMALIES
from world.tampering import NAMES, SUBTYPES, tamper


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("label")


@pytest.fixture(scope="module")
def valid(folder):
    return validated(folder)


@pytest.fixture(scope="module")
def labelled(folder, valid):
    label.label(valid, folder / "labelled", LABEL)
    return {name: pq.read_table(folder / "labelled" / f"{name}.parquet") for name in PARTS}


def lots(table):
    codes = parse(table["epc_code"].combine_chunks().cast("string").unique())
    return set(codes.lot_key.tolist())


def test_no_lot_lies_in_two_parts(labelled):
    seen = [lots(labelled[name]) for name in PARTS]
    # A forged code of an unknown product is a lot of its own, and may be drawn in two parts.
    honest = [lots(t.filter(~t["is_synthetic"].to_numpy())) for t in labelled.values()]
    for i, one in enumerate(honest):
        for other in seen[i + 1 :]:
            assert not one & other


def test_each_part_ends_where_the_next_begins(labelled, folder):
    begins = json.loads((folder / "labelled" / "summary.json").read_text())["parts"]
    for name, following in pairwise(PARTS):
        newest = labelled[name]["event_time"].to_numpy()[~labelled[name]["is_synthetic"].to_numpy()]
        assert newest.max() <= np.datetime64(begins[following]["begins"]) + np.timedelta64(1, "D")


def test_injection_is_apart_in_each_part_and_says_what_it_is(labelled):
    for table in labelled.values():
        synthetic = table["is_synthetic"].to_numpy()
        assert 0 < synthetic.mean() < 0.5
        target = np.stack([table[f"target_{a}"].to_numpy() for a in ANOMALIES], axis=1)
        assert (target[~synthetic] == 0).all()
        for k in range(len(ANOMALIES)):
            assert (target[:, k] == 1).any()
        source = table["label_source"].to_numpy()
        assert (source[synthetic] == LabelSource.INJECTED).all()
        assert (source[~synthetic] == LabelSource.ASSUMED_HONEST).all()
        control = table["control"].to_numpy() & table["cause"].to_numpy()
        assert (target[control] != 1).all()
        assert (table["row"].to_numpy()[table["event_id"].to_numpy() < 0] >= 0).all()


def test_an_edge_that_the_lots_before_used_is_lawful(labelled):
    """A few lots do not use every edge; what goes over one that others used is no anomaly."""
    used, seen = set(), 0
    for table in labelled.values():
        at = table.select(["epc_code", "event_time", "location_id", "cause", "subtype"]).to_pandas()
        at["honest"] = ~table["is_synthetic"].to_numpy()
        at = at.sort_values(["epc_code", "event_time"], kind="stable")
        at["start"] = at.groupby("epc_code")["location_id"].shift()
        at = at[at["start"].notna() & (at["start"] != at["location_id"])]
        edges = pd.Series(list(zip(at["start"], at["location_id"], strict=True)), at.index)
        used |= set(edges[at["honest"]])
        astray = at[at["cause"] & (at["subtype"] == NAMES.index("loc_unused_edge"))]
        unused = edges[astray.groupby("epc_code").head(1).index]  # from there on it may go lawfully
        assert not used & set(unused)
        seen += len(unused)
    assert seen > 20


def test_more_of_the_training_lots_is_seen_boxed_and_mixed(labelled, folder):
    learned = set(np.unique(load_scans(folder / "labelled" / "train.parquet").scans.lot))
    for name in (STRETCHED, BOXED):
        path = folder / "labelled" / f"{name}.parquet"
        scans, table = load_scans(path).scans, pq.read_table(path)
        genuine = ~table["is_synthetic"].to_numpy()
        mine = set(np.unique(scans.lot[genuine]))
        assert mine < learned and len(mine) > 1
        assert (table["target_jump"].to_numpy() == 1).any()
        boxed = table["subtype"].to_numpy()
    single = [NAMES.index(s.name) for s in SUBTYPES if s.scope == "item"]
    assert not np.isin(boxed, single).any() and (boxed >= 0).any()


def test_shares_of_nothing_add_nothing(valid, tmp_path):
    settings = {**LABEL, "stretched": 0.0, "boxed": 0.0}
    label.label(valid, tmp_path / "labelled", settings)
    for name in (STRETCHED, BOXED):
        assert pq.read_metadata(tmp_path / "labelled" / f"{name}.parquet").num_rows == 0


def test_rows_are_numbered_once(labelled):
    rows = np.concatenate([table["row"].to_numpy() for table in labelled.values()])
    assert len(np.unique(rows)) == len(rows)


def test_weak_labels_stand_apart_from_the_truth(labelled):
    table = labelled["test"]
    rules = np.stack([table[f"rule_{a}"].to_numpy() for a in ANOMALIES], axis=1)
    target = np.stack([table[f"target_{a}"].to_numpy() for a in ANOMALIES], axis=1)
    assert rules.max() > 50
    assert ((rules >= 50) != (target == 1)).any()


def test_the_same_input_gives_the_same_bytes(folder, valid):
    label.label(valid, folder / "again", LABEL)
    for name in PARTS:
        one = (folder / "labelled" / f"{name}.parquet").read_bytes()
        assert one == (folder / "again" / f"{name}.parquet").read_bytes()


def test_a_left_out_subtype_is_missing_in_training_only(folder, valid):
    out = folder / "left_out"
    label.label(valid, out, {**LABEL, "leave_out": ["jump_minute", "order_swapped"]})
    names = [s.name for s in SUBTYPES]
    for name in ("train", "test"):
        column = pq.read_table(out / f"{name}.parquet")["subtype"].to_numpy()
        seen = {names[i] for i in column if i >= 0}
        assert ("jump_minute" in seen) == (name != "train")
        assert "dup_far_at_once" in seen


def test_an_unknown_subtype_is_refused(folder, valid):
    with pytest.raises(ValueError, match="no_such"):
        label.label(valid, folder / "bad", {**LABEL, "leave_out": ["no_such"]})


def test_too_few_lots_are_refused_with_a_way_out():
    scans = scans_of([(code(lot=i), HONEST) for i in range(1, 6)])
    with pytest.raises(ValueError, match="LEGS="):
        label.split(scans, LABEL["parts"])


def test_lots_that_were_all_commissioned_at_once_are_not_cut_in_time():
    scans = scans_of([(code(lot=i), HONEST) for i in range(1, 41)])
    parts, summary = label.split(scans, LABEL["parts"])
    assert summary["cut_in_time"] is False
    assert sum(len(part) for part in parts.values()) == len(scans)
    assert all(len(part) for part in parts.values())


def test_lots_in_a_row_are_cut_in_time():
    trails = [
        (code(lot=i), [(op, site, seconds + i * 5 * DAY) for op, site, seconds in HONEST])
        for i in range(1, 41)
    ]
    parts, summary = label.split(scans_of(trails), LABEL["parts"])
    assert summary["cut_in_time"] is True
    assert sum(len(p) for p in parts.values()) + summary["after_the_end_of_their_part"] == 400
    ends = [int(parts[name].time_us.max()) for name in PARTS]
    assert ends == sorted(ends)


def test_targets_follow_cause_and_evidence():
    scans = scans_of(
        [
            (code(lot=l, serial=s), [(o, p, t + l * 600) for o, p, t in HONEST])
            for l in range(1, 5)
            for s in range(1, 61)
        ]
    )
    done = tamper(scans, SITES, share=0.1, seed=1, subtypes=["order_swapped", "order_below_skew"])
    target = label.targets(done.scans, done.truth)
    for epc in np.unique(done.scans.epc[done.truth.subtype >= 0]):
        mine = np.flatnonzero(done.scans.epc == epc)
        cause, evidence = done.truth.cause[mine], done.truth.evidence[mine]
        control = done.truth.control[mine].any()
        assert (target[mine[cause], 3] == 1).any() != control
        if not control:
            known = done.scans.time_us[mine[evidence]][0]
            early = cause & (done.scans.time_us[mine] < known)
            assert (target[mine[early], 3] == -1).all()
            assert (target[mine[evidence], 3] == 1).all()


def test_analysts_override(folder, valid, labelled, tmp_path):
    table = labelled["test"]
    synthetic = table["is_synthetic"].to_numpy()
    right = int(table["event_id"].to_numpy()[~synthetic][5])
    target = table["target_jump"].to_numpy()
    wrong = np.flatnonzero((target == 1) & (table["event_id"].to_numpy() >= 0))[0]
    code_of, time = table["epc_code"][int(wrong)].as_py(), table["event_time"][int(wrong)].as_py()
    for name in ("scans.parquet", "sites.csv", "registry.csv"):
        (tmp_path / name).write_bytes((valid / name).read_bytes())
    (tmp_path / "verdicts.csv").write_text(
        "event_id,epc_code,event_time,anomaly,verdict,analyst,why\n"
        f"{right},,,locErr,right,Kim,seen elsewhere\n"
        f",{code_of},{time},jump,wrong,Kim,express lorry\n"
    )
    label.label(tmp_path, folder / "analyst", LABEL)
    after = pq.read_table(folder / "analyst" / "test.parquet")
    at = np.flatnonzero(after["event_id"].to_numpy() == right)[0]
    assert after["target_locErr"][int(at)].as_py() == 1
    assert after["target_jump"][int(wrong)].as_py() == 0
    source = after["label_source"].to_numpy()
    assert source[at] == source[wrong] == LabelSource.ANALYST


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("event_id,anomaly\n1,jump\n", "verdict"),
        ("event_id,anomaly,verdict\n1,leap,right\n", "'leap'"),
        ("event_id,anomaly,verdict\n1,jump,perhaps\n", "right or wrong"),
        ("anomaly,verdict\njump,right\n", "event_id"),
    ],
)
def test_bad_verdicts_name_the_value(tmp_path, text, words):
    (tmp_path / "verdicts.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        verdicts.read(tmp_path)
