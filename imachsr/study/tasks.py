"""Ray runs what a study wants, as many runs at a time as fit; the only file of the study that knows Ray."""

import contextlib
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from imachsr.config.schema import ConfigError
from imachsr.study.schema import StudyBudget
from imachsr.study.task import run_to_row
from imachsr.train.capacity import at_a_time, await_room, connect, may_grow, room, words
from imachsr.train.stopping import take_termination_as_interrupt

POLL_S = 0.5
END_S = 90.0
"""Longest wait for runs to save what they have done when they are asked to end, seconds."""
RETRIES = 2


class Pool:
    """Runs on this machine, or on the cluster at RAY_ADDRESS; a run whose process died is begun again from its last checkpoint.

    Args:
        budget: What each takes.
        say: Called with a line for the user.
        is_on_gpus: Whether runs would take a GPU that was reserved for them.

    Raises:
        ConfigError: If the cluster can never hold a run.
    """

    def __init__(self, budget: StudyBudget, say: Callable[[str], object], *, is_on_gpus: bool = False) -> None:
        bundle = {"CPU": float(budget.cpus_per_run), "GPU": budget.gpus_per_run}
        connect()
        take_termination_as_interrupt()
        await_room(bundle, 1, what="1 run", say=say)
        if not (found := room(bundle)):
            raise ConfigError(f"budget: one node of the cluster must have {words(bundle)} for a run, but none has")
        self.places = at_a_time(budget.concurrency, found, grows=may_grow())
        if is_on_gpus and ray.cluster_resources().get("GPU", 0) and not budget.gpus_per_run:
            warnings.warn("runs use the CPU, because budget.gpus_per_run is 0; the cluster has GPUs: budget.gpus_per_run=1 uses them", stacklevel=2)
        say(f"{self.places} runs at a time, each with {words(bundle)}; the cluster holds {found}")
        options = {"num_cpus": budget.cpus_per_run, "num_gpus": budget.gpus_per_run, "max_retries": RETRIES}
        self._remote = ray.remote(**options)(run_to_row)
        self._running: dict[Any, Any] = {}

    def __len__(self) -> int:
        return len(self._running)

    def running(self) -> list[Any]:
        """Names of what runs."""
        return list(self._running.values())

    def begin(self, name: Any, config: Mapping[str, Any], output: str, data: str, scoring: Mapping[str, Any]) -> None:
        """Begin a run; arguments as in :func:`imachsr.study.task.run_to_row`."""
        self._running[self._remote.remote(config, output, data, scoring)] = name

    def ended(self) -> list[tuple[Any, dict[str, Any]]]:
        """Runs that have ended since the last call, after half a second at most: their names and what they gave, ``lost`` for those that died."""
        done, _ = ray.wait(list(self._running), num_returns=1, timeout=POLL_S)
        return [(self._running.pop(reference), _given(reference)) for reference in done]

    def stop(self) -> list[tuple[Any, dict[str, Any]]]:
        """Ask all runs to save where they are, and wait for that; what had ended all the same is given."""
        for reference in self._running:
            with contextlib.suppress(RayError, ValueError):
                ray.cancel(reference)
        end, found = time.monotonic() + END_S, []
        while self._running and time.monotonic() < end:
            found += self.ended()
        return [each for each in found if "scores" in each[1]]


def _given(reference: Any) -> dict[str, Any]:
    try:
        found: dict[str, Any] = ray.get(reference)
    except RayTaskError as error:  # what the user's own code may raise
        return {"error": f"{type(error.cause).__name__}: {error.cause}"}
    except RayError as error:
        return {"lost": " ".join(str(error).split())}
    return found
