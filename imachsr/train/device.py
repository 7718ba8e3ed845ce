"""Every decision about devices, number formats and memory layout; the only file that knows of them."""

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from imachsr.config.schema import Compute, ConfigError


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What this process has; a plain value, so that decisions can be tested without the hardware.

    Attributes:
        has_cuda: Whether a GPU answers.
        cuda_bfloat16: Whether that GPU multiplies bfloat16.
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
        return Machine(has_cuda=has_cuda, cuda_bfloat16=has_cuda and torch.cuda.is_bf16_supported(), cpu_bfloat16=bool(probe and probe()))


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a run computes.

    Attributes:
        device: Type of device, "cpu" or "cuda".
        is_bfloat16: Whether forwards run under bfloat16 autocast.
        is_channels_last: Whether images and weights are laid out NHWC.
    """

    device: str
    is_bfloat16: bool
    is_channels_last: bool

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Context of the forward."""
        return torch.autocast(self.device, torch.bfloat16) if self.is_bfloat16 else contextlib.nullcontext()

    def put_net(self, net: nn.Module) -> nn.Module:
        """The module on the device, in the layout."""
        net = net.to(self.device)
        return net.to(memory_format=torch.channels_last) if self.is_channels_last else net

    def put_images(self, images: Tensor) -> Tensor:
        """The images on the device, in the layout."""
        images = images.to(self.device, non_blocking=True)
        return images.contiguous(memory_format=torch.channels_last) if self.is_channels_last else images


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
    is_channels_last = (is_bfloat16 or device == "cpu") if compute.channels_last == "auto" else compute.channels_last == "on"
    return Placement(device=device, is_bfloat16=is_bfloat16, is_channels_last=is_channels_last)
