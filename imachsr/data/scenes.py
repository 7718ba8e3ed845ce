"""Procedural street scenes: the embedded data set, drawn from a seed."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from imachsr.core.types import IGNORE_INDEX
from imachsr.data.samples import Progress, Samples, Split, check_size, check_split, untold

CLASSES = ("sky", "road", "lane_mark", "building", "vegetation", "car", "pedestrian", "pole", "sign")
_ID = {name: index for index, name in enumerate(CLASSES)}
Point = tuple[float, float]
Colour = tuple[int, int, int]
Random = np.random.Generator


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """Street scenes in perspective, with occlusion, textures, lighting, sensor noise and strong class imbalance; part of the own bonnet is ignored.

    Args:
        size: (height, width) in pixels, each >= 32.
        num_train: Samples of ``train``, >= 1; likewise the other splits.
        seed: Equal seeds give equal pixels.
        domain: ``day``, or ``shifted``: the same scenes at night, in fog or blurred.
    """

    kind: Literal["scenes"] = "scenes"
    size: tuple[int, int] = (96, 128)
    num_train: int = 240
    num_val: int = 60
    num_test: int = 60
    seed: int = 0
    domain: Literal["day", "shifted"] = "day"

    def __post_init__(self) -> None:
        check_size(self.size)
        for name in ("num_train", "num_val", "num_test"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name} >= 1` must hold, but got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"`seed >= 0` must hold, but got {self.seed}")
        if self.domain not in ("day", "shifted"):
            raise ValueError(f"`domain` must be 'day' or 'shifted', but got {self.domain!r}")

    @property
    def num_classes(self) -> int:
        return len(CLASSES)

    @property
    def class_names(self) -> tuple[str, ...]:
        return CLASSES

    def load(self, split: Split, *, progress: Progress = untold) -> Samples:
        """Draw a split.

        Args:
            split: Which.
            progress: Called with the scenes that are drawn, and the number of all.
        """
        check_split(split)
        count = {"train": self.num_train, "val": self.num_val, "test": self.num_test}[split]
        number = ("train", "val", "test").index(split)
        drawn = []
        for index in range(count):
            drawn.append(draw_scene(self.size, np.random.default_rng([self.seed, number, index])))
            progress(index + 1, count)
        images = [image for image, _ in drawn]
        if self.domain == "shifted":
            images = [shift(image, np.random.default_rng([self.seed, number, index, 1])) for index, image in enumerate(images)]
        return Samples(
            images=torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy()),
            labels=torch.from_numpy(np.stack([labels for _, labels in drawn])),
            names=tuple(f"scene_{index:05d}" for index in range(count)),
        )


@dataclass(kw_only=True)
class _Canvas:
    """Image and labels, painted together from far to near."""

    image: Image.Image
    labels: Image.Image
    random: Random
    horizon: float
    vanishing: float

    @property
    def width(self) -> int:
        return self.image.width

    @property
    def height(self) -> int:
        return self.image.height

    def polygon(self, points: list[Point], label: int, colour: Colour) -> None:
        for target, fill in ((self.image, colour), (self.labels, label)):
            ImageDraw.Draw(target).polygon(points, fill=fill)

    def box(self, left: float, top: float, right: float, bottom: float, label: int, colour: Colour) -> None:
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], label, colour)

    def ellipse(self, centre: Point, radii: Point, label: int, colour: Colour) -> None:
        (x, y), (a, b) = centre, radii
        for target, fill in ((self.image, colour), (self.labels, label)):
            ImageDraw.Draw(target).ellipse((x - a, y - b, x + a, y + b), fill=fill)

    def ground(self, distance: float, offset: float) -> Point:
        """Image position of a point on the ground: distance >= 1 (1 is the lower edge), offset in half widths at distance 1."""
        y = self.horizon + (self.height - self.horizon) / distance
        return self.vanishing + offset * self.width / 2 / distance, y


def _colour(random: Random, mean: Colour, spread: float) -> Colour:
    shade = random.normal(0, spread)
    red, green, blue = (int(np.clip(value + shade + random.normal(0, spread / 2), 0, 255)) for value in mean)
    return red, green, blue


def draw_scene(size: tuple[int, int], random: Random) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One scene: image uint8 ``[H, W, 3]`` and labels uint8 ``[H, W]``."""
    height, width = size
    canvas = _Canvas(
        image=Image.new("RGB", (width, height), _colour(random, (165, 185, 210), 22)),
        labels=Image.new("L", (width, height), _ID["sky"]),
        random=random,
        horizon=height * random.uniform(0.36, 0.5),
        vanishing=width * random.uniform(0.35, 0.65),
    )
    _draw_ground(canvas)
    _draw_sides(canvas)
    things = [(random.uniform(1.3, 6), random.choice(4, p=(0.3, 0.25, 0.27, 0.18))) for _ in range(random.integers(5, 12))]
    for distance, number in sorted(things, reverse=True):
        (_draw_car, _draw_pedestrian, _draw_pole, _draw_tree)[number](canvas, distance)
    if random.random() < 0.5:
        bonnet = height * random.uniform(0.02, 0.07)
        canvas.ellipse((width / 2, height + bonnet), (width * 0.6, 2 * bonnet), IGNORE_INDEX, _colour(random, (60, 60, 65), 20))
    labels = np.asarray(canvas.labels, np.uint8).copy()
    return _finish(np.asarray(canvas.image, np.float32), labels, random), labels


