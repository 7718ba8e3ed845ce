"""Asynchronous successive halving as plain rules: which epochs are rungs, and who stops at one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal


def rung_levels(*, grace: int, reduction: int, max_epochs: int) -> tuple[int, ...]:
    """Epochs at which trials are compared: grace, grace * reduction, ... below `max_epochs`.

    The last epoch is no rung: a trial which got there has cost all that it can cost, and is finished, not stopped.

    Args:
        grace: first rung, epochs, >= 1.
        reduction: ratio of neighbouring rungs, >= 2.
        max_epochs: epochs of a whole trial.

    Returns:
        Ascending epochs; empty when `grace >= max_epochs`.
    """
    if grace < 1:
        raise ValueError(f"`grace >= 1` must hold, but got {grace}")
    if reduction < 2:
        raise ValueError(f"`reduction >= 2` must hold, but got {reduction}")
    levels = []
    level = grace
    while level < max_epochs:
        levels.append(level)
        level *= reduction
    return tuple(levels)


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile (0..1) with linear interpolation between order statistics.

    Args:
        values: at least one finite number.
        q: 0 gives the smallest value, 1 the largest.
    """
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


@dataclass(kw_only=True)
class Rungs:
    """The asynchronous rule of ASHA (Li et al., arXiv 1810.05934), in the stopping form.

    A trial that arrives at a rung is stopped when its value is worse than the best 1/reduction of those recorded there
    before it. Its value is recorded either way. The first arrival always goes on.

    Args:
        levels: ascending epochs.
        reduction: one in `reduction` goes on, on average.
        mode: "max" when larger values are better.
    """

    levels: tuple[int, ...]
    reduction: int
    mode: Literal["max", "min"] = "max"
    _recorded: dict[int, dict[int, float]] = field(default_factory=dict)

    def arrive(self, trial: int, epoch: int, value: float) -> bool:
        """Record a trial's value at a rung.

        Args:
            trial: its number.
            epoch: 1-based; anything but a rung changes nothing.
            value: finite.

        Returns:
            Whether the trial is to be stopped; never at an epoch that is no rung, never twice for one rung.
        """
        if epoch not in self.levels:
            return False
        recorded = self._recorded.setdefault(epoch, {})
        if trial in recorded:
            return False
        score = value if self.mode == "max" else -value
        earlier = tuple(recorded.values())
        recorded[trial] = score
        return bool(earlier) and score < quantile(earlier, 1 - 1 / self.reduction)
