"""One training under Ray Train's controller, and the driver that listens to its workers."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from imachsr.config.load import run_to_dict
from imachsr.config.schema import Run
from imachsr.train import checkpoint
from imachsr.train.capacity import BOOT_S, room
from imachsr.train.desk import Desk
from imachsr.train.faults import cause, hung, stacks
from imachsr.train.ray_worker import Reporter, ray_intervals, work
from imachsr.train.restarts import Monitor
from imachsr.train.stopping import StopRequest, TrainingStopped

LISTEN_S = 1.0
"""Longest wait for word from the workers before a signal and the end of Ray's part are looked for, seconds."""
ELASTIC_START_S = 10.0
"""Longest wait for all workers of an elastic group to find their places, before it is tried with fewer."""
ABANDON_S = 30.0
"""Longest wait for Ray's part to be known, and to end, seconds."""
CLEANER_S = 0.5
"""Longest wait of Ray's controller for its cleaner of places, seconds: Ray 2.60 waits 12 s for it at the end of every training, since the cleaner's
thread asks its actor to exit, which waits for the call that waits for the thread. It ends by itself once the controller has."""


class Trainer(TorchTrainer):
    """Ray's, which waits for its cleaner no longer than ``CLEANER_S``."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()
        for callback in callbacks:
            if isinstance(callback, PlacementGroupCleanerCallback):
                callback._stop_timeout = CLEANER_S
        return callbacks


@dataclass(frozen=True, kw_only=True)
class Session:
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
    is_new: bool
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
        return Trainer(
            work,
            train_loop_config={
                "run": run_to_dict(self.run),
                "output": str(self.output),
                "reported": self.monitor.epochs,
                "word": self.word,
                "kind": self.kind,
                "desk": self.desk,
                "storage": self.storage,
                "is_new": self.is_new,
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
