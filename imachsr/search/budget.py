"""What a search has spent, against what it may spend."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from imachsr.search.space.rules import Budget


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Resources, over all sittings of a search.

    Attributes:
        hours: Wall time.
        cpu_hours: CPUs times hours that trials held them.
        gpu_hours: GPUs times hours.
        money: Of both, at the search's prices.
    """

    hours: float
    cpu_hours: float
    gpu_hours: float
    money: float


@dataclass(kw_only=True)
class Meter:
    """Adds up what trials hold.

    Args:
        budget: Caps, prices, and what a trial holds.
        earlier_s: Wall time of earlier sittings, seconds.
        held_s: Seconds that each trial held its resources in them.
        clock: Seconds, ascending.
    """

    budget: Budget
    earlier_s: float = 0.0
    held_s: dict[int, float] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic
    _began: dict[int, float] = field(default_factory=dict)
    _started: float = field(init=False)
    _ended_s: float = field(init=False)

    def __post_init__(self) -> None:
        self._started = self.clock()
        self._ended_s = math.fsum(self.held_s.values())

    @property
    def wall_s(self) -> float:
        """Of all sittings."""
        return self.earlier_s + self.clock() - self._started

    def begin(self, number: int) -> None:
        """A trial holds its resources from now on."""
        self._began.setdefault(number, self.clock())

    def end(self, number: int) -> None:
        """It holds them no longer."""
        # As it is written down, so that what is derived from it is the same when the search is continued.
        before, self.held_s[number] = self.held_s.get(number, 0.0), round(self.seconds(number), 3)
        self._ended_s += self.held_s[number] - before
        self._began.pop(number, None)

    def seconds(self, number: int) -> float:
        """That a trial has held its resources so far."""
        began = self._began.get(number)
        return self.held_s.get(number, 0.0) + (0.0 if began is None else self.clock() - began)

    def spent(self) -> Spent:
        """So far."""
        now = self.clock()
        hours = (self._ended_s + math.fsum(now - began for began in self._began.values())) / 3600
        cpus, gpus = (each * self.budget.workers_per_trial for each in (self.budget.cpus_per_trial, self.budget.gpus_per_trial))
        return self._priced(self.wall_s / 3600, hours * cpus, hours * gpus)

    def _priced(self, hours: float, cpu_hours: float, gpu_hours: float) -> Spent:
        prices = self.budget.prices
        return Spent(hours=hours, cpu_hours=cpu_hours, gpu_hours=gpu_hours, money=cpu_hours * prices.cpu_hour + gpu_hours * prices.gpu_hour)

    def cost(self, number: int) -> Spent:
        """Of one trial."""
        hours = self.seconds(number) / 3600
        workers = self.budget.workers_per_trial
        return self._priced(hours, hours * self.budget.cpus_per_trial * workers, hours * self.budget.gpus_per_trial * workers)

    def reached(self) -> str | None:
        """The cap that is reached, in words; None while there is none."""
        spent = self.spent()
        for name in ("hours", "cpu_hours", "gpu_hours", "money"):
            cap = getattr(self.budget, name)
            if cap is not None and getattr(spent, name) >= cap:
                return f"budget.{name}={cap:g} is spent ({getattr(spent, name):.4g})"
        return None

    def left_s(self, *, remaining: int, trial_s: float | None, concurrency: int) -> float | None:
        """Seconds until the search ends, as trials so far let expect; None when none has ended yet.

        Args:
            remaining: Trials that are still to end.
            trial_s: Mean seconds of those that have ended.
            concurrency: Trials at a time.
        """
        if trial_s is None:
            return None
        expected = remaining * trial_s / max(1, concurrency)
        spent, ends = self.spent(), [expected]
        rates: Mapping[str, float] = {"hours": 1.0, **{name: self._rate(name, concurrency) for name in ("cpu_hours", "gpu_hours", "money")}}
        for name, rate in rates.items():
            cap = getattr(self.budget, name)
            if cap is not None and rate > 0:
                ends.append(max(0.0, 3600 * (cap - getattr(spent, name)) / rate))
        return min(ends)

    def _rate(self, name: str, concurrency: int) -> float:
        """What an hour of the whole search takes."""
        trials = concurrency * self.budget.workers_per_trial
        hour = self._priced(1.0, trials * self.budget.cpus_per_trial, trials * self.budget.gpus_per_trial)
        return float(getattr(hour, name))
