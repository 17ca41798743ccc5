"""A new version of `data/`: what a base holds, and what the service has been asked and told since.

Scans of the prediction log become a file of their own beside the base's; sites that were entered
at run time join the site master; analysts' verdicts and scans that nobody has judged yet become
`verdicts.csv`. Scans are never taken one by one out of a lot: a window keeps whole lots.
"""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from intake import layout
from intake.columns import to_scans
from intake.layout import Layout
from intake.master import read_sites, write_sites
from intake.read import read_scans
from intake.store import to_table
from intake.table import Intake
from logbook import Feedback, export, feedback_file
from logbook.opened import open_log
from pipelines import params, runspace
from pipelines.progress import say
from pipelines.runspace import Run, RunError, Skip
from trail.scan import ANOMALIES, DAY_US, TIER_NAMES, Scans
from trail.sites import UNKNOWN_TIER, Sites

Bool = npt.NDArray[np.bool_]

_NEVER: Final = 2**62
_TIMEOUT_S: Final = 30
_UTC: Final = pa.timestamp("us", "UTC")
_KEY: Final = ("epc_code", "location_id", "event_type", "event_time")
_VERDICTS: Final = "verdicts.csv"
_OWN_FLAG: Final = "flagged by the service, judged by nobody"
_NO_SITES: Final = Sites.of([], [], [], [], [])


@dataclass(frozen=True, slots=True)
class Known:
    """What became known since the base was made.

    Attributes:
        logged: logged scans, `logbook.export.SCHEMA`.
        feedback: analysts' words that name scans by code and time, oldest first.
        sites: sites that the service knows of; empty where it was not asked.
    """

    logged: pa.Table
    feedback: list[Feedback]
    sites: Sites


@dataclass(frozen=True, slots=True)
class Cut:
    """Which part of the data to take.

    Attributes:
        window_days: only lots that began at most so long before the newest lot; None for all.
        as_of_us: only what happened and was said before this time; None for everything.
    """

    window_days: int | None = None
    as_of_us: int | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Cut:
        """Read a run's options `window_days` and `as_of`, a date."""
        as_of = options.get("as_of")
        as_of_us = None
        if as_of is not None:
            as_of_us = (date.fromisoformat(as_of) - date(1970, 1, 1)).days * DAY_US
        return cls(options.get("window_days"), as_of_us)

    def __bool__(self) -> bool:
        return self.window_days is not None or self.as_of_us is not None


@dataclass(frozen=True, slots=True)
class Made:
    """What a snapshot holds beyond its base.

    Attributes:
        added: scans of the log that the base lacks.
        known_already: scans of the log that the base has.
        left_out: scans outside the window, or after the date.
        sites: sites added to the master, or changed.
        verdicts: analysts' verdicts.
        unjudged: flags of the service on added scans that nobody has judged.
    """

    added: int
    known_already: int
    left_out: int
    sites: int
    verdicts: int
    unjudged: int

    @property
    def differs(self) -> bool:
        """Whether it is another version than its base."""
        return bool(self.added or self.left_out or self.sites or self.verdicts)


def snapshot(run: Run) -> None:
    """Make the run's version of `data/`; a run that has nothing new ends here.

    Raises:
        Skip: a model has been made of the same data and settings already.
        LogError: the log cannot be read.
        RunError: the service's site book cannot be read.
    """
    take(run)
    if run.dag == "retrain" and not run.record["options"].get("force"):
        _demand_news(run)


def take(run: Run) -> None:
    """Make the run's version of `data/`, pin it, and commit data.dvc on the run's branch.

    Raises:
        LogError, RunError: see `snapshot`.
    """
    record = run.record
    options = record["options"]
    if not record.get("snapshot"):
        run.git("checkout", "--quiet", "--force", record["commit"], "--", "data.dvc")
        _restore(run)
        runspace.pin(run)
        upto, known = _known(run, record)
        fresh = run.folder / "data.new"
        zone = _zone(run)
        made = make(run.workspace / "data", fresh, known, Cut.of(options), zone)
        if made.differs:
            shutil.rmtree(run.workspace / "data")
            os.replace(fresh, run.workspace / "data")
            run.dvc("add", "data")
        shutil.rmtree(fresh, ignore_errors=True)
        told = sentence(made, upto)
        run.commit(f"Snapshot: {told}", "data.dvc")
        run.note(snapshot={**asdict(made), "upto": upto, "data": runspace.data_hash(run)})
        say(f"snapshot: {told}")


