"""Which faults of a worker are worth another try, and how one that hangs is ended."""

import contextlib
import faulthandler
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from ray.exceptions import RayError

from imachsr.config.schema import ConfigError
from imachsr.train.checkpoint import DiskFullError

_STACKS = "hang-worker{}.txt"
_LOST = re.compile(
    r"gloo|nccl|connection (closed|reset|refused|was lost)|broken pipe|socket timeout|timed out|time ?out after|DataLoader worker|"
    r"process that prepares batches|uncorrectable ECC",
    re.IGNORECASE,
)
"""What torch says, by plain RuntimeErrors, of lost peers, of processes that prepare batches, and of memory that is worn out."""
_PEER = re.compile(r"gloo|nccl|connection (closed|reset|was lost)", re.IGNORECASE)
_WAITING = re.compile(
    r'^  File ".*torch/distributed/|\(most recent call first\):\n  File ".*torch/autograd/graph.py", line \d+ in _engine_run_backward$', re.MULTILINE
)
"""Frames of a worker that waits for others: in a collective, or in a backward, which exchanges gradients without a frame of its own."""


def is_worth_a_retry(error: Exception) -> bool:
    """Whether it may come from the machine or the network; what the program or its settings do would only be done again."""
    if isinstance(error, RayError | dist.DistError):
        return True
    if isinstance(error, OSError):
        return not isinstance(error, DiskFullError | PermissionError | FileNotFoundError | NotADirectoryError | IsADirectoryError)
    return isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError) and _LOST.search(str(error)) is not None


def is_of_a_peer(error: Exception) -> bool:
    """Whether a worker failed since another one was gone: its connection tells sooner than Ray that a machine is lost."""
    return _PEER.search(str(error)) is not None


def for_the_driver(error: Exception) -> Exception:
    """The same mistake, of a class that any process can unpickle."""
    if isinstance(error, ValueError):
        return ConfigError(str(error))
    if isinstance(error, FloatingPointError):
        return FloatingPointError(str(error))
    if isinstance(error, DiskFullError):
        return RuntimeError(str(error))
    last = traceback.extract_tb(error.__traceback__)[-1]
    hint = "; set optimizer.accumulate, compute.recompute=true or a smaller optimizer.batch_size" if isinstance(error, torch.OutOfMemoryError) else ""
    return RuntimeError(f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno}){hint}")


def cause(error: BaseException) -> str:
    """Why Ray Train gave up, in one line: the first worker's failure, or the controller's."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    inner = getattr(error, "controller_failure", error)
    who, inner = (f"worker {min(failures)}: ", failures[min(failures)]) if failures else ("", inner)
    inner = getattr(inner, "health_check_failure", inner)
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    told = next((line for line in lines if "exit detail" in line), lines[-1] if lines else type(inner).__name__)
    return who + told.partition("Worker exit detail: ")[2] if "Worker exit detail: " in told else who + told


@contextlib.contextmanager
def hang_guard(minutes: float | None, output: Path, rank: int) -> Iterator[Callable[[], None]]:
    """A call that postpones the end of this process; if it is not called for so long, the stacks of all threads go to a file, and it ends.

    Args:
        minutes: The longest time between two calls, > 0; None: any.
        output: Folder of the file, which is added to.
        rank: Names it.
    """
    if minutes is None:
        yield lambda: None
        return
    output.mkdir(parents=True, exist_ok=True)
    with (output / _STACKS.format(rank)).open("a") as file:

        def postpone() -> None:
            faulthandler.dump_traceback_later(60 * minutes, exit=True, file=file)

        postpone()
        try:
            yield postpone
        finally:
            faulthandler.cancel_dump_traceback_later()


def stacks(output: Path) -> dict[Path, int]:
    """The files that hanging workers have left, and their sizes; those that no worker wrote to are of size 0."""
    return {path: path.stat().st_size for path in sorted(output.glob(_STACKS.format("*")))}


def hung(output: Path, before: dict[Path, int]) -> list[Path]:
    """The files to which workers that hang have added their stacks since.

    Those that wait for others reach the limit in the same moment, and are left out; all are there when each of them waits.

    Args:
        output: The folder.
        before: What :func:`stacks` gave then.
    """
    added = {path: before.get(path, 0) for path, size in stacks(output).items() if size > before.get(path, 0)}
    return [path for path, start in added.items() if not _WAITING.search(path.read_bytes()[start:].decode(errors="replace"))] or list(added)


def sweep(output: Path) -> None:
    """Delete the files that no worker wrote to."""
    for path, size in stacks(output).items():
        if not size:
            path.unlink(missing_ok=True)
