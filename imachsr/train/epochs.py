"""Epochs of a training: its steps, and what comes up between them."""

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from imachsr.config.schema import ConfigError
from imachsr.core.types import Losses
from imachsr.data.samples import Samples
from imachsr.train import checkpoint
from imachsr.train.batches import Batches, batch_size, explained
from imachsr.train.device import Placement, usage
from imachsr.train.parallel import Row, agree, from_rank, gathered, mean_over_ranks, rank_and_world, start_over, wait_for_all
from imachsr.train.state import Buffers, Training
from imachsr.train.step import train_step
from imachsr.train.stopping import StopRequest, TrainingStopped
from imachsr.train.upload import Mirror

POLL_S = 2.0
"""Seconds between two looks for a notice."""
Notice = Literal["", "save", "stop"]


def newest(output: Path, mirror: Mirror | None = None) -> dict[str, Any] | None:
    """The newest checkpoint that rank 0 sees, if there is one, on all ranks: on a shared disk it may show later to the others.

    Where the training is kept in a storage, the disks are each rank's own, and rank 0 has what was saved since the start.

    Raises:
        ConfigError: If rank 0 sees none where another rank does; it would begin anew.

    """
    is_seen = checkpoint.exists(output)
    state = from_rank(0, lambda: checkpoint.load(output) if is_seen else None)
    if mirror is None and state is None and True in (seen := gathered(is_seen)):
        rule = "--output must be a folder that all workers share"
        raise ConfigError(f"{rule}, but worker {seen.index(True)} sees a checkpoint in {output} and worker 0 none")
    return state


@dataclass(kw_only=True)
class Epochs:
    """Trains epoch by epoch; what it needs beside the training stays the same."""

    training: Training
    samples: Samples
    placement: Placement
    output: Path | None
    stop: StopRequest
    on_step: Callable[[int, int], object]
    notice: Callable[[], Notice] | None
    mirror: Mirror | None = None
    saved_step: int = -1
    saved_at: float = field(default_factory=time.monotonic)
    asked_at: float = field(default_factory=time.monotonic)
    noticed: Notice = ""

    def __post_init__(self) -> None:
        rank, world = rank_and_world()
        self.saved_step = self.training.step
        self.batches = Batches(self.samples, self.training.run, rank=rank, world=world)
        self.buffers = Buffers(self.training.net)

    def train(self) -> Row:
        """The rest of the epoch under way; its row, the same on all ranks."""
        training, progress, run = self.training, self.training.progress, self.training.run
        training.net.train()
        rank, world = rank_and_world()
        epoch = len(training.history) + 1
        plan = training.plan
        before = progress.seconds
        started = time.perf_counter()
        with explained():
            for images, labels in self.batches.epoch(epoch, start=training.step - plan.before(epoch)):
                _seed(run.seed, training.step, rank)
                lr = float(training.scheduler.get_last_lr()[0])
                self._step(images, labels)
                progress.lr = lr
                progress.seconds = before + time.perf_counter() - started
                self.on_step(training.step, plan.total)
                self._between_steps()
        training.share_buffers()
        if not progress.times:
            raise FloatingPointError(f"a step of epoch {epoch} must be finite, but none was; lower optimizer.lr")
        count = plan.steps(epoch) * batch_size(run, len(self.samples), world)
        clock = {"time/step_ms": 1e3 * statistics.median(progress.times), "time/epoch_s": progress.seconds, "images_per_s": count / progress.seconds}
        row = mean_over_ranks({**progress.means(), "train/lr": progress.lr, **clock})
        return row | _largest(usage(self.placement.device, rank)) | {"train/nonfinite": float(training.nonfinite)}

    def _step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        training, options = self.training, self.training.run.optimizer
        self.buffers.keep()
        before = time.perf_counter()
        try:
            losses = train_step(
                training.wrapped,
                images,
                labels,
                optimizer=training.optimizer,
                scheduler=training.scheduler,
                placement=self.placement,
                grad_clip=options.grad_clip,
                accumulate=options.accumulate,
                scaler=training.scaler,
                is_guarded=training.run.recovery.nonfinite != "raise",
            )
        except FloatingPointError as error:
            self._mend(error)
            return
        training.step += 1
        if training.ema is not None:
            training.ema.update_parameters(training.net.backbone)
        for each in losses:
            training.progress.add(_terms(each))
        training.progress.times.append(time.perf_counter() - before)

    def _between_steps(self) -> None:
        """Answer what has come up, the same on all ranks."""
        now, recovery = time.monotonic(), self.training.run.recovery
        minutes = recovery.checkpoint_minutes
        is_late = self.output is not None and minutes is not None and now - self.saved_at >= 60 * minutes
        is_asked = self.notice is not None and now - self.asked_at >= POLL_S
        is_stopped, is_late, is_asked = agree(self.stop.is_set, is_late, is_asked)
        if is_asked and self.notice is not None:
            self.asked_at = now
            before, self.noticed = self.noticed, self.notice()
            # A machine that is about to go says so until it is gone: once is enough.
            is_late, is_stopped = agree(is_late or self.noticed == "save" != before, is_stopped or self.noticed == "stop")
        every, step = recovery.checkpoint_steps, self.training.step
        is_within = not self.training.plan.is_end(step)  # after the last step the epoch is scored first
        is_due = every is not None and step % every == 0 and is_within
        if is_stopped or is_late or is_due:
            self.save()
        if is_stopped:
            raise TrainingStopped(self.stop.number, step)

    def save(self, score: float | None = None) -> None:
        """Write a checkpoint of the state after the last step, unless that is spoilt: the next step tells of it."""
        if self.output is None or (score is None and not self.training.is_sound()):
            return
        state = self.training.capture()
        if rank_and_world()[0] == 0:
            checkpoint.save(self.output, state, step=self.training.step, score=score, keep=self.training.run.recovery.keep)
            if self.mirror is not None:
                self.mirror.wake()
        wait_for_all()  # a rank that is through may end the process, or look for the checkpoint
        self.saved_step, self.saved_at = self.training.step, time.monotonic()

    def _mend(self, error: FloatingPointError) -> None:
        """Go on behind a step that was not finite, or end; all ranks are here."""
        training, recovery = self.training, self.training.run.recovery
        self.buffers.put_back()
        start_over(training.wrapped)
        training.nonfinite += 1
        if recovery.nonfinite == "raise":
            raise FloatingPointError(f"{error}{self._keep_last('recovery.nonfinite=skip')}") from None
        if training.nonfinite > recovery.max_nonfinite:
            why = f"; that is more than recovery.max_nonfinite = {recovery.max_nonfinite} such steps"
            raise FloatingPointError(f"{error}{why}{self._keep_last('a larger one')}") from None
        if recovery.nonfinite == "rollback":
            if self.output is None or (state := newest(self.output, self.mirror)) is None:
                why = "; there is no checkpoint yet to roll back to, set recovery.checkpoint_steps"
                raise FloatingPointError(f"{error}{why}{self._keep_last('recovery.nonfinite=skip')}") from None
            training.restore_weights(state)
        training.step += 1
        training.place_schedule()

    def _keep_last(self, way: str) -> str:
        """Save the state before the step, if it is sound; words for the user about it."""
        step = self.training.step
        if self.output is None or step == 0 or not self.training.is_sound():
            return ""
        self.training.nonfinite -= 1
        if step > self.saved_step:
            self.training.place_schedule()
            self.save()
        return f"; the state after step {step} is kept: --resume with {way} goes on behind the next"


