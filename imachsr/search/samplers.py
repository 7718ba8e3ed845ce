"""Optuna's samplers, made to propose whole configurations that keep the constraints."""

import importlib
import itertools
import math
import random
import warnings
from collections import deque
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from imachsr.config.schema import ConfigError
from imachsr.search.grid import ExhaustedError, Grid
from imachsr.search.space import Search
from imachsr.search.space.reach import independent, joint, notes

__all__ = ["ExhaustedError", "independent", "is_control", "make_sampler", "notes"]

# Drafts of the sampler, then of chance, before a space counts as empty. A Gaussian process is costly, and proposes much the same again.
_TRIES = {"gp": 8}
_FREE_TRIES, _RANDOM_TRIES = 64, 5000
# Drafts equal to earlier configurations, of the sampler and then of chance, before a space counts as searched. A model that was asked once more
# mostly says the same, and each answer is a fit to all trials.
_SAME_TRIES, _SAME_RANDOM_TRIES = 1, 500
# Neighbours of the sampler's draft between the two: this many with one knob changed, then with two, and so on.
_NEAR_TRIES, _NEAR_KNOBS = 16, 4
# Drafts against the constraints that TPE is shown, the latest.
_REMEMBERED = 64


def is_control(search: Search, number: int) -> bool:
    """Whether a trial is one of those drawn at random for comparison: evenly spread, and the same whenever it is asked.

    Args:
        search: ``sampler.control`` is their share.
        number: Of the trial, from 0.
    """
    share = 0.0 if "control" in search.sampler.without_effect else search.sampler.control
    return int((number + 1) * share + 1e-9) > int(number * share + 1e-9)


def make_sampler(
    search: Search, offset: int, *, at_random: bool = False, is_known: Callable[[Mapping[str, Any]], bool] = lambda values: False
) -> BaseSampler:
    """The sampler of a search, to be given to a study; proposes nothing that breaks a constraint, or is known.

    Args:
        search: What is searched.
        offset: Trials in the study: with the same one the same proposals come again, so that a search that is continued must have another.
        at_random: Draw at random, whatever the search's sampler is.
        is_known: Whether a configuration is equal to one that was proposed before.

    Raises:
        ConfigError: If the sampler cannot be had.
    """
    sampler = search.sampler
    seed = (sampler.seed + 1_000_003 * offset) % 2**32
    by_chance = RandomSampler(seed=seed)
    with warnings.catch_warnings():
        # TPE's group has been experimental since 2021, CMA-ES's stopped trials since 2020.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        inner: BaseSampler = by_chance
        if at_random or sampler.kind == "random":
            pass
        elif sampler.kind == "tpe":
            # group: conditional settings are modelled jointly within their branch; without it they would be drawn independently.
            inner = TPESampler(multivariate=True, group=True, n_startup_trials=sampler.startup_trials + len(search.fixed()), seed=seed)
        elif sampler.kind == "gp":
            inner = GPSampler(seed=seed, n_startup_trials=sampler.startup_trials, independent_sampler=by_chance, warn_independent_sampling=False)
        elif sampler.kind == "cmaes":
            inner = CmaEsSampler(
                seed=seed,
                n_startup_trials=sampler.startup_trials,
                independent_sampler=by_chance,
                warn_independent_sampling=False,
                consider_pruned_trials=True,
                popsize=sampler.population,
            )
        elif sampler.kind == "nsga2":
            inner = NSGAIISampler(seed=seed, population_size=sampler.population or 50)
        elif sampler.kind == "grid":
            inner = Grid(search)
        else:
            inner = _auto(seed)
    return _Proposer(search, inner, RandomSampler(seed=(seed + 1) % 2**32), random.Random(seed), is_known)


