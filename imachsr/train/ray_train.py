"""The training loop on several Ray Train workers."""

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.exceptions import RayError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from imachsr.cluster import marked, require_marked, require_shared
from imachsr.config.build import build_net
from imachsr.config.load import make_run, run_to_dict
from imachsr.config.schema import ConfigError, Run
from imachsr.train import checkpoint
from imachsr.train.batches import batch_size
from imachsr.train.capacity import BOOT_S, await_room, connect, has_shown, may_grow, room
from imachsr.train.epochs import Notice
from imachsr.train.faults import cause, for_the_driver, hang_guard, hung, is_worth_a_retry, stacks, sweep
from imachsr.train.loop import train
from imachsr.train.parallel import Row
from imachsr.train.restarts import Monitor, Restart
from imachsr.train.stopping import StopRequest, TrainingStopped

BEAT_S = 1.0
"""Seconds between two signs of life of the first worker."""
ELASTIC_START_S = 10.0
"""Longest wait for all workers of an elastic group to find their places, before it is tried with fewer."""
GRACE_S = 120.0
"""Seconds that Ray Train gives workers on a node that is taken away at a time not known."""
ABANDON_S = 30.0
"""Longest wait for Ray's part to be known, and to end, seconds."""
Workers = int | tuple[int, int]


def _worker(config: dict[str, Any]) -> None:
    if not config["mistakes"].empty():  # the group was restarted after one, which it would only make again
        return
    run, queue, output = make_run(config["run"]), config["queue"], Path(config["output"])
    if config["kind"] == "CPU":  # a GPU that a node has all the same was not reserved, and gloo would not reach it
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    context = ray.train.get_context()
    is_first = context.get_world_rank() == 0
    is_leaving = False
    said = 0.0

    def report(row: Row) -> None:
        guard()
        if is_first:
            queue.put(("row", row))
        ray.train.report(dict(row))

    def beat(step: int, steps: int) -> None:
        nonlocal said
        guard()
        if is_first and (time.monotonic() - said > BEAT_S or step == steps):
            said = time.monotonic()
            queue.put(("step", step))

    def notice() -> Notice:
        nonlocal is_leaving
        was_leaving, info = is_leaving, ray.train.get_preemption_info()
        is_leaving = info is not None
        if is_first and info is not None and not was_leaving:
            queue.put(("leaving", GRACE_S if info.deadline_ms is None else max(0.0, info.deadline_ms / 1000 - time.time())))
        # The signal wins: it comes once.
        return "stop" if not config["stop"].empty() else "save" if is_leaving else ""

    with hang_guard(run.recovery.hang_minutes, output, context.get_world_rank()) as guard:
        try:
            require_marked(output, config["word"])
            if is_first:
                queue.put(("start", context.get_world_size()))
            # resume: a worker group that is restarted after a failure goes on from the last checkpoint that is on disk.
            train(run, output=output, report=report, resume=True, reported=config["reported"], on_step=beat, notice=notice)
        except TrainingStopped as stopped:
            if is_first:
                queue.put(("stopped", stopped.step))
        except Exception as error:
            if not is_worth_a_retry(error):
                config["mistakes"].put(for_the_driver(error))
            raise  # a mistake too, since other workers may be waiting for this one


