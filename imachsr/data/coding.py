"""How a label file says the class of each pixel: by an index, by one channel, or by a colour."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imachsr.core.types import IGNORE_INDEX
from imachsr.data.pictures import turned

Colour = tuple[int, int, int]
_LOSSY = ("JPEG", "MPO")


@dataclass(frozen=True, kw_only=True)
class Coding:
    """From what is stored for a pixel to its class.

    Args:
        num_classes: K.
        replace: Pairs of a stored value and its class, or 255 (ignored).
        is_closed: Whether only the values in ``replace`` are known; else a value that is not in it is a class by itself.
        channel: The channel that holds the value, of files with several; 16-bit ones are read whole.
        colours: Pairs of a colour (R, G, B) and its class, or 255; the only ones that are known.
        most_strange: The largest share of a file's pixels that may have a colour that is not known; they are ignored (255).
    """

    num_classes: int
    replace: tuple[tuple[int, int], ...] = ()
    is_closed: bool = False
    channel: int | None = None
    colours: tuple[tuple[Colour, int], ...] = ()
    most_strange: float = 0.0

    @property
    def is_plain(self) -> bool:
        """Whether values are indices in a file with one channel, of which some are replaced."""
        return not (self.is_closed or self.colours) and self.channel is None

    def values(self, path: Path, image: Image.Image) -> NDArray[np.int64]:
        """What is stored for each pixel ``[H, W]``; of a colour one number, as in #RRGGBB.

        Args:
            path: Of the file, for messages.
            image: As it was read.

        Raises:
            ValueError: If the file is of another make.
        """
        if image.format in _LOSSY or image.info.get("compression") == "jpeg":
            raise ValueError(f"{path} must keep each pixel's value, but is compressed as JPEG, which changes them; make the labels again as PNG")
        if self.colours:
            if image.mode not in ("RGB", "RGBA", "P"):
                raise ValueError(f"{path} must hold a colour a pixel, but has mode {image.mode}")
            colours = np.asarray(image.convert("RGB"), np.int64)
            return colours[..., 0] << 16 | colours[..., 1] << 8 | colours[..., 2]
        raw = np.asarray(image)
        if self.channel is not None and raw.ndim == 3:
            raw = _wide(path, image, raw)[..., self.channel]
        if raw.ndim != 2 or raw.dtype.kind == "f":
            raise ValueError(f"{path} must hold one class index a pixel (grey or palette), but has mode {image.mode}")
        return raw.astype(np.int64) // _scale(path, image)

    def classes(self, values: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The class of each pixel, 255 where a colour is unknown, and where it is unknown; both ``[H, W]``."""
        known = [(red << 16 | green << 8 | blue, new) for (red, green, blue), new in self.colours] or list(self.replace)
        if self.is_closed or self.colours:
            stored, new = (np.array(part, np.int64) for part in zip(*sorted(known), strict=True))
            place = np.searchsorted(stored, values).clip(max=len(stored) - 1)
            wrong = stored[place] != values
            return np.where(wrong, IGNORE_INDEX, new[place]), wrong
        labels = values.copy()
        for value, replaced in known:
            labels[values == value] = replaced
        return labels, (labels < 0) | ((labels >= self.num_classes) & (labels != IGNORE_INDEX))

    def shown(self, value: int) -> str:
        """A stored value as people write it."""
        return f"({value >> 16}, {value >> 8 & 255}, {value & 255})" if self.colours else str(value)

    @property
    def rule(self) -> str:
        """Which values are known, in words."""
        if self.colours:
            return f"colours of the table ({len(self.colours)} of them)"
        if self.is_closed:
            return "ids of the table (" + ", ".join(str(value) for value, _ in sorted(self.replace)) + ")"
        return f"in 0..{self.num_classes - 1} or {IGNORE_INDEX} (ignored)"

    def check(self, path: Path, image: Image.Image, values: NDArray[np.int64], wrong: NDArray[np.bool_]) -> None:
        """Raise ValueError for the first unknown pixel, with how many there are, unless they are few enough to be ignored."""
        if wrong.sum() <= self.most_strange * wrong.size:
            return
        y, x = np.argwhere(wrong)[0]
        palette = "; the file has a palette, whose indices count and not its colours" if image.mode == "P" and not self.colours else ""
        few = f"; up to {self.most_strange:.1%} of a file would be ignored" if self.most_strange else ""
        raise ValueError(
            f"labels of {path} must be {self.rule}, but got {self.shown(int(values[y, x]))} at (y, x) = ({y}, {x}), "
            f"and {int(wrong.sum())} such pixels in all{palette}{few}"
        )


def _scale(path: Path, image: Image.Image) -> int:
    """What Pillow multiplies stored values by, for grey of less than eight bits to fill the range from black to white."""
    if image.format != "PNG" or image.mode != "L":
        return 1
    with Image.open(path) as file:
        return {"L;2": 255 // 3, "L;4": 255 // 15}.get(str(file.tile[0].args), 1)


def _wide(path: Path, image: Image.Image, eight: NDArray[np.uint8]) -> NDArray[np.int64]:
    """All 16 bits of a channel, where the file has them: Pillow keeps the upper eight alone, which are 0 for a small class."""
    with Image.open(path) as file:
        if not all(isinstance(tile.args, str) and tile.args.endswith(";16B") for tile in file.tile):
            return eight.astype(np.int64)
        if any(str(tile.args).startswith("LA") for tile in file.tile):
            raise ValueError(f"{path} must have three channels, or one, but has grey and alpha")
        # Read as if the order of the bytes were the other, the lower eight are kept.
        file.tile = [tile._replace(args=str(tile.args).removesuffix("B") + "L") for tile in file.tile]
        return np.asarray(image, np.int64) << 8 | np.asarray(turned(file), np.int64)
