"""The training loop."""

import json
import math
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from imachsr.config.build import build_net, build_optimizer, output_loss
from imachsr.config.load import dump_yaml, run_to_dict
from imachsr.config.schema import ConfigError, Run
from imachsr.core.types import Losses
from imachsr.core.wrapper import IMacHSR
from imachsr.data.samples import Samples
from imachsr.data.splits import Selection
from imachsr.files import write_text
from imachsr.tracking.events import finite
from imachsr.train import checkpoint
from imachsr.train.batches import batch_size, batches
from imachsr.train.device import Machine, Placement, decide
from imachsr.train.evaluate import score
from imachsr.train.step import train_step

Row = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a training gives.

    Attributes:
        history: One row an epoch. Keys: ``epoch`` (from 1); ``val/`` or ``select/`` + ``miou``, ``accuracy``, ``iou/CLASS`` (percent) and ``loss``;
            ``train/`` + ``loss``, ``output``, ``side``, ``entropy`` (means over steps; the last two weighted) and ``lr``; ``tap/ADDRESS/``
            + ``std``, ``side``, ``entropy``; ``time/step_ms`` (median), ``time/epoch_s``, ``images_per_s``.
        taps: Addresses of the supervised layers.
    """

    history: tuple[Row, ...]
    taps: tuple[str, ...]

    @property
    def metrics(self) -> Row:
        """The last epoch's row."""
        return self.history[-1]


def train(
    run: Run,
    *,
    output: Path | None = None,
    report: Callable[[Row], object] = lambda row: None,
    evaluate_on: Literal["val", "select"] = "val",
    selection: Selection | None = None,
    resume: bool = False,
    reported: int | None = None,
) -> Result:
    """Train a run; under torch.distributed, as one of its ranks.

    Args:
        run: All settings.
        output: Folder for run.yaml, metrics.jsonl, checkpoint.pt (every epoch, atomically) and summary.json (at the end); None writes nothing.
        report: Called with each epoch's row, after it is on disk, on every rank.
        evaluate_on: ``val``, or ``select``: a part cut out of train, so that val stays unseen.
        selection: How that part is cut.
        resume: Continue from the checkpoint in ``output`` when there is one; a continued run gives the numbers of an unbroken one.
        reported: Epochs that a broken training had reported; those after it that are on disk are reported first. None: all were.

    Raises:
        ConfigError: For what the user got wrong.
        FloatingPointError: If a loss is not finite, in training or on what is scored; the epoch is not written.

    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if output is not None and not resume and (output / checkpoint.FILE).exists():
        raise ConfigError(f"{output} must be a new folder, but holds a training; give another --output, or continue it with --resume")
    started = time.monotonic()
    if run.compute.threads is not None:
        torch.set_num_threads(run.compute.threads)
    placement = decide(run.compute, Machine.here())
    samples = run.data.load("train")
    samples, held_out = (selection or Selection()).split(samples) if evaluate_on == "select" else (samples, run.data.load("val"))
    steps = len(samples) // batch_size(run, len(samples), world)
    size = (samples.images.shape[-2], samples.images.shape[-1])
    net = build_net(run, num_classes=run.data.num_classes, size=size, samples=samples, steps_per_epoch=steps)
    placement.put_net(net)
    optimizer, scheduler = build_optimizer(run, net, steps)
    history: list[Row] = []
    if output is not None and resume and (output / checkpoint.FILE).exists():
        history = _restore(checkpoint.load(output), run, net, optimizer, scheduler)
    wrapped = _distributed(net, placement) if world > 1 else net
    if output is not None and rank == 0:
        output.mkdir(parents=True, exist_ok=True)
        write_text(output / "run.yaml", dump_yaml(run_to_dict(run)))
        _write_history(output, history)
    for row in history[len(history) if reported is None else reported :]:
        report(row)
    taps = tuple(tap.layer.address for tap in net.taps)
    for epoch in range(len(history) + 1, run.optimizer.epochs + 1):
        _seed(run.seed, epoch, rank)
        row = {"epoch": epoch}
        row |= _epoch(wrapped, net, samples, run, optimizer, scheduler, placement, epoch, rank, world)
        _share_buffers(net)
        row |= score(net.backbone, held_out, run.data.class_names, loss=output_loss(run), placement=placement, prefix=evaluate_on)
        loss = row[f"{evaluate_on}/loss"]
        if not math.isfinite(loss):  # the last step was one too many; the scores of such a model are those of class 0
            hint = "lower optimizer.lr or set optimizer.grad_clip"
            raise FloatingPointError(f"{evaluate_on}/loss must be finite, but got {loss} after epoch {epoch}; {hint}")
        history.append(row)
        if output is not None and rank == 0:
            checkpoint.save(output, _state(run, net, optimizer, scheduler, history))
            _write_history(output, history)
        report(row)
    result = Result(history=tuple(history), taps=taps)
    if output is not None and rank == 0:
        summary = {"schema": 1, "name": run.name, "epochs": len(history), "metrics": result.metrics, "taps": taps}
        summary |= {"parameters": sum(p.numel() for p in net.backbone.parameters()), "wall_s": round(time.monotonic() - started, 3)}
        write_text(output / "summary.json", json.dumps(finite(summary), indent=1) + "\n")
    return result


def _epoch(
    wrapped: nn.Module,
    net: IMacHSR,
    samples: Samples,
    run: Run,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    placement: Placement,
    epoch: int,
    rank: int,
    world: int,
) -> Row:
    net.train()
    sums: dict[str, float] = {}
    times: list[float] = []
    started = time.perf_counter()
    lr = 0.0
    for images, labels in batches(samples, run, epoch=epoch, rank=rank, world=world):
        lr = float(scheduler.get_last_lr()[0])
        before = time.perf_counter()
        losses = train_step(wrapped, images, labels, optimizer=optimizer, scheduler=scheduler, placement=placement, grad_clip=run.optimizer.grad_clip)
        for key, value in _terms(losses).items():
            sums[key] = sums.get(key, 0.0) + value
        times.append(time.perf_counter() - before)
    seconds = time.perf_counter() - started
    means = {key: value / len(times) for key, value in sums.items()}
    count = len(times) * batch_size(run, len(samples), world)
    clock = {"time/step_ms": 1e3 * statistics.median(times), "time/epoch_s": seconds, "images_per_s": count / seconds}
    return _mean_over_ranks({**means, "train/lr": lr, **clock})


def _mean_over_ranks(row: Row) -> Row:
    """The mean of every rank's row, so that all of them report the same; a key that a rank lacks counts where it is there."""
    if not dist.is_initialized():
        return row
    rows: list[Row] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(rows, row)
    keys = dict.fromkeys(key for each in rows for key in each)
    return {key: math.fsum(each[key] for each in rows if key in each) / sum(key in each for each in rows) for key in keys}


