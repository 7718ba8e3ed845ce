"""Scores of a finished training on any data."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imachsr.config.build import build_model, check_output_loss, output_loss
from imachsr.config.continued import placeless
from imachsr.config.load import make_run, parse_overrides, run_to_dict
from imachsr.config.schema import SCORED_ON, ConfigError, Run
from imachsr.core.output import CrossEntropy, logits_of
from imachsr.core.types import IGNORE_INDEX
from imachsr.data.classes import parts_of, shared
from imachsr.data.samples import Dataset, Progress, Samples, Split, untold
from imachsr.data.subset import Subset
from imachsr.models import SmpModel
from imachsr.train import checkpoint
from imachsr.train.device import Machine, decide
from imachsr.train.metrics import Reliability
from imachsr.train.score import Corrupted, images_at_once, score, score_corrupted

_AT_ONCE = "scoring.batch_size"


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
    label otherwise is ignored. Where one of them has several classes for what is one of the other's (names that mean the same, or ``parts`` of a data
    set), these count as one. A warning names what is taken together and left out.

    Args:
        folder: The training's ``--output``.
        split: train, val or test; val is the sequence that was held out where ``subset.hold_out`` names one.
        overrides: ``key=value``, such as ``data.domain=shifted``; of data, compute and output_loss, and ``scoring.batch_size``.
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
        if key != _AT_ONCE and key.partition(".")[0] not in SCORED_ON:
            rule = f"an override must begin with {', '.join(SCORED_ON)}, or be {_AT_ONCE}"
            raise ConfigError(f"{rule}, since the model is trained already, but got {key}")
    state = checkpoint.load(folder, which)
    before = make_run(json.loads(state["run"]))
    run = make_run(json.loads(state["run"]), dotted)
    placement = decide(run.compute, Machine.here())
    model = placement.put_net(trained_model(state, run, use_ema=use_ema))
    is_own = placeless(run_to_dict(run)["data"]) == placeless(run_to_dict(before)["data"])
    subset = run.subset if split == "val" and is_own else Subset()
    samples = subset.scored(partial(run.data.load, "train", progress=progress), partial(run.data.load, split, progress=progress))
    names: Sequence[str] = run.data.class_names
    if tuple(names) != tuple(before.data.class_names) or run.data.num_classes != state["num_classes"]:
        model, samples, names = _common(model, samples, before.data, run.data)
    samples.check_labelled(split)
    if any(key.partition(".")[0] == "output_loss" for key in dotted):
        if corrupted is not None:
            raise ConfigError("output_loss must be left out, since spoilt images are scored without a loss")
        check_scored(len(names), state["num_classes"])
        check_output_loss(run, state["num_classes"])
    batch = images_at_once(run)
    if corrupted is None:
        # Of fewer classes than the loss may have weights for, plain cross-entropy.
        loss = output_loss(run) if len(names) == state["num_classes"] else CrossEntropy()
        return score(model, samples, names, loss=loss, placement=placement, prefix=split, reliability=reliability, batch=batch)
    return score_corrupted(model, samples, names, corrupted, placement=placement, progress=progress, batch=batch)


def check_scored(count: int, num_classes: int) -> None:
    """Refuse a loss for what is scored on fewer classes than the model has.

    Args:
        count: Classes that are scored.
        num_classes: K of the model.

    Raises:
        ConfigError: If they are fewer.
    """
    if count != num_classes:
        raise ConfigError(f"output_loss must be left out, since it is of {num_classes} classes, and {count} are scored")


class _Chosen(nn.Module):
    """A model's scores of some of its classes, or of several taken together."""

    def __init__(self, model: nn.Module, classes: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.model, self.classes = model, [list(some) for some in classes]

    def forward(self, images: Tensor) -> Tensor:
        logits = logits_of(self.model(images))
        # The probability of several is the sum of theirs.
        return torch.stack([logits[:, some].logsumexp(1) for some in self.classes], 1)


def _common(model: nn.Module, samples: Samples, before: Dataset, data: Dataset) -> tuple[nn.Module, Samples, Sequence[str]]:
    """The model, the samples and the names of the classes that both know.

    Args:
        model: As it was trained.
        samples: That it is scored on.
        before: What it was trained on.
        data: What the samples are of.
    """
    own, other = before.class_names, data.class_names
    try:
        found = shared(own, other, own_parts=parts_of(before), other_parts=parts_of(data))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if found is None:
        warnings.warn("the data's classes are called otherwise than the model's, and are taken by their numbers", stacklevel=3)
        return model, samples, other
    told = [f"scored on the {len(found)} classes that both have"]
    told += [f"{' and '.join(own[index] for index in each.own)} of the model as one, {each.name}" for each in found if len(each.own) > 1]
    told += [f"{' and '.join(other[index] for index in each.other)} of the data as one, {each.name}" for each in found if len(each.other) > 1]
    rest = [name for index, name in enumerate(own) if all(index not in each.own for each in found)]
    ignored = [name for index, name in enumerate(other) if all(index not in each.other for each in found)]
    parts = [f"{what} {', '.join(names)}" for what, names in (("of the model", rest), ("of the data", ignored)) if names]
    told += [f"left out: {'; '.join(parts)}"] if parts else []
    if len(told) > 1:
        warnings.warn("; ".join(told), stacklevel=3)
    table = torch.full((256,), IGNORE_INDEX, dtype=torch.uint8)
    for place, each in enumerate(found):
        table[list(each.other)] = place
    mapped = Samples(images=samples.images, labels=table[samples.labels.long()], names=samples.names)
    return _Chosen(model, [each.own for each in found]).eval(), mapped, [each.name for each in found]
