"""Which steps an epoch has, and on what, when a training begins with less than everything."""

import math
from dataclasses import dataclass

from imachsr.config.schema import Run

STRIDE = 32
"""Sides of smaller images are multiples of it, as networks want them."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Of a run's epochs, which are equal unless ``optimizer.progressive`` says otherwise.

    Args:
        run: Its epochs, and how they grow.
        full: Steps of an epoch over all samples, >= 1.
    """

    run: Run
    full: int

    def share(self, epoch: int) -> float:
        """Of the samples or pixels that an epoch (1-based) has, in (0, 1]."""
        growth = self.run.optimizer.progressive
        if growth is None:
            return 1.0
        return next((share for until, share in zip(growth.until, growth.shares, strict=True) if epoch <= until), 1.0)

    def steps(self, epoch: int) -> int:
        """Of an epoch, >= 1."""
        growth = self.run.optimizer.progressive
        return self.full if growth is None or growth.of != "data" else max(1, round(self.full * self.share(epoch)))

    def before(self, epoch: int) -> int:
        """Steps of all epochs before one."""
        if self.run.optimizer.progressive is None:
            return (epoch - 1) * self.full
        return sum(self.steps(each) for each in range(1, epoch))

    @property
    def total(self) -> int:
        """Steps of the training."""
        return self.before(self.run.optimizer.epochs + 1)

    def is_end(self, step: int) -> bool:
        """Whether an epoch is over after so many steps."""
        if self.run.optimizer.progressive is None:
            return step % self.full == 0
        return any(self.before(epoch + 1) == step for epoch in range(1, self.run.optimizer.epochs + 1))

    def time(self, step: int) -> float:
        """Where a step (0-based) lies in the schedule of the learning rate: steps, as if all epochs had all of them."""
        if self.run.optimizer.progressive is None:
            return step
        epoch = 1
        while epoch < self.run.optimizer.epochs and step >= self.before(epoch + 1):
            epoch += 1
        return (epoch - 1) * self.full + (step - self.before(epoch)) * self.full / self.steps(epoch)

    def size(self, epoch: int, height: int, width: int) -> tuple[int, int]:
        """Of an epoch's images, pixels; those given where the images do not grow, or their share of them in multiples of 32."""
        growth, share = self.run.optimizer.progressive, self.share(epoch)
        if growth is None or growth.of != "resolution" or share == 1:
            return height, width
        scale = math.sqrt(share)
        smaller = (max(STRIDE, round(side * scale / STRIDE) * STRIDE) for side in (height, width))
        sides = tuple(min(side, small) for side, small in zip((height, width), smaller, strict=True))
        return sides[0], sides[1]
