"""Sentences for verdicts: what a person is told when a scan is flagged."""

from __future__ import annotations

from trail.facts import Facts
from trail.rules import Findings, Reason, duration, evidence
from trail.scan import ANOMALIES, EVENT_TYPES, Anomaly, Scans
from trail.sites import Sites

LEAST = 30.0
"""Rule score from which a rule's own sentence is worth showing."""


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
        return evidence(reason, i, known, scans, sites)
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
    return f"{EVENT_TYPES[int(scans.op[i])]} at {here} does not fit the trail so far."


def _arrival(i: int, known: Facts, here: str, before: int) -> str:
    gap = duration(float(known.gap_s[i]))
    text = f"Arrived at {here} {gap} after the previous scan"
    if known.steps is not None and known.steps.low_h[i] > 0:
        low = duration(float(known.steps.low_h[i]) * 3600)
        high = duration(float(known.steps.high_h[i]) * 3600)
        text += f"; this route takes {low} to {high}"
    left = int(known.mates.group_before[i] - known.mates.departed[i])
    if before > 1 and left > 0:
        text += f"; {left} of the {before} it left with had not arrived"
    return text + "."


def verdict_sentence(
    flags: tuple[bool, ...], i: int, known: Facts, findings: Findings, scans: Scans, sites: Sites
) -> str:
    """All sentences of one scan, each behind the wire name of its anomaly."""
    return " ".join(
        f"{name}: {sentence(k, i, known, findings, scans, sites)}"
        for k, name in enumerate(ANOMALIES)
        if flags[k]
    )
