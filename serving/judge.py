"""The judge: which bundles are in use, and what they say."""

from __future__ import annotations

from dataclasses import dataclass

from models.bundle import Bundle
from trail.facts import BoundContext, Context
from trail.features import Encoded
from trail.registry import Registry
from trail.sites import Sites
from trail.verdict import Verdicts


@dataclass(slots=True)
class Model:
    """A loaded and warmed-up bundle.

    Attributes:
        name: registered model, or the folder's name.
        version: version in the registry, or "bundle".
        bundle: the bundle.
        registry: genuine products that it checks against; an empty one abstains.
    """

    name: str
    version: str
    bundle: Bundle
    registry: Registry
    _bound: tuple[Sites, BoundContext] | None = None

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
