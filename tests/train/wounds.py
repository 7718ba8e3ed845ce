"""A model that is hurt while it trains on several workers, and writes down every step that it makes."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tests.train.toys import Tiny

STEPS_AN_EPOCH = 6
SETTINGS: dict[str, Any] = {
    "data__kwargs": {"count": 8 * STEPS_AN_EPOCH},
    "optimizer__batch_size": 8,
    "optimizer__epochs": 2,
    "augment__scale": [1, 1],
    "recovery__checkpoint_steps": 1,
}


class Wounded(Tiny):
    """Tiny with a fault in the ``at``-th step that a process makes on ``rank``; with a ``marker`` in the first group of workers only.

    Faults: kill, hang, nan, raise. ``log`` gets a line a step: rank, seconds, process.
    """

    def __init__(self, num_classes: int, fault: str = "", at: int = 1, rank: int = 1, marker: str = "", log: str = "", pause: float = 0.0) -> None:
        super().__init__(num_classes, dropout=0.2)
        self.fault, self.at, self.rank, self.marker, self.log, self.pause = fault, at, rank, marker, log, pause
        self.count = 0

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = super().forward(images)
        if not self.training or len(images) < 4 or not dist.is_initialized():  # the trace, before any training, takes batches of two and three
            return scores
        self.count += 1
        time.sleep(self.pause)
        rank = dist.get_rank()
        if self.log:
            with Path(self.log).open("a") as file:
                file.write(f"{rank} {time.time()} {os.getpid()}\n")
        is_due = self.fault and self.count == self.at and rank == self.rank and not (self.marker and Path(self.marker).exists())
        return self._hurt(scores) if is_due else scores

    def _hurt(self, scores: Tensor) -> Tensor:
        if self.marker:
            Path(self.marker).touch()
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "hang":
            time.sleep(3600)
        if self.fault == "raise":
            raise KeyError("a fault in the user's model")
        return scores * torch.nan


def wounded(**kwargs: Any) -> dict[str, Any]:
    """The model's setting."""
    return {"import": "tests.train.wounds:Wounded", **kwargs}


def steps(log: Path) -> int:
    """How many the first worker has made."""
    return sum(line.startswith("0 ") for line in log.read_text().splitlines()) if log.exists() else 0


def wait_until(condition: Callable[[], object], *, seconds: float, what: str) -> float:
    """Seconds until the condition holds, which it must in time."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"{what} must come within {seconds} s"
        time.sleep(0.1)
    return time.monotonic() - started
