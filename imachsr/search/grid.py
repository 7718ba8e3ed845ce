"""All configurations of a space, one after another, as a sampler."""

import random
from collections.abc import Iterator, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from imachsr.search.space import Search
from imachsr.search.space.reach import grid


class ExhaustedError(Exception):
    """A space has no configuration left that was not proposed before."""


class Grid(BaseSampler):
    """All configurations, in an order shuffled by the seed, each once; those of trials that are there are done.

    Optuna's own grid has each conditional knob in every configuration, spends configurations on arms, and ends a loop that is not there.
    """

    def __init__(self, search: Search) -> None:
        self._search = search
        self._points = list(grid(search))
        random.Random(search.sampler.seed).shuffle(self._points)
        self._place = 0

    def _unvisited(self, study: optuna.Study) -> Iterator[dict[str, Any]]:
        # Without a note of ours, a failed trial is one that was broken off while it was being asked.
        trials = [trial for trial in study.get_trials(deepcopy=False) if trial.user_attrs or trial.state != TrialState.FAIL]
        visited = {_key(trial.params) for trial in trials}
        while self._place < len(self._points):
            point = self._points[self._place]
            self._place += 1
            told = {key: self._search.space[key].told(value) for key, value in point.items()}
            if _key(told) not in visited:
                yield told

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        self._told = next(self._unvisited(study), None)
        if self._told is None:
            raise ExhaustedError(f"all {len(self._points)} configurations of the grid are there")
        return self._search.distributions(self._told)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        return dict(self._told or {})

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        raise AssertionError(f"a grid gives every knob, but not {param_name}")


def _key(params: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(params.items()))
