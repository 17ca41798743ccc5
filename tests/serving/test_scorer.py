"""The core against the pipeline, against repeats, and without its stores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from intake.master import read_sites
from logbook import Kind
from logbook.opened import open_log
from serving.history import HistoryError, SiteEntry
from serving.history.opened import open_history
from serving.judge import Judge, Panel
from serving.replay import ReplayError, replay
from serving.rows import Rows
from serving.scorer import NO_HISTORY, Answer, Ask, Judged, Scorer
from serving.settings import Settings
from tests.behaviour.champions import Champion
from tests.serving.held_out import held_out_scans, pipelines_features
from trail.scan import Scans


class Watched(Scorer):
    """A scorer that shows what it last judged."""

    last: Judged

    def judged(self, recall, model, by="model", parts=None):
        self.last = super().judged(recall, model, by, parts)
        return self.last


@pytest.fixture(scope="module")
def held_out(champion: Champion) -> Scans:
    return held_out_scans(champion)


@pytest.fixture
def scorer(tmp_path: Path, bundle_folder: Path) -> Iterator[Watched]:
    yield from opened(tmp_path, bundle_folder)


def opened(folder: Path, bundle_folder: Path, **more: object) -> Iterator[Watched]:
    settings = Settings(home=folder, bundle=str(bundle_folder), **more)
    history = open_history("memory:", keep_days_after_sale=90, keep_days_idle=400)
    log = open_log(settings.log_url)
    judge = Judge(settings)
    judge.start()
    scorer = Watched(settings, history, log, judge)
    yield scorer
    judge.stop()
    log.close()
    history.close()


def rows_of(scorer: Watched, scans: Scans, at: np.ndarray, bundle_folder: Path) -> Rows:
    ids = read_sites(bundle_folder / "sites.csv").ids
    text = scans.codes.text
    return Rows(
        epc=[text[int(i)].as_py() for i in scans.epc[at]],
        location=[ids[i] for i in scans.site[at].tolist()],
        op=scans.op[at],
        time_us=scans.time_us[at],
        event_id=scans.row[at] + 1,
        file_id=np.full(len(at), 1),
        place=np.arange(len(at)),
    )


def pipeline(scorer: Watched, scans: Scans, bundle_folder: Path) -> np.ndarray:
    """Features of the scans by the pipeline's own call, in their order."""
    model = scorer._judge.panel().champion
    assert model is not None
    return pipelines_features(model, scans, read_sites(bundle_folder / "sites.csv"))


