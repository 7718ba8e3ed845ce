"""The tracking protocol, and its plain implementations: nothing, and several at once."""

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
        job_type: "baseline", "trial", "confirm", "study" or "train".
        config: resolved configuration and what else the result depends on, plain YAML-able values.
        tags: short labels, such as the arm's name.
        folder: of the training, where its predictions are; None where there is none.
    """

    id: str
    name: str
    group: str
    job_type: str = "trial"
    config: dict[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    folder: Path | None = None


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
