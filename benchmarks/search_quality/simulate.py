"""Replays a search on the table: the real samplers and schedulers, a simulated clock, any number of workers.

The clock counts measured seconds: of each epoch the cell's median over epochs and seeds, and of each trial's start the table's median. A trial
draws one of the table's seeds, and a configuration that is run again draws again; or a search draws one for all of its trials, as this project's
searches have one. All contestants of a repeat draw the same for the same visit of a cell.
"""

import heapq
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from benchmarks.search_quality.table import Table, Values

State = Literal["COMPLETE", "PRUNED", "FAIL"]
Draws = Literal["trial", "search"]


class Contestant(Protocol):
    """What proposes configurations, and stops trials."""

    def ask(self) -> tuple[int, Values] | None:
        """A trial's number and its configuration; None when there is no other."""

    def report(self, trial: int, epoch: int, value: float) -> bool:
        """Learn an epoch's value (1-based); whether the trial is to be stopped. Not called again for a trial after True or its last epoch."""

    def end(self, trial: int, state: State) -> None:
        """Learn how the trial ended."""


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What a simulated search did.

    Attributes:
        times: Seconds on the simulated clock of each epoch's end, ascending.
        regrets: After each, how far the configuration with the highest value reported so far lies below the table's best, both as means over
            the seeds after the last epoch: >= 0, in points of mIoU.
        trials: Begun.
        states: How many ended how; those that the end of the budget cut off are in none.
        repeated: Trials of a configuration that had been tried before.
        cells: Of the trials, in the order of their start.
    """

    times: tuple[float, ...]
    regrets: tuple[float, ...]
    trials: int
    states: dict[State, int]
    repeated: int
    cells: tuple[int, ...]

    @property
    def seconds(self) -> float:
        """Until the last epoch's end."""
        return self.times[-1]

    def regret_at(self, seconds: Iterable[float]) -> list[float]:
        """The regret at some times, infinite before the first epoch's end."""
        found = np.searchsorted(self.times, list(seconds), side="right")
        return [self.regrets[index - 1] if index else float("inf") for index in found]


class Problem:
    """The table as a search sees it.

    Args:
        table: All cells.
        startup_s: Seconds from a trial's start to the start of its first epoch; None: the table's median.
    """

    def __init__(self, table: Table, *, startup_s: float | None = None) -> None:
        self.table = table
        self._index = {tuple(cell.values[key] for key in table.axes): number for number, cell in enumerate(table.cells)}
        self.truth = [statistics.mean(curve[-1] for curve in cell.curves if curve) if all(cell.curves) else 0.0 for cell in table.cells]
        self.best = max(self.truth)
        self.epoch_s = [statistics.median(seconds for times in cell.epoch_s for seconds in times[1:] or times) for cell in table.cells]
        starts = [times[0] - own for cell, own in zip(table.cells, self.epoch_s, strict=True) for times in cell.epoch_s if times]
        self.startup_s = max(0.0, statistics.median(starts)) if startup_s is None else startup_s

    def cell(self, values: Values) -> int:
        """Number of a configuration."""
        return self._index[tuple(values[key] for key in self.table.axes)]

    def budget(self, share: float) -> int:
        """Epochs in a share of all cells."""
        return round(share * len(self.table.cells) * self.table.epochs)


@dataclass(kw_only=True)
class _Running:
    trial: int
    cell: int
    curve: tuple[float, ...]
    epoch: int = 0


def replay(contestant: Contestant, problem: Problem, *, budget: int, workers: int, seed: int, draws: Draws = "trial") -> Replay:
    """Run a search until its budget is spent, or its space.

    Args:
        contestant: Fresh.
        problem: The table.
        budget: Epochs over all trials, >= 1; no further one begins.
        workers: Trials at a time, >= 1.
        seed: Of the draws of the table's seeds.
        draws: Whether each trial draws one, or the search one for all.
    """
    if budget < 1 or workers < 1:
        raise ValueError(f"`budget >= 1` and `workers >= 1` must hold, but got {budget} and {workers}")
    events: list[tuple[float, int, _Running]] = []
    begun, order, clock, highest, incumbent = 0, 0, 0.0, -np.inf, 0
    visits: Counter[int] = Counter()
    states: Counter[State] = Counter()
    times, regrets, cells = [], [], []

    def next_epoch(running: _Running, now: float) -> bool:
        nonlocal begun, order
        if begun == budget:
            return False
        begun, order = begun + 1, order + 1
        heapq.heappush(events, (now + problem.epoch_s[running.cell], order, running))
        return True

    def next_trial(now: float) -> None:
        if begun == budget:
            return
        if (asked := contestant.ask()) is None:
            return
        trial, values = asked
        cell = problem.cell(values)
        curves = problem.table.cells[cell].curves
        key = [seed, cell, visits[cell]] if draws == "trial" else [seed]
        curve = curves[np.random.default_rng(key).integers(len(curves))]
        visits[cell] += 1
        cells.append(cell)
        next_epoch(_Running(trial=trial, cell=cell, curve=curve), now + problem.startup_s)

    for _ in range(workers):
        next_trial(0.0)
    while events:
        clock, _, running = heapq.heappop(events)
        state: State | None = None
        if running.epoch == len(running.curve):  # it diverged in this epoch
            state = "FAIL"
        else:
            value = running.curve[running.epoch]
            running.epoch += 1
            if value > highest:
                highest, incumbent = value, running.cell
            is_stopped = contestant.report(running.trial, running.epoch, value)
            state = "COMPLETE" if running.epoch == problem.table.epochs else "PRUNED" if is_stopped else None
        times.append(clock)
        regrets.append(problem.best - problem.truth[incumbent] if highest > -np.inf else problem.best)
        if state is None:
            next_epoch(running, clock)
            continue
        contestant.end(running.trial, state)
        states[state] += 1
        next_trial(clock)
    return Replay(
        times=tuple(times),
        regrets=tuple(regrets),
        trials=len(cells),
        states=dict(states),
        repeated=len(cells) - len(visits),
        cells=tuple(cells),
    )


def describe(found: Sequence[Replay]) -> dict[str, Any]:
    """Counts over repeats: medians of the trials, of those that ran whole, and of those that were repeated."""
    return {
        "trials": statistics.median(each.trials for each in found),
        "whole": statistics.median(each.states.get("COMPLETE", 0) for each in found),
        "repeated": statistics.median(each.repeated for each in found),
    }
