"""Axis orders are told from two shapes, and every one of them is brought to [B, C, h, w]."""

import random

import pytest
import torch
from torch import Tensor

from imachsr.core.layout import extent, find_layout, to_nchw, token_grid, token_grid_or_none, volume_of
from imachsr.core.types import Layout

SIZE, WIDER = (32, 64), (32, 96)


def shape_of(layout: str, batch: int, channels: int, size: tuple[int, ...], stride: int, prefix: int = 0) -> tuple[int, ...]:
    sides = tuple(side // stride for side in size)
    if layout in ("NCHW", "NCDHW"):
        return (batch, channels, *sides)
    if layout == "NHWC":
        return (batch, *sides, channels)
    tokens = sides[0] * sides[1] + prefix
    return (batch, tokens, channels) if layout == "BNC" else (tokens, batch, channels)


@pytest.mark.parametrize("channels", [2, 3, 4, 8, 16, 64])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "BNC", "NBC"])
@pytest.mark.parametrize("stride", [4, 8])
def test_an_axis_order_is_told_from_what_grows(layout: str, channels: int, stride: int) -> None:
    first, second = (torch.zeros(shape_of(layout, batch, channels, size, stride)) for batch, size in ((2, SIZE), (3, WIDER)))
    assert find_layout(first, second, SIZE, wider=32) == layout


def test_volumes_are_told_by_their_rank() -> None:
    first, second = (torch.zeros(shape_of("NCDHW", batch, 5, size, 2)) for batch, size in ((2, (8, 16, 16)), (3, (8, 16, 48))))
    assert find_layout(first, second, (8, 16, 16)) == "NCDHW"
    assert find_layout(first[:, :, 0], second[:, :, 0], (8, 16, 16)) is None


