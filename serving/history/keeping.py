"""Keeping: how much is kept, and for how long."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Final

from serving.history import MOST_GROUPS, MOST_SCANS
from trail.scan import DAY_US, HOUR_US

_LONGEST_DAYS: Final = 36_500.0


@dataclass(frozen=True, slots=True)
class Keeping:
    """What a store keeps.

    Attributes:
        after_sale_us: a trail is kept so long after its last sale was remembered.
        idle_us: an unsold trail is kept so long after it was last touched.
        most_scans: of a trail.
        most_groups: of a lot.
    """

    after_sale_us: int
    idle_us: int
    most_scans: int = MOST_SCANS
    most_groups: int = MOST_GROUPS

    @property
    def lot_us(self) -> int:
        """A lot is kept so long after it was last touched: no trail of it is kept longer."""
        return max(self.idle_us, self.after_sale_us)

    @classmethod
    def days(cls, after_sale: float, idle: float) -> Keeping:
        """Raises `ValueError` where a number of days is not between 0 and a century."""
        for name, value in (("keep_days_after_sale", after_sale), ("keep_days_idle", idle)):
            if not 0 < value <= _LONGEST_DAYS or math.isnan(value):
                raise ValueError(f"{name} is {value!r}; give days, more than 0, at most 36500")
        return cls(int(after_sale * DAY_US), int(idle * DAY_US))


def due_hour(when_us: int) -> int:
    """Hours since 1970 at which something due at a time is certainly due."""
    return -(-when_us // HOUR_US)


def wall_us() -> int:
    """The wall clock, microseconds since 1970."""
    return time.time_ns() // 1000
