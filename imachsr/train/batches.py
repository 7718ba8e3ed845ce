"""Shuffled, augmented batches, epoch after epoch."""

import contextlib
import os
import signal
import threading
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from imachsr.config.plan import Plan
from imachsr.config.schema import ConfigError, Run
from imachsr.config.training import Compute
from imachsr.data.samples import Samples
from imachsr.data.transforms import augment_batch, shrunk
from imachsr.train.device import Machine, decide

Batch = tuple[Tensor, Tensor]
MOST_WORKERS = 8
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def batch_size(run: Run, count: int, world: int) -> int:
    """Samples a step over all ranks: ``optimizer.batch_size``, or all of them when there are fewer, of which :class:`Batches` warns.

    Raises:
        ConfigError: If that is not a sample for each micro-batch of each rank.
    """
    size = min(run.optimizer.batch_size, count)
    if size < world:
        raise ConfigError(
            f"`optimizer.batch_size` and the number of training samples must be at least {world}, one a worker, "
            f"but the smaller is {size}; lower --workers"
        )
    if size // world < run.optimizer.accumulate:
        raise ConfigError(
            f"`optimizer.accumulate` must be at most {size // world}, the samples of a step that the smallest share of {world} workers has, "
            f"but got {run.optimizer.accumulate}; lower it, or raise optimizer.batch_size"
        )
    return size


def loader_workers(compute: Compute, *, device: str, cores: int, ranks: int) -> int:
    """Processes that prepare a rank's batches ahead; 0 prepares each in the training process when it is due.

    "auto" is 0 on a CPU, since the cores that would prepare are those that train. With a GPU it is ``threads``, which a trial has from what it
    reserved of a machine that others share, or else a rank's share of the cores but one.

    Args:
        compute: The setting.
        device: Where the step runs, "cpu" or "cuda".
        cores: That this process may use, >= 1.
        ranks: That share them, >= 1.
    """
    if compute.loader_workers != "auto":
        return compute.loader_workers
    own = cores // ranks - 1 if compute.threads is None else compute.threads
    return max(0, min(MOST_WORKERS, own)) if device == "cuda" else 0


class Batches:
    """This rank's share of every step: normalised images ``[b, 3, H, W]`` and int64 labels ``[b, H, W]``.

    A step has ``batch_size`` samples, of which rank r takes every world-th from the r-th: the shares differ by one sample at most. The order
    depends on (seed, epoch), a sample's augmentation on (seed, epoch, sample): neither on the number of ranks, threads or processes. The last
    samples that fill no batch are left out; in another epoch they are others. Processes that prepare batches start with the first epoch and end
    with this object, or with the process that owns it.

    Args:
        samples: What to train on.
        run: Seed, batch size, augmentation and where the step runs.
        rank: 0..world-1.
        world: Number of workers.

    Attributes:
        steps: In an epoch over all samples.

    Raises:
        ConfigError: If there are more ranks than samples in a batch.
    """

    def __init__(self, samples: Samples, run: Run, *, rank: int = 0, world: int = 1) -> None:
        self._size, self._share, self._seed = batch_size(run, len(samples), world), slice(rank, None, world), run.seed
        self.steps = len(samples) // self._size
        self._epochs = Plan(run=run, full=self.steps)
        self._count = len(samples)
        if self._size < run.optimizer.batch_size and rank == 0:
            told = f"`optimizer.batch_size` must be at most {len(samples)}, the number of training samples, but got {run.optimizer.batch_size}"
            warnings.warn(f"{told}; a step takes all {len(samples)}", stacklevel=2)
        self._plan: list[_Step] = []
        placement = decide(run.compute, Machine.here())
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", world))
        workers = loader_workers(run.compute, device=placement.device, cores=cores, ranks=ranks)
        self._loader: DataLoader[Batch] = DataLoader(
            _Augmented(samples, run, placement.is_channels_last),
            batch_size=None,  # an item is a batch
            sampler=self._plan,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=placement.device == "cuda",
            worker_init_fn=_leave_signals,
            # Of the loader's own draws, so that a model's dropout draws the same with any number of processes.
            generator=torch.Generator().manual_seed(run.seed),
        )

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from a step on, as they are when all come; one epoch at a time.

        Args:
            epoch: 1-based.
            start: Steps that are done, 0..steps.

        Raises:
            RuntimeError: If a process ends before its time.
        """
        steps = self._epochs.steps(epoch)
        if not 0 <= start <= steps:
            raise ValueError(f"`0 <= start <= {steps}` must hold, but got {start}")
        order = torch.randperm(self._count, generator=torch.Generator().manual_seed(self._seed * 1_000_003 + epoch))
        firsts = range(start * self._size, steps * self._size, self._size)
        self._plan[:] = [(epoch, order[first : first + self._size][self._share]) for first in firsts]
        with explained():
            try:
                yield from self._loader
            except (ConnectionError, EOFError) as error:  # it died while it handed a batch over
                raise RuntimeError(f"DataLoader worker was lost ({error or type(error).__name__})") from error


def _leave_signals(worker: int) -> None:
    """Leave SIGINT and SIGTERM, which come to the whole process group, to the training, which ends this process when its checkpoint is written."""
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    threading.Thread(target=_heed_parent, daemon=True).start()


def _heed_parent() -> None:
    """End when the training process says so: it does to a process that hangs, and waits for it."""
    while signal.sigwaitinfo(_SIGNALS).si_pid != os.getppid():
        pass
    os._exit(0)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Say what to do when a process that prepares batches dies: torch raises that wherever the training happens to be.

    Raises:
        RuntimeError: If one does.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error) or "compute.loader_workers" in str(error):
            raise
        raise RuntimeError(f"a process that prepares batches must live, but: {error}; set compute.loader_workers=0 to do without") from error


def batches(samples: Samples, run: Run, *, epoch: int, rank: int = 0, world: int = 1, start: int = 0) -> Iterator[Batch]:
    """One epoch of :class:`Batches`, whose processes end with it."""
    return Batches(samples, run, rank=rank, world=world).epoch(epoch, start=start)


_Step = tuple[int, Tensor]
"""Epoch, and indices of the samples."""


class _Augmented(Dataset[Batch]):
    """The batch that a step is made of; without a state, so that any process makes the same."""

    def __init__(self, samples: Samples, run: Run, is_channels_last: bool) -> None:
        self._samples, self._spec, self._seed, self._is_channels_last = samples, run.augment, run.seed, is_channels_last
        self._plan = Plan(run=run, full=1)

    def __getitem__(self, step: _Step) -> Batch:
        epoch, index = step
        images, labels = augment_batch(
            self._samples.images[index],
            self._samples.labels[index],
            spec=self._spec,
            seed=self._seed,
            epoch=epoch,
            indices=index.tolist(),
            is_channels_last=self._is_channels_last,
        )
        height, width = images.shape[-2:]
        return shrunk(images, labels, self._plan.size(epoch, height, width))
