"""Scores of a model on a split, and of a finished training on any data."""

import json
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map_only  # no public module of torch has them

from imachsr.config.build import build_model, output_loss
from imachsr.config.continued import placeless
from imachsr.config.load import make_run, parse_overrides, run_to_dict
from imachsr.config.schema import SCORED_ON, ConfigError, Run
from imachsr.core.output import CrossEntropy, logits_of
from imachsr.core.types import IGNORE_INDEX
from imachsr.data.classes import shared
from imachsr.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from imachsr.data.samples import Progress, Samples, Split, untold
from imachsr.data.transforms import normalize
from imachsr.models import SmpModel
from imachsr.train import checkpoint
from imachsr.train.device import Machine, Placement, decide
from imachsr.train.gallery import Gallery
from imachsr.train.metrics import BoundaryIoU, ConfusionMatrix, NegativeLogLikelihood, Reliability
from imachsr.train.parallel import rank_and_world, sum_over_ranks

BATCH = 16


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
    reliability: Reliability | None = None,
    spoil: Callable[[Tensor, Sequence[int]], Tensor] | None = None,
) -> dict[str, float]:
    """How good a model is over all samples, shared out over the ranks.

    mIoU, boundary IoU, accuracy, IoU per class and calibration error (percent), the negative log likelihood (nats) and the output loss.

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
        reliability: Without counts, and takes those of all ranks.
        spoil: Changes images, uint8 ``[B, 3, H, W]`` with their numbers, before they are normalised.
    """
    was_training = model.training
    model.eval()
    matrix, reliability = ConfusionMatrix(len(class_names)), reliability or Reliability()
    boundary, likelihood = BoundaryIoU(len(class_names)), NegativeLogLikelihood()
    rank, world = rank_and_world()
    mine = range(rank, len(samples), world)
    total = torch.zeros(2, dtype=torch.float64, device=placement.device)
    for start in range(0, math.ceil(len(samples) / world), BATCH):
        # A sharded model is put together by all ranks in each forward: one that is through goes along, and what it gets does not count.
        own = mine[start : start + BATCH]
        index = torch.tensor(own or [0])
        shown = samples.images[index] if spoil is None else spoil(samples.images[index], index.tolist())
        images = placement.put_images(normalize(shown))
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
        boundary.update(predicted, labels)
        likelihood.update(logits, labels)
        if gallery is not None:
            gallery.note(own, predicted)
    model.train(was_training)
    for sums in (matrix, reliability, boundary, likelihood):
        sums.sum_over_ranks()
    if gallery is not None:
        gallery.note_counts(matrix, reliability)
    lost, valid = sum_over_ranks(total).tolist()
    row = {f"{prefix}/miou": matrix.miou(), f"{prefix}/boundary_iou": boundary.mean(), f"{prefix}/accuracy": matrix.accuracy()}
    row |= {f"{prefix}/ece": reliability.ece(), f"{prefix}/nll": likelihood.mean()}
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


@dataclass(frozen=True, kw_only=True)
class Corrupted:
    """Which spoilt images a model is scored on.

    Args:
        names: Of corruptions; None for all.
        severities: Each in 1..5.
    """

    names: tuple[str, ...] | None = None
    severities: tuple[int, ...] = SEVERITIES

    def __post_init__(self) -> None:
        for what, given, known in (("corruptions", self.names, tuple(CORRUPTIONS)), ("severities", self.severities, SEVERITIES)):
            if given is None:
                continue
            if strange := [each for each in given if each not in known]:
                raise ConfigError(f"`{what}` must be among {', '.join(map(str, known))}, but got {strange[0]!r}")
            if not given or len(set(given)) < len(given):
                raise ConfigError(f"`{what}` must name one or more, each once, but got {list(given)}")


def score_corrupted(
    model: nn.Module, samples: Samples, class_names: Sequence[str], corrupted: Corrupted, *, placement: Placement, progress: Progress = untold
) -> dict[str, float]:
    """How good a model is on spoilt images (Hendrycks and Dietterich, arXiv 1903.12261).

    Args:
        model: As in :func:`score`.
        samples: What is spoilt and scored on.
        class_names: K names.
        corrupted: In which ways.
        placement: Where to compute.
        progress: Called with the passes over the samples that are done, and the number of all.

    Returns:
        ``corrupted/miou``, ``corrupted/ece`` and ``corrupted/nll``, the means over all of them; ``corrupted/fog/miou`` and so on, each the mean over
        the severities, and ``corrupted/fog/3/miou``. mIoU and ECE in percent.
    """
    names = tuple(CORRUPTIONS) if corrupted.names is None else corrupted.names
    passes = [(name, severity) for name in names for severity in corrupted.severities]
    rows: dict[tuple[str, int], dict[str, float]] = {}
    for done, (name, severity) in enumerate(passes, 1):
        spoil = partial(_spoilt, name, severity)
        rows[name, severity] = score(model, samples, class_names, loss=CrossEntropy(), placement=placement, prefix="corrupted", spoil=spoil)
        progress(done, len(passes))
    found = {key: _mean(row[key] for row in rows.values()) for key in ("corrupted/miou", "corrupted/ece", "corrupted/nll")}
    for name in names:
        of_name = {severity: rows[name, severity]["corrupted/miou"] for severity in corrupted.severities}
        found[f"corrupted/{name}/miou"] = _mean(of_name.values())
        found |= {f"corrupted/{name}/{severity}/miou": value for severity, value in of_name.items()}
    return found


