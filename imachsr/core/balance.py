"""Balance the gradient of each side loss at its tap with that of everything else there."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from imachsr.core.ranks import Ranks

_COMPILED = "`grad_ratio` must be None under torch.compile, which traces no hooks on gradients; use a fixed alpha"


class _Gate(torch.autograd.Function):
    """The identity, whose backward shows a meter the gradient that comes back through it."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, meter: "GradientBalance", index: int) -> Tensor:
        ctx.meter, ctx.index = meter, index
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        ctx.meter._side[ctx.index] = gradient.detach()
        return gradient, None, None


class GradientBalance(nn.Module):
    """Factors g that follow ``rho p |dL_rest/dh| / |dL_side/dh|`` at each tap with its pull p, an exponential mean of logarithms.

    What is needed is seen in the ordinary backward: no second one is run. The factors of a step come from the steps before it.

    Args:
        num_taps: M.
        ratio: rho > 0.
        momentum: Of the mean, in [0, 1).
        limits: Smallest and largest factor.

    """

    factors: Tensor

    def __init__(self, num_taps: int, ratio: float, *, momentum: float = 0.9, limits: tuple[float, float] = (1e-3, 1e3)) -> None:
        super().__init__()
        self.ratio, self.momentum, self.limits = ratio, momentum, limits
        self.register_buffer("factors", torch.ones(num_taps))
        self._side: dict[int, Tensor] = {}
        self._norms: dict[int, Tensor] = {}

    def get_extra_state(self) -> Tensor:
        """What the last backward showed, which the next step takes up: ``[M, 2]``, squared norms of the rest and of the side, 0 where it showed none.

        A tensor, as all of a state dict: what averages, moves or stores one knows no other kind.
        """
        nothing = torch.zeros(2, device=self.factors.device)
        return torch.stack([self._norms.get(index, nothing) for index in range(len(self.factors))])

    def set_extra_state(self, state: Tensor) -> None:
        """Take that up again."""
        self._norms = dict(enumerate(state.to(self.factors.device).clone()))

    def __getstate__(self) -> dict[str, Any]:
        # What the last backward showed goes with a copy, as with a state dict; what a backward is about to show belongs to its own graph.
        return {**self.__dict__, "_side": {}}

    def watch(self, features: Tensor, index: int) -> Tensor:
        """The tap's features for the side loss alone; what else reads them must take the originals."""
        if not features.requires_grad:
            return features
        source = features if features._base is None else features._base
        if "Compiled" in type(source.grad_fn).__name__:  # gradients inside of a compiled graph pass unseen
            raise RuntimeError(_COMPILED)
        features.register_hook(lambda gradient: self._see(index, gradient))
        gated: Tensor = _Gate.apply(features, self, index)
        return gated

    def _see(self, index: int, gradient: Tensor) -> None:
        side = self._side.pop(index, None)
        if side is not None:
            self._norms[index] = torch.stack([(gradient.detach() - side).float().square().sum(), side.float().square().sum()])

    @torch.no_grad()
    def update(self, ranks: Ranks, pulls: Sequence[Any]) -> Tensor:
        """Take up what the last backward showed; the factors.

        Args:
            ranks: That share the step.
            pulls: Of each tap, what of rho its side loss is to have now, >= 0: a schedule and a profile would otherwise be balanced away.
        """
        if torch.compiler.is_compiling():
            raise RuntimeError(_COMPILED)
        # All taps at once, and none that is asked for its value: a GPU would wait. A rank whose tap did not fire takes part with 0.
        rest, side = ranks.mean(self.get_extra_state()).unbind(1)
        self._norms = {}
        wanted = self.factors * self.ratio * torch.tensor(pulls, device=self.factors.device) * (rest / side).sqrt()
        log = self.momentum * self.factors.log() + (1 - self.momentum) * wanted.log()
        is_seen = (rest > 0) & (side > 0) & torch.isfinite(rest + side)
        self.factors.copy_(torch.where(is_seen, log.exp().clamp(*self.limits), self.factors))
        return self.factors.clone()
