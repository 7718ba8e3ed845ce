"""Seeded augmentation of whole batches, and normalisation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from imachsr.core.types import IGNORE_INDEX

# Channel means and deviations of ImageNet, which pretrained encoders expect.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random flips, zooms with shifts, and photometric jitter.

    Args:
        flip: Probability of a horizontal flip, in [0, 1].
        scale: Range of the zoom; above 1 crops, below 1 pads with ignored pixels.
        jitter: Largest relative change of brightness and contrast, in [0, 1).
    """

    flip: float = 0.5
    scale: tuple[float, float] = (0.75, 1.5)
    jitter: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1:
            raise ValueError(f"`0 <= flip <= 1` must hold, but got {self.flip}")
        if not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise ValueError(f"`0 < scale[0] <= scale[1] < inf` must hold, but got {self.scale}")
        if not 0 <= self.jitter < 1:
            raise ValueError(f"`0 <= jitter < 1` must hold, but got {self.jitter}")


def normalize(images: Tensor) -> Tensor:
    """float32 ``[B, 3, H, W]`` from uint8: (x / 255 - mean) / std."""
    mean, std = (torch.tensor(values, device=images.device).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def augment_batch(images: Tensor, labels: Tensor, *, spec: Augment, seed: int, epoch: int, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Augment and normalise; what happens to a sample depends on (seed, epoch, its index) only, never on its batch or worker.

    Args:
        images: uint8 ``[B, 3, H, W]``.
        labels: uint8 ``[B, H, W]``.
        spec: What may happen.
        seed: Of the run, >= 0.
        epoch: >= 0.
        indices: The B samples' indices in their split.

    Returns:
        Normalised float32 ``[B, 3, H, W]`` and int64 ``[B, H, W]``; pixels outside the image are 0 (the mean colour) and ignored.
    """
    draws = np.stack([np.random.default_rng([seed, epoch, index]).random(6) for index in indices])
    low, high = spec.scale
    zoom = low * (high / low) ** draws[:, 1]
    room = np.abs(1 - 1 / zoom)  # how far the window may move, in half image sizes
    theta = np.zeros((len(indices), 2, 3), np.float32)
    theta[:, 0, 0] = np.where(draws[:, 0] < spec.flip, -1, 1) / zoom
    theta[:, 1, 1] = 1 / zoom
    theta[:, :, 2] = (2 * draws[:, 2:4] - 1) * room[:, None]
    grid = F.affine_grid(torch.from_numpy(theta).to(images.device), [len(indices), 1, *images.shape[-2:]], align_corners=False)
    contrast, brightness = (torch.from_numpy(1 + spec.jitter * (2 * draws[:, i] - 1)).float().to(images.device).view(-1, 1, 1, 1) for i in (4, 5))
    x = images.float()
    centre = x.mean((1, 2, 3), keepdim=True)
    x = ((x - centre) * contrast + centre * brightness).clamp(0, 255)
    x = F.grid_sample(normalize(x), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    # One more than the label, so that the zeros outside the image can be told from class 0.
    y = F.grid_sample(labels.unsqueeze(1).float() + 1, grid, mode="nearest", padding_mode="zeros", align_corners=False).squeeze(1).long() - 1
    return x, torch.where(y < 0, IGNORE_INDEX, y)
