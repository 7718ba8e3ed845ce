"""The scale of features at the taps, which an entropy term may be pleased to see shrink to nothing."""

from collections.abc import Mapping
from warnings import warn

import torch
from torch import Tensor

COLLAPSED = 0.01
"""Share of a tap's first scale below which it counts as collapsed."""
LOOK_EVERY = 50
"""Steps between two looks: each waits for the device."""


class ScaleWatch:
    """Warns once of a tap whose features have collapsed."""

    def __init__(self) -> None:
        self._first: dict[str, float] = {}

    def look(self, scale: Mapping[str, Tensor], step: int) -> None:
        """Compare what :func:`scale_of` gave, by address, with what it was at first, now and then."""
        if step % LOOK_EVERY:
            return
        for address, value in scale.items():
            now = float(value)
            first = self._first.setdefault(address, now)
            if first > 0 and now < COLLAPSED * first:
                self._first[address] = 0.0
                warn(
                    f"features of tap {address!r} must keep their scale, but their standard deviation fell from {first:.3g} to {now:.3g}; "
                    "lower beta, or set standardize=True in the entropy regularizer",
                    stacklevel=2,
                )


def scale_of(features: Tensor) -> Tensor:
    """Standard deviation of all values, a scalar, as a norm and a mean: two passes, where ``std`` takes the time of eight."""
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    if features.device.type == "cpu":  # twice as fast there; on a GPU the copy would stand beside all that the backward needs
        features = features.to(dtype)
    norm: Tensor = torch.linalg.vector_norm(features, dtype=dtype)
    return (norm.square() / features.numel() - features.mean(dtype=dtype).square()).clamp(min=0).sqrt()
