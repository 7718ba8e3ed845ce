"""The only factory: objects from a checked run."""

import math
from collections.abc import Callable, Iterator
from functools import partial, update_wrapper
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from imachsr.config.plan import Plan
from imachsr.config.schema import ByDepth, ConfigError, ImportedPart, Run
from imachsr.core.calibration import Calibration
from imachsr.core.losses import AnySideLoss, DepthRule
from imachsr.core.output import logits_of
from imachsr.core.types import IGNORE_INDEX
from imachsr.core.wrapper import IMacHSR
from imachsr.data.samples import Progress, Samples, untold
from imachsr.data.transforms import normalize
from imachsr.importing import call_object, check_arguments, import_object, reason


def build_model(run: Run, num_classes: int) -> nn.Module:
    """The backbone, with weights that depend on the run's seed only.

    Raises:
        ConfigError: If there is no such model.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        try:
            return run.model.build(num_classes)
        except ValueError as error:
            raise ConfigError(f"model: {error}") from error


def build_net(
    run: Run,
    *,
    num_classes: int,
    size: tuple[int, int],
    samples: Samples | None = None,
    steps_per_epoch: int | None = None,
    device: str = "cpu",
) -> IMacHSR:
    """Backbone, taps, adapters and losses.

    The weights of the backbone do not depend on the method: every arm of a search starts from the same.

    Args:
        run: All settings.
        num_classes: K.
        size: (H, W) of the images.
        samples: For a standard that looks at data.
        steps_per_epoch: For a schedule that changes; None for a net that is looked at and not trained, which takes one.
        device: Where the net will be; its layers are found there too, by forwards of whole images.

    Raises:
        ConfigError: If the model and the method do not fit; the message says how.
    """
    check_output_loss(run, num_classes)
    model = build_model(run, num_classes).to(device)
    example = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(run.seed)).to(device)
    method = run.method
    standard, of_output = selection_standard(run), output_loss(run)
    try:
        _check_output(model, example, num_classes)
        return IMacHSR(
            model,
            example=example,
            num_classes=num_classes,
            standard=standard,
            loss=_side_losses(method.loss) if method.alpha > 0 else "brier",
            alpha=method.alpha,
            entropy=method.entropy,
            beta=method.beta,
            output_loss=of_output,
            heterogeneity=method.heterogeneity,
            profile=method.profile,
            schedule=method.schedule,
            total_steps=Plan(run=run, full=steps_per_epoch or 1).total * run.optimizer.accumulate,
            grad_ratio=method.grad_ratio,
            calibration=None if samples is None else _Batches(lambda: samples, run.optimizer.batch_size, device),
            seed=run.seed,
        )
    except (ValueError, TypeError, RuntimeError, LookupError, AttributeError, AssertionError) as error:
        paths = [part.path for part in (run.model, run.method.standard, *_parts(method.loss)) if part.kind == "import"]
        raise ConfigError(f"data, model and method must fit, but: {reason(error, *paths)}") from error


def output_loss(run: Run) -> Callable[..., Any]:
    """The loss of the model's output."""
    loss: Callable[..., Any] = _called("output_loss", run.output_loss, 2, {"ignore_index": IGNORE_INDEX})
    return loss


def check_output_loss(run: Run, num_classes: int) -> None:
    """Refuse a loss of the output that fits another number of classes.

    Raises:
        ConfigError: If its weights are not one a class.
    """
    weights = getattr(run.output_loss, "class_weights", None)
    if weights is not None and len(weights) != num_classes:
        raise ConfigError(f"output_loss.class_weights: must have {num_classes} values, one a class, but got {len(weights)}")


def selection_standard(run: Run) -> Any:
    """The rule that chooses the layers."""
    return _called("method.standard", run.method.standard, 1, {})


def _called(key: str, part: Any, positional: int, always: dict[str, Any]) -> Any:
    """The part, or the user's function with its arguments, or what the user's class gives for them."""
    if not isinstance(part, ImportedPart):
        return part
    try:
        found = import_object(part.path)
        if isinstance(found, type):
            return call_object(part.path, part.kwargs)
        if hasattr(found, "select") and not part.kwargs:
            return found
        if not callable(found):
            raise ValueError(f"{part.path!r} must be callable, but is a {type(found).__name__}")
        check_arguments(part.path, found, {**always, **part.kwargs}, positional=positional)
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from error
    # With the function's attributes, since `family` says what it differs from.
    return update_wrapper(partial(found, **part.kwargs), found) if part.kwargs else found


