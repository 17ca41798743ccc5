"""The registry: which companies and products are genuine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trail.epc import EpcTable
from trail.scan import Bool, Int64


@dataclass(frozen=True, slots=True)
class Registry:
    """Genuine (company, product) pairs; empty means that none is at hand and checks abstain.

    Attributes:
        company: int64 (c,), distinct, sorted.
        pair: int64 (p,), company * 10^7 + product, distinct, sorted.
    """

    company: Int64
    pair: Int64

    @classmethod
    def of(cls, company: npt.ArrayLike, product: npt.ArrayLike) -> Registry:
        """Build a registry from two columns of one length."""
        companies = np.asarray(company, dtype=np.int64)
        pairs = companies * 10_000_000 + np.asarray(product, dtype=np.int64)
        return cls(np.unique(companies), np.unique(pairs))

    @classmethod
    def none(cls) -> Registry:
        """No registry: every check that needs one abstains."""
        return cls.of([], [])

    @property
    def at_hand(self) -> bool:
        """Whether there is anything to check against."""
        return len(self.pair) > 0

    def has_company(self, codes: EpcTable) -> Bool:
        """Which codes name a registered company, bool (m,)."""
        return _among(self.company, codes.company.astype(np.int64))

    def has_product(self, codes: EpcTable) -> Bool:
        """Which codes name a registered product of their company, bool (m,)."""
        return _among(self.pair, codes.company.astype(np.int64) * 10_000_000 + codes.product)


def _among(known: Int64, wanted: Int64) -> Bool:
    """Which numbers are among sorted ones."""
    if not len(known):
        return np.zeros(len(wanted), dtype=bool)
    place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    found: Bool = known[place] == wanted
    return found
