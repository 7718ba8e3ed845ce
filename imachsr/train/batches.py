"""Shuffled, augmented batches of one epoch."""

from collections.abc import Iterator

import torch
from torch import Tensor

from imachsr.config.schema import ConfigError, Run
from imachsr.data.samples import Samples
from imachsr.data.transforms import augment_batch


def batch_size(run: Run, count: int, world: int) -> int:
    """Samples a step over all ranks: ``optimizer.batch_size``, or all of them when there are fewer.

    Raises:
        ConfigError: If that cannot be shared out equally.
    """
    size = min(run.optimizer.batch_size, count)
    if size % world:
        raise ConfigError(f"`optimizer.batch_size` (and the number of training samples) must be a multiple of the {world} workers, but got {size}")
    return size


def batches(samples: Samples, run: Run, *, epoch: int, rank: int = 0, world: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's share of each step: normalised images ``[B / world, 3, H, W]`` and int64 labels.

    The order depends on (seed, epoch), a sample's augmentation on (seed, epoch, sample): neither on the number of workers. The last samples that
    fill no batch are left out; in another epoch they are others.

    Args:
        samples: What to train on.
        run: Seed, batch size and augmentation.
        epoch: 1-based.
        rank: 0..world-1.
        world: Number of workers.
    """
    size = batch_size(run, len(samples), world)
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(run.seed * 1_000_003 + epoch))
    for start in range(0, len(samples) - size + 1, size):
        index = order[start : start + size][rank::world]
        yield augment_batch(samples.images[index], samples.labels[index], spec=run.augment, seed=run.seed, epoch=epoch, indices=index.tolist())
