"""Augmentation: seeded per sample and epoch, and the same for image and labels."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.functional import normalize as torchvision_normalize

from imachsr.data.transforms import MEAN, STD, Augment, augment_batch, normalize

VOID = 255
NOTHING = Augment(flip=0, scale=(1, 1), jitter=0)


def encoded(count: int = 4, size: tuple[int, int] = (32, 48)) -> tuple[Tensor, Tensor]:
    """Labels in blocks of 8 pixels, and images whose grey value is 25 times the label."""
    coarse = torch.randint(0, 10, (count, 1, size[0] // 8, size[1] // 8), generator=torch.Generator().manual_seed(1)).float()
    labels = torch.nn.functional.interpolate(coarse, size=size, mode="nearest")[:, 0].to(torch.uint8)
    return (25 * labels).unsqueeze(1).expand(-1, 3, -1, -1).contiguous(), labels


def augmented(
    images: Tensor, labels: Tensor, spec: Augment, *, seed: int = 0, epoch: int = 1, indices: list[int] | None = None
) -> tuple[Tensor, Tensor]:
    return augment_batch(images, labels, spec=spec, seed=seed, epoch=epoch, indices=indices or list(range(len(images))))


def grey(x: Tensor) -> Tensor:
    """Back from normalised values to 0..255."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return 255 * (x * std + mean)


def test_normalisation_is_torchvisions() -> None:
    images = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    torch.testing.assert_close(normalize(images), torchvision_normalize(images.float() / 255, list(MEAN), list(STD)))


