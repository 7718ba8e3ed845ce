"""What must hold of a study before anything of it runs: names, pairs, charts, the metric, and that arms see the same data as often."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from imachsr.config.load import make_run, run_to_dict
from imachsr.config.schema import SCORED_ON, ConfigError, Run, near
from imachsr.config.words import word
from imachsr.data.corruptions import CORRUPTIONS
from imachsr.search.canonical import words_of_twins
from imachsr.study.plan import key_of, place_of
from imachsr.study.schema import Cell, Chart, StudyPlan

_OWN = ("val", "corrupted", "time", "memory")
"""Beginnings of a row's own keys."""
_SCORES = ("miou", "boundary_iou", "accuracy", "ece", "nll", "loss")
_OF_CORRUPTED = ("miou", "ece", "nll")
_SAME = ("data", "subset", "optimizer.epochs", "optimizer.batch_size", "optimizer.progressive")
"""What arms of a cell of equal epochs see."""
_OF_THE_STUDY = ("seed", "name")


def check(study: StudyPlan) -> None:
    """Check a study as a whole.

    Raises:
        ConfigError: Names the key and what is wrong.
    """
    _check_names(study)
    _check_keys(study)
    runs: dict[str, Run] = {}
    for index, cell in enumerate(study.cells):
        _check_runs(study, index, cell, runs)
    for index, effect in enumerate(study.effects):
        if (same := next((key for key in _SAME if effect.key == key or effect.key.startswith(f"{key}.")), None)) is not None:
            raise ConfigError(
                f"effects.{index}.key: must leave `{same}` as it is, which the control of {effect.cell} would not share, but got {effect.key}; "
                "make it a cell, where it is set for all arms"
            )
        trained: dict[str, Any] = {}
        for value in effect.values:
            with _blaming(f"effects.{index}"):
                _check_place(run := study.run_of(study.cell(effect.cell), effect.arm, 0, {effect.key: value}), runs)
            if (key := key_of(run)) in trained:
                raise ConfigError(
                    f"effects.{index}.values: must each train something else, but {word(trained[key])} and {word(value)} train the same"
                )
            trained[key] = value
    for index, chart in enumerate(study.charts):
        _check_chart(study, f"charts.{index}", chart)
    _check_pairs(study)
    _check_metric(study)
    _check_unused(study)


def _check_runs(study: StudyPlan, index: int, cell: Cell, runs: dict[str, Run]) -> None:
    own: dict[str, str] = {}
    first: dict[str, Any] = {}
    for arm in study.arms_of(cell):
        run = _run_of(study, index, cell, arm)
        with _blaming(f"cells.{index}: with the arm {arm}"):
            _check_place(run, runs)
            for name, further in study.also_on.items():
                with _blaming(f"also_on.{name}"):
                    _check_further(run, further)
        settings = run_to_dict(run)
        first = first or settings
        for key in _SAME:
            if (here := _setting(settings, key)) != (there := _setting(first, key)):
                raise ConfigError(
                    f"cells.{index}.arms: arms must see the same data as often, but `{key}` of {study.control} is {word(there)}, "
                    f"and of {arm} {word(here)}; `equal: time` is for arms that take longer"
                )
        if (twin := own.setdefault(key_of(run), arm)) != arm:
            raise ConfigError(f"cells.{index}.arms: {words_of_twins(twin, arm)}")


def _run_of(study: StudyPlan, index: int, cell: Cell, arm: str) -> Run:
    """The run of an arm in a cell; what is wrong with the base run, or with the arm wherever it runs, is blamed on these."""
    try:
        return study.run_of(cell, arm, 0)
    except ConfigError as error:
        number = next(number for number, each in enumerate(study.arms) if each.name == arm)
        for where, layers in (("run", ()), (f"arms.{number}", (study.arms[number].set_,))):
            try:
                study.laid(*layers)
            except ConfigError as earlier:
                if str(earlier) == str(error):
                    raise ConfigError(f"{where}: {error}") from None
        raise ConfigError(f"cells.{index}: with the arm {arm}: {error}") from None


def _setting(settings: Mapping[str, Any], key: str) -> Any:
    at: Any = settings
    for part in key.split("."):
        at = at[part]
    return at


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


def _check_chart(study: StudyPlan, key: str, chart: Chart) -> None:
    places: dict[float, str] = {}
    for name in chart.cells:
        if chart.over == "optimizer.epochs" and study.cell(name).equal == "time":
            raise ConfigError(f"{key}.cells: must be of equal epochs in a chart over these, but {name} is of equal time, where each arm has its own")
        with _blaming(f"{key}.over"):
            at = value_over(chart, study.run_of(study.cell(name), study.control, 0))
        if (other := places.setdefault(at, name)) != name or chart.cells.count(name) > 1:
            raise ConfigError(f"{key}.cells: must differ in {chart.over}, but {other} and {name} are both at {at:g}")


