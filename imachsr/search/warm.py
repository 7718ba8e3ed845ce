"""What a new search takes from older ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from imachsr.config.load import load_yaml, run_to_dict
from imachsr.config.schema import ConfigError
from imachsr.search.folder import SETTINGS, holds_search
from imachsr.search.space import Search, make_search
from imachsr.search.study import Record, Study

BEST = 3
"""Configurations that are tried again where the values of an older search say nothing here."""


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """From one older search.

    Attributes:
        trials: For the sampler, with their values: the older search compared the same thing on the same problem.
        points: To be tried before anything is sampled: it did not, so that its values mean nothing here, but its best may be good.
        words: What was taken, in a line.
    """

    trials: tuple[FrozenTrial, ...]
    points: tuple[dict[str, Any], ...]
    words: str


def lesson(folder: Path, search: Search) -> Lesson:
    """What a search can learn from the one in a folder; knobs that are not in both, or whose value lies outside the new range, are left out.

    Raises:
        ConfigError: If the folder holds no search, or nothing of it can be used.
    """
    if not holds_search(folder):
        raise ConfigError(f"--warm-start must be the result folder of a search, but {folder} holds none")
    older = make_search(load_yaml(folder / SETTINGS))
    study = Study(folder, older, read_only=True)
    records = [each for each in study.records() if each.proposal.arm is None and not each.outcome.get("excess")]
    study.close()
    records = [each for each in records if each.values or (each.state == "PRUNED" and each.curve)]
    shared = [(record, known) for record in records if (known := _known(search, record))]
    if not shared:
        raise ConfigError(f"--warm-start must name a search with knobs of this one and a trial that has ended, but {folder} has none")
    if differ := _differences(older, search):
        sign = -1 if older.metric.mode == "max" else 1
        whole = sorted((pair for pair in shared if pair[0].values), key=lambda pair: sign * pair[0].values[0])
        points = [point for _, known in whole if (point := _point(search, known)) is not None][:BEST]
        what = f"its values are not comparable ({', '.join(differ)} differ): its {len(points)} best configurations are tried first"
        return Lesson(trials=(), points=tuple(points), words=f"{folder}: {what}")
    trials = [_trial(search, record, known) for record, known in shared]
    return Lesson(trials=tuple(trials), points=(), words=f"{folder}: the sampler starts from {len(trials)} trials")


def _differences(older: Search, newer: Search) -> list[str]:
    """What makes values of one search say nothing about the other."""
    before, now = run_to_dict(older.base()), run_to_dict(newer.base())
    found = [key for key in ("data", "subset", "model", "output_loss") if before[key] != now[key]]
    found += ["optimizer.epochs"] if older.base().optimizer.epochs != newer.base().optimizer.epochs else []
    found += [key for key in ("metric", "also", "selection", "score_on", "function") if getattr(older, key) != getattr(newer, key)]
    return found


def _known(search: Search, record: Record) -> dict[str, Any]:
    """Values of the new space's knobs that an older trial had."""
    found: dict[str, Any] = {}
    for key in search.order:
        parameter = search.space[key]
        if key in record.proposal.values and parameter.holds(found):
            try:
                parameter.told(record.proposal.values[key])
            except ValueError:
                continue
            found[key] = record.proposal.values[key]
    return found


def _point(search: Search, known: dict[str, Any]) -> dict[str, Any] | None:
    try:
        search.point_params(known)
    except ConfigError:
        return None
    return None if search.excess(known) else known


def _trial(search: Search, record: Record, known: dict[str, Any]) -> FrozenTrial:
    return create_trial(
        state=TrialState.COMPLETE if record.values else TrialState.PRUNED,
        values=list(record.values) or None,
        params={key: search.space[key].told(value) for key, value in known.items()},
        distributions=search.distributions(known),
        intermediate_values=record.curve,
        user_attrs={"learnt": True},
    )


def taught(search: Search, lessons: Sequence[Lesson]) -> Search:
    """The search with the points of all lessons behind its own."""
    points = [*search.points]
    for point in (point for each in lessons for point in each.points):
        if point not in points:
            points.append(point)
    return search.model_copy(update={"points": tuple(points)})
