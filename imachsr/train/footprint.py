"""What a training will take, from a few steps on a few images."""

import contextlib
import ctypes
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from imachsr.config.build import build_net, build_optimizer
from imachsr.config.schema import Run
from imachsr.core.output import CrossEntropy
from imachsr.data.samples import Samples
from imachsr.data.transforms import normalize
from imachsr.train.device import Machine, decide
from imachsr.train.score import images_at_once, score
from imachsr.train.step import train_step

FEW = (2, 4)
"""Images of the two batches that are tried; BatchNorm over a pooled feature wants more than one."""


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Of a worker.

    Attributes:
        memory_mib: Peak memory, MiB: of the GPU, or of the process with everything that is in it.
        step_ms: Time of a training step, milliseconds.
    """

    memory_mib: float
    step_ms: float


class TooLargeError(RuntimeError):
    """The few images did not fit already."""


def measure(run: Run, samples: Samples, *, workers: int = 1) -> Footprint:
    """Train a few steps of a net that is thrown away, with 2 and 4 images, follow the line through both to a worker's whole batch, and score one.

    Time and memory of convolutions grow in proportion to the images, above a floor that both batches share. The training that follows is not
    touched: it draws from its own generators.

    Args:
        run: All settings; ``compile`` and ``recompute`` are left out, so that with the latter more is told than will be taken.
        samples: To train on.
        workers: That share a batch, >= 1.

    Raises:
        TooLargeError: If memory runs out.
    """
    whole = max(1, min(run.optimizer.batch_size, len(samples)) // workers // run.optimizer.accumulate)
    sizes = sorted({min(size, whole) for size in FEW})
    if run.compute.threads is not None:
        torch.set_num_threads(run.compute.threads)
    placement = decide(run.compute, Machine.here())
    peak = _Peak(placement.device)
    found: list[tuple[float, float]] = []
    with torch.random.fork_rng(devices=[]), _running_out():
        size = (samples.images.shape[-2], samples.images.shape[-1])
        net = build_net(run, num_classes=run.data.num_classes, size=size, samples=samples, steps_per_epoch=1, device=placement.device)
        placement.put_net(net)
        optimizer, scheduler = build_optimizer(run, net, 1)
        net.train()
        for count in sizes:
            index = torch.arange(count) % len(samples)
            images, labels = normalize(samples.images[index]), samples.labels[index].long()
            peak.reset()
            seconds = []
            for _ in range(2):  # the first one also chooses kernels and makes the optimizer's state
                before = time.perf_counter()
                train_step(net, images, labels, optimizer=optimizer, scheduler=scheduler, placement=placement)
                peak.wait()
                seconds.append(time.perf_counter() - before)
            found.append((peak.mib(), 1e3 * seconds[-1]))
        optimizer.zero_grad(set_to_none=True)
        peak.reset()
        batch = images_at_once(run, workers=workers)
        shown = samples.subset([number % len(samples) for number in range(batch)])
        score(net.backbone, shown, run.data.class_names, loss=CrossEntropy(), placement=placement, prefix="tried", batch=batch)
        peak.wait()
        scoring = peak.mib()
    memory, step = ([pair[which] for pair in found] for which in (0, 1))
    return Footprint(memory_mib=max(scoring, _extended(sizes, memory, whole)), step_ms=_extended(sizes, step, whole))


def _extended(sizes: list[int], values: list[float], size: int) -> float:
    """The line through the values, which never falls, at a size from the largest on."""
    if len(sizes) == 1:
        return values[0]
    slope = max(0.0, (values[1] - values[0]) / (sizes[1] - sizes[0]))
    return values[1] + slope * (size - sizes[1])


@contextlib.contextmanager
def _running_out() -> Iterator[None]:
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise TooLargeError(str(error)) from None
    except RuntimeError as error:
        if "not enough memory" in str(error) or "out of memory" in str(error):
            raise TooLargeError(str(error)) from None
        raise


class _Peak:
    """Largest memory since a moment."""

    def __init__(self, device: str) -> None:
        self._is_gpu = device == "cuda"

    def reset(self) -> None:
        if self._is_gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            # What earlier trainings freed is kept by the allocator, and would hide what this one takes.
            with contextlib.suppress(OSError, AttributeError):  # glibc's alone
                ctypes.CDLL(None).malloc_trim(0)
            with contextlib.suppress(OSError):  # without it (macOS, some containers) it is the peak since the process began
                Path("/proc/self/clear_refs").write_text("5")

    def wait(self) -> None:
        if self._is_gpu:
            torch.cuda.synchronize()

    def mib(self) -> float:
        if self._is_gpu:
            return torch.cuda.max_memory_allocated() / 2**20
        return _status("VmHWM")


def _status(name: str) -> float:
    """A line of /proc/self/status, MiB; 0 where there is none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) / 1024
    return 0.0


def fair_share_mib(device: str, *, trials: int, limits: Callable[[], list[float]] | None = None) -> float:
    """Memory that each of so many trials on this machine may take, MiB: nine tenths of the GPU's, or of the machine's or its container's.

    Args:
        device: "cpu" or "cuda".
        trials: At a time, >= 1.
        limits: Gives the candidates for a machine's memory, MiB, of which the least counts; those of this machine when None.
    """
    if device == "cuda":
        return 0.9 * torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / 2**20 / trials
    return 0.9 * min((limits or _machine_mib)()) / trials


def _machine_mib() -> list[float]:
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # "max": no limit
            found.append(int(Path(path).read_text()) / 2**20)
    return found
