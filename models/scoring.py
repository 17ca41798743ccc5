"""Scoring whole files: scans in, verdicts and sentences out, chunk by chunk in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from models.bundle import Bundle
from trail.facts import Context, facts_of
from trail.features import matrix
from trail.registry import Registry
from trail.rules import judge
from trail.scan import ANOMALIES, Bool, Float32, Scans
from trail.sites import Sites
from trail.trails import sort
from trail.verdict import Source
from trail.words import verdict_sentence

ENOUGH_KNOWN = 0.5
"""Share of the scans that must be those of its own installation for a registry to apply."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Verdicts on n scans, in the order of the scans given.

    Attributes:
        score: float32 (n, 5), 0-100, flagged from 50 on.
        flag: bool (n, 5).
        source: n sources.
        evidence: n sentences, "" where nothing is flagged.
    """

    score: Float32
    flag: Bool
    source: list[str]
    evidence: list[str]

    def counts(self) -> dict[str, int]:
        """Flagged scans by anomaly."""
        return {name: int(self.flag[:, k].sum()) for k, name in enumerate(ANOMALIES)}


def score(
    bundle: Bundle,
    scans: Scans,
    sites: Sites,
    registry: Registry,
    progress: Callable[[int], object] | None = None,
) -> Scored:
    """Judge scans of any number of lots.

    Args:
        bundle: the model.
        scans: n scans in any order.
        sites: the site master that they refer to.
        registry: genuine products; an empty one abstains.
        progress: called with the number of scans done since the last call.
    """
    n = len(scans)
    trails = sort(scans)
    context = Context(sites, bundle.network, registry)
    result = Scored(
        np.zeros((n, len(ANOMALIES)), np.float32),
        np.zeros((n, len(ANOMALIES)), bool),
        [Source.MODEL.value] * n,
        [""] * n,
    )
    for part, known in facts_of(trails, context):
        chunk, findings = trails.part(part), judge(known)
        offsets = np.append(np.flatnonzero(trails.starts[part]), part.stop - part.start)
        verdicts = bundle.judge(matrix(known, findings), offsets, findings)
        at = trails.order[part]
        result.score[at], result.flag[at] = verdicts.score, verdicts.flag
        for i in np.flatnonzero(verdicts.flag.any(axis=1) | verdicts.cold).tolist():
            flags = tuple(bool(f) for f in verdicts.flag[i])
            result.source[at[i]] = verdicts.source(i).value
            result.evidence[at[i]] = verdict_sentence(flags, i, known, findings, chunk, sites)
        if progress is not None:
            progress(part.stop - part.start)
    return result


def registry_that_applies(own: Registry, scans: Scans, sites: Sites) -> Registry:
    """A bundle's own registry, or none where the scans are those of another installation.

    It applies where most scans lie at sites of the master and name a company of the registry: the
    products of an installation that it does not list are not forged for that.
    """
    if not len(scans):
        return Registry.none()
    at_home = float(sites.known[scans.site].mean())
    listed = float(own.has_company(scans.codes)[scans.epc].mean())
    return own if min(at_home, listed) >= ENOUGH_KNOWN else Registry.none()
