"""The one module that users meet: a backbone with its taps, adapters and losses in one forward."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from imachsr.core.balance import GradientBalance
from imachsr.core.calibration import Calibration
from imachsr.core.entropy import Regularizer, parse_regularizer
from imachsr.core.labels import TapLabels
from imachsr.core.layers import Trace, trace
from imachsr.core.layout import to_nchw, volume_of
from imachsr.core.losses import AnySideLoss, DepthRule, losses_of, parse_side_loss
from imachsr.core.losses.protocol import only_drawn
from imachsr.core.objective import Heterogeneity, Objective, check_heterogeneity
from imachsr.core.output import AnyOutputLoss, CrossEntropy, OutputLoss, check_output_loss, logits_of, read_by
from imachsr.core.ranks import Ranks, check_parallel, refuse_parallel
from imachsr.core.scale import ScaleWatch, scale_of
from imachsr.core.schedules import Constant, Profile, Schedule, parse_schedule
from imachsr.core.selection import Standard, parse_standard, select
from imachsr.core.taps import Recorder
from imachsr.core.terms import as_weights, entropy_term, gives_scores, side_term
from imachsr.core.types import IGNORE_INDEX, Losses, Tap


class IMacHSR(nn.Module):
    """Intermediate multi-access heterogeneous supervision and regularization around any segmentation model (arXiv 2505.00404).

    ``net(images)`` is the model's own output; ``net(images, labels)`` gives :class:`Losses`. Adapters and side losses run inside this forward,
    so that DistributedDataParallel synchronises them. Building draws nothing from the global random state and leaves the model as it was.

    Args:
        model: Kept as ``net.backbone``; its ``state_dict()`` keys do not change.
        example: Images ``[B, C, H, W]``, or volumes ``[B, C, D, H, W]``, as in training, for the trace.
        num_classes: K >= 2.
        standard: Name, :data:`Standard`, or callable ``trace -> layer addresses``.
        loss: Name or side loss for all taps, a sequence with one a tap, or a :class:`DepthRule`.
        alpha: Total weight >= 0 of the side losses; at 0 none is built.
        entropy: Name or regularizer, or None.
        beta: Total weight >= 0 of the entropy terms; at 0 none is built.
        output_loss: Loss of the model's output, called ``(output, labels, ignore_index=...)``; cross-entropy by default.
        heterogeneity: What to do about a side loss of the output loss's family: ``strict`` raises, ``warn`` warns, ``off`` allows it.
        profile: How the taps share alpha and beta: ``uniform``, ``exp`` or ``linear_depth``.
        schedule: Factor of both over the training, by name or as an object; one that changes needs ``total_steps``; constant by default.
        total_steps: Calls of ``net(images, labels)`` in train mode that make up the training, >= 1.
        grad_ratio: Balance the gradients at the taps instead of fixed weights; see :class:`Objective`.
        calibration: Batches ``(images, labels)`` for a standard that looks at data (gradient, entropy, probe).
        ignore_index: Label of pixels that do not count.
        seed: Of adapter initialisation and pixel sampling.

    Raises:
        ValueError: For an unknown name, a weight out of range, or a model without a layer to supervise.
        TypeError: For a part that is not of its kind.

    """

    def __init__(
        self,
        model: nn.Module,
        *,
        example: Tensor,
        num_classes: int,
        standard: Standard | str | Callable[[Trace], Sequence[str]] = "auto",
        loss: str | AnySideLoss | Sequence[str | AnySideLoss] | DepthRule = "brier",
        alpha: float = Objective.alpha,
        entropy: str | Regularizer | None = "channel_norm",
        beta: float = Objective.beta,
        output_loss: AnyOutputLoss | None = None,
        heterogeneity: Heterogeneity = "warn",
        profile: Profile = "uniform",
        schedule: str | Schedule | None = None,
        total_steps: int | None = None,
        grad_ratio: float | None = None,
        calibration: Iterable[tuple[Tensor, Tensor]] | None = None,
        ignore_index: int = IGNORE_INDEX,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"`num_classes >= 2` must hold, but got {num_classes}")
        if any(isinstance(module, IMacHSR) for module in model.modules()):
            raise ValueError("a model must be wrapped once, but holds a net that is wrapped already; wrap what its `unwrap()` gives back")
        self.backbone = model
        self.objective = Objective(alpha=alpha, beta=beta, profile=profile, schedule=parse_schedule(schedule or "constant"), grad_ratio=grad_ratio)
        self.output_loss = CrossEntropy() if output_loss is None else output_loss
        check_output_loss(self.output_loss)
        # Names are read whatever the weights, so that a mistake in one is told where a search sets its weight to 0.
        regularizer = None if entropy is None else parse_regularizer(entropy)
        self.entropy = regularizer if beta > 0 else None
        standard = parse_standard(standard) if isinstance(standard, (str, Mapping)) else standard
        loss = parse_side_loss(loss) if isinstance(loss, (str, Mapping)) else loss
        check_heterogeneity(self.output_loss, None, heterogeneity)
        self.num_classes, self.ignore_index, self.seed, self.total_steps = num_classes, ignore_index, seed, total_steps
        self._check_steps()
        self.taps: tuple[Tap, ...] = ()
        self.traced: Trace | None = None
        self.losses: tuple[AnySideLoss, ...] = ()
        self.adapters = nn.ModuleList()
        # Side losses that are modules, so that their weights are trained, moved and saved with the net.
        self.loss_modules = nn.ModuleList()
        self.balance: GradientBalance | None = None
        self._recorder: Recorder | None = None
        # Not a buffer: it stays on the CPU, where reading it costs nothing, and DDP has nothing to broadcast.
        self._steps = torch.zeros((), dtype=torch.int64)
        self._scales = ScaleWatch()
        self._is_unwrapped = False
        if alpha > 0 or self.entropy is not None:
            if alpha > 0:
                refuse_parallel(model)
            found = None if calibration is None else Calibration(model, calibration, num_classes, ignore_index, seed=seed)
            self.traced = trace(model, example)
            self.taps = select(standard, self.traced, found)
            if alpha > 0:
                self._build_side(loss, heterogeneity, example)
            self._check_entropy()
            self._recorder = Recorder(model, self.taps)

    def _build_side(self, loss: Any, heterogeneity: Heterogeneity, example: Tensor) -> None:
        self.losses = losses_of(loss, self.taps)
        for side in {side.family: side for side in self.losses}.values():
            check_heterogeneity(self.output_loss, side, heterogeneity)
        self.loss_modules.extend(dict.fromkeys(side for side in self.losses if isinstance(side, nn.Module)))
        # Of the weights, not of the images, which may be uint8, or float32 in front of a model in bfloat16.
        dtype = next((p.dtype for p in self.backbone.parameters() if p.is_floating_point()), torch.get_default_dtype())
        generator = torch.Generator().manual_seed(self.seed)
        for tap, side in zip(self.taps, self.losses, strict=True):
            self.adapters.append(side.make_adapter(tap.layer.channels, self.num_classes, generator).to(example.device, dtype))
        if self.objective.grad_ratio is not None:
            self.balance = GradientBalance(len(self.taps), self.objective.grad_ratio).to(example.device)

    def _check_steps(self) -> None:
        if self.total_steps is not None and self.total_steps < 1:
            raise ValueError(f"`total_steps >= 1` must hold, but got {self.total_steps}")
        if self.total_steps is None and not isinstance(self.objective.schedule, Constant):
            kind = getattr(self.objective.schedule, "kind", self.objective.schedule)
            raise ValueError(f"`total_steps` must be given for the schedule {kind!r}, but is None; it is the number of training steps")

    def _check_entropy(self) -> None:
        if getattr(self.entropy, "reads", "features") == "scores" and not any(gives_scores(loss) for loss in self.losses):
            kinds = ", ".join(repr(getattr(loss, "kind", loss)) for loss in self.losses) or "no side loss"
            raise ValueError(f"`loss` must give class scores (such as dice or brier) for the entropy 'adapter', but got {kinds}")

    @property
    def misses(self) -> dict[str, int]:
        """Forwards in training in which a tap did not fire, per address."""
        return dict(self._recorder.misses) if self._recorder is not None else {}

    @property
    def num_steps(self) -> int:
        """Calls with labels in train mode so far; they seed the sampling and drive the schedule."""
        return int(self._steps)

    def get_extra_state(self) -> Tensor:
        """The count of steps, a scalar: what averages, moves or stores a state dict knows tensors alone."""
        return self._steps.clone()

    def set_extra_state(self, state: Tensor) -> None:
        """Take up the count of steps."""
        self._steps.copy_(state)

    def unwrap(self) -> nn.Module:
        """Take the hooks off the model and give it back as it was before it was wrapped; this net then trains it no more."""
        if self._recorder is not None:
            self._recorder.remove(self.backbone)
        self._is_unwrapped = True
        return self.backbone

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Any:
        """The model's own output, or with labels its losses.

        Args:
            images: ``[B, C, H, W]``, or ``[B, C, D, H, W]``.
            labels: int64 ``[B, H, W]`` (``[B, D, H, W]``; ``[B]`` for a classifier), classes 0..K-1 or ``ignore_index``. They may be smaller or
                larger than the images: scores are resized to them.

        Raises:
            TypeError: If labels are not int64.
            ValueError: If a label is outside the classes, height and width are swapped, or the model does not give one score a class.
            FloatingPointError: If a term is not finite; names tap and term.
            RuntimeError: In a replica of torch's DataParallel, or after :meth:`unwrap`.

        """
        if labels is None:
            return self.backbone(images)
        if getattr(self, "_is_replica", False):
            raise RuntimeError(
                "a net must be trained by one thread a GPU, but is in torch's DataParallel, whose replicas share its hooks; use "
                "DistributedDataParallel (torchrun), or one GPU (CUDA_VISIBLE_DEVICES=0)"
            )
        if self._is_unwrapped:
            raise RuntimeError("a net must hold its model to train it, but `unwrap()` gave that back; wrap the model again")
        _check_shapes(images, labels)
        ranks = Ranks.here() if self.training and torch.is_grad_enabled() else Ranks()
        if ranks.world > 1 and self.losses:
            check_parallel(self, self.backbone)
        is_checked = not torch.compiler.is_compiling()
        draw = self._steps + self.seed * 1_000_003
        at_taps = TapLabels(labels, self.num_classes, self.ignore_index, draw=draw, ranks=ranks, is_checked=is_checked)
        factor = self._factor()
        features: dict[str, Tensor] = {}
        if self._recorder is None:
            output = self.backbone(images)
        else:
            with self._recorder.recording():
                output = self.backbone(images)
            features = self._recorder.take(self.backbone)
        prediction = logits_of(output)
        if isinstance(self.output_loss, OutputLoss) and prediction.shape[1] != self.num_classes:
            raise ValueError(f"the model must give `num_classes` = {self.num_classes} scores a pixel, but gives {prediction.shape[1]}")
        with torch.autocast(labels.device.type, enabled=False):
            shared = {"ranks": ranks} if isinstance(self.output_loss, OutputLoss) else {}
            out = self.output_loss(read_by(self.output_loss, output), labels, ignore_index=self.ignore_index, **shared)
        losses = Losses(total=out, output=out, prediction=prediction.detach())
        if not isinstance(factor, float) or factor > 0:
            self._add_side(losses, features, at_taps, tuple(images.shape[2:]), factor, ranks)
        losses.total, losses.is_checked = self.objective.sum(out, losses.terms, losses.weights), is_checked
        if ranks.world > 1:  # what fired nowhere on this rank still takes part in the ranks' sums
            losses.total = losses.total + 0.0 * sum(p.sum() for p in (*self.adapters.parameters(), *self.loss_modules.parameters()))
        self._steps += self.training
        return losses

    def _factor(self) -> float | Tensor:
        if self.total_steps is None:
            return 1.0
        factor = self.objective.schedule((self._steps / self.total_steps).clamp(max=1.0))
        return factor if torch.compiler.is_compiling() else float(factor)

    def _add_side(
        self, losses: Losses, features: dict[str, Tensor], at_taps: TapLabels, size: tuple[int, ...], factor: float | Tensor, ranks: Ranks
    ) -> None:
        balance = getattr(self.balance, "factors", None)
        if self.balance is not None and self.training:
            balance = self.balance.update(ranks, self.objective.pulls(len(self.taps), factor))
        side_weights, entropy_weights = self.objective.weights(len(self.taps), factor, balance)
        shared = self._fired_everywhere(features, ranks, losses.output.device)
        for index, tap in enumerate(self.taps):
            address = tap.layer.address
            if address not in features:
                continue
            raw = features[address]
            extent = volume_of(raw, tap.layer.layout)
            hidden = to_nchw(raw, tap.layer.layout, size)
            labels = at_taps.at(extent or (hidden.shape[-2], hidden.shape[-1]))
            if address not in shared:
                labels = replace(labels, ranks=Ranks())
            losses.scale[address] = scale_of(hidden.detach())
            scores = None
            if self.losses:
                loss = self.losses[index]
                # The layer's own tensor is watched: gradients of what else reads it pass there, whatever the layout.
                watched = hidden if self.balance is None else to_nchw(self.balance.watch(raw, index), tap.layer.layout, size)
                read, of_read = watched if labels.is_dense else watched.mean((2, 3), keepdim=True), labels
                if (count := getattr(loss, "num_read", None)) is not None:
                    read, of_read = only_drawn(read, labels, count)
                scores = self.adapters[index](as_weights(read, self.adapters[index]))
                losses.side[address] = side_term(loss, scores, of_read, losses.prediction, extent, num_classes=self.num_classes)
                losses.weights[f"side/{address}"] = side_weights[index]
            if self.entropy is not None:
                term = entropy_term(self.entropy, hidden, scores if self.losses and gives_scores(self.losses[index]) else None, labels)
                if term is not None:
                    losses.entropy[address] = term
                    losses.weights[f"entropy/{address}"] = entropy_weights[index]
        if self.training and not torch.compiler.is_compiling():
            self._scales.look(losses.scale, int(self._steps))

    def _fired_everywhere(self, features: dict[str, Tensor], ranks: Ranks, device: torch.device) -> set[str]:
        """Addresses of the taps that can be summed over the ranks: of one that did not fire on every rank, the others would not take part."""
        if ranks.world == 1:
            return set(features)
        is_fired = torch.tensor([tap.layer.address in features for tap in self.taps], dtype=torch.float32, device=device)
        shares = ranks.mean(is_fired).tolist()
        return {tap.layer.address for tap, share in zip(self.taps, shares, strict=True) if share == 1.0}


def _check_shapes(images: Tensor, labels: Tensor) -> None:
    if len(labels) != len(images):
        raise ValueError(f"`labels` must have one map an image, but got {len(labels)} for {len(images)} images")
    (h, w), given = images.shape[-2:], tuple(labels.shape[-2:])
    if h != w and labels.ndim == images.ndim - 1 and given == (w, h):
        raise ValueError(f"`labels` must lie as the images do, but are {[*given]} for images of {[h, w]}: height and width are swapped")
    if labels.ndim not in (1, images.ndim - 1):
        pixels = "[B, H, W]" if images.ndim == 4 else "[B, D, H, W]"
        raise ValueError(f"`labels` must have shape {pixels} or [B] (one an image) for images {list(images.shape)}, but got {list(labels.shape)}")
