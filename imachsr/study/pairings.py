"""How often the test finds a difference between runs that differ in nothing but their seed."""

from collections.abc import Sequence

import numpy as np

from imachsr.search.paired import ALPHA

PAIRINGS = 10_000
_EXACT = 14
"""Pairs, up to which all ways to flip their signs are looked at."""


def false_rate(values: Sequence[float], *, pairings: int = PAIRINGS, seed: int = 0) -> float:
    """Share of random pairings of equal runs in which the two-sided sign-flip test has p below 0.05; about 0.05, or the next multiple of 2/2^n below.

    With more than 14 pairs p is estimated from 16,384 ways to flip the signs.

    Args:
        values: Of an even number of runs that differ in the seed only.
        pairings: That are drawn.
        seed: Of the drawing.
    """
    rng, half = np.random.default_rng(seed), len(values) // 2
    if half <= _EXACT:
        signs = 1.0 - 2 * ((np.arange(2**half)[:, None] >> np.arange(half)) & 1)
    else:
        signs = 1.0 - 2 * rng.integers(0, 2, (2**_EXACT, half))
        signs[0] = 1  # the pairs as they are, so that no p is 0
    wins, block = 0, max(1, 2**22 // len(signs))
    for start in range(0, pairings, block):
        count = min(block, pairings - start)
        drawn = rng.permuted(np.tile(np.asarray(values, dtype=np.float64), (count, 1)), axis=1)
        differences = drawn[:, :half] - drawn[:, half : 2 * half]
        least = np.abs(differences.sum(1)) - 1e-9 * np.abs(differences).sum(1)
        ps = (np.abs(differences @ signs.T) >= least[:, None]).mean(1)
        wins += int((ps < ALPHA).sum())
    return wins / pairings
