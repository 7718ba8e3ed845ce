"""What a study's rows say: comparisons, means, effects, charts, and the false wins of the test itself."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from imachsr.config.words import word
from imachsr.search.paired import sign_flip
from imachsr.study.checks import value_over
from imachsr.study.comparisons import (
    Comparison,
    adjusted_by_family,
    check_rows,
    compared,
    differences_of,
    effect_runs,
    families_of,
    has_score,
    itself_runs,
    mean_of,
    pairs_of,
    primary_smallest,
    runs_of,
)
from imachsr.study.pairings import PAIRINGS, false_rate
from imachsr.study.plan import strangers, wanted
from imachsr.study.rows import Known, score_names
from imachsr.study.schema import Cell, Chart, StudyPlan

CLASSES = "val/iou/"


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All of it; plain values, as in study.json.

    Attributes:
        name: Of the study.
        metric: That is tested.
        control: Name of the arm that the others are compared with.
        comparisons: Of all cells.
        means: Of every arm in every cell: runs, standard deviation, epochs, ``means`` of all metrics, and IoU of ``classes``.
        effects: Of settings that were varied.
        charts: Gains over a setting.
        against_itself: False wins of the test; None without it.
        families: Holm's: name, number of comparisons, and the smallest adjusted p that their seeds allow.
        primary_smallest: The smallest p that the seeds of the comparison that was declared beforehand allow; None without one.
        failures: Runs that failed: cell, arm, seed, error.
        done: Runs that have ended.
        total: Of all.
        machines: What they ran on.
        strangers: Rows that were there and are not of this study, which no table counts: cell, arm, seed.
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
    primary_smallest: float | None
    failures: tuple[dict[str, Any], ...]
    done: int
    total: int
    machines: tuple[str, ...]
    strangers: tuple[dict[str, Any], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def find(study: StudyPlan, known: Known) -> Findings:
    """What these rows say of this study.

    Args:
        study: The study.
        known: Rows; those that are not of this study are named and not counted.

    Raises:
        ConfigError: If they cannot be compared, see :func:`imachsr.study.comparisons.check_rows`.
    """
    check_rows(study, known)
    every = wanted(study, known)
    rows = [known.get(each.key, each.seed) for each in every if each.key]
    ended = [row for row in rows if row is not None]
    comparisons = adjusted_by_family([compared(study, known, *pair) for pair in pairs_of(study)], is_higher_better=study.is_higher_better)
    return Findings(
        name=study.name,
        metric=study.metric,
        control=study.control,
        comparisons=tuple(comparisons),
        means=tuple(_means_of(study, known, cell, arm) for cell in study.cells for arm in study.arms_of(cell)),
        effects=tuple(_effects(study, known)),
        charts=tuple(_chart(study, chart, comparisons) for chart in study.charts),
        against_itself=_against_itself(study, known),
        families=tuple(families_of(study)),
        primary_smallest=primary_smallest(study),
        failures=tuple({"cell": row.cell, "arm": row.arm, "seed": row.seed, "error": row.error} for row in ended if not row.is_finished),
        done=len(ended),
        total=len(every),
        machines=tuple(sorted({row.facts["machine"] for row in ended if row.facts.get("machine")})),
        strangers=tuple({"cell": row.cell, "arm": row.arm, "seed": row.seed} for row in strangers(study, known)),
    )


def _means_of(study: StudyPlan, known: Known, cell: Cell, arm: str) -> dict[str, Any]:
    rows = runs_of(study, known, cell, arm)
    whole = [row for row in rows.values() if row is not None and row.is_finished]
    # In the order of the rows, which for classes is that of the data.
    means = {name: math.fsum(v := [row.scores[name] for row in whole if name in row.scores]) / len(v) for name in score_names(whole)}
    classes = {name.removeprefix(CLASSES): means.pop(name) for name in list(means) if name.startswith(CLASSES)}
    values = [row.scores[study.metric] for row in whole if study.metric in row.scores]
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    epochs = sorted({row.epochs for row in whole})
    return {
        "cell": cell.name,
        "arm": arm,
        "runs": len(whole),
        "seeds": len(rows),
        "spread": spread,
        "epochs": epochs,
        "means": means,
        "classes": classes,
    }


def _effects(study: StudyPlan, known: Known) -> list[dict[str, Any]]:
    found = []
    for effect in study.effects:
        control = effect_runs(study, known, effect, study.control, {})
        lines = []
        for value in effect.values:
            own = effect_runs(study, known, effect, effect.arm, {effect.key: value})
            differences = list(differences_of(own, control, study.metric).values())
            mean = math.fsum(differences) / len(differences) if differences else None
            told = {"pairs": len(differences), "mean": mean_of(own, study.metric), "difference": mean, "each": differences}
            lines.append({"value": word(value), **told})
        found.append({"cell": effect.cell, "arm": effect.arm, "key": effect.key, "control": mean_of(control, study.metric), "values": lines})
    return found


def _chart(study: StudyPlan, chart: Chart, comparisons: Sequence[Comparison]) -> dict[str, Any]:
    points = []
    for name in chart.cells:
        cell = study.cell(name)
        at = value_over(chart, study.run_of(cell, study.control, 0))
        of_cell = [each for each in comparisons if each.cell == name and each.other == study.control and each.difference is not None]
        points += [{"cell": name, "arm": each.arm, "at": at, "difference": each.difference, "interval": each.interval} for each in of_cell]
    return {"over": chart.over, "points": points}


def _against_itself(study: StudyPlan, known: Known) -> dict[str, Any] | None:
    """The control's runs paired at random with other runs of the control: how often the test calls a difference that cannot be there."""
    if (again := study.against_itself) is None:
        return None
    cell = study.cell(again.cell)
    one = runs_of(study, known, cell, study.control)
    two = itself_runs(study, known, again)
    values = [row.scores[study.metric] for row in (*one.values(), *two.values()) if row is not None and has_score(row, study.metric)]
    facts: dict[str, Any] = {"cell": again.cell, "runs": len(values), "of": len(one) + len(two), "p": None, "difference": None, "rate": None}
    if len(values) < len(one) + len(two):
        return facts
    own = [values[index] - values[index + len(one)] for index in range(len(one))]
    return facts | {"difference": math.fsum(own) / len(own), "p": sign_flip(own).p, "rate": false_rate(values), "pairings": PAIRINGS}
