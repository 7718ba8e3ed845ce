"""Scores of a model on samples, as they are or spoilt."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map_only  # no public module of torch has them

from imachsr.config.schema import ConfigError, Run
from imachsr.core.output import CrossEntropy, logits_of, read_by
from imachsr.core.types import IGNORE_INDEX
from imachsr.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from imachsr.data.samples import Progress, Samples, untold
from imachsr.data.transforms import normalize
from imachsr.train.device import Placement
from imachsr.train.gallery import Gallery
from imachsr.train.metrics import BoundaryIoU, ConfusionMatrix, NegativeLogLikelihood, Reliability
from imachsr.train.parallel import rank_and_world, sum_over_ranks

MOST = 16
"""Images at a time at most, where nothing else is said."""


def images_at_once(run: Run, *, workers: int = 1) -> int:
    """How many images each of so many workers scores at a time: where a training step fits with its backward, twice as many do without."""
    step = math.ceil(run.optimizer.batch_size / workers / run.optimizer.accumulate)
    return run.scoring.batch_size or min(MOST, 2 * step)


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
    batch: int = MOST,
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
        batch: Images at a time, >= 1.
    """
    was_training = model.training
    model.eval()
    matrix, reliability = ConfusionMatrix(len(class_names)), reliability or Reliability()
    boundary, likelihood = BoundaryIoU(len(class_names)), NegativeLogLikelihood()
    rank, world = rank_and_world()
    mine = range(rank, len(samples), world)
    total = torch.zeros(2, dtype=torch.float64, device=placement.device)
    for start in range(0, math.ceil(len(samples) / world), batch):
        # A sharded model is put together by all ranks in each forward: one that is through goes along, and what it gets does not count.
        own = mine[start : start + batch]
        index = torch.tensor(own or [0])
        shown = samples.images[index] if spoil is None else spoil(samples.images[index], index.tolist())
        images = placement.put_images(normalize(shown.to(placement.device)))  # bytes are a quarter of what they become
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
    output = read_by(loss, output)
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
    model: nn.Module,
    samples: Samples,
    class_names: Sequence[str],
    corrupted: Corrupted,
    *,
    placement: Placement,
    progress: Progress = untold,
    batch: int = MOST,
) -> dict[str, float]:
    """How good a model is on spoilt images (Hendrycks and Dietterich, arXiv 1903.12261).

    Args:
        model: As in :func:`score`.
        samples: What is spoilt and scored on.
        class_names: K names.
        corrupted: In which ways.
        placement: Where to compute.
        progress: Called with the passes over the samples that are done, and the number of all.
        batch: Images at a time, >= 1.

    Returns:
        ``corrupted/miou``, ``corrupted/ece`` and ``corrupted/nll``, the means over all of them; ``corrupted/fog/miou`` and so on, each the mean over
        the severities, and ``corrupted/fog/3/miou``. mIoU and ECE in percent.
    """
    names = tuple(CORRUPTIONS) if corrupted.names is None else corrupted.names
    passes = [(name, severity) for name in names for severity in corrupted.severities]
    rows: dict[tuple[str, int], dict[str, float]] = {}
    for done, (name, severity) in enumerate(passes, 1):
        spoil = partial(_spoilt, name, severity)
        row = score(model, samples, class_names, loss=CrossEntropy(), placement=placement, prefix="corrupted", spoil=spoil, batch=batch)
        rows[name, severity] = row
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
