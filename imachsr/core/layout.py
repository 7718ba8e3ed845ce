"""Axis orders of features, and the way from each to ``[B, C, h, w]``."""

from math import prod
from typing import get_args

import torch
from torch import Tensor

from imachsr.core.types import Layout

MAX_PREFIX = 8
"""Class and register tokens in front of a token grid, at most."""

_USUAL = (4, 8, 16, 32, 14)
"""Pixels from one token to the next, as most networks have it; asked first, since any stride fits some grid behind some prefix."""


def find_layout(first: Tensor, second: Tensor, size: tuple[int, ...], *, wider: int = 0) -> Layout | None:
    """Axis order of an output that was seen twice: with a batch of 2, and with a batch of 3 and, where the model took it, a wider input.

    Args:
        first: The output at the first run.
        second: The output of the same call at the second.
        size: (H, W) of the images of the first run, or (D, H, W) of volumes.
        wider: Pixels by which the images of the second were wider.

    Returns:
        None when it has no spatial extent (queries are no tokens of the image), or its batch is mixed with another axis (windows of attention).

    """
    if not first.is_floating_point() or first.ndim != second.ndim or first.ndim < 3:
        return None
    is_batch = [pair == (2, 3) for pair in zip(first.shape, second.shape, strict=True)]
    is_fixed = [a == b for a, b in zip(first.shape, second.shape, strict=True)]
    if first.ndim == 3:
        if not is_fixed[2] or not (is_batch[0] or is_batch[1]):
            return None
        layout: Layout = "BNC" if is_batch[0] else "NBC"
        axis = 1 if is_batch[0] else 0
        grid = token_grid_or_none(first.shape[axis], size)
        if grid is None or (is_fixed[axis] and wider * grid[1] >= size[1]):  # the width grew by at least one token
            return None
        return layout
    if not is_batch[0] or first.ndim != len(size) + 2:
        return None
    if len(size) == 3:
        return _volume_layout(first.shape, is_fixed, size, wider)
    _, a, b, c = first.shape
    if not is_fixed[1]:
        return None
    if is_fixed[2] and _is_image(b, c, size):  # first: where the model takes one input size only, both may hold
        return "NCHW"
    return "NHWC" if is_fixed[3] and _is_image(a, b, size) else None


def _volume_layout(shape: torch.Size, is_fixed: list[bool], size: tuple[int, ...], wider: int) -> Layout | None:
    """Of ``[B, a, b, c, d]``: the width is the last axis but for channels last, and grew with the image's where that was by a position at least."""
    _, a, b, c, d = shape
    if not is_fixed[1]:
        return None
    if _is_volume(b, c, d, size) and not (is_fixed[4] and wider * d >= size[2]):
        return "NCDHW"
    return "NDHWC" if is_fixed[4] and _is_volume(a, b, c, size) else None


def _is_volume(d: int, h: int, w: int, size: tuple[int, ...]) -> bool:
    return 1 <= d <= size[0] and _is_image(h, w, size[1:])


def volume_of(features: Tensor, layout: Layout) -> tuple[int, ...] | None:
    """(d, h, w) of a volume, None of an image."""
    if layout == "NCDHW":
        return tuple(features.shape[2:])
    return tuple(features.shape[1:4]) if layout == "NDHWC" else None


def _is_image(h: int, w: int, size: tuple[int, ...]) -> bool:
    aspect = size[0] / size[1]
    return h * w >= 1 and abs(h - w * aspect) <= max(1.0, aspect) and h <= size[0] and w <= size[1]


def token_grid_or_none(tokens: int, size: tuple[int, ...]) -> tuple[int, int, int] | None:
    """(h, w, prefix tokens) of a number of tokens.

    A grid of a stride in pixels, both sides rounded up or both down: of a usual stride that divides the input, else of a usual one, else of any; of
    these the one with the fewest prefix tokens. Without any, as with patches that overlap, the grid of exactly, else nearly, the input's aspect.
    """
    if len(size) != 2:
        return None
    height, width = size
    # Rounding and prefix tokens hide the stride by less than a factor of two; this is asked at every step.
    about = (height * width / max(1, tokens)) ** 0.5
    near_by = range(max(1, int(about / 2)), int(2 * about) + 2)
    for strides in ([stride for stride in _USUAL if height % stride == width % stride == 0], _USUAL, near_by):
        for prefix in range(min(MAX_PREFIX, tokens - 4) + 1):
            for stride in strides:
                for h, w in ((-(-height // stride), -(-width // stride)), (height // stride, width // stride)):
                    if h * w == tokens - prefix:
                        return h, w, prefix
    near: tuple[int, int, int] | None = None
    for prefix in range(min(MAX_PREFIX, tokens - 4) + 1):
        count = tokens - prefix
        h = max(1, round((count * height / width) ** 0.5))
        skew = abs(h * width - count // h * height)
        if count % h or skew >= max(height, width):
            continue
        if skew == 0:
            return h, count // h, prefix
        near = near or (h, count // h, prefix)
    return near


def token_grid(tokens: int, size: tuple[int, ...]) -> tuple[int, int, int]:
    """(h, w, prefix tokens) of a token tap.

    Raises:
        ValueError: If the tokens do not form a grid of the input's aspect.

    """
    grid = token_grid_or_none(tokens, size)
    if grid is None:
        raise ValueError(f"tokens must form a grid of the input's aspect, but got {tokens} tokens for an input of {size}")
    return grid


def extent(tensor: Tensor, layout: Layout, size: tuple[int, ...]) -> tuple[int, tuple[int, int]]:
    """C and (h, w) of a tensor; the slices of a volume lie below each other, so that h counts them all."""
    assert layout in get_args(Layout)
    shape = tensor.shape
    if layout == "NCHW":
        return shape[1], (shape[2], shape[3])
    if layout == "NHWC":
        return shape[3], (shape[1], shape[2])
    if layout == "NCDHW":
        return shape[1], (prod(shape[2:4]), shape[4])
    if layout == "NDHWC":
        return shape[4], (prod(shape[1:3]), shape[3])
    h, w, _ = token_grid(shape[1 if layout == "BNC" else 0], size)
    return shape[2], (h, w)


def to_nchw(features: Tensor, layout: Layout, size: tuple[int, ...]) -> Tensor:
    """Bring a tap's tensor to ``[B, C, h, w]``.

    Prefix tokens (class, registers) are dropped. The slices of a volume ``[B, C, d, h, w]`` are laid below each other: ``[B, C, d h, w]``.

    Args:
        features: ``[B, C, h, w]``, ``[B, h, w, C]``, ``[B, N, C]``, ``[N, B, C]``, ``[B, C, d, h, w]`` or ``[B, d, h, w, C]``.
        layout: Axis order of ``features``.
        size: (H, W) of the images, which settles the token grid.

    """
    if layout == "NCHW":
        return features
    if layout == "NHWC":
        return features.permute(0, 3, 1, 2)
    if layout == "NCDHW":
        return features.flatten(2, 3)
    if layout == "NDHWC":
        return features.permute(0, 4, 1, 2, 3).flatten(2, 3)
    if layout == "NBC":
        features = features.transpose(0, 1)
    h, w, prefix = token_grid(features.shape[1], size)
    tokens = features[:, prefix:].transpose(1, 2)
    return tokens.reshape(tokens.shape[0], tokens.shape[1], h, w)