def _check_pairs(study: StudyPlan) -> None:
    """A pair that is there twice would count twice in Holm's adjustment; an arm with itself says nothing."""
    for index, (one, other) in enumerate(study.contrasts):
        if one == other:
            raise ConfigError(f"contrasts.{index}: must be two arms, but got {one} and itself; `against_itself` is for the control's false wins")
        if study.control in (one, other):
            raise ConfigError(f"contrasts.{index}: must be without the control {study.control}, with which every arm is compared already")
        if any({one, other} == set(before) for before in study.contrasts[:index]):
            raise ConfigError(f"contrasts.{index}: each pair must be there once, but {one} and {other} are there twice")


def _check_unused(study: StudyPlan) -> None:
    """What runs nowhere or compares nothing would be missed after the last run."""
    for index, arm in enumerate(study.arms):
        if not any(arm.name in study.arms_of(cell) for cell in study.cells):
            raise ConfigError(f"arms.{index}: must run in a cell, but {arm.name} is in the `arms` of none; name it there, or leave it out")
    for index, (one, other) in enumerate(study.contrasts):
        if not any({one, other} <= set(study.arms_of(cell)) for cell in study.cells):
            raise ConfigError(f"contrasts.{index}: must be two arms that run in one cell, but {one} and {other} do so in none")
    again = study.against_itself
    used = {effect.cell for effect in study.effects} | ({again.cell} if again is not None else set())
    for index, cell in enumerate(study.cells):
        if len(study.arms_of(cell)) == 1 and cell.name not in used:
            raise ConfigError(f"cells.{index}.arms: must hold an arm to compare with the control, but got {study.control} alone")


def _check_keys(study: StudyPlan) -> None:
    """A study gives every run its seed and its name."""
    given = [("run", list(study.run)), *((f"arms.{index}.set", list(arm.set_)) for index, arm in enumerate(study.arms))]
    for index, cell in enumerate(study.cells):
        given += [(f"cells.{index}.set", list(cell.set_)), *((f"cells.{index}.of_arm.{arm}", list(own)) for arm, own in cell.of_arm.items())]
    given += [(f"effects.{index}.key", [effect.key]) for index, effect in enumerate(study.effects)]
    for where, keys in given:
        if strange := next((key for key in keys if key in _OF_THE_STUDY), None):
            rule = "must be left out, since every run has " + ("one of the study's `seeds`" if strange == "seed" else "its own")
            raise ConfigError(f"{where}: {strange}: {rule}")


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
    # Cells may have other data than the base run: a class of any of them is one.
    known += list(dict.fromkeys(f"val/iou/{name}" for cell in study.cells for name in study.run_of(cell, study.control, 0).data.class_names))
    if (spoilt := study.corruptions) is not None:
        known += [f"corrupted/{name}" for name in _OF_CORRUPTED]
        for name in spoilt.names or tuple(CORRUPTIONS):
            known += [f"corrupted/{name}/miou", *(f"corrupted/{name}/{severity}/miou" for severity in spoilt.severities)]
    known += ["time/step_ms", "wall_s"]
    if study.metric not in known:
        raise ConfigError(f"metric: must be a key of a run's row, but got {study.metric!r}; {near(study.metric, known)}")


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
    if not study.cells:
        raise ConfigError("cells: must name at least one, but got []")
    for index, cell in enumerate(study.cells):
        _check_cell(study, f"cells.{index}", cell)
    if study.primary is not None:
        at = study.cell(study.primary.cell)
        if study.primary.arm not in study.arms_of(at)[1:]:
            raise ConfigError(f"primary.arm: must be an arm of {at.name} other than the control, but got {study.primary.arm!r}")
    for index, effect in enumerate(study.effects):
        if study.cell(effect.cell).equal == "time":
            raise ConfigError(f"effects.{index}.cell: must be a cell of equal epochs, but {effect.cell} is of equal time")
        if effect.arm not in study.arms_of(study.cell(effect.cell)):
            raise ConfigError(f"effects.{index}.arm: must be an arm of {effect.cell}, but {effect.arm!r} does not run in it")
    if (again := study.against_itself) is not None:
        if study.cell(again.cell).equal == "time":
            raise ConfigError(f"against_itself.cell: must be a cell of equal epochs, but {again.cell} is of equal time")
        own = study.seeds_of(study.cell(again.cell))
        if set(own) & set(again.seeds) or len(own) != len(again.seeds) or len(set(again.seeds)) < len(again.seeds):
            raise ConfigError(f"against_itself.seeds: must be {len(own)} seeds that {again.cell} has not, but got {list(again.seeds)}")


def _check_cell(study: StudyPlan, key: str, cell: Cell) -> None:
    if study.control not in study.arms_of(cell):
        raise ConfigError(f"{key}.arms: must hold the control {study.control!r}, but got {list(cell.arms or ())}")
    if cell.arms is not None and len(set(cell.arms)) < len(cell.arms):
        raise ConfigError(f"{key}.arms: each must be there once, but got {', '.join(cell.arms)}")
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
