"""A search as YAML: the base run, the space with its conditions, the fixed arms, and the budget."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from optuna.trial import Trial
from pydantic import BaseModel, ConfigDict, Field, model_validator

from imachsr.config.load import load_yaml, make_run, merge, nested, parse_overrides
from imachsr.config.schema import ConfigError, Run, near, validate
from imachsr.data.splits import Selection

Scalar = None | bool | int | float | str
OUTPUT_ONLY = {"method.alpha": 0, "method.beta": 0}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Parameter(_Part):
    """One searched setting: a choice, an integer range or a real range.

    Attributes:
        choice: Values.
        int_: ``int: [low, high]``, both included.
        float_: ``float: [low, high]``.
        step: Of an integer range, >= 1.
        log: Sample the logarithm.
        when: Other searched keys and the value, or values, under which this one exists.
    """

    choice: tuple[Any, ...] | None = Field(None, min_length=1)
    int_: tuple[int, int] | None = Field(None, alias="int")
    float_: tuple[float, float] | None = Field(None, alias="float")
    step: int = Field(1, ge=1)
    log: bool = False
    when: dict[str, Any] = {}

    @model_validator(mode="after")
    def _check(self) -> "Parameter":
        given = [name for name, value in (("choice", self.choice), ("int", self.int_), ("float", self.float_)) if value is not None]
        if len(given) != 1:
            raise ValueError(f"one of choice, int and float must be given, but got {' and '.join(given) or 'none'}")
        bounds = self.int_ or self.float_
        if bounds is not None and not bounds[0] < bounds[1]:
            raise ValueError(f"`low < high` must hold, but got {list(bounds)}")
        if self.log and (bounds is None or bounds[0] <= 0):
            raise ValueError("`log` must go with a range above 0, but got " + (f"{list(bounds)}" if bounds else "a choice"))
        if self.step != 1 and (self.int_ is None or self.log):
            raise ValueError("`step` must go with an integer range that is not logarithmic")
        if self.int_ is not None and (self.int_[1] - self.int_[0]) % self.step:
            raise ValueError(f"`high - low` must be a multiple of `step`, but got {list(self.int_)} and {self.step}")
        # As Python compares them: 1, 1.0 and true are one value.
        repeated = [item for index, item in enumerate(self.choice or ()) if item in (self.choice or ())[:index]]
        if repeated:
            raise ValueError(f"choices must differ, but {repeated[0]!r} is given again")
        return self

    @property
    def samples(self) -> tuple[Any, ...]:
        """Values that show whether the settings take them: all choices, or both ends."""
        return self.choice if self.choice is not None else tuple(self.int_ or self.float_ or ())

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether the conditions hold."""
        return all(key in values and values[key] in _values(wanted) for key, wanted in self.when.items())

    def suggest(self, trial: Trial, key: str) -> Any:
        """Draw from Optuna."""
        if self.int_ is not None:
            return trial.suggest_int(key, *self.int_, step=self.step, log=self.log)
        if self.float_ is not None:
            return trial.suggest_float(key, *self.float_, log=self.log)
        # Optuna stores plain scalars; lists and mappings travel as JSON.
        choices = {item if isinstance(item, Scalar) else json.dumps(item): item for item in self.choice or ()}
        return choices[trial.suggest_categorical(key, list(choices))]


FORMS = [field.alias or name for name, field in Parameter.model_fields.items()]


class Arm(_Part):
    """A fixed configuration that runs before any sampled one, whole.

    Attributes:
        name: Shown in tables.
        set_: ``set:`` dotted keys and values over the base run.
    """

    name: str = Field(min_length=1)
    set_: dict[str, Any] = Field({}, alias="set")


class Metric(_Part):
    """What is compared.

    Attributes:
        name: A key of the rows; select/miou, select/accuracy and select/iou/CLASS are percentages.
        mode: max or min, whichever is better.
    """

    name: str = "select/miou"
    mode: Literal["max", "min"] = "max"


def check_metric(metric: Metric, class_names: Sequence[str]) -> None:
    """Raise ConfigError unless every row of every trial has the metric."""
    known = ["select/miou", "select/accuracy", "select/loss", *(f"select/iou/{name}" for name in class_names)]
    known += ["train/loss", "train/output", "train/lr", "time/step_ms", "time/epoch_s", "images_per_s"]
    if metric.name not in known:
        raise ConfigError(f"metric.name: must be a key of every trial's rows, but got {metric.name!r}; {near(metric.name, known)}")


class Scheduler(_Part):
    """ASHA, or none.

    Attributes:
        kind: asha or none.
        grace: Epochs >= 1 before a trial can be stopped.
        reduction: One in so many goes on at each rung, >= 2.
    """

    kind: Literal["asha", "none"] = "asha"
    grace: int = Field(2, ge=1)
    reduction: int = Field(3, ge=2)


