"""What a study said before it had results, and must go on saying in its folder."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from imachsr.config.load import load_yaml
from imachsr.config.schema import ConfigError
from imachsr.config.words import word
from imachsr.study.load import make_study, study_to_dict
from imachsr.study.plan import key_of, strangers
from imachsr.study.rows import Known, Row
from imachsr.study.schema import Cell, StudyPlan

_ELSEWHERE = "give another --output, and --rows for what is there: its tables will say what they leave out"


@dataclass(frozen=True, kw_only=True)
class _Said:
    """A comparison that a study has.

    Attributes:
        index: Of its cell.
        names: Of cell, arm and what that is compared with.
        settings: What the two train: names may change, and stand for the settings that they have.
        family: Holm's.
    """

    index: int
    names: tuple[str, str, str]
    settings: tuple[str, ...]
    family: str


def check_declared(path: Path, now: StudyPlan, rows: Sequence[Row]) -> None:
    """What is tested, with what, which comparison stands outside of Holm's families and how large these are is said before there are results.

    Args:
        path: Of the study as it was.
        now: As it is given.
        rows: Of runs that finished; without any, everything may change.

    Raises:
        ConfigError: Names what changed.
    """
    if not rows:
        return
    try:
        before = make_study(load_yaml(path))
    except ConfigError as error:
        raise ConfigError(f"{path} must be the study that began in the folder, but: {error}") from None
    if gone := strangers(now, Known(rows)):
        first = f"{gone[0].cell}, {gone[0].arm}, seed {gone[0].seed}"
        count = "1 is" if len(gone) == 1 else f"{len(gone)} are"
        raise ConfigError(f"runs that have ended must stay a part of the study, but {count} none of it any more, such as {first}; {_ELSEWHERE}")
    was, given = study_to_dict(before), study_to_dict(now)
    ended = {row.key for row in rows}
    for key, is_same in (("primary", _is_same_primary(before, now, ended)), ("metric", before.metric == now.metric)):
        if not is_same and given.get(key) is not None:
            raise ConfigError(
                f"{key}: must stay what it was before a run had ended, {word(was.get(key))}, but got {word(given[key])}"
                f"{'' if was.get(key) != given[key] else ' with other settings'}; give another --output"
                + (", or primary=null: then Holm's adjustment is over all comparisons" if key == "primary" else "")
            )
    _check_comparisons(list(_said(before)), list(_said(now)), ended)
    _check_seeds(before, now, rows)


def _check_comparisons(before: Sequence[_Said], now: Sequence[_Said], ended: Collection[str]) -> None:
    """Holm's families may grow, not shrink; an arm that has no results yet may be corrected under its name."""

    def is_there(each: _Said) -> bool:
        has_results = _have_ended(each.settings, ended)
        return any(other.settings == each.settings or (other.names == each.names and not has_results) for other in now)

    for each in now:
        families = {other.family for other in before if other.settings == each.settings or other.names == each.names}
        if families and each.family not in families:
            was = ", ".join(sorted(families))
            raise ConfigError(f"cells.{each.index}.family: must stay what it was before a run had ended, {was}, but got {each.family}; {_ELSEWHERE}")
    for each in before:
        if not is_there(each):
            cell, arm, other_arm = each.names
            raise ConfigError(
                f"comparisons may be added once a run has ended, not taken away, but {arm} against {other_arm} in {cell} is gone; {_ELSEWHERE}"
            )


def _check_seeds(before: StudyPlan, now: StudyPlan, rows: Sequence[Row]) -> None:
    """A comparison whose runs have all ended was judged: more seeds after a look at its p would make wins of chance."""
    ended = {(row.key, row.seed) for row in rows}
    ended_by_name = {(row.cell, row.arm, row.seed) for row in rows if not row.setting}  # at equal time the epochs, and so the key, may vary

    def is_judged(cell: Cell, arm: str) -> bool:
        key = key_of(before.run_of(cell, arm, 0))
        return all((cell.name, arm, seed) in ended_by_name if cell.equal == "time" else (key, seed) in ended for seed in before.seeds_of(cell))

    given = {each.settings: now.cells[each.index] for each in _said(now)}
    for each in _said(before):
        cell = before.cells[each.index]
        if (other := given.get(each.settings)) is None or set(now.seeds_of(other)) <= set(before.seeds_of(cell)):
            continue
        if all(is_judged(cell, arm) for arm in each.names[1:]):
            more = len(set(now.seeds_of(other)) - set(before.seeds_of(cell)))
            raise ConfigError(
                f"cells.{each.index}.seeds: must stay what they were once all runs of a comparison have ended, since more seeds after a look at the "
                f"result would make wins of chance, but for {each.names[1]} against {each.names[2]} in {cell.name} {more} are added to "
                f"{len(before.seeds_of(cell))}; give new seeds alone, and another --output"
            )


def _said(study: StudyPlan) -> Iterator[_Said]:
    for index, cell in enumerate(study.cells):
        arms = study.arms_of(cell)
        for arm in arms[1:]:
            settings = (_trained(study, cell, arm), _trained(study, cell, study.control))
            yield _Said(index=index, names=(cell.name, arm, study.control), settings=settings, family=cell.family)
        for one, other in (pair for pair in study.contrasts if set(pair) <= set(arms)):
            both = sorted((_trained(study, cell, one), _trained(study, cell, other)))  # which of them comes first is only a sign
            yield _Said(index=index, names=(cell.name, one, other), settings=tuple(both), family=cell.family)


def _is_same_primary(before: StudyPlan, now: StudyPlan, ended: Collection[str]) -> bool:
    """The same settings, whatever they are called; or the same names, while one of the two has no result yet."""
    was, given = _primary(before), _primary(now)
    return was == given or (was is not None and before.primary == now.primary and not _have_ended(was, ended))


def _primary(study: StudyPlan) -> tuple[str, ...] | None:
    if study.primary is None:
        return None
    cell = study.cell(study.primary.cell)
    return _trained(study, cell, study.primary.arm), _trained(study, cell, study.control)


def _have_ended(settings: Sequence[str], ended: Collection[str]) -> bool:
    """Whether a run of each has."""
    return all(each.rpartition(" ")[2] in ended for each in settings)


def _trained(study: StudyPlan, cell: Cell, arm: str) -> str:
    """What an arm trains in a cell, whatever they are called."""
    return f"{cell.equal} {key_of(study.run_of(cell, arm, 0))}"