def _terms(losses: Losses) -> Row:
    row = {"train/loss": float(losses.total.detach()), "train/output": float(losses.output.detach())}
    for group, terms in (("side", losses.side), ("entropy", losses.entropy)):
        values = {address: float(value.detach()) for address, value in terms.items()}
        if values:
            row[f"train/{group}"] = math.fsum(float(losses.weights[f"{group}/{address}"]) * value for address, value in values.items())
        row |= {f"tap/{address}/{group}": value for address, value in values.items()}
    return row | {f"tap/{address}/std": float(value) for address, value in losses.scale.items()}


def _distributed(net: IMacHSR, placement: Placement) -> nn.Module:
    devices = [torch.cuda.current_device()] if placement.device == "cuda" else None
    # A user's model may hold parameters that its output does not depend on, and a tap may not fire on one rank.
    return DistributedDataParallel(net, device_ids=devices, find_unused_parameters=True)


@torch.no_grad()
def _share_buffers(net: nn.Module) -> None:
    """Give every rank the buffers of rank 0, whose model is saved: each has gathered BatchNorm's statistics from other images."""
    if not dist.is_initialized():
        return
    for buffer in net.buffers():
        shared = buffer.contiguous()
        dist.broadcast(shared, src=0)
        buffer.copy_(shared)


def _seed(seed: int, epoch: int, rank: int) -> None:
    """What a model draws while it trains (dropout, stochastic depth); anew for each epoch, so that a continued training draws the same."""
    state = int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0])
    torch.manual_seed(state)
    np.random.seed(state)
    random.seed(state)


def _state(run: Run, net: IMacHSR, optimizer: Any, scheduler: Any, history: list[Row]) -> dict[str, Any]:
    return {
        "run": json.dumps(run_to_dict(run)),
        "num_classes": run.data.num_classes,
        "net": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": {"last_epoch": scheduler.last_epoch},
        "history": json.dumps(history),
    }


def _restore(state: dict[str, Any], run: Run, net: IMacHSR, optimizer: Any, scheduler: Any) -> list[Row]:
    saved, now = json.loads(state["run"]), run_to_dict(run)
    changed = [key for key in now if key not in ("compute", "name") and saved.get(key) != now[key]]
    if changed:
        raise ConfigError(
            f"a training must be continued with the settings that it began with, but {', '.join(changed)} changed; see run.yaml in its folder"
        )
    net.load_state_dict(state["net"])
    optimizer.load_state_dict(state["optimizer"])
    scheduler.last_epoch = state["scheduler"]["last_epoch"]
    for group, share, base in zip(optimizer.param_groups, scheduler.lr_lambdas, scheduler.base_lrs, strict=True):
        group["lr"] = base * share(scheduler.last_epoch)
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
    history: list[Row] = json.loads(state["history"])
    return history


def _write_history(output: Path, history: list[Row]) -> None:
    write_text(output / "metrics.jsonl", "".join(json.dumps(finite(row)) + "\n" for row in history))
