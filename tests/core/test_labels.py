import random

import pytest
import torch
from torch import Tensor

from imachsr.core.labels import TapLabels

SIZES = [((8, 8), (4, 4)), ((7, 9), (3, 4)), ((13, 11), (5, 3)), ((6, 6), (1, 1)), ((4, 4), (4, 4)), ((4, 6), (8, 6)), ((28, 14), (4, 2))]


def window(index: int, full: int, small: int) -> range:
    """Rows that a row of the tap covers: from floor(i H / h) to ceil((i + 1) H / h)."""
    return range(index * full // small, -(-(index + 1) * full // small))


def drawn(size: tuple[int, int], num_classes: int, void: float, seed: int) -> Tensor:
    rng = random.Random(seed)
    return torch.tensor(
        [[[255 if rng.random() < void else rng.randrange(num_classes) for _ in range(size[1])] for _ in range(size[0])] for _ in range(2)]
    )


@pytest.mark.parametrize("void", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("num_classes", [2, 7])
@pytest.mark.parametrize(("full", "small"), SIZES)
def test_labels_of_a_tap_are_counts_over_its_windows(full: tuple[int, int], small: tuple[int, int], num_classes: int, void: float) -> None:
    for seed in range(3):
        labels = drawn(full, num_classes, void, seed)
        at = TapLabels(labels, num_classes, 255).at(small)
        for b in range(2):
            for i in range(small[0]):
                for j in range(small[1]):
                    seen = [int(labels[b, y, x]) for y in window(i, full[0], small[0]) for x in window(j, full[1], small[1])]
                    counts = [seen.count(k) for k in range(num_classes)]
                    valid = sum(counts)
                    assert float(at.valid[b, i, j]) == pytest.approx(valid / len(seen), abs=1e-6)
                    shares = [count / max(valid, 1) for count in counts]
                    assert at.soft[b, :, i, j].tolist() == pytest.approx(shares, abs=1e-5)
                    majority = counts.index(max(counts)) if 2 * valid >= len(seen) else -1
                    assert int(at.hard[b, i, j]) == majority


def test_half_of_valid_pixels_is_enough_whatever_their_classes() -> None:
    # The shares of many classes, each rounded, may sum to less than one half.
    for seed in range(200):
        rng = random.Random(seed)
        half = rng.randint(3, 22)
        labels = torch.tensor([*(rng.randrange(11) for _ in range(half)), *[255] * half]).reshape(1, half, 2)
        assert int(TapLabels(labels, 11, 255).at((1, 1)).hard) >= 0, seed


def test_types_and_shapes_are_as_stated() -> None:
    at = TapLabels(drawn((8, 6), 3, 0.2, 0), 3, 255).at((4, 3))
    assert (at.hard.dtype, at.soft.dtype, at.valid.dtype) == (torch.int64, torch.float32, torch.float32)
    assert (at.hard.shape, at.soft.shape, at.valid.shape) == ((2, 4, 3), (2, 3, 4, 3), (2, 4, 3))


def test_another_ignored_label_may_lie_among_the_classes() -> None:
    labels = torch.tensor([[[0, 1], [2, 2]]])
    at = TapLabels(labels, 3, 2).at((2, 2))
    assert at.hard.tolist() == [[[0, 1], [-1, -1]]]
    assert at.valid.tolist() == [[[1, 1], [0, 0]]]


def test_a_size_is_computed_once() -> None:
    labels = TapLabels(drawn((8, 8), 3, 0.0, 0), 3, 255)
    assert labels.at((4, 4)) is labels.at((4, 4))
    assert labels.at((2, 2)) is not labels.at((4, 4))


def test_the_callers_labels_are_left_alone() -> None:
    labels = drawn((8, 8), 3, 0.5, 0)
    before = labels.clone()
    TapLabels(labels, 3, 255).at((4, 4))
    assert torch.equal(labels, before)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.float32])
def test_labels_of_another_type_are_refused_with_the_way_out(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=rf"`labels` must be int64, but got {dtype}; use labels\.long\(\)"):
        TapLabels(torch.zeros(1, 4, 4, dtype=dtype), 3, 255)


@pytest.mark.parametrize("shape", [(4, 4), (1, 1, 4, 4)])
def test_labels_of_another_rank_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"`labels` must have shape \[B, H, W\], but got \("):
        TapLabels(torch.zeros(shape, dtype=torch.int64), 3, 255)


@pytest.mark.parametrize("wrong", [3, -1, 254])
def test_a_label_outside_the_classes_is_told_with_value_place_and_count(wrong: int) -> None:
    labels = torch.zeros(2, 4, 5, dtype=torch.int64)
    labels[1, 2, 3] = labels[1, 3, 0] = wrong
    labels[0, 0, 0] = 255
    with pytest.raises(ValueError, match=rf"in 0\.\.2 or 255 \(ignored\), but got {wrong} at \[b, y, x\] = \[1, 2, 3\], and 2 such pixels in all"):
        TapLabels(labels, 3, 255)