class _Reporter(ray.train.UserCallback):
    """Tells the driver of Ray's controller, by which the workers can be ended, and of workers that are lost."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickled in the controller's process first, and then in those that it starts: Ray offers no other way to its handle."""
        self.__dict__.update(state)
        self._queue.put(("controller", ray.get_runtime_context().current_actor))

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        ranks = ", ".join(str(rank) for rank in sorted(worker_exceptions))
        is_dead = any(hasattr(error, "health_check_failure") or isinstance(error, RayError) for error in worker_exceptions.values())
        self._queue.put(("lost", "a worker was lost" if is_dead else f"worker {ranks} failed"))


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
) -> None:
    """Train a run data-parallel on several workers; gloo on CPUs, NCCL on GPUs (one each).

    Lost workers are replaced, and go on from the last checkpoint, ``recovery.max_restarts`` times; nodes taken away with notice do not count.

    Args:
        run: All settings; the batch size is the global one.
        workers: Number of processes, >= 1, or the smallest and the largest: the group then shrinks and grows with the cluster.
        output: As in :func:`imachsr.train.loop.train`; on several machines a folder that all of them share.
        report: Called in this process with each epoch's row.
        resume: Continue from the checkpoint in ``output``.
        reported: As in :func:`imachsr.train.loop.train`.
        on_step: Called in this process about once a second with the steps done.
        on_restart: Called when a new worker group has done its first step.
        say: Called with a line for the user when there is something to wait for.

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
    samples, _ = run.data.load("train"), run.data.load("val")
    batch_size(run, len(samples), high)
    build_net(run, num_classes=run.data.num_classes, size=(samples.images.shape[-2], samples.images.shape[-1]))
    connect()
    kind = _reserve(run, low, say)
    require_shared(output)
    # On this machine: another one may be lost.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queues = {name: Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here}) for name in ("queue", "mistakes", "stop")}
    epochs = (_epochs_on_disk(output) if resume else 0) if reported is None else reported
    monitor = Monitor(report=report, on_step=on_step, on_restart=on_restart, say=say, epochs=epochs)
    try:
        with StopRequest() as stop, marked(output) as word:
            _Session(run=run, low=low, high=high, output=output, word=word, kind=kind, queues=queues, monitor=monitor).fit(stop)
    finally:
        for queue in queues.values():
            queue.shutdown(force=True)
        sweep(output)
    if not checkpoint.exists(output):
        raise ConfigError(f"--output must be a folder that all machines of the cluster share, but this one does not see the checkpoint in {output}")


def _epochs_on_disk(output: Path) -> int:
    path = output / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def _reserve(run: Run, low: int, say: Callable[[str], object]) -> str:
    """What each worker takes, CPU or GPU; Ray would wait for ever, and in silence, for what never comes."""
    device = run.compute.device
    # An autoscaler that has no nodes with GPUs would be asked for them in vain.
    has_gpus = room({"GPU": 1.0}) > 0 or (may_grow() and has_shown("GPU"))
    kind = "GPU" if device == "cuda" or (device == "auto" and has_gpus) else "CPU"
    if device == "auto":
        other = "; compute.device=cuda would ask the autoscaler for GPUs" if may_grow() else ""
        say("compute.device=auto: each worker takes " + ("a GPU" if has_gpus else f"a CPU, since no node has shown a GPU{other}"))
    found = await_room({kind: 1.0}, low, what=f"{low} workers", say=say)
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
    queues: dict[str, Queue]
    monitor: Monitor

    def fit(self, stop: StopRequest) -> None:
        """Train to the end, or raise why not, as :func:`train_distributed` does."""
        found: list[Exception | None] = []
        with _environment(self._start_s()):
            waiting = threading.Thread(target=self._wait, args=(found,), daemon=True)
            waiting.start()
            self._listen(waiting, stop)
        if self.monitor.stopped_step is not None:
            raise TrainingStopped(stop.number, self.monitor.stopped_step)
        if not self.queues["mistakes"].empty():
            raise self.queues["mistakes"].get()
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
            if stop.is_set and not is_told:
                self.queues["stop"].put(True)
                is_told = True
            try:
                kind, value = self.queues["queue"].get(timeout=0.5)
            except Empty:
                if is_over:
                    return
            else:
                if kind == "lost" and (now := stacks(self.output)) != before:
                    found, before = hung(self.output, before), now
                    if found:
                        where = ", ".join(map(str, found))
                        value = f"a step took more than recovery.hang_minutes={self.run.recovery.hang_minutes:g} (stacks in {where})"
                self.monitor.hear(kind, value)
            if self.monitor.absent_s and not is_over:
                self._answer_absence(waiting, stop)

    def _answer_absence(self, waiting: threading.Thread, stop: StopRequest) -> None:
        """There are no workers: nobody reads what they are asked, and they are not waited for without end."""
        if stop.is_set:
            self._abandon(waiting)
            raise TrainingStopped(stop.number, self.monitor.last_step)
        minutes, found = self.run.recovery.wait_minutes, room({self.kind: 1.0})
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
            with contextlib.suppress(Empty):
                self.monitor.hear(*self.queues["queue"].get(timeout=0.5))
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
            _worker,
            train_loop_config={
                "run": run_to_dict(self.run),
                "output": str(self.output),
                "reported": self.monitor.epochs,
                "word": self.word,
                "kind": self.kind,
                **self.queues,
            },
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", **({} if seconds is None else {"timeout_s": seconds})),
            scaling_config=ray.train.ScalingConfig(num_workers=self.low if self.low == self.high else (self.low, self.high), use_gpu=use_gpu),
            run_config=ray.train.RunConfig(
                name="ray",
                storage_path=str(self.output),
                failure_config=ray.train.FailureConfig(max_failures=recovery.max_restarts, controller_failure_limit=starts),
                callbacks=[_Reporter(self.queues["queue"])],
            ),
        )


@contextlib.contextmanager
def _environment(start_s: float) -> Iterator[None]:
    """Ray Train's intervals, which its controller reads from the environment that its driver had; the user's own stay."""
    wanted = {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
        "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": f"{start_s:g}",
    }
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
