"""The training loop on several Ray Train workers."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from imachsr.cluster import marked, require_reached, require_shared
from imachsr.config.build import build_net
from imachsr.config.schema import ConfigError, Run
from imachsr.data.splits import Selection
from imachsr.train import checkpoint, stored
from imachsr.train.batches import batch_size
from imachsr.train.capacity import await_room, connect, has_shown, may_grow, room
from imachsr.train.courier import Courier
from imachsr.train.desk import Desk
from imachsr.train.faults import sweep
from imachsr.train.parallel import Row
from imachsr.train.ray_session import Session
from imachsr.train.restarts import Monitor, Restart
from imachsr.train.stopping import StopRequest
from imachsr.train.upload import TOLD, Mirror

Workers = int | tuple[int, int]


def check_workers(workers: Workers) -> tuple[int, int]:
    """The smallest and the largest number of workers.

    Raises:
        ConfigError: If they are out of range.
    """
    low, high = workers if isinstance(workers, tuple) else (workers, workers)
    if not 1 <= low <= high:
        raise ConfigError(f"`1 <= workers` must hold, and of a range MIN:MAX `MIN <= MAX`, but got {low if low == high else f'{low}:{high}'}")
    return low, high


def train_distributed(
    run: Run,
    *,
    workers: Workers,
    output: Path,
    report: Callable[[Row], object] = lambda row: None,
    resume: bool = False,
    reported: int | None = None,
    on_step: Callable[[int], object] = lambda step: None,
    on_restart: Callable[[Restart], object] = lambda restart: None,
    say: Callable[[str], object] = lambda line: None,
    courier: Courier | None = None,
    evaluate_on: Literal["val", "select"] = "val",
    selection: Selection | None = None,
    cpus: int = 1,
    is_stopped: Callable[[], bool] = lambda: False,
    on_built: Callable[[dict[str, Any]], object] = lambda facts: None,
) -> None:
    """Train a run data-parallel on several workers; gloo on CPUs, NCCL on GPUs (one each).

    Lost workers are replaced, and go on from the last checkpoint, ``recovery.max_restarts`` times; nodes taken away with notice do not count.

    Args:
        run: All settings; the batch size is the global one.
        workers: Number of processes, >= 1, or the smallest and the largest: the group then shrinks and grows with the cluster.
        output: As in :func:`imachsr.train.loop.train`; on several machines a folder that all of them share, or without it each one's own.
        report: Called in this process with each epoch's row.
        resume: Continue from the checkpoint in ``output``.
        reported: As in :func:`imachsr.train.loop.train`.
        on_step: Called in this process about once a second with the steps done.
        on_restart: Called when a new worker group has done its first step.
        say: Called with a line for the user when there is something to wait for.
        courier: To the storage that the training is kept in, after :func:`imachsr.train.stored.prepare`; machines then need not share a folder.
        evaluate_on: As in :func:`imachsr.train.loop.train`.
        selection: Likewise.
        cpus: Of each worker that has no GPU, >= 1.
        is_stopped: Asked once a second whether the training is to stop, as a signal stops it.
        on_built: Called with :func:`imachsr.train.applied.live` of the first worker, by each group.

    Raises:
        ConfigError: If the cluster cannot hold the workers, or the settings do not fit them.
        ValueError: If the data cannot be read.
        FloatingPointError: If a loss is not finite.
        TrainingStopped: After SIGINT or SIGTERM; a checkpoint is in ``output``.
        RuntimeError: If training failed, or the cluster lost the room for the workers for too long.
    """
    output = output.absolute()
    low, high = check_workers(workers)
    if not resume and checkpoint.exists(output):
        raise ConfigError(f"{output} must be a new folder, but holds a training; give another --output, or continue it with --resume")
    # What every worker would fail at fails here, before any starts.
    cut = (selection or Selection()) if evaluate_on == "select" else None
    samples, _ = run.subset.split(run.data.load("train"), lambda: run.data.load("val"), selection=cut)
    batch_size(run, len(samples), high)
    build_net(run, num_classes=run.data.num_classes, size=(samples.images.shape[-2], samples.images.shape[-1]))
    connect()
    kind = _reserve(run, low, say, cpus)
    if courier is None:
        require_shared(output)
    else:
        require_reached(courier.uri)
    desk = Desk.open()
    epochs = (_epochs_on_disk(output) if resume else 0) if reported is None else reported
    monitor = Monitor(report=report, on_step=on_step, on_restart=on_restart, say=say, epochs=epochs)
    try:
        with StopRequest() as stop, marked(output) as word, _telling(courier, output, monitor):
            uri = None if courier is None else courier.uri
            Session(
                run=run,
                low=low,
                high=high,
                output=output,
                word=word,
                kind=kind,
                desk=desk,
                monitor=monitor,
                storage=uri,
                is_new=not resume,
                cpus=cpus,
                scoring={"evaluate_on": evaluate_on, "selection": asdict(selection or Selection())},
                is_stopped=is_stopped,
                on_built=on_built,
            ).fit(stop)
    finally:
        desk.close()
        sweep(output)
        if courier is not None:
            stored.bring_home(courier, output)
    if not checkpoint.exists(output) and courier is not None:
        raise RuntimeError(f"{courier.uri} must hold a checkpoint, but holds none that is whole; look into {output} on the other machines")
    if not checkpoint.exists(output):
        raise ConfigError(f"--output must be a folder that all machines of the cluster share, but this one does not see the checkpoint in {output}")


@contextlib.contextmanager
def _telling(courier: Courier | None, output: Path, monitor: Monitor) -> Iterator[None]:
    """Upload what this process writes; the first worker uploads the rest."""
    if courier is None:
        yield
        return
    with Mirror(Courier(courier.uri), output, names=TOLD, has_checkpoints=False, say=monitor.say) as mirror:
        report = monitor.report

        def told(row: Row) -> None:
            report(row)
            mirror.wake()

        monitor.report = told
        yield


def _epochs_on_disk(output: Path) -> int:
    path = output / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def _reserve(run: Run, low: int, say: Callable[[str], object], cpus: int = 1) -> str:
    """What each worker takes, CPU or GPU; Ray would wait for ever, and in silence, for what never comes."""
    device = run.compute.device
    # An autoscaler that has no nodes with GPUs would be asked for them in vain.
    has_gpus = room({"GPU": 1.0}) > 0 or (may_grow() and has_shown("GPU"))
    kind = "GPU" if device == "cuda" or (device == "auto" and has_gpus) else "CPU"
    if device == "auto":
        other = "; compute.device=cuda would ask the autoscaler for GPUs" if may_grow() else ""
        say("compute.device=auto: each worker takes " + ("a GPU" if has_gpus else f"a CPU, since no node has shown a GPU{other}"))
    found = await_room({kind: float(cpus) if kind == "CPU" else 1.0}, low, what=f"{low} workers", say=say)
    if device == "cuda" and not found:
        raise ConfigError("`compute.device` must be a device of the cluster, but got 'cuda' and it has no GPU; use auto or cpu")
    if found < low:
        way = ", or set compute.device=cpu" if kind == "GPU" else ""
        raise ConfigError(f"the cluster must have {low} {kind}s for {low} workers, but has {found}; lower --workers{way}")
    return kind
