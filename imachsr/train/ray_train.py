"""The training loop on several Ray Train workers."""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from imachsr.cluster import marked, require_reached, require_shared
from imachsr.config.build import build_net
from imachsr.config.load import run_to_dict
from imachsr.config.schema import ConfigError, Run
from imachsr.data.splits import Selection
from imachsr.train import checkpoint, stored
from imachsr.train.batches import batch_size
from imachsr.train.capacity import BOOT_S, await_room, connect, has_shown, may_grow, room
from imachsr.train.courier import Courier
from imachsr.train.desk import Desk
from imachsr.train.faults import cause, hung, stacks, sweep
from imachsr.train.parallel import Row
from imachsr.train.ray_worker import Reporter, ray_intervals, work
from imachsr.train.restarts import Monitor, Restart
from imachsr.train.stopping import StopRequest, TrainingStopped
from imachsr.train.upload import TOLD, Mirror

LISTEN_S = 1.0
"""Longest wait for word from the workers before a signal and the end of Ray's part are looked for, seconds."""
ELASTIC_START_S = 10.0
"""Longest wait for all workers of an elastic group to find their places, before it is tried with fewer."""
ABANDON_S = 30.0
"""Longest wait for Ray's part to be known, and to end, seconds."""
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
    samples = run.data.load("train")
    if evaluate_on == "val":
        run.data.load("val")
    else:
        samples, _ = (selection or Selection()).split(samples)
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
            _Session(
                run=run,
                low=low,
                high=high,
                output=output,
                word=word,
                kind=kind,
                desk=desk,
                monitor=monitor,
                storage=uri,
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


@dataclass(frozen=True, kw_only=True)
class _Session:
    """Workers under Ray's controller, and this process, which listens to them."""

    run: Run
    low: int
    high: int
    output: Path
    word: str
    kind: str
    desk: Desk
    monitor: Monitor
    storage: str | None
    cpus: int
    scoring: dict[str, Any]
    is_stopped: Callable[[], bool]
    on_built: Callable[[dict[str, Any]], object]

    @property
    def _each(self) -> dict[str, float]:
        """What a worker takes."""
        return {self.kind: float(self.cpus) if self.kind == "CPU" else 1.0}

    def fit(self, stop: StopRequest) -> None:
        """Train to the end, or raise why not, as :func:`train_distributed` does."""
        found: list[Exception | None] = []
        with ray_intervals(self._start_s()):
            waiting = threading.Thread(target=self._wait, args=(found,), daemon=True)
            waiting.start()
            self._listen(waiting, stop)
        if self.monitor.stopped_step is not None:
            raise TrainingStopped(stop.number, self.monitor.stopped_step)
        if (mistake := self.desk.mistake) is not None:
            raise mistake
        if (error := found[0]) is not None:
            raise RuntimeError(f"training failed{self._restarts()}: {cause(error)}{self._kept()}") from error

    def _wait(self, found: list[Exception | None]) -> None:
        try:
            found.append(self._trainer().fit().error)
        except Exception as error:
            found.append(error)

    def _listen(self, waiting: threading.Thread, stop: StopRequest) -> None:
        """Hear the workers in this thread, where signals arrive, until Ray's has ended."""
        is_told, before = False, stacks(self.output)
        while True:
            is_over = not waiting.is_alive()
            if not is_told and (stop.is_set or self.is_stopped()):
                self.desk.ask_stop()
                is_told = True
            word = self.desk.hear(LISTEN_S)
            if word is None and is_over:
                return
            if word is not None:
                kind, value = word
                if kind == "lost" and (now := stacks(self.output)) != before:
                    found, before = hung(self.output, before), now
                    if found:
                        where = ", ".join(map(str, found))
                        value = f"a step took more than recovery.hang_minutes={self.run.recovery.hang_minutes:g} (stacks in {where})"
                if kind == "built":
                    self.on_built(value)
                else:
                    self.monitor.hear(kind, value)
            if self.monitor.absent_s and not is_over:
                self._answer_absence(waiting, stop)

    def _answer_absence(self, waiting: threading.Thread, stop: StopRequest) -> None:
        """There are no workers: nobody reads what they are asked, and they are not waited for without end."""
        if stop.is_set:
            self._abandon(waiting)
            raise TrainingStopped(stop.number, self.monitor.last_step)
        minutes, found = self.run.recovery.wait_minutes, room(self._each)
        # Where there is room, workers may take their time to start, and those of others to end.
        limit_s = 60 * minutes if found < self.low else max(60 * minutes, BOOT_S)
        self.monitor.tell_wait(self.low, found, limit_s)
        if self.monitor.absent_s > limit_s:
            self._abandon(waiting)
            rule = f"the cluster must have free room for {self.low} workers ({self.kind} each)"
            which = f"recovery.wait_minutes={minutes:g}" if found < self.low else f"{limit_s:g} s"
            raise RuntimeError(f"{rule}, but had not for {which}; its nodes hold {found}{self._kept()}")

    def _abandon(self, waiting: threading.Thread) -> None:
        """End Ray's part, which would go on by itself, and would end this process if Ray were shut down meanwhile."""
        end = time.monotonic() + ABANDON_S
        while self.monitor.controller is None and waiting.is_alive() and time.monotonic() < end:
            if (word := self.desk.hear(LISTEN_S)) is not None:
                self.monitor.hear(*word)
        if self.monitor.controller is not None:
            ray.kill(self.monitor.controller)
        waiting.join(ABANDON_S)

    def _start_s(self) -> float:
        """A fixed group has its places, or has to wait; an elastic one has fewer to look for, once Ray has noticed that a node is gone."""
        return 60 * self.run.recovery.wait_minutes if self.low == self.high else ELASTIC_START_S

    def _restarts(self) -> str:
        most = self.run.recovery.max_restarts
        return f" for good after recovery.max_restarts={most}" if most else ""

    def _kept(self) -> str:
        return "; the last checkpoint is kept, --resume goes on from it" if checkpoint.exists(self.output) else ""

    def _trainer(self) -> TorchTrainer:
        use_gpu, recovery = self.kind == "GPU", self.run.recovery
        seconds = None if recovery.hang_minutes is None else math.ceil(60 * recovery.hang_minutes) + 60
        # A group that cannot start counts apart from one that is lost; each loss of a node may cost an elastic one a try.
        starts = recovery.max_restarts + (3 if self.low == self.high else 100)
        return TorchTrainer(
            work,
            train_loop_config={
                "run": run_to_dict(self.run),
                "output": str(self.output),
                "reported": self.monitor.epochs,
                "word": self.word,
                "kind": self.kind,
                "desk": self.desk,
                "storage": self.storage,
                "scoring": self.scoring,
            },
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", **({} if seconds is None else {"timeout_s": seconds})),
            scaling_config=ray.train.ScalingConfig(
                num_workers=self.low if self.low == self.high else (self.low, self.high),
                use_gpu=use_gpu,
                resources_per_worker=None if use_gpu else {"CPU": self.cpus},
            ),
            run_config=ray.train.RunConfig(
                name="ray",
                storage_path=str(self.output),
                failure_config=ray.train.FailureConfig(max_failures=recovery.max_restarts, controller_failure_limit=starts),
                callbacks=[Reporter(self.desk)],
            ),
        )
