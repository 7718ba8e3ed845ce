"""How often a confirmation calls a difference where there is none, and how often it finds one that there is, under the table's own noise.

The noise is what the last epoch's values of a configuration's seeds leave around their mean, of all configurations, scaled to be unbiased, resampled.
A study is a baseline and so many configurations with as many paired seeds; a win is what `imachsr confirm` calls one: a positive mean difference with
p < 0.05 of the exact two-sided sign-flip test, after Holm where there are several.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from benchmarks.search_quality.table import Table
from imachsr.search.paired import ALPHA, holm, sign_flip

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A share of studies, with its exact (Clopper-Pearson) 99 % interval."""

    wins: int
    studies: int

    @property
    def value(self) -> float:
        return self.wins / self.studies

    @property
    def interval(self) -> tuple[float, float]:
        found = binomtest(self.wins, self.studies).proportion_ci(0.99, method="exact")
        return float(found.low), float(found.high)


def noise_of(table: Table) -> Floats:
    """Deviations of single trainings from their configuration's mean, scaled by sqrt(S / (S - 1)); of all seeds that ran whole."""
    found: list[float] = []
    for cell in table.cells:
        last = np.array([curve[-1] for curve in cell.curves if len(curve) == table.epochs])
        if len(last) > 1:
            found.extend((last - last.mean()) * math.sqrt(len(last) / (len(last) - 1)))
    return np.array(found)


def is_any_win(differences: Floats) -> bool:
    """Whether any row of ``[comparisons, seeds]`` is a win in its family."""
    ps = holm([sign_flip(row).p for row in differences])
    return any(p < ALPHA and row.mean() > 0 for p, row in zip(ps, differences, strict=True))


def rate(noise: Floats, *, seeds: int, comparisons: int, studies: int, gain: float = 0.0, rng: np.random.Generator) -> Rate:
    """Share of studies with a win.

    Args:
        noise: Deviations that the values are drawn from.
        seeds: Pairs a study.
        comparisons: Configurations against one baseline.
        studies: How many.
        gain: True difference of each configuration, in standard deviations of a paired difference.
        rng: Of the draws.
    """
    shift = gain * math.sqrt(2) * float(noise.std())
    wins = 0
    for _ in range(studies):
        values = rng.choice(noise, (comparisons + 1, seeds))
        wins += is_any_win(values[1:] + shift - values[0])
    return Rate(wins=wins, studies=studies)


def theory(seeds: int, gain: float, *, studies: int, rng: np.random.Generator) -> Rate:
    """The rate for one comparison on normal differences, by a test that shares no code with the project's: all sign patterns, one by one."""
    patterns = np.array(list(itertools.product((1, -1), repeat=seeds)), dtype=np.float64)
    wins = 0
    for _ in range(studies):
        differences = rng.normal(gain, 1.0, seeds)
        sums = np.abs(patterns @ differences)
        wins += bool(differences.sum() > 0 and np.mean(sums >= abs(differences.sum()) * (1 - 1e-9)) < ALPHA)
    return Rate(wins=wins, studies=studies)


def table_of(rows: Sequence[tuple[str, Rate, Rate | None]]) -> str:
    """Markdown."""
    lines = ["| study | rate of wins, % | exact 99 % interval | on normals, % |", "|---|---|---|---|"]
    for name, found, reference in rows:
        low, high = found.interval
        against = "" if reference is None else f"{100 * reference.value:.1f} ({100 * reference.interval[0]:.1f} to {100 * reference.interval[1]:.1f})"
        lines.append(f"| {name} | {100 * found.value:.2f} | {100 * low:.2f} to {100 * high:.2f} | {against} |")
    return "\n".join(lines)


def report(table: Table, *, studies: int) -> str:
    """A/A studies and planted gains, as a table."""
    noise = noise_of(table)
    rows: list[tuple[str, Rate, Rate | None]] = []
    for seeds, comparisons in ((6, 1), (8, 1), (10, 1), (12, 1), (8, 3)):
        name = f"no difference, {seeds} seeds" + (f", {comparisons} configurations" if comparisons > 1 else "")
        rng = np.random.default_rng([0, seeds, comparisons])
        rows.append((name, rate(noise, seeds=seeds, comparisons=comparisons, studies=studies, rng=rng), None))
    for seeds in (6, 8, 10, 12):
        rng = np.random.default_rng([1, seeds])
        found = rate(noise, seeds=seeds, comparisons=1, studies=studies, gain=1.0, rng=rng)
        rows.append((f"gain of 1 sd, {seeds} seeds", found, theory(seeds, 1.0, studies=studies, rng=np.random.default_rng([2, seeds]))))
    return f"Noise: {len(noise)} deviations, standard deviation {noise.std():.2f} points.\n\n{table_of(rows)}"
