"""What the ranks of a data-parallel training share: gradients, buffers, decisions and numbers."""

import contextlib
import io
import math
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from imachsr.config.schema import ConfigError
from imachsr.config.training import Compute
from imachsr.train.device import Placement

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

Row = dict[str, float]
T = TypeVar("T")
PIECE_BYTES = 64 * 2**20
"""Of a state that is sent at a time: NCCL sends from the GPU's memory, which the model may fill."""


def rank_and_world() -> tuple[int, int]:
    """This process's number, and how many there are; (0, 1) outside of torch.distributed."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


def agree(*flags: bool) -> tuple[bool, ...]:
    """For each flag, whether any rank has set it: what ranks do next must be the same on all of them."""
    if rank_and_world()[1] == 1:
        return flags
    shared = torch.tensor(flags, dtype=torch.uint8, device=_device())
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return tuple(bool(flag) for flag in shared.tolist())


def wait_for_all() -> None:
    """Return when every rank is here."""
    if rank_and_world()[1] > 1:
        dist.barrier()


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of every rank's tensor; it stays where it is."""
    if rank_and_world()[1] == 1:
        return tensor
    shared = tensor.to(_device(), copy=True)
    dist.all_reduce(shared)
    return shared.to(tensor.device)


def summed(*counts: int) -> tuple[int, ...]:
    """For each count, the sum over the ranks."""
    return tuple(sum_over_ranks(torch.tensor(counts)).tolist())


def from_rank(source: int, read: Callable[[], dict[str, Any] | None]) -> dict[str, Any] | None:
    """The state that one rank reads, or what it raises, on every rank; every rank must call, and name the same one."""
    rank, world = rank_and_world()
    if world == 1:
        return read()
    state: dict[str, Any] | None = None
    error: Exception | None = None
    data = memoryview(b"")
    if rank == source:
        try:
            if (state := read()) is not None:
                torch.save(state, file := io.BytesIO())
                data = file.getbuffer()
        except Exception as found:
            error = found
    size, error = _sent((len(data), error), source)
    if error is not None:
        raise error
    pieces = [_sent(bytes(data[start : start + PIECE_BYTES]), source) for start in range(0, size, PIECE_BYTES)]
    if rank == source or not pieces:
        return state
    received: dict[str, Any] = torch.load(io.BytesIO(b"".join(pieces)), map_location="cpu", weights_only=True)
    return received


def _sent(value: Any, source: int) -> Any:
    """One rank's value."""
    box = [value]
    dist.broadcast_object_list(box, src=source)
    return box[0]


# FSDP takes long to import, and few trainings need it: where it was not imported, nothing is shared out.
def _is_sharded(module: nn.Module) -> "TypeGuard[FSDPModule]":
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def _is_distributed(tensor: Tensor) -> "TypeGuard[DTensor]":
    distributed = sys.modules.get("torch.distributed.tensor")
    return distributed is not None and isinstance(tensor, distributed.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The tensor, put together from its parts on all ranks where FSDP has shared it out."""
    return tensor.full_tensor() if _is_distributed(tensor) else tensor


def gathered(value: T) -> list[T]:
    """Every rank's value, in rank order; plain values and small tensors."""
    world = rank_and_world()[1]
    if world == 1:
        return [value]
    values: list[Any] = [None] * world
    dist.all_gather_object(values, value)
    return values


def mean_over_ranks(row: Row) -> Row:
    """The mean of every rank's row, so that all of them report the same; a key that a rank lacks counts where it is there."""
    rows = gathered(row)
    keys = dict.fromkeys(key for each in rows for key in each)
    return {key: math.fsum(each[key] for each in rows if key in each) / sum(key in each for each in rows) for key in keys}


def parallelise(net: nn.Module, compute: Compute, placement: Placement) -> nn.Module:
    """The module whose forward and backward the ranks share; ``net`` itself for one rank, and under FSDP, which shards it in place.

    The steps are those of one process with the joined batch, to rounding, but for BatchNorm: without ``sync_batch_norm`` each rank normalises by
    its own images (weights 0.1 % apart after 20 steps of SGD with 3 images a rank), and rank 0's running statistics are those that are kept.

    Raises:
        ConfigError: If SyncBatchNorm is asked for without GPUs.

    """
    if rank_and_world()[1] == 1:
        return net
    if compute.sync_batch_norm:
        if placement.device != "cuda":
            raise ConfigError("`compute.sync_batch_norm` must be off on CPUs, where torch has no SyncBatchNorm, but is on; or use GPUs")
        net = synchronise_batch_norm(net)
    if compute.parallel == "fsdp":
        return _shard(net, placement)
    devices = [torch.cuda.current_device()] if placement.device == "cuda" else None
    # A user's model may hold parameters that its output does not depend on, and a tap may not fire on one rank.
    return DistributedDataParallel(net, device_ids=devices, find_unused_parameters=True, gradient_as_bucket_view=True)


def _shard(net: nn.Module, placement: Placement) -> nn.Module:
    net = net.to(memory_format=torch.contiguous_format)  # FSDP shares out no weights that lie NHWC
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(placement.device, (dist.get_world_size(),))
    for part in _parts(net.get_submodule("backbone")):
        if any(True for _ in part.parameters()):
            fully_shard(part, mesh=mesh)
    fully_shard(net, mesh=mesh)  # in place: the class of the module changes
    return net


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """What is sharded by itself: the children, of lists and mappings of modules, which have no forward, the members."""
    for child in module.children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield from _parts(child)
        else:
            yield child


def synchronise_batch_norm(net: nn.Module) -> nn.Module:
    """Turn BatchNorm into SyncBatchNorm; hooks, which torch's conversion forgets, stay."""
    hooks = {name: module._forward_hooks for name, module in net.named_modules() if isinstance(module, _BatchNorm)}
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    for name, module in converted.named_modules():
        if name in hooks:
            module._forward_hooks = hooks[name]
    return converted


@contextlib.contextmanager
def synchronised(net: nn.Module, *, is_last: bool) -> Iterator[None]:
    """Share gradients over the ranks with the last micro-batch of a step only."""
    if _is_sharded(net):
        net.set_requires_gradient_sync(is_last)
    with net.no_sync() if isinstance(net, DistributedDataParallel) and not is_last else contextlib.nullcontext():
        yield


def start_over(net: nn.Module) -> None:
    """Forget a step that was broken off in a forward or behind one; every rank must call.

    FSDP keeps gradients of micro-batches before the last one, and what it was about to gather, apart from the parameters that the optimizer sees.
    """
    parts: list[Any] = [part for part in net.modules() if _is_sharded(part)]
    if not _is_sharded(net):
        return
    net.reset_iter_state()
    for part in parts:
        part.unshard()
        for parameter in part.parameters():
            parameter.grad = None
        part.reshard()


@torch.no_grad()
def share_buffers(net: nn.Module) -> None:
    """Give every rank the buffers of rank 0, whose model is saved: each has gathered BatchNorm's statistics from other images."""
    if rank_and_world()[1] == 1:
        return
    for buffer in net.buffers():
        shared = buffer.contiguous()
        dist.broadcast(shared, src=0)
        buffer.copy_(shared)
