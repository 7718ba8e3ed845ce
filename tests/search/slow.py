"""A model whose trainings take long enough for something to happen to them."""

import time

from torch import Tensor

from tests.train.toys import Tiny


class Slow(Tiny):
    """Tiny that waits in each step of a training."""

    def __init__(self, num_classes: int, pause: float = 0.1) -> None:
        super().__init__(num_classes)
        self.pause = pause

    def forward(self, images: Tensor) -> Tensor:
        if self.training and len(images) >= 4:  # the trace, before any training, takes batches of two and three
            time.sleep(self.pause)
        scores: Tensor = super().forward(images)
        return scores