def _largest(row: Row) -> Row:
    rows = gathered(row)
    return {key: max(each[key] for each in rows if key in each) for key in dict.fromkeys(key for each in rows for key in each)}


def _terms(losses: Losses) -> Row:
    parts: dict[str, Any] = {"total": losses.total, "output": losses.output, **losses.terms}
    parts |= {f"weight/{name}": weight for name, weight in losses.weights.items()} | {f"scale/{name}": scale for name, scale in losses.scale.items()}
    of = _numbers(parts)
    row = {"train/loss": of["total"], "train/output": of["output"]}
    for group, terms in (("side", losses.side), ("entropy", losses.entropy)):
        if terms:
            row[f"train/{group}"] = math.fsum(of[f"weight/{group}/{address}"] * of[f"{group}/{address}"] for address in terms)
        row |= {f"tap/{address}/{group}": of[f"{group}/{address}"] for address in terms}
    return row | {f"tap/{address}/std": of[f"scale/{address}"] for address in losses.scale}


def _numbers(values: Mapping[str, Any]) -> Row:
    """Scalars on one device, and numbers, as numbers; the device is waited for once."""
    scalars = [value.detach().double().reshape(()) for value in values.values() if isinstance(value, torch.Tensor)]
    read = iter(torch.stack(scalars).tolist() if scalars else [])
    return {name: next(read) if isinstance(value, torch.Tensor) else float(value) for name, value in values.items()}


def _seed(seed: int, step: int, rank: int) -> None:
    """What a model draws while it trains (dropout, stochastic depth); anew for each step, so that a continued training draws the same."""
    state = int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
    torch.manual_seed(state)
    np.random.seed(state)
    random.seed(state)
