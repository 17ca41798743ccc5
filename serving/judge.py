"""The judge: which bundles are in use, and what they say.

The aliases are watched by a child process (`models.registry`), so that MLflow is never imported
here. A new version is loaded, verified and warmed up beside the old one, which answers until the
new one can; a version that cannot be used is refused, and the old one keeps answering.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from intake.errors import IntakeError
from intake.master import read_registry, read_sites
from models import registry as model_registry
from models.bundle import Bundle, BundleError
from models.registry import CHALLENGER, CHAMPION
from models.watcher import Watcher
from serving.settings import Settings
from trail.epc import EpcTable, mix, parse
from trail.facts import BoundContext, Context
from trail.features import Encoded, encode
from trail.registry import Registry
from trail.scan import HOUR_US, Bool, Scans
from trail.sites import Sites
from trail.verdict import Verdicts

_LOG: Final = logging.getLogger("trailwatch")
ROOT: Final = Path(__file__).parent.parent


@dataclass(slots=True)
class Model:
    """A loaded and warmed-up bundle.

    Attributes:
        name: registered model, or the folder's name.
        version: version in the registry, or "bundle".
        bundle: the bundle.
        registry: genuine products that it checks against; an empty one abstains.
        sites_file: the site master that came with it, None where none did.
    """

    name: str
    version: str
    bundle: Bundle
    registry: Registry
    sites_file: Path | None = field(init=False)
    _bound: tuple[Sites, BoundContext] | None = None

    def __post_init__(self) -> None:
        file = self.bundle.folder / "sites.csv"
        self.sites_file = file if file.is_file() else None

    def context(self, sites: Sites) -> BoundContext:
        """What scans are seen against; its look-up tables are built once for each `sites`."""
        bound = self._bound
        if bound is None or bound[0] is not sites:
            context = Context(sites, self.bundle.network, self.registry).bound()
            bound = self._bound = (sites, context)
        return bound[1]

    def verdicts(self, encoded: Encoded) -> Verdicts:
        """Verdicts on encoded scans, in trail order."""
        return self.bundle.judge(encoded.features, encoded.offsets, encoded.findings)

    @property
    def sites_in_use(self) -> Sites | None:
        """The sites that `context` was last asked with."""
        return self._bound[0] if self._bound else None


@dataclass(frozen=True, slots=True)
class Panel:
    """Who judges a request; one snapshot serves the whole request.

    Attributes:
        champion: answers; None: there is no model, and the rules answer.
        challenger: judges its share of the EPCs too, or instead; None: there is none.
        mode: "off", "shadow" or "ab".
        share: of the EPCs, 0 to 1.
    """

    champion: Model | None
    challenger: Model | None = None
    mode: str = "off"
    share: float = 0.0

    def challenged(self, codes: EpcTable | Sequence[str]) -> Bool:
        """Which codes are the challenger's, bool (m,).

        It depends on the code and the share only: the same in every process and for every version,
        and a larger share keeps the codes of a smaller one.
        """
        texts = codes.text.to_pylist() if isinstance(codes, EpcTable) else codes
        if self.challenger is None or not len(texts):
            return np.zeros(len(texts), dtype=bool)
        sums = np.array([zlib.crc32(text.encode()) for text in texts], dtype=np.uint64)
        place = (mix(sums) >> np.uint64(11)) * 2.0**-53
        return np.asarray(place < self.share)


@dataclass(frozen=True, slots=True)
class _Seat:
    """A model in use.

    Attributes:
        model: the model.
        since: when it began to judge.
        confirmed: the registry said so since this process started.
    """

    model: Model
    since: datetime
    confirmed: bool = True

    def told(self) -> dict[str, Any]:
        return {
            "name": self.model.name,
            "version": self.model.version,
            "digest": self.model.bundle.digest,
            "since": self.since.isoformat(),
            "confirmed": self.confirmed,
        }


@dataclass(frozen=True, slots=True)
class _Trouble:
    """A version that was refused, or an alias that is gone."""

    version: str
    digest: str
    error: str
    at: datetime


class Judge:
    """Keeps the champion, the challenger and the previous champion loaded and up to date."""

    def __init__(self, settings: Settings) -> None:
        """Prepare; nothing is read before `start`."""
        self._settings = settings
        self._own_sites = Path(settings.sites) if settings.sites else None
        self._panel = Panel(None, None, settings.challenger, settings.challenger_share)
        self._lock = threading.RLock()
        self._seats: dict[str, _Seat] = {}
        self._previous: _Seat | None = None
        self._troubles: dict[str, _Trouble] = {}
        self._error = ""
        self._checked: datetime | None = None
        self._restarts = 0
        self._first = threading.Event()
        self._products: Registry | None = None
        self._watcher: Watcher | None = None

    def start(self) -> None:
        """Load the bundle, or the last known champion, and begin to watch the registry.

        A bundle that cannot be used does not stop the service: `status` says so.

        Raises:
            IntakeError: the file of genuine products cannot be read.
        """
        if self._settings.registry:
            self._products = read_registry(self._settings.registry)
        if self._settings.bundle:
            folder = Path(self._settings.bundle)
            self._seat(CHAMPION, folder.resolve().name, "bundle", "", folder)
            self._first.set()
            return
        self._recall()
        self._watcher = Watcher(
            self._command(),
            self._environment(),
            self._heard,
            self._ended,
            silence_s=300 + 10 * self._settings.poll_s,
        )
        self._watcher.start()

    def stop(self) -> None:
        """Stop watching; the models stay loaded."""
        if self._watcher is not None:
            self._watcher.stop()

    def wait_first(self, seconds: float) -> bool:
        """Wait until it is known whether there is a champion; False where that took too long."""
        return self._first.wait(seconds)

    def panel(self) -> Panel:
        """Who judges now."""
        return self._panel

    def registry(self) -> Registry:
        """Genuine products that the rules check against where there is no model."""
        return self._products or Registry.none()

    def sites_file(self) -> Path | None:
        """The site master in use: the installation's, else the champion's; None: there is none."""
        if self._own_sites is not None:
            return self._own_sites
        champion = self._panel.champion
        return champion.sites_file if champion else None

    def status(self) -> dict[str, Any]:
        """What is in use, and what went wrong, as plain values.

        `champion`, `challenger`, `previous`: name, version, digest, since, confirmed (False while
        a remembered champion answers that the registry has not named yet); None where there is
        none. `refused`: by alias, what is not used and why. `error`: why the registry could not be
        asked the last time. `last_check`: when it last was. Times are ISO 8601 in UTC.
        """
        with self._lock:
            seats = {
                CHAMPION: self._seats.get(CHAMPION),
                CHALLENGER: self._seats.get(CHALLENGER),
                "previous": self._previous,
            }
            return {
                **{name: seat.told() if seat else None for name, seat in seats.items()},
                "mode": self._panel.mode,
                "share": self._panel.share,
                "source": "bundle" if self._settings.bundle else "registry",
                "refused": {
                    name: {
                        "version": trouble.version,
                        "error": trouble.error,
                        "at": trouble.at.isoformat(),
                    }
                    for name, trouble in self._troubles.items()
                },
                "error": self._error or None,
                "last_check": self._checked.isoformat() if self._checked else None,
                "watcher_restarts": self._restarts,
            }

    def _command(self) -> list[str]:
        aliases = CHAMPION if self._settings.challenger == "off" else f"{CHAMPION},{CHALLENGER}"
        return [
            *(sys.executable, "-m", "models.registry", "watch"),
            *("--model", self._settings.model),
            *("--aliases", aliases),
            *("--every", str(self._settings.poll_s)),
            *("--cache", str(self._cache)),
        ]

    def _environment(self) -> dict[str, str]:
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "TRAILWATCH_HOME": str(self._settings.home.resolve()),
        }

    @property
    def _cache(self) -> Path:
        return self._settings.home.resolve() / "state" / self._settings.model / "bundles"

    def _heard(self, line: dict[str, Any]) -> None:
        """Act on a line of the watcher; see `models.registry.watch`."""
        match line:
            case {"event": "version", "alias": name, "version": version}:
                folder = Path(line["folder"])
                if self._seat(name, self._settings.model, version, line["digest"], folder):
                    self._remember(name, line)
            case {"event": "gone", "alias": name}:
                self._gone(name)
            case {"event": "refused", "alias": name, "version": version}:
                self._refuse(name, version, "", line["error"])
            case {"event": "error", "error": error}:
                self._say(error)
            case {"event": "checked"}:
                with self._lock:
                    self._checked, self._error = _now(), ""
        if line["event"] in ("checked", "error"):
            self._first.set()

    def _ended(self, reason: str) -> None:
        with self._lock:
            self._restarts += 1
        self._say(reason)
        self._first.set()

    def _say(self, error: str) -> None:
        with self._lock:
            if error != self._error:
                _LOG.warning("the model registry cannot be asked: %s", error)
            self._error = error

    def _refuse(self, role: str, version: str, digest: str, error: str) -> None:
        _LOG.error("%s version %s is refused: %s", role, version, error)
        with self._lock:
            self._troubles[role] = _Trouble(version, digest, error, _now())

    def _gone(self, role: str) -> None:
        """An alias was removed: a challenger stops; a champion keeps answering, for rules are no
        model, and rolling back is done by moving the alias.
        """
        with self._lock:
            self._troubles.pop(role, None)
            if role == CHALLENGER:
                self._seats.pop(role, None)
                self._set_panel()
            elif role in self._seats:
                said = f"no version has the alias {role} any more; the last one keeps answering"
                _LOG.warning(said)
                self._troubles[role] = _Trouble("", "", said, _now())

    def _seat(
        self, role: str, name: str, version: str, digest: str, folder: Path, confirmed: bool = True
    ) -> bool:
        """Load a version and let it judge; False where it is refused."""
        trouble = self._troubles.get(role)
        if digest and trouble and (trouble.version, trouble.digest) == (version, digest):
            return False
        try:
            model = self._loaded(name, version, digest, folder)
        except Exception as error:  # ONNX Runtime and JSON have errors of many kinds
            self._refuse(role, version, digest, f"{type(error).__name__}: {error}")
            return False
        with self._lock:
            self._troubles.pop(role, None)
            old = self._seats.get(role)
            if old is not None and _same(old.model, model):
                self._seats[role] = replace(old, confirmed=old.confirmed or confirmed)
                return True
            if role == CHAMPION and old is not None:
                self._previous = old
            self._seats[role] = _Seat(model, _now(), confirmed)
            self._set_panel()
        _LOG.info("%s is %s version %s, bundle %s", role, name, version, model.bundle.digest[:12])
        self._first.set()
        return True

    def _set_panel(self) -> None:
        """One assignment: a request sees the old panel or the new one."""
        champion, challenger = (self._seats.get(role) for role in (CHAMPION, CHALLENGER))
        rival = challenger.model if challenger else None
        if champion and rival and rival.bundle.digest == champion.model.bundle.digest:
            rival = None  # nothing to compare
        self._panel = replace(
            self._panel, champion=champion.model if champion else None, challenger=rival
        )

    def _loaded(self, name: str, version: str, digest: str, folder: Path) -> Model:
        """A warmed-up model; at once where its bundle is loaded already.

        Raises:
            Exception: the bundle must not be used, or cannot.
        """
        for seat in (*self._seats.values(), self._previous):
            if seat and digest and seat.model.bundle.digest == digest:
                return replace(seat.model, name=name, version=version)
        bundle = Bundle(folder)
        if digest and bundle.digest != digest:
            raise BundleError(
                f"bundle {folder} has digest {bundle.digest[:12]}, not {digest[:12]} as registered"
            )
        model = Model(name, version, bundle, self.registry_of(bundle))
        champion = self._panel.champion
        warm_up(model, champion.sites_in_use if champion else None)
        return model

    def registry_of(self, bundle: Bundle) -> Registry:
        """The installation's genuine products; else the bundle's, where its master is used too."""
        if self._products is not None:
            return self._products
        own = bundle.folder / "registry.csv"
        if self._settings.sites or not own.is_file():
            return Registry.none()
        return read_registry(own)

    @property
    def _remembered(self) -> Path:
        return self._cache / "champion.json"

    def _remember(self, role: str, line: dict[str, Any]) -> None:
        """Note the champion, so that the next start need not wait for the registry."""
        if role != CHAMPION:
            return
        noted = {key: line[key] for key in ("version", "digest", "folder")}
        fresh = self._remembered.with_name(f".champion-{os.getpid()}.json")
        try:
            fresh.write_text(json.dumps({**noted, "store": self._store}))
            os.replace(fresh, self._remembered)
        except OSError as error:
            _LOG.warning("the champion cannot be noted for the next start: %s", error)

    def _recall(self) -> None:
        """Let the last known champion of the same store judge until the registry answers."""
        try:
            noted = json.loads(self._remembered.read_text())
            if noted["store"] == self._store:
                folder = Path(noted["folder"])
                self._seat(
                    CHAMPION,
                    self._settings.model,
                    noted["version"],
                    noted["digest"],
                    folder,
                    confirmed=False,
                )
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            _LOG.warning("%s cannot be used: %s", self._remembered, error)

    @property
    def _store(self) -> str:
        """Names the registry, without telling a password."""
        uri = model_registry.tracking_uri(self._settings.home.resolve())
        return f"{zlib.crc32(uri.encode()):08x}"


def warm_up(model: Model, sites: Sites | None) -> None:
    """Judge made-up trails, so that a first request finds everything in place.

    Args:
        model: the model.
        sites: the sites that it will be asked with, None where that is not known yet.

    Raises:
        BundleError: it does not give numbers.
    """
    if sites is None or not len(sites):
        own = model.bundle.folder / "sites.csv"
        try:
            sites = read_sites(own)
        except (IntakeError, OSError):
            sites = Sites.of(["1"], [""], [-1], [np.nan], [np.nan])
    context = model.context(sites)
    for trails, most in ((1, 1), (1, 10), (50, 5), (50, 10)):
        encoded = encode(_made_up(trails, most, len(sites)), context)
        verdicts = model.verdicts(encoded)
        if not np.isfinite(verdicts.score).all() or not np.isfinite(verdicts.model).all():
            raise BundleError(f"bundle {model.bundle.folder} gives no numbers; train again")


def _made_up(trails: int, most: int, sites: int) -> Scans:
    """Trails of 1 to `most` scans that go down the chain, an hour a step."""
    length = np.arange(trails) % most + 1 if trails > 1 else np.array([most])
    epc = np.repeat(np.arange(trails), length)
    step = np.concatenate([np.arange(n) for n in length])
    codes = [f"001.0000001.0000001.000001.20250101.{i + 1:09d}" for i in range(trails)]
    return Scans(
        epc=epc.astype(np.int32),
        site=(step // 2 % sites).astype(np.int32),
        op=(step % 10).astype(np.int8),
        time_us=(step * HOUR_US).astype(np.int64) + 1_735_689_600_000_000,
        row=np.arange(len(epc)),
        codes=parse(pa.array(codes)),
    )


def _same(one: Model, other: Model) -> bool:
    """The same version of the same bundle."""
    return (one.version, one.bundle.digest) == (other.version, other.bundle.digest)


def _now() -> datetime:
    return datetime.now(UTC)
