"""Who is compared: chance, Optuna by itself, plain Ray Tune with OptunaSearch and ASHA, and this project's search. All with their own objects."""

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.pruners import BasePruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import Trial, TrialState

from benchmarks.search_quality.simulate import Contestant, State
from benchmarks.search_quality.table import BASE, METRIC, SETTINGS, Table, Values
from imachsr.search.samplers import ExhaustedError, make_sampler
from imachsr.search.scheduler import Rule
from imachsr.search.space import Search, make_search

GRACE, REDUCTION = 1, 3
optuna.logging.set_verbosity(optuna.logging.ERROR)


def search_of(table: Table, *, seed: int = 0, **rules: Any) -> Search:
    """The search of this project over the table's axes.

    Args:
        table: The table.
        seed: Of the sampler.
        **rules: ``sampler`` and ``scheduler`` settings over the project's defaults.
    """
    return make_search(
        {
            "run": BASE,
            "space": {key: {"choice": SETTINGS.get(key, list(values))} for key, values in table.axes.items()},
            "metric": {"name": METRIC, "mode": "max"},
            "scheduler": {"kind": "asha", "grace": GRACE, "reduction": REDUCTION, **rules.get("scheduler", {})},
            "sampler": {"kind": "tpe", "seed": seed, **rules.get("sampler", {})},
        }
    )


def distributions(table: Table) -> dict[str, BaseDistribution]:
    return {key: CategoricalDistribution(values) for key, values in table.axes.items()}


class OptunaAlone:
    """A study with a sampler and a pruner, as Optuna's own loop uses them."""

    def __init__(self, table: Table, sampler: BaseSampler, pruner: BasePruner) -> None:
        self._space = distributions(table)
        self._study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
        self._live: dict[int, tuple[Trial, float]] = {}

    def ask(self) -> tuple[int, Values]:
        trial = self._study.ask(self._space)
        self._live[trial.number] = (trial, float("nan"))
        return trial.number, dict(trial.params)

    def report(self, trial: int, epoch: int, value: float) -> bool:
        live = self._live[trial][0]
        self._live[trial] = (live, value)
        live.report(value, epoch)
        return live.should_prune()

    def end(self, trial: int, state: State) -> None:
        live, value = self._live.pop(trial)
        self._study.tell(live, value if state == "COMPLETE" else None, state=TrialState[state])


class Ours:
    """This project's sampler and rule, told as its driver tells: stopped trials as PRUNED, and no configuration twice."""

    def __init__(self, search: Search) -> None:
        self._search = search
        self._tried: list[Mapping[str, Any]] = []
        self._study = optuna.create_study(direction="maximize", sampler=make_sampler(search, 0, is_known=self._tried.__contains__))
        self._rule: Rule = search.scheduler.rule(max_epochs=search.base().optimizer.epochs, mode=search.metric.mode)
        self._live: dict[int, tuple[Trial, float]] = {}

    def ask(self) -> tuple[int, Values] | None:
        trial = self._study.ask()
        try:
            values = self._search.suggest(trial)
        except ExhaustedError:
            self._study.tell(trial, state=TrialState.FAIL)
            return None
        self._tried.append(values)
        self._live[trial.number] = (trial, float("nan"))
        return trial.number, values

    def report(self, trial: int, epoch: int, value: float) -> bool:
        live = self._live[trial][0]
        self._live[trial] = (live, value)
        live.report(value, epoch)
        return self._rule.arrive(trial, epoch, value)

    def end(self, trial: int, state: State) -> None:
        live, value = self._live.pop(trial)
        self._study.tell(live, value if state == "COMPLETE" else None, state=TrialState[state])


class PlainRay:
    """OptunaSearch and ASHAScheduler in the order in which Ray Tune's controller calls them, without its processes.

    What it does is kept: the result at which a trial is stopped is not reported, and the trial is told as complete with that value.
    """

    def __init__(self, table: Table, *, seed: int, scheduler: bool = True) -> None:
        from ray.tune.experiment import Trial as RayTrial
        from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
        from ray.tune.search.optuna import OptunaSearch

        logging.getLogger("ray").setLevel(logging.ERROR)
        self._make_trial: Callable[[str], Any] = lambda name: RayTrial("stub", trial_id=name, stub=True)
        rule = {"max_t": table.epochs, "grace_period": GRACE, "reduction_factor": REDUCTION, "metric": METRIC, "mode": "max"}
        self._scheduler: Any = ASHAScheduler(**rule) if scheduler else FIFOScheduler()
        self._search: Any = OptunaSearch(space=distributions(table), metric=METRIC, mode="max", seed=seed)
        self._epochs = table.epochs
        self._trials: dict[int, tuple[Any, dict[str, Any]]] = {}
        self._count = 0

    def ask(self) -> tuple[int, Values]:
        from ray.tune.schedulers import TrialScheduler

        self._stop = TrialScheduler.STOP
        number, self._count = self._count, self._count + 1
        values = self._search.suggest(str(number))
        trial = self._make_trial(str(number))
        self._scheduler.on_trial_add(None, trial)
        self._trials[number] = (trial, {})
        return number, values

    def report(self, trial: int, epoch: int, value: float) -> bool:
        held = self._trials[trial][0]
        result = {"training_iteration": epoch, METRIC: value, "done": epoch == self._epochs}
        self._trials[trial] = (held, result)
        if self._scheduler.on_trial_result(None, held, result) == self._stop:
            return True
        self._search.on_trial_result(str(trial), result)
        return False

    def end(self, trial: int, state: State) -> None:
        held, result = self._trials.pop(trial)
        if state == "FAIL":
            self._scheduler.on_trial_error(None, held)
            self._search.on_trial_complete(str(trial), error=True)
            return
        self._scheduler.on_trial_complete(None, held, result)
        self._search.on_trial_complete(str(trial), result=result)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A contestant.

    Attributes:
        title: For tables.
        make: A fresh one, from the table and a seed.
    """

    title: str
    make: Callable[[Table, int], Contestant]


def _tpe(table: Table, seed: int, pruner: BasePruner) -> Contestant:
    return OptunaAlone(table, TPESampler(seed=seed), pruner)


def _halving() -> BasePruner:
    return SuccessiveHalvingPruner(min_resource=GRACE, reduction_factor=REDUCTION)


def _ours(table: Table, seed: int, **rules: Any) -> Contestant:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return Ours(search_of(table, seed=seed, **rules))


ENTRIES: dict[str, Entry] = {
    "random": Entry(title="random search", make=lambda table, seed: OptunaAlone(table, RandomSampler(seed=seed), NopPruner())),
    "optuna": Entry(title="Optuna: TPE", make=lambda table, seed: _tpe(table, seed, NopPruner())),
    "optuna_sha": Entry(title="Optuna: TPE and its pruner", make=lambda table, seed: _tpe(table, seed, _halving())),
    "ray": Entry(title="Ray Tune: OptunaSearch and ASHA", make=lambda table, seed: PlainRay(table, seed=seed)),
    "ours": Entry(title="imachsr", make=_ours),
    "ours_random": Entry(title="imachsr, random sampler", make=lambda table, seed: _ours(table, seed, sampler={"kind": "random"})),
    "ours_whole": Entry(title="imachsr, no scheduler", make=lambda table, seed: _ours(table, seed, scheduler={"kind": "none"})),
}
