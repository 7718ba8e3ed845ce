"""Images as they come on a bad day: noise, blur, weather and compression, in five severities.

After Hendrycks and Dietterich (arXiv 1903.12261), whose severities these follow where they can; computed by torchvision and torch. Their own code,
packaged as ``imagecorruptions``, has had no release since 2021 and asks for versions of numpy and scikit-image of that time. Night stands for their
frost and snow, which are photographs that would have to be shipped; a street has it more often.
"""

import math
import zlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

SEVERITIES = (1, 2, 3, 4, 5)
Severe = tuple[float, float, float, float, float]


def corrupt(images: Tensor, name: str, severity: int, *, numbers: Sequence[int]) -> Tensor:
    """The images, spoilt: what is drawn depends on (name, severity, number of the image) alone.

    Args:
        images: uint8 ``[B, 3, H, W]``, RGB.
        name: One of :data:`CORRUPTIONS`.
        severity: 1 to 5.
        numbers: Of the images in their data set, B of them.

    Returns:
        uint8 ``[B, 3, H, W]``; labels stay valid, since nothing is moved.

    Raises:
        ValueError: If there is no such corruption or severity.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"`corruption` must be one of {', '.join(CORRUPTIONS)}, but got {name!r}")
    if severity not in SEVERITIES:
        raise ValueError(f"`1 <= severity <= 5` must hold, but got {severity}")
    spoil = CORRUPTIONS[name]
    spoilt = []
    for image, number in zip(images, numbers, strict=True):
        generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {severity} {number}".encode()))
        spoilt.append(spoil(image.float() / 255, severity - 1, generator))
    return (torch.stack(spoilt).clamp(0, 1) * 255).round().to(torch.uint8)


def _gaussian_noise(image: Tensor, at: int, generator: torch.Generator) -> Tensor:
    levels: Severe = (0.08, 0.12, 0.18, 0.26, 0.38)
    return image + levels[at] * torch.randn(image.shape, generator=generator)


def _shot_noise(image: Tensor, at: int, generator: torch.Generator) -> Tensor:
    photons: Severe = (60, 25, 12, 5, 3)
    return torch.poisson(image * photons[at], generator=generator) / photons[at]


def _impulse_noise(image: Tensor, at: int, generator: torch.Generator) -> Tensor:
    shares: Severe = (0.03, 0.06, 0.09, 0.17, 0.27)
    drawn = torch.rand(image.shape, generator=generator)
    return torch.where(drawn < shares[at] / 2, 0.0, torch.where(drawn > 1 - shares[at] / 2, 1.0, image))


def _scaled(pixels: float, image: Tensor) -> float:
    """A length that was chosen for images of 224 pixels, for this one."""
    return pixels * min(image.shape[-2:]) / 224


def _filtered(image: Tensor, kernel: Tensor) -> Tensor:
    """The image under a kernel ``[k, k]`` of odd size, its border mirrored."""
    half = min(kernel.shape[-1] // 2, min(image.shape[-2:]) - 1)
    middle = kernel.shape[-1] // 2
    kernel = kernel[middle - half : middle + half + 1, middle - half : middle + half + 1]
    kernel = (kernel / kernel.sum()).expand(3, 1, -1, -1)
    return F.conv2d(F.pad(image[None], [half] * 4, mode="reflect"), kernel, groups=3)[0]


def _places(radius: float) -> tuple[Tensor, Tensor]:
    steps = torch.arange(-math.ceil(radius), math.ceil(radius) + 1, dtype=torch.float32)
    rows, columns = torch.meshgrid(steps, steps, indexing="ij")
    return rows, columns


def _defocus_blur(image: Tensor, at: int, generator: torch.Generator) -> Tensor:
    radii: Severe = (3, 4, 6, 8, 10)
    radius = max(0.5, _scaled(radii[at], image))
    rows, columns = _places(radius)
    return _filtered(image, (radius + 0.5 - (rows**2 + columns**2).sqrt()).clamp(0, 1))


def _motion_blur(image: Tensor, at: int, generator: torch.Generator) -> Tensor:
    lengths: Severe = (6, 10, 14, 18, 24)
    half = max(0.75, _scaled(lengths[at], image) / 2)
    angle = math.pi * (float(torch.rand((), generator=generator)) - 0.5) / 2  # a car moves along the street
    rows, columns = _places(half)
    across = (rows * math.cos(angle) - columns * math.sin(angle)).abs()
    along = (columns * math.cos(angle) + rows * math.sin(angle)).abs()
    return _filtered(image, (1 - across).clamp(0, 1) * (half + 0.5 - along).clamp(0, 1))


def _gaussian_blur(image: Tensor, at: int, generator: torch.Generator) -> Tensor:
    sigmas: Severe = (1, 2, 3, 4, 6)
    sigma = max(0.3, _scaled(sigmas[at], image))
    rows, columns = _places(3 * sigma)
    return _filtered(image, torch.exp(-(rows**2 + columns**2) / (2 * sigma**2)))


def _clouds(image: Tensor, generator: torch.Generator) -> Tensor:
    """Noise of all wavelengths, the longer the stronger, ``[1, H, W]`` in [0, 1]."""
    height, width = image.shape[-2:]
    found = torch.zeros(1, 1, height, width)
    for octave in range(1, 7):
        drawn = torch.rand(1, 1, 2**octave, 2**octave, generator=generator)
        found += F.interpolate(drawn, size=(height, width), mode="bicubic", align_corners=False) / 2**octave
    return ((found - found.min()) / (found.max() - found.min()))[0]


def _fog(image: Tensor, at: int, generator: torch.Generator) -> Tensor:
    densities: Severe = (0.25, 0.4, 0.5, 0.6, 0.72)
    thickness = densities[at] * (0.6 + 0.4 * _clouds(image, generator))
    return image * (1 - thickness) + 0.9 * thickness


def _night(image: Tensor, at: int, generator: torch.Generator) -> Tensor:
    lights: Severe = (0.5, 0.38, 0.28, 0.2, 0.13)
    grey = image.mean(0, keepdim=True)
    dark = lights[at] * (0.6 * image + 0.4 * grey) ** 1.4 * torch.tensor([0.85, 0.9, 1.15]).view(3, 1, 1)
    return dark + 0.01 * (at + 1) * torch.randn(image.shape, generator=generator)


def _brightness(image: Tensor, at: int, generator: torch.Generator) -> Tensor:
    added: Severe = (0.1, 0.2, 0.3, 0.4, 0.5)
    return image + added[at]


def _contrast(image: Tensor, at: int, generator: torch.Generator) -> Tensor:
    factors: Severe = (0.4, 0.3, 0.2, 0.1, 0.05)
    mean = image.mean((1, 2), keepdim=True)
    return mean + factors[at] * (image - mean)


def _jpeg(image: Tensor, at: int, generator: torch.Generator) -> Tensor:
    qualities = (25, 18, 15, 10, 7)
    from torchvision.transforms.v2 import functional as tv  # takes long to import, and few spoil images

    packed: Tensor = tv.jpeg((image * 255).round().to(torch.uint8), quality=qualities[at])
    return packed.float() / 255


def _pixelate(image: Tensor, at: int, generator: torch.Generator) -> Tensor:
    shares: Severe = (1 / 2, 1 / 3, 1 / 4, 1 / 6, 1 / 8)  # whole blocks where they fit: a share of 0.6 spoils more than a half
    size = [max(1, round(side * shares[at])) for side in image.shape[-2:]]
    small = F.interpolate(image[None], size=size, mode="area")
    return F.interpolate(small, size=image.shape[-2:], mode="nearest")[0]


CORRUPTIONS: dict[str, Callable[[Tensor, int, torch.Generator], Tensor]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "motion_blur": _motion_blur,
    "gaussian_blur": _gaussian_blur,
    "fog": _fog,
    "night": _night,
    "brightness": _brightness,
    "contrast": _contrast,
    "jpeg": _jpeg,
    "pixelate": _pixelate,
}
