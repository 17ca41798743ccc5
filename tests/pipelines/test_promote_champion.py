"""Promotion on what the real stages made, and against a champion of another feature version."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from models import registry
from pipelines import promote, register
from tests.behaviour.champions import ROOMS, ROOT
from tests.models.small_bundles import REGISTER, environment, small_bundle
from tests.pipelines.promoted import MODEL, variant, write_holdout, write_params
from tests.serving.champion import small_champion
from trail.scan import ANOMALIES

REAL = "trailwatch"
RESEAL = """
import sys
from pathlib import Path
from models import bundle
bundle.seal(Path(sys.argv[1]))
"""


def stand_in(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process stand in a project folder and ask its store."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")
    monkeypatch.setenv("TRAILWATCH_HOME", str(home))
    monkeypatch.delenv("TRAILWATCH_LEDGER", raising=False)
    monkeypatch.chdir(home)


def decide(*words: str) -> dict:
    assert promote.main(["--by", "ann", *words]) == 0
    return json.loads(Path("promotion.json").read_text())


def test_what_the_stages_made_is_judged_and_refused_by_its_floors(tmp_path, monkeypatch):
    """As good as the champion, which is the small one of the service's tests; not good enough."""
    trained = small_champion()
    shutil.copy(trained.home / "mlflow.db", tmp_path)
    (tmp_path / "work").symlink_to(trained.home / "work")
    write_params(tmp_path, least_lots=5, floors=dict.fromkeys(ANOMALIES, 0.9999))
    again = variant(trained.home / "work" / "bundle", tmp_path / "again" / "bundle", note="again")
    stand_in(tmp_path, monkeypatch)
    version = register.register(REAL, again, Path("no metrics"))
    decision = decide("--model", REAL)
    assert decision["outcome"] == "refused"
    floors = {name for name in decision["refused_by"] if name.startswith("floor.")}
    assert len(floors) >= 2
    assert not {"loads", "lots", "map", "f_beta"} & set(decision["refused_by"])
    assert decision["holdout"]["scans"] > 10_000
    assert min(decision["holdout"]["anomalous_scans"].values()) > 0
    assert registry.alias(registry.client(), REAL, registry.CHAMPION) != version


def other_features(tree: Path, folder: Path) -> None:
    """A project that computes features of another version, and a bundle for it."""
    for room in ROOMS:
        shutil.copytree(
            ROOT / room, tree / room, ignore=shutil.ignore_patterns("__pycache__", "weights")
        )
    source = tree / "trail" / "features.py"
    text, changed = re.subn(r"(?m)^(VERSION: Final = )(\d+)", r"\g<1>9\g<2>", source.read_text())
    assert changed == 1
    source.write_text(text)
    run_in(tree, tree, RESEAL, folder)


def run_in(home: Path, tree: Path, code: str, *words: object) -> None:
    """Run code of a project tree that asks the store of `home`."""
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, words)],
        cwd=home,
        env={**environment(home), "PYTHONPATH": str(tree)},
        check=True,
    )


def test_a_champion_of_other_features_is_asked_through_its_own_code(tmp_path, monkeypatch):
    good = small_bundle(tmp_path / "good" / "bundle")
    old = shutil.copytree(good, tmp_path / "old" / "bundle")
    other_features(tmp_path / "tree", old)
    home = tmp_path / "home"
    home.mkdir()
    write_params(home)
    run_in(home, tmp_path / "tree", REGISTER, MODEL, old)
    write_holdout(home / "work" / "labelled" / "test.parquet")
    stand_in(home, monkeypatch)
    store = registry.client()
    # The stage register would make the first usable version champion by itself.
    equal = register.register(MODEL, good, Path("no metrics"))
    store.set_registered_model_alias(MODEL, registry.CHAMPION, "1")
    decision = decide("--version", equal)
    assert decision["champion"]["version"] == "1"
    assert decision["champion"]["figures"] == decision["challenger"]["figures"]
    [gain] = [one for one in decision["gates"] if one["name"] == "map"]
    assert gain["verdict"] == "passed" and gain["figure"] == 0
    assert decision["outcome"] == "promoted"
    # No service of this program could follow back.
    assert promote.main(["--rollback"]) == 2
    assert registry.alias(store, MODEL, registry.CHAMPION) == equal
