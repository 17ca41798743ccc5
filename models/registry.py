"""The model registry: which bundle stands behind an alias, and where it is on this machine.

Pipelines ask it in their own process. A service must not: MLflow takes seconds and hundreds of
MiB to import. It runs `python -m models.registry watch` as a child instead, which polls the
aliases, brings new bundles into a cache folder and prints a line of JSON for each change (`watch`
lists them); the child ends when its standard input closes, so with its parent, however that ends.

`python -m models.registry fetch --model NAME` prints the folder and the version of the champion.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from models import bundle

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION: Final = "champion"
CHALLENGER: Final = "challenger"
DIGEST_TAG: Final = "bundle_digest"
PREVIOUS_TAG: Final = "previous_champion"
"""Tag of a registered model: the version that a rollback leads back to."""
DEFAULT_STORE: Final = "mlflow.db"
INSIDE: Final = "artifacts/bundle"
"""Where a registered model keeps its bundle."""
MOST_PATIENCE: Final = 360
"""Polls between two tries of a version that was refused, at most."""

_FRESH: Final = ".fresh-"
_LEFT_S: Final = 3600.0

Emit = Callable[[dict[str, Any]], object]


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a registered model.

    Attributes:
        number: its number, as text.
        digest: digest of its bundle as registered, "" where that was not noted.
    """

    number: str
    digest: str


def home() -> Path:
    """Folder of the local MLflow store: that of the checkout, also for runs in a workspace."""
    return Path(os.environ.get("TRAILWATCH_HOME", ".")).resolve()


