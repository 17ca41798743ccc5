"""Great Expectations: holds tables against expectations and writes static HTML Data Docs.

The library takes 10 s to import, so it is imported only when called.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import re
import warnings
from html import escape
from pathlib import Path
from typing import Any, Final

from pipelines.expectations import ERROR, WARNING, Check, Outcome

_SEVERITY: Final = {ERROR: "critical", WARNING: "warning"}
_EXAMPLES: Final = 3
_FOREIGN: Final = re.compile(
    r"""<script[^>]*src=["']https?:[^>]*>\s*</script>|<link[^>]*href=["']https?:[^>]*>"""
    r"""|<img[^>]*src=["']https?:[^>]*>|<footer.*?</footer>""",
    re.DOTALL,
)
_BODY: Final = re.compile(r"<body[^>]*>")
_CLOCK: Final = re.compile(r"[0-9]{8}T[0-9]{6}\.[0-9]{6}Z")
_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 84rem; padding: 0 1rem }
table { border-collapse: collapse; margin: .5rem 0 } a { color: #0b57a4 }
th, td { border-bottom: 1px solid #ccc; padding: .3rem .6rem }
th, td { text-align: left; vertical-align: top; overflow-wrap: anywhere }
.met, .text-success { color: #1a7f37 } .warning, .text-warning { color: #9a6700; font-weight: 600 }
.failed, .text-danger { color: #b42318; font-weight: 600 }
.fa-check-circle::before { content: "met" } .fa-times::before { content: "not met" }
.fa-exclamation-triangle::before { content: "error" }
.overview ~ * { display: none }
"""
_RANDOM: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def run(
    held: list[Check], frames: dict[str, Any], docs: Path, run_time: dt.datetime
) -> list[Outcome]:
    """Hold the frames against the checks and write Data Docs.

    Args:
        held: the checks.
        frames: the frames by asset.
        docs: folder for the HTML pages; `index.html` is the one to open.
        run_time: what the pages call the run: a time of the data, so that runs are alike.

    Returns:
        The outcomes, in the order of the checks.
    """
    with _Quiet() as gx:
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False}
        context.delete_data_docs_site("local_site")
        context.add_data_docs_site("site", _site(docs))
        source = context.data_sources.add_pandas("trailwatch")
        outcomes: dict[int, Outcome] = {}
        for asset in dict.fromkeys(check.asset for check in held):
            outcomes |= _run_asset(gx, context, source, asset, held, frames[asset], run_time)
        context.build_data_docs()
    return [outcomes[i] for i in range(len(held))]


def _run_asset(
    gx: Any,
    context: Any,
    source: Any,
    asset: str,
    held: list[Check],
    frame: Any,
    run_time: dt.datetime,
) -> dict[int, Outcome]:
    """Outcomes of one asset's checks, by their place in `held`."""
    from great_expectations.core.run_identifier import RunIdentifier

    suite = context.suites.add(gx.ExpectationSuite(name=asset))
    for i, check in enumerate(held):
        if check.asset == asset:
            make = getattr(gx.expectations, check.kind)
            suite.add_expectation(
                make(
                    **check.arguments,
                    severity=_SEVERITY[check.severity],
                    notes=f"{check.severity}. {check.remedy}",
                    meta={"place": i},
                )
            )
    batch = source.add_dataframe_asset(asset).add_batch_definition_whole_dataframe("all")
    definition = context.validation_definitions.add(
        gx.ValidationDefinition(name=asset, data=batch, suite=suite)
    )
    checkpoint = context.checkpoints.add(
        gx.Checkpoint(name=asset, validation_definitions=[definition], result_format="SUMMARY")
    )
    result = checkpoint.run(
        batch_parameters={"dataframe": frame},
        run_id=RunIdentifier(run_name="validate", run_time=run_time),
    )
    (validation,) = result.run_results.values()
    return {
        place: _outcome(held[place], one, len(frame))
        for one in validation.results
        for place in [int(one.expectation_config.meta["place"])]
    }


def _outcome(check: Check, result: Any, rows: int) -> Outcome:
    if (result.exception_info or {}).get("raised_exception"):
        raise RuntimeError(f"{check.name} could not be checked: {result.exception_info}")
    found = result.result
    count = found.get("unexpected_count")
    failed = int(count) if count is not None else int(not result.success)
    examples = dict.fromkeys(_shown(v) for v in found.get("partial_unexpected_list") or ())
    examples.pop("nan", None)
    if count is None and not result.success:
        examples = {f"observed {found.get('observed_value')}": None}
    return Outcome(check, bool(result.success), failed, rows, tuple(examples)[:_EXAMPLES])


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(str(v) for v in value.values())
    return str(value)


def _site(docs: Path) -> dict[str, Any]:
    return {
        "class_name": "SiteBuilder",
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        "store_backend": {
            "class_name": "TupleFilesystemStoreBackend",
            "base_directory": str(docs.resolve()),
        },
    }


class _Quiet:
    """Great Expectations without its telemetry, bars and log."""

    def __enter__(self) -> Any:
        os.environ["GX_ANALYTICS_ENABLED"] = "false"
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")
        self._logger = logging.getLogger("great_expectations")
        self._level = self._logger.level
        self._logger.setLevel(logging.CRITICAL)
        import great_expectations as gx

        return gx

    def __exit__(self, *error: object) -> None:
        self._logger.setLevel(self._level)
        self._warnings.__exit__(None, None, None)


def settle(docs: Path, outcomes: list[Outcome], note: str = "") -> None:
    """Make the pages the same for the same data, whole without a network, and list all outcomes.

    The library's pages take styles and scripts from five hosts, and its index is empty without
    them. Here they get one small style, and the index gets a note and a table of the outcomes.
    """
    run = " ".join(str(path) for path in docs.rglob("*.html"))
    for page in sorted(docs.rglob("*.html")):
        text = _FOREIGN.sub("", page.read_text(encoding="utf-8"))
        for i, random in enumerate(dict.fromkeys(_RANDOM.findall(text))):
            text = text.replace(random, f"id-{i}")
        for clock in set(_CLOCK.findall(text)) - set(_CLOCK.findall(run)):
            text = text.replace(clock, "-")
        text = text.replace("</head>", f"<style>{_STYLE}</style></head>", 1)
        if page == docs / "index.html":
            head, body = _BODY.split(text, maxsplit=1)
            text = f"{head}<body>{_overview(docs, outcomes, note)}{body}"
        page.write_text(text, encoding="utf-8")


def _overview(docs: Path, outcomes: list[Outcome], note: str) -> str:
    """A table of all outcomes that links to the library's pages."""
    lines = []
    for outcome in outcomes:
        check = outcome.check
        pages = sorted((docs / "validations" / check.asset).rglob("*.html"))
        link = pages[0].relative_to(docs).as_posix() if pages else "#"
        said = "met" if outcome.success else ("failed" if check.severity == ERROR else "warning")
        cells = (
            f'<a href="{link}">{check.asset}</a>',
            escape(check.name),
            check.severity,
            f'<span class="{said}">{said}</span>',
            f"{outcome.failed:,} of {outcome.rows:,}",
            escape("; ".join(outcome.examples)),
            "" if outcome.success else escape(check.remedy),
        )
        lines.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    head = ("table", "expectation", "severity", "result", "rows off", "examples", "remedy")
    titles = "".join(f"<th>{title}</th>" for title in head)
    return (
        '<section class="overview"><h1>Are the scans as they should be?</h1>'
        f"<p>{escape(note)}</p><table><tr>{titles}</tr>{''.join(lines)}</table></section>"
    )
