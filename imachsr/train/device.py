"""Every decision about devices, number formats and memory layout; the only file that knows of them."""

import contextlib
import functools
import os
import resource
import sys
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from imachsr.config.schema import ConfigError
from imachsr.config.training import Compute


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What this process has; a plain value, so that decisions can be tested without the hardware.

    Attributes:
        has_cuda: Whether a GPU answers.
        cuda_bfloat16: Whether that GPU multiplies bfloat16 itself; one that emulates it (before Ampere) is slower with it than in float32.
        cpu_bfloat16: Whether the CPU has bfloat16 instructions; without them autocast is slower than float32.
    """

    has_cuda: bool
    cuda_bfloat16: bool
    cpu_bfloat16: bool

    @staticmethod
    def here() -> "Machine":
        """This machine."""
        has_cuda = torch.cuda.is_available()
        probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
        cuda_bfloat16 = has_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
        return Machine(has_cuda=has_cuda, cuda_bfloat16=cuda_bfloat16, cpu_bfloat16=bool(probe and probe()))


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a run computes.

    Attributes:
        device: Type of device, "cpu" or "cuda".
        is_bfloat16: Whether forwards run under bfloat16 autocast.
        is_float16: Whether they run under float16 autocast; the loss is then scaled.
        is_channels_last: Whether images and weights are laid out NHWC.
    """

    device: str
    is_bfloat16: bool
    is_channels_last: bool
    is_float16: bool = False

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Context of the forward."""
        if self.is_bfloat16 or self.is_float16:
            return torch.autocast(self.device, torch.bfloat16 if self.is_bfloat16 else torch.float16)
        return contextlib.nullcontext()

    def scaler(self) -> torch.amp.GradScaler | None:
        """Scaler of the loss, whose gradients float16 would round to 0."""
        return torch.amp.GradScaler(self.device) if self.is_float16 else None

    def put_net(self, net: nn.Module) -> nn.Module:
        """The module on the device, in the layout."""
        net = net.to(self.device)
        if self.is_channels_last:
            for each in (*net.parameters(), *net.buffers()):
                if each.ndim == 4:  # Module.to takes those of five axes too, and then fails
                    each.data = each.data.contiguous(memory_format=torch.channels_last)
        return net

    def put_images(self, images: Tensor) -> Tensor:
        """The images on the device, in the layout."""
        images = images.to(self.device, non_blocking=True)
        return images.contiguous(memory_format=torch.channels_last) if self.is_channels_last else images


def forget_peak(placement: Placement) -> None:
    """Begin to look anew for the largest memory of the GPU: what ran before in this process is not what is told of next."""
    if placement.device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def claim_gpu(placement: Placement) -> None:
    """Make the GPU of this process's number on its machine the current one, under torchrun; Ray Train does so itself."""
    local = os.environ.get("LOCAL_RANK")
    if placement.device == "cuda" and dist.is_initialized() and local is not None:
        number = own_gpu(int(local), current=torch.cuda.current_device(), count=torch.cuda.device_count())
        torch.cuda.set_device(number)


def own_gpu(local_rank: int, *, current: int, count: int) -> int:
    """Number of the GPU that a process takes: another current one than the first was chosen; of a single one there is no choice.

    Args:
        local_rank: Number of the process on its machine, >= 0.
        current: Number of the GPU that is the current one.
        count: GPUs that the process sees, >= 1.

    Raises:
        ConfigError: If there are fewer GPUs than processes.
    """
    if current != 0 or count == 1:
        return current
    if local_rank >= count:
        raise ConfigError(f"the processes on a machine must be at most its {count} GPUs, but there is one of number {local_rank}; start fewer")
    return local_rank


def usage(device: str, rank: int = 0) -> dict[str, float]:
    """What the process has used.

    Args:
        device: Where it computes, "cpu" or "cuda".
        rank: Its number, >= 0; names its GPU.

    Returns:
        ``memory/peak_mib`` (resident); with a GPU also ``gpu/RANK/memory_mib`` (largest allocated) and, where NVML answers,
        ``gpu/RANK/utilization`` (percent of the last second in which it computed).
    """
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, kilobytes elsewhere
    found = {"memory/peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
    if device == "cuda":
        found[f"gpu/{rank}/memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
        if (utilization := _utilization()) is not None:
            found[f"gpu/{rank}/utilization"] = utilization
    return found


def _utilization() -> float | None:
    """Of this process's GPU, in percent; None where NVML does not answer, which is told once."""
    from pynvml import NVMLError

    try:
        return float(torch.cuda.utilization())
    except (NVMLError, RuntimeError, ImportError) as error:  # in containers without the driver's NVML, under MIG, on other makers' GPUs
        _tell_silence(f"{type(error).__name__}: {error}")
        return None


@functools.cache
def _tell_silence(reason: str) -> None:
    warnings.warn(f"gpu/RANK/utilization must come from NVML, but it does not answer ({reason}); it is left out", stacklevel=4)


def decide(compute: Compute, machine: Machine) -> Placement:
    """Turn "auto" into decisions.

    bfloat16 is taken where the hardware multiplies it, NHWC on the CPU and under bfloat16 (benchmarks/step_time.py measures the four cases on a CPU).

    Raises:
        ConfigError: If a GPU is asked for and there is none.
    """
    if compute.device == "cuda" and not machine.has_cuda:
        raise ConfigError("`compute.device` must be a device of this machine, but got 'cuda' and no GPU answers; use auto or cpu")
    device = ("cuda" if machine.has_cuda else "cpu") if compute.device == "auto" else compute.device
    can = machine.cuda_bfloat16 if device == "cuda" else machine.cpu_bfloat16
    is_bfloat16 = can if compute.precision == "auto" else compute.precision == "bfloat16"
    is_float16 = compute.precision == "float16"
    is_channels_last = (is_bfloat16 or is_float16 or device == "cpu") if compute.channels_last == "auto" else compute.channels_last == "on"
    return Placement(device=device, is_bfloat16=is_bfloat16, is_channels_last=is_channels_last, is_float16=is_float16)