def test_in_order_whole_timestamps_give_the_pipelines_features(
    scorer: Watched, held_out: Scans, bundle_folder: Path
) -> None:
    asked = np.argsort(held_out.time_us, kind="stable")
    _, heads = np.unique(held_out.time_us[asked], return_index=True)
    offline = None
    seen = np.zeros(len(held_out), bool)
    for group in np.array_split(heads[1:], len(heads) // 25):
        stop = int(group[-1]) if group[-1] != heads[-1] else len(asked)
        at = asked[:stop][~seen[asked[:stop]]]
        seen[at] = True
        answer = scorer.score(rows_of(scorer, held_out, at, bundle_folder), "/score")
        if offline is None:
            offline = pipeline(scorer, held_out, bundle_folder)
        recall_place = scorer.last.place
        mine = scorer.last.scans
        key = {
            (str(mine.codes.text[int(e)]), int(t), int(o), int(s)): i
            for i, (e, t, o, s) in enumerate(
                zip(mine.epc, mine.time_us, mine.op, mine.site, strict=True)
            )
        }
        assert len(recall_place) == len(mine)
        got = [
            key[
                str(held_out.codes.text[int(held_out.epc[i])]),
                int(held_out.time_us[i]),
                int(held_out.op[i]),
                int(held_out.site[i]),
            ]
            for i in at
        ]
        np.testing.assert_array_equal(scorer.last.features[got], offline[at])
        assert not answer.degraded
    assert seen.all()


def test_shuffled_and_repeated_scans_end_with_the_pipelines_features(
    scorer: Watched, held_out: Scans, bundle_folder: Path
) -> None:
    rng = np.random.default_rng(3)
    asked = rng.permutation(len(held_out))
    asked = np.concatenate([asked, rng.choice(asked, len(asked) // 50)])
    for at in np.array_split(asked, len(asked) // 300):
        scorer.score(rows_of(scorer, held_out, at, bundle_folder), "/score")
    offline = pipeline(scorer, held_out, bundle_folder)
    for code in np.unique(held_out.epc)[::20]:
        text = held_out.codes.text[int(code)].as_py()
        found = scorer.now(text)
        assert found is not None
        _, judged = found
        mine = np.flatnonzero(held_out.epc == code)
        mine = mine[np.lexsort((held_out.site[mine], held_out.op[mine], held_out.time_us[mine]))]
        np.testing.assert_array_equal(judged.features, offline[mine])


def test_a_request_sent_again_gets_the_same_answer_and_changes_nothing(
    scorer: Watched, held_out: Scans, bundle_folder: Path
) -> None:
    rows = rows_of(scorer, held_out, np.arange(60), bundle_folder)
    first = scorer.score(rows, "/score")
    figures = scorer._log.figures()
    scorer.score(rows_of(scorer, held_out, np.arange(60, 900), bundle_folder), "/score")
    again = scorer.score(rows, "/score")
    assert again.receipt == first.receipt
    np.testing.assert_array_equal(again.score, first.score)
    assert again.evidence == first.evidence
    assert again.repeated.all() and not first.repeated.any()
    assert figures["scans"] == 60
    assert scorer._log.figures()["scans"] == 900


def asks_of_lots(scorer: Watched, scans: Scans, bundle_folder: Path) -> tuple[list[Ask], list[Ask]]:
    """Requests of two callers that share no lot: the first halves of what they scan, the second."""
    lots = np.unique(scans.lot)
    assert len(lots) >= 2
    caller = np.searchsorted(lots, scans.lot) % 2
    order = np.argsort(scans.time_us, kind="stable")
    halves: tuple[list[Ask], list[Ask]] = [], []
    for k in range(2):
        for half, at in zip(halves, np.array_split(order[caller[order] == k], 2), strict=True):
            half.append(Ask(rows_of(scorer, scans, at, bundle_folder), "/score"))
    return halves


def test_requests_without_a_common_lot_are_answered_together_as_they_are_alone(
    scorer: Watched, held_out: Scans, bundle_folder: Path, tmp_path: Path
) -> None:
    halves = asks_of_lots(scorer, held_out, bundle_folder)
    receipts, flags = [], 0
    for apart in opened(tmp_path / "apart", bundle_folder):
        for asks in halves:
            for ask, mine in zip(asks, scorer.score_some(asks), strict=True):
                alone = apart.score(ask.rows, ask.route)
                assert isinstance(mine, Answer)
                for name in ("score", "flag", "model", "rules", "repeated"):
                    np.testing.assert_array_equal(getattr(mine, name), getattr(alone, name))
                for name in ("source", "confidence", "evidence", "version"):
                    assert getattr(mine, name) == getattr(alone, name)
                receipts.append((mine.receipt, len(ask.rows)))
                flags += int(mine.flag.sum())
        assert scorer._log.figures() == apart._log.figures()
    assert flags
    for receipt, n in receipts:
        found = replay(receipt, scorer._settings, scorer._history, scorer._log)
        assert (found.scans, found.same, found.changed) == (n, n, [])


def test_requests_with_a_common_lot_or_another_judge_wait_for_the_first(
    scorer: Watched, held_out: Scans, bundle_folder: Path
) -> None:
    (one, other), (one_later, _) = asks_of_lots(scorer, held_out, bundle_folder)
    by_rules = replace(other, by="rules")
    first, waits, ruled, same = scorer.score_some([one, one_later, by_rules, one])
    assert isinstance(first, Answer) and (waits, ruled, same) == (None, None, None)
    again, later = scorer.score_some([one, other])
    assert isinstance(again, Answer) and again.receipt == first.receipt
    assert isinstance(later, Answer) and not later.repeated.any()


def test_without_history_requests_together_are_each_judged_by_what_they_hold(
    scorer: Watched, held_out: Scans, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise HistoryError("away")

    asks, _ = asks_of_lots(scorer, held_out, bundle_folder)
    with monkeypatch.context() as patch:
        patch.setattr(scorer._history, "remember", away)
        answers = scorer.score_some(asks)
    for ask, answer in zip(asks, answers, strict=True):
        assert isinstance(answer, Answer) and answer.degraded
        assert set(answer.source) == {NO_HISTORY} and len(answer.source) == len(ask.rows)
    assert scorer._log.figures()["waiting"] == sum(len(ask.rows) for ask in asks)


def test_what_is_wrong_with_a_request_does_not_refuse_those_beside_it(
    scorer: Watched, held_out: Scans, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks, _ = asks_of_lots(scorer, held_out, bundle_folder)
    scored = scorer._scored

    def broken(group: list[Ask]) -> list[Answer]:
        if any(ask is asks[1] for ask in group):
            raise RuntimeError("it cannot be scored")
        return scored(group)

    monkeypatch.setattr(scorer, "_scored", broken)
    first, second = scorer.score_some(asks)
    assert isinstance(first, Answer) and isinstance(second, RuntimeError)
    assert scorer._log.figures()["scans"] == len(asks[0].rows)


def test_a_swap_is_revised_when_later_evidence_contradicts(
    scorer: Watched, held_out: Scans, bundle_folder: Path
) -> None:
    rng = np.random.default_rng(5)
    for at in np.array_split(rng.permutation(len(held_out)), 40):
        scorer.score(rows_of(scorer, held_out, at, bundle_folder), "/score")
    revised = scorer._log.figures()["verdicts"]["revised"]
    assert revised > 0
    records = [r for r in scorer._log.since(0, 10_000) if len(r.verdicts) > 1]
    assert records
    assert all(r.verdicts[-1][2].kind == Kind.REVISED for r in records)
    assert any(r.given.score != r.latest.score for r in records)


def test_without_history_the_rules_answer_and_the_store_learns_later(
    scorer: Watched, held_out: Scans, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(scorer, held_out, np.arange(80), bundle_folder)
    scorer.score(rows_of(scorer, held_out, np.arange(80, 120), bundle_folder), "/score")

    def away(*_: object) -> None:
        raise HistoryError("the store is away")

    with monkeypatch.context() as patch:
        patch.setattr(scorer._history, "remember", away)
        answer = scorer.score(rows, "/score")
        with pytest.raises(HistoryError):
            scorer.catch_up()
    assert answer.degraded
    assert set(answer.source) == {NO_HISTORY}
    assert scorer._log.figures()["waiting"] == 80
    assert scorer.catch_up() == 80
    assert scorer._log.figures()["waiting"] == 0
    assert scorer.catch_up() == 0
    found = scorer.now(rows.epc[0])
    assert found is not None and len(found[0].scans) >= 1
    again = scorer.score(rows, "/score")
    assert again.repeated.all() and not again.degraded
    np.testing.assert_array_equal(again.score, answer.score)


def test_a_crash_between_history_and_log_is_made_good(
    scorer: Watched, held_out: Scans, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(scorer, held_out, np.arange(50), bundle_folder)

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(scorer._log, "append_all", die)
        with pytest.raises(Killed):
            scorer.score(rows, "/score")
    assert scorer._log.figures()["scans"] == 0
    answer = scorer.score(rows, "/score")
    assert not answer.repeated.any()
    assert scorer._log.figures()["scans"] == 50


def test_a_challenger_judges_its_share_in_silence_or_for_real(
    scorer: Watched, held_out: Scans, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    champion = scorer._judge.panel().champion
    assert champion is not None
    from dataclasses import replace

    rival = replace(champion, version="rival")
    for mode, at in (("shadow", np.arange(200)), ("ab", np.arange(200, 400))):
        monkeypatch.setattr(
            scorer._judge, "panel", lambda mode=mode: Panel(champion, rival, mode, 0.5)
        )
        rows = rows_of(scorer, held_out, at, bundle_folder)
        answer = scorer.score(rows, "/score")
        theirs = scorer._judge.panel().challenged(rows.epc)
        assert 0 < theirs.sum() < len(theirs)
        if mode == "shadow":
            assert set(answer.version) == {"bundle"}
            assert scorer._log.figures()["verdicts"]["shadow"] == theirs.sum()
        else:
            assert [v == "rival" for v in answer.version] == theirs.tolist()


def test_rules_and_svm_answer_by_themselves(
    scorer: Watched, held_out: Scans, bundle_folder: Path
) -> None:
    by_rules = scorer.score(
        rows_of(scorer, held_out, np.arange(50), bundle_folder), "/rules", "rules"
    )
    np.testing.assert_array_equal(by_rules.score, by_rules.rules)
    assert set(by_rules.version) == {""}
    by_svm = scorer.score(
        rows_of(scorer, held_out, np.arange(50, 100), bundle_folder), "/svm", "svm"
    )
    assert set(by_svm.version) == {"bundle"}
    assert (by_svm.model > 0).any()


def test_an_unknown_site_and_a_malformed_code_are_answers(
    scorer: Watched, held_out: Scans, bundle_folder: Path
) -> None:
    rows = rows_of(scorer, held_out, np.arange(2), bundle_folder)
    strange = Rows(
        ["no code at all", rows.epc[1]], ["mars", "mars"], *(
            getattr(rows, name) for name in ("op", "time_us", "event_id", "file_id", "place")
        )
    )  # fmt: skip
    answer = scorer.score(strange, "/score")
    assert answer.flag[0, 0] and "header.company" in answer.evidence[0]
    assert not answer.flag[1, 0]


def test_a_receipt_is_reproduced_bit_for_bit_also_after_later_scans(
    scorer: Watched, held_out: Scans, bundle_folder: Path
) -> None:
    order = np.argsort(held_out.time_us, kind="stable")
    receipts = [
        scorer.score(rows_of(scorer, held_out, at, bundle_folder), "/score").receipt
        for at in np.array_split(order[:1500], 15)
    ]
    for receipt in (receipts[3], receipts[9], receipts[14]):
        found = replay(receipt, scorer._settings, scorer._history, scorer._log)
        assert (found.scans, found.same, found.changed) == (100, 100, [])


def test_a_replay_says_what_is_missing_or_has_changed(
    scorer: Watched, held_out: Scans, bundle_folder: Path, tmp_path: Path
) -> None:
    rows = rows_of(scorer, held_out, np.arange(40), bundle_folder)
    receipt = scorer.score(rows, "/score").receipt
    with pytest.raises(ReplayError, match="not in the log"):
        replay("nothing", scorer._settings, scorer._history, scorer._log)
    elsewhere = Settings(home=tmp_path / "other")
    with pytest.raises(ReplayError, match="not at hand"):
        replay(receipt, elsewhere, scorer._history, scorer._log)
    scorer.add_site(SiteEntry(rows.location[0], "moved", 0, 10.0, 10.0, True))
    found = replay(receipt, scorer._settings, scorer._history, scorer._log)
    assert found.changed == ["the site book (sites were added or corrected)"]
