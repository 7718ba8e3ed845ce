"""A study from YAML and back, checked as a whole."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from imachsr.config.load import lines_of, load_yaml, located, make_run, merge, nested, parse_overrides, run_to_dict
from imachsr.config.schema import SCORED_ON, ConfigError, Run, near, validate
from imachsr.config.words import word
from imachsr.search.canonical import words_of_twins
from imachsr.study.plan import key_of, place_of
from imachsr.study.schema import Cell, Chart, StudyPlan

_OWN = ("val", "corrupted", "time", "memory")
"""Beginnings of a row's own keys."""
_SCORES = ("miou", "boundary_iou", "accuracy", "ece", "nll", "loss")
_OF_CORRUPTED = ("miou", "ece", "nll")


def make_study(raw: Mapping[str, Any]) -> StudyPlan:
    """The study that a mapping describes, checked as a whole.

    Raises:
        ConfigError: Names the key and what is wrong.
    """
    study: StudyPlan = validate(StudyPlan, raw)
    _check_names(study)
    runs: dict[str, Run] = {}
    for index, cell in enumerate(study.cells):
        own: dict[str, str] = {}
        for arm in study.arms_of(cell):
            with _blaming(f"cells.{index}: with the arm {arm}"):
                _check_place(run := study.run_of(cell, arm, 0), runs)
                for name, further in study.also_on.items():
                    with _blaming(f"also_on.{name}"):
                        _check_further(run, further)
            if (twin := own.setdefault(key_of(run), arm)) != arm:
                raise ConfigError(f"cells.{index}.arms: {words_of_twins(twin, arm)}")
    for index, effect in enumerate(study.effects):
        for value in effect.values:
            with _blaming(f"effects.{index}"):
                _check_place(study.run_of(study.cell(effect.cell), effect.arm, 0, {effect.key: value}), runs)
    for index, chart in enumerate(study.charts):
        for name in chart.cells:
            with _blaming(f"charts.{index}.over"):
                value_over(chart, study.run_of(study.cell(name), study.control, 0))
    _check_metric(study)
    return study


@contextlib.contextmanager
def _blaming(what: str) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from None


def value_over(chart: Chart, run: Run) -> float:
    """Where a run stands in a chart.

    Raises:
        ConfigError: If its setting is none, or no number.
    """
    at: Any = run_to_dict(run)
    for part in chart.over.split("."):
        if not isinstance(at, Mapping) or part not in at:
            raise ConfigError(
                f"must name a setting that is a number, but got {chart.over!r}; {near(part, list(at) if isinstance(at, Mapping) else [])}"
            )
        at = at[part]
    if isinstance(at, bool) or not isinstance(at, (int, float)):
        raise ConfigError(f"must name a setting that is a number, but {chart.over} is {word(at)}")
    return float(at)


def _check_place(run: Run, seen: dict[str, Run]) -> None:
    """Rows are known by their settings without the place of the data: two places under equal settings would be one run."""
    other = seen.setdefault(key_of(run), run)
    if place_of(run) != place_of(other):
        raise ConfigError(
            f"data that differ must differ in more than their place, but {place_of(run)} and {place_of(other)} do not; compare them in two studies"
        )


def _check_further(run: Run, further: Mapping[str, Any]) -> None:
    """What a trained model is also scored on is data that its run could have."""
    for key in further:
        if key.partition(".")[0] not in SCORED_ON:
            raise ConfigError(f"keys must begin with {', '.join(SCORED_ON)}, since the model is trained already, but got {key}")
    make_run(run_to_dict(run), dict(further))


def _check_metric(study: StudyPlan) -> None:
    """A metric that no row will have would be missed after the last run."""
    for name in study.also_on:
        if not name or "/" in name or name in _OWN:
            raise ConfigError(f"also_on: names must be without / and none of {', '.join(_OWN)}, but got {name!r}")
    known = [f"{where}/{name}" for where in ("val", *study.also_on) for name in _SCORES]
    known += [f"corrupted/{name}" for name in _OF_CORRUPTED] if study.corruptions is not None else []
    known += ["time/step_ms", "wall_s"]
    beginnings = ("val/iou/", *(("corrupted/",) if study.corruptions is not None else ()))
    if study.metric not in known and not study.metric.startswith(beginnings):
        raise ConfigError(f"metric: must be a key of a run's row, but got {study.metric!r}; {near(study.metric, known)}")


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> StudyPlan:
    """The study of a YAML file, with ``key=value`` overrides (``run.optimizer.epochs=4``, ``seeds=[0,1]``).

    Raises:
        ConfigError: For anything that the user got wrong; names file and key.
    """
    dotted = parse_overrides(overrides)
    raw: Any = load_yaml(path)
    for layer in nested(dotted):
        raw = merge(raw, layer)
    try:
        return make_study(raw)
    except ConfigError as error:
        places: dict[str, tuple[str | Path, int]] = {key: (path, line) for key, line in lines_of(path).items()}
        raise ConfigError(located(str(error), path, places, dotted)) from None


