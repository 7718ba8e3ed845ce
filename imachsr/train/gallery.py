"""What scores look like: a few of the scored images, the same in every training on the same data, and the counts behind the numbers."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imachsr.data.samples import Samples
from imachsr.files import write_atomic
from imachsr.train.metrics import ConfusionMatrix, Reliability
from imachsr.train.parallel import gathered, rank_and_world

SAMPLES, LAST, BEST = "samples.npz", "evaluation.npz", "evaluation_best.npz"
SHOWN = 4
WIDTH = 320
"""Columns of what is kept, at most; larger images are thinned out."""


class Gallery:
    """Keeps predictions for a few images, evenly spread over what is scored, and the counts of all.

    Files, read by ``numpy.load``: ``samples.npz`` with ``images`` (uint8 ``[N, 3, H, W]``), ``labels`` (uint8 ``[N, H, W]``, 255: ignored), ``index``
    (int64 ``[N]``, of the samples), ``names`` (of the samples) and ``class_names``. ``evaluation.npz`` of the last epoch that was scored and
    ``evaluation_best.npz`` of the best one, with ``predicted`` (uint8 ``[N, H, W]``), ``confusion`` (int64 ``[K, K]``, rows by label),
    ``reliability`` (float64 ``[3, bins]``: pixels, sum of their confidence, those that are right), ``epoch`` and ``score`` (mIoU, percent).

    Args:
        samples: What is scored.
        class_names: K names.
    """

    def __init__(self, samples: Samples, class_names: Sequence[str]) -> None:
        count = min(SHOWN, len(samples))
        self._index = [number * len(samples) // count for number in range(count)]
        self._places = {index: place for place, index in enumerate(self._index)}
        self._every = max(1, math.ceil(samples.images.shape[-1] / WIDTH))
        self._samples, self._class_names = samples, tuple(class_names)
        self._predicted: dict[int, Any] = {}
        self._counts: dict[str, Any] = {}

    def note(self, index: Sequence[int], predicted: Tensor) -> None:
        """Keep what is predicted, int64 ``[B, H, W]``, for samples of these numbers, where they are shown."""
        for row, number in enumerate(index):
            if number in self._places:
                self._predicted[self._places[number]] = self._thinned(predicted[row]).to(torch.uint8).cpu().numpy()

    def note_counts(self, matrix: ConfusionMatrix, reliability: Reliability) -> None:
        """Keep the counts of all samples, of all ranks."""
        self._counts = {"confusion": matrix.counts.numpy(), "reliability": reliability.sums.numpy()}

    def save(self, folder: Path, *, epoch: int, score: float, is_best: bool) -> None:
        """Write what was noted; every rank must call, and rank 0 writes."""
        shares: Any = gathered(self._predicted)
        if rank_and_world()[0] != 0:
            return
        if not (folder / SAMPLES).exists():
            shown = self._samples.subset(self._index)
            arrays = {"images": self._thinned(shown.images).numpy(), "labels": self._thinned(shown.labels).numpy()}
            _write(folder / SAMPLES, **arrays, index=self._index, names=shown.names, class_names=self._class_names)
        own = {place: image for share in shares for place, image in share.items()}
        predicted = np.stack([own[place] for place in sorted(own)])
        for name in (LAST, BEST) if is_best else (LAST,):
            _write(folder / name, predicted=predicted, **self._counts, epoch=epoch, score=score)

    def _thinned(self, images: Tensor) -> Tensor:
        return images[..., :: self._every, :: self._every]


def _write(path: Path, **arrays: Any) -> None:
    write_atomic(path, lambda file: np.savez_compressed(file, **arrays))
