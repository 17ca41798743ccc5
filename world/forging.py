"""epcFake: counterfeits, from a broken code to a perfect copy of a scrapped label."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from trail.epc import HEADER
from trail.scan import Op
from world.case import LOC, ORDER, Case, Key, Plan
from world.text import date_number

FULL_RECORD = 0.9
"""Share of commissioned items from which "never commissioned" means something."""
Maker = Callable[[int], str]


def code_text(case: Case, serial: int, **other: int) -> str:
    """The EPC code of this lot with a serial number and some parts replaced."""
    lot = case.lot
    company = other.get("company", lot.company)
    product = other.get("product", lot.product)
    number = other.get("lot", lot.lot)
    date = int(date_number(np.array([lot.made_day]))[0])
    return f"{HEADER:03d}.{company:07d}.{product:07d}.{number:06d}.{date:08d}.{serial:09d}"


def rides_along(case: Case, forge: Maker) -> Plan | None:
    """A counterfeit is put into a box on its way, and is read with it from then on."""
    inner = [i for i in range(len(case.trail)) if Op.HUB_IN <= case.trail[i][2] <= Op.RETAIL_IN]
    start = case.pick(inner)
    if start is None:
        return None
    shared = [key for key in case.trail[start:] if key[2] <= Op.RETAIL_OUT]
    shared = shared[: _first_repeat(shared)]
    add = shared + _own_sale(case, shared)
    return Plan(case.trail[start], add=add, forge=forge, blur=LOC | ORDER)


def _first_repeat(keys: list[Key]) -> int:
    """Length of the row in which operations only go down the chain."""
    for i in range(1, len(keys)):
        if keys[i][2] <= keys[i - 1][2]:
            return i
    return len(keys)


def _own_sale(case: Case, shared: list[Key]) -> list[Key]:
    """The counterfeit's own sale after it went on the shelf."""
    if not shared or shared[-1][2] != Op.RETAIL_OUT:
        return []
    sold = case.stay_end(Op.SALE, shared[-1][0])
    return [] if sold is None else [(sold, shared[-1][1], int(Op.SALE))]


def malformed(case: Case) -> Plan | None:
    """A counterfeit whose code is not even well-formed is put into a box on its way."""
    serial = int(case.lot.serial[case.e])
    way = int(case.rng.random() * 6)

    def forge(nth: int) -> str:
        text = code_text(case, serial + 1 + nth)
        return (
            text[:-1] + "X",
            text[:-3],
            "9" + text[1:],
            text.replace(".", "_"),
            text[:20] + "000000" + text[26:],
            text[:27] + "20251340" + text[35:],
        )[way]

    return rides_along(case, forge)


def unknown_product(case: Case) -> Plan | None:
    """A counterfeit of a company or product that nobody registered is put into a box."""
    lot, serial = case.lot, int(case.lot.serial[case.e])
    by_company = case.rng.random() < 0.5
    other = 1_000_000 + int(case.rng.random() * 8_900_000)
    if other in (lot.company, lot.product):
        return None
    parts = {"company": other} if by_company else {"product": other}
    return rides_along(case, lambda nth: code_text(case, serial + nth, **parts))


def unknown_lot(case: Case) -> Plan | None:
    """A counterfeit of a lot that was never made is put into a box of the same product."""
    number = case.lot.lot + 7_000 + int(case.rng.random() * 900)
    serial = int(case.lot.serial[case.e])
    if number > 999_999:
        return None
    return rides_along(case, lambda nth: code_text(case, serial + nth, lot=number))


def serial_beyond(case: Case) -> Plan | None:
    """A counterfeit whose serial number lies beyond its lot's range is put into a box."""
    end = int(case.lot.serial.max()) + 50 + int(case.rng.random() * 5_000)
    return rides_along(case, lambda nth: code_text(case, end + nth))


def _unused_maker(case: Case) -> Maker | None:
    """Codes in the lot's range that were never used, for as many as there are."""
    if case.lot.agg_share < FULL_RECORD:
        return None
    unused = case.lot.unused()
    if not unused:
        return None
    at = int(case.rng.random() * len(unused))
    return lambda nth: (
        code_text(case, unused[(at + nth) % len(unused)]) if nth < len(unused) else ""
    )


def never_commissioned(case: Case) -> Plan | None:
    """A counterfeit with an unused serial number in range is put into a box on its way."""
    forge = _unused_maker(case)
    return rides_along(case, forge) if forge else None


def commissioned_late(case: Case) -> Plan | None:
    """A counterfeit with an unused serial number is commissioned hours after its lot."""
    forge = _unused_maker(case)
    keys = {key[2]: key for key in case.trail}
    if forge is None or Op.AGGREGATION not in keys or Op.WMS_OUT not in keys:
        return None
    run, out = keys[Op.AGGREGATION], keys[Op.WMS_OUT]
    made = case.slot(Op.AGGREGATION, run[0] + 2 * 3600_000_000, run[0] + 72 * 3600_000_000)
    if made is None:
        return None
    add: list[Key] = [(made, run[1], int(Op.AGGREGATION))]
    came = case.arrival(run[1], out[1], made)
    if came >= out[0]:
        return None
    add.append((came, out[1], int(Op.WMS_IN)))
    later = [key for key in case.trail if Op.WMS_OUT <= key[2] <= Op.RETAIL_OUT]
    later = later[: _first_repeat(later)]
    add += later
    return Plan(out, add=add + _own_sale(case, later), forge=forge)


def in_quota(case: Case) -> Plan | None:
    """The label of an item bears the number of a scrapped label beside it, from the line on."""
    unused = case.lot.unused()
    if not unused:
        return None
    number = unused[int(case.rng.random() * len(unused))]
    beside = np.flatnonzero(np.abs(case.lot.serial - number) == 1)
    if not len(beside):
        return None
    case.e = int(beside[0])
    case.trail = case.lot.trail(case.e)
    if case.trail[0][2] != Op.AGGREGATION:
        return None
    return Plan(
        case.trail[0],
        add=list(case.trail),
        forge=lambda nth: code_text(case, number),
        rename=True,
        known="never",
    )
