"""The training loop."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from imachsr.config.build import build_net, build_optimizer, output_loss
from imachsr.config.load import dump_yaml, run_to_dict
from imachsr.config.schema import ConfigError, Run
from imachsr.data.samples import Samples
from imachsr.data.splits import Selection
from imachsr.files import write_text
from imachsr.tracking.events import finite
from imachsr.train import checkpoint
from imachsr.train.batches import batch_size
from imachsr.train.device import Machine, Placement, claim_gpu, decide, forget_peak
from imachsr.train.epochs import Epochs, Notice, newest
from imachsr.train.gallery import Gallery
from imachsr.train.parallel import Row, parallelise, rank_and_world
from imachsr.train.recompute import recompute_activations
from imachsr.train.score import images_at_once, score
from imachsr.train.state import Progress, Training, make_ema
from imachsr.train.stopping import StopRequest
from imachsr.train.stored import newest_apart
from imachsr.train.upload import Mirror


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a training gives.

    Attributes:
        history: One row an epoch. Keys: ``epoch`` (from 1); where it was scored ``val/`` or ``select/`` + ``miou``, ``boundary_iou``, ``accuracy``,
            ``ece``, ``iou/CLASS`` (percent), ``nll`` (nats) and ``loss``; ``train/`` + ``loss``, ``output``, ``side``, ``entropy`` (means over steps;
            the last two weighted), ``lr`` and ``nonfinite`` (steps so far that were not finite); ``tap/ADDRESS/`` + ``std``, ``side``, ``entropy``;
            ``time/step_ms`` (median), ``time/epoch_s``; ``images_per_s``; ``memory/peak_mib`` (the largest of the workers'), of each one's GPU
            ``gpu/RANK/`` + ``memory_mib``, ``utilization``.
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
    on_step: Callable[[int, int], object] = lambda step, steps: None,
    notice: Callable[[], Notice] | None = None,
    on_built: Callable[[Training], object] = lambda training: None,
    mirror: Mirror | None = None,
) -> Result:
    """Train a run; under torch.distributed, as one of its ranks.

    The same settings give bitwise the same training on a CPU, killed and resumed or not: what a step draws depends on (seed, step, rank) alone.

    Args:
        run: All settings.
        output: Folder for run.yaml, metrics.jsonl, checkpoints/, what :class:`Gallery` keeps, and summary.json (at the end); None writes nothing.
        report: Called with each epoch's row, after it is on disk, on every rank.
        evaluate_on: ``val``, or ``select``: a part cut out of train, so that val stays unseen.
        selection: How that part is cut.
        resume: Continue from the newest checkpoint in ``output`` when there is one.
        reported: Epochs that a broken training had reported; those after it that are on disk are reported first. None: all were.
        on_step: Called after each step with the steps done and their number in all.
        notice: Asked every few seconds, on every rank at once, what is wanted from outside: ``save`` a checkpoint, since the machine is about to be
            taken away, ``stop`` with one, or nothing.
        on_built: Called once with what will be trained, before the first step.
        mirror: To the storage that ``output`` is kept in, entered by the caller on rank 0; on every rank, whose disks then may be their own.

    Raises:
        ConfigError: For what the user got wrong.
        FloatingPointError: If a loss is not finite, in training or on what is scored; the epoch is not written.
        TrainingStopped: After SIGINT, SIGTERM or a notice to stop; a checkpoint of the last step is in ``output``.

    """
    rank, world = rank_and_world()
    if output is not None and not resume and checkpoint.exists(output):
        raise ConfigError(f"{output} must be a new folder, but holds a training; give another --output, or continue it with --resume")
    started = time.monotonic()
    if run.compute.threads is not None:
        torch.set_num_threads(run.compute.threads)
    placement = decide(run.compute, Machine.here())
    claim_gpu(placement)
    forget_peak(placement)
    cut = (selection or Selection()) if evaluate_on == "select" else None
    samples, held_out = run.subset.split(run.data.load("train"), lambda: run.data.load("val"), selection=cut)
    for name, part in (("what is trained on", samples), ("what is scored on", held_out)):
        part.check_labelled(name)
    samples.check_binary("what is trained on", run.data.class_names)
    training = _build(run, samples, placement, steps=len(samples) // batch_size(run, len(samples), world))
    training.began_at = started
    on_built(training)
    if output is not None and resume:
        state = newest(output) if mirror is None else newest_apart(mirror.courier, output, keep=run.recovery.keep)
        if state is not None:
            training.restore(state)
    history = training.history
    is_over = len(history) == run.optimizer.epochs
    if output is not None and rank == 0:
        output.mkdir(parents=True, exist_ok=True)
        write_text(output / "run.yaml", dump_yaml(run_to_dict(run)))
        _write_history(output, history)
    for row in history[len(history) if reported is None else reported :]:
        report(row)
    if mirror is not None:
        mirror.wake()
    gallery = None if output is None else Gallery(held_out, run.data.class_names)
    with StopRequest() as stop:
        epochs = Epochs(
            training=training, samples=samples, placement=placement, output=output, stop=stop, on_step=on_step, notice=notice, mirror=mirror
        )
        while len(history) < run.optimizer.epochs:
            row, epoch, miou = epochs.train(), len(history) + 1, None
            if run.scoring.is_due(epoch, run.optimizer.epochs):
                row |= score(
                    training.scored,
                    held_out,
                    run.data.class_names,
                    loss=output_loss(run),
                    placement=placement,
                    prefix=evaluate_on,
                    gallery=gallery,
                    batch=images_at_once(run, workers=world),
                )
                loss, miou = row[f"{evaluate_on}/loss"], row[f"{evaluate_on}/miou"]
                if not math.isfinite(loss):  # the last step was one too many; the scores of such a model are those of class 0
                    hint = "lower optimizer.lr or set optimizer.grad_clip"
                    raise FloatingPointError(f"{evaluate_on}/loss must be finite, but got {loss} after epoch {epoch}; {hint}")
            history.append({"epoch": epoch, **row})
            training.progress = Progress()
            if output is not None and gallery is not None and miou is not None:  # before the checkpoint, behind which nothing of it is done again
                best = max(each.get(f"{evaluate_on}/miou", -math.inf) for each in history)
                gallery.save(output, epoch=epoch, score=miou, is_best=miou == best)
            epochs.save(score=miou)
            if output is not None and rank == 0:
                _write_history(output, history)
            report(history[-1])
            if mirror is not None:
                mirror.wake()
    result = Result(history=tuple(history), taps=tuple(tap.layer.address for tap in training.net.taps))
    if output is not None and rank == 0 and not (is_over and (output / "summary.json").exists()):
        summary = {"schema": 1, "name": run.name, "epochs": len(history), "metrics": result.metrics, "taps": result.taps}
        summary |= {"parameters": sum(p.numel() for p in training.net.backbone.parameters()), "wall_s": round(training.wall_s, 3)}
        write_text(output / "summary.json", json.dumps(finite(summary), indent=1) + "\n")
        if mirror is not None:
            mirror.wake()
    return result


def _build(run: Run, samples: Samples, placement: Placement, *, steps: int) -> Training:
    size = (samples.images.shape[-2], samples.images.shape[-1])
    net = build_net(run, num_classes=run.data.num_classes, size=size, samples=samples, steps_per_epoch=steps, device=placement.device)
    if run.compute.recompute and not recompute_activations(net.backbone):
        raise ConfigError("`compute.recompute` must be off for a model without blocks in an nn.Sequential or nn.ModuleList, but is on")
    placement.put_net(net)
    if run.optimizer.ema is not None and run.compute.parallel == "fsdp":
        raise ConfigError("`optimizer.ema` must be null under `compute.parallel` = fsdp, where no worker has all weights; use ddp")
    ema = make_ema(net, run.optimizer.ema)
    if run.compute.compile:
        net.compile()
    wrapped = parallelise(net, run.compute, placement)
    optimizer, scheduler = build_optimizer(run, net, steps)
    return Training(
        run=run,
        net=net,
        wrapped=wrapped,
        optimizer=optimizer,
        scheduler=scheduler,
        scaler=placement.scaler(),
        ema=ema,
        steps_per_epoch=steps,
        size=size,
    )


def _write_history(output: Path, history: list[Row]) -> None:
    write_text(output / "metrics.jsonl", "".join(json.dumps(finite(row)) + "\n" for row in history))
