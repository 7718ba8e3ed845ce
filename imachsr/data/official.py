"""What is known of data sets that others publish: how many images a split has, and of which size."""

from collections import Counter
from dataclasses import dataclass

Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Official:
    """A split as its authors publish it.

    Attributes:
        size: (height, width) of every image.
        num_images: Of the split; None where there is no official one.
        notes: What else is told apart from it, in words.
    """

    size: Size
    num_images: int | None = None
    notes: tuple[str, ...] = ()

    def compare(self, num_images: int, sizes: Counter[Size]) -> list[str]:
        """What differs, in words; parts of a data set and copies of another size are as good to train on, so that it is no fault.

        Args:
            num_images: That are there.
            sizes: Images of each (height, width).
        """
        words = []
        if self.num_images is not None and num_images < self.num_images:
            words.append(f"{num_images} of the official {self.num_images} images")
        elif self.num_images is not None and num_images > self.num_images:
            words.append(f"{num_images} images, official are {self.num_images}")
        if others := [size for size, _ in sizes.most_common() if size != self.size]:
            more = f" and {len(others) - 1} other sizes" if len(others) > 1 else ""
            words.append(f"{_shown(others[0])}{more}, official is {_shown(self.size)}")
        return [*(["; ".join(words)] if words else []), *self.notes]


def _shown(size: Size) -> str:
    return f"{size[0]} x {size[1]}"