def _mean(values: Iterable[float]) -> float:
    given = list(values)
    return math.fsum(given) / len(given)


def _spoilt(name: str, severity: int, images: Tensor, numbers: Sequence[int]) -> Tensor:
    return corrupt(images, name, severity, numbers=numbers)


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
    corrupted: Corrupted | None = None,
    reliability: Reliability | None = None,
    progress: Progress = untold,
) -> dict[str, float]:
    """Score a checkpoint of a training.

    Data with other classes are scored on the classes that both have, by their names: the model then chooses among these alone, and what the data
    label otherwise is ignored. A warning names what is left out.

    Args:
        folder: The training's ``--output``.
        split: train, val or test; val is the sequence that was held out where ``subset.hold_out`` names one.
        overrides: ``key=value``, such as ``data.domain=shifted``; of data, compute and output_loss only.
        which: The latest checkpoint, or the best-scored one.
        use_ema: As in :func:`trained_model`.
        corrupted: Score on spoilt images instead.
        reliability: As in :func:`score`; it stays empty with ``corrupted``.
        progress: Called with the samples that are decoded, or the passes over them that are done, and the number of all.

    Raises:
        ConfigError: If there is no checkpoint, the data do not fit it, or an override would change nothing or another model.
    """
    dotted = parse_overrides(overrides)
    for key in dotted:
        if key.partition(".")[0] not in SCORED_ON:
            raise ConfigError(f"an override must begin with {', '.join(SCORED_ON)}, since the model is trained already, but got {key}")
    state = checkpoint.load(folder, which)
    before = make_run(json.loads(state["run"]))
    run = make_run(json.loads(state["run"]), dotted)
    placement = decide(run.compute, Machine.here())
    model = placement.put_net(trained_model(state, run, use_ema=use_ema))
    samples = run.data.load(split, progress=progress)
    if split == "val" and placeless(run_to_dict(run)["data"]) == placeless(run_to_dict(before)["data"]):
        _, samples = run.subset.split(run.data.load("train"), lambda: samples)
    names: Sequence[str] = run.data.class_names
    if tuple(names) != tuple(before.data.class_names) or run.data.num_classes != state["num_classes"]:
        model, samples, names = _common(model, samples, before.data.class_names, names)
    if corrupted is None:
        # Of fewer classes than the loss may have weights for, plain cross-entropy.
        loss = output_loss(run) if len(names) == state["num_classes"] else CrossEntropy()
        return score(model, samples, names, loss=loss, placement=placement, prefix=split, reliability=reliability)
    return score_corrupted(model, samples, names, corrupted, placement=placement, progress=progress)


class _Chosen(nn.Module):
    """A model's scores of some of its classes."""

    def __init__(self, model: nn.Module, classes: Sequence[int]) -> None:
        super().__init__()
        self.model, self.classes = model, tuple(classes)

    def forward(self, images: Tensor) -> Tensor:
        return logits_of(self.model(images))[:, list(self.classes)]


def _common(model: nn.Module, samples: Samples, own: Sequence[str], other: Sequence[str]) -> tuple[nn.Module, Samples, Sequence[str]]:
    """The model, the samples and the names of the classes that both know."""
    try:
        found = shared(own, other)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if found is None:
        warnings.warn("the data's classes are called otherwise than the model's, and are taken by their numbers", stacklevel=3)
        return model, samples, other
    rest = [name for index, name in enumerate(own) if index not in found]
    used = {number for numbers in found.values() for number in numbers}
    ignored = [name for number, name in enumerate(other) if number not in used]
    parts = [f"{what} {', '.join(names)}" for what, names in (("of the model", rest), ("of the data", ignored)) if names]
    if parts:
        warnings.warn(f"scored on the {len(found)} classes that both have; left out: {'; '.join(parts)}", stacklevel=3)
    table = torch.full((256,), IGNORE_INDEX, dtype=torch.uint8)
    for place, numbers in enumerate(found.values()):
        table[list(numbers)] = place
    mapped = Samples(images=samples.images, labels=table[samples.labels.long()], names=samples.names)
    return _Chosen(model, list(found)).eval(), mapped, [own[index] for index in found]
