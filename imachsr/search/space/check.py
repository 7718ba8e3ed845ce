"""Whether a search can run: every value of the space, every arm and every point is tried against the run's settings."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from imachsr.config.load import run_to_dict
from imachsr.config.schema import ConfigError, Run, near
from imachsr.search.canonical import fingerprint, words_of_twins
from imachsr.search.space.chance import draws
from imachsr.search.space.constraints import MISSING, looked_up
from imachsr.search.space.knobs import check_conditions, check_knobs, check_wanted, contexts, needed
from imachsr.search.space.reach import check_sampler, num_sampled
from imachsr.search.space.rules import Metric, known_mode
from imachsr.search.space.search import Search

# Random configurations that break a constraint, one after another, before a space counts as empty.
_TRIES = 5000


def check_metric(metric: Metric, class_names: Sequence[str], score_on: str = "select") -> None:
    """Raise ConfigError unless every row of every trial has the metric."""
    _check_metric("metric", metric.name, score_on, [f"{score_on}/iou/{name}" for name in class_names])


def _check_metric(where: str, name: str, score_on: str, of_classes: Sequence[str]) -> None:
    known = [*(f"{score_on}/{name}" for name in ("miou", "boundary_iou", "accuracy", "ece", "nll", "loss")), *of_classes]
    known += ["train/loss", "train/output", "train/lr", "time/step_ms", "time/epoch_s", "images_per_s"]
    if name not in known:
        raise ConfigError(f"{where}.name: must be a key of every trial's rows, but got {name!r}; {near(name, known)}")


def check(search: Search) -> None:
    """Try every value of the space, every arm and every point against the run's settings.

    Raises:
        ConfigError: Names the key and what is wrong.
    """
    _check_seeds(search)
    names = [metric.name for metric in search.objectives]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"also: each objective must be there once, but {twice} is twice")
    for where, metric in (("metric", search.metric), *((f"also.{index}", each) for index, each in enumerate(search.also))):
        if search.function is None and not metric.name.startswith(f"{search.score_on}/iou/"):  # the names of the classes are known from the data only
            _check_metric(where, metric.name, search.score_on, [])
        if search.function is None and metric.mode != (best := known_mode(metric.name) or metric.mode):
            raise ConfigError(f"{where}.mode: must be {best} for {metric.name}, but got {metric.mode}; leave it out")
    if search.function is None:  # a slip in a choice is blamed itself, not the condition that spells it rightly
        for key, parameter in search.space.items():
            for value in parameter.samples if not parameter.when else ():
                _try(search, {**_home(search, key, {}), **needed(search.space, key, {}), key: value}, f"space.{key}: {value!r}")
    check_conditions(search)
    check_knobs(search)
    unseen = _Unseen(search)
    if search.function is None:
        _check_values(search, unseen)
        _check_baseline(search)
    _check_arms(search)
    _check_constraints(search, unseen)
    _check_points(search)
    _check_amounts(search)
    _check_confirm(search)
    check_sampler(search)
    _check_room(search)


class _Unseen:
    """Settings that constraints name and that no configuration has had so far."""

    def __init__(self, search: Search) -> None:
        self.keys = {key for constraint in search.constraints for key in constraint.keys if key not in search.space}
        if search.function is not None:
            self.keys -= {target for key, knob in search.space.items() for settings in knob.targets(key) for target in settings}

    def look(self, run: Run) -> None:
        if self.keys:
            tree = run_to_dict(run)
            self.keys = {key for key in self.keys if looked_up(tree, key) is MISSING}


def _check_values(search: Search, unseen: _Unseen) -> None:
    unseen.look(search.base())
    tried = [
        (key, {**_home(search, key, context), **needed(search.space, key, context), key: value})
        for key in search.order
        for context in contexts(search, key)
        for value in search.space[key].samples
    ]
    for key, values in tried:  # each alone before any beside another, which would be blamed for it
        unseen.look(_try(search, values, f"space.{key}: {values[key]!r}"))
    for key, values in tried:
        for other, parameter in search.space.items():
            if other not in values and parameter.holds(values):
                for value in parameter.samples:
                    words = f"space.{key}: {values[key]!r} with {other} {value!r} (a `when` can keep them apart)"
                    unseen.look(_try(search, {**_home(search, other, values), **needed(search.space, other, values), other: value}, words))


def _home(search: Search, key: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The part that a knob's setting is of, where the base run has another: the first value, of the knob that chooses the part, with that setting."""
    tried = {**values, **needed(search.space, key, values), key: search.space[key].samples[0]}
    parents = [other for other, knob in search.space.items() if key.startswith(f"{other}.") and other not in tried and knob.holds(tried)]
    for home in ({}, *({other: value} for other in parents for value in search.space[other].samples)) if parents else ():
        try:
            search.run_of({**home, **tried}, name=search.name, seed=0)
        except ConfigError:
            continue
        return home
    return {}


