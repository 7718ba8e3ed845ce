"""The nouns of the core. Axis legend: B batch, C channels, H W image, h w tap, K classes, N tokens, D adapter output."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

IGNORE_INDEX = 255
"""Label of pixels that count neither in a loss nor in a metric."""

Layout = Literal["NCHW", "NHWC", "BNC", "NBC", "NCDHW", "NDHWC"]


def in_full(x: Tensor) -> Tensor:
    """The tensor in float32, or in float64 where it is that already: half precision is too coarse for sums and logarithms."""
    return x if x.dtype == torch.float64 else x.float()


@dataclass(frozen=True, kw_only=True)
class LayerInfo:
    """One call of one module in the traced forward, as seen on its output.

    Attributes:
        address: What users write: ``encoder.layer1``; ``relu#2`` for the second call of a reused module; ``stage[out]`` for a key.
        module: Name in ``model.named_modules()``.
        nth: 1-based number of this call among the calls of the module.
        num_calls: Calls of the module in one forward.
        key: Path inside a structured output, or None when the output is one tensor.
        order: Position in execution order (0-based, over all calls).
        depth: Depth in the module tree (1 for a child of the root).
        cls: Class name of the module.
        layout: Axis order of the output.
        channels: C.
        height: h in the trace.
        width: w in the trace.
        stride: Input width over w.
        dtype: Name of the output's dtype.
        params: Parameters in the module's subtree.
        signature: Class and shapes of the subtree's parameters; equal for equal blocks.
        container: Name of the Sequential or ModuleList that holds this output's block, "" when no block ends here.
        block_cls: Class name of that block, "" likewise.
        flops: Of one sample's forward up to the end of this call.
        params_used: Parameters first used up to there.
        receptive_field: Pixels along the longer side of the input that a position sees, at most twice that side less one.

    """

    address: str
    module: str
    nth: int
    num_calls: int
    key: str | None
    order: int
    depth: int
    cls: str
    layout: Layout
    channels: int
    height: int
    width: int
    stride: float
    dtype: str
    params: int
    signature: str
    container: str
    block_cls: str
    flops: int
    params_used: int
    receptive_field: float


@dataclass(frozen=True, kw_only=True)
class Site:
    """An attention or a fusion in the traced forward.

    Attributes:
        kind: ``attention`` or ``fusion``.
        detail: ``cat`` or ``add`` of a fusion, the operator of an attention.
        module: Name of the innermost module around it, "" for the model itself.
        before: Address of the last candidate before it, or None.
        after: Address of the first candidate that holds it, or None.

    """

    kind: str
    detail: str
    module: str
    before: str | None
    after: str | None


@dataclass(frozen=True, kw_only=True)
class Tap:
    """A chosen layer, and why it was chosen."""

    layer: LayerInfo
    reason: str


@dataclass(kw_only=True)
class Losses:
    """What ``net(images, labels)`` gives.

    Attributes:
        total: Scalar to call ``backward()`` on.
        output: Scalar, the loss of the model's own output.
        side: Unweighted scalar per tap address.
        entropy: Unweighted scalar per tap address.
        weights: Weight of each term in the total (a number, or a scalar tensor), keyed ``side/ADDRESS`` and ``entropy/ADDRESS``.
        prediction: Detached logits of the model's own output, ``[B, K, H, W]``.
        scale: Standard deviation of each tap's features, detached scalars; a fall towards 0 shows collapse.
        is_checked: Whether the total was found to be finite; a compiled net does not look.

    """

    total: Tensor
    output: Tensor
    prediction: Tensor
    side: dict[str, Tensor] = field(default_factory=dict)
    entropy: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Any] = field(default_factory=dict)
    scale: dict[str, Tensor] = field(default_factory=dict)
    is_checked: bool = False

    @property
    def terms(self) -> dict[str, Tensor]:
        """All side and entropy terms, keyed like ``weights``."""
        return {**{f"side/{key}": value for key, value in self.side.items()}, **{f"entropy/{key}": value for key, value in self.entropy.items()}}


# DDP with a static graph hooks into the tensors that it finds in what forward gives; in a class that it does not know it finds none, and the ranks'
# gradients would stay apart without a word.
torch.export.register_dataclass(Losses, serialized_type_name="imachsr.Losses")
