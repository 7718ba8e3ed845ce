"""What every data set gives: decoded images with their labels."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from imachsr.core.types import IGNORE_INDEX

Split = Literal["train", "val", "test"]
OnError = Literal["raise", "skip"]
Progress = Callable[[int, int], object]
"""Called with what is done, and the number of all."""


class NoSplitError(ValueError):
    """Of a split there is nothing at all, as of a test split that was never made; where a part of it is there, something is wrong."""


def untold(done: int, total: int) -> None:
    """Progress that nobody is told of."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Decoded samples, possibly memory-mapped.

    Attributes:
        images: uint8 ``[N, 3, H, W]``, RGB.
        labels: uint8 ``[N, H, W]``, classes 0..K-1 or 255 (ignored).
        names: One per sample, in the order of the source; video frames are named SEQUENCE_FRAME.
    """

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or self.images.shape[1] != 3:
            raise ValueError(f"`images` must be uint8 [N, 3, H, W], but got {self.images.dtype} {list(self.images.shape)}")
        expected = [self.images.shape[0], *self.images.shape[2:]]
        if self.labels.dtype != torch.uint8 or list(self.labels.shape) != expected:
            raise ValueError(f"`labels` must be uint8 {expected}, but got {self.labels.dtype} {list(self.labels.shape)}")
        if len(self.names) != len(self.images):
            raise ValueError(f"`names` must name {len(self.images)} samples, but got {len(self.names)}")

    def __len__(self) -> int:
        return len(self.names)

    def fingerprint(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of all images, labels and names: equal for the same samples in the same order."""
        digest = hashlib.sha256(json.dumps([list(self.images.shape), list(self.names)]).encode())
        for tensor in (self.images, self.labels):
            for sample in tensor:  # of memory-mapped ones never all at once
                digest.update(sample.contiguous().numpy().data)
        return digest.hexdigest()[:16]

    def check_labelled(self, what: str) -> None:
        """Refuse samples of which no pixel has a class: nothing can be learnt of them, and no score is a number.

        Args:
            what: What they are of, such as the name of a split.

        Raises:
            ValueError: If all labels are 255.
        """
        if not any(bool((labels != IGNORE_INDEX).any()) for labels in self.labels):
            raise ValueError(
                f"{what} must have a pixel with a class, but all labels of its {len(self)} samples are {IGNORE_INDEX}, which is ignored; "
                "look at the label files with `imachsr data check`"
            )

    def check_binary(self, what: str, class_names: Sequence[str]) -> None:
        """Refuse masks of 0 and 255, as drawing programs save them, for two classes: 255 is ignored, so that the other class alone would be learnt.

        Args:
            what: What they are of, such as the name of a split.
            class_names: Of all classes; anything goes where they are not two.

        Raises:
            ValueError: If one of two classes has no pixel, and others are 255.
        """
        if len(class_names) != 2 or not any(bool((labels == IGNORE_INDEX).any()) for labels in self.labels):
            return
        absent = [name for index, name in enumerate(class_names) if not any(bool((labels == index).any()) for labels in self.labels)]
        if len(absent) == 1:
            raise ValueError(
                f"{what} must have pixels of both classes, but has none of {absent[0]}, and some of {IGNORE_INDEX}, which is ignored; "
                "in a binary mask the two classes must be 0 and 1"
            )

    def subset(self, indices: Sequence[int]) -> "Samples":
        """The samples at these indices, in this order."""
        index = torch.as_tensor(list(indices), dtype=torch.long)
        return Samples(images=self.images[index], labels=self.labels[index], names=tuple(self.names[i] for i in indices))


class Dataset(Protocol):
    """A source of samples, shipped or the user's own."""

    @property
    def num_classes(self) -> int:
        """K, 2..255."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names."""

    def load(self, split: Split) -> Samples:
        """All samples of a split."""


def check_split(split: str) -> None:
    """Raise ValueError for an unknown split."""
    if split not in get_args(Split):
        raise ValueError(f"`split` must be one of {get_args(Split)}, but got {split!r}")


def check_size(size: tuple[int, int]) -> None:
    """Raise ValueError unless (height, width) are at least 32 pixels each."""
    if min(size) < 32:
        raise ValueError(f"`size` must be (height, width) of at least 32 pixels, but got {tuple(size)}")


def check_on_error(on_error: str) -> None:
    """Raise ValueError for an unknown answer to broken files."""
    if on_error not in get_args(OnError):
        raise ValueError(f"`on_error` must be one of {get_args(OnError)}, but got {on_error!r}")
