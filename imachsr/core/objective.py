"""Weights, heterogeneity, and the one place where the terms are summed."""

import math
from dataclasses import dataclass
from typing import Literal, get_args
from warnings import warn

import torch
from torch import Tensor

Heterogeneity = Literal["strict", "warn", "off"]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """``L = L_out + sum_m alpha/M L_m + sum_m beta/M R_m`` over M taps.

    alpha and beta are totals shared by the taps, so that the number of taps does not change the sum. Source: arXiv 2505.00404; the weights are ours.

    Args:
        alpha: Total weight >= 0 of the side losses.
        beta: Total weight >= 0 of the entropy terms.

    """

    alpha: float = 0.4
    beta: float = 0.01

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"`{name} >= 0` must hold and be finite, but got {value}")

    def sum(self, output: Tensor, side: dict[str, Tensor], entropy: dict[str, Tensor], num_taps: int) -> tuple[Tensor, dict[str, float]]:
        """Total loss and the weight of each term.

        Raises:
            FloatingPointError: If a term is NaN or infinite; names tap and term.

        """
        total, weights = output, {}
        for group, terms, weight in (("side", side, self.alpha), ("entropy", entropy, self.beta)):
            for address, value in terms.items():
                weights[f"{group}/{address}"] = weight / num_taps
                total = total + weights[f"{group}/{address}"] * value
        if not bool(torch.isfinite(total)):
            _blame(output, side, entropy)
        return total, weights


def _blame(output: Tensor, side: dict[str, Tensor], entropy: dict[str, Tensor]) -> None:
    named = {"output loss": output}
    named.update({f"side loss of tap {address!r}": value for address, value in side.items()})
    named.update({f"entropy term of tap {address!r}": value for address, value in entropy.items()})
    bad = [f"{name} is {float(value.detach())}" for name, value in named.items() if not bool(torch.isfinite(value))]
    raise FloatingPointError("every term must be finite, but " + ("; ".join(bad) or "their sum overflows") + "; lower the learning rate")


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
