"""Scores of a model on a split, and of a finished training on any data."""

import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map_only  # no public module of torch has them

from imachsr.config.build import build_model, output_loss
from imachsr.config.load import make_run, parse_overrides
from imachsr.config.schema import ConfigError, Run
from imachsr.core.output import logits_of
from imachsr.core.types import IGNORE_INDEX
from imachsr.data.samples import Progress, Samples, Split, untold
from imachsr.data.transforms import normalize
from imachsr.models import SmpModel
from imachsr.train import checkpoint
from imachsr.train.device import Machine, Placement, decide
from imachsr.train.gallery import Gallery
from imachsr.train.metrics import ConfusionMatrix, Reliability
from imachsr.train.parallel import rank_and_world, sum_over_ranks

BATCH = 16
CHANGEABLE = ("data", "compute", "output_loss")


@torch.no_grad()
def score(
    model: nn.Module,
    samples: Samples,
    class_names: Sequence[str],
    *,
    loss: Callable[..., Any],
    placement: Placement,
    prefix: str,
    gallery: Gallery | None = None,
) -> dict[str, float]:
    """mIoU, accuracy, IoU per class and calibration error (percent), and the output loss, of a model over all samples, shared out over the ranks.

    The loss is the mean of each image's own, weighted by its valid pixels: for cross-entropy without class weights that over all valid pixels of the
    split. It does not depend on the number of ranks; 0 without a valid pixel.

    Args:
        model: Gives logits for images, and may be sharded; its mode is restored. Every rank must call.
        samples: What to score on.
        class_names: K names.
        loss: Output loss.
        placement: Where to compute.
        prefix: Of the keys: ``val`` gives ``val/miou``, ``val/iou/road``, ...; a class that does not occur has no key.
        gallery: Keeps what is predicted.
    """
    was_training = model.training
    model.eval()
    matrix, reliability = ConfusionMatrix(len(class_names)), Reliability()
    rank, world = rank_and_world()
    mine = range(rank, len(samples), world)
    total = torch.zeros(2, dtype=torch.float64, device=placement.device)
    for start in range(0, math.ceil(len(samples) / world), BATCH):
        # A sharded model is put together by all ranks in each forward: one that is through goes along, and what it gets does not count.
        own = mine[start : start + BATCH]
        index = torch.tensor(own or [0])
        images = placement.put_images(normalize(samples.images[index]))
        labels = samples.labels[index].long().to(placement.device)
        with placement.autocast():
            output = model(images)
        if not own:
            continue
        total += _loss(loss, output, labels)
        logits = logits_of(output).float()
        if logits.shape[-2:] != labels.shape[-2:]:
            logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
        predicted = logits.argmax(1)
        matrix.update(predicted, labels)
        reliability.update(logits, labels)
        if gallery is not None:
            gallery.note(own, predicted)
    model.train(was_training)
    matrix.sum_over_ranks()
    reliability.sum_over_ranks()
    if gallery is not None:
        gallery.note_counts(matrix, reliability)
    lost, valid = sum_over_ranks(total).tolist()
    row = {f"{prefix}/miou": matrix.miou(), f"{prefix}/accuracy": matrix.accuracy(), f"{prefix}/ece": reliability.ece()}
    row[f"{prefix}/loss"] = lost / max(valid, 1)
    for name, iou in zip(class_names, matrix.iou().tolist(), strict=True):
        if iou == iou:
            row[f"{prefix}/iou/{name}"] = iou
    return row


def _loss(loss: Callable[..., Any], output: Any, labels: Tensor) -> Tensor:
    """Sum over the images of their loss times their valid pixels, and of those pixels, ``[2]`` float64."""
    valid = (labels != IGNORE_INDEX).flatten(1).sum(1)
    total = torch.zeros(2, dtype=torch.float64, device=labels.device)
    if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(output)):
        output = logits_of(output)  # an object of the model's own, which cannot be cut into images
    for image, pixels in enumerate(valid.tolist()):
        if pixels:  # an image without any may give NaN, and counts for nothing
            value = loss(_image(output, image, len(labels)), labels[image : image + 1], ignore_index=IGNORE_INDEX)
            total += torch.stack([torch.as_tensor(value, device=total.device).double() * pixels, valid[image].double()])
    return total


def _image(output: Any, number: int, count: int) -> Any:
    """The part of a model's output, of any structure, that is of one of ``count`` images."""
    return tree_map_only(Tensor, lambda part: part[number : number + 1] if part.ndim and len(part) == count else part, output)


def trained_model(state: dict[str, Any], run: Run, *, use_ema: bool = True) -> nn.Module:
    """The bare backbone of a checkpoint, on the CPU and in eval mode; nothing of the method is built.

    Args:
        state: Of the checkpoint.
        run: The run that it is of.
        use_ema: Take the exponential mean of the weights where the training kept one, which is what it was scored by, not those of the last step.

    Raises:
        ConfigError: If the run's model is not the one that was trained.
    """
    if isinstance(run.model, SmpModel):  # pretrained weights would be downloaded to be overwritten
        run = run.model_copy(update={"model": replace(run.model, encoder_weights=None)})
    model = build_model(run, state["num_classes"])
    if not use_ema and state["ema"] is None:
        warnings.warn("the training kept no mean of its weights (optimizer.ema), so that --no-ema changes nothing", stacklevel=2)
    weights = state["ema"] if use_ema else None
    if weights is None:
        prefix = "backbone."
        weights = {key.removeprefix(prefix): value for key, value in state["net"].items() if key.startswith(prefix)}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(f"the model must be the one that was trained, but: {' '.join(str(error).split())}") from None
    return model.eval()


def evaluate(
    folder: Path,
    *,
    split: Split = "val",
    overrides: Sequence[str] = (),
    which: checkpoint.Which = "latest",
    use_ema: bool = True,
    progress: Progress = untold,
) -> dict[str, float]:
    """Score a checkpoint of a training.

    Args:
        folder: The training's ``--output``.
        split: train, val or test.
        overrides: ``key=value``, such as ``data.domain=shifted``; of data, compute and output_loss only.
        which: The latest checkpoint, or the best-scored one.
        use_ema: As in :func:`trained_model`.
        progress: Called with the samples that are decoded, and the number of all.

    Raises:
        ConfigError: If there is no checkpoint, the data do not fit it, or an override would change nothing or another model.
    """
    dotted = parse_overrides(overrides)
    for key in dotted:
        if key.partition(".")[0] not in CHANGEABLE:
            raise ConfigError(f"an override must begin with {', '.join(CHANGEABLE)}, since the model is trained already, but got {key}")
    state = checkpoint.load(folder, which)
    run = make_run(json.loads(state["run"]), dotted)
    if run.data.num_classes != state["num_classes"]:
        raise ConfigError(f"the data must have the {state['num_classes']} classes that the model was trained for, but have {run.data.num_classes}")
    placement = decide(run.compute, Machine.here())
    model = trained_model(state, run, use_ema=use_ema)
    samples = run.data.load(split, progress=progress)
    return score(placement.put_net(model), samples, run.data.class_names, loss=output_loss(run), placement=placement, prefix=split)