def _draw_ground(canvas: _Canvas) -> None:
    random = canvas.random
    canvas.box(0, canvas.horizon, canvas.width, canvas.height, _ID["vegetation"], _colour(random, (92, 104, 74), 18))
    half = random.uniform(0.9, 1.7)
    edges = [canvas.ground(distance, side * half) for side, distance in ((-1, 0.8), (-1, 40), (1, 40), (1, 0.8))]
    canvas.polygon(edges, _ID["road"], _colour(random, (102, 100, 102), 16))
    paint = _colour(random, (175, 172, 160), 22)
    for offset in (-0.9 * half, 0.0, 0.9 * half):
        is_dashed = offset == 0.0 or random.random() < 0.4
        start = 0.9
        while start < 12:
            end = start * random.uniform(1.25, 1.6) if is_dashed else 14
            wide = 0.03
            corners = [canvas.ground(distance, offset + step) for distance, step in ((start, -wide), (end, -wide), (end, wide), (start, wide))]
            canvas.polygon(corners, _ID["lane_mark"], paint)
            start = end * 1.45


def _draw_sides(canvas: _Canvas) -> None:
    """Rows of buildings and hedges towards the vanishing point, far ones first."""
    random = canvas.random
    for side in (-1, 1):
        distance = 9.0
        while distance > 0.7:
            near = distance / random.uniform(1.3, 1.9)
            offset = side * random.uniform(1.9, 2.6)
            far_x, far_y = canvas.ground(distance, offset)
            near_x, near_y = canvas.ground(near, offset)
            is_building = random.random() < 0.68
            tall = canvas.height * (random.uniform(0.7, 1.6) if is_building else random.uniform(0.15, 0.5))
            points = [(far_x, far_y), (far_x, far_y - tall / distance), (near_x, near_y - tall / near), (near_x, near_y)]
            if is_building:
                tone: Colour = ((140, 118, 100), (128, 130, 132), (156, 142, 118), (104, 92, 90))[random.integers(4)]
                canvas.polygon(points, _ID["building"], _colour(random, tone, 18))
                _draw_windows(canvas, points)
            else:
                canvas.polygon(points, _ID["vegetation"], _colour(random, (70, 92, 58), 18))
            distance = near * random.uniform(0.9, 1.0)


def _draw_windows(canvas: _Canvas, points: list[Point]) -> None:
    (far_x, far_bottom), (_, far_top), (near_x, near_top), (_, near_bottom) = points
    glass = _colour(canvas.random, (78, 86, 98), 20)
    for row in np.arange(0.12, 0.85, 0.22):
        for column in np.arange(0.15, 0.85, 0.3):
            corners = []
            for across, down in ((0.0, 0.0), (0.14, 0.0), (0.14, 0.1), (0.0, 0.1)):
                t = column + across
                top, bottom = far_top + t * (near_top - far_top), far_bottom + t * (near_bottom - far_bottom)
                corners.append((far_x + t * (near_x - far_x), top + (row + down) * (bottom - top)))
            canvas.polygon(corners, _ID["building"], glass)


def _draw_car(canvas: _Canvas, distance: float) -> None:
    random = canvas.random
    x, y = canvas.ground(distance, random.uniform(-1.4, 1.4))
    wide, tall = canvas.width * random.uniform(0.2, 0.32) / distance, canvas.height * random.uniform(0.22, 0.3) / distance
    tone: Colour = ((150, 40, 40), (60, 70, 110), (175, 175, 178), (60, 60, 62), (110, 108, 108), (190, 170, 90))[random.integers(6)]
    paint = _colour(random, tone, 16)
    canvas.box(x - wide, y - tall * 0.6, x + wide, y - tall * 0.1, _ID["car"], paint)
    roof = [(x - wide * 0.75, y - tall * 0.6), (x - wide * 0.5, y - tall), (x + wide * 0.5, y - tall), (x + wide * 0.75, y - tall * 0.6)]
    canvas.polygon(roof, _ID["car"], _colour(random, (70, 80, 92), 14))
    for side in (-0.7, 0.7):
        canvas.ellipse((x + side * wide, y - tall * 0.1), (wide * 0.17, tall * 0.15), _ID["car"], (28, 28, 30))