def _auto(seed: int) -> BaseSampler:
    try:
        hub = importlib.import_module("optunahub")
    except ImportError:
        raise ConfigError("sampler.kind: auto needs the package optunahub: pip install optunahub; or take tpe") from None
    try:
        made: BaseSampler = hub.load_module("samplers/auto_sampler").AutoSampler(seed=seed)
    except Exception as error:  # whatever fetching and running a module from the hub may raise
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigError(f"sampler.kind: auto is fetched by optunahub, but: {why}; or take tpe") from None
    return made


class _Proposer(BaseSampler):
    """Drafts of another sampler until one keeps the constraints: none of them costs a trial, and its start-up is not spent on what never runs.

    TPE alone is also shown what it drafted in vain: where it has seen nothing it expects much, and would draft the same again and again. Optuna's
    other models learn from whole trials only.
    """

    def __init__(
        self,
        search: Search,
        inner: BaseSampler,
        by_chance: RandomSampler,
        generator: random.Random,
        is_known: Callable[[Mapping[str, Any]], bool],
    ) -> None:
        self._search, self._inner, self._by_chance, self._generator, self._is_known = search, inner, by_chance, generator, is_known
        self._same: dict[str, Any] = {}
        self._equal: set[tuple[tuple[str, Any], ...]] = set()
        self._joint: dict[str, BaseDistribution] | None = None
        self._needed: list[str] = []
        if isinstance(inner, (GPSampler, CmaEsSampler, NSGAIISampler)):
            self._needed = joint(search)
            # Optuna infers this from the trials so far. A conditional knob that all of the first ones had would be in it, and CMA-ES would stop
            # modelling for good once a trial is without it.
            self._joint = {key: search.space[key].distribution for key in self._needed}
        self._drawn: dict[int, dict[str, Any]] = {}
        self._broken: deque[FrozenTrial] = deque(maxlen=_REMEMBERED)
        self._startup = search.sampler.startup_trials + len(search.fixed())

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        values = self._draw(_View(study, self._needed, self._broken, self._startup), trial)
        self._drawn[trial.number] = self._told(values)
        return self._search.distributions(values)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        return self._drawn.pop(trial.number)

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        return self._by_chance.sample_independent(study, trial, param_name, param_distribution)

    def reseed_rng(self) -> None:
        self._inner.reseed_rng()
        self._by_chance.reseed_rng()

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._inner.before_trial(study, trial)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._inner.after_trial(study, trial, state, values)

    def _draw(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        broken: dict[str, int] = {}
        if isinstance(self._inner, Grid):
            return self._drafted(study, trial, self._inner, None, itertools.count(), broken, math.inf)[0] or {}
        tries = range(_TRIES.get(self._search.sampler.kind, _FREE_TRIES))
        values, same = self._drafted(study, trial, self._inner, self._joint, tries, broken, _SAME_TRIES)
        # A model that is sure of itself proposes the same again and again. Chance stays chance, which is even over what is left.
        if values is None and same and not isinstance(self._inner, RandomSampler):
            values = self._neighbour(study, trial)
        if values is not None:
            return values
        values, same = self._drafted(study, trial, self._by_chance, None, range(_RANDOM_TRIES), broken, _SAME_RANDOM_TRIES)
        if values is not None:
            return values
        if same:
            raise ExhaustedError(f"{same:,} configurations drawn at random in a row were equal to earlier ones: the space is searched")
        often = max(broken, key=lambda key: broken[key])
        relation = self._search.constraints[int(often.split(".")[1])].words if "." in often else "values that do not fit together"
        raise ConfigError(
            f"constraints: must leave room in the space, but {len(tries) + _RANDOM_TRIES:,} configurations in a row broke one; "
            f"most often {often} ({relation})"
        )

    def _drafted(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        sampler: BaseSampler,
        space: Mapping[str, BaseDistribution] | None,
        tries: Iterable[int],
        broken: dict[str, int],
        most_same: float,
    ) -> tuple[dict[str, Any] | None, int]:
        """The first draft that keeps the constraints and is new, or None; and how many were not new. Counts the constraints that others broke."""
        same = 0
        for _ in tries:
            values = self._search.suggest(_Draft(sampler, study, trial, space))
            excess, is_new = self._judged(values)
            for key in excess:
                broken[key] = broken.get(key, 0) + 1
            if excess and isinstance(sampler, TPESampler):
                self._remember(trial, values, excess)
            if is_new:
                return values, same
            if not excess:
                same, self._same = same + 1, self._told(values)
            if same >= most_same:
                break
        return None, same

    def _judged(self, values: dict[str, Any]) -> tuple[dict[str, float], bool]:
        """What a configuration breaks, and whether it can be proposed."""
        # Both questions build a run, and a search that goes on asks them of the same configurations again and again: what was equal stays equal.
        name = tuple(sorted(self._told(values).items()))
        if name in self._equal:
            return {}, False
        if excess := self._search.excess(values):
            return excess, False
        if is_known := self._is_known(values):
            self._equal.add(name)
        return {}, not is_known

    def _told(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {key: self._search.space[key].told(value) for key, value in values.items()}

    def _neighbour(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any] | None:
        """The last draft that was not new, with one knob and what it switches on drawn anew, or as few knobs as it takes; None: none tried is new."""
        for number in range(1, min(_NEAR_KNOBS, len(self._same)) + 1):
            for _ in range(_NEAR_TRIES):
                changed = self._generator.sample(list(self._same), number)
                kept = {key: value for key, value in self._same.items() if key not in changed}
                values = self._search.suggest(_Draft(self._by_chance, study, trial, {}, kept))
                if self._judged(values)[1]:
                    return values
        return None

    def _remember(self, trial: FrozenTrial, values: Mapping[str, Any], excess: dict[str, float]) -> None:
        params = self._told(values)
        told = create_trial(state=TrialState.PRUNED, params=params, distributions=self._search.distributions(params), constraints=excess)
        told.number = trial.number - 1  # as recent as can be, but not the trial itself
        self._broken.append(told)


class _Draft:
    """A trial that is drawn without being recorded, as :class:`optuna.Trial` draws: jointly where the sampler can, else each value by itself."""

    def __init__(
        self,
        sampler: BaseSampler,
        study: optuna.Study,
        trial: FrozenTrial,
        space: Mapping[str, BaseDistribution] | None,
        kept: Mapping[str, Any] | None = None,
    ) -> None:
        self._sampler, self._study, self._trial, self._kept = sampler, study, trial, kept or {}
        self._space = dict(space) if space is not None else sampler.infer_relative_search_space(study, trial)
        self._relative = sampler.sample_relative(study, trial, self._space)

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        if name in self._kept:
            return self._kept[name]
        if name in self._relative and self._space.get(name) == distribution:
            return self._relative[name]
        return self._sampler.sample_independent(self._study, self._trial, name, distribution)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return int(self._suggest(name, IntDistribution(low, high, step=step, log=log)))

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False) -> float:
        return float(self._suggest(name, FloatDistribution(low, high, step=step, log=log)))

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self._suggest(name, CategoricalDistribution(choices))


class _View(optuna.Study):
    """A study as a model may see it.

    Without the finished trials that lack a knob: arms lie outside of the space, and models that need every knob would break on them. With drafts that
    broke a constraint, as infeasible trials, once a model is at work: its random start-up is not over sooner for them.
    """

    def __init__(self, study: optuna.Study, needed: Sequence[str], broken: Collection[FrozenTrial], startup: int) -> None:
        self.__dict__.update(study.__dict__)
        self._needed, self._broken, self._startup = frozenset(needed), broken, startup

    def _get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False) -> list[FrozenTrial]:
        trials = super()._get_trials(deepcopy=deepcopy, states=states, use_cache=use_cache)
        found = [trial for trial in trials if not trial.state.is_finished() or self._needed <= trial.params.keys()]
        is_model = bool(self._broken) and states is not None and TrialState.PRUNED in states
        is_started = is_model and sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in found) >= self._startup
        return [*found, *self._broken] if is_started else found
