"""Around a promotion: drift, a run, another champion in a real registry, a new reference."""

from __future__ import annotations

import os
from pathlib import Path

from models.bundle import seal
from monitoring.policy import Level, Phase
from monitoring.store import Store, open_store
from tests.models.small_bundles import in_store, move
from tests.monitoring.airflow_stand_in import StandIn, running
from tests.monitoring.processes import end, monitored, settled
from tests.monitoring.watched import A_DAY, DIGEST, reference

REGISTER = """
import sys
from models.registry import client
store = client()
store.create_registered_model("trailwatch")
experiment = store.create_experiment("e")
for number, folder in enumerate(sys.argv[1:], 1):
    run = store.create_run(experiment)
    store.log_artifacts(run.info.run_id, folder, "model/artifacts/bundle")
    source = f"{run.info.artifact_uri}/model"
    store.create_model_version("trailwatch", source, run.info.run_id)
store.set_registered_model_alias("trailwatch", "champion", "1")
"""
FULL = bool(os.environ.get("TRAILWATCH_FULL"))


def bundles(home: Path) -> dict[str, str]:
    """Two bundles that hold a reference and nothing else, as versions 1 (the champion) and 2."""
    folders = []
    for version, seed in (("1", 1), ("2", 9)):
        folder = home / "bundles" / version / "bundle"
        folder.mkdir(parents=True)
        reference(seed=seed).save(folder)
        DIGEST[version] = seal(folder)
        folders.append(folder)
    in_store(home, REGISTER, *map(str, folders))
    return {version: reference(seed=seed).id for version, seed in (("1", 1), ("2", 9))}


def test_after_a_promotion_the_new_champion_is_watched(tmp_path: Path):
    home = tmp_path / "home"
    report = "on" if FULL else "off"
    more = {"BUNDLE": "", "MODEL": "trailwatch", "POLL_S": "0.5", "DRIFT_REPORT": report}
    with running(StandIn()) as airflow, monitored(home, airflow.url, **more) as one:
        of = bundles(home)
        one.environment.pop("MLFLOW_TRACKING_URI", None)
        one.site.days(8, version="1")
        one.site.days(4, shift=1.0, version="1")
        monitor = one.start()
        one.until(monitor, settled)
        run = "drift__trailwatch__v1__e1"
        assert list(airflow.runs) == [run]
        assert airflow.runs[run]["conf"]["champion"] == "1"
        if FULL:
            one.until(monitor, lambda s: s.reports()[0].link != "", patience_s=600)

        airflow.runs[run]["state"] = "running"
        one.until(monitor, lambda s: s.monitor().policy.phase == Phase.TRAINING)
        airflow.runs[run]["state"] = "success"
        move(home, "trailwatch", champion="2")
        one.until(monitor, lambda s: s.monitor().policy.version == "2")
        one.until(monitor, lambda s: s.monitor().policy.phase == Phase.COOLDOWN)
        one.until(monitor, lambda s: s.monitor().reference.get("id") == of["2"])

        one.site.days(1, version="1", shift=1.0)  # the service has not swapped yet
        one.site.days(9, version="2")

        def green(store: Store) -> bool:
            # All is read, and evaluated since: ten days of the scans have passed.
            state = store.monitor()
            policy = state.policy
            if state.offset < 22 * A_DAY or policy.phase != Phase.IDLE:
                return False
            return policy.level == Level.OK

        one.until(monitor, green)
        assert end(monitor) == 0
        store = open_store(one.state, "trailwatch")
        closed = store.history(9, kinds=("closed",))
        assert [event.facts for event in closed] == [{"episode": 1, "outcome": "promoted"}]
        assert len(store.requests()) == 1
        store.close()
