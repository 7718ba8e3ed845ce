"""How often the test finds a difference between runs that differ in nothing but their seed."""

from collections.abc import Sequence

import numpy as np

from imachsr.search.paired import ALPHA

PAIRINGS = 10_000


def false_rate(values: Sequence[float], *, pairings: int = PAIRINGS, seed: int = 0) -> float:
    """Share of random pairings of equal runs in which the two-sided sign-flip test has p below 0.05; about 0.05, or the next multiple of 2/2^n below.

    Args:
        values: Of an even number of runs that differ in the seed only.
        pairings: That are drawn.
        seed: Of the drawing.
    """
    rng, half = np.random.default_rng(seed), len(values) // 2
    signs = 1.0 - 2 * ((np.arange(2**half)[:, None] >> np.arange(half)) & 1)
    wins, block = 0, max(1, 2**22 // 2**half)
    for start in range(0, pairings, block):
        count = min(block, pairings - start)
        drawn = rng.permuted(np.tile(np.asarray(values, dtype=np.float64), (count, 1)), axis=1)
        differences = drawn[:, :half] - drawn[:, half : 2 * half]
        least = np.abs(differences.sum(1)) - 1e-9 * np.abs(differences).sum(1)
        ps = (np.abs(differences @ signs.T) >= least[:, None]).mean(1)
        wins += int((ps < ALPHA).sum())
    return wins / pairings
