"""A data set and models that a YAML names by import path: learnable in seconds, with scores and faults to order."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imachsr.config.load import make_run
from imachsr.config.schema import Run
from imachsr.data.samples import Samples


class Bands:
    """Pixels whose brightest channel is their class; ``load("val")`` can be forbidden."""

    def __init__(
        self, count: int = 8, num_val: int = 4, size: int = 32, has_val: bool = True, fourth: str | None = None, bad: tuple[int, ...] = ()
    ) -> None:
        self.count, self.num_val, self.size, self.has_val, self.bad = count, num_val, size, has_val, list(bad)  # `bad` ones please no Poisoned
        self.class_names = ("road", "sky", "tree", *([fourth] if fourth else []))  # no pixel is of the fourth class
        self.num_classes = len(self.class_names)

    def load(self, split: str) -> Samples:
        if split == "val" and not self.has_val:
            raise RuntimeError("val must stay unseen")
        count = self.count if split == "train" else self.num_val
        generator = torch.Generator().manual_seed({"train": 1, "val": 2, "test": 3}[split])
        labels = torch.randint(0, 3, (count, self.size // 8, self.size // 8), generator=generator)
        labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
        noise = torch.randint(0, 60, (count, 3, self.size, self.size), generator=generator)
        images = 180 * nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2) + noise
        if split == "train":
            images[self.bad] = 255
        return Samples(images=images.byte(), labels=labels.byte(), names=tuple(f"seq_{i:03d}" for i in range(count)))


class HereOnly(Bands):
    """Data that only one process can read, as on a machine without the folder; every other is noted in a file."""

    def __init__(self, pid: int, log: str) -> None:
        super().__init__()
        self.pid, self.log = pid, log

    def load(self, split: str) -> Samples:
        if os.getpid() != self.pid:
            with Path(self.log).open("a") as file:
                file.write("asked\n")
            raise FileNotFoundError("no such folder on this machine")
        return super().load(split)


class Frozen(nn.BatchNorm2d):
    """Stays in evaluation mode, as in fine-tuning with small batches."""

    def train(self, mode: bool = True) -> "Frozen":
        return super().train(False)


class Tiny(nn.Module):
    """Two strided blocks and a head; group norm, so that a batch may be shared out without a change."""

    def __init__(
        self, num_classes: int, dropout: float = 0.0, has_unused: bool = False, has_batch_norm: bool = False, is_frozen: bool = False
    ) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.GroupNorm(2, 8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.GroupNorm(2, 12), nn.ReLU(), nn.Dropout2d(dropout))
        if has_batch_norm:
            made = Frozen if is_frozen else nn.BatchNorm2d
            self.first[1], self.second[1] = made(8), made(12)
        self.head = nn.Conv2d(12, num_classes, 1)
        self.unused = nn.Conv2d(3, 3, 1) if has_unused else None

    def forward(self, images: Tensor) -> Tensor:
        scores = self.head(self.second(self.first(images)))
        return nn.functional.interpolate(scores, size=images.shape[-2:], mode="bilinear")


class Scripted(Tiny):
    """Scores on :class:`Bands` to order: the share of image rows that is right, epoch by epoch."""

    def __init__(self, num_classes: int, shares: Any, steps: int) -> None:
        super().__init__(num_classes)
        self.shares, self.steps = list(shares), steps
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.step += 1
            return super().forward(images)
        share = self.shares[min(int(self.step) // self.steps, len(self.shares)) - 1]
        right = torch.arange(images.shape[-2]) < round(share * images.shape[-2])
        scores = torch.where(right[:, None], images, images.roll(1, 1))
        never = scores.new_full((len(images), self.head.out_channels - 3, *images.shape[-2:]), -9.0)
        return torch.cat([scores, never], 1)


class _NanBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        return scores.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * torch.nan


class Poisoned(Tiny):
    """NaN in the training on a batch with a white image, so that a fault is the data's: from the first layer on, or in the gradient only."""

    def __init__(self, num_classes: int, where: str = "forward", **options: Any) -> None:
        super().__init__(num_classes, **options)
        self.where = where

    def forward(self, images: Tensor) -> Tensor:
        if not (self.training and bool((images.amin((1, 2, 3)) > 2).any())):
            return super().forward(images)
        return super().forward(images * torch.nan) if self.where == "forward" else _NanBack.apply(super().forward(images))


class Faulty(nn.Module):
    """A model with a fault in its Nth training forward: kill (once, as the marker file tells), raise, nan, hang, exit, or sleep in each.

    It is known by the file, not by a count, so that a restarted process goes on.
    """

    def __init__(self, model: nn.Module, fault: str, at: int, marker: str) -> None:
        super().__init__()
        self.model, self.fault, self.at, self.marker = model, fault, at, marker
        self.count = 0

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.model(images)
        if not self.training or len(images) < 4:  # the trace, before any training, takes batches of two and three
            return scores
        self.count += 1
        if self.fault == "sleep":
            time.sleep(0.2)
        if self.count < self.at:
            return scores
        if self.fault == "kill" and not Path(self.marker).exists():
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "hang":
            time.sleep(3600)
        if self.fault == "exit":
            sys.exit(3)
        if self.fault == "raise":
            raise KeyError("a fault in the user's model")
        return scores * torch.nan if self.fault == "nan" else scores


def faulty(num_classes: int, fault: str = "none", at: int = 1, marker: str = "", **options: Any) -> nn.Module:
    made = Scripted(num_classes, **options) if "shares" in options else Tiny(num_classes, **options)
    return Faulty(made, fault, at, marker)


BASE: dict[str, Any] = {
    "data": {"import": "tests.train.toys:Bands"},
    "model": {"import": "tests.train.toys:Tiny"},
    "method": {"standard": {"kind": "depth", "max_taps": 2}, "loss": "dice"},
    "optimizer": {"epochs": 3, "batch_size": 4, "lr": 1e-2},
    "compute": {"device": "cpu", "precision": "float32", "threads": 1},
}


def toy_run(**dotted: Any) -> Run:
    """The base run with dotted settings, whose dots are written as double underscores."""
    return make_run(BASE, {key.replace("__", "."): value for key, value in dotted.items()})


def without_clock(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith(("time/", "images_per_s", "memory/"))}