class Sampler(_Part):
    """What proposes.

    Attributes:
        kind: tpe (multivariate, grouped) or random.
        startup_trials: Random proposals before TPE models anything, >= 1.
        seed: Of the proposals, >= 0.
    """

    kind: Literal["tpe", "random"] = "tpe"
    startup_trials: int = Field(4, ge=1)
    seed: int = Field(0, ge=0)


class Budget(_Part):
    """How much.

    Attributes:
        trials: In all, >= 1, with the arms.
        concurrency: At a time, >= 1.
        cpus_per_trial: CPUs, and threads of each trial, >= 1.
        gpus_per_trial: GPUs, >= 0; fractions share one.
    """

    trials: int = Field(12, ge=1)
    concurrency: int = Field(2, ge=1)
    cpus_per_trial: int = Field(1, ge=1)
    gpus_per_trial: float = Field(0.0, ge=0)


class Search(_Part):
    """A whole search, checked.

    Attributes:
        name: Of the group in W&B, and of the default folder of results.
        run: The base run's settings, over the defaults.
        space: Dotted keys and how they are searched; a condition names a key above it.
        arms: Fixed configurations; the first is the output-only baseline. Without any, that is the only one.
        seeds: Every arm runs with every one of these; sampled trials with the first.
    """

    name: str = Field("search", min_length=1)
    run: dict[str, Any] = {}
    space: dict[str, Parameter] = {}
    arms: tuple[Arm, ...] = (Arm.model_validate({"name": "baseline", "set": OUTPUT_ONLY}),)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0,), min_length=1)
    metric: Metric = Metric()
    scheduler: Scheduler = Scheduler()
    sampler: Sampler = Sampler()
    budget: Budget = Budget()
    selection: Selection = Selection()

    def base(self) -> Run:
        """The run that everything is set over."""
        return make_run(self.run)

    def fixed(self) -> list[tuple[str, int, dict[str, Any]]]:
        """Name, seed and settings of every arm with every seed; the baseline with the first seed comes first."""
        return [(arm.name, seed, dict(arm.set_)) for arm in self.arms for seed in self.seeds]

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """Settings drawn for a trial, without those whose conditions do not hold."""
        values: dict[str, Any] = {}
        for key, parameter in self.space.items():
            if parameter.holds(values):
                values[key] = parameter.suggest(trial, key)
        return values

    def run_of(self, values: Mapping[str, Any], *, name: str, seed: int) -> Run:
        """The base run with these settings."""
        return make_run(self.run, {**values, "name": name, "seed": seed})


def _values(wanted: Any) -> Sequence[Any]:
    return wanted if isinstance(wanted, (list, tuple)) else (wanted,)


def _contexts(space: Mapping[str, Parameter], key: str) -> Iterator[dict[str, Any]]:
    """Settings under which a key exists: one for each value that its conditions name."""
    if not space[key].when:
        yield {}
        return
    first: dict[str, Any] = {}
    for other, wanted in space[key].when.items():
        first |= next(_contexts(space, other)) | {other: _values(wanted)[0]}
    yield first
    for other, wanted in space[key].when.items():
        for value in _values(wanted)[1:]:
            yield {**first, other: value}


def check(search: Search) -> None:
    """Try every value of the space and every arm against the run's settings.

    Raises:
        ConfigError: Names the key and what is wrong.
    """
    _check_seeds(search)
    known: list[str] = []
    for key, parameter in search.space.items():
        for other, wanted in parameter.when.items():
            if other not in known:
                hint = near(other, known) if known else "it is the first"
                raise ConfigError(f"space.{key}.when: must name a searched key above it, but got {other!r}; {hint}")
            choices = search.space[other].choice
            if choices is None:
                raise ConfigError(f"space.{key}.when.{other}: must name a key with choices, but {other!r} is a range")
            for value in _values(wanted):
                if value not in choices:
                    raise ConfigError(
                        f"space.{key}.when.{other}: must be one of its choices, but got {value!r}; {near(value, list(map(str, choices)))}"
                    )
        known.append(key)
    tried = [(key, {**context, key: value}) for key in known for context in _contexts(search.space, key) for value in search.space[key].samples]
    for key, values in tried:  # each alone before any beside another, which would be blamed for it
        _try(search, values, f"space.{key}: {values[key]!r}")
    for key, values in tried:
        _check_beside(search, values, key)
    names = [arm.name for arm in search.arms]
    if len(set(names)) != len(names):
        raise ConfigError(f"arms: names must differ, but got {', '.join(names)}")
    for index, arm in enumerate(search.arms):
        run = _try(search, arm.set_, f"arms.{index} ({arm.name})")
        if index == 0 and not run.is_output_only:
            raise ConfigError(f"arms.0: must be the output-only baseline (method.alpha 0 and method.beta 0), but {arm.name!r} supervises more")
    if not search.arms:
        raise ConfigError("arms: must begin with the output-only baseline, but is empty; leave it out to have it made")
    if len(search.fixed()) > search.budget.trials:
        raise ConfigError(f"budget.trials: must cover the {len(search.fixed())} arms (with every seed), but got {search.budget.trials}")
    if len(search.fixed()) < search.budget.trials and not search.space:
        raise ConfigError(f"space: must name what to search for {search.budget.trials} trials, but is empty and there are {len(search.fixed())} arms")
    if search.scheduler.kind == "asha" and search.scheduler.grace >= search.base().optimizer.epochs:
        raise ConfigError(
            f"scheduler.grace: must be below optimizer.epochs ({search.base().optimizer.epochs}), but got {search.scheduler.grace}; use kind: none"
        )


