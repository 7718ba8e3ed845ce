"""SYNTHIA-SF: six drawn street videos."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from imachsr.data.cityscapes import CLASSES as CITYSCAPES
from imachsr.data.images import FromFiles, Source
from imachsr.data.official import Official
from imachsr.data.pairing import SUFFIXES, Pair, find_folder, pair_folders
from imachsr.data.samples import NoSplitError, OnError, Split, check_split
from imachsr.data.synthia import Classes, check_classes, coding_of, names_of

SEQUENCES = tuple(f"SEQ{number}" for number in range(1, 7))
IMAGES, LABELS = "RGBLeft", "GTLeft"
NUM_IMAGES = 2224
IDS = {name: number for number, name in enumerate((*CITYSCAPES, "road lines", "other", "road works"), 1)}
"""The id of each class; 0 is void."""


@dataclass(frozen=True, kw_only=True)
class SynthiaSF(FromFiles):
    """The drawn street videos of Hernandez-Juarez et al. 2017, 2224 frames of 1080 x 1920 pixels.

    ``SEQ1`` to ``SEQ6``, each with ``RGBLeft/0000000.png`` and ``GTLeft/0000000.png``, whose red channel holds the class id; in the folder itself
    or in ``SYNTHIA-SF`` below it. Void (0) is ignored. Folders and class names: Datumaro's format ``synthia_sf``; order of the ids and channel:
    public readers of the data set. The README of the archive itself could not be read for this. There is no official split.

    Args:
        root: The folder that holds SEQ1 to SEQ6; some of them may be missing.
        classes: own: the 22 classes besides void. cityscapes: its 19, in its order; road lines, other and road works are ignored.
        val_sequences: Of val, such as [SEQ6]; all that are in neither val nor test are train.
        test_sequences: Of test; none by default.
        size: (height, width) in pixels, each >= 32.
        cache: Folder of decoded arrays; the user's cache folder without it.
        on_error: raise, or skip: leave out samples whose files are missing or broken, with a warning, up to a tenth of a split.
    """

    kind: Literal["synthia_sf"] = "synthia_sf"
    root: str
    classes: Classes = "own"
    val_sequences: tuple[str, ...] = ("SEQ6",)
    test_sequences: tuple[str, ...] = ()
    size: tuple[int, int] = (256, 448)
    cache: str | None = None
    on_error: OnError = "raise"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_classes(self.classes)
        chosen = (*self.val_sequences, *self.test_sequences)
        if unknown := [name for name in chosen if name not in SEQUENCES]:
            raise ValueError(f"`val_sequences` and `test_sequences` must be of {', '.join(SEQUENCES)}, but got {unknown[0]!r}")
        if len(set(chosen)) != len(chosen):
            raise ValueError(f"`val_sequences` and `test_sequences` must share no sequence, but got {', '.join(chosen)}")
        if len(chosen) == len(SEQUENCES):
            raise ValueError("`val_sequences` and `test_sequences` must leave a sequence to train on, but hold all")

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def class_names(self) -> tuple[str, ...]:
        return names_of(IDS, self.classes)

    def source(self, split: Split) -> Source:
        """The files of a split; raises as :meth:`load`, but opens none."""
        check_split(split)
        wanted = self._sequences(split)
        if not wanted:
            raise NoSplitError(f"`{split}_sequences` must name a sequence for {split}, but is empty; set data.{split}_sequences=[SEQ5]")
        root = self._place()
        there = [name for name in SEQUENCES if (root / name).is_dir()]
        found: dict[str, list[Pair]] = {}
        for name in wanted:
            if name in there:
                found[name] = pair_folders(root / name / IMAGES, root / name / LABELS, on_error=self.on_error)
            elif split != "train":
                raise ValueError(f"{root} must hold {name}, of {split}, but holds {', '.join(there)}; set data.{split}_sequences")
        if not found:
            raise ValueError(f"{root} must hold a sequence to train on, besides those of val and test, but holds {', '.join(there)}")
        names = tuple(f"{name}_{image.stem}" for name, pairs in found.items() for image, _ in pairs)
        return Source(pairs=[pair for pairs in found.values() for pair in pairs], coding=coding_of(IDS, self.classes), names=names)

    def folders(self, split: Split) -> tuple[Path, ...]:
        return tuple(self._place() / name / part for name in self._sequences(split) for part in (IMAGES, LABELS))

    def _sequences(self, split: Split) -> tuple[str, ...]:
        rest = tuple(name for name in SEQUENCES if name not in {*self.val_sequences, *self.test_sequences})
        return {"train": rest, "val": self.val_sequences, "test": self.test_sequences}[split]

    def official(self, split: Split) -> Official:
        """The size; with train, which sequences and how many images of all are not there."""
        root, notes = self._place(), []
        if split == "train" and (absent := [name for name in SEQUENCES if not (root / name).is_dir()]):
            notes.append(f"{', '.join(absent)} of the official {SEQUENCES[0]} to {SEQUENCES[-1]} are not there, and not trained on")
        held = sum(path.suffix.lower() in SUFFIXES for name in SEQUENCES for path in (root / name / IMAGES).glob("*"))
        if split == "train" and held != NUM_IMAGES:
            notes.append(f"all sequences hold {held} images, official are {NUM_IMAGES}")
        return Official(size=(1080, 1920), notes=tuple(notes))

    def _place(self) -> Path:
        root = Path(self.root).expanduser()
        if any((root / name).is_dir() for name in SEQUENCES):
            return root
        return find_folder(root, "SYNTHIA-SF", SEQUENCES[:1], "SYNTHIA-SF")
