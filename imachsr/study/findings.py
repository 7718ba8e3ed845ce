"""What a study's rows say: paired differences, their tests, Holm over families of comparisons, and the false wins of the test itself."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from imachsr.config.words import word
from imachsr.search.paired import ALPHA, LEAST_FOR_INTERVAL, bootstrap_interval, holm, sign_flip, smallest_p, wilcoxon
from imachsr.study.pairings import PAIRINGS, false_rate
from imachsr.study.plan import equal_epochs, key_of, wanted
from imachsr.study.rows import Known, Row
from imachsr.study.schema import Cell, Chart, StudyPlan

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


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All of it; plain values, as in study.json.

    Attributes:
        name: Of the study.
        metric: That is tested.
        control: Name of the arm that the others are compared with.
        comparisons: Of all cells.
        means: Of every arm in every cell: runs, mean, standard deviation, epochs, median step, further metrics.
        effects: Of settings that were varied.
        charts: Gains over a setting.
        against_itself: False wins of the test; None without it.
        families: Holm's: name, number of comparisons, and the smallest adjusted p that their seeds allow.
        failures: Runs that failed: cell, arm, seed, error.
        done: Runs that have ended.
        total: Of all.
        machines: What they ran on.
    """

    name: str
    metric: str
    control: str
    comparisons: tuple[Comparison, ...]
    means: tuple[dict[str, Any], ...]
    effects: tuple[dict[str, Any], ...]
    charts: tuple[dict[str, Any], ...]
    against_itself: dict[str, Any] | None
    families: tuple[dict[str, Any], ...]
    failures: tuple[dict[str, Any], ...]
    done: int
    total: int
    machines: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def find(study: StudyPlan, known: Known) -> Findings:
    """What these rows say of this study.

    Args:
        study: The study.
        known: Rows; those of other studies are ignored.
    """
    every = wanted(study, known)
    rows = [known.get(each.key, each.seed) for each in every if each.key]
    ended = [row for row in rows if row is not None]
    comparisons = _adjusted([_compared(study, known, *pair) for pair in _pairs(study)], is_higher_better=study.is_higher_better)
    return Findings(
        name=study.name,
        metric=study.metric,
        control=study.control,
        comparisons=tuple(comparisons),
        means=tuple(_mean_of(study, known, cell, arm) for cell in study.cells for arm in study.arms_of(cell)),
        effects=tuple(_effects(study, known)),
        charts=tuple(_chart(study, chart, comparisons) for chart in study.charts),
        against_itself=_against_itself(study, known),
        families=tuple(families_of(study)),
        failures=tuple({"cell": row.cell, "arm": row.arm, "seed": row.seed, "error": row.error} for row in ended if not row.is_finished),
        done=len(ended),
        total=len(every),
        machines=tuple(sorted({row.facts["machine"] for row in ended if row.facts.get("machine")})),
    )


def families_of(study: StudyPlan) -> list[dict[str, Any]]:
    """Holm's families: name, number of comparisons, and the smallest adjusted p that the seeds of their cells allow."""
    seeds: dict[str, list[int]] = {}
    for cell, _, _, is_primary in _pairs(study):
        if not is_primary:
            seeds.setdefault(cell.family, []).append(len(study.seeds_of(cell)))
    return [{"name": name, "comparisons": len(each), "smallest": min(1.0, len(each) * smallest_p(max(each)))} for name, each in seeds.items()]


def _pairs(study: StudyPlan) -> list[tuple[Cell, str, str, bool]]:
    """Every comparison: each arm with the control, and the contrasts."""
    found = []
    for cell in study.cells:
        arms = study.arms_of(cell)
        primary = study.primary.arm if study.primary is not None and study.primary.cell == cell.name else None
        found += [(cell, arm, study.control, arm == primary) for arm in arms[1:]]
        found += [(cell, one, other, False) for one, other in study.contrasts if one in arms and other in arms]
    return found


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


def _compared(study: StudyPlan, known: Known, cell: Cell, arm: str, other: str, is_primary: bool) -> Comparison:
    one, two = runs_of(study, known, cell, arm), runs_of(study, known, cell, other)
    differences = differences_of(one, two, study.metric)
    failed = tuple(seed for seed in one if any(row is not None and not _has(row, study.metric) for row in (one[seed], two[seed])))
    missing = tuple(seed for seed in one if one[seed] is None or two[seed] is None)
    values = list(differences.values())
    mean, other_mean = _mean(one, study.metric), _mean(two, study.metric)
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
    other = _mean(two, metric)
    if not values:
        return {}
    mean = math.fsum(values) / len(values)
    return {"difference": mean, "interval": _interval(values), "relative": 100 * mean / other if other else None, "pairs": len(values)}


