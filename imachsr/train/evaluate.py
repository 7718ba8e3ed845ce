"""Scores of a model on a split, and of a finished training on any data."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from imachsr.config.build import build_model, output_loss
from imachsr.config.load import make_run, parse_overrides
from imachsr.config.schema import ConfigError
from imachsr.core.output import logits_of
from imachsr.data.samples import Samples, Split
from imachsr.data.transforms import normalize
from imachsr.train import checkpoint
from imachsr.train.device import Machine, Placement, decide
from imachsr.train.metrics import ConfusionMatrix

BATCH = 16
CHANGEABLE = ("data", "compute", "output_loss")


@torch.no_grad()
def score(
    model: nn.Module, samples: Samples, class_names: Sequence[str], *, loss: Callable[..., Any], placement: Placement, prefix: str
) -> dict[str, float]:
    """mIoU, accuracy and IoU per class (percent), and the output loss, of a bare model over all samples, shared out over the ranks.

    Args:
        model: Gives logits for images; its mode is restored.
        samples: What to score on.
        class_names: K names.
        loss: Output loss.
        placement: Where to compute.
        prefix: Of the keys: ``val`` gives ``val/miou``, ``val/iou/road``, ...; a class that does not occur has no key.
    """
    was_training = model.training
    model.eval()
    matrix = ConfusionMatrix(len(class_names))
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    mine = list(range(rank, len(samples), world))
    total = torch.zeros(2, dtype=torch.float64)
    for start in range(0, len(mine), BATCH):
        index = torch.tensor(mine[start : start + BATCH])
        images = placement.put_images(normalize(samples.images[index]))
        labels = samples.labels[index].long().to(placement.device)
        with placement.autocast():
            output = model(images)
        value = loss(output, labels, ignore_index=255)
        logits = logits_of(output).float()
        if logits.shape[-2:] != labels.shape[-2:]:
            logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
        matrix.update(logits.argmax(1), labels)
        total += torch.tensor([float(value) * len(index), len(index)], dtype=torch.float64)
    model.train(was_training)
    matrix.sum_over_ranks()
    if dist.is_initialized():
        shared = total.to("cuda" if dist.get_backend() == "nccl" else "cpu")
        dist.all_reduce(shared)
        total = shared.cpu()
    row = {f"{prefix}/miou": matrix.miou(), f"{prefix}/accuracy": matrix.accuracy(), f"{prefix}/loss": float(total[0] / total[1])}
    for name, iou in zip(class_names, matrix.iou().tolist(), strict=True):
        if iou == iou:
            row[f"{prefix}/iou/{name}"] = iou
    return row


def evaluate(folder: Path, *, split: Split = "val", overrides: Sequence[str] = ()) -> dict[str, float]:
    """Score the checkpoint of a finished training.

    Args:
        folder: The training's ``--output``.
        split: train, val or test.
        overrides: ``key=value``, such as ``data.domain=shifted``; of data, compute and output_loss only.

    Raises:
        ConfigError: If there is no checkpoint, the data do not fit it, or an override would change nothing or another model.
    """
    dotted = parse_overrides(overrides)
    for key in dotted:
        if key.partition(".")[0] not in CHANGEABLE:
            raise ConfigError(f"an override must begin with {', '.join(CHANGEABLE)}, since the model is trained already, but got {key}")
    state = checkpoint.load(folder)
    run = make_run(json.loads(state["run"]), dotted)
    if run.data.num_classes != state["num_classes"]:
        raise ConfigError(f"the data must have the {state['num_classes']} classes that the model was trained for, but have {run.data.num_classes}")
    placement = decide(run.compute, Machine.here())
    model = build_model(run, run.data.num_classes)
    prefix = "backbone."
    try:
        model.load_state_dict({key.removeprefix(prefix): value for key, value in state["net"].items() if key.startswith(prefix)})
    except RuntimeError as error:
        raise ConfigError(f"the model must be the one that was trained, but: {' '.join(str(error).split())}") from None
    samples = run.data.load(split)
    return score(placement.put_net(model), samples, run.data.class_names, loss=output_loss(run), placement=placement, prefix=split)
