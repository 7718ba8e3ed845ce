"""Weights, heterogeneity, and the one place where the terms are summed."""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args
from warnings import warn

import torch
from torch import Tensor

from imachsr.core.messages import require
from imachsr.core.schedules import Constant, Profile, Schedule, shares
from imachsr.core.types import Losses

Heterogeneity = Literal["strict", "warn", "off"]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """``L = L_out + f(t) (alpha sum_m s_m g_m L_m + beta sum_m s_m R_m)`` over M taps in execution order.

    alpha and beta are totals shared by the taps (the shares s sum to 1), so that the number of taps does not change the sum. f is the
    schedule, g the balance of gradients (1 without). Source: arXiv 2505.00404; the weights are ours.

    Args:
        alpha: Total weight >= 0 of the side losses.
        beta: Total weight >= 0 of the entropy terms.
        profile: How the taps share them; see :func:`imachsr.core.schedules.shares`.
        schedule: f over the progress of the training.
        grad_ratio: rho > 0: g is set so that the gradient of a side loss at its tap is rho times that of everything else there, times f, and
            times the tap's share beside an equal one; alpha is then the start. None: g is 1.

    """

    alpha: float = 1.88
    beta: float = 0.0708
    profile: Profile = "uniform"
    schedule: Schedule = Constant()
    grad_ratio: float | None = None

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"`{name} >= 0` must hold and be finite, but got {value}")
        if self.profile not in get_args(Profile):
            raise ValueError(f"`profile` must be one of {get_args(Profile)}, but got {self.profile!r}")
        require(self.grad_ratio is None or self.grad_ratio > 0, "grad_ratio > 0", self.grad_ratio)

    def weights(self, num_taps: int, factor: float | Tensor, balance: Tensor | None) -> tuple[list[Any], list[Any]]:
        """Weight of each tap's side loss, and of its entropy term."""
        share = shares(self.profile, num_taps)
        side = [self.alpha * s * factor * (1.0 if balance is None else balance[m]) for m, s in enumerate(share)]
        return side, [self.beta * s * factor for s in share]

    def pulls(self, num_taps: int, factor: float | Tensor) -> list[Any]:
        """With ``grad_ratio``, what of it each tap is to have now: the schedule's factor, and the tap's share of the weight beside an equal share."""
        return [factor * s * num_taps for s in shares(self.profile, num_taps)]

    def sum(self, output: Tensor, terms: dict[str, Tensor], weights: dict[str, Any]) -> Tensor:
        """Total loss of the output's and the weighted terms.

        Raises:
            ValueError: If a term is no scalar; names it.
            FloatingPointError: If a term is NaN or infinite; names it.

        """
        total = output
        for name, value in {"output loss": output, **terms}.items():
            if value.ndim:
                raise ValueError(f"every term must be a scalar, but the {_called(name)} has the shape {list(value.shape)}; take its mean")
        for name, value in terms.items():
            total = total + weights[name] * value
        if not torch.compiler.is_compiling() and not bool(torch.isfinite(total)):
            _blame(output, terms)
        return total


def check_finite(losses: Losses) -> None:
    """Raise FloatingPointError, naming the terms, unless the total is finite; for compiled nets, which do not look themselves."""
    if not losses.is_checked and not bool(torch.isfinite(losses.total)):
        _blame(losses.output, losses.terms)


def _blame(output: Tensor, terms: dict[str, Tensor]) -> None:
    named = {"output loss": output}
    for name, value in terms.items():
        named[_called(name)] = value
    bad = [f"{name} is {float(value.detach())}" for name, value in named.items() if not bool(torch.isfinite(value))]
    raise FloatingPointError("every term must be finite, but " + ("; ".join(bad) or "their sum overflows") + "; lower the learning rate")


def _called(name: str) -> str:
    group, _, address = name.partition("/")
    return f"{'side loss' if group == 'side' else 'entropy term'} of tap {address!r}" if address else name


def check_heterogeneity(output: object, side: object, mode: Heterogeneity) -> None:
    """Refuse, warn of or allow a side loss of the output loss's family.

    Raises:
        ValueError: Under ``strict``, or for an unknown mode.

    """
    if mode not in get_args(Heterogeneity):
        raise ValueError(f"`heterogeneity` must be one of {get_args(Heterogeneity)}, but got {mode!r}")
    family = getattr(side, "family", None)
    if mode == "off" or family is None or family != getattr(output, "family", None):
        return
    message = (
        f"a side loss must differ from the output loss, but {getattr(side, 'kind', side)!r} and {getattr(output, 'kind', output)!r} are both "
        f"of family {family!r}; take a loss of another family (dice, brier, prototype, infonce, hsic), or set heterogeneity='off' to do so on purpose"
    )
    if mode == "strict":
        raise ValueError(message)
    warn(message, stacklevel=4)
