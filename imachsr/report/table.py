"""Rows of a search's table."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imachsr.config.schema import ConfigError

SCHEMA = 1
STATES = {"COMPLETE": "finished", "PRUNED": "stopped", "FAIL": "failed", "RUNNING": "running"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One trial in words.

    Attributes:
        number: Of the trial.
        arm: Name of the fixed configuration, "" for a sampled one.
        settings: What was set over the base run.
        value: Metric of the last epoch, or None.
        difference: Against the baseline; only of finished trials, because a stopped one has had fewer epochs.
        epochs: As in "4/12".
        state: finished, stopped, failed or running.
        taps: Supervised layers.
        error: Why it failed, or "".
    """

    number: int
    arm: str
    settings: str
    value: float | None
    difference: float | None
    epochs: str
    state: str
    taps: tuple[str, ...]
    error: str


def load_summary(folder: Path) -> dict[str, Any]:
    """summary.json of a result folder.

    Raises:
        ConfigError: If it is not there, broken, of another version, or of a single training.
    """
    path = folder / "summary.json"
    try:
        summary: Any = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        if (folder / "search.yaml").exists():
            raise ConfigError(f"{folder} must hold a search of which a trial has ended, but none has yet; try again later") from None
        raise ConfigError(f"{folder} must be the --output folder of a search, but has no summary.json") from None
    except ValueError as error:
        raise ConfigError(f"{path} must be JSON, but: {error}") from None
    if not isinstance(summary, dict) or summary.get("schema") != SCHEMA:
        found = summary.get("schema") if isinstance(summary, dict) else type(summary).__name__
        raise ConfigError(f"{path} must have schema {SCHEMA}, but has {found}; it was written by something else, or another version of imachsr")
    if "trials" not in summary:
        raise ConfigError(f"{folder} must be the folder of a search, but holds a single training; see {folder / 'metrics.jsonl'}")
    return summary


def short(params: Mapping[str, Any]) -> str:
    """Settings in one line."""
    parts = []
    for key, value in params.items():
        text = f"{value:.3g}" if isinstance(value, float) else "none" if value is None else str(value)
        parts.append(f"{key.removeprefix('method.').removeprefix('optimizer.')} {text}")
    return ", ".join(parts)


def rows(summary: Mapping[str, Any]) -> list[Row]:
    """The baseline, the other finished trials from the best down, then stopped, running and failed ones."""
    sign = -1 if summary["mode"] == "max" else 1
    order = {"COMPLETE": 0, "PRUNED": 1, "RUNNING": 2, "FAIL": 3}
    trials = sorted(
        summary["trials"],
        key=lambda t: (t["number"] != summary["baseline"], order[t["state"]], -t["epochs"], sign * t["value"] if t["value"] is not None else 0.0),
    )
    return [
        Row(
            number=trial["number"],
            arm=trial["arm"] or "",
            settings=short(trial["params"]),
            value=trial["value"],
            difference=trial["difference"],
            epochs=f"{trial['epochs']}/{summary['max_epochs']}",
            state=STATES[trial["state"]],
            taps=tuple(trial["taps"]),
            error=trial["error"] or "",
        )
        for trial in trials
    ]