def study_to_dict(study: StudyPlan) -> dict[str, Any]:
    """Plain values that :func:`make_study` reads back."""
    return study.model_dump(mode="json", by_alias=True, exclude_none=True)


def _check_names(study: StudyPlan) -> None:
    arms, cells = [arm.name for arm in study.arms], [cell.name for cell in study.cells]
    for what, names in (("arms", arms), ("cells", cells)):
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ConfigError(f"{what}: each must have a name of its own, but {twice!r} is there twice")
    given = [("seeds", study.seeds), *((f"cells.{index}.seeds", cell.seeds or ()) for index, cell in enumerate(study.cells))]
    for what, seeds in [*given, *((f"effects.{index}.seeds", effect.seeds) for index, effect in enumerate(study.effects))]:
        if len(set(seeds)) < len(seeds):
            raise ConfigError(f"{what}: each must be there once, but got {list(seeds)}")
    for key, name, known in _named(study, arms, cells):
        if name not in known:
            raise ConfigError(f"{key}: must name one that is there, but got {name!r}; {near(name, known)}")
    for index, cell in enumerate(study.cells):
        _check_cell(study, f"cells.{index}", cell)
    if study.primary is not None:
        at = study.cell(study.primary.cell)
        if study.primary.arm not in study.arms_of(at)[1:]:
            raise ConfigError(f"primary.arm: must be an arm of {at.name} other than the control, but got {study.primary.arm!r}")
    if (again := study.against_itself) is not None:
        own = study.seeds_of(study.cell(again.cell))
        if set(own) & set(again.seeds) or len(own) != len(again.seeds) or len(set(again.seeds)) < len(again.seeds):
            raise ConfigError(f"against_itself.seeds: must be {len(own)} seeds that {again.cell} has not, but got {list(again.seeds)}")


def _check_cell(study: StudyPlan, key: str, cell: Cell) -> None:
    if study.control not in study.arms_of(cell):
        raise ConfigError(f"{key}.arms: must hold the control {study.control!r}, but got {list(cell.arms or ())}")
    if strange := [arm for arm in cell.of_arm if arm not in study.arms_of(cell)]:
        raise ConfigError(f"{key}.of_arm: must be of arms of this cell, but {strange[0]!r} does not run in it")
    if cell.like is None:
        return
    like = study.cell(cell.like)
    if like.like is not None:
        raise ConfigError(f"{key}.like: must name a cell of equal epochs, but {cell.like!r} is none")
    if set(study.seeds_of(cell)) - set(study.seeds_of(like)) or set(study.arms_of(cell)) - set(study.arms_of(like)):
        raise ConfigError(f"{key}: seeds and arms must be among those of {cell.like!r}, whose times are taken")


def _named(study: StudyPlan, arms: list[str], cells: list[str]) -> list[tuple[str, str, list[str]]]:
    """Everything that names an arm or a cell: its key, the name and what is known."""
    found: list[tuple[str, str, list[str]]] = []
    for index, cell in enumerate(study.cells):
        found += [(f"cells.{index}.like", cell.like, cells)] if cell.like is not None else []
        found += [(f"cells.{index}.arms", name, arms) for name in cell.arms or ()]
        found += [(f"cells.{index}.of_arm", name, arms) for name in cell.of_arm]
    found += [("contrasts", name, arms) for pair in study.contrasts for name in pair]
    found += [(f"charts.{index}.cells", name, cells) for index, chart in enumerate(study.charts) for name in chart.cells]
    for index, effect in enumerate(study.effects):
        found += [(f"effects.{index}.cell", effect.cell, cells), (f"effects.{index}.arm", effect.arm, arms)]
    if study.primary is not None:
        found += [("primary.cell", study.primary.cell, cells), ("primary.arm", study.primary.arm, arms)]
    return found + ([("against_itself.cell", study.against_itself.cell, cells)] if study.against_itself is not None else [])
