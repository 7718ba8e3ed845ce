"""Runs of a study as they are told where runs are tracked: when one has ended, and when they are read back from the result folder."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from imachsr.config.load import load_yaml
from imachsr.config.schema import ConfigError
from imachsr.search.tracked import choice
from imachsr.study.load import make_study
from imachsr.study.rows import FILE, Row, read
from imachsr.tracking.events import Tracker, TrialStart
from imachsr.tracking.recorded import Recorded

SETTINGS, RUNS = "study.yaml", "runs"


def folder_of(folder: Path, key: str, seed: int) -> Path:
    """Absolute folder of a run's training.

    Args:
        folder: Of the study.
        key: Fingerprint of the run's settings.
        seed: Of the run.
    """
    return (folder / RUNS / f"{key}-{seed}").absolute()


def start_of(row: Row, config: Mapping[str, Any], study: str, folder: Path) -> TrialStart:
    """What is told of a run.

    Args:
        row: Of the run.
        config: All its settings.
        study: Name of the study.
        folder: Of its training.
    """
    facts = {"cell": row.cell, "arm": row.arm, "setting": row.setting, "key": row.key, "data_fingerprint": row.data, **row.facts}
    return TrialStart(
        id=f"{row.key}-{row.seed}",
        name="-".join(filter(None, [row.cell, row.arm, row.setting, str(row.seed)])),
        group=study,
        job_type="study",
        config={**config, **facts, "choice": choice(config)},
        tags=(row.cell, row.arm),
        folder=folder,
    )


def tell(tracker: Tracker, found: Recorded) -> None:
    """Tell of a run that has ended, epoch by epoch."""
    tracker.start(found.start)
    for line in found.rows:
        tracker.log(found.start.id, line)
    tracker.end(found.start.id, found.state, found.summary)


def record(row: Row, config: Mapping[str, Any], study: str, folder: Path) -> Recorded:
    """A run that has ended, with the rows that its training wrote; arguments as in :func:`start_of`."""
    return Recorded(start=start_of(row, config, study, folder), rows=list(_lines(folder)), state=row.state, summary=dict(row.scores))


def recorded(folder: Path) -> list[Recorded]:
    """Runs of a study as its own files have them.

    Args:
        folder: Result folder.

    Raises:
        ConfigError: If it holds no study of which a run has ended, or its files are broken.
    """
    if not (folder / FILE).exists():
        raise ConfigError(f"{folder} must hold a study of which a run has ended, but has no {FILE} yet")
    name = make_study(load_yaml(folder / SETTINGS)).name
    found = []
    for row in read(folder / FILE):
        at = folder_of(folder, row.key, row.seed)
        config = load_yaml(at / "run.yaml") if (at / "run.yaml").exists() else {}
        found.append(record(row, config, name, at))
    return found


def _lines(folder: Path) -> Iterator[dict[str, float]]:
    path = folder / "metrics.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        yield {name: value for name, value in json.loads(line).items() if value is not None}
