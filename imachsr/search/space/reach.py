"""What each sampler can do with a space: its grid, what it models jointly, and what it cannot."""

from collections.abc import Iterator, Mapping
from typing import Any

from imachsr.config.schema import ConfigError
from imachsr.search.space.parameters import named
from imachsr.search.space.search import Search

LARGEST_GRID = 100_000


def ungridded(search: Search) -> list[str]:
    """Ranges that have no steps, of which a grid would have to be infinite."""
    return [key for key in search.order if search.space[key].values is None]


def grid_size(search: Search) -> int | None:
    """Configurations of the space, also of those that break a constraint; None where there are infinitely many."""
    if ungridded(search):
        return None
    switches = set(named(search.space))

    def count(place: int, values: Mapping[str, Any]) -> int:
        if place == len(search.order):
            return 1
        key = search.order[place]
        parameter = search.space[key]
        if not parameter.holds(values):
            return count(place + 1, values)
        if key not in switches:
            return len(parameter.values or ()) * count(place + 1, values)
        return sum(count(place + 1, {**values, key: value}) for value in parameter.values or ())

    return count(0, {})


def grid(search: Search) -> Iterator[dict[str, Any]]:
    """All configurations of a space without endless ranges, as values of knobs, also those that break a constraint."""
    yield from _grid(search, 0, {})


def _grid(search: Search, place: int, values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if place == len(search.order):
        yield values
        return
    key = search.order[place]
    parameter = search.space[key]
    for value in (parameter.values or ()) if parameter.holds(values) else ():
        yield from _grid(search, place + 1, {**values, key: value})
    if not parameter.holds(values):
        yield from _grid(search, place + 1, values)


def joint(search: Search) -> list[str]:
    """Knobs that gp, cmaes and nsga2 model jointly: those that exist in every configuration, and of cmaes the ranges among them."""
    is_cmaes = search.sampler.kind == "cmaes"
    return [
        key
        for key in search.order
        for parameter in [search.space[key]]
        if not parameter.when and not parameter.distribution.single() and not (is_cmaes and parameter.choice is not None)
    ]


def independent(search: Search) -> list[str]:
    """Knobs that the sampler draws at random, each by itself, whatever it has learnt.

    Optuna's Gaussian process, CMA-ES and NSGA-II model what every trial has; CMA-ES knows no categories. TPE models each branch of conditional knobs
    jointly (multivariate and group).
    """
    if search.sampler.kind not in ("gp", "cmaes", "nsga2"):
        return []
    modelled = joint(search)
    return [key for key in search.order if key not in modelled and not search.space[key].distribution.single()]


def notes(search: Search) -> list[str]:
    """Lines for the user about what the sampler does not do, before anything starts."""
    kind, lines = search.sampler.kind, []
    if names := independent(search):
        lines.append(f"sampler {kind} draws these at random, each by itself: {', '.join(names)}; tpe models them too")
    if kind in ("gp", "nsga2") and search.scheduler.kind != "none":
        lines.append(f"sampler {kind} learns from whole trials only, not from those that {search.scheduler.kind} stops; tpe learns from both")
    if kind == "nsga2" and num_sampled(search) <= (population := search.sampler.population or 50):
        lines.append(f"sampler nsga2 draws at random until {population} trials have ended whole, and at most {num_sampled(search)} are sampled")
    return lines


def num_sampled(search: Search) -> int:
    """Trials that the budget leaves for sampling."""
    return search.budget.trials - len(search.fixed()) - len(search.points)


def check_sampler(search: Search) -> None:
    """Raise ConfigError if the sampler cannot work on the space, or would draw all of it at random."""
    kind = search.sampler.kind
    if kind == "grid":
        _check_grid(search)
    if kind == "cmaes" and len(search.objectives) > 1:
        raise ConfigError("sampler.kind: must not be cmaes with several objectives, since CMA-ES has one; take tpe, gp or nsga2")
    if kind in ("gp", "nsga2") and search.space and not joint(search):
        raise ConfigError(f"sampler.kind: must not be {kind} where every knob is conditional: it would draw all of them at random; take tpe")
    if kind == "cmaes" and search.space and len(joint(search)) < 2:
        raise ConfigError(f"sampler.kind: cmaes must have two ranges or more without conditions, but has {joint(search)}; take tpe")


def _check_grid(search: Search) -> None:
    for key in ungridded(search):
        raise ConfigError(f"space.{key}: must have `step` or `num` for a grid, since a real range has no values of its own")
    size = grid_size(search) or 0
    if size > LARGEST_GRID:
        raise ConfigError(f"space: must have at most {LARGEST_GRID:,} configurations for a grid, but has {size:,}; take fewer values, or random")
    if search.space and num_sampled(search) > size:
        others = len(search.fixed()) + len(search.points)
        raise ConfigError(f"budget.trials: must be at most {others + size} ({others} fixed and {size} of the grid), but got {search.budget.trials}")
