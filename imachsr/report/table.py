"""Rows of a search's table."""

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imachsr.config.schema import ConfigError
from imachsr.config.words import word
from imachsr.files import is_held

SCHEMA = 1
STATES = {"COMPLETE": "finished", "PRUNED": "stopped", "FAIL": "failed", "RUNNING": "running", "BROKEN": "broken off"}
OPEN = ("RUNNING", "BROKEN")
"""Of these a trial has one until it has ended: somebody runs the search, or nobody does, so that it goes on when the search is continued."""
_KEYS = ("name", "metric", "mode", "max_epochs", "baseline", "best", "finished", "wall_s", "versions")
_TRIAL_KEYS = ("number", "arm", "state", "epochs", "value", "difference", "params", "taps", "error")


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
        state: finished, stopped, failed, running or broken off.
        taps: Supervised layers.
        error: Why it failed or was not begun, or "".
        seed: Of the run.
        others: Values of the further objectives at the last epoch.
        is_front: Whether none other is better in one objective and as good in all; of several objectives.
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
    seed: int
    others: tuple[float | None, ...]
    is_front: bool

    @property
    def state_words(self) -> str:
        """The state, and whether it is on the front."""
        return f"{self.state}, front" if self.is_front else self.state


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A fixed configuration over its seeds; finished trials only.

    Attributes:
        name: Of the arm.
        values: Metric of the last epoch, by seed.
        differences: Against the baseline with the same seed, by seed; of those seeds whose baseline finished.
        is_baseline: Whether it is what the others are compared with.
    """

    name: str
    values: Mapping[int, float]
    differences: Mapping[int, float]
    is_baseline: bool

    @property
    def mean(self) -> float:
        """Mean of the metric over the seeds."""
        return statistics.fmean(self.values.values())

    @property
    def difference(self) -> float | None:
        """Mean of the paired differences; None without any."""
        return statistics.fmean(self.differences.values()) if self.differences else None

    @property
    def words(self) -> str:
        """In one line."""
        text = f"{self.name}: {self.mean:.2f} over {len(self.values)} seeds"
        return text if self.difference is None or self.is_baseline else f"{text}, {self.difference:+.2f} paired ({self.each})"

    @property
    def each(self) -> str:
        """The paired differences, in the order of the seeds."""
        return ", ".join(f"{self.differences[seed]:+.2f}" for seed in sorted(self.differences))


def has_seeds(summary: Mapping[str, Any]) -> bool:
    """Whether the search has several seeds."""
    return len({trial.get("seed", 0) for trial in summary["trials"]}) > 1


def arms(summary: Mapping[str, Any]) -> list[Arm]:
    """The arms of a search with several seeds: the baseline, then the others from the best mean down; none for one seed."""
    if not has_seeds(summary):
        return []
    whole = [trial for trial in summary["trials"] if trial["arm"] and trial["state"] == "COMPLETE"]
    baseline = next((trial["arm"] for trial in summary["trials"] if trial["number"] == summary["baseline"]), None)
    found = []
    for name in dict.fromkeys(trial["arm"] for trial in whole):
        own = [trial for trial in whole if trial["arm"] == name]
        differences = {trial["seed"]: trial["difference"] for trial in own if trial["difference"] is not None}
        found.append(Arm(name=name, values={trial["seed"]: trial["value"] for trial in own}, differences=differences, is_baseline=name == baseline))
    sign = -1 if summary["mode"] == "max" else 1
    return sorted(found, key=lambda arm: (not arm.is_baseline, sign * arm.mean))


@dataclass(frozen=True, kw_only=True)
class Lead:
    """The best configuration beside the baseline; of an arm with several seeds, means over these.

    Attributes:
        value: Its metric; None where nothing has finished.
        baseline: The baseline's, None without one that finished.
        difference: Between them; the mean of the paired ones.
        seeds: Of the best.
    """

    value: float | None
    baseline: float | None
    difference: float | None
    seeds: int


def lead(summary: Mapping[str, Any]) -> Lead:
    """How far the best of a search is ahead of its baseline."""
    trials = {trial["number"]: trial for trial in summary["trials"]}
    best, base = trials.get(summary["best"]), trials.get(summary["baseline"])
    found = {arm.name: arm for arm in arms(summary)}
    arm = found.get(best["arm"]) if best is not None and best["arm"] else None
    baseline = base["value"] if base is not None and base["state"] == "COMPLETE" else None
    if best is None or arm is None or len(arm.values) == 1:
        return Lead(value=best and best["value"], baseline=baseline, difference=best and best["difference"], seeds=1)
    of_baseline = next((each.mean for each in found.values() if each.is_baseline), baseline)
    return Lead(value=arm.mean, baseline=of_baseline, difference=arm.difference, seeds=len(arm.values))


def load_summary(folder: Path) -> dict[str, Any]:
    """summary.json of a result folder.

    Raises:
        ConfigError: If it is not there, broken, of another version, or of a single training or a study.
    """
    path = folder / "summary.json"
    try:
        summary: Any = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        if (folder / "search.yaml").exists():
            raise ConfigError(f"{folder} must hold a search of which a trial has ended, but none has yet; try again later") from None
        if (folder / "study.yaml").exists():
            raise ConfigError(f"{folder} must be the --output folder of a search, but holds a study; see {folder / 'study.md'}") from None
        raise ConfigError(f"{folder} must be the --output folder of a search, but has no summary.json") from None
    except OSError as error:
        raise ConfigError(f"{path} must be readable, but: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path} must be JSON, but: {error}") from None
    if not isinstance(summary, dict) or summary.get("schema") != SCHEMA:
        found = summary.get("schema") if isinstance(summary, dict) else type(summary).__name__
        raise ConfigError(f"{path} must have schema {SCHEMA}, but has {found}; it was written by something else, or another version of imachsr")
    if "trials" not in summary:
        raise ConfigError(f"{folder} must be the folder of a search, but holds a single training; see {folder / 'metrics.jsonl'}")
    if problem := _incomplete(summary):
        raise ConfigError(f"{path} must tell of a search, but {problem}; it was written by something else, or another version of imachsr")
    state = state_of_open(folder)
    return {**summary, "trials": [{**trial, "state": state} if trial["state"] in OPEN else trial for trial in summary["trials"]]}


def state_of_open(folder: Path) -> str:
    """Of trials that have not ended: RUNNING where a process runs the search, else BROKEN."""
    return "RUNNING" if is_held(folder) else "BROKEN"


def _incomplete(summary: Mapping[str, Any]) -> str:
    """What a report needs and is not there, in words."""
    if missing := [key for key in _KEYS if key not in summary]:
        return f"has no {', '.join(missing)}"
    for trial in summary["trials"]:
        if missing := [key for key in _TRIAL_KEYS if key not in trial]:
            return f"a trial has no {', '.join(missing)}"
        if trial["state"] not in STATES:
            return f"a trial has the state {trial['state']!r}, none of {', '.join(STATES)}"
        if trial["state"] == "COMPLETE" and not isinstance(trial["value"], (int, float)):
            return f"trial {trial['number']} is COMPLETE and has no value"
    return ""


def short(params: Mapping[str, Any]) -> str:
    """Settings in one line."""
    parts = []
    for key, value in params.items():
        text = f"{value:.3g}" if isinstance(value, float) else word(value)
        parts.append(f"{key.removeprefix('method.').removeprefix('optimizer.')} {text}")
    return ", ".join(parts)


def further(summary: Mapping[str, Any]) -> list[str]:
    """Names of the objectives beside the metric."""
    return [each["name"] for each in summary.get("objectives", ())][1:]


def whole(summary: Mapping[str, Any], trial: Mapping[str, Any]) -> int:
    """Epochs of a whole trial, which may be a knob of the search; older summaries hold the base run's alone."""
    return int(trial.get("max_epochs") or summary["max_epochs"])


