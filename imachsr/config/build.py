"""The only factory: objects from a checked run."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from imachsr.config.schema import ConfigError, ImportedPart, Run
from imachsr.core.losses import AnySideLoss
from imachsr.core.wrapper import IMacHSR
from imachsr.importing import import_object


def build_model(run: Run, num_classes: int) -> nn.Module:
    """The backbone, with weights that depend on the run's seed only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        return run.model.build(num_classes)


def build_net(run: Run, *, num_classes: int, size: tuple[int, int]) -> IMacHSR:
    """Backbone, taps, adapters and losses, on the CPU.

    The weights of the backbone do not depend on the method: every arm of a search starts from the same.

    Raises:
        ConfigError: If the model and the method do not fit; the message says how.
    """
    model = build_model(run, num_classes)
    example = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(run.seed))
    method = run.method
    losses = method.loss if isinstance(method.loss, tuple) else (method.loss,)
    made: list[Any] = [_side_loss(loss) if method.alpha > 0 else loss for loss in losses]
    try:
        return IMacHSR(
            model,
            example=example,
            num_classes=num_classes,
            standard=selection_standard(run),
            loss=made if isinstance(method.loss, tuple) else made[0],
            alpha=method.alpha,
            entropy=method.entropy,
            beta=method.beta,
            output_loss=output_loss(run),
            heterogeneity=method.heterogeneity,
            seed=run.seed,
        )
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"data, model and method must fit, but: {error}") from error


def output_loss(run: Run) -> Callable[..., Any]:
    """The loss of the model's output."""
    loss: Callable[..., Any] = _called(run.output_loss)
    return loss


def selection_standard(run: Run) -> Any:
    """The rule that chooses the layers."""
    return _called(run.method.standard)


def _called(part: Any) -> Any:
    if not isinstance(part, ImportedPart):
        return part
    found: Callable[..., Any] = import_object(part.path)
    if not callable(found):
        raise ConfigError(f"{part.path!r} must be callable, but is a {type(found).__name__}")
    return partial(found, **part.kwargs) if part.kwargs else found


def _side_loss(part: Any) -> Any:
    if not isinstance(part, ImportedPart):
        return part
    found = import_object(part.path)
    if not isinstance(found, type) and isinstance(found, AnySideLoss):
        return found
    return found(**part.kwargs)


def schedule(step: int, *, steps_per_epoch: int, epochs: int, warmup_epochs: float) -> float:
    """Share of the peak learning rate at a step (0-based): a linear warm-up, then a cosine to 0 at the last step of ``epochs``."""
    warmup = min(warmup_epochs, epochs) * steps_per_epoch
    if step < warmup:
        return (step + 1) / (warmup + 1)
    rest = max(1.0, epochs * steps_per_epoch - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / rest)))


def build_optimizer(run: Run, net: nn.Module, steps_per_epoch: int) -> tuple[AdamW, LambdaLR]:
    """AdamW (no decay on biases and norms) and its schedule, to be stepped after every step."""
    o = run.optimizer
    weights = [p for p in net.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in net.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": o.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = AdamW([group for group in groups if group["params"]], lr=o.lr)
    share = partial(schedule, steps_per_epoch=steps_per_epoch, epochs=o.epochs, warmup_epochs=o.warmup_epochs)
    return optimizer, LambdaLR(optimizer, share)
