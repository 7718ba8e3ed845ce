"""Arms against each other in a cell: paired differences, their tests, and Holm over families of comparisons."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from imachsr.config.schema import ConfigError
from imachsr.search.paired import ALPHA, LEAST_FOR_INTERVAL, bootstrap_interval, holm, sign_flip, smallest_p, wilcoxon
from imachsr.study.plan import equal_epochs, key_of, scoring_key
from imachsr.study.rows import DIGITS, Known, Row
from imachsr.study.schema import AgainstItself, Cell, Effect, StudyPlan

Verdict = Literal["better", "worse", "open", "incomplete", "failed"]
_ALONGSIDE = ("val/miou", "val/boundary_iou", "val/accuracy", "val/ece", "val/nll", "corrupted/miou", "corrupted/ece")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """An arm against another one in a cell.

    Attributes:
        cell: Name.
        arm: Name.
        other: Name of what it is compared with.
        is_primary: Whether it was declared beforehand, and so stands outside of Holm's families.
        family: That of its cell.
        pairs: Seeds that both have.
        missing: Seeds whose runs have not ended.
        failed: Seeds with which a run of either failed.
        mean: Of the arm over its runs.
        other_mean: Of the other over its runs.
        difference: Mean of the paired differences.
        relative: The same in percent of the other's mean.
        interval: 95 % bootstrap interval of the difference, not adjusted.
        p: Exact sign-flip test, two-sided.
        p_wilcoxon: Exact signed-rank test, two-sided.
        p_holm: p adjusted over the family; of the primary comparison p itself.
        verdict: better, worse or open (p_holm below 0.05, or not); incomplete while runs are missing; failed where a run of either failed.
        differences: By seed.
        alongside: Mean difference and interval of further metrics.
    """

    cell: str
    arm: str
    other: str
    is_primary: bool
    family: str
    pairs: int
    missing: tuple[int, ...]
    failed: tuple[int, ...]
    mean: float | None
    other_mean: float | None
    difference: float | None
    relative: float | None
    interval: tuple[float, float] | None
    p: float | None
    p_wilcoxon: float | None
    p_holm: float | None = None
    verdict: Verdict = "incomplete"
    differences: dict[int, float] = field(default_factory=dict)
    alongside: dict[str, dict[str, Any]] = field(default_factory=dict)


def families_of(study: StudyPlan) -> list[dict[str, Any]]:
    """Holm's families: name, number of comparisons, and the smallest adjusted p that the seeds of their cells allow."""
    seeds: dict[str, list[int]] = {}
    for cell, _, _, is_primary in pairs_of(study):
        if not is_primary:
            seeds.setdefault(cell.family, []).append(len(study.seeds_of(cell)))
    return [{"name": name, "comparisons": len(each), "smallest": min(1.0, len(each) * smallest_p(max(each)))} for name, each in seeds.items()]


def primary_smallest(study: StudyPlan) -> float | None:
    """The smallest p that the seeds of the comparison that was declared beforehand allow; None without one."""
    return None if study.primary is None else smallest_p(len(study.seeds_of(study.cell(study.primary.cell))))


def pairs_of(study: StudyPlan) -> list[tuple[Cell, str, str, bool]]:
    """Every comparison: each arm with the control, and the contrasts.

    What two cells would compare with the same runs is compared in the first, or in that of the declared comparison, so that Holm counts it once.
    """
    found: dict[Any, tuple[Cell, str, str, bool]] = {}
    for cell in study.cells:
        arms = study.arms_of(cell)
        primary = study.primary.arm if study.primary is not None and study.primary.cell == cell.name else None
        keys = {arm: f"{cell.name} {arm}" if cell.equal == "time" else key_of(study.run_of(cell, arm, 0)) for arm in arms}
        pairs = [(arm, study.control) for arm in arms[1:]] + [pair for pair in study.contrasts if set(pair) <= set(arms)]
        for one, other in pairs:
            is_primary = other == study.control and one == primary
            same = (keys[one], keys[other], study.seeds_of(cell))
            if same not in found or is_primary:
                found.pop(same, None)
                found[same] = (cell, one, other, is_primary)
    return list(found.values())


