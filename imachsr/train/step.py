"""One optimisation step."""

import contextlib
import math
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from imachsr.core.objective import check_finite
from imachsr.core.types import Losses
from imachsr.train.device import Placement
from imachsr.train.parallel import agree, gathered, summed, synchronised, whole

FIRST_SCALE, LEAST_SCALE = 2.0**16, 1.0
"""Of a loss in float16: torch's own to begin with, halved by each step whose gradient is not finite; and the one below which there is no use."""


def train_step(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    placement: Placement,
    grad_clip: float | None = None,
    accumulate: int = 1,
    scaler: torch.amp.GradScaler | None = None,
    is_guarded: bool = False,
) -> list[Losses]:
    """Forward, backward and update on images ``[B, 3, H, W]`` and labels ``[B, H, W]``; the schedule advances by one step.

    Args:
        net: :class:`imachsr.IMacHSR`, or what shares it between ranks.
        images: Of the batch, on any device.
        labels: Likewise.
        optimizer: Of the net's parameters.
        scheduler: Of the optimizer.
        placement: Where and in what format the step runs.
        grad_clip: Largest norm of the backbone's gradient, and of the adapters' by itself, so that adding adapters does not shorten the former.
        accumulate: Micro-batches, 1..B, one after the other; the gradient is the mean of theirs, weighted by their images on all ranks.
        scaler: Of the loss, for float16.
        is_guarded: Look at the gradient's norm too before it is used.

    Returns:
        The losses of each micro-batch.

    Raises:
        FloatingPointError: If a loss, or a gradient that is looked at, is not finite, on any rank; nothing has been updated then. In float16 a
            gradient is looked at by the scaler, which tries other scales in the steps that follow.

    """
    optimizer.zero_grad(set_to_none=True)
    parts = list(zip(images.tensor_split(accumulate), labels.tensor_split(accumulate), strict=True))
    counts = summed(*(len(some) for some, _ in parts)) if accumulate > 1 else (1,)
    done: list[Losses] = []
    for number, ((some, theirs), count) in enumerate(zip(parts, counts, strict=True), 1):
        with synchronised(net, is_last=number == len(parts)):
            losses = _forward(net, some, theirs, placement)
            share = losses.total * (count / sum(counts))
            (share if scaler is None else scaler.scale(share)).backward()
        losses.prediction = losses.prediction[:0].clone()  # the logits of all micro-batches would stay until the last
        done.append(losses)
    if scaler is not None:
        scaler.unscale_(optimizer)
    _clip(net, grad_clip, is_checked=(is_guarded or grad_clip is not None) and scaler is None)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
        _check_scale(scaler)
    with _may_skip() if scaler is not None else contextlib.nullcontext():
        scheduler.step()
    return done


def _check_scale(scaler: torch.amp.GradScaler) -> None:
    """Refuse a gradient that is not finite whatever the loss was multiplied by; the scaler would leave out every further step and say nothing."""
    if (scale := scaler.get_scale()) < LEAST_SCALE:
        scaler.update(FIRST_SCALE)  # for what goes on behind this step
        rule = f"the gradient must be finite in float16 for a loss times {LEAST_SCALE:g} or more"
        raise FloatingPointError(f"{rule}, but is not until {scale:g}; lower optimizer.lr, or set compute.precision=bfloat16")


@contextlib.contextmanager
def _may_skip() -> Iterator[None]:
    """The scaler finds its scale by steps that it leaves out, often the first: torch then warns of a scheduler that goes before its optimizer."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step", category=UserWarning)
        yield


def _forward(net: nn.Module, images: Tensor, labels: Tensor, placement: Placement) -> Losses:
    """The losses, or the same exception on all ranks when those of one are not finite."""
    error: FloatingPointError | None = None
    try:
        with placement.autocast():
            losses: Losses = net(placement.put_images(images), labels.to(placement.device, non_blocking=True))
        check_finite(losses)
    except FloatingPointError as found:
        error = found
    (is_bad,) = agree(error is not None)
    if is_bad:
        # Sums over the ranks carry a NaN to all of them; the rank that it comes from names most terms.
        raise FloatingPointError(max((str(text) for text in gathered(error and str(error)) if text), key=len))
    return losses


def _clip(net: nn.Module, limit: float | None, *, is_checked: bool) -> None:
    if limit is None and not is_checked:
        return
    parts = dict((net.module if isinstance(net, DistributedDataParallel) else net).named_children())
    parameters = {name: [parameter for parameter in part.parameters() if parameter.grad is not None] for name, part in parts.items()}
    norms = {name: nn.utils.get_total_norm([each.grad for each in those if each.grad is not None]) for name, those in parameters.items() if those}
    if is_checked and norms:
        for name, value in zip(norms, torch.stack([whole(norm) for norm in norms.values()]).tolist(), strict=True):  # a GPU is waited for once
            if not math.isfinite(value):
                raise FloatingPointError(f"the gradient of the {name} must be finite, but its norm is {value}; lower optimizer.lr")
    if limit is not None:
        for name, norm in norms.items():
            nn.utils.clip_grads_with_norm_(parameters[name], limit, norm)
