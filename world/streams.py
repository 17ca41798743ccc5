"""Random streams: one for each (seed, stage, key), so that no part of the world moves another."""

from __future__ import annotations

import zlib

import numpy as np


def stream(seed: int, stage: str, key: int = 0) -> np.random.Generator:
    """The generator of a stage for one key (a lot, a site), independent of all others."""
    words = [seed & 0xFFFFFFFF, zlib.crc32(stage.encode()), key & 0xFFFFFFFF, key >> 32]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))
