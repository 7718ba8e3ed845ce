"""How good a search was: regret against time over repeats, and how contestants compare."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap, trim_mean

from benchmarks.search_quality.simulate import Problem, Replay

Floats = NDArray[np.float64]
RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Speedup:
    """How much sooner than another search a contestant reaches a level.

    Attributes:
        ratio: The other's time over its own; the value is infinite-free: see ``missed``.
        missed: Share of the resamples in which it never reaches the level within the budget; they count as a ratio of 0.
    """

    ratio: Estimate
    missed: float


def iqm(values: Floats, axis: int = 0) -> Floats:
    """Interquartile mean: the mean without the lower and the upper quarter."""
    found: Floats = trim_mean(values, 0.25, axis=axis)
    return found


def _estimate(samples: Sequence[Floats], statistic: Callable[..., Floats], *, value: float, paired: bool = False, seed: int = 0) -> Estimate:
    result = bootstrap(
        tuple(samples), statistic, paired=paired, n_resamples=RESAMPLES, method="percentile", vectorized=True, rng=np.random.default_rng(seed)
    )
    return Estimate(value=value, low=float(result.confidence_interval.low), high=float(result.confidence_interval.high))


def grid_of(found: Sequence[Replay], points: int = 200) -> Floats:
    """Equal steps of time up to the median end of some replays, 0 left out."""
    end = float(np.median([each.seconds for each in found]))
    return np.linspace(end / points, end, points)


def regrets_on(found: Sequence[Replay], problem: Problem, grid: Floats) -> Floats:
    """Regret ``[repeats, times]``; before anything was reported, that of the worst configuration."""
    worst = problem.best - min(problem.truth)
    found_on: Floats = np.minimum(np.array([each.regret_at(grid) for each in found]), worst)
    return found_on


def curve(regrets: Floats) -> tuple[Floats, Floats, Floats]:
    """Interquartile mean over the repeats at each time, and its bootstrap 95 % interval."""
    result = bootstrap((regrets,), iqm, n_resamples=RESAMPLES, method="percentile", vectorized=True, axis=0, rng=np.random.default_rng(0))
    return iqm(regrets), result.confidence_interval.low, result.confidence_interval.high


def final(regrets: Floats) -> Estimate:
    """Interquartile mean of the last regret."""
    last = regrets[:, -1]
    return _estimate([last], iqm_last, value=float(iqm(last)))


def iqm_last(values: Floats, axis: int = -1) -> Floats:
    return iqm(values, axis=axis)


def first_below(line: Floats, grid: Floats, level: float) -> float:
    """First time at which a line is at or below a level; infinite when it never is."""
    (reached,) = np.nonzero(line <= level)
    return float(grid[reached[0]]) if len(reached) else math.inf


def speedup(regrets: Floats, other: Floats, grid: Floats) -> Speedup:
    """Time at which the other's interquartile mean first is where it ends, over the time at which this one's is; repeats are resampled in pairs.

    Args:
        regrets: ``[repeats, times]``.
        other: Likewise, same repeats.
        grid: Times, seconds.
    """

    def ratio(index: NDArray[np.intp]) -> float:
        line, reference = iqm(regrets[index]), iqm(other[index])
        level = float(reference[-1])
        return first_below(reference, grid, level) / first_below(line, grid, level)

    everyone = np.arange(len(regrets))
    result = bootstrap(
        (everyone,), lambda index: ratio(index), n_resamples=RESAMPLES, method="percentile", vectorized=False, rng=np.random.default_rng(0)
    )
    bounds = result.confidence_interval
    missed = float(np.mean(result.bootstrap_distribution == 0))
    return Speedup(ratio=Estimate(value=ratio(everyone), low=float(bounds.low), high=float(bounds.high)), missed=missed)


def reached(regrets: Floats, other: Floats, grid: Floats) -> tuple[float, float]:
    """Repeat by repeat: the median ratio of the other's time to its own final regret over this one's to the same, and the share that reaches it.

    A repeat that never does counts as a ratio of 0; the median says nothing else about it.
    """
    ratios = [
        first_below(reference, grid, float(reference[-1])) / first_below(line, grid, float(reference[-1]))
        for line, reference in zip(regrets, other, strict=True)
    ]
    return float(np.median(ratios)), float(np.mean(np.array(ratios) > 0))


def beats(regrets: Floats, other: Floats, column: int = -1) -> Estimate:
    """Probability that the regret is the lower one in a repeat; a tie is half a win."""
    ours, theirs = regrets[:, column], other[:, column]
    wins = np.where(ours < theirs, 1.0, np.where(ours == theirs, 0.5, 0.0))
    value = float(wins.mean())
    if np.all(wins == wins[0]):  # nothing to resample: the exact bound of a proportion that was never seen otherwise
        bound = 1 - 0.05 ** (1 / len(wins)) if wins[0] in (0.0, 1.0) else 0.0
        return Estimate(value=value, low=value - bound * (value == 1), high=value + bound * (value == 0))
    return _estimate([wins], lambda x, axis=-1: x.mean(axis=axis), value=value)
