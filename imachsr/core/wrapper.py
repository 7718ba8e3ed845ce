"""The one module that users meet: a backbone with its taps, adapters and losses in one forward."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from imachsr.core.adapters import to_nchw
from imachsr.core.entropy import Regularizer, parse_regularizer
from imachsr.core.labels import TapLabels
from imachsr.core.layers import Trace, trace
from imachsr.core.losses import AnySideLoss, parse_side_loss
from imachsr.core.objective import Heterogeneity, Objective, check_heterogeneity
from imachsr.core.output import AnyOutputLoss, CrossEntropy, OutputLoss, logits_of
from imachsr.core.selection import Standard, select
from imachsr.core.taps import Recorder
from imachsr.core.types import IGNORE_INDEX, Losses, Tap


class IMacHSR(nn.Module):
    """Intermediate multi-access heterogeneous supervision and regularization around any segmentation model (arXiv 2505.00404).

    ``net(images)`` is the model's own output; ``net(images, labels)`` gives :class:`Losses`. Adapters and side losses run inside this forward,
    so that DistributedDataParallel synchronises them. Building draws nothing from the global random state and leaves the model as it was.

    Args:
        model: Kept as ``net.backbone``; its ``state_dict()`` keys do not change.
        example: Images ``[B, C, H, W]`` as in training, for the trace.
        num_classes: K >= 2.
        standard: Name, :data:`Standard`, or callable ``trace -> layer addresses``.
        loss: Name or side loss for all taps, or a sequence with one a tap.
        alpha: Total weight >= 0 of the side losses; at 0 none is built.
        entropy: Name or regularizer, or None.
        beta: Total weight >= 0 of the entropy terms; at 0 none is built.
        output_loss: Loss of the model's output, called ``(output, labels, ignore_index=...)``; cross-entropy by default.
        heterogeneity: What to do about a side loss of the output loss's family: ``strict`` raises, ``warn`` warns, ``off`` allows it.
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
        loss: str | AnySideLoss | Sequence[str | AnySideLoss] = "prototype",
        alpha: float = 0.4,
        entropy: str | Regularizer | None = "channel_norm",
        beta: float = 0.01,
        output_loss: AnyOutputLoss | None = None,
        heterogeneity: Heterogeneity = "warn",
        ignore_index: int = IGNORE_INDEX,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"`num_classes >= 2` must hold, but got {num_classes}")
        self.backbone = model
        self.objective = Objective(alpha=alpha, beta=beta)
        self.output_loss = CrossEntropy() if output_loss is None else output_loss
        if isinstance(output_loss, type) or not callable(self.output_loss):
            raise TypeError(f"`output_loss` must be called (output, labels, ignore_index=...), but got {output_loss!r}")
        self.entropy = parse_regularizer(entropy) if entropy is not None and beta > 0 else None
        self.num_classes, self.ignore_index, self.seed = num_classes, ignore_index, seed
        self.taps: tuple[Tap, ...] = ()
        self.losses: tuple[AnySideLoss, ...] = ()
        self.adapters = nn.ModuleList()
        self._recorder: Recorder | None = None
        self._step = 0
        if alpha > 0 or self.entropy is not None:
            self.taps = select(standard, trace(model, example))
            if alpha > 0:
                self._build_side(loss, heterogeneity, example)
            self._recorder = Recorder(model, self.taps)

    def _build_side(self, loss: Any, heterogeneity: Heterogeneity, example: Tensor) -> None:
        each = list(loss) if isinstance(loss, (list, tuple)) else [loss] * len(self.taps)
        if len(each) != len(self.taps):
            raise ValueError(f"`loss` must hold one loss a tap, but got {len(each)} losses for {len(self.taps)} taps")
        self.losses = tuple(parse_side_loss(item) for item in each)
        for side in {side.family: side for side in self.losses}.values():
            check_heterogeneity(self.output_loss, side, heterogeneity)
        generator = torch.Generator().manual_seed(self.seed)
        for tap, side in zip(self.taps, self.losses, strict=True):
            self.adapters.append(side.make_adapter(tap.layer.channels, self.num_classes, generator).to(example))

    @property
    def misses(self) -> dict[str, int]:
        """Forwards in which a tap did not fire, per address."""
        return dict(self._recorder.misses) if self._recorder is not None else {}

    def get_extra_state(self) -> dict[str, int]:
        """The count of steps, from which each step's pixel sampling is seeded."""
        return {"step": self._step}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Take up the count of steps."""
        self._step = state["step"]

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Any:
        """The model's own output, or with labels its losses.

        Args:
            images: ``[B, C, H, W]``.
            labels: int64 ``[B, H, W]``, classes 0..K-1 or ``ignore_index``.

        Raises:
            TypeError: If labels are not int64.
            ValueError: If a label is outside the classes, or the model does not give one score a class.
            FloatingPointError: If a term is not finite; names tap and term.

        """
        if labels is None:
            return self.backbone(images)
        if len(labels) != len(images):
            raise ValueError(f"`labels` must have one map an image, but got {len(labels)} for {len(images)} images")
        at_taps = TapLabels(labels, self.num_classes, self.ignore_index)
        features: dict[str, Tensor] = {}
        if self._recorder is None:
            output = self.backbone(images)
        else:
            with self._recorder.recording():
                output = self.backbone(images)
            features = self._recorder.take()
        return self._losses(output, labels, at_taps, features, (images.shape[-2], images.shape[-1]))

    def _losses(self, output: Any, labels: Tensor, at_taps: TapLabels, features: dict[str, Tensor], size: tuple[int, int]) -> Losses:
        side: dict[str, Tensor] = {}
        entropy: dict[str, Tensor] = {}
        scale: dict[str, Tensor] = {}
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self._step)
        self._step += self.training
        for index, tap in enumerate(self.taps):
            address = tap.layer.address
            if address not in features:
                continue
            hidden = to_nchw(features[address], tap.layer.layout, size)
            side_labels = at_taps.at((hidden.shape[-2], hidden.shape[-1]))
            scale[address] = hidden.detach().float().std()
            if self.losses:
                z = self.adapters[index](hidden)
                with torch.autocast(hidden.device.type, enabled=False):
                    side[address] = self.losses[index](z, side_labels, generator=generator)
            if self.entropy is not None:
                with torch.autocast(hidden.device.type, enabled=False):
                    entropy[address] = self.entropy(hidden, side_labels.valid)
        prediction = logits_of(output)
        if isinstance(self.output_loss, OutputLoss) and prediction.shape[1] != self.num_classes:
            raise ValueError(f"the model must give `num_classes` = {self.num_classes} scores a pixel, but gives {prediction.shape[1]}")
        with torch.autocast(labels.device.type, enabled=False):
            out = self.output_loss(output, labels, ignore_index=self.ignore_index)
        total, weights = self.objective.sum(out, side, entropy, len(self.taps))
        return Losses(total=total, output=out, side=side, entropy=entropy, weights=weights, scale=scale, prediction=prediction.detach())