def alongside(study: StudyPlan) -> tuple[str, ...]:
    """Metrics whose differences stand beside the tested one, with intervals and without tests."""
    further = (f"{name}/{metric}" for name in study.also_on for metric in ("miou", "ece"))
    return tuple(name for name in (*_ALONGSIDE, *further) if name != study.metric)


def runs_of(study: StudyPlan, known: Known, cell: Cell, arm: str) -> dict[int, Row | None]:
    """Rows of an arm in a cell by seed, None for those that have not ended."""
    further: dict[str, Any] = {}
    if cell.equal == "time":
        epochs = equal_epochs(study, cell, known)
        if arm not in epochs:
            return dict.fromkeys(study.seeds_of(cell))
        further = {"optimizer.epochs": epochs[arm]}
    return {seed: known.get(key_of(study.run_of(cell, arm, seed, further)), seed) for seed in study.seeds_of(cell)}


def check_rows(study: StudyPlan, known: Known) -> None:
    """Refuse to compare rows of different data, or such as were scored on something else than the study says.

    Raises:
        ConfigError: Names two rows, or the row.
    """
    scoring = scoring_key(study)
    for of_arm in _beside_each_other(study, known):
        for seed in dict.fromkeys(seed for each in of_arm for seed in each):
            rows = [row for each in of_arm if (row := each.get(seed)) is not None]
            if strange := next((row for row in rows if row.facts.get("scoring", scoring) != scoring), None):
                raise ConfigError(
                    "corruptions and also_on: must be those with which the rows that are there were scored, but that of "
                    f"{_called(strange)} was scored otherwise; give another --output, or the settings as they were"
                )
            marked = [row for row in rows if row.data]
            if other := next((row for row in marked if row.data != marked[0].data), None):
                raise ConfigError(
                    f"rows that are compared must be of the same data, but that of {_called(marked[0])} has the fingerprint {marked[0].data}, "
                    f"and that of {_called(other)} {other.data}"
                )


def _beside_each_other(study: StudyPlan, known: Known) -> Iterator[list[dict[Any, Row | None]]]:
    """Runs that are compared, of each arm or value by what pairs them."""
    for cell in study.cells:
        yield [runs_of(study, known, cell, arm) for arm in study.arms_of(cell)]
    for effect in study.effects:
        values = [effect_runs(study, known, effect, effect.arm, {effect.key: value}) for value in effect.values]
        yield [effect_runs(study, known, effect, study.control, {}), *values]
    if (again := study.against_itself) is not None:
        cell = study.cell(again.cell)
        every = (*runs_of(study, known, cell, study.control).values(), *itself_runs(study, known, again).values())
        yield [{"all": row} for row in every]  # each of them is paired with every other


def effect_runs(study: StudyPlan, known: Known, effect: Effect, arm: str, further: Mapping[str, Any]) -> dict[Any, Row | None]:
    """Runs of an effect's seeds, with one arm and perhaps a setting of its own."""
    cell = study.cell(effect.cell)
    return {seed: known.get(key_of(study.run_of(cell, arm, seed, further)), seed) for seed in effect.seeds}


def itself_runs(study: StudyPlan, known: Known, again: AgainstItself) -> dict[Any, Row | None]:
    """The control's further runs, with which it is compared with itself."""
    cell = study.cell(again.cell)
    return {seed: known.get(key_of(study.run_of(cell, study.control, seed)), seed) for seed in again.seeds}


def _called(row: Row) -> str:
    return f"{row.cell}, {row.arm}, seed {row.seed}"