def _check_seeds(search: Search) -> None:
    if len(set(search.seeds)) != len(search.seeds):
        raise ConfigError(f"seeds: must differ, but got {list(search.seeds)}")
    if "seed" in search.run and search.run["seed"] not in search.seeds:
        raise ConfigError(f"run.seed: must be one of `seeds` {list(search.seeds)}, which every trial's seed comes from, but got {search.run['seed']}")
    for where, keys in (("space", search.space), *((f"arms.{index}.set", arm.set_) for index, arm in enumerate(search.arms))):
        for key in ("seed", "name"):
            if key in keys:
                raise ConfigError(f"{where}.{key}: must not be set here; the search names its runs, and `seeds` gives their seeds")


def _check_beside(search: Search, values: Mapping[str, Any], key: str) -> None:
    """Try settings that are right by themselves beside each value of every other key."""
    for other, parameter in search.space.items():
        if other not in values and parameter.holds(values):
            for value in parameter.samples:
                _try(search, {**values, other: value}, f"space.{key}: {values[key]!r} with {other} {value!r} (a `when` can keep them apart)")


def _try(search: Search, values: Mapping[str, Any], where: str) -> Run:
    try:
        return search.run_of(values, name="check", seed=0)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def make_search(raw: Mapping[str, Any]) -> Search:
    """The search that a mapping describes, checked as a whole.

    Raises:
        ConfigError: Names the key and what is wrong.
    """
    space = raw.get("space")
    for key, parameter in space.items() if isinstance(space, Mapping) else ():
        for name in parameter if isinstance(parameter, Mapping) else ():
            if name not in FORMS and name not in Parameter.model_fields:
                raise ConfigError(f"space.{key}.{name}: is no setting; {near(name, FORMS)}")
    search: Search = validate(Search, raw)
    try:
        search.base()
    except ConfigError as error:
        raise ConfigError(f"run: {error}") from None
    check(search)
    return search


def load_search(path: str | Path, overrides: Sequence[str] = ()) -> Search:
    """The search of a YAML file, with ``key=value`` overrides (``budget.trials=6``, ``run.optimizer.epochs=4``).

    ``base:`` may name a run's YAML file, relative to this one, that ``run:`` is set over.

    Raises:
        ConfigError: For anything that the user got wrong; names file and key.
    """
    dotted = parse_overrides(overrides)
    raw: Any = load_yaml(path)
    base = raw.pop("base", None)
    if base is not None:
        raw["run"] = merge(load_yaml(Path(path).parent / str(base)), raw.get("run", {}))
    of_space = {key: dotted.pop(key) for key in tuple(dotted) if key.startswith("space.")}
    for layer in nested(dotted):
        raw = merge(raw, layer)
    for key, value in of_space.items():
        raw = merge(raw, _space_layer(key, value, raw))
    try:
        return make_search(raw)
    except ConfigError as error:
        raise ConfigError(f"{path}: {str(error).replace(chr(10), f'{chr(10)}{path}: ')}") from None


def _space_layer(key: str, value: Any, raw: Mapping[str, Any]) -> dict[str, Any]:
    """An override of the space, whose keys hold dots themselves: ``space.method.alpha.float`` is ``float`` of ``method.alpha``."""
    rest = key.removeprefix("space.")
    there = raw.get("space")
    searched = [each for each in (there if isinstance(there, Mapping) else ()) if rest == each or rest.startswith(f"{each}.")]
    head, _, last = rest.rpartition(".")
    name = max(searched, key=len) if searched else head if last in FORMS and head else rest
    inner = rest.removeprefix(name).removeprefix(".")
    tree = value
    for part in reversed([part for part in (inner.split(".", 1) if inner.startswith("when.") else [inner]) if part]):
        tree = {part: tree}
    return {"space": {name: tree}}


def search_to_dict(search: Search) -> dict[str, Any]:
    """Plain values that :func:`make_search` reads back."""
    return search.model_dump(mode="json", by_alias=True, exclude_none=True)
