"""A study from YAML and back, checked as a whole."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imachsr.config.load import lines_of, load_yaml, located, merge, nested, parse_overrides
from imachsr.config.schema import ConfigError, near, validate
from imachsr.study.schema import Cell, StudyPlan


def make_study(raw: Mapping[str, Any]) -> StudyPlan:
    """The study that a mapping describes, checked as a whole.

    Raises:
        ConfigError: Names the key and what is wrong.
    """
    study: StudyPlan = validate(StudyPlan, raw)
    _check_names(study)
    for index, cell in enumerate(study.cells):
        for arm in study.arms_of(cell):
            try:
                study.run_of(cell, arm, 0)
            except ConfigError as error:
                raise ConfigError(f"cells.{index}: with the arm {arm}: {error}") from None
    for index, effect in enumerate(study.effects):
        for value in effect.values:
            try:
                study.run_of(study.cell(effect.cell), effect.arm, 0, {effect.key: value})
            except ConfigError as error:
                raise ConfigError(f"effects.{index}: {error}") from None
    return study


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
    for what, seeds in [("seeds", study.seeds), *((f"cells.{index}.seeds", cell.seeds or ()) for index, cell in enumerate(study.cells))]:
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
        if set(own) & set(again.seeds) or len(own) != len(again.seeds):
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
