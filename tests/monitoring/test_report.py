"""The report: a page and plots of an episode, made in a process of its own, attached to its run."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from logbook.opened import open_log
from monitoring import policy as p
from monitoring.policy import DAY, Reading
from monitoring.reference import Reference
from monitoring.report import MOST_SCANS, PAGE, Recent, Reporter, _expected, make, recent
from monitoring.store import Lease, Store, open_store
from tests.monitoring.watched import A_DAY, DIGEST, Clock, Site, reference, through, watching

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_store(f"sqlite:{tmp_path / 'drift.db'}", "trailwatch", create=True)
    yield store
    store.close()


@pytest.fixture
def lease(store: Store) -> Lease:
    lease = store.lease("a", 600)
    assert lease is not None
    with store.change(lease) as step:
        step.apply(p.champion(step.monitor.policy, "7", DAY))
        step.apply(p.evaluated(step.monitor.policy, Reading(2 * DAY, "7", {"gap_h": 2.0}, {})))
    return lease


def worked(reporter: Reporter, lease: Lease, clock: Clock) -> None:
    """Until the child has ended and was looked at."""
    reporter.work(lease)
    end = time.monotonic() + 30
    while reporter._child is not None:
        assert time.monotonic() < end
        time.sleep(0.02)
        reporter.work(lease)


def test_a_report_is_made_once_and_linked(store: Store, lease: Lease):
    clock = Clock()
    command = [sys.executable, "-c", "print('noise'); print('runs:/abc/report.html')"]
    reporter = Reporter(store, lambda episode: command, clock)
    worked(reporter, lease, clock)
    [report] = store.reports()
    assert (report.episode, report.link, report.error) == (1, "runs:/abc/report.html", "")
    reporter.work(lease)
    assert reporter._child is None


def test_a_report_that_fails_is_tried_again_ever_later_and_then_left(store: Store, lease: Lease):
    clock, began = Clock(), []
    command = [sys.executable, "-c", "import sys; sys.exit('no space')"]

    def failing(episode: int) -> list[str]:
        began.append(clock.now)
        return command

    reporter = Reporter(store, failing, clock)
    for _ in range(200):
        worked(reporter, lease, clock)
        clock.now += 30
    [report] = store.reports()
    assert (report.link, report.error, report.tries) == ("", "no space", 5)
    gaps = np.diff(began)
    assert len(began) == 5
    assert (gaps[1:] > gaps[:-1]).all()


def test_a_child_that_hangs_is_ended(store: Store, lease: Lease):
    clock = Clock()
    sleeping = [sys.executable, "-c", "import time; time.sleep(600)"]
    reporter = Reporter(store, lambda episode: sleeping, clock)
    reporter.work(lease)
    child = reporter._child
    clock.now += 1000
    reporter.work(lease)
    assert child.poll() is not None
    assert store.reports()[0].tries == 1
    reporter.close()


def test_the_scans_of_the_longest_window_are_read_back(tmp_path: Path, store: Store):
    log = open_log(f"sqlite:{tmp_path / 'log.db'}")
    bundle = tmp_path / "7"
    bundle.mkdir()
    reference().save(bundle)
    clock, site = Clock(), Site(log)
    site.days(8)
    site.days(1, version="8")
    site.days(4, shift=1.5)
    through(watching(log, store, bundle, clock), clock)
    monitor = store.monitor()
    assert monitor.digest == DIGEST["7"]
    scans = recent(log, monitor, 2)
    assert 5 * A_DAY < len(scans.columns) <= 7 * A_DAY  # a day was version 8, and the clock lags
    assert len(scans.columns) == len(scans.time_us) == len(scans.location) <= MOST_SCANS
    assert abs(np.median(scans.columns[-A_DAY:, 0]) - 11.5) < 0.2
    log.close()


def told(name: str, kind: str, score: float, window: str = "3d") -> dict[str, object]:
    return {
        "type": kind,
        "score": score,
        "d": 0.15 * score,
        "threshold": 0.15,
        "window": window,
        "n": 900,
        "p_value_iid": 0.0,
    }


def test_page_and_plots_of_the_columns_in_alarm(tmp_path: Path):
    of: Reference = reference()
    random = np.random.default_rng(4)
    columns = np.column_stack([random.normal(12, 1, 900), random.integers(2, 7, 900)])
    columns = columns.astype(np.float32)
    columns[:50, 0] = np.nan
    scans = Recent(columns, np.arange(900) * (DAY // 300), ["F1"] * 900)
    evaluation = {
        "features": {
            "gap_h": told("gap_h", "numeric", 4.0),
            "op": told("op", "categorical", 2.0, "500"),
            "location": told("location", "categorical", 3.0),
        }
    }
    page, *plots = make(tmp_path / "out", of, scans, evaluation, "trailwatch 7, episode 1")
    assert page.name == PAGE
    text = page.read_text()
    assert "<html" in text and "gap_h" in text
    assert "<b>trailwatch 7, episode 1</b>" in text and "decides nothing" in text
    assert [plot.name for plot in plots] == ["gap_h.png", "op.png"]
    for plot in plots:
        assert plot.read_bytes().startswith(PNG)


def test_a_plot_shows_what_the_reference_saw_at_the_windows_sites():
    of = reference()
    ends, here = _expected(of, "gap_h", ["F1"] * 10)
    again, everywhere = _expected(of, "gap_h", ["never seen"])
    np.testing.assert_array_equal(ends, again)
    np.testing.assert_array_equal(everywhere, of.cell_shares("gap_h")[1])
    row = int(of.stratum[of.level[of.sites.index("F1")]])
    cells = of.cells[row, 0] / of.cells[row, 0].sum()
    np.testing.assert_allclose(here, [*cells[: len(ends) + 1], cells[-1]], atol=1e-6)
    assert abs(here - everywhere).max() > 1e-3


def test_a_column_without_values_is_left_out_of_the_page(tmp_path: Path):
    of: Reference = reference()
    columns = np.full((300, 2), np.nan, np.float32)
    columns[:, 1] = 1
    scans = Recent(columns, np.arange(300, dtype=np.int64), ["F1"] * 300)
    evaluation = {"features": {"gap_h": told("gap_h", "numeric", 4.0)}}
    page, plot = make(tmp_path / "out", of, scans, evaluation, "trailwatch 7, episode 1")
    assert page.stat().st_size > 1000
    assert plot.read_bytes().startswith(PNG)


def test_it_is_attached_to_the_run_of_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import mlflow

    from models.registry import client
    from monitoring.report import attached

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    registry = client()
    experiment = mlflow.create_experiment("e", artifact_location=str(tmp_path / "artifacts"))
    run = registry.create_run(experiment)
    registry.create_registered_model("trailwatch")
    version = registry.create_model_version("trailwatch", "nowhere", run.info.run_id)
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / PAGE).write_text("<html></html>")
    link = attached("trailwatch", str(version.version), folder, 3)
    assert link == f"runs:/{run.info.run_id}/drift/e3/{PAGE}"
    assert [f.path for f in registry.list_artifacts(run.info.run_id, "drift/e3")] == [
        f"drift/e3/{PAGE}"
    ]