def _check_baseline(search: Search) -> None:
    if not search.arms:
        raise ConfigError("arms: must begin with the output-only baseline, but is empty; leave it out to have it made")
    seen: dict[str, str] = {}
    for index, arm in enumerate(search.arms):
        run = _try(search, arm.set_, f"arms.{index} ({arm.name})")
        if (twin := seen.setdefault(fingerprint(run), arm.name)) != arm.name:
            raise ConfigError(f"arms.{index}: {words_of_twins(twin, arm.name)}")
        if index == 0 and not run.is_output_only:
            raise ConfigError(f"arms.0: must be the output-only baseline (method.alpha 0 and method.beta 0), but {arm.name!r} supervises more")


def _check_arms(search: Search) -> None:
    names = [arm.name for arm in search.arms]
    if len(set(names)) != len(names):
        raise ConfigError(f"arms: names must differ, but got {', '.join(names)}")


def _check_constraints(search: Search, unseen: _Unseen) -> None:
    for index, constraint in enumerate(search.constraints):
        where = f"constraints.{index}"
        for key in constraint.keys:
            if key in unseen.keys:
                known = [*search.space, *_leaves(run_to_dict(search.base()))]
                raise ConfigError(f"{where}: must name knobs or settings that some configuration has, but got {key!r}; {near(key, known)}")
        for name in ("forbid", "when"):
            for key, wanted in (getattr(constraint, name) or {}).items():
                if key in search.space:
                    check_wanted(f"{where}.{name}.{key}", search.space[key], wanted)


def _leaves(tree: Any, above: str = "") -> list[str]:
    if not isinstance(tree, Mapping):
        return [above]
    own = [above] if "kind" in tree else []
    return own + [leaf for key, part in tree.items() for leaf in _leaves(part, f"{above}.{key}" if above else str(key))]


def _check_points(search: Search) -> None:
    for index, point in enumerate(search.points):
        try:
            search.point_params(point)
        except ConfigError as error:
            raise ConfigError(f"points.{index}.{error}") from None
        if search.function is None:
            _try(search, point, f"points.{index}")
        for key in search.excess(point):
            words = search.constraints[int(key.split(".")[1])].words
            raise ConfigError(f"points.{index}: must keep the constraints, but breaks {key} ({words})")


def _check_amounts(search: Search) -> None:
    count, given = len(search.fixed()), search.budget.trials
    points = f" and {len(search.points)} points" if search.points else ""
    if num_sampled(search) < 0:
        raise ConfigError(f"budget.trials: must cover the {count} arms (with every seed){points}, but got {given}")
    if num_sampled(search) > 0 and not search.space:
        raise ConfigError(f"space: must name what to search for {given} trials, but is empty and there are {count} arms")
    epochs = search.base().optimizer.epochs
    if search.function is None and search.scheduler.kind != "none" and search.scheduler.grace >= epochs:
        raise ConfigError(f"scheduler.grace: must be below optimizer.epochs ({epochs}), but got {search.scheduler.grace}; use kind: none")


def _check_confirm(search: Search) -> None:
    if search.confirm is None:
        return
    from imachsr.search.paired import ALPHA, most_comparisons, pairs_needed, smallest_p

    if search.function is not None:
        raise ConfigError("confirm: must be left out with `function`, whose runs nobody can repeat on other data; search again with fresh `seeds`")
    if search.score_on != "select":
        raise ConfigError(f"confirm: must be left out with score_on {search.score_on}: nothing is left to confirm on")
    seeds, comparisons = search.confirm.seeds, search.confirm.top + len(search.arms) - 1
    if comparisons > most_comparisons(seeds):
        raise ConfigError(
            f"confirm.seeds: `2 / 2^seeds x comparisons <= {ALPHA}` must hold, but {seeds} seeds and {comparisons} comparisons "
            f"({search.confirm.top} configurations and {len(search.arms) - 1} arms beside the baseline) give "
            f"{smallest_p(seeds) * comparisons:.3g}: nothing could win, however large the gain; set {pairs_needed(comparisons)}"
        )


def _check_room(search: Search) -> None:
    """A space that constraints leave nothing of would be told by the first proposal only, after the arms have run."""
    if search.constraints and search.space and not any(not excess for _, excess in itertools.islice(draws(search, 0), _TRIES)):
        words = "; ".join(constraint.words for constraint in search.constraints)
        raise ConfigError(f"constraints: must leave room in the space, but all of {_TRIES:,} random configurations break one ({words})")


def _check_seeds(search: Search) -> None:
    if len(set(search.seeds)) != len(search.seeds):
        raise ConfigError(f"seeds: must differ, but got {list(search.seeds)}")
    if "seed" in search.run and search.run["seed"] not in search.seeds:
        raise ConfigError(f"run.seed: must be one of `seeds` {list(search.seeds)}, which every trial's seed comes from, but got {search.run['seed']}")
    arms = [(f"arms.{index}.set", arm.set_) for index, arm in enumerate(search.arms)]
    knobs = [(f"space.{key}", settings) for key, parameter in search.space.items() for settings in parameter.targets(key)]
    for where, keys in (("space", search.space), *arms, *knobs):
        for key in ("seed", "name"):
            if key in keys:
                raise ConfigError(f"{where}.{key}: must not be set here; the search names its runs, and `seeds` gives their seeds")


def _try(search: Search, values: Mapping[str, Any], where: str) -> Run:
    try:
        return search.run_of(values, name="check", seed=0)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