class _Batches:
    """Normalised batches in the samples' order, not augmented; loaded when they are asked for.

    They have 8 samples at most: a step's may be shared by many workers, and here the features of all layers are kept, in full precision.
    """

    def __init__(self, load: Callable[[], Samples], batch_size: int, device: str = "cpu") -> None:
        self._load, self._batch_size, self._device = load, min(8, batch_size), device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        samples = self._load()
        for start in range(0, len(samples), self._batch_size):
            index = torch.arange(start, min(start + self._batch_size, len(samples)))
            yield normalize(samples.images[index].to(self._device)), samples.labels[index].long().to(self._device)


def calibrate(run: Run, model: nn.Module, num_classes: int, *, progress: Progress = untold) -> Calibration:
    """The run's training data for standards that look at data; loaded when one does, which ``progress`` is told of as by the data's ``load``."""
    batches = _Batches(lambda: run.data.load("train", progress=progress), run.optimizer.batch_size)
    return Calibration(model, batches, num_classes, IGNORE_INDEX, seed=run.seed)


def _parts(loss: Any) -> tuple[Any, ...]:
    """The settings of all side losses."""
    if isinstance(loss, ByDepth):
        return (loss.early, loss.late)
    return loss if isinstance(loss, tuple) else (loss,)


def _side_losses(part: Any) -> Any:
    if isinstance(part, tuple):
        return [_side_loss(loss) for loss in part]
    if isinstance(part, ByDepth):
        return DepthRule(early=_side_loss(part.early), late=_side_loss(part.late), share=part.share)
    return _side_loss(part)


def _side_loss(part: Any) -> Any:
    if not isinstance(part, ImportedPart):
        return part
    try:
        found = import_object(part.path)
        if not isinstance(found, type) and isinstance(found, AnySideLoss) and not part.kwargs:
            return found
        return call_object(part.path, part.kwargs)
    except ValueError as error:
        raise ConfigError(f"method.loss: {error}") from error


def _check_output(model: nn.Module, example: Tensor, num_classes: int) -> None:
    """Raise ValueError unless the model takes such images and gives K scores a pixel; the model is left as it was."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            scores = logits_of(model.eval()(example))
    finally:
        for module, is_training in modes:
            module.training = is_training
    if scores.ndim != 4 or scores.shape[:2] != (len(example), num_classes):
        raise ValueError(f"the model's output must be [{len(example)}, {num_classes}, h, w] for {num_classes} classes, but is {list(scores.shape)}")


def schedule(step: float, *, steps_per_epoch: int, epochs: int, warmup_epochs: float) -> float:
    """Share of the peak learning rate at a step (0-based): a linear warm-up, then a cosine that reaches 0 one step after the last."""
    warmup = min(warmup_epochs, epochs) * steps_per_epoch
    if step < warmup:
        return (step + 1) / (warmup + 1)
    rest = epochs * steps_per_epoch - warmup
    done = min(1.0, (step - warmup) / rest) if rest > 0 else 1.0
    return 0.5 * (1 + math.cos(math.pi * done))


def build_optimizer(run: Run, net: nn.Module, steps_per_epoch: int) -> tuple[AdamW, LambdaLR]:
    """AdamW (no decay on biases and norms) and its schedule, to be stepped after every step."""
    o = run.optimizer
    weights = [p for p in net.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in net.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": o.weight_decay}, {"params": others, "weight_decay": 0.0}]
    # Fused: one pass over each tensor takes half the time of torch's default, which makes ten.
    optimizer = AdamW([group for group in groups if group["params"]], lr=o.lr, fused=True)
    time = Plan(run=run, full=steps_per_epoch).time
    share = partial(schedule, steps_per_epoch=steps_per_epoch, epochs=o.epochs, warmup_epochs=o.warmup_epochs)
    return optimizer, LambdaLR(optimizer, lambda step: share(time(step)))
