"""Small image files that the tests of this folder write."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (40, 50)) -> Path:
    """A smooth picture, so that lossy formats keep it nearly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[: size[0], : size[1]]
    picture = np.stack([(3 * y + 20 * seed) % 200, 2 * x, (x + y + 40 * seed) % 180], -1).astype(np.uint8)
    Image.fromarray(picture).save(path)
    return path


def write_mask(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def mask(classes: int, seed: int = 0, size: tuple[int, int] = (40, 50), dtype: type = np.uint8) -> np.ndarray:
    """Blocks of 10 pixels, so that resizing by the nearest pixel can be foretold."""
    coarse = np.random.default_rng(seed).integers(0, classes, (size[0] // 10, size[1] // 10))
    return np.kron(coarse, np.ones((10, 10))).astype(dtype)