def sentence(made: Made, upto: int) -> str:
    """What a snapshot holds, for a person."""
    return (
        f"{made.added:,} scans of the log up to {upto:,} ({made.known_already:,} were known), "
        f"{made.left_out:,} left out, {made.sites:,} sites, {made.verdicts:,} verdicts, "
        f"{made.unjudged:,} flags unjudged"
    )


def make(base: Path, out: Path, known: Known, cut: Cut, zone: str) -> Made:
    """Write a new version of a data folder.

    Args:
        base: the version it builds on, laid out as in `intake.layout`.
        out: folder for the new one, replaced; the same input gives the same bytes.
        known: what became known since.
        cut: which part to take.
        zone: IANA zone of base times that name none.

    Raises:
        IntakeError: the base cannot be read.
    """
    found = layout.find(base)
    shutil.rmtree(out, ignore_errors=True)
    (out / "scans").mkdir(parents=True)
    before = read_sites(found.sites) if found.sites else _NO_SITES
    sites, changed = merged(before, known.sites)
    old = read_scans(found.scans, sites if len(sites) else None, zone)
    logged = to_scans(known.logged, old.sites, "UTC")
    new = _unknown_to(old, logged)
    kept_old, kept_new = _kept(old.scans, logged.scans, new, cut)
    left_out = int((~kept_old).sum()) + int((new & ~kept_new).sum())
    if kept_old.all():
        _copy_scans(found.scans, out / "scans")
    else:
        _write(old, kept_old, out / "scans" / "base.parquet")
        _write_unread(old.quarantine, out / "scans" / "unread.parquet")
    if kept_new.any():
        ids = _free_ids(old, logged)
        _write(replace(logged, event_id=ids), kept_new, _unused(out / "scans", "logged"))
    _copy_rest(found, out)
    if changed:
        _write_sites(sites, found, out)
    rows = known.logged.take(pa.array(logged.scans.row[kept_new]))
    unjudged = _unjudged(rows, known.feedback)
    said = [word for word in known.feedback if cut.as_of_us is None or word.given_us < cut.as_of_us]
    verdicts = _write_verdicts(found, unjudged, said, out / _VERDICTS)
    return Made(
        added=int(kept_new.sum()),
        known_already=int((~new).sum()),
        left_out=left_out,
        sites=changed,
        verdicts=verdicts,
        unjudged=len(unjudged),
    )


def merged(base: Sites, book: Sites) -> tuple[Sites, int]:
    """A site master with what a service knows, and how many sites that adds or changes.

    Sites that only scans have named stay out.
    """
    entries = {site: _entry(base, i) for i, site in enumerate(base.ids)}
    changed = 0
    for i, site in enumerate(book.ids):
        told = _entry(book, i)
        if book.known[i] and repr(entries.get(site)) != repr(told):
            entries[site] = told
            changed += 1
    rows: list[tuple[Any, ...]] = list(entries.values())
    return Sites.of(list(entries), *([row[k] for row in rows] for k in range(5))), changed


def _entry(sites: Sites, i: int) -> tuple[str, int, float, float, bool]:
    place = float(sites.latitude[i]), float(sites.longitude[i])
    return (sites.names[i], int(sites.tier[i]), *place, bool(sites.known[i]))


def read_book(url: str, key: str = "") -> Sites:
    """The sites that a running service knows of.

    Args:
        url: of the service.
        key: an API key with the scope `admin`, where the service asks for one.

    Raises:
        RunError: it does not answer.
    """
    request = urllib.request.Request(f"{url.rstrip('/')}/admin/sites")
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            rows = msgspec.json.decode(answer.read(), type=list[dict[str, Any]])
    except (OSError, ValueError, urllib.error.URLError, msgspec.MsgspecError) as error:
        raise RunError(
            f"the site book of the service at {url} cannot be read ({error}); start the service, "
            "or clear TRAILWATCH_SERVING_URL to train with the sites of data/ alone"
        ) from error
    return Sites.of(
        [row["location_id"] for row in rows],
        [row.get("name", "") for row in rows],
        [TIER_NAMES.index(row["tier"]) if "tier" in row else UNKNOWN_TIER for row in rows],
        [row.get("latitude", np.nan) for row in rows],
        [row.get("longitude", np.nan) for row in rows],
        [row["known"] for row in rows],
    )


def fingerprint(run: Run) -> dict[str, str]:
    """What a run's model is made of: its data and its settings.

    `known_hash` is of the data without the flags that the service raised itself: another champion
    may judge an old scan otherwise, and that is no news.
    """
    return {
        "data_hash": runspace.data_hash(run),
        "known_hash": _known_hash(run.workspace / "data"),
        "params_hash": params.digest(run.workspace / "params.yaml"),
    }


