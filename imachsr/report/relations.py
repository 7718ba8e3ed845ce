"""How settings and the metric go together over a search's trials, and which trials no other is better than."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

LEAST = 4
"""Trials below which no association is told."""


@dataclass(frozen=True, kw_only=True)
class Association:
    """Of one setting with the metric.

    Attributes:
        key: Of the setting.
        share: Of the variance of the metric's ranks that goes with the setting, from 0 to 1.
        chance: The same, expected of a setting without any effect.
        trials: In which it is set.
        measure: How it was computed.
    """

    key: str
    share: float
    chance: float
    trials: int
    measure: str


def associations(trials: Sequence[Mapping[str, Any]]) -> list[Association]:
    """Of each setting that varies, from the strongest down: Spearman's correlation squared for numbers, eta squared of the ranks for names.

    One setting at a time: settings that were sampled together cannot be told apart, and what acts only together with another is not seen.

    Args:
        trials: Finished, sampled ones, with ``params`` and ``value``.
    """
    found = []
    for key in dict.fromkeys(key for trial in trials for key in trial["params"]):
        own = [trial for trial in trials if key in trial["params"]]
        given, scores = [trial["params"][key] for trial in own], [trial["value"] for trial in own]
        if len(own) < LEAST or len(set(map(str, given))) < 2 or len(set(scores)) < 2:
            continue
        if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in given):
            share, chance, measure = float(stats.spearmanr(given, scores).statistic) ** 2, 1 / (len(own) - 1), "rank correlation squared"
        else:
            share, chance, measure = *_eta_squared(list(map(str, given)), scores), "eta squared of ranks"
        found.append(Association(key=key, share=share, chance=chance, trials=len(own), measure=measure))
    return sorted(found, key=lambda each: each.chance - each.share)


def _eta_squared(names: Sequence[str], scores: Sequence[float]) -> tuple[float, float]:
    """Between the groups over all, and its expectation where the groups are drawn by lot."""
    ranks = stats.rankdata(scores)
    groups = [ranks[[name == each for name in names]] for each in sorted(set(names))]
    between = sum(len(group) * (group.mean() - ranks.mean()) ** 2 for group in groups)
    return float(between / ((ranks - ranks.mean()) ** 2).sum()), (len(groups) - 1) / (len(names) - 1)


def front(points: Sequence[tuple[float, float, int]], *, is_more_better: tuple[bool, bool]) -> list[int]:
    """Numbers of the points than which none other is as good in both, and better in one.

    Args:
        points: Two values and a number.
        is_more_better: Of each of the values.
    """
    signs = np.where(is_more_better, 1.0, -1.0)
    values = np.array([each[:2] for each in points]).reshape(-1, 2) * signs
    return [each[2] for each, own in zip(points, values, strict=True) if not ((values >= own).all(1) & (values > own).any(1)).any()]


def rungs(summary: Mapping[str, Any], curves: Mapping[int, Sequence[tuple[int, float]]]) -> list[tuple[int, int, int, float]]:
    """Of each rung that a sampled trial came to: epoch, trials that came, those stopped there, and the best value there."""
    better = max if summary["mode"] == "max" else min
    sampled = {trial["number"]: trial for trial in summary["trials"] if trial["arm"] is None}
    found = []
    for level in summary.get("rungs", ()):
        there = {number: value for number, curve in curves.items() if number in sampled for epoch, value in curve if epoch == level}
        if there:
            stopped = sum(sampled[number]["state"] == "PRUNED" and sampled[number]["epochs"] == level for number in there)
            found.append((level, len(there), stopped, better(there.values())))
    return found
