"""A searched knob: its values, and the settings that it stands for."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import Field, field_validator, model_validator

from imachsr.search.space.conditions import Part, is_number, meets

Scalar = None | bool | int | float | str
# Relative: a range is so many steps long, up to the rounding of decimal fractions.
_ROUNDING = 1e-9


class Suggests(Protocol):
    """What values are drawn from: an Optuna trial, or a draft of one."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False) -> float: ...

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...


class Parameter(Part):
    """One searched knob: a choice, an integer range or a real range.

    Attributes:
        choice: Values, of any structure; or ``name: settings``, of which each name stands for several settings.
        int_: ``int: [low, high]``, both included.
        float_: ``float: [low, high]``.
        step: Between the values of a range that is not logarithmic, > 0; of integers, an integer.
        log: Sample the logarithm.
        num: Values of a real range that a grid takes, >= 2, evenly, by their logarithms with ``log``; other samplers draw from all of it.
        when: Other knobs and the value, the values, or the ``{at_least, at_most}`` under which this one exists.
        sets: Settings that take the value, where the key is none itself; a factor each, as in ``{method.alpha: 1, method.beta: 0.1}``, for a range.
    """

    choice: Any = None
    int_: tuple[int, int] | None = Field(None, alias="int")
    float_: tuple[float, float] | None = Field(None, alias="float")
    step: float | None = Field(None, gt=0, allow_inf_nan=False)
    log: bool = False
    num: int | None = Field(None, ge=2)
    when: dict[str, Any] = {}
    sets: Any = ()

    @field_validator("choice")
    @classmethod
    def _check_choice(cls, given: Any) -> Any:
        if isinstance(given, Mapping):
            for name, settings in given.items():
                if not isinstance(name, str) or not isinstance(settings, Mapping):
                    raise ValueError(f"must give each name a mapping of settings, but got {name!r}: {settings!r}; write a list of plain values")
            given = {name: dict(settings) for name, settings in given.items()}
        elif isinstance(given, (list, tuple)):
            given = tuple(given)
        elif given is not None:
            raise ValueError(f"must be a list of values, or a mapping of names to settings, but got {given!r}")
        if given is not None and not given:
            raise ValueError("must have at least 1 item, but is empty")
        return given

    @field_validator("sets")
    @classmethod
    def _check_sets(cls, given: Any) -> Any:
        if isinstance(given, Mapping):
            for key, factor in given.items():
                if not is_number(factor):
                    raise ValueError(f"must give each setting a factor, but got {key!r}: {factor!r}")
            return dict(given)
        if not isinstance(given, (list, tuple)) or not all(isinstance(key, str) for key in given):
            raise ValueError(f"must be a list of settings, or a mapping of settings to factors, but got {given!r}")
        return tuple(given)

    @model_validator(mode="after")
    def _check(self) -> "Parameter":
        given = [name for name, value in (("choice", self.choice), ("int", self.int_), ("float", self.float_)) if value is not None]
        if len(given) != 1:
            raise ValueError(f"one of choice, int and float must be given, but got {' and '.join(given) or 'none'}")
        self._check_range()
        # As Python compares them: 1, 1.0 and true are one value. As Optuna stores them: a structure and its own JSON text are one.
        given_choices = list(self.choice or ())
        for values in (given_choices, [_encoded(item) for item in given_choices]):
            repeated = [item for index, item in enumerate(values) if item in values[:index]]
            if repeated:
                raise ValueError(f"choices must differ, but {repeated[0]!r} is given again")
        if self.sets and isinstance(self.choice, Mapping):
            raise ValueError("`sets` must not go with choices that name their settings")
        if isinstance(self.sets, Mapping) and self.choice is not None:
            raise ValueError("`sets` with factors must go with a range, but got a choice; write a list of keys")
        return self

    def _check_range(self) -> None:
        bounds = self.int_ or self.float_
        if bounds is not None and not bounds[0] < bounds[1]:
            raise ValueError(f"`low < high` must hold, but got {list(bounds)}")
        if self.float_ is not None and not all(map(_is_finite, self.float_)):
            raise ValueError(f"a range must be finite, but got {list(self.float_)}")
        if self.log and (bounds is None or bounds[0] <= 0):
            raise ValueError("`log` must go with a range above 0, but got " + (f"{list(bounds)}" if bounds else "a choice"))
        if self.num is not None and (self.float_ is None or self.step is not None):
            raise ValueError("`num` must go with a real range without `step`; a choice and an integer range have their values")
        if self.step is None:
            return
        if bounds is None or self.log:
            raise ValueError("`step` must go with a range that is not logarithmic" + ("; give `num` for a grid" if self.float_ else ""))
        if self.int_ is not None and not self.step.is_integer():
            raise ValueError(f"`step` of an integer range must be an integer, but got {self.step:g}")
        count = (bounds[1] - bounds[0]) / self.step
        if abs(count - round(count)) > _ROUNDING * max(1.0, count) or round(count) < 1:
            raise ValueError(f"`high - low` must be a multiple of `step`, but got {list(bounds)} and {self.step:g}")

    @property
    def is_alias(self) -> bool:
        """Whether the key is no setting itself, but stands for others."""
        return bool(self.sets) or isinstance(self.choice, Mapping)

    @property
    def samples(self) -> tuple[Any, ...]:
        """Values that show whether the settings take them: all choices, or both ends."""
        return tuple(self.choice) if self.choice is not None else tuple(self.int_ or self.float_ or ())

    @property
    def values(self) -> tuple[Any, ...] | None:
        """All values, or those that a grid takes; None where they are too many to count."""
        if self.choice is not None:
            return tuple(self.choice)
        if self.int_ is not None:
            return tuple(range(self.int_[0], self.int_[1] + 1, int(self.step or 1)))
        assert self.float_ is not None
        low, high = self.float_
        count = round((high - low) / self.step) if self.step is not None else (self.num or 0) - 1
        if count < 0:
            return None
        shares = [index / count for index in range(count + 1)]
        inner = [low * (high / low) ** share if self.log else low + share * (high - low) for share in shares]
        return (low, *(float(f"{value:.12g}") for value in inner[1:-1]), high)

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether the conditions hold."""
        return all(key in values and meets(values[key], wanted) for key, wanted in self.when.items())

    def settings(self, key: str, value: Any) -> dict[str, Any]:
        """The settings, by dotted keys, that a value stands for."""
        if isinstance(self.choice, Mapping):
            return dict(self.choice[value])
        if isinstance(self.sets, Mapping):
            return {each: value * factor for each, factor in self.sets.items()}
        return dict.fromkeys(self.sets, value) if self.sets else {key: value}

    def targets(self, key: str) -> list[dict[str, Any]]:
        """The settings of each value that could differ in which ones they are."""
        return [self.settings(key, value) for value in (self.choice if isinstance(self.choice, Mapping) else self.samples[:1])]

    def suggest(self, trial: Suggests, key: str) -> Any:
        """Draw a value."""
        if self.int_ is not None:
            return trial.suggest_int(key, *self.int_, step=int(self.step or 1), log=self.log)
        if self.float_ is not None:
            return trial.suggest_float(key, *self.float_, step=self.step, log=self.log)
        choices = {_encoded(item): item for item in self.choice or ()}
        return choices[trial.suggest_categorical(key, list(choices))]

    def told(self, value: Any) -> Any:
        """The value as Optuna stores it.

        Raises:
            ValueError: If it is none of the knob's.
        """
        if self.choice is not None:
            if value not in tuple(self.choice):
                raise ValueError(f"must be one of {self.domain}, but got {value!r}")
            return _encoded(next(item for item in self.choice if item == value))
        low, high = self.int_ or self.float_ or (0, 0)
        steps = (value - low) / self.step if is_number(value) and self.step is not None else 0.0
        is_whole = abs(steps - round(steps)) <= _ROUNDING * max(1.0, abs(steps)) and (self.int_ is None or float(value).is_integer())
        if not is_number(value) or not low <= value <= high or not is_whole:
            raise ValueError(f"must be {self.domain}, but got {value!r}")
        return int(value) if self.int_ is not None else float(value)

    @property
    def distribution(self) -> BaseDistribution:
        """As Optuna knows it."""
        if self.int_ is not None:
            return IntDistribution(*self.int_, step=int(self.step or 1), log=self.log)
        if self.float_ is not None:
            return FloatDistribution(*self.float_, step=self.step, log=self.log)
        return CategoricalDistribution([_encoded(item) for item in self.choice or ()])

    @property
    def domain(self) -> str:
        """The values in words."""
        if self.choice is not None:
            return ", ".join(_short(item) for item in self.choice)
        low, high = self.int_ or self.float_ or (0, 0)
        words = [f"{'integer' if self.int_ else 'real'} from {low:g} to {high:g}"]
        words += ["logarithmic"] if self.log else []
        words += [f"in steps of {self.step:g}"] if self.step is not None else []
        return ", ".join([*words, *([f"{self.num} of them on a grid"] if self.num else [])])


def _is_finite(value: float) -> bool:
    return abs(value) < float("inf")


def _encoded(item: Any) -> Any:
    """Optuna stores plain scalars; lists and mappings travel as JSON."""
    return item if isinstance(item, Scalar) else json.dumps(item)


def _short(item: Any) -> str:
    return item if isinstance(item, str) else json.dumps(item)


def settings_of(space: Mapping[str, Parameter], values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted settings that the values of knobs stand for; keys that are no knobs stay as they are."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= space[key].settings(key, value) if key in space else {key: value}
    return found


def ordered(space: Mapping[str, Parameter]) -> list[str]:
    """The knobs, each behind those that its conditions name, else as written.

    Raises:
        ValueError: If conditions name one another in a circle.
    """
    found: dict[str, None] = {}

    def visit(key: str, above: tuple[str, ...]) -> None:
        if key in above:
            raise ValueError(f"conditions must not go round in a circle, but got {' -> '.join([*above[above.index(key) :], key])}")
        if key in found or key not in space:
            return
        for other in space[key].when:
            visit(other, (*above, key))
        found[key] = None

    for key in space:
        visit(key, ())
    return list(found)


def named(space: Mapping[str, Parameter]) -> Iterable[str]:
    """Knobs that conditions name."""
    return dict.fromkeys(other for parameter in space.values() for other in parameter.when)


FORMS = [field.alias or name for name, field in Parameter.model_fields.items()]
