"""Merging: given scans put among the remembered ones; their trails as they then are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from serving.history.keeping import Keeping
from serving.history.packed import Asked, Records, in_trail_order
from trail.scan import Bool, Int32, Int64, Op


@dataclass(frozen=True, slots=True)
class Merged:
    """Trails with the given scans put in; r records in trail order.

    Attributes:
        records: the remembered and the given scans.
        epc: int32 (r,), row of their code.
        fresh: bool (r,), is given and was not remembered.
        kept: bool (r,), stays in the store: not among the oldest of a trail that is too long.
        at: int64 (n,), place of each given scan in `records`.
        new: bool (n,), the given scan was not remembered, nor given before in this call.
        changed: bool (m,), the trail has a new scan.
        new_sale: bool (m,), and that is a sale.
        sold: bool (m,), a sale is among the scans that stay.
    """

    records: Records
    epc: Int32
    fresh: Bool
    kept: Bool
    at: Int64
    new: Bool
    changed: Bool
    new_sale: Bool
    sold: Bool


def merged(
    asked: Asked, remembered: Records, epc: Int32, given: Records, keeping: Keeping
) -> Merged:
    """Put given scans among remembered ones.

    Args:
        asked: the codes of the given scans.
        remembered: what was remembered of these codes, trail after trail.
        epc: row of the code of each of them.
        given: n scans.
        keeping: how long a trail may be.
    """
    every = np.concatenate([remembered, given])
    every_epc = np.concatenate([epc, asked.epc])
    order, other = in_trail_order(every, every_epc)
    head = order[other]
    run = np.empty(len(order), np.intp)
    run[order] = np.cumsum(other) - 1
    records, code = every[head], every_epc[head]
    fresh = head >= len(remembered)
    new = np.zeros(len(given), bool)
    new[head[fresh] - len(remembered)] = True
    size = np.bincount(code, minlength=len(asked))
    position = np.arange(len(code)) - np.repeat(np.cumsum(size) - size, size)
    kept = position >= size[code] - keeping.most_scans
    sale = (records["place"] & 15) == Op.SALE
    return Merged(
        records=records,
        epc=code,
        fresh=fresh,
        kept=kept,
        at=run[len(remembered) :].astype(np.int64),
        new=new,
        changed=_any(code[fresh], len(asked)),
        new_sale=_any(code[fresh & sale], len(asked)),
        sold=_any(code[kept & sale], len(asked)),
    )


def _any(code: Int32, m: int) -> Bool:
    found = np.zeros(m, bool)
    found[code] = True
    return found
