"""A whole search: the base run, the space, the fixed arms, and the rules."""

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from optuna.distributions import BaseDistribution
from pydantic import Field

from imachsr.config.load import make_run, run_to_dict
from imachsr.config.schema import ConfigError, Run, near
from imachsr.data.splits import Selection
from imachsr.search.space.conditions import Part
from imachsr.search.space.constraints import MISSING, Constraint, looked_up
from imachsr.search.space.parameters import Parameter, Suggests, ordered, settings_of
from imachsr.search.space.rules import Budget, Confirm, Limits, Metric, Scheduler
from imachsr.search.space.sampler import Sampler

OUTPUT_ONLY = {"method.alpha": 0, "method.beta": 0}


class Arm(Part):
    """A fixed configuration that runs before any sampled one, whole.

    Attributes:
        name: Shown in tables.
        set_: ``set:`` dotted keys and values over the base run.
    """

    name: str = Field(min_length=1)
    set_: dict[str, Any] = Field({}, alias="set")


class Search(Part):
    """A whole search, checked.

    Attributes:
        name: Of the group in W&B, and of the default folder of results.
        run: The base run's settings, over the defaults.
        space: Knobs and how they are searched: dotted keys of settings, or names that stand for several settings.
        constraints: Relations that every sampled configuration keeps.
        points: Values of knobs to run behind the arms, before anything is sampled; knobs left out have the base run's value.
        arms: Fixed configurations; the first is the output-only baseline. Without any, that is the only one.
        seeds: Every arm runs with every one of these; sampled trials with the first.
        also: Further objectives: the result is then a Pareto front. Trials are stopped by ``metric`` alone.
        function: The user's own training function, module:name, which is called with the knobs instead of training a run; null: a run is trained.
        confirm: What follows the search by itself, as ``imachsr confirm`` does it; null: nothing.
        score_on: select, a part cut out of train, so that val stays unseen; or val, for what is to be confirmed.
    """

    name: str = Field("search", min_length=1)
    run: dict[str, Any] = {}
    space: dict[str, Parameter] = {}
    constraints: tuple[Constraint, ...] = ()
    points: tuple[dict[str, Any], ...] = ()
    arms: tuple[Arm, ...] = (Arm.model_validate({"name": "baseline", "set": OUTPUT_ONLY}),)
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field((0,), min_length=1)
    metric: Metric = Metric()
    also: tuple[Metric, ...] = ()
    scheduler: Scheduler = Scheduler()
    sampler: Sampler = Sampler()
    budget: Budget = Budget()
    limits: Limits = Limits()
    selection: Selection = Selection()
    function: str | None = None
    confirm: Confirm | None = None
    score_on: Literal["select", "val"] = "select"

    @property
    def objectives(self) -> tuple[Metric, ...]:
        """All of them, ``metric`` first."""
        return (self.metric, *self.also)

    def base(self) -> Run:
        """The run that everything is set over."""
        return make_run(self.run)

    def fixed(self) -> list[tuple[str, int, dict[str, Any]]]:
        """Name, seed and settings of every arm with every seed; the baseline with the first seed comes first."""
        return [(arm.name, seed, dict(arm.set_)) for arm in self.arms for seed in self.seeds]

    @cached_property
    def order(self) -> tuple[str, ...]:
        """The knobs as they are drawn: each behind those that its conditions name."""
        return tuple(ordered(self.space))

    def suggest(self, trial: Suggests) -> dict[str, Any]:
        """Values drawn for a trial, without the knobs whose conditions do not hold."""
        values: dict[str, Any] = {}
        for key in self.order:
            if self.space[key].holds(values):
                values[key] = self.space[key].suggest(trial, key)
        return values

    def run_of(self, values: Mapping[str, Any], *, name: str, seed: int) -> Run:
        """The base run with these values of knobs, or settings.

        Raises:
            ConfigError: If they do not fit together.
        """
        run = make_run(self.run, {**settings_of(self.space, values), "name": name, "seed": seed})
        if run.scoring.every != 1:
            raise ConfigError(f"scoring.every: must be 1 in a search, which judges its trials by every epoch, but got {run.scoring.every}")
        if (growth := self.scheduler.progressive(run.optimizer.epochs)) is None:
            return run
        return make_run(run_to_dict(run), {"optimizer.progressive": growth})

    def excess(self, values: Mapping[str, Any]) -> dict[str, float]:
        """How far a configuration is beyond each constraint that it breaks, > 0, by its key; ``settings`` where they do not fit together."""
        settings, tree = settings_of(self.space, values), {}
        if self.function is None:
            try:
                run = self.run_of(values, name="check", seed=self.seeds[0])
            except ConfigError:
                return {"settings": 1.0}
            tree = run_to_dict(run) if self.constraints else {}

        def look(key: str) -> Any:
            is_of_run = self.function is None and not (key in self.space and self.space[key].is_alias)
            return looked_up(tree, key) if is_of_run else {**settings, **values}.get(key, MISSING)

        found = {f"constraints.{index}": constraint.excess(look) for index, constraint in enumerate(self.constraints)}
        return {key: excess for key, excess in found.items() if excess > 0}

    def point_params(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What Optuna is told of a configuration that was not drawn; arguments and errors as of :meth:`point_values`."""
        return {key: self.space[key].told(value) for key, value in self.point_values(values).items()}

    def point_values(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """A configuration that was not drawn, complete: a knob left out has the base run's value, also in what another knob replaces.

        Raises:
            ConfigError: If it lies outside the space; names the knob.
        """
        if strange := [key for key in values if key not in self.space]:
            raise ConfigError(f"{strange[0]}: is no knob of the space; {near(strange[0], list(self.space))}")
        found: dict[str, Any] = {}
        for key in self.order:
            if not self.space[key].holds(found):
                continue
            found[key] = values[key] if key in values else self._base_value(key)
            try:
                self.space[key].told(found[key])
            except ValueError as error:
                raise ConfigError(f"{key}: {error}") from None
        if strange := [key for key in values if key not in found]:
            raise ConfigError(f"{strange[0]}: does not exist beside the others, by its `when`")
        return found

    def distributions(self, params: Mapping[str, Any]) -> dict[str, BaseDistribution]:
        """Optuna's distributions of these knobs."""
        return {key: self.space[key].distribution for key in params}

    def _base_value(self, key: str) -> Any:
        """The base run's value of a knob, in the space's own words."""
        parameter, base = self.space[key], self.base()
        if parameter.is_alias or self.function is not None:
            raise ConfigError(f"{key}: must be given, since it is no setting of the base run")
        if parameter.choice is None:
            return looked_up(run_to_dict(base), key)
        same = [choice for choice in parameter.choice if self.run_of({key: choice}, name=base.name, seed=base.seed) == base]
        if not same:
            raise ConfigError(f"{key}: must be given, since the base run's value is none of {parameter.domain}")
        return same[0]
