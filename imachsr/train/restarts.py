"""What a training on several workers says while it runs, and how it gets over the loss of some."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from imachsr.train.parallel import Row

PATIENCE_S = 20.0
"""Seconds without workers after which that is told."""


@dataclass(frozen=True, kw_only=True)
class Restart:
    """A worker group that was replaced.

    Attributes:
        reason: Why.
        seconds: From the last sign of life of the old group to the first step of the new one.
        steps: Steps that were done again, of those that were told; they are told about once a second.
        step: After which the new group went on.
        workers: In the new group, >= 1.
    """

    reason: str
    seconds: float
    steps: int
    step: int
    workers: int

    def __str__(self) -> str:
        who = f"{self.workers} workers go on" if self.workers != 1 else "1 worker goes on"
        again = f"{self.steps} steps are done again" if self.steps != 1 else "1 step is done again"
        return f"{self.reason}: {who} after step {self.step}, {self.seconds:.1f} s after the last sign of life; {again}"


@dataclass(kw_only=True)
class Monitor:
    """What the first worker of each group says, heard in the driver.

    Args:
        report: Called with each epoch's row, once.
        on_step: Called with the steps done.
        on_restart: Called when a new group has done its first step.
        say: Called with a line for the user.
        epochs: That are reported; a new group tells all that are on disk, since the one before may have been lost before it could.

    Attributes:
        stopped_step: After which the workers stopped as they were asked to; None: they did not.
        controller: Ray's actor that leads the workers, once it runs.
        last_step: That was told of.
    """

    report: Callable[[Row], object]
    on_step: Callable[[int], object]
    on_restart: Callable[[Restart], object]
    say: Callable[[str], object]
    epochs: int = 0
    stopped_step: int | None = None
    controller: Any = None
    last_step: int = 0
    _workers: int = 0
    _reason: str = ""
    _is_new: bool = False
    _is_told: bool = False
    _heard_at: float = field(default_factory=time.monotonic)
    _absent_since: float | None = field(default_factory=time.monotonic)
    _leaves_at: float = math.inf

    @property
    def absent_s(self) -> float:
        """Seconds since there are no workers; 0 when there are.

        Ray ends them when a node's time is up, and does not tell; those that were not lost say so by going on.
        """
        since = self._leaves_at if self._absent_since is None and self._heard_at < self._leaves_at else self._absent_since
        return 0.0 if since is None else max(0.0, time.monotonic() - since)

    def hear(self, kind: str, value: Any) -> None:
        """Note one message of the workers or their controller: controller, start, step, row, leaving, said, lost or stopped."""
        if kind == "row":
            if not self._is_new:  # else it is of the old group's epochs, told again
                self._heard_at = time.monotonic()
            if value["epoch"] > self.epochs:
                self.epochs = int(value["epoch"])
                self.report(value)
        elif kind == "step":
            self._hear_step(value)
        elif kind == "start":
            self._is_new = self._workers > 0
            if self._is_new and value != self._workers:
                self._reason = self._reason or "the cluster changed"
            self._workers, self._absent_since, self._leaves_at, self._is_told = value, None, math.inf, False
        elif kind == "controller":
            self.controller = self.controller or value
        elif kind == "leaving":
            self._reason, self._leaves_at = "a node was taken away", time.monotonic() + value
            self.say(f"a node of the cluster will be taken away in {value:.0f} s: saving a checkpoint")
        elif kind == "said":
            self.say(value)
        elif kind == "lost":
            self._reason = self._reason or value
            if self._absent_since is None:
                self._absent_since = time.monotonic()
        else:
            self.stopped_step = value

    def _hear_step(self, step: int) -> None:
        now = time.monotonic()
        if self._is_new:
            again = max(0, self.last_step - step + 1)
            reason = self._reason or "the workers were started again"
            self.on_restart(Restart(reason=reason, seconds=now - self._heard_at, steps=again, step=step - 1, workers=self._workers))
            self._is_new, self._reason = False, ""
        self.last_step, self._heard_at = step, now
        self.on_step(step)

    def tell_wait(self, needed: int, room: int, limit_s: float) -> None:
        """Say, once, that there are no workers, and how long they are waited for."""
        if self.absent_s > PATIENCE_S and not self._is_told:
            self._is_told = True
            why = f"{self._reason}; " if self._reason else ""
            self.say(f"{why}waiting up to {limit_s:g} s for {needed} of the workers to start; the cluster has room for {room}")