def tracking_uri(local: Path | None = None) -> str:
    """`MLFLOW_TRACKING_URI`, else a SQLite file in the folder `local`, or beside the project."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(local or home()) / DEFAULT_STORE}"


def client() -> MlflowClient:
    """A client of the store; created with its tables where it does not exist."""
    # Alembic prints a line for each of some forty migrations of a new store.
    import logging

    logging.getLogger("alembic").setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow

    mlflow.set_tracking_uri(tracking_uri())
    return mlflow.MlflowClient()


def behind(store: MlflowClient, model: str, name: str) -> Version | None:
    """The version that an alias of a model points to, None where there is no such alias.

    Raises:
        MlflowException: the store cannot be asked.
    """
    return _asked(store.get_model_version_by_alias, model, name)


def find_version(store: MlflowClient, model: str, number: str) -> Version | None:
    """A version by its number, None where a model has no such version.

    Raises:
        MlflowException: the store cannot be asked.
    """
    return _asked(store.get_model_version, model, number)


def _asked(ask: Callable[[str, str], Any], model: str, name: str) -> Version | None:
    from mlflow.exceptions import MlflowException

    try:
        found = ask(model, name)
    except MlflowException as error:
        # An unknown model is one code, an unknown alias of a known model the other.
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    return Version(str(found.version), str(found.tags.get(DIGEST_TAG, "")))


def alias(store: MlflowClient, model: str, name: str) -> str | None:
    """Version that an alias of a model points to, or None."""
    found = behind(store, model, name)
    return found.number if found else None


def move_champion(store: MlflowClient, model: str, number: str, previous: str) -> None:
    """Point the champion's alias to a version, and note which one a rollback leads back to.

    MLflow asks nobody what the alias pointed to: only call it alone (`pipelines.promotion.moves`).
    """
    store.set_registered_model_alias(model, CHAMPION, number)
    if previous:
        store.set_registered_model_tag(model, PREVIOUS_TAG, previous)
    elif PREVIOUS_TAG in store.get_registered_model(model).tags:
        store.delete_registered_model_tag(model, PREVIOUS_TAG)


def fetch(store: MlflowClient, model: str, name: str = CHAMPION) -> tuple[Path, str] | None:
    """Local folder of the bundle behind an alias, and its version; None where there is none."""
    import mlflow

    version = alias(store, model, name)
    if version is None:
        return None
    at = mlflow.artifacts.download_artifacts(f"models:/{model}/{version}")
    return Path(at) / INSIDE, version


def cached(model: str, version: Version, cache: Path) -> tuple[Path, str]:
    """Folder and digest of a version's bundle in a cache, downloaded where it is not there.

    A folder in the cache is whole and never changes: it appears by one rename, under a name with
    its digest. Several processes may share a cache.

    Raises:
        BundleError: the bundle is not what was registered, or not for this program.
        MlflowException, OSError: it cannot be downloaded.
    """
    place = cache / f"{version.number}-{version.digest[:12]}"
    if version.digest and place.is_dir():
        try:
            return place, _confirm(place, version)
        except bundle.BundleError:
            with _scratch(cache) as aside:
                os.rename(place, aside / "changed")
    with _scratch(cache) as fresh:
        folder = _download(model, version, fresh)
        try:
            digest = _confirm(folder, version)
        except bundle.BundleError as error:
            # Where it lay for a moment helps nobody.
            said = str(error).replace(str(folder), f"of version {version.number}")
            raise bundle.BundleError(said) from error
        place = cache / f"{version.number}-{digest[:12]}"
        try:
            os.rename(folder, place)
        except OSError:
            _confirm(place, version)  # another process was quicker
    return place, digest


@contextmanager
def _scratch(cache: Path) -> Iterator[Path]:
    """A folder for work beside the cached ones; those that a killed process left are removed."""
    cache.mkdir(parents=True, exist_ok=True)
    for left in cache.glob(f"{_FRESH}*"):
        if time.time() - left.stat().st_mtime > _LEFT_S:
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=_FRESH) as folder:
        yield Path(folder)


def _download(model: str, version: Version, into: Path) -> Path:
    import mlflow

    uri = f"models:/{model}/{version.number}/{INSIDE}"
    return Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(into)))


def _confirm(folder: Path, version: Version) -> str:
    digest = bundle.verify(folder)
    if version.digest and digest != version.digest:
        raise bundle.BundleError(
            f"version {version.number} was registered with bundle {version.digest[:12]}, its files "
            f"are those of {digest[:12]}; register it again"
        )
    return digest


class Watch:
    """Looks at the aliases of a model, again and again, and tells what has changed."""

    def __init__(self, model: str, aliases: Sequence[str], cache: Path, emit: Emit) -> None:
        """Watch `aliases` of `model`; `emit` takes one change, see `watch`."""
        self._model = model
        self._aliases = tuple(aliases)
        self._cache = cache
        self._emit = emit
        self._told: dict[str, Version | None] = {}
        self._refused: dict[str, _Refused] = {}

    def look(self) -> None:
        """Look once at all aliases.

        Raises:
            Exception: the store cannot be asked, or a bundle not be downloaded.
        """
        store = _existing_store()
        for name in self._aliases:
            found = behind(store, self._model, name) if store is not None else None
            if name not in self._told or found != self._told[name]:
                self._tell(name, found)

    def _tell(self, name: str, found: Version | None) -> None:
        if found is None:
            self._emit({"event": "gone", "alias": name})
        else:
            refused = self._refused.get(name)
            if refused and refused.version == found and not refused.due():
                return
            try:
                folder, digest = cached(self._model, found, self._cache)
            except bundle.BundleError as error:
                tries = refused.tries + 1 if refused and refused.version == found else 0
                self._refused[name] = _Refused(found, tries, min(2**tries, MOST_PATIENCE))
                self._told.pop(name, None)  # so that a return to the last good one is told
                if not tries:
                    self._emit(
                        {
                            "event": "refused",
                            "alias": name,
                            "version": found.number,
                            "error": str(error),
                        }
                    )
                return
            self._emit(
                {
                    "event": "version",
                    "alias": name,
                    "version": found.number,
                    "digest": digest,
                    "folder": str(folder),
                }
            )
        self._refused.pop(name, None)
        self._told[name] = found


@dataclass(slots=True)
class _Refused:
    """A version whose files are wrong: they may be mended, so it is tried again, ever more rarely.

    Attributes:
        version: the version.
        tries: times that it was tried again.
        wait: polls until the next try.
    """

    version: Version
    tries: int
    wait: int

    def due(self) -> bool:
        self.wait -= 1
        return self.wait < 0


def _existing_store() -> MlflowClient | None:
    """The store; None for a SQLite file that is not there: looking must not make one."""
    uri = tracking_uri()
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return None
    return client()


def watch(
    model: str,
    aliases: Sequence[str],
    every_s: float,
    cache: Path,
    emit: Emit,
    rounds: int | None = None,
) -> None:
    """Watch aliases until the process ends, or for some rounds.

    Emits, as JSON objects with `event`:
        version: an `alias` points to another `version`; its bundle with `digest` is in `folder`.
        gone: nothing stands behind an `alias`.
        refused: a bundle must not be used, for `error`.
        error: the store could not be asked, for `error`.
        checked: all aliases were looked at.
    """
    # A dead server must not hold the next look for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    watching = Watch(model, aliases, cache, emit)
    while rounds is None or rounds > 0:
        try:
            watching.look()
            emit({"event": "checked"})
        except Exception as error:  # whatever a store's driver raises: it may be back later
            emit({"event": "error", "error": f"{type(error).__name__}: {_in_a_line(error)}"})
        if rounds is not None:
            rounds -= 1
        time.sleep(every_s)


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500] or "no reason given"


def main(argv: list[str] | None = None) -> int:
    """Run a command; see `--help`."""
    parser = argparse.ArgumentParser(prog="python -m models.registry", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("watch", "fetch"):
        command = commands.add_parser(name)
        command.add_argument("--model", required=True, help="registered model")
        command.add_argument("--cache", type=Path, help="folder for bundles that were downloaded")
    watching, fetching = commands.choices["watch"], commands.choices["fetch"]
    watching.add_argument("--aliases", default=CHAMPION, help="separated by commas")
    watching.add_argument("--every", type=float, default=10.0, help="seconds between two looks")
    fetching.add_argument("--alias", default=CHAMPION)
    asked = parser.parse_args(argv)
    if asked.command == "fetch":
        return _fetch(asked.model, asked.alias, asked.cache)
    if asked.cache is None:
        watching.error("give --cache, the folder for bundles")
    threading.Thread(target=_end_with_parent, daemon=True).start()
    watch(asked.model, asked.aliases.split(","), asked.every, asked.cache, _line_writer())
    return 0


def _fetch(model: str, name: str, cache: Path | None) -> int:
    store = _existing_store()
    version = behind(store, model, name) if store is not None else None
    if store is None or version is None:
        print(f"registry: {model!r} has no {name} in {_shown(tracking_uri())}", file=sys.stderr)
        return 1
    try:
        if cache is None:
            found = fetch(store, model, name)
            assert found is not None
            folder = found[0]
            _confirm(folder, version)
        else:
            folder, _ = cached(model, version, cache)
    except bundle.BundleError as error:
        print(f"registry: {error}", file=sys.stderr)
        return 2
    print(f"{folder}\t{version.number}")
    return 0


def _shown(uri: str) -> str:
    """A URI without a password."""
    return uri.split("@")[-1] if "@" in uri else uri


def _end_with_parent() -> None:
    """End the process, whatever it is doing, when its standard input closes."""
    while os.read(0, 4096):
        pass
    os._exit(0)


def _line_writer() -> Emit:
    """Writes lines of JSON to the standard output, where nobody else writes from now on."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)

    def emit(line: dict[str, Any]) -> None:
        try:
            out.write(json.dumps(line) + "\n")
        except BrokenPipeError:
            os._exit(0)

    return emit


if __name__ == "__main__":
    sys.exit(main())
