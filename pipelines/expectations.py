"""What scans must be like: expectations, each with its severity and remedy, and their tables.

An `error` that fails stops the pipeline; a `warning` is shown. `pipelines.datadocs` checks.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from intake.table import Intake
from trail.epc import fault_sentence
from trail.scan import DAY_US, EVENT_TYPES, SITE_TIER_OF_OP, TIER_NAMES, Tier

ERROR: Final = "error"
WARNING: Final = "warning"


@dataclass(frozen=True, slots=True)
class Limits:
    """Section `validate` of params.yaml, as far as expectations need it.

    Attributes:
        max_unreadable_share: more unreadable rows than this share stop the run.
        earliest_event: ISO date; an earlier event is a clock that was never set.
        max_gap_days: longest silence inside the data, and longest lag of the newest scan
            behind the newest manufacture.
        max_unknown_site_share: more scans than this at sites that the master lacks: it is
            another installation's master.
        sample_rows: more scans than this are checked on a random sample.
    """

    max_unreadable_share: float
    earliest_event: str = "2000-01-01"
    max_gap_days: float = 14
    max_unknown_site_share: float = 0.5
    sample_rows: int = 1_000_000


@dataclass(frozen=True, slots=True)
class Check:
    """One expectation.

    Attributes:
        asset: the table it is about.
        kind: class name in `great_expectations.expectations`.
        severity: ERROR or WARNING.
        remedy: what to do when it fails.
        arguments: of the expectation.
    """

    asset: str
    kind: str
    severity: str
    remedy: str
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """How messages call it: the expectation and its column."""
        column = self.arguments.get("column") or ", ".join(self.arguments.get("column_list", ()))
        return f"{self.kind}({column})" if column else self.kind


@dataclass(frozen=True, slots=True)
class Outcome:
    """A check's result.

    Attributes:
        check: the check.
        success: whether it holds.
        failed: rows that do not meet it; 1 where it is about the whole table.
        rows: rows that were checked.
        examples: some of the offending values.
    """

    check: Check
    success: bool
    failed: int
    rows: int
    examples: tuple[str, ...]

    def sentence(self) -> str:
        """The expectation, how many rows, examples, and the remedy."""
        share = f" ({self.failed / self.rows:.2%})" if self.rows else ""
        seen = f"; for example {'; '.join(self.examples)}" if self.examples else ""
        return (
            f"{self.check.name} of {self.check.asset}: {self.failed:,} of {self.rows:,} rows"
            f"{share} do not meet it{seen}. {self.check.remedy}"
        )


def checks(limits: Limits, intake: Intake, has_master: bool) -> list[Check]:
    """All expectations that this data can be held against."""
    return [
        *_about_rows(limits),
        *_about_scans(limits, intake),
        *(_about_master(limits) if has_master else ()),
        *_about_freshness(limits),
    ]


def _about_rows(limits: Limits) -> Iterator[Check]:
    share = limits.max_unreadable_share
    yield Check(
        "rows",
        "ExpectColumnValuesToBeNull",
        ERROR,
        "See the reasons in the quarantine file, correct the export, or raise "
        f"validate.max_unreadable_share (now {share:g}) in params.yaml",
        {"column": "unreadable", "mostly": 1 - share},
    )


def _about_scans(limits: Limits, intake: Intake) -> Iterator[Check]:
    columns = list(_scan_columns(intake))
    yield Check(
        "scans", "ExpectTableRowCountToBeBetween", ERROR, "Give scans to read.", {"min_value": 1}
    )
    yield Check(
        "scans",
        "ExpectTableColumnsToMatchSet",
        ERROR,
        "This is a fault of the stage; report it.",
        {"column_set": columns, "exact_match": True},
    )
    for column in ("epc_code", "location_id", "event_type", "event_time"):
        yield Check(
            "scans",
            "ExpectColumnValuesToNotBeNull",
            ERROR,
            "This is a fault of the stage; report it.",
            {"column": column},
        )
    yield Check(
        "scans",
        "ExpectColumnValuesToBeInSet",
        ERROR,
        "Map the operation to one of the vocabulary.",
        {"column": "event_type", "value_set": list(EVENT_TYPES)},
    )
    yield Check(
        "scans",
        "ExpectColumnValuesToBeBetween",
        ERROR,
        "Set the device's clock, or lower validate.earliest_event in params.yaml.",
        {
            "column": "event_time",
            "min_value": dt.datetime.fromisoformat(limits.earliest_event),
            "mostly": 1 - limits.max_unreadable_share,
        },
    )
    yield Check(
        "scans",
        "ExpectColumnValuesToBeNull",
        WARNING,
        "Malformed codes are scored as epcFake; if they are many, look at the export.",
        {"column": "malformed_epc", "mostly": 0.9},
    )
    yield Check(
        "scans",
        "ExpectColumnValuesToBeNull",
        WARNING,
        "Compare the tiers of the site master with the operations at these sites.",
        {"column": "operation_at_other_tier", "mostly": 0.9},
    )
    yield Check(
        "scans",
        "ExpectCompoundColumnsToBeUnique",
        WARNING,
        "Rows that repeat an earlier one are kept and scored; look whether files overlap.",
        {"column_list": ["epc_code", "location_id", "event_type", "event_time"], "mostly": 0.95},
    )
    if intake.event_id is not None:
        yield Check(
            "scans",
            "ExpectColumnValuesToBeUnique",
            WARNING,
            "Verdicts are found by event_id; give each scan its own.",
            {"column": "event_id"},
        )
        yield Check(
            "scans",
            "ExpectColumnValuesToNotBeNull",
            WARNING,
            "Scans without event_id cannot be asked for by it.",
            {"column": "event_id"},
        )


def _about_master(limits: Limits) -> Iterator[Check]:
    share = limits.max_unknown_site_share
    yield Check(
        "scans",
        "ExpectColumnValuesToBeNull",
        ERROR,
        "Give the site master of this installation, or raise validate.max_unknown_site_share "
        f"(now {share:g}) in params.yaml",
        {"column": "unknown_site", "mostly": 1 - share},
    )
    yield Check(
        "scans",
        "ExpectColumnValuesToBeNull",
        WARNING,
        "Add these sites to the site master.",
        {"column": "unknown_site"},
    )
    yield Check(
        "sites",
        "ExpectColumnValuesToBeUnique",
        ERROR,
        "Keep one row for each site.",
        {"column": "location_id"},
    )
    for column, bound in (("latitude", 90), ("longitude", 180)):
        yield Check(
            "sites",
            "ExpectColumnValuesToBeBetween",
            ERROR,
            "Correct the coordinates, in degrees.",
            {"column": column, "min_value": -bound, "max_value": bound},
        )
        yield Check(
            "sites",
            "ExpectColumnValuesToNotBeNull",
            WARNING,
            "Without coordinates there are no distances and speeds; add them.",
            {"column": column},
        )
    yield Check(
        "sites",
        "ExpectColumnValuesToBeInSet",
        ERROR,
        f"Use {', '.join(TIER_NAMES[: Tier.RETAIL + 1])}.",
        {"column": "tier", "value_set": list(TIER_NAMES[: Tier.RETAIL + 1])},
    )


def _about_freshness(limits: Limits) -> Iterator[Check]:
    for column, remedy in (
        ("longest_silence_days", "Look whether an export is missing in between."),
        (
            "days_behind_manufacture",
            "The newest scan is older than the newest goods; look whether the export is whole.",
        ),
    ):
        yield Check(
            "freshness",
            "ExpectColumnValuesToBeBetween",
            WARNING,
            f"{remedy} The limit is validate.max_gap_days.",
            {"column": column, "max_value": float(limits.max_gap_days)},
        )


def tables(intake: Intake, limits: Limits) -> dict[str, Any]:
    """The tables that the checks are about, as pandas frames by asset."""
    import pandas as pd

    sites = intake.sites
    known = np.flatnonzero(sites.known)
    return {
        "rows": pd.DataFrame({"unreadable": _unreadable(intake)}),
        "scans": pd.DataFrame(_scan_columns(intake, _sample(len(intake.scans), limits))),
        "sites": pd.DataFrame(
            {
                "location_id": pd.Series([sites.ids[i] for i in known], dtype=object),
                "latitude": sites.latitude[known],
                "longitude": sites.longitude[known],
                "tier": pd.Series(
                    [TIER_NAMES[t] if t >= 0 else None for t in sites.tier[known].tolist()],
                    dtype=object,
                ),
            }
        ),
        "freshness": pd.DataFrame([freshness(intake)]),
    }


def freshness(intake: Intake) -> dict[str, float]:
    """How complete the data are in time, in days; nothing here looks at the clock.

    The newest manufacture is the 99.9th percentile over codes: forged dates do not count.
    """
    times = np.sort(intake.scans.time_us)
    made = intake.scans.codes.made_day[intake.scans.codes.fault == 0]
    newest = times[-1] / DAY_US if len(times) else 0.0
    behind = float(np.quantile(made, 0.999)) - newest if len(made) else 0.0
    return {
        "longest_silence_days": float(np.diff(times).max() / DAY_US) if len(times) > 1 else 0.0,
        "days_behind_manufacture": max(behind, 0.0),
    }


def _sample(n: int, limits: Limits) -> np.ndarray[Any, np.dtype[np.int64]]:
    if n <= limits.sample_rows:
        return np.arange(n, dtype=np.int64)
    # at random, for rows come in patterns that every k-th row would follow; the seed is fixed
    return np.sort(np.random.default_rng(0).choice(n, limits.sample_rows, replace=False))


def _unreadable(intake: Intake) -> np.ndarray[Any, np.dtype[np.object_]]:
    reasons = np.full(intake.read, None, dtype=object)
    reasons[: len(intake.quarantine)] = intake.quarantine["reason"].to_pylist()
    return reasons


def _scan_columns(
    intake: Intake, rows: np.ndarray[Any, np.dtype[np.int64]] | None = None
) -> dict[str, Any]:
    """Columns of the asset `scans` at some rows; without rows only their names count."""
    import pandas as pd

    scans, sites = intake.scans, intake.sites
    scans = scans.take(np.zeros(0, dtype=np.int64) if rows is None else rows)
    columns: dict[str, Any] = {}
    if intake.event_id is not None:
        ids = intake.event_id.take(_arrow(rows))
        columns["event_id"] = pd.Series(ids.to_pylist(), dtype=object)
    columns["epc_code"] = pd.Categorical.from_codes(scans.epc, scans.codes.text.to_pylist())
    columns["location_id"] = pd.Categorical.from_codes(scans.site, list(sites.ids))
    columns["event_type"] = pd.Categorical.from_codes(scans.op, list(EVENT_TYPES))
    columns["event_time"] = scans.time_us.astype("datetime64[us]")
    unknown = np.array(
        [None if k else i for i, k in zip(sites.ids, sites.known, strict=True)], object
    )
    columns["unknown_site"] = unknown[scans.site]
    malformed = np.full(len(scans), None, dtype=object)
    for i in np.flatnonzero(scans.codes.fault[scans.epc]).tolist():
        code = int(scans.epc[i])
        said = fault_sentence(int(scans.codes.fault[code]))
        malformed[i] = f"{scans.codes.text[code].as_py()}: {said}"
    columns["malformed_epc"] = malformed
    tier = sites.tier[scans.site]
    elsewhere = np.full(len(scans), None, dtype=object)
    for i in np.flatnonzero((tier >= 0) & (tier != SITE_TIER_OF_OP[scans.op])).tolist():
        site = sites.ids[int(scans.site[i])]
        elsewhere[i] = f"{EVENT_TYPES[scans.op[i]]} at {site}, a {TIER_NAMES[tier[i]]}"
    columns["operation_at_other_tier"] = elsewhere
    return columns


def _arrow(rows: np.ndarray[Any, np.dtype[np.int64]] | None) -> Any:
    import pyarrow as pa

    return pa.array([] if rows is None else rows, pa.int64())