def test_without_augmentation_only_normalisation_is_left() -> None:
    images = torch.randint(0, 256, (3, 3, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 4, (3, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels[0, :5] = VOID
    x, y = augmented(images, labels, NOTHING)
    torch.testing.assert_close(x, normalize(images), atol=1e-4, rtol=1e-4)
    assert torch.equal(y, labels.long())
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64


def test_a_certain_flip_is_a_flip() -> None:
    images, labels = encoded()
    x, y = augmented(images, labels, Augment(flip=1, scale=(1, 1), jitter=0))
    torch.testing.assert_close(x, normalize(images).flip(3), atol=1e-4, rtol=1e-4)
    assert torch.equal(y, labels.long().flip(2))


def test_flips_come_with_their_probability() -> None:
    images, labels = encoded(1)
    images, labels = images.expand(400, -1, -1, -1), labels.expand(400, -1, -1)
    _, y = augmented(images, labels, Augment(flip=0.3, scale=(1, 1), jitter=0))
    share = float((y == labels.long().flip(2)).flatten(1).all(1).double().mean())
    assert abs(share - 0.3) < 0.08  # 3.5 standard deviations


@pytest.mark.parametrize("seed", range(4))
def test_image_and_labels_move_together(seed: int) -> None:
    images, labels = encoded(8)
    x, y = augmented(images, labels, Augment(jitter=0), seed=seed)
    values, inside = grey(x)[:, 0], y != VOID
    # Within a block, away from its borders and from the outside, the grey value tells the label.
    is_flat = torch.nn.functional.max_pool2d(values.unsqueeze(1), 3, 1, 1) + torch.nn.functional.max_pool2d(-values.unsqueeze(1), 3, 1, 1) < 0.5
    is_flat = is_flat[:, 0] & inside
    assert is_flat.double().mean() > 0.2
    assert torch.equal((values[is_flat] / 25).round().long(), y[is_flat])


def test_labels_are_never_mixed() -> None:
    labels = torch.zeros(6, 32, 48, dtype=torch.uint8)
    labels[:, :, 24:] = 9
    labels[:, 20:] = VOID
    _, y = augmented(labels.unsqueeze(1).expand(-1, 3, -1, -1).contiguous(), labels, Augment())
    assert set(y.unique().tolist()) <= {0, 9, VOID}


def test_outside_pixels_are_ignored_and_have_the_mean_colour() -> None:
    images, labels = torch.full((6, 3, 32, 48), 200, dtype=torch.uint8), torch.full((6, 32, 48), 2, dtype=torch.uint8)
    x, y = augmented(images, labels, Augment(flip=0, scale=(0.5, 0.5), jitter=0))
    outside = y == VOID
    assert abs(float(outside.double().mean()) - 0.75) < 0.03
    far = torch.nn.functional.max_pool2d((~outside).float(), 3, 1, 1) == 0
    assert far.any()
    assert bool((x.permute(0, 2, 3, 1)[far] == 0).all())


def test_zooming_in_shows_only_inside_pixels_and_a_part_of_the_image() -> None:
    rows = torch.arange(32, dtype=torch.uint8).view(1, 32, 1).expand(5, 32, 48).contiguous()
    _, y = augmented(torch.zeros(5, 3, 32, 48, dtype=torch.uint8), rows, Augment(flip=0, scale=(2, 2), jitter=0))
    assert not bool((y == VOID).any())
    heights = y.amax((1, 2)) - y.amin((1, 2))
    assert bool(((heights >= 14) & (heights <= 17)).all())
    assert len(set(y[:, 0, 0].tolist())) > 1, "the window moves"


def test_jitter_changes_images_only_and_stays_in_range() -> None:
    images, labels = encoded(32)
    x, y = augmented(images, labels, Augment(flip=0, scale=(1, 1), jitter=0.5))
    assert torch.equal(y, labels.long())
    values = grey(x)
    assert values.min() >= -1e-2
    assert values.max() <= 255.01
    ratio = values.mean((1, 2, 3)) / images.float().mean((1, 2, 3))
    assert ratio.min() < 0.8
    assert ratio.max() > 1.15
    assert bool(((ratio > 0.45) & (ratio < 1.55)).all())


def test_the_same_seed_epoch_and_index_give_the_same_pixels() -> None:
    images, labels = encoded()
    one, other = (augmented(images, labels, Augment(), seed=3, epoch=2) for _ in range(2))
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])


@pytest.mark.parametrize("change", [{"seed": 4}, {"epoch": 3}, {"indices": [10, 11, 12, 13]}])
def test_another_seed_epoch_or_index_gives_others(change: dict[str, Any]) -> None:
    images, labels = encoded()
    one = augmented(images, labels, Augment(), seed=3, epoch=2)
    other = augmented(images, labels, Augment(), **{"seed": 3, "epoch": 2, **change})
    assert all(not torch.equal(a, b) for a, b in zip(one[0], other[0], strict=True))


def test_seeds_epochs_and_indices_do_not_stand_for_each_other() -> None:
    images, labels = encoded(1)
    found = [augmented(images, labels, Augment(), seed=a, epoch=b, indices=[c])[0].numpy().tobytes() for a in (0, 1) for b in (0, 1) for c in (0, 1)]
    assert len(set(found)) == 8


def test_a_sample_does_not_depend_on_its_batch() -> None:
    images, labels = encoded(6)
    together = augmented(images, labels, Augment(), epoch=5)
    order = [4, 1, 3]
    apart = augmented(images[order], labels[order], Augment(), epoch=5, indices=order)
    assert torch.equal(apart[1], together[1][order])
    assert torch.equal(apart[0], together[0][order])
    for index in range(6):
        alone = augmented(images[index : index + 1], labels[index : index + 1], Augment(), epoch=5, indices=[index])
        assert torch.equal(alone[1][0], together[1][index])


def oracle(images: Tensor, labels: Tensor, spec: Augment, seed: int, epoch: int, indices: list[int]) -> tuple[Tensor, Tensor]:
    """The definition, in float64, a sample at a time: draw, jitter, clip, normalise, then an affine map that samples images and labels alike."""
    found = []
    for image, label, index in zip(images, labels, indices, strict=True):
        flip, zoom_at, across, down, contrast_at, brightness_at = np.random.default_rng([seed, epoch, index]).random(6)
        zoom = spec.scale[0] * (spec.scale[1] / spec.scale[0]) ** zoom_at
        room = abs(1 - 1 / zoom)
        theta = torch.tensor([[(-1 if flip < spec.flip else 1) / zoom, 0, (2 * across - 1) * room], [0, 1 / zoom, (2 * down - 1) * room]])
        contrast, brightness = (1 + spec.jitter * (2 * at - 1) for at in (contrast_at, brightness_at))
        x = image.double()
        x = normalize(((x - x.mean()) * contrast + x.mean() * brightness).clamp(0, 255)[None])
        grid = torch.nn.functional.affine_grid(theta[None].double(), [1, 1, *label.shape], align_corners=False)
        options = {"padding_mode": "zeros", "align_corners": False}
        x = torch.nn.functional.grid_sample(x.double(), grid, mode="bilinear", **options)[0]
        y = torch.nn.functional.grid_sample(label[None, None].double() + 1, grid, mode="nearest", **options)[0, 0].long() - 1
        found.append((x, torch.where(y < 0, VOID, y)))
    return torch.stack([x for x, _ in found]), torch.stack([y for _, y in found])


@pytest.mark.parametrize("size", [(32, 48), (37, 61)])
@pytest.mark.parametrize("spec", [Augment(), Augment(scale=(0.4, 0.9), jitter=0.6), Augment(flip=1, scale=(1.7, 3), jitter=0)])
def test_it_is_the_definition_to_rounding(size: tuple[int, int], spec: Augment) -> None:
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (8, 3, *size), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 12, (8, *size), dtype=torch.uint8, generator=generator)
    indices = [3, 1, 4, 15, 9, 2, 6, 50]
    x, y = augmented(images, labels, spec, seed=7, epoch=3, indices=indices)
    expected, expected_labels = oracle(images, labels, spec, 7, 3, indices)
    torch.testing.assert_close(x.double(), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(y, expected_labels)


@pytest.mark.parametrize("size", [(32, 48), (300, 500)])
def test_layout_threads_and_batch_change_no_bit(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (5, 3, *size), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 12, (5, *size), dtype=torch.uint8, generator=generator)
    settings = {"spec": Augment(), "seed": 1, "epoch": 2}
    x, y = augment_batch(images, labels, indices=range(5), **settings)
    assert x.is_contiguous()
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            last, _ = augment_batch(images, labels, indices=range(5), is_channels_last=True, **settings)
            assert last.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(last, x)
            for index in range(5):
                alone = augment_batch(images[index : index + 1], labels[index : index + 1], indices=[index], **settings)
                assert torch.equal(alone[0][0], x[index])
                assert torch.equal(alone[1][0], y[index])
    finally:
        torch.set_num_threads(threads)


def test_inputs_and_global_random_states_are_left_alone() -> None:
    images, labels = encoded()
    kept = images.clone(), labels.clone()
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    augmented(images, labels, Augment())
    assert torch.equal(images, kept[0])
    assert torch.equal(labels, kept[1])
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flip": 1.1}, "`0 <= flip <= 1` must hold, but got 1.1"),
        ({"flip": -0.1}, "`0 <= flip <= 1` must hold, but got -0.1"),
        ({"scale": (0, 1)}, r"`0 < scale\[0\] <= scale\[1\] < inf` must hold, but got \(0, 1\)"),
        ({"scale": (2, 1)}, r"but got \(2, 1\)"),
        ({"scale": (1, float("inf"))}, r"but got \(1, inf\)"),
        ({"scale": (float("nan"), 1)}, r"but got \(nan, 1\)"),
        ({"jitter": 1}, "`0 <= jitter < 1` must hold, but got 1"),
        ({"jitter": -0.5}, "`0 <= jitter < 1` must hold, but got -0.5"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augment(**settings)
