"""Sums and means over the ranks of a data-parallel training.

DistributedDataParallel averages the gradients of the ranks. A loss that is a mean over *all* valid pixels must therefore divide by the mean
count of the ranks, not by its own count; a loss of sums (Dice) must see the sums of all ranks. Both are decided here.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """How many processes share the batch.

    Attributes:
        world: Number of ranks; 1 outside of a data-parallel training.

    """

    world: int = 1

    @staticmethod
    def here() -> "Ranks":
        """The ranks of the default process group."""
        return Ranks(world=dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1)

    def mean(self, count: Tensor) -> Tensor:
        """The mean of a quantity without gradient over the ranks."""
        if self.world == 1:
            return count
        return _total(count) / self.world

    def sum(self, local: Tensor) -> Tensor:
        """The sum over the ranks; averaged over them, its gradient is that of one process with the joined batch."""
        if self.world == 1:
            return local
        return _total(local) + self.world * (local - local.detach())


def _total(local: Tensor) -> Tensor:
    # Memory is summed as it lies: an axis order that hangs on a rank's batch size (of an einsum) would mix up the entries.
    total = local.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


_PARALLEL = {"DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"}


def parallel_kind(module: nn.Module) -> str | None:
    """The class that reduces a module's gradients over the ranks, or None."""
    return next((base.__name__ for base in type(module).__mro__ if base.__name__ in _PARALLEL), None)


def refuse_parallel(model: nn.Module) -> None:
    """Refuse a model whose gradients are reduced without those of adapters that are built around it now.

    Raises:
        ValueError: If the model, or a part of it, is in DistributedDataParallel or sharded.

    """
    for name, module in model.named_modules():
        kind = parallel_kind(module)
        if kind is not None:
            raise ValueError(
                f"`model` must be wrapped before it is made data-parallel, but {name or 'it'!r} is a {kind} already, which would not see the "
                "adapters; wrap it first, then pass the net to DistributedDataParallel, or its parts and then the net to fully_shard"
            )


def check_parallel(net: nn.Module, backbone: nn.Module) -> None:
    """Refuse a step in which the backbone's gradients are reduced over the ranks, and the adapters' are not.

    Raises:
        RuntimeError: If the backbone alone is in DistributedDataParallel or sharded.

    """
    kind = parallel_kind(backbone)
    if kind is not None and parallel_kind(net) is None:
        raise RuntimeError(
            f"the whole net must be data-parallel, but only its backbone is a {kind}, so that each rank would train adapters of its own; "
            "pass the net to DistributedDataParallel, or the backbone's parts and then the net to fully_shard"
        )
