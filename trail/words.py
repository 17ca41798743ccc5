"""Sentences for verdicts: what a person is told when a scan is flagged."""

from __future__ import annotations

from trail.facts import Facts
from trail.rules import Findings, Reason, duration, evidence
from trail.scan import ANOMALIES, EVENT_TYPES, Anomaly, Scans
from trail.sites import Sites

LEAST = 30.0
"""Rule score from which a rule's own sentence is worth showing."""
_SPEEDS = (Reason.TOO_FAST, Reason.IMPOSSIBLE)


def sentence(
    anomaly: int, i: int, known: Facts, findings: Findings, scans: Scans, sites: Sites
) -> str:
    """Why scan `i` was flagged for an anomaly: the rule's evidence, else what its context shows.

    Args:
        anomaly: column 0-4.
        i: row in `known`, `findings` and `scans`.
        known: facts of a chunk.
        findings: what the rules found in it.
        scans: its scans.
        sites: the site master.
    """
    reason = int(findings.reason[i, anomaly])
    if reason != Reason.NONE and findings.score[i, anomaly] >= LEAST:
        said = evidence(reason, i, known, scans, sites)
        usual = _usual(i, known) if reason in _SPEEDS else ""
        return f"{said.removesuffix('.')}{usual}." if usual else said
    return _context(anomaly, i, known, scans, sites)


def _context(anomaly: int, i: int, known: Facts, scans: Scans, sites: Sites) -> str:
    mates = known.mates
    here = sites.names[int(scans.site[i])] or f"site {sites.ids[int(scans.site[i])]}"
    before = int(mates.group_before[i])
    if anomaly == Anomaly.FAKE:
        return (
            f"First seen as {EVENT_TYPES[int(known.first_op[i])]}; "
            f"{int(mates.lot_commissioned[i])} codes of its lot were commissioned by now."
        )
    if anomaly == Anomaly.LOC and before > 1:
        elsewhere = int(mates.departed[i] - mates.departed_here[i])
        return (
            f"It was one of {before} together before; {int(mates.group[i])} arrived at {here} "
            f"now, and {elsewhere} of the others were seen elsewhere."
        )
    if anomaly == Anomaly.JUMP:
        return _arrival(i, known, here, before)
    if anomaly == Anomaly.DUP and int(known.previous[i]) >= 0:
        was = sites.names[int(scans.site[int(known.previous[i])])]
        gap = duration(float(known.gap_s[i]))
        return f"Seen at {here} {gap} after {was}, apart from the items it travelled with."
    if known.repeat_gap_s[i] > 0:
        gap = duration(float(known.repeat_gap_s[i]))
        return f"{EVENT_TYPES[int(scans.op[i])]} at {here} once more, {gap} after the same there."
    return f"{EVENT_TYPES[int(scans.op[i])]} at {here} does not fit the trail so far."


def _arrival(i: int, known: Facts, here: str, before: int) -> str:
    gap = duration(float(known.gap_s[i]))
    away = f", {float(known.km[i]):.0f} km away," if known.km[i] >= 1 else ""
    text = f"Arrived at {here}{away} {gap} after the previous scan{_usual(i, known)}"
    left = int(known.mates.group_before[i] - known.mates.departed[i])
    if before > 1 and left > 0:
        text += f"; {left} of the {before} it left with had not arrived"
    return text + "."


def _usual(i: int, known: Facts) -> str:
    """What such a step takes, "" where that is not known."""
    if known.steps is None or not known.steps.low_h[i] > 0:
        return ""
    low = duration(float(known.steps.low_h[i]) * 3600)
    high = duration(float(known.steps.high_h[i]) * 3600)
    number, unit = low.split()
    return f"; this route takes {number if high.endswith(unit) else low} to {high}"


def verdict_sentence(
    flags: tuple[bool, ...], i: int, known: Facts, findings: Findings, scans: Scans, sites: Sites
) -> str:
    """All sentences of one scan, each behind the wire name of its anomaly."""
    return " ".join(
        f"{name}: {sentence(k, i, known, findings, scans, sites)}"
        for k, name in enumerate(ANOMALIES)
        if flags[k]
    )
