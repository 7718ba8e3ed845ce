"""Which runs a study needs, and which of these can begin."""

import statistics
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from imachsr.config.continued import placeless
from imachsr.config.schema import Run
from imachsr.config.words import word
from imachsr.data.corruptions import CORRUPTIONS
from imachsr.search.canonical import canonical, fingerprint_of
from imachsr.study.rows import Known, Row
from imachsr.study.schema import Cell, StudyPlan

STEP = "time/step_ms"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One run that a study needs.

    Attributes:
        cell: Name of its cell.
        arm: Name of its arm.
        setting: Of an effect, ``key=value``; "" elsewhere.
        seed: Of the run.
        run: All settings; None while these depend on times that are not measured yet.
        key: Fingerprint of the settings, see :func:`key_of`; "" without them.
    """

    cell: str
    arm: str
    setting: str = ""
    seed: int
    run: Run | None
    key: str = ""


def key_of(run: Run) -> str:
    """Fingerprint of what a run trains, apart from its seed and from where its data lie: these have a fingerprint of their own."""
    tree = canonical(run)
    return fingerprint_of({**tree, "data": placeless(tree["data"])})


def place_of(run: Run) -> str:
    """Where a run's data lie; "" for data that lie nowhere."""
    return str(getattr(run.data, "root", None) or getattr(run.data, "kwargs", {}).get("root") or "")


def scoring_of(study: StudyPlan) -> dict[str, Any]:
    """What a run is scored on at its end besides its own data, in plain values."""
    of = study.corruptions
    corruptions = None if of is None else {"names": list(of.names or CORRUPTIONS), "severities": list(of.severities)}
    return {"corruptions": corruptions, "also_on": study.also_on}


def scoring_key(study: StudyPlan) -> str:
    """Fingerprint of what a run is scored on besides its own data, wherever that lies; its content is in the fingerprint of a run's data."""
    scoring = scoring_of(study)
    return fingerprint_of({**scoring, "also_on": {name: _placeless(further) for name, further in scoring["also_on"].items()}})


def _placeless(further: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted settings without those of :func:`imachsr.config.continued.placeless`."""
    kept = {key: value for key, value in further.items() if key not in ("data.root", "data.cache", "data.kwargs.root")}
    return {key: placeless(value) if key == "data" and isinstance(value, Mapping) else value for key, value in kept.items()}


def wanted(study: StudyPlan, known: Known, *, only: Collection[str] = ()) -> list[Wanted]:
    """Every run of a study: seed by seed, so that what is broken off is balanced; then the control against itself, and the effects.

    Args:
        study: The study.
        known: Runs that have ended; those of a cell of equal times are settled by the times of these.
        only: Names of cells whose runs are wanted; of all without any.
    """
    found: list[tuple[int, Wanted]] = []
    for cell in study.cells:
        epochs = equal_epochs(study, cell, known) if cell.equal == "time" else {}
        for arm in study.arms_of(cell):
            for place, seed in enumerate(study.seeds_of(cell)):
                further = None if cell.equal == "epochs" else epochs.get(arm)
                is_open = cell.equal == "time" and further is None
                run = None if is_open else study.run_of(cell, arm, seed, {} if further is None else {"optimizer.epochs": further})
                found.append((place, _of(cell, arm, seed, run)))
    ordered = [each for _, each in sorted(found, key=lambda item: item[0])]
    if (again := study.against_itself) is not None:
        cell = study.cell(again.cell)
        ordered += [_of(cell, study.control, seed, study.run_of(cell, study.control, seed)) for seed in again.seeds]
    for effect in study.effects:
        cell = study.cell(effect.cell)
        for seed in effect.seeds:
            ordered += [_of(cell, study.control, seed, study.run_of(cell, study.control, seed))]
            for value in effect.values:
                run = study.run_of(cell, effect.arm, seed, {effect.key: value})
                ordered.append(replace(_of(cell, effect.arm, seed, run), setting=f"{effect.key}={word(value)}"))
    unique: dict[Any, Wanted] = {}
    for each in ordered:
        if only and each.cell not in only:
            continue
        unique.setdefault((each.key, each.seed) if each.key else (each.cell, each.arm, each.seed), each)
    return list(unique.values())


def strangers(study: StudyPlan, known: Known) -> list[Row]:
    """Rows that this study's tables pass over: of other settings, other seeds, or arms and cells that it has not (or has no more).

    Those of cells of equal times are no strangers: with more seeds that are timed, their epochs can become others.
    """
    ours = {(each.key, each.seed) for each in wanted(study, known) if each.key}
    timed = {cell.name for cell in study.cells if cell.equal == "time"}
    return [row for row in known.all() if (row.key, row.seed) not in ours and row.cell not in timed]


def _of(cell: Cell, arm: str, seed: int, run: Run | None) -> Wanted:
    return Wanted(cell=cell.name, arm=arm, seed=seed, run=run, key="" if run is None else key_of(run))


def equal_epochs(study: StudyPlan, cell: Cell, known: Known) -> dict[str, int]:
    """Epochs of every arm that take the time of the control's, rounded, at least one; {} until all runs that are timed have ended.

    What an arm's step takes of the control's is the median over the seeds with which both were timed on one kind of machine, so that neither a busy
    moment nor another machine decides; {} also where there is no such seed.
    """
    like = study.cell(str(cell.like))
    rows = {arm: {seed: known.get(key_of(study.run_of(like, arm, seed)), seed) for seed in study.seeds_of(cell)} for arm in study.arms_of(cell)}
    if any(row is None for of_arm in rows.values() for row in of_arm.values()):
        return {}
    full = study.run_of(like, study.control, study.seeds_of(cell)[0]).optimizer.epochs
    found = {}
    for arm, of_arm in rows.items():
        taken = [ratio for seed, row in of_arm.items() if (ratio := _step_ratio(row, rows[study.control][seed])) is not None]
        if not taken:
            return {}
        found[arm] = max(1, round(full / statistics.median(taken)))
    return found


def _step_ratio(one: Row | None, two: Row | None) -> float | None:
    """What a step of one run takes of that of another one; None where that cannot be told."""
    if one is None or two is None or not (one.is_finished and two.is_finished and one.scores.get(STEP) and two.scores.get(STEP)):
        return None
    return one.scores[STEP] / two.scores[STEP] if one.facts.get("machine") == two.facts.get("machine") else None
