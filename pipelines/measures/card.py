"""The model card: what a person must know before trusting the model, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.measures import explanations
from pipelines.measures.headline import main_model
from pipelines.measures.settings import Settings
from pipelines.measures.summary import NAMES, bounds_text, gain_text
from trail.scan import ANOMALIES

Block = Mapping[str, Any]

WEAK = 0.75
"""Recall at 1 % false positives below which a kind of tampering is named as weak."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where the figures come from.

    Attributes:
        command: the command that made them.
        data_hash: hash of the data as DVC pins them.
        weights_digest: digest of the weights.
        parts: name, scans, trails and lots of each part of the split.
    """

    command: str
    data_hash: str
    weights_digest: str
    parts: Sequence[tuple[str, int, int, int]]


def card(metrics: Mapping[str, Any], settings: Settings, origin: Provenance) -> str:
    """The card, from the tree of metrics.json; plots are linked as `plots/NAME.png`."""
    injected = metrics["injected"]
    main = main_model(injected)
    sections = [
        _opening(metrics, main),
        _data(injected, origin),
        _quality(injected, main),
        _other_blocks(metrics, main),
        _grades(injected),
        _controls(injected),
        _operating(injected, settings),
        _calibration(injected),
        _business(injected, settings),
        _position(injected),
        *_explanation(metrics.get("explanation")),
        _limits(injected, metrics.get("natural"), main),
        _origin(origin),
    ]
    return "\n\n".join(sections) + "\n"


def _opening(metrics: Mapping[str, Any], main: str) -> str:
    injected = metrics["injected"]
    gain = gain_text(injected, main)
    text = (
        "# Model card\n\n"
        f"Trailwatch scores every scan of a product for five anomalies: {', '.join(ANOMALIES)}. "
        f"The model is a causal {_called(main)} over the scans of one product's trail; rules, a "
        "one-class SVM and gradient boosting are its baselines, on the same features and scans. "
        "It is meant to point people at scans worth a look, not to decide about people or "
        "shipments by itself.\n\n"
        "All figures are per type and per block of truth; blocks are never pooled. Intervals are "
        "95 %, by bootstrap over lots, because false positives cluster by lot.\n\n"
        f"**Mean average precision: {bounds_text(injected['map'][main])}**"
    )
    return f"{text}, over the rules {gain}." if gain else f"{text}."


def _data(injected: Block, origin: Provenance) -> str:
    sizes = _table(
        ["part", "scans", "trails", "lots"],
        [[name, f"{s:,}", f"{t:,}", f"{lots:,}"] for name, s, t, lots in origin.parts],
    )
    found = _table(
        ["injected, test", *ANOMALIES],
        [
            ["anomalous trails", *(f"{injected['anomalous_trails'][k]:,}" for k in ANOMALIES)],
            ["anomalous scans", *(f"{injected['anomalous_scans'][k]:,}" for k in ANOMALIES)],
        ],
    )
    return (
        "## Data\n\n"
        "Split by the day a lot came into being, so that no lot, box or product is in two parts "
        "and every part is later than the one before. Tampering was injected after the split, "
        f"separately in each part.\n\n{sizes}\n\n{found}"
    )


def _quality(injected: Block, main: str) -> str:
    lines = [
        "## Average precision, injected tampering",
        _ap_table(injected),
        "![Average precision](plots/ap.png)",
        "![Precision and recall](plots/pr.png)",
        "### Differences, paired by lot",
        _gain_table(injected),
        "p: two-sided, by bootstrap; adjusted for five types by Holm's method.",
        "### Recall at a given false positive rate",
        _recall_table(injected),
        "### Which type is flagged when which is the truth",
        f"![Confusion of the {_called(main)}](plots/confusion.png)",
    ]
    return "\n\n".join(lines)


def _ap_table(block: Block) -> str:
    return _table(
        ["model", *ANOMALIES, "mean"],
        [
            [
                _called(model),
                *(bounds_text(by_type[kind]) for kind in ANOMALIES),
                f"**{bounds_text(block['map'][model])}**",
            ]
            for model, by_type in block["ap"].items()
        ],
    )


def _gain_table(block: Block) -> str:
    rows = []
    for pair, gain in block["gain"].items():
        better, worse = pair.split("_vs_")
        rows.append(
            [
                f"{_called(better)} - {_called(worse)}",
                _signed(gain["map"]),
                *(
                    f"{_number(gain['ap'][k]['mid'], '+.3f')} (p {_p(gain['ap'][k]['p_holm'])})"
                    for k in ANOMALIES
                ),
            ]
        )
    return _table(["difference", "mean", *ANOMALIES], rows)


def _recall_table(block: Block) -> str:
    rows = []
    for model in block["map"]:
        for fpr, by_model in block["recall_at_fpr"].items():
            cells = [_number(by_model[model][kind]) for kind in ANOMALIES]
            rows.append([_called(model), fpr, *cells])
    return _table(["model", "FPR", *ANOMALIES], rows)


def _other_blocks(metrics: Mapping[str, Any], main: str) -> str:
    lines = ["## Average precision, natural tampering"]
    natural = metrics.get("natural")
    if natural:
        lines += [
            "Tampering that the world itself hides, some of kinds never injected in training; no "
            "other stage has seen these answers.",
            _ap_table(natural),
            f"{_called(main)} over the rules: {gain_text(natural, main) or '-'}.",
            "![Recall by kind, natural](plots/recall_natural.png)",
        ]
    else:
        lines.append("Not measured: these data come without answers.")
    if metrics.get("verdicts"):
        lines += [
            "## Average precision, analysts' verdicts",
            "Trails that analysts have looked at, which is no fair sample of all.",
            _ap_table(metrics["verdicts"]),
        ]
    return "\n\n".join(lines)


def _grades(injected: Block) -> str:
    return (
        "## Difficulty\n\n"
        "Recall at 1 % false positives, from grade 0 (blatant) to 3 (only context can tell).\n\n"
        "![Recall by type and grade](plots/grades.png)\n\n"
        "![Recall by kind of tampering](plots/recall.png)"
    )


def _controls(injected: Block) -> str:
    rows = []
    for kind in ANOMALIES:
        for name, found in injected["controls"][kind].items():
            cells = [bounds_text(one) for one in found["auc"].values()]
            told = _percent(found["caught"][main_model(injected)], 1)
            rows.append([kind, _words(name), f"{found['trails']:,}", *cells, told])
    text = (
        "## Controls\n\n"
        "Tampering that cannot be told by anyone: an AUC away from 0.45-0.55 would be a leak in "
        "the simulated world. Where later scans do tell it (a cloned box, once its tracks "
        "conflict), only those before are asked. Controls count in no other figure.\n\n"
    )
    if not rows:
        return text + "There are none in these data."
    models = [_called(model) for model in injected["map"]]
    last = f"told in the end by the {_called(main_model(injected))}"
    return text + _table(["type", "control", "trails", *models, last], rows)


def _operating(injected: Block, settings: Settings) -> str:
    keys = ("recall", "precision", "specificity", "f1", "f_beta", "accuracy")
    rates = [f"precision at {share}" for share in _shares(injected)]
    rows = []
    for model, by_type in injected["operating"].items():
        for kind in ANOMALIES:
            one = by_type[kind]
            rows.append(
                [
                    _called(model),
                    kind,
                    "never" if one["threshold"] > 1 else _number(one["threshold"]),
                    *(_number(one[key]) for key in keys),
                    _percent(one["fpr"]),
                    _percent(one["fpr_upper95"]),
                    _number(one["saving"]),
                    *(_number(value) for value in one["precision_at"].values()),
                ]
            )
    head = ["model", "type", "threshold", *keys, "FPR", "FPR, upper 95 %", "saving", *rates]
    betas = ", ".join(f"{kind} {settings.betas[kind]:g}" for kind in ANOMALIES)
    return (
        "## At the operating thresholds\n\n"
        "Thresholds are the cheapest on the calibration part whose false positive rate has an "
        f"upper 95 % bound (by lot) of at most {_percent(settings.fpr_bound)}; the rules are shown "
        f"also with their own threshold, {settings.rule_flag:g} of 100. F-beta has beta {betas}. "
        "Saving is against the cheaper of flagging nothing and everything. Accuracy is a legacy "
        "figure: flagging nothing has about 98 %.\n\n"
        f"{_table(head, rows)}\n\n![Cost against the threshold](plots/cost.png)"
    )


def _shares(block: Block) -> list[str]:
    first = next(iter(block["operating"].values()))
    return list(first[ANOMALIES[0]]["precision_at"])


def _calibration(injected: Block) -> str:
    rows = [
        [
            _called(model),
            *(f"{_number(one['brier'], '.4f')} / {_number(one['ece'], '.4f')}" for one in found),
        ]
        for model, by_type in injected["calibration"].items()
        for found in [[by_type[kind] for kind in ANOMALIES]]
    ]
    return (
        "## Calibration\n\n"
        "Brier score / expected calibration error (15 bins of equal mass), at the share of "
        "anomalies of the injected block.\n\n"
        f"{_table(['model', *ANOMALIES], rows)}\n\n![Reliability](plots/reliability.png)"
    )


def _business(injected: Block, settings: Settings) -> str:
    found = injected["business"]
    rows = [
        [
            _called(model),
            _number(one["alerts_a_day"], ",.1f"),
            _number(one["minutes_a_true_hit"], ",.1f"),
            f"{one['shipments_blocked_wrongly']:,} ({_percent(one['share_blocked_wrongly'])})",
            _number(one["value_saved"], ",.0f"),
            _percent(one["share_of_value_saved"], 1),
        ]
        for model, one in found.items()
    ]
    head = [
        "model",
        "alerts a day",
        "minutes a true hit",
        "shipments blocked wrongly",
        "value saved",
        "of what could be",
    ]
    first = next(iter(found.values()))["at_prevalence"]
    at = _table(
        ["model", *(_words(key) for key in first)],
        [
            [_called(m), *(_number(v, ",.1f") for v in one["at_prevalence"].values())]
            for m, one in found.items()
        ],
    )
    told = _table(
        ["model", "type", "told", "before the sale", "possible", "hours, median", "P90"],
        [
            [
                _called(model),
                kind,
                _percent(one["caught"], 1),
                _percent(one["caught_before_sale"], 1),
                _percent(one["possible_before_sale"], 1),
                _number(one["hours_median"], ".1f"),
                _number(one["hours_p90"], ".1f"),
            ]
            for model, by_type in injected["delay"].items()
            for kind, one in by_type.items()
        ],
    )
    return (
        "## What it means for the people\n\n"
        "Alerts are counted by shipment (what one lot does at one second in one operation). "
        f"A product is worth {settings.value_of_product:g}, an alert takes "
        f"{settings.analyst_minutes_per_alert:g} minutes.\n\n"
        f"{_table(head, rows)}\n\nWhere a given share of scans is anomalous, by scan:\n\n{at}\n\n"
        f"Time from the first scan at which it can be known to the alert:\n\n{told}\n\n"
        "![Delay](plots/delay.png)"
    )


def _position(injected: Block) -> str:
    buckets = list(injected["position"])
    rows = [
        [_called(m), *(_number(injected["position"][b][m]["map"]) for b in buckets)]
        for m in injected["map"]
    ]
    head = [f"scan {b} ({injected['position'][b]['scans']:,})" for b in buckets]
    return (
        "## Early in the trail\n\nMean average precision among the scans at a place in their "
        f"trail (number of scans).\n\n{_table(['model', *head], rows)}"
    )


def _explanation(found: Mapping[str, Any] | None) -> list[str]:
    """The section on explanations, if they were measured."""
    if not found:
        return []
    return [
        f"## Explanations\n\n{explanation(found)}\n\n![Deletion of features](plots/explanation.png)"
    ]


def explanation(found: Mapping[str, Any]) -> str:
    """What explanations are worth, from the tree of `explanations.measure`: words and a table."""
    top, hit = explanations.TOP, explanations.HIT
    rows = [
        [
            baseline,
            kind,
            f"{one['cases']}",
            f"{_number(one[hit])} ({_number(one[f'{hit}_chance'])})",
            _number(one[f"{hit}_corrected"]),
            _by_chance(one),
            _number(one["deletion"]),
            _number(one["deletion_random"]),
            _p(one["deletion_p"]),
            _percent(one["completeness_p95"]),
        ]
        for baseline, by_type in found.items()
        for kind, one in by_type.items()
    ]
    head = [
        "baseline",
        "type",
        "scans",
        f"hit@{top} (chance)",
        "corrected",
        "localisation (chance, scans)",
        "deletion",
        "random",
        "p",
        "completeness error, P95",
    ]
    aims = (
        f"They should reach: hit@{top} above {explanations.GOOD_HIT:g} when corrected, "
        f"localisation above {explanations.GOOD_LOCALISATION:g}, deletion better than at random "
        f"(p < {explanations.GOOD_P:g}), completeness error below "
        f"{_percent(explanations.GOOD_COMPLETENESS, 0)}."
    )
    short = [
        f"{'; '.join(missed)} (against {baseline})"
        for baseline, by_type in found.items()
        if (missed := explanations.short_of(by_type))
    ]
    return (
        "What injected scans that the model flags rightly are flagged for, each with its trail up "
        "to the scan, from as many kinds of tampering and lots as there are: Integrated Gradients "
        "for the network, Shapley values for boosting in a stack. The service explains against the "
        "mean of the training scans; zeros are for comparison.\n\n"
        f"- Hit@{top}: of the {top} features that are worth most, summed over the scans of the "
        "trail, one reads off what the tampering changed (`pipelines/measures/causes.py`). "
        "Corrected is the share of what chance leaves.\n"
        "- Localisation: the scan that is worth most belongs to the cause. Trails that belong to "
        "it as a whole, as every counterfeit's does, are not counted.\n"
        f"- Deletion: median drop of the probability without those {top} features, which are set "
        f"to their mean in all scans, and without {top} random ones. p by Wilcoxon's signed-rank "
        "test, paired by scan, one-sided.\n"
        "- Completeness error: what the parts miss of the difference to the baseline, as a share "
        "of it.\n\n"
        f"{_table(head, rows)}\n\n{aims} "
        f"{'Short of that: ' + '. '.join(short) if short else 'All do'}."
    )


def _by_chance(one: Mapping[str, Any]) -> str:
    if not one["localisation_cases"]:
        return "-"
    chance = _number(one["localisation_chance"])
    return f"{_number(one['localisation'])} ({chance}, {one['localisation_cases']})"


def _limits(injected: Block, natural: Block | None, main: str) -> str:
    lines = ["## What it cannot do", ""]
    weak = [*_weak(injected, main, "injected"), *_weak(natural or {}, main, "natural")]
    if weak:
        bound = f"{WEAK * 100:.0f} %"
        lines.append(f"- It finds less than {bound} at 1 % false positives of: {'; '.join(weak)}.")
    lines += [
        "- It cannot tell tampering that leaves no trace in the scans: the controls are such.",
        "- It judges codes, places and times only; a genuine code on a false product that travels "
        "as the genuine one would is honest to it.",
        "- The tampering is simulated, and with the default data so is the whole world. In a real "
        "network the share of anomalies, the noise and the kinds of tampering differ: use "
        "precision at your own prevalence, and calibrate again on verdicts.",
        "- A first scan has no history: see the figures by place in the trail.",
        "- Alerts are reasons to look, with their evidence; they are no proof against anybody.",
    ]
    return "\n".join(lines)


def _weak(block: Block, main: str, name: str) -> list[str]:
    return [
        f"{kind}, {_words(subtype)} ({name}, recall {found['recall'][main]:.2f}, "
        f"{found['scans']} scans)"
        for kind, by_subtype in block.get("subtypes", {}).items()
        for subtype, found in by_subtype.items()
        if found["recall"][main] is not None and found["recall"][main] < WEAK
    ]


def _origin(origin: Provenance) -> str:
    return (
        "## How these figures were made\n\n"
        f"```\n{origin.command}\n```\n\n"
        f"Data {origin.data_hash}, weights {origin.weights_digest[:12]}. Every figure, and more, "
        "is in `metrics.json`; the definitions are in `pipelines/measures/`."
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _called(model: str) -> str:
    return NAMES.get(model, model)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _number(value: float | None, style: str = ".3f") -> str:
    return "-" if value is None else format(value, style)


def _percent(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def _signed(one: Mapping[str, float | None]) -> str:
    if one["mid"] is None or one["low"] is None or one["high"] is None:
        return "-"
    return f"{one['mid']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]"


def _p(value: float | None) -> str:
    return "-" if value is None else ("< 0.01" if value < 0.01 else f"{value:.2f}")