def _known_hash(data: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(path for path in data.rglob("*") if path.is_file()):
        if path.name == _VERDICTS:
            judged = [row for row in _rows(path) if row.get("why") != _OWN_FLAG]
            found.update(repr(judged).encode() if judged else b"")
            continue
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        found.update(f"{path.relative_to(data)} {content}\n".encode())
    return found.hexdigest()


def _known(run: Run, record: Mapping[str, Any]) -> tuple[int, Known]:
    """What the log and the service know; a repeated attempt reads up to where the first did."""
    log = open_log(run.places.log)
    try:
        upto = record.get("upto")
        if upto is None:
            upto = int(log.figures()["last_id"])
            told_us = max((word.given_us for word in log.feedback()), default=0)
            record = run.note(upto=upto, told_us=told_us)
        logged = export.scans(log, upto)
        said = [word for word in log.feedback() if word.given_us <= record["told_us"]]
        feedback = feedback_file.by_scan(said, log)
    finally:
        log.close()
    service = run.places.service
    book = read_book(service, os.environ.get("TRAILWATCH_API_KEY", "")) if service else _NO_SITES
    return upto, Known(logged, feedback, book)


def _restore(run: Run) -> None:
    """Where a model has data of its own in the home, those are the base."""
    own = run.places.home / "workspaces" / run.places.model / "data.dvc"
    if own.exists():
        shutil.copyfile(own, run.workspace / "data.dvc")


def _zone(run: Run) -> str:
    return str(params.load(run.workspace / "params.yaml")["validate"]["zone"])


def _demand_news(run: Run) -> None:
    """Skip where the champion, or a run that has ended, was made of the same data and settings."""
    from models.registry import CHAMPION
    from pipelines import tracking

    mine = fingerprint(run)
    for record in sorted(run.places.runs.glob(f"{run.dag}/*/run.json")):
        other = msgspec.json.decode(record.read_bytes(), type=dict[str, Any])
        finished = other.get("finished", {})
        same = all(finished.get(name) == mine[name] for name in ("known_hash", "params_hash"))
        if other["id"] != run.id and same:
            raise Skip(
                f"no new data since run {other['id']}: the same scans, verdicts and settings "
                f"(data {mine['data_hash'][:12]}); give force to train all the same"
            )
    store = tracking.client()
    model = run.record["options"].get("model") or run.places.model
    if not store.search_registered_models(f"name = '{model}'"):
        return
    version = store.get_registered_model(model).aliases.get(CHAMPION)
    if version is None:
        return
    tags = store.get_model_version(model, version).tags
    same = all(tags.get(name) == mine[name] for name in ("data_hash", "params_hash"))
    if same and tags.get("dag_run_id") != run.id:
        raise Skip(
            f"no new data since version {version}, the champion, was trained: the same scans, "
            f"verdicts and settings (data {mine['data_hash'][:12]}); give force to train all the "
            "same"
        )


def _unknown_to(old: Intake, logged: Intake) -> Bool:
    """Which logged scans the base lacks, bool (n,); of repeats the first."""
    n = len(logged.scans)
    if not n:
        return np.zeros(0, bool)
    keys = _keys(logged).append_column("place", pa.array(np.arange(n)))
    first = keys.group_by(list(_KEY)).aggregate([("place", "min")]).rename_columns([*_KEY, "place"])
    missing = first.join(_keys(old), keys=list(_KEY), join_type="left anti", use_threads=False)
    new = np.zeros(n, bool)
    new[missing["place"].to_numpy()] = True
    return new


def _keys(intake: Intake) -> pa.Table:
    table = to_table(replace(intake, event_id=None, file_id=None)).select(list(_KEY))
    text = [(name, table[name].cast(pa.string())) for name in _KEY[:3]]
    return pa.table({**dict(text), "event_time": table["event_time"]})


def _kept(old: Scans, logged: Scans, new: Bool, cut: Cut) -> tuple[Bool, Bool]:
    """Which scans of the base and of the log to take, bool each."""
    kept_old, kept_new = np.ones(len(old), bool), new.copy()
    if cut.as_of_us is not None:
        kept_old &= old.time_us < cut.as_of_us
        kept_new &= logged.time_us < cut.as_of_us
    if cut.window_days is not None:
        lot = np.concatenate([old.lot[kept_old], logged.lot[kept_new]])
        time_us = np.concatenate([old.time_us[kept_old], logged.time_us[kept_new]])
        distinct, place = np.unique(lot, return_inverse=True)
        began = np.full(len(distinct), _NEVER)
        np.minimum.at(began, place, time_us)
        recent = distinct[began >= began.max(initial=0) - cut.window_days * DAY_US]
        kept_old &= np.isin(old.lot, recent)
        kept_new &= np.isin(logged.lot, recent)
    return kept_old, kept_new


def _write(intake: Intake, kept: Bool, path: Path) -> None:
    """Write some scans, as files of scans are; times name their zone."""
    table = to_table(intake).filter(pa.array(kept)).drop_columns("row")
    time = table["event_time"].cast(pa.int64()).cast(_UTC)
    table = table.set_column(table.column_names.index("event_time"), "event_time", time)
    pq.write_table(table, path, compression="zstd", compression_level=1)


def _write_unread(quarantine: pa.Table, path: Path) -> None:
    """Keep what could not be read, so that it is quarantined again and not lost."""
    if len(quarantine):
        pq.write_table(quarantine.select(list(_KEY)), path)


def _free_ids(old: Intake, logged: Intake) -> pa.StringArray | None:
    """Event ids of logged scans, null where the base has another scan by that id."""
    if old.event_id is None or logged.event_id is None:
        return logged.event_id
    taken = pc.is_in(logged.event_id, value_set=old.event_id.drop_null())
    return pc.if_else(taken, pa.scalar(None, pa.string()), logged.event_id)


def _unused(folder: Path, stem: str) -> Path:
    names = [f"{stem}.parquet", *(f"{stem}-{i}.parquet" for i in range(2, 10_000))]
    return next(folder / name for name in names if not (folder / name).exists())


def _copy_scans(scans: Path, folder: Path) -> None:
    if scans.is_dir():
        shutil.copytree(scans, folder, dirs_exist_ok=True)
    else:
        shutil.copy2(scans, folder)


def _copy_rest(found: Layout, out: Path) -> None:
    for path in (found.sites, found.registry, found.legs, found.answers, found.world):
        if path is not None:
            shutil.copy2(path, out)


def _write_sites(sites: Sites, found: Layout, out: Path) -> None:
    if found.sites is not None:
        (out / found.sites.name).unlink()
    write_sites(sites, out / "sites.csv")


def _unjudged(rows: pa.Table, feedback: Iterable[Feedback]) -> list[dict[str, str]]:
    """Verdict rows for flags of the service that no analyst has confirmed or denied."""
    said = {(word.epc.strip(), word.time_us, word.anomaly) for word in feedback}
    time_us = rows["event_time"].cast(pa.int64()).to_numpy()
    found = []
    for name in ANOMALIES:
        for i in np.flatnonzero(rows[f"flag_{name}"].to_numpy(zero_copy_only=False)):
            code = rows["epc_code"][int(i)].as_py()
            if (code.strip(), int(time_us[i]), name) not in said:
                time = datetime.fromtimestamp(time_us[i] // 1_000_000, UTC)
                time = time.replace(microsecond=int(time_us[i] % 1_000_000))
                found.append(
                    {
                        "epc_code": code,
                        "event_time": time.isoformat(timespec="microseconds"),
                        "anomaly": name,
                        "verdict": "unknown",
                        "why": _OWN_FLAG,
                    }
                )
    return found


def _write_verdicts(
    found: Layout, unjudged: list[dict[str, str]], said: list[Feedback], path: Path
) -> int:
    """Write verdicts in the order in which they override; returns how many the base lacks."""
    feedback_file.write(said, path)
    told = _rows(path)
    base = _rows(found.verdicts) if found.verdicts else []
    names = list(dict.fromkeys(name for row in [*told, *base] for name in row))
    names = names or list(feedback_file.COLUMNS)
    rows = [row for row in [*unjudged, *base, *told] if row]
    path.unlink()
    if rows:
        with path.open("w", encoding="utf-8", newline="") as file:
            out = csv.DictWriter(file, names, lineterminator="\n", restval="")
            out.writeheader()
            out.writerows(_distinct(rows, names))
    old = {tuple(row.get(name, "") for name in names) for row in base}
    return sum(tuple(row.get(name, "") for name in names) not in old for row in told)


def _distinct(rows: list[dict[str, str]], names: list[str]) -> list[dict[str, str]]:
    """Rows without repeats; of repeats the last stays, because later ones override."""
    last = {tuple(row.get(name, "") for name in names): row for row in reversed(rows)}
    return list(last.values())[::-1]


def _rows(path: Path) -> list[dict[str, str]]:
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        return [
            {k: "" if v is None else str(v) for k, v in row.items()} for row in table.to_pylist()
        ]
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
