import random
from itertools import product
from math import prod

import pytest
import torch
from torch import Tensor

from imachsr.core.labels import SideLabels, TapLabels
from imachsr.core.ranks import Ranks

SIZES = [
    ((8, 8), (4, 4)),
    ((7, 9), (3, 4)),
    ((13, 11), (5, 3)),
    ((6, 6), (1, 1)),
    ((4, 4), (4, 4)),
    ((28, 14), (4, 2)),
    ((4, 6), (8, 6)),
    ((3, 4), (7, 9)),
    ((2, 9), (82, 4)),
    ((1, 1), (3, 2)),
    ((3, 8, 6), (3, 4, 2)),
    ((5, 7, 6), (2, 3, 4)),
    ((2, 4, 4), (5, 2, 6)),
]
"""Of the labels and of the tap: divisible or not, coarser, finer, and both at once; the same for volumes."""


def drawn(size: tuple[int, ...], num_classes: int, void: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, num_classes, (2, *size), generator=generator)
    return torch.where(torch.rand(labels.shape, generator=generator) < void, 255, labels)


def pixels_of(full: tuple[int, ...], small: tuple[int, ...]) -> dict[tuple[int, ...], list[tuple[int, ...]]]:
    """Each cell's pixels, from the definition: by the pixel where the tap is coarser, by the cell where it is finer."""
    ways = []
    for have, wanted in zip(full, small, strict=True):
        ways.append(
            {cell: [i for i in range(have) if i * wanted // have == cell] for cell in range(wanted)}
            if wanted <= have
            else {cell: [cell * have // wanted] for cell in range(wanted)}
        )
    return {cell: list(product(*(way[i] for way, i in zip(ways, cell, strict=True)))) for cell in product(*(range(n) for n in small))}


@pytest.mark.parametrize("void", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("num_classes", [2, 7])
@pytest.mark.parametrize(("full", "small"), SIZES)
def test_labels_of_a_tap_are_counts_over_its_cells(full: tuple[int, ...], small: tuple[int, ...], num_classes: int, void: float) -> None:
    labels = drawn(full, num_classes, void, seed=len(full) + small[0])
    at = TapLabels(labels, num_classes, 255).at(small)
    shape = (prod(small[:-1]), small[-1])
    assert at.hard.shape == at.valid.shape == (2, *shape)
    assert at.soft.shape == (2, num_classes, *shape)
    assert at.num_classes == num_classes
    for b in range(2):
        for cell, pixels in pixels_of(full, small).items():
            row, column = (cell[0], cell[1]) if len(cell) == 2 else (cell[0] * small[1] + cell[1], cell[2])
            seen = [int(labels[b][pixel]) for pixel in pixels]
            counts = [seen.count(k) for k in range(num_classes)]
            valid = sum(counts)
            assert at.valid[b, row, column].item() == pytest.approx(valid / len(seen), rel=1e-6)
            assert at.soft[b, :, row, column].tolist() == pytest.approx([count / max(valid, 1) for count in counts], rel=1e-6)
            assert int(at.hard[b, row, column]) == (counts.index(max(counts)) if 2 * valid >= len(seen) else -1)


@pytest.mark.parametrize(("full", "small"), [pair for pair in SIZES if all(s <= f for f, s in zip(*pair, strict=True))])
def test_each_pixel_counts_in_exactly_one_cell(full: tuple[int, ...], small: tuple[int, ...]) -> None:
    hits = torch.zeros(2, dtype=torch.int64)
    for pixel in product(*(range(n) for n in full)):
        labels = torch.full((1, *full), 255)
        labels[(0, *pixel)] = 1
        at = TapLabels(labels, 2, 255).at(small)
        assert int((at.valid > 0).sum()) == 1
        hits += (at.soft.sum((0, 2, 3)) > 0).long()
    assert hits.tolist() == [0, prod(full)]


def test_cells_of_a_partition_are_as_large_as_each_other_to_one_pixel_an_axis() -> None:
    for full, small in [(7, 3), (13, 5), (100, 7), (255, 64)]:
        sizes = [len(pixels) for pixels in pixels_of((full,), (small,)).values()]
        assert sum(sizes) == full
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("half", [1, 2, 3, 7, 31, 127, 4095])
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_half_of_valid_pixels_is_enough_and_one_less_is_not(half: int, extra: int) -> None:
    # The shares of many classes, each rounded, may sum to less than one half; the counts cannot.
    rng = random.Random(half)
    valid = half + extra
    labels = torch.tensor([*(rng.randrange(11) for _ in range(valid)), *[255] * (2 * half - valid)]).reshape(1, half, 2)
    at = TapLabels(labels, 11, 255).at((1, 1))
    assert (int(at.hard) >= 0) == (extra >= 0)
    if extra == 0:
        assert at.valid.item() == 0.5
    assert at.soft.sum().item() == pytest.approx(min(valid, 1), abs=1e-5)


def test_one_label_an_image_stands_at_a_single_position_of_every_tap() -> None:
    labels = TapLabels(torch.tensor([2, 255, 0]), 3, 255)
    at = labels.at((7, 5))
    assert not labels.is_dense
    assert not at.is_dense
    assert at.hard.tolist() == [[[2]], [[-1]], [[0]]]
    assert at.valid.tolist() == [[[1.0]], [[0.0]], [[1.0]]]
    assert at.soft[:, :, 0, 0].tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
    assert labels.at((2, 4, 4)).hard.shape == (3, 1, 1)


def test_slices_of_a_volume_lie_below_each_other() -> None:
    labels = torch.stack([torch.zeros(4, 6), torch.ones(4, 6)]).long()[None]
    at = TapLabels(labels, 2, 255).at((2, 2, 3))
    assert at.hard.tolist() == [[[0, 0, 0], [0, 0, 0], [1, 1, 1], [1, 1, 1]]]


def test_types_are_as_stated_and_what_is_shared_is_handed_on() -> None:
    draw, ranks = torch.tensor(5), Ranks(world=1)
    at = TapLabels(drawn((8, 6), 3, 0.2, 0), 3, 255, draw=draw, ranks=ranks).at((4, 3))
    assert (at.hard.dtype, at.soft.dtype, at.valid.dtype) == (torch.int64, torch.float32, torch.float32)
    assert at.draw is draw
    assert at.ranks is ranks
    assert at.is_dense
    assert at.output is None


def test_another_ignored_label_may_lie_among_the_classes() -> None:
    labels = torch.tensor([[[0, 1], [2, 2]]])
    at = TapLabels(labels, 3, 2).at((2, 2))
    assert at.hard.tolist() == [[[0, 1], [-1, -1]]]
    assert at.valid.tolist() == [[[1, 1], [0, 0]]]


@pytest.mark.parametrize("ignore", [-1, -100, 255])
def test_the_ignored_label_may_lie_on_either_side_of_the_classes(ignore: int) -> None:
    at = TapLabels(torch.tensor([[[0, ignore], [ignore, 1]]]), 2, ignore).at((4, 1))
    assert at.hard.tolist() == [[[0], [0], [1], [1]]]
    assert at.valid.unique().tolist() == [0.5]


def test_a_size_is_computed_once() -> None:
    labels = TapLabels(drawn((8, 8), 3, 0.0, 0), 3, 255)
    assert labels.at((4, 4)) is labels.at((4, 4))
    assert labels.at((2, 2)) is not labels.at((4, 4))


@pytest.mark.parametrize(
    ("full", "order"),
    [
        ((32, 48), [(16, 24), (8, 12), (4, 4), (2, 6), (1, 1)]),
        ((37, 50), [(12, 20), (6, 10), (3, 5), (3, 1)]),  # the first does not divide the labels, the others divide it
        ((32, 48), [(16, 24), (5, 7), (8, 9), (4, 12), (2, 3)]),
        ((32, 48), [(64, 96), (32, 48), (16, 16)]),  # a tap finer than its labels comes first
        ((24, 36), [(48, 18), (24, 9), (12, 9)]),  # finer along one axis only
        ((6, 16, 24), [(6, 8, 12), (3, 4, 6), (2, 4, 3), (1, 1, 1)]),
        ((5, 14, 9), [(4, 8, 6), (2, 4, 3), (3, 2, 2)]),
    ],
)
@pytest.mark.parametrize("is_reversed", [False, True])
def test_a_size_is_the_same_whatever_was_asked_before(full: tuple[int, ...], order: list[tuple[int, ...]], is_reversed: bool) -> None:
    labels = drawn(full, 5, 0.3, seed=len(order))
    shared = TapLabels(labels, 5, 255)
    for size in order[::-1] if is_reversed else order:
        ours, alone = shared.at(size), TapLabels(labels, 5, 255).at(size)
        assert torch.equal(ours.hard, alone.hard)
        assert torch.equal(ours.valid, alone.valid)
        assert torch.equal(ours.soft, alone.soft)


def test_one_label_an_image_is_the_same_at_whatever_taps() -> None:
    labels = torch.tensor([3, 255, 0])
    shared = TapLabels(labels, 4, 255)
    for size in ((8, 8), (4, 4), (1, 1), (2, 4, 4)):
        ours, alone = shared.at(size), TapLabels(labels, 4, 255).at(size)
        assert torch.equal(ours.hard, alone.hard)
        assert torch.equal(ours.soft, alone.soft)


def test_the_callers_labels_are_left_alone() -> None:
    labels = drawn((8, 8), 3, 0.5, 0)
    before = labels.clone()
    for size in ((4, 4), (16, 3)):
        TapLabels(labels, 3, 255).at(size)
    assert torch.equal(labels, before)


# ---- means over valid pixels ----------------------------------------------------------------------------------------------------------------


def test_the_mean_is_over_valid_shares_or_other_weights() -> None:
    labels = TapLabels(drawn((8, 8), 3, 0.4, 0), 3, 255).at((4, 4))
    values = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    triples = list(zip(values.flatten().tolist(), labels.valid.flatten().tolist(), labels.hard.flatten().tolist(), strict=True))
    expected = sum(value * share for value, share, _ in triples) / sum(share for _, share, _ in triples)
    assert labels.mean(values).item() == pytest.approx(expected, rel=1e-6)
    seen = [value for value, _, y in triples if y == 1]
    assert labels.mean(values, (labels.hard == 1).double()).item() == pytest.approx(sum(seen) / len(seen), rel=1e-6)


@pytest.mark.parametrize("weight", [1e-3, 1e-8, 1e-30])
def test_a_mean_over_little_is_a_mean_and_over_nothing_a_connected_zero(weight: float) -> None:
    labels = SideLabels(hard=torch.zeros(1, 2, 2).long(), soft=torch.ones(1, 2, 2, 2) / 2, valid=torch.full((1, 2, 2), weight))
    values = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]], requires_grad=True)
    assert labels.mean(values).item() == pytest.approx(2.5, rel=1e-6)
    nothing = labels.mean(values, torch.zeros(1, 2, 2))
    assert nothing.item() == 0
    (grad,) = torch.autograd.grad(nothing, values)
    assert not bool(grad.any())


# ---- errors ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.float32])
def test_labels_of_another_type_are_refused_with_the_way_out(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=rf"`labels` must be int64, but got {dtype}; use labels\.long\(\)"):
        TapLabels(torch.zeros(1, 4, 4, dtype=dtype), 3, 255)


@pytest.mark.parametrize("shape", [(4, 4), (1, 1, 1, 4, 4), ()])
def test_labels_of_another_rank_are_refused(shape: tuple[int, ...]) -> None:
    got = str(shape).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=rf"`labels` must have shape \[B, H, W\], \[B, D, H, W\] or \[B\] \(one an image\), but got {got}"):
        TapLabels(torch.zeros(shape, dtype=torch.int64), 3, 255)


@pytest.mark.parametrize("wrong", [3, -1, 254])
@pytest.mark.parametrize(
    ("shape", "where", "axes"),
    [((2, 4, 5), (1, 2, 3), r"\[b, y, x\]"), ((2, 2, 4, 5), (1, 0, 2, 3), r"\[b, z, y, x\]"), ((4,), (2,), r"\[b\]")],
    ids=["maps", "volumes", "one an image"],
)
def test_a_label_outside_the_classes_is_told_with_value_place_and_count(
    wrong: int, shape: tuple[int, ...], where: tuple[int, ...], axes: str
) -> None:
    labels = torch.zeros(shape, dtype=torch.int64)
    labels[where] = labels[tuple(n - 1 for n in shape)] = wrong
    labels[(0,) * len(shape)] = 255
    place = ", ".join(map(str, where))
    with pytest.raises(ValueError, match=rf"in 0\.\.2 or 255 \(ignored\), but got {wrong} at {axes} = \[{place}\], and 2 such labels in all"):
        TapLabels(labels, 3, 255)
