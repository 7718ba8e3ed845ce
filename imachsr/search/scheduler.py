"""When a trial is stopped, as plain rules over what the trials reported."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

Mode = Literal["max", "min"]


class Rule(Protocol):
    """Decides from the values that arrive, one an epoch and trial; the same values in the same order give the same decisions."""

    @property
    def levels(self) -> tuple[int, ...]:
        """Epochs at which it may stop a trial, ascending."""

    def arrive(self, trial: int, epoch: int, value: float) -> bool:
        """Record a trial's value.

        Args:
            trial: Its number, >= 0.
            epoch: 1-based.
            value: Finite.

        Returns:
            Whether the trial is to be stopped; never twice for one epoch.
        """


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
class Never:
    """Stops nothing."""

    levels: tuple[int, ...] = ()

    def arrive(self, trial: int, epoch: int, value: float) -> bool:
        """Go on."""
        return False


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
    mode: Mode = "max"
    _recorded: dict[int, dict[int, float]] = field(default_factory=dict)

    def arrive(self, trial: int, epoch: int, value: float) -> bool:
        """As in :class:`Rule`; an epoch that is no rung changes nothing."""
        if epoch not in self.levels:
            return False
        recorded = self._recorded.setdefault(epoch, {})
        if trial in recorded:
            return False
        score = _score(value, self.mode)
        earlier = tuple(recorded.values())
        recorded[trial] = score
        return bool(earlier) and score < quantile(earlier, 1 - 1 / self.reduction)


@dataclass(kw_only=True)
class Hyperband:
    """Hyperband (Li et al., arXiv 1603.06560) with asynchronous brackets: ASHA several times over, each time with a later first rung.

    Bracket b of B + 1 has the rungs from the b-th on; the last has none. Trials are shared out by their number in the paper's proportions,
    ceil((B + 1) / (B - b + 1) * reduction^(B - b)) to bracket b, so that a continued search shares them out as before.

    Args:
        levels: Ascending epochs.
        reduction: One in `reduction` goes on at each rung, on average.
        mode: "max" when larger values are better.
    """

    levels: tuple[int, ...]
    reduction: int
    mode: Mode = "max"
    _brackets: list[Rungs] = field(init=False)
    _order: list[int] = field(init=False)

    def __post_init__(self) -> None:
        last = len(self.levels)
        self._brackets = [Rungs(levels=self.levels[start:], reduction=self.reduction, mode=self.mode) for start in range(last + 1)]
        sizes = [math.ceil((last + 1) / (last - each + 1) * self.reduction ** (last - each)) for each in range(last + 1)]
        self._order = [each for _, each in sorted((place / size, each) for each, size in enumerate(sizes) for place in range(size))]

    def bracket(self, trial: int) -> int:
        """The bracket of a trial, 0 the one that stops most."""
        return self._order[trial % len(self._order)]

    def arrive(self, trial: int, epoch: int, value: float) -> bool:
        """As in :class:`Rule`."""
        return self._brackets[self.bracket(trial)].arrive(trial, epoch, value)


@dataclass(kw_only=True)
class _Curve:
    """What the median rule needs of a trial's scores so far."""

    count: int = 0
    total: float = 0.0
    best: float = -math.inf


@dataclass(kw_only=True)
class Median:
    """The median stopping rule (Golovin et al., Google Vizier, KDD 2017, section 3.2.2).

    A trial is stopped when its best value so far is worse than the median of the other trials' mean values up to the same epoch.

    Args:
        grace: Epochs >= 1 before a trial can be stopped.
        max_epochs: Of a whole trial.
        least: Other trials that must have come so far, >= 1.
        mode: "max" when larger values are better.
    """

    grace: int
    max_epochs: int
    least: int = 3
    mode: Mode = "max"
    _means: dict[int, dict[int, float]] = field(default_factory=dict)
    _curves: dict[int, _Curve] = field(default_factory=dict)

    @property
    def levels(self) -> tuple[int, ...]:
        """From the end of the grace on, each epoch but the last."""
        return tuple(range(self.grace, self.max_epochs))

    def arrive(self, trial: int, epoch: int, value: float) -> bool:
        """As in :class:`Rule`; of one trial the epochs come in ascending order."""
        means = self._means.setdefault(epoch, {})
        if trial in means:
            return False
        mine = self._curves.setdefault(trial, _Curve())
        score = _score(value, self.mode)
        mine.count, mine.total, mine.best = mine.count + 1, mine.total + score, max(mine.best, score)
        others = tuple(means.values())
        means[trial] = mine.total / mine.count
        if not self.grace <= epoch < self.max_epochs or len(others) < self.least:
            return False
        return mine.best < quantile(others, 0.5)


def _score(value: float, mode: Mode) -> float:
    return value if mode == "max" else -value
