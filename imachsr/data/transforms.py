"""Seeded augmentation of whole batches, and normalisation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
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


def augment_batch(
    images: Tensor, labels: Tensor, *, spec: Augment, seed: int, epoch: int, indices: Sequence[int], is_channels_last: bool = False
) -> tuple[Tensor, Tensor]:
    """Augment and normalise; what happens to a sample depends on (seed, epoch, its index) only, never on its batch, worker or thread.

    Args:
        images: uint8 ``[B, 3, H, W]``, on the CPU.
        labels: uint8 ``[B, H, W]``, on the CPU.
        spec: What may happen.
        seed: Of the run, >= 0.
        epoch: >= 0.
        indices: The B samples' indices in their split.
        is_channels_last: Whether the result is laid out NHWC.

    Returns:
        Normalised float32 ``[B, 3, H, W]`` and int64 ``[B, H, W]``; pixels outside the image are 0 (the mean colour) and ignored.
    """
    count, _, height, width = images.shape
    changes = _draw(spec, seed, epoch, indices, (height, width))
    layout = torch.channels_last if is_channels_last else torch.contiguous_format
    x = torch.empty(images.shape, memory_format=layout)
    y = torch.full(labels.shape, IGNORE_INDEX, dtype=torch.int64)
    # As many samples at once as stay in the processor's cache, but one a thread, since grid_sample shares samples out over threads.
    group = max(torch.get_num_threads(), _CACHED_PIXELS // (height * width))
    for start in range(0, count, group):
        part = slice(start, min(start + group, count))
        x[part] = _sample(images[part], changes.part(part))
    sources, targets = labels.numpy(), y.numpy()
    for source, target, down, right in zip(sources, targets, changes.down, changes.right, strict=True):
        _take(source, target, down, right)
    return x, y


_CACHED_PIXELS = 1 << 17


@dataclass(frozen=True)
class _Changes:
    """What happens to B samples: where the output's rows ``[B, H]`` and columns ``[B, W]`` lie in the source (-1..1), and factors ``[B]``."""

    down: NDArray[np.float32]
    right: NDArray[np.float32]
    contrast: NDArray[np.float64]
    brightness: NDArray[np.float64]

    def part(self, part: slice) -> "_Changes":
        return _Changes(self.down[part], self.right[part], self.contrast[part], self.brightness[part])


def _draw(spec: Augment, seed: int, epoch: int, indices: Sequence[int], size: tuple[int, int]) -> _Changes:
    draws = np.stack([np.random.default_rng([seed, epoch, index]).random(6) for index in indices])
    low, high = spec.scale
    zoom = low * (high / low) ** draws[:, 1]
    room = np.abs(1 - 1 / zoom)  # how far the window may move, in half image sizes
    move = (2 * draws[:, 2:4] - 1) * room[:, None]
    mirror = np.where(draws[:, 0] < spec.flip, -1, 1)
    # No rotation or shear: rows and columns move apart from each other.
    right, down = (
        ((sign / zoom)[:, None] * ((2 * np.arange(count) + 1) / count - 1) + shift[:, None]).astype(np.float32)
        for sign, count, shift in ((mirror, size[1], move[:, 0]), (1, size[0], move[:, 1]))
    )
    contrast, brightness = (1 + spec.jitter * (2 * draws[:, column] - 1) for column in (4, 5))
    return _Changes(down, right, contrast, brightness)


def _sample(images: Tensor, changes: _Changes) -> Tensor:
    """Jitter, clip and normalise in one affine step, then sample; normalised before, so that 0 outside of the image is the mean colour."""
    count, _, height, width = images.shape
    x = images.float()
    # Sums of rows are whole numbers below 2^24, exact in any order: no thread count changes the mean.
    centre = x.sum(-1).double().sum((1, 2)).numpy() / (3 * height * width)
    mean, std = np.array(MEAN), np.array(STD)
    scale = changes.contrast[:, None] / (255 * std)
    shift = (centre * (changes.brightness - changes.contrast))[:, None] / (255 * std) - mean / std
    factor, addend, lowest, highest = (
        torch.from_numpy(values.astype(np.float32)).view(-1, 3, 1, 1) for values in (scale, shift, -mean / std, (1 - mean) / std)
    )
    x.mul_(factor).add_(addend)
    torch.minimum(torch.maximum(x, lowest, out=x), highest, out=x)
    right = torch.from_numpy(changes.right)[:, None, :].expand(count, height, width)
    down = torch.from_numpy(changes.down)[:, :, None].expand(count, height, width)
    return F.grid_sample(x, torch.stack((right, down), -1), mode="bilinear", padding_mode="zeros", align_corners=False)


def _take(source: NDArray[np.uint8], target: NDArray[np.int64], down: NDArray[np.float32], right: NDArray[np.float32]) -> None:
    """Nearest labels of one sample, where the target lies inside of the source."""
    height, width = source.shape
    rows, columns = (np.rint((at + 1) * np.float32(count / 2) - np.float32(0.5)).astype(np.int64) for at, count in ((down, height), (right, width)))
    inside, across = (np.flatnonzero((at >= 0) & (at < count)) for at, count in ((rows, height), (columns, width)))
    if len(inside) and len(across):  # each is a run without gaps, since positions are monotonous
        target[inside[0] : inside[-1] + 1, across[0] : across[-1] + 1] = source[rows[inside]].take(columns[across], 1)


def shrunk(images: Tensor, labels: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Images ``[B, 3, H, W]`` as means over what a smaller pixel covers, and labels ``[B, H, W]`` from its middle, at a smaller size ``(h, w)``."""
    if size == (labels.shape[-2], labels.shape[-1]):
        return images, labels
    small = F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)
    return small, F.interpolate(labels[:, None].float(), size=size, mode="nearest-exact")[:, 0].long()