def _draw_pedestrian(canvas: _Canvas, distance: float) -> None:
    random = canvas.random
    x, y = canvas.ground(distance, random.choice((-1, 1)) * random.uniform(0.7, 1.9))
    tall = canvas.height * random.uniform(0.3, 0.38) / distance
    wide = tall * random.uniform(0.13, 0.18)
    canvas.box(x - wide * 0.8, y - tall * 0.45, x + wide * 0.8, y, _ID["pedestrian"], _colour(random, (58, 56, 66), 20))
    canvas.box(x - wide, y - tall * 0.82, x + wide, y - tall * 0.42, _ID["pedestrian"], _colour(random, (118, 86, 84), 45))
    canvas.ellipse((x, y - tall * 0.9), (wide * 0.6, tall * 0.1), _ID["pedestrian"], _colour(random, (176, 142, 122), 22))


def _draw_pole(canvas: _Canvas, distance: float) -> None:
    random = canvas.random
    x, y = canvas.ground(distance, random.choice((-1, 1)) * random.uniform(1.1, 1.9))
    tall = canvas.height * random.uniform(0.6, 1.0) / distance
    wide = max(0.6, canvas.width * 0.009 / distance)
    canvas.box(x - wide, y - tall, x + wide, y, _ID["pole"], _colour(random, (98, 98, 96), 22))
    if random.random() < 0.6:
        half = canvas.height * random.uniform(0.06, 0.09) / distance + 1
        tone: Colour = ((170, 50, 46), (52, 84, 150), (188, 166, 60))[random.integers(3)]
        draw = (
            canvas.ellipse
            if random.random() < 0.5
            else lambda c, r, label, paint: canvas.box(c[0] - r[0], c[1] - r[1], c[0] + r[0], c[1] + r[1], label, paint)
        )
        draw((x, y - tall + half), (half, half), _ID["sign"], _colour(random, tone, 20))


def _draw_tree(canvas: _Canvas, distance: float) -> None:
    random = canvas.random
    x, y = canvas.ground(distance, random.choice((-1, 1)) * random.uniform(1.4, 2.2))
    tall = canvas.height * random.uniform(0.6, 0.9) / distance
    canvas.box(x - tall * 0.03, y - tall, x + tall * 0.03, y, _ID["vegetation"], _colour(random, (86, 72, 58), 14))
    green = _colour(random, (66, 96, 54), 18)
    for _ in range(4):
        centre = (x + tall * random.uniform(-0.18, 0.18), y - tall * random.uniform(0.7, 1.05))
        canvas.ellipse(centre, (tall * random.uniform(0.14, 0.26), tall * random.uniform(0.12, 0.2)), _ID["vegetation"], green)


def _smooth_noise(size: tuple[int, int], cells: int, random: Random) -> NDArray[np.float32]:
    coarse = Image.fromarray(random.normal(0, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC), np.float32)


# Standard deviation of the fine texture of each class, in grey levels.
_TEXTURE = np.array([3, 9, 8, 14, 22, 8, 12, 8, 8], np.float32)


def _finish(image: NDArray[np.floating[Any]], labels: NDArray[np.uint8], random: Random) -> NDArray[np.uint8]:
    """Texture, lighting and sensor."""
    size = labels.shape[0], labels.shape[1]
    texture = _TEXTURE[np.minimum(labels, len(_TEXTURE) - 1)]
    image = image + (texture * (random.normal(0, 0.7, size) + 0.7 * _smooth_noise(size, 24, random)))[..., None]
    light = random.uniform(0.62, 1.15) * (1 + 0.16 * _smooth_noise(size, 4, random))
    tint = np.asarray([random.uniform(0.9, 1.1), 1.0, random.uniform(0.88, 1.12)], np.float32)
    image = image * light[..., None] * tint + random.normal(0, 6, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def shift(image: NDArray[np.uint8], random: Random) -> NDArray[np.uint8]:
    """The same scene at night, in fog, or blurred: uint8 ``[H, W, 3]``."""
    kind = random.integers(3)
    if kind == 2:
        return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(image.shape[0] / 60)), np.uint8)
    x: NDArray[np.floating[Any]] = image.astype(np.float32)
    if kind == 0:
        x = x * random.uniform(0.2, 0.4) * np.array([0.85, 0.9, 1.2], np.float32) + random.normal(0, 7, x.shape)
    else:
        height = x.shape[0]
        depth = np.clip(1.6 - np.abs(np.arange(height) / height - 0.42) * 2.2, 0.25, 1)  # densest at the horizon
        share = (random.uniform(0.55, 0.75) * depth)[:, None, None]
        x = x * (1 - share) + 205 * share
    return np.clip(x, 0, 255).astype(np.uint8)
