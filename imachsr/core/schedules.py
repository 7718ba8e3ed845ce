"""How the weights of the side terms change during training, and how they are shared by the taps."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from imachsr.core.messages import by_name, require

Profile = Literal["uniform", "exp", "linear_depth"]


def shares(profile: Profile, count: int) -> tuple[float, ...]:
    """Share of each of M taps in execution order, with sum 1.

    Args:
        profile: ``uniform``; ``exp``: ``2^-(M-m)``, the last tap most (as nnU-Net's heads); ``linear_depth``: ``m``.
        count: M >= 1.

    """
    raw = {"uniform": [1.0] * count, "exp": [2.0 ** (m - count) for m in range(count)], "linear_depth": [float(m) for m in range(1, count + 1)]}[
        profile
    ]
    return tuple(value / sum(raw) for value in raw)


@dataclass(frozen=True, kw_only=True)
class Constant:
    """Weight 1 throughout."""

    kind: Literal["constant"] = "constant"

    def __call__(self, progress: Tensor) -> Tensor:
        """Factor at a progress in [0, 1], the share of the training's steps that are done."""
        return torch.ones_like(progress)


@dataclass(frozen=True, kw_only=True)
class Warmup:
    """From 0 to 1 over the first ``share`` of the training, then 1.

    Args:
        share: In (0, 1].

    """

    kind: Literal["warmup"] = "warmup"
    share: float = 0.1

    def __post_init__(self) -> None:
        require(0 < self.share <= 1, "0 < share <= 1", self.share)

    def __call__(self, progress: Tensor) -> Tensor:
        """Factor at a progress in [0, 1]."""
        return (progress / self.share).clamp(max=1)


@dataclass(frozen=True, kw_only=True)
class Linear:
    """From 1 to ``end`` in a straight line.

    Args:
        end: At the end of the training, >= 0.

    """

    kind: Literal["linear"] = "linear"
    end: float = 0.0

    def __post_init__(self) -> None:
        require(self.end >= 0, "end >= 0", self.end)

    def __call__(self, progress: Tensor) -> Tensor:
        """Factor at a progress in [0, 1]."""
        return 1 + (self.end - 1) * progress


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """From 1 to ``end`` along half a cosine.

    Args:
        end: At the end of the training, >= 0.

    """

    kind: Literal["cosine"] = "cosine"
    end: float = 0.0

    def __post_init__(self) -> None:
        require(self.end >= 0, "end >= 0", self.end)

    def __call__(self, progress: Tensor) -> Tensor:
        """Factor at a progress in [0, 1]."""
        return self.end + (1 - self.end) * (1 + torch.cos(math.pi * progress)) / 2


@dataclass(frozen=True, kw_only=True)
class StopAt:
    """1 until ``share`` of the training, 0 from then on.

    Args:
        share: In (0, 1].

    """

    kind: Literal["stop_at"] = "stop_at"
    share: float = 0.5

    def __post_init__(self) -> None:
        require(0 < self.share <= 1, "0 < share <= 1", self.share)

    def __call__(self, progress: Tensor) -> Tensor:
        """Factor at a progress in [0, 1]."""
        return (progress < self.share).to(progress.dtype)


def parse_schedule(schedule: "str | Schedule") -> "Schedule":
    """A schedule from its name, or the schedule itself.

    Raises:
        ValueError: If no schedule has this name; names the nearest ones.
        TypeError: If the object cannot be called.

    """
    if isinstance(schedule, str):
        made: Schedule = by_name("schedule", schedule, Schedule)
        return made
    if isinstance(schedule, type) or not callable(schedule):
        raise TypeError(f"`schedule` must be a name, or an object called (progress), but got {schedule!r}")
    return schedule


Schedule = Constant | Warmup | Linear | Cosine | StopAt
