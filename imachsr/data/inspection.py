"""What is in a data set and what is wrong with it, file by file."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imachsr.core.types import IGNORE_INDEX
from imachsr.data.coding import Coding
from imachsr.data.images import MOST_THREADS, FromFiles, Source, check_sizes
from imachsr.data.pairing import Pair
from imachsr.data.pictures import check_depth, open_image
from imachsr.data.samples import Progress, Samples, Split, untold

MOST_NAMED = 20
"""Files that are named of each kind of problem; the others are counted."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """One pair of files.

    Attributes:
        size: (height, width) of the image; None where it cannot be read.
        problems: Kind and words of what is wrong.
        traits: What is unusual but right.
        classes: Pixels of each class, and of 255.
        unknown: Pixels of each stored value that is no class.
    """

    size: tuple[int, int] | None = None
    problems: tuple[tuple[str, str], ...] = ()
    traits: tuple[str, ...] = ()
    classes: NDArray[np.int64] | None = None
    unknown: dict[str, int] = field(default_factory=dict)


@dataclass(kw_only=True)
class Findings:
    """All pairs of a split.

    Attributes:
        split: Which.
        num_pairs: Images with a label, whole or not.
        pixels: Of each class, and of 255 (ignored): ``[256]``.
        images_with: Images that have each class: ``[256]``.
        sizes: Images of each (height, width).
        unknown: Pixels of each stored value that is no class.
        traits: Files with what is unusual but right.
        problems: Files by kind of problem.
        named: The first of them, in words.
        notes: What is to be known and is no fault, in words.
        missing: Why there is no such split; None where there is one.
    """

    split: str
    num_pairs: int = 0
    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(IGNORE_INDEX + 1, np.int64))
    images_with: NDArray[np.int64] = field(default_factory=lambda: np.zeros(IGNORE_INDEX + 1, np.int64))
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    traits: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    named: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    missing: str | None = None

    def add(self, look: Look) -> None:
        """Count one pair more."""
        if look.size is not None:
            self.sizes[look.size] += 1
        if look.classes is not None:
            self.pixels += look.classes
            self.images_with += look.classes > 0
        self.unknown.update(look.unknown)
        self.traits.update(look.traits)
        for kind, words in look.problems:
            self.tell(kind, words)

    def tell(self, kind: str, words: str) -> None:
        """Count a problem, and name it while there are few of its kind."""
        self.problems[kind] += 1
        if len(named := self.named.setdefault(kind, [])) < MOST_NAMED:
            named.append(words)


def inspect_source(split: str, source: Source, progress: Progress = untold) -> Findings:
    """Open every file of a split.

    Args:
        split: Its name.
        source: Its files; those that lack their partner stand with the one that they lack.
        progress: Called with the pairs that are done, and the number of all.
    """
    found = Findings(split=split)
    for done, (pair, look) in enumerate(_each(source.pairs, lambda pair: look_at(pair, source.coding)), 1):
        found.num_pairs += all(path.is_file() for path in pair)
        found.add(look)
        progress(done, len(source.pairs))
    return found


def inspect_samples(split: str, samples: Samples) -> Findings:
    """Count the samples of a data set that is not made of files."""
    found = Findings(split=split, num_pairs=len(samples))
    for labels in samples.labels:
        size = (int(labels.shape[0]), int(labels.shape[1]))
        found.add(Look(size=size, classes=np.bincount(labels.numpy().ravel(), minlength=IGNORE_INDEX + 1)))
    return found


def tell_known(data: FromFiles, split: Split, found: Findings) -> None:
    """Tell what its lists name twice, and note what is passed over and what differs from what is published."""
    for words in data.repeated(split):
        found.tell("listed twice", words)
    found.notes += data.passed_over(split)
    if (official := data.official(split)) is not None:
        found.notes += official.compare(found.num_pairs, found.sizes)


def tell_absent(found: Findings, names: Sequence[str]) -> None:
    """Note classes of which a split has no pixel: nothing can be learnt of them, and often the labels mean something else."""
    absent = [name for name, count in zip(names, found.pixels, strict=False) if not count]
    if not absent or not found.pixels[:IGNORE_INDEX].any():
        return
    if len(names) == 2 and found.pixels[IGNORE_INDEX]:
        words = f"no pixel of {absent[0]}, but {found.pixels[IGNORE_INDEX]} of 255, which is ignored"
        found.tell("one class of two", f"{words}: in a binary mask the two classes must be 0 and 1")
    else:
        found.notes.append(f"no pixel of {', '.join(absent)}")


def tell_unlabelled(found: Findings) -> None:
    """Tell of a split without a pixel of any class, which is of no use; of ``test``, whose labels may be kept back, note it."""
    if not found.pixels[IGNORE_INDEX] or found.pixels[:IGNORE_INDEX].any():
        return
    words = "no pixel has a class: all labels are 255, which is ignored"
    if found.split == "test":
        found.notes.append(words)
    else:
        found.tell("no labels", words)


def tell_shared(sources: Mapping[Split, Source], findings: Mapping[Split, Findings]) -> None:
    """Count images that are in two splits, be it under other names: what is trained on must not be scored on."""
    seen: dict[str, str] = {}
    by_size: dict[int, list[tuple[Split, Path]]] = {}
    for split, source in sources.items():
        for image, _ in source.pairs:
            place = str(image.resolve())
            is_new = place not in seen
            earlier = seen.setdefault(place, split)
            if earlier != split:
                findings[split].tell("in two splits", f"{image} is in {earlier} and in {split}")
            if is_new and image.is_file():
                by_size.setdefault(image.stat().st_size, []).append((split, image))
    for some in by_size.values():
        if len({split for split, _ in some}) > 1:  # of other files no byte is read
            _tell_copies(some, findings)


def _tell_copies(images: Sequence[tuple[Split, Path]], findings: Mapping[Split, Findings]) -> None:
    """Count files of one size whose bytes are those of a file of an earlier split."""
    first: dict[bytes, tuple[Split, Path]] = {}
    for split, image in images:
        try:
            digest = hashlib.sha256(image.read_bytes()).digest()
        except OSError:  # told as broken already
            continue
        earlier, other = first.setdefault(digest, (split, image))
        if earlier != split:
            findings[split].tell("in two splits", f"{image} of {split} has the same content as {other} of {earlier}")


def look_at(pair: Pair, coding: Coding) -> Look:
    """Open both files of a pair."""
    image, label = pair
    if not label.is_file():
        return Look(problems=(("image without label", f"{image} has no label {label}"),))
    if not image.is_file():
        return Look(problems=(("label without image", f"{label} has no image {image}"),))
    problems: list[tuple[str, str]] = []
    try:
        picture = open_image(image)
        size = (picture.height, picture.width)
    except ValueError as error:
        return Look(problems=(("broken file", str(error)),))
    try:
        check_depth(image, picture)
    except ValueError as error:
        problems.append(("image of another make", str(error)))
    try:
        classes = open_image(label)
    except ValueError as error:
        return Look(size=size, problems=(*problems, ("broken file", str(error))))
    try:
        check_sizes(pair, picture, classes)
    except ValueError as error:
        problems.append(("size differs", str(error)))
    traits = []
    if classes.mode == "P" and not coding.colours:
        traits.append("label has a palette; its indices count")
    if classes.mode.startswith("I"):
        traits.append("label has 16 or more bits a pixel")
    try:
        values = coding.values(label, classes)
    except ValueError as error:
        return Look(size=size, problems=(*problems, ("label of another make", str(error))), traits=tuple(traits))
    labels, wrong = coding.classes(values)
    stored, counts = np.unique(values[wrong], return_counts=True)
    try:
        coding.check(label, classes, values, wrong)
    except ValueError as error:
        problems.append(("unknown label value", str(error)))
    else:
        if wrong.any():
            traits.append("label has pixels of an unknown colour, few enough to be ignored")
            wrong = np.zeros_like(wrong)
    return Look(
        size=size,
        problems=tuple(problems),
        traits=tuple(traits),
        classes=np.bincount(labels[~wrong], minlength=IGNORE_INDEX + 1),
        unknown={coding.shown(int(value)): int(count) for value, count in zip(stored, counts, strict=True)},
    )


def _each(pairs: Sequence[Pair], look: Callable[[Pair], Look]) -> Iterator[tuple[Pair, Look]]:
    """Look at pairs in several threads, a few ahead."""
    rest = iter(pairs)
    threads = min(MOST_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        while some := list(islice(rest, 4 * threads)):
            yield from zip(some, pool.map(look, some), strict=True)