def differences_of(one: Mapping[int, Row | None], two: Mapping[int, Row | None], metric: str) -> dict[int, float]:
    """Paired differences by seed, of runs that both have the metric."""
    found = {}
    for seed in one:
        a, b = one[seed], two.get(seed)
        if a is not None and b is not None and _has(a, metric) and _has(b, metric):
            found[seed] = a.scores[metric] - b.scores[metric]
    return found


def _has(row: Row, metric: str) -> bool:
    return row.is_finished and metric in row.scores


def _mean(rows: Mapping[int, Row | None], metric: str) -> float | None:
    values = [row.scores[metric] for row in rows.values() if row is not None and _has(row, metric)]
    return math.fsum(values) / len(values) if values else None


def _interval(values: Sequence[float]) -> tuple[float, float] | None:
    return bootstrap_interval(values) if len(values) >= LEAST_FOR_INTERVAL else None


def _adjusted(comparisons: Sequence[Comparison], *, is_higher_better: bool) -> list[Comparison]:
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


def _mean_of(study: StudyPlan, known: Known, cell: Cell, arm: str) -> dict[str, Any]:
    rows = runs_of(study, known, cell, arm)
    whole = [row for row in rows.values() if row is not None and row.is_finished]
    names = sorted({name for row in whole for name in row.scores if not name.startswith("val/iou/")})
    means = {name: math.fsum(v := [row.scores[name] for row in whole if name in row.scores]) / len(v) for name in names}
    values = [row.scores[study.metric] for row in whole if study.metric in row.scores]
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    epochs = sorted({row.epochs for row in whole})
    return {"cell": cell.name, "arm": arm, "runs": len(whole), "seeds": len(rows), "spread": spread, "epochs": epochs, "means": means}


def _effects(study: StudyPlan, known: Known) -> list[dict[str, Any]]:
    found = []
    for effect in study.effects:
        cell = study.cell(effect.cell)

        def rows(arm: str, further: Mapping[str, Any], cell: Cell = cell, seeds: Sequence[int] = effect.seeds) -> dict[int, Row | None]:
            return {seed: known.get(key_of(study.run_of(cell, arm, seed, further)), seed) for seed in seeds}

        control = rows(study.control, {})
        lines = []
        for value in effect.values:
            own = rows(effect.arm, {effect.key: value})
            differences = list(differences_of(own, control, study.metric).values())
            mean = math.fsum(differences) / len(differences) if differences else None
            lines.append({"value": word(value), "pairs": len(differences), "mean": _mean(own, study.metric), "difference": mean, "each": differences})
        found.append({"cell": effect.cell, "arm": effect.arm, "key": effect.key, "control": _mean(control, study.metric), "values": lines})
    return found


def _chart(study: StudyPlan, chart: Chart, comparisons: Sequence[Comparison]) -> dict[str, Any]:
    points = []
    for name in chart.cells:
        cell = study.cell(name)
        at: Any = study.run_of(cell, study.control, 0).model_dump(mode="json")
        for part in chart.over.split("."):
            at = at[part]
        of_cell = [each for each in comparisons if each.cell == name and each.other == study.control and each.difference is not None]
        points += [{"cell": name, "arm": each.arm, "at": at, "difference": each.difference, "interval": each.interval} for each in of_cell]
    return {"over": chart.over, "points": points}


def _against_itself(study: StudyPlan, known: Known) -> dict[str, Any] | None:
    """The control's runs paired at random with other runs of the control: how often the test calls a difference that cannot be there."""
    if (again := study.against_itself) is None:
        return None
    cell = study.cell(again.cell)
    one = runs_of(study, known, cell, study.control)
    two = {seed: known.get(key_of(study.run_of(cell, study.control, seed)), seed) for seed in again.seeds}
    values = [row.scores[study.metric] for row in (*one.values(), *two.values()) if row is not None and _has(row, study.metric)]
    facts: dict[str, Any] = {"cell": again.cell, "runs": len(values), "of": len(one) + len(two), "p": None, "difference": None, "rate": None}
    if len(values) < len(one) + len(two):
        return facts
    own = [values[index] - values[index + len(one)] for index in range(len(one))]
    return facts | {"difference": math.fsum(own) / len(own), "p": sign_flip(own).p, "rate": false_rate(values), "pairings": PAIRINGS}
