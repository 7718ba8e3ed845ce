"""Spoilt images."""

import pytest
import torch

from imachsr.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from imachsr.data.scenes import Scenes

IMAGES = Scenes(size=(96, 128), num_val=3).load("val").images


def spoilt(name: str, severity: int, numbers: tuple[int, ...] = (0, 1, 2)) -> torch.Tensor:
    return corrupt(IMAGES[list(numbers)], name, severity, numbers=numbers)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_more_severe_the_farther_from_the_image(name: str) -> None:
    far = [(spoilt(name, severity).float() - IMAGES.float()).abs().mean().item() for severity in SEVERITIES]
    assert far[0] > 1
    assert all(after > before for before, after in zip(far, far[1:], strict=False)), far


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_spoilt_the_same_way_in_any_batch(name: str) -> None:
    whole = spoilt(name, 3)
    assert whole.dtype == torch.uint8
    assert whole.shape == IMAGES.shape
    assert torch.equal(spoilt(name, 3, (2,))[0], whole[2])
    torch.manual_seed(5)
    assert torch.equal(spoilt(name, 3), whole)


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "impulse_noise", "motion_blur", "fog", "night"])
def test_two_images_are_not_spoilt_by_the_same_draw(name: str) -> None:
    same = IMAGES[[0, 0]]
    found = corrupt(same, name, 3, numbers=(0, 1))
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("name", ["defocus_blur", "motion_blur", "gaussian_blur", "pixelate"])
def test_blur_keeps_a_plain_image_and_takes_detail(name: str) -> None:
    plain = torch.full((1, 3, 48, 64), 90, dtype=torch.uint8)
    assert (corrupt(plain, name, 5, numbers=(0,)).int() - 90).abs().max() <= 1
    steps = [spoilt(name, severity)[:, :, :, 1:].float().sub(spoilt(name, severity)[:, :, :, :-1]).abs().mean() for severity in (1, 5)]
    assert steps[1] < steps[0] < IMAGES[:, :, :, 1:].float().sub(IMAGES[:, :, :, :-1]).abs().mean()


def test_weather_and_light_go_their_way() -> None:
    assert spoilt("night", 4).float().mean() < 0.4 * IMAGES.float().mean()
    assert spoilt("brightness", 3).float().mean() > IMAGES.float().mean() + 20
    assert spoilt("fog", 4).float().std() < IMAGES.float().std()
    assert spoilt("contrast", 3).float().std() < 0.5 * IMAGES.float().std()


@pytest.mark.parametrize("size", [(32, 32), (33, 70), (360, 480)])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_any_size_is_taken(name: str, size: tuple[int, int]) -> None:
    images = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert corrupt(images, name, 5, numbers=(7,)).shape == images.shape


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="`corruption` must be one of gaussian_noise, .*, but got 'snow'"):
        corrupt(IMAGES, "snow", 1, numbers=(0, 1, 2))
    with pytest.raises(ValueError, match="`1 <= severity <= 5` must hold, but got 6"):
        corrupt(IMAGES, "fog", 6, numbers=(0, 1, 2))
