"""Dimension adapters between a tap's features and what a side loss reads."""

import math

import torch
from torch import Tensor, nn

from imachsr.core.layers import token_grid
from imachsr.core.types import Layout


def make_projection(channels: int, outputs: int, generator: torch.Generator) -> nn.Conv2d:
    """1x1 convolution ``[B, C, h, w] -> [B, D, h, w]``, initialised from ``generator`` so that the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        layer = nn.Conv2d(channels, outputs, kernel_size=1)
    bound = 1.0 / math.sqrt(channels)
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        assert layer.bias is not None
        layer.bias.zero_()
    return layer


def to_nchw(features: Tensor, layout: Layout, size: tuple[int, int]) -> Tensor:
    """Bring a tap's tensor to ``[B, C, h, w]``; prefix tokens (class, registers) are dropped.

    Args:
        features: ``[B, C, h, w]``, ``[B, h, w, C]``, ``[B, N, C]`` or ``[N, B, C]``.
        layout: Axis order of ``features``.
        size: (H, W) of the images, which settles the token grid.

    """
    if layout == "NCHW":
        return features
    if layout == "NHWC":
        return features.permute(0, 3, 1, 2)
    if layout == "NBC":
        features = features.transpose(0, 1)
    h, w, prefix = token_grid(features.shape[1], size)
    tokens = features[:, prefix:].transpose(1, 2)
    return tokens.reshape(tokens.shape[0], tokens.shape[1], h, w)