def rows(summary: Mapping[str, Any]) -> list[Row]:
    """The baseline, the other finished trials from the best down, then stopped ones, those that have not ended, and failed ones."""
    sign = -1 if summary["mode"] == "max" else 1
    order = {"COMPLETE": 0, "PRUNED": 1, "RUNNING": 2, "BROKEN": 2, "FAIL": 3}
    trials = sorted(
        summary["trials"],
        # Trials that ran whole by their value alone, also where epochs are a knob; of the others, those that came further are above.
        key=lambda t: (
            t["number"] != summary["baseline"],
            order[t["state"]],
            0 if t["state"] == "COMPLETE" else -t["epochs"],
            sign * t["value"] if t["value"] is not None else 0.0,
        ),
    )
    return [
        Row(
            number=trial["number"],
            arm=trial["arm"] or "",
            settings=short(trial["params"]),
            value=trial["value"],
            difference=trial["difference"],
            epochs=f"{trial['epochs']}/{whole(summary, trial)}",
            state=STATES[trial["state"]],
            taps=tuple(trial["taps"]),
            error=trial["error"] or ("" if trial.get("feasible", True) else trial["why"]),
            seed=trial.get("seed", 0),
            others=tuple(trial.get("values", {}).get(name) for name in further(summary)),
            is_front=trial["number"] in summary.get("front", ()),
        )
        for trial in trials
    ]
