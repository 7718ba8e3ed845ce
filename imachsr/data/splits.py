"""A selection split of contiguous blocks, so that neighbouring video frames are never on both sides."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from imachsr.data.samples import Samples


def sequences_of(names: Sequence[str]) -> dict[str, list[int]]:
    """Indices of the frames of each sequence, in order of time.

    A sequence is what is equal up to the last underscore; its frames are in the order of the numbers in their names, however they are listed.
    What all names end with behind that, such as ``_rgb`` or ``_leftImg8bit``, is no part of them.

    Args:
        names: Of the frames.
    """
    stems = _without_kind(names)
    found: dict[str, list[int]] = {}
    for index, stem in enumerate(stems):
        found.setdefault(stem.rpartition("_")[0], []).append(index)
    return {name: sorted(frames, key=lambda index: _natural(stems[index])) for name, frames in found.items()}


def _without_kind(names: Sequence[str]) -> list[str]:
    stems = list(names)
    while len(stems) > 1:
        last = {stem.rpartition("_")[2] for stem in stems}
        if len(last) > 1 or not re.match(r"[^\W\d]", kind := last.pop()) or not all("_" in stem for stem in stems):
            break
        stems = [stem.removesuffix(f"_{kind}") for stem in stems]
    return stems


def _natural(text: str) -> list[tuple[int, str]]:
    """Sorts frame_9 before frame_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


def block_split(names: Sequence[str], *, fraction: float = 0.25, blocks: int = 4, guard: int = 2) -> tuple[list[int], list[int]]:
    """Cut contiguous blocks out of every sequence; of sequences too short for that, take whole ones, spread evenly.

    Too short is a sequence of which a block would leave nothing to train on, or that gives no block.

    Args:
        names: Of the frames; see :func:`sequences_of`.
        fraction: Share that is selected, in (0, 1).
        blocks: Blocks a sequence, >= 1, with equal gaps; fewer where there are fewer frames to select.
        guard: Frames dropped on either side of a block, >= 0, because they look like the block's own.

    Returns:
        Ascending indices of the rest (to train on) and of the blocks (to select on).

    Raises:
        ValueError: If a number is out of range, or nothing remains on a side.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"`0 < fraction < 1` must hold, but got {fraction}")
    if blocks < 1 or guard < 0:
        raise ValueError(f"`blocks >= 1` and `guard >= 0` must hold, but got {blocks} and {guard}")
    sequences = sequences_of(names)
    train: list[int] = []
    select: list[int] = []
    short_count = short_selected = 0
    for frames in sequences.values():
        count = len(frames)
        wanted = round(count * fraction)
        number = min(blocks, wanted)
        chosen: set[int] = set()
        for block in range(number):
            first, last = wanted * block // number, wanted * (block + 1) // number
            gaps = round((block + 0.5) * (count - wanted) / number)
            chosen.update(range(first + gaps, last + gaps))
        near = {frame + step for frame in chosen for step in range(-guard, guard + 1)}
        if not chosen or near.issuperset(range(count)):
            short_count += count
            # Selected once its middle frame is due.
            is_selected = short_selected + count / 2 <= fraction * short_count
            short_selected += count * is_selected
            (select if is_selected else train).extend(frames)
            continue
        select.extend(frames[i] for i in sorted(chosen))
        train.extend(frames[i] for i in range(count) if i not in near)
    if not train or not select:
        raise ValueError(
            f"both sides must keep samples, but {len(names)} samples with fraction {fraction}, {blocks} blocks and guard {guard} leave "
            f"{len(train)} to train on and {len(select)} to select on; names that are equal up to the last underscore "
            f"are one sequence, and these make {len(sequences)}; give more samples, or lower selection.blocks or selection.guard"
        )
    return sorted(train), sorted(select)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """How a search cuts the samples that it scores on out of ``train``; see :func:`block_split`.

    Args:
        fraction: Share that is selected, in (0, 1).
        blocks: Blocks a sequence, >= 1.
        guard: Frames dropped on either side of a block, >= 0.
    """

    fraction: float = 0.25
    blocks: int = 4
    guard: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise ValueError(f"`0 < fraction < 1` must hold, but got {self.fraction}")
        if self.blocks < 1 or self.guard < 0:
            raise ValueError(f"`blocks >= 1` and `guard >= 0` must hold, but got {self.blocks} and {self.guard}")

    def split(self, samples: Samples) -> tuple[Samples, Samples]:
        """The samples to train on, and those to select on."""
        train, select = block_split(samples.names, fraction=self.fraction, blocks=self.blocks, guard=self.guard)
        return samples.subset(train), samples.subset(select)