def compared(study: StudyPlan, known: Known, cell: Cell, arm: str, other: str, is_primary: bool) -> Comparison:
    """An arm against another one in a cell; p is not adjusted yet, and nothing judged."""
    one, two = runs_of(study, known, cell, arm), runs_of(study, known, cell, other)
    differences = differences_of(one, two, study.metric)
    failed = tuple(seed for seed in one if any(row is not None and not has_score(row, study.metric) for row in (one[seed], two[seed])))
    missing = tuple(seed for seed in one if one[seed] is None or two[seed] is None)
    values = list(differences.values())
    mean, other_mean = mean_of(one, study.metric), mean_of(two, study.metric)
    difference = math.fsum(values) / len(values) if values else None
    is_judged = bool(values) and not failed and not missing
    return Comparison(
        cell=cell.name,
        arm=arm,
        other=other,
        is_primary=is_primary,
        family=cell.family,
        pairs=len(values),
        missing=missing,
        failed=failed,
        mean=mean,
        other_mean=other_mean,
        difference=difference,
        relative=100 * difference / other_mean if difference is not None and other_mean else None,
        interval=_interval(values),
        p=sign_flip(values).p if is_judged else None,
        p_wilcoxon=wilcoxon(values).p if is_judged else None,
        differences=differences,
        alongside={name: told for name in alongside(study) if (told := _alongside(one, two, name))},
    )


def _alongside(one: Mapping[int, Row | None], two: Mapping[int, Row | None], metric: str) -> dict[str, Any]:
    values = list(differences_of(one, two, metric).values())
    other = mean_of(two, metric)
    if not values:
        return {}
    mean = math.fsum(values) / len(values)
    return {"difference": mean, "interval": _interval(values), "relative": 100 * mean / other if other else None, "pairs": len(values)}


def differences_of(one: Mapping[int, Row | None], two: Mapping[int, Row | None], metric: str) -> dict[int, float]:
    """Paired differences by seed, of runs that both have the metric."""
    found = {}
    for seed in one:
        a, b = one[seed], two.get(seed)
        if a is not None and b is not None and has_score(a, metric) and has_score(b, metric):
            # To the digits that rows have: what is equal in them would else differ by the noise of a subtraction, and be no tie.
            found[seed] = round(a.scores[metric] - b.scores[metric], DIGITS)
    return found


def has_score(row: Row, metric: str) -> bool:
    """Whether a run has ended well, and with this metric."""
    return row.is_finished and metric in row.scores


def mean_of(rows: Mapping[int, Row | None], metric: str) -> float | None:
    """Of the runs that have the metric; None without any."""
    values = [row.scores[metric] for row in rows.values() if row is not None and has_score(row, metric)]
    return math.fsum(values) / len(values) if values else None


def _interval(values: Sequence[float]) -> tuple[float, float] | None:
    return bootstrap_interval(values) if len(values) >= LEAST_FOR_INTERVAL else None


def adjusted_by_family(comparisons: Sequence[Comparison], *, is_higher_better: bool) -> list[Comparison]:
    """With Holm over each family of those that are not primary: a comparison that failed, or is not complete, is in its family with p = 1."""
    families: dict[str, list[int]] = {}
    for index, each in enumerate(comparisons):
        if not each.is_primary:
            families.setdefault(each.family, []).append(index)
    adjusted: dict[int, float] = {}
    for family in families.values():
        adjusted |= dict(zip(family, holm([1.0 if (p := comparisons[index].p) is None else p for index in family]), strict=True))
    found = []
    for index, each in enumerate(comparisons):
        p = None if each.p is None else adjusted.get(index, each.p)
        found.append(replace(each, p_holm=p, verdict=_verdict(each, p, is_higher_better)))
    return found


def _verdict(each: Comparison, p: float | None, is_higher_better: bool) -> Verdict:
    if each.failed:
        return "failed"
    if p is None or each.difference is None:
        return "incomplete"
    if p >= ALPHA:
        return "open"
    return "better" if (each.difference > 0) == is_higher_better else "worse"
