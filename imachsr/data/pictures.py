"""An image file as it was meant to be seen."""

import struct
from pathlib import Path

from PIL import ExifTags, Image

_TURNS: dict[int | None, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(path: Path) -> Image.Image:
    """A decoded image file, turned as its EXIF orientation says.

    Raises:
        ValueError: If there is none, or it is broken.
    """
    if not path.is_file():
        raise ValueError(f"{path} must exist, but does not")
    try:
        with Image.open(path) as image:
            image.load()
            upright = turned(image)
            upright.format = image.format  # which a copy forgets
            return upright
    except Image.DecompressionBombError:
        raise ValueError(
            f"{path} must have at most {2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6:.4g} million pixels, but has more; cut it into tiles"
        ) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} must be a readable image, but: {error}") from error


def turned(image: Image.Image) -> Image.Image:
    """A copy of an image as viewers, and tools that labels are painted with, show it: by its EXIF orientation."""
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, struct.error):  # of a broken note beside whole pixels
        turn = None
    return image.copy() if turn is None else image.transpose(turn)


def check_depth(path: Path, image: Image.Image) -> None:
    """Raise ValueError for an image whose values Pillow would clip, not scale."""
    if image.mode[0] in "IF":
        raise ValueError(f"{path} must have 8 bits a channel, but has mode {image.mode}")