@pytest.mark.parametrize("channels", [2, 4, 6, 8, 24])
@pytest.mark.parametrize("wider", [0, 32])
def test_volumes_with_channels_last_are_told_from_those_with_channels_first(channels: int, wider: int) -> None:
    size = (8, 12, 20)  # at half of it the channels might be the width, were it not for the width that grew
    if wider == 0 and 4 <= channels <= 6:
        pytest.skip("of one size alone, a width like the number of channels cannot be told from it")
    first, second = (torch.zeros(shape_of("NCDHW", batch, channels, (8, 12, width), 2)) for batch, width in ((2, 20), (3, 20 + wider)))
    assert find_layout(first, second, size, wider=wider) == "NCDHW"
    first, second = (each.movedim(1, -1) for each in (first, second))
    assert find_layout(first, second, size, wider=wider) == "NDHWC"
    assert extent(first, "NDHWC", size) == (channels, (24, 10))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((2, 8), (3, 8)),  # a vector
        ((2, 4, 8, 16, 3), (3, 4, 8, 24, 3)),  # a volume of an image
        ((16, 64, 8), (36, 64, 8)),  # windows folded into the batch
        ((2, 4, 128, 128), (3, 4, 192, 192)),  # an attention map: no image of this aspect
        ((2, 220, 8), (3, 220, 8)),  # tokens that form no grid of this aspect
        ((2, 8, 8, 16), (2, 8, 8, 24)),  # no batch
        ((2, 8, 64, 128), (3, 8, 64, 192)),  # larger than the image
        ((2, 8, 8), (3, 8, 8, 1)),
    ],
)
def test_what_has_no_spatial_extent_has_no_layout(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    assert find_layout(torch.zeros(first), torch.zeros(second), SIZE) is None


@pytest.mark.parametrize("batch_first", [True, False])
def test_queries_are_no_tokens_though_their_number_would_form_a_grid(batch_first: bool) -> None:
    two, three = torch.zeros(2, 32, 8), torch.zeros(3, 32, 8)  # 4 x 8 at 32x64
    if not batch_first:
        two, three = two.transpose(0, 1), three.transpose(0, 1)
    assert find_layout(two, three, SIZE, wider=32) is None
    assert find_layout(two, three, SIZE) is not None  # nothing is known of a model of one size
    assert find_layout(torch.zeros(2, 8, 8), torch.zeros(3, 8, 8), (128, 256), wider=32) is not None  # tokens of 64 pixels need not grow by 32


def test_whole_numbers_have_no_layout() -> None:
    assert find_layout(torch.zeros(2, 8, 8, 16, dtype=torch.int64), torch.zeros(3, 8, 8, 24, dtype=torch.int64), SIZE) is None


@pytest.mark.parametrize(
    ("tokens", "size", "grid"),
    [
        (197, (224, 224), (14, 14, 1)),
        (261, (256, 256), (16, 16, 5)),
        (96, (64, 96), (8, 12, 0)),
        (50, (224, 224), (7, 7, 1)),
        (1025, (512, 512), (32, 32, 1)),
        # Sizes that are no multiple of the stride: a hierarchical transformer's last stage, upright and lying.
        (20, (120, 160), (4, 5, 0)),
        (70, (320, 200), (10, 7, 0)),
        (70, (200, 320), (7, 10, 0)),
        (16 * 14 + 1, (230, 200), (16, 14, 1)),
    ],
)
def test_token_grid_of_known_models(tokens: int, size: tuple[int, int], grid: tuple[int, int, int]) -> None:
    assert token_grid(tokens, size) == grid


@pytest.mark.parametrize("stride", [4, 8, 14, 16, 32])
@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("round_up", [True, False])
def test_the_grid_of_a_usual_stride_is_found_at_any_size(stride: int, prefix: int, round_up: bool) -> None:
    rng = random.Random(0)
    for _ in range(300):
        size = rng.randrange(2 * stride, 700), rng.randrange(2 * stride, 700)
        h, w = (-(-side // stride) if round_up else side // stride for side in size)
        assert token_grid(h * w + prefix, size) == (h, w, prefix), size


@pytest.mark.parametrize("patch", [4, 8, 14, 16, 32])
def test_a_grid_of_whole_patches_is_found_behind_its_prefix(patch: int) -> None:
    rng = random.Random(0)
    for _ in range(200):
        h, w, prefix = rng.randint(5, 24), rng.randint(5, 24), rng.choice((0, 1, 2, 5))
        assert token_grid(h * w + prefix, (h * patch, w * patch)) == (h, w, prefix)


def test_tokens_without_a_grid_are_an_error() -> None:
    with pytest.raises(ValueError, match="tokens must form a grid of the input's aspect, but got 220 tokens"):
        token_grid(220, (64, 64))
    assert token_grid_or_none(64, (8, 64, 64)) is None  # tokens of volumes


IMAGE = torch.arange(2 * 3 * 4 * 8.0).reshape(2, 3, 4, 8)
TOKENS = torch.cat([torch.full((2, 1, 3), -1.0), IMAGE.flatten(2).transpose(1, 2)], 1)


@pytest.mark.parametrize(
    ("layout", "tensor"), [("NCHW", IMAGE), ("NHWC", IMAGE.permute(0, 2, 3, 1)), ("BNC", TOKENS), ("NBC", TOKENS.transpose(0, 1))]
)
def test_every_layout_comes_in_the_same_order(layout: Layout, tensor: Tensor) -> None:
    assert torch.equal(to_nchw(tensor, layout, SIZE), IMAGE)
    assert extent(tensor, layout, SIZE) == (3, (4, 8))


def test_slices_of_a_volume_are_laid_below_each_other() -> None:
    volume = torch.arange(2 * 3 * 4 * 5 * 6.0).reshape(2, 3, 4, 5, 6)
    image = to_nchw(volume, "NCDHW", (8, 10, 12))
    assert extent(volume, "NCDHW", (8, 10, 12)) == (3, (20, 6))
    assert image.shape == (2, 3, 20, 6)
    for d in range(4):
        assert torch.equal(image[:, :, d * 5 : (d + 1) * 5], volume[:, :, d])
    last = volume.movedim(1, -1)
    assert torch.equal(to_nchw(last, "NDHWC", (8, 10, 12)), image)
    assert volume_of(last, "NDHWC") == volume_of(volume, "NCDHW") == (4, 5, 6)
