"""Whether the knobs of a space fit one another: conditions, and the settings that they stand for."""

from collections.abc import Iterator, Mapping
from typing import Any

from imachsr.config.schema import ConfigError, Run, near
from imachsr.search.space.conditions import alternatives, is_bounds, meets
from imachsr.search.space.parameters import Parameter
from imachsr.search.space.search import Search


def check_conditions(search: Search) -> None:
    """Raise ConfigError unless each condition names a knob and values of it, and none of them goes round in a circle."""
    space = search.space
    for key, parameter in space.items():
        for other, wanted in parameter.when.items():
            if other not in space:
                raise ConfigError(f"space.{key}.when: must name a knob of the space, but got {other!r}; {near(other, list(space))}")
            check_wanted(f"space.{key}.when.{other}", space[other], wanted)
    try:
        order = search.order
    except ValueError as error:
        raise ConfigError(f"space: {error}") from None
    for key in order:
        if next(contexts(search, key), None) is None:
            raise ConfigError(f"space.{key}.when: must hold for some configuration, but its conditions exclude one another")


def check_wanted(where: str, parameter: Parameter, wanted: Any) -> None:
    """Raise ConfigError unless each value that a condition names is one of the knob's, or some are within its bounds."""
    if is_bounds(wanted):
        if not any(meets(value, wanted) for value in _representatives(parameter, [wanted])):
            raise ConfigError(f"{where}: must be met by one of its values, {parameter.domain}, but got {wanted}")
        return
    if parameter.float_ is not None and parameter.step is None:
        raise ConfigError(f"{where}: must be {{at_least: ..., at_most: ...}}, since a real range hardly ever gives one value, but got {wanted!r}")
    for value in alternatives(wanted):
        if not any(meets(each, [value]) for each in _representatives(parameter, [[value]])):
            hint = f"; {near(value, [str(choice) for choice in parameter.choice])}" if parameter.choice is not None else ""
            values = "one of its choices" if hint else parameter.domain
            raise ConfigError(f"{where}: must be {values}, but got {value!r}{hint}")


def _representatives(parameter: Parameter, conditions: list[Any]) -> list[Any]:
    """Values of a knob of which each condition is met by some, if it can be met at all: all choices, or of a range the ends and what is named."""
    if parameter.choice is not None:
        return list(parameter.samples)
    named = [value for wanted in conditions for value in (wanted.values() if is_bounds(wanted) else alternatives(wanted))]
    found: list[Any] = []
    for value in (*parameter.samples, *named, *(parameter.values or ())):
        try:
            found += [parameter.told(value)] if value not in found else []
        except ValueError:
            continue
    return found


def contexts(search: Search, key: str) -> Iterator[dict[str, Any]]:
    """Values of other knobs under which a knob exists: one for each way to meet its own conditions."""
    seen: list[tuple[Any, ...]] = []
    above = _above(search.space, key)
    for values in _assignments(search, [each for each in search.order if each in above], {}):
        if search.space[key].holds(values):
            way = tuple(values[other] for other in search.space[key].when)
            if way not in seen:
                seen.append(way)
                yield values


def _above(space: Mapping[str, Parameter], key: str) -> set[str]:
    """Knobs that a knob's existence depends on."""
    found = set(space[key].when)
    return found.union(*(_above(space, other) for other in found))


def _assignments(search: Search, keys: list[str], values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if not keys:
        yield values
        return
    parameter, rest = search.space[keys[0]], keys[1:]
    if not parameter.holds(values):
        yield from _assignments(search, rest, values)
        return
    named = [other.when[keys[0]] for other in search.space.values() if keys[0] in other.when]
    for value in _representatives(parameter, named):
        yield from _assignments(search, rest, {**values, keys[0]: value})


def needed(space: Mapping[str, Parameter], key: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, with the knobs that a place in a list cannot be without: those of the places before it."""
    found = dict(values)
    for other, parameter in space.items():
        if other not in found and _is_before(other, key) and parameter.holds(found):
            found[other] = parameter.samples[0]
    return found


def _is_before(other: str, key: str) -> bool:
    """Whether a key is, or lies in, an earlier place of the same list: ``method.loss.0.temperature`` before ``method.loss.1``."""
    left, right = other.split("."), key.split(".")
    for index, (one, two) in enumerate(zip(left, right, strict=False)):
        if one != two:
            return one.isdigit() and two.isdigit() and int(one) < int(two) and index > 0
    return False


def check_knobs(search: Search) -> None:
    """Raise ConfigError if a name that stands for several settings is one itself, or two knobs set the same at once."""
    owners: dict[str, list[str]] = {}
    for key, parameter in search.space.items():
        if parameter.is_alias and key.partition(".")[0] in Run.model_fields:
            raise ConfigError(f"space.{key}: must have a name of its own, such as recipe, since it stands for several settings, but is one itself")
        for target in dict.fromkeys(target for settings in parameter.targets(key) for target in settings):
            for other in owners.setdefault(target, []):
                if not _exclude(search.space[other], parameter):
                    raise ConfigError(f"space.{key}: must not set {target}, which {other} sets at the same time; a `when` can keep them apart")
            owners[target].append(key)


def _exclude(one: Parameter, two: Parameter) -> bool:
    """Whether two knobs never exist together, as one condition of both shows."""
    for key in one.when.keys() & two.when.keys():
        first, second = one.when[key], two.when[key]
        if is_bounds(first) and is_bounds(second):
            if first.get("at_least", float("-inf")) > second.get("at_most", float("inf")):
                return True
            if second.get("at_least", float("-inf")) > first.get("at_most", float("inf")):
                return True
        else:
            values, other = (second, first) if is_bounds(first) else (first, second)
            if not any(meets(value, other) for value in alternatives(values)):
                return True
    return False
