"""The pin of the data holds on a fresh clone, where DVC's cache has nothing yet."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from pipelines import data


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose data.dvc is committed; the data are there, the cache is empty."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "scans.csv").write_text("a,b\n1,2\n")
    _git("init", "--quiet")
    data.dvc("init", "--quiet")
    data.dvc("config", "core.autostage", "true")
    data.confirm()
    _git("add", "--all")
    _git("-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "--quiet", "-m", "Pin")
    shutil.rmtree(tmp_path / ".dvc" / "cache")
    return tmp_path


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], check=True, capture_output=True, text=True).stdout


def test_data_made_on_a_fresh_clone_are_confirmed_and_kept(clone: Path, capsys):
    data.confirm()
    assert "data/ is what data.dvc pins" in capsys.readouterr().out
    assert any(path.is_file() for path in (clone / ".dvc" / "cache").rglob("*"))
    data.confirm()
    assert _git("status", "--porcelain") == ""


@pytest.mark.parametrize("cached", [False, True])
def test_other_data_are_refused_and_the_pin_stays(clone: Path, cached: bool):
    if cached:
        data.confirm()
    (clone / "data" / "scans.csv").write_text("a,b\n1,3\n")
    with pytest.raises(data.DataError, match="make data"):
        data.confirm()
    assert _git("status", "--porcelain") == ""
