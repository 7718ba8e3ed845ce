"""The tracking protocol and its plain implementations (nothing, console, JSON lines, several at once)."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

EndState = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True, kw_only=True)
class TrialStart:
    """What is known of a run when it starts.

    Args:
        id: unique in the tracker's project, stable when the run is continued.
        name: shown to people.
        group: the search (or run) that it belongs to.
        job_type: "baseline", "trial" or "train".
        config: resolved configuration, plain YAML-able values.
        tags: short labels, such as the arm's name.
    """

    id: str
    name: str
    group: str
    job_type: str = "trial"
    config: dict[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()


class Tracker(Protocol):
    """Receives runs; called by the driver only, from one thread."""

    def start(self, trial: TrialStart) -> None:
        """Begin a run."""

    def log(self, trial_id: str, row: Mapping[str, float]) -> None:
        """Record one row (one epoch) of a run; the key "epoch" counts from 1."""

    def end(self, trial_id: str, state: str, summary: Mapping[str, Any]) -> None:
        """End a run in the state "finished", "stopped" or "failed"."""

    def close(self) -> list[str]:
        """Flush everything; the returned lines are for the user (how to look at the runs)."""


class NullTracker:
    """Forgets everything."""

    def start(self, trial: TrialStart) -> None:
        """Do nothing."""

    def log(self, trial_id: str, row: Mapping[str, float]) -> None:
        """Do nothing."""

    def end(self, trial_id: str, state: str, summary: Mapping[str, Any]) -> None:
        """Do nothing."""

    def close(self) -> list[str]:
        """Nothing to tell."""
        return []


class ConsoleTracker:
    """One printed line per event.

    Args:
        write: takes one line, such as `print` or a console's method.
        metrics: the row's keys to show; all that end in "miou" or "loss" without them.
    """

    def __init__(self, write: Callable[[str], Any] = print, metrics: Sequence[str] | None = None) -> None:
        self._write = write
        self._metrics = metrics
        self._names: dict[str, str] = {}

    def start(self, trial: TrialStart) -> None:
        """Print that a run started."""
        self._names[trial.id] = trial.name
        self._write(f"{trial.name}: started")

    def log(self, trial_id: str, row: Mapping[str, float]) -> None:
        """Print the row's main numbers."""
        keys = self._metrics or [key for key in row if key.endswith(("miou", "loss"))]
        numbers = "  ".join(f"{key} {row[key]:.4g}" for key in keys if key in row)
        self._write(f"{self._names.get(trial_id, trial_id)}: epoch {row.get('epoch', 0):g}  {numbers}")

    def end(self, trial_id: str, state: str, summary: Mapping[str, Any]) -> None:
        """Print how a run ended."""
        error = f": {summary['error']}" if summary.get("error") else ""
        self._write(f"{self._names.get(trial_id, trial_id)}: {state}{error}")

    def close(self) -> list[str]:
        """Nothing to tell."""
        return []


class JsonLinesTracker:
    """Appends every event to a file, one JSON object a line, flushed at once.

    Args:
        path: the file; its folder is made.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)

    def _append(self, record: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(record), default=str) + "\n")

    def start(self, trial: TrialStart) -> None:
        """Append the run's start."""
        self._append(
            {
                "event": "start",
                "id": trial.id,
                "name": trial.name,
                "group": trial.group,
                "job_type": trial.job_type,
                "config": trial.config,
                "tags": list(trial.tags),
            }
        )

    def log(self, trial_id: str, row: Mapping[str, float]) -> None:
        """Append one row."""
        self._append({"event": "row", "id": trial_id, "row": dict(row)})

    def end(self, trial_id: str, state: str, summary: Mapping[str, Any]) -> None:
        """Append the run's end."""
        self._append({"event": "end", "id": trial_id, "state": state, "summary": dict(summary)})

    def close(self) -> list[str]:
        """Nothing to tell: the file was complete after every event."""
        return []


class Combined:
    """Several trackers as one; a tracker that raises is dropped from then on, and the user is told once.

    Args:
        trackers: called in this order.
    """

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers: list[Tracker] = list(trackers)
        self._messages: list[str] = []

    def _each(self, call: Callable[[Tracker], Any]) -> list[Any]:
        answers = []
        for tracker in tuple(self._trackers):
            try:
                answers.append(call(tracker))
            except Exception as error:  # whatever a tracker does, training goes on
                self._trackers.remove(tracker)
                self._messages.append(f"{type(tracker).__name__} stopped recording: {type(error).__name__}: {error}")
        return answers

    def start(self, trial: TrialStart) -> None:
        """Begin a run everywhere."""
        self._each(lambda tracker: tracker.start(trial))

    def log(self, trial_id: str, row: Mapping[str, float]) -> None:
        """Record a row everywhere."""
        self._each(lambda tracker: tracker.log(trial_id, row))

    def end(self, trial_id: str, state: str, summary: Mapping[str, Any]) -> None:
        """End a run everywhere."""
        self._each(lambda tracker: tracker.end(trial_id, state, summary))

    def close(self) -> list[str]:
        """Close all; their lines, then what went wrong."""
        lines = [line for answer in self._each(lambda tracker: tracker.close()) for line in answer]
        messages, self._messages = self._messages, []
        return lines + messages


def finite(value: Any) -> Any:
    """The same plain structure with null for NaN and infinities, which JSON does not know."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value
