"""CamVid with 11 classes, as users have it on disk."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from imachsr.core.types import IGNORE_INDEX
from imachsr.data.camvid_original import CLASSES, COLOURS, COUNTS, LABELED, MOST_STRANGE, PARTS, STILLS, original_pairs, read_list
from imachsr.data.coding import Coding
from imachsr.data.images import FromFiles, Source
from imachsr.data.official import Official
from imachsr.data.pairing import Pair, pair_folders
from imachsr.data.samples import NoSplitError, OnError, Split, check_split

VOID = 11


@dataclass(frozen=True, kw_only=True)
class CamVid(FromFiles):
    """Street video of Brostow et al. 2009, in the 11-class layout of SegNet, or as the authors give it.

    SegNet's: ``train/`` with ``trainannot/`` (likewise val, test), or ``train.txt`` with
    a pair of paths a line. Label 11 (void) is ignored.

    The authors' 701 frames: ``701_StillsRaw_full/NAME.png`` with ``LabeledApproved_full/NAME_L.png``, whose 32 colours become the 11 classes by
    :data:`imachsr.data.camvid_original.GROUPS`; up to a thousandth of a file's pixels may have another colour: they are ignored, with a warning when
    they are decoded. Split by ``train.txt`` and so on where they are there, with a frame's name a line, else by
    :func:`imachsr.data.camvid_original.split_of`.

    Args:
        root: The data set's folder.
        size: (height, width) in pixels, each >= 32.
        cache: Folder of decoded arrays; the user's cache folder without it.
        on_error: raise, or skip: leave out samples whose files are missing or broken, with a warning, up to a tenth of a split.
    """

    kind: Literal["camvid"] = "camvid"
    root: str
    size: tuple[int, int] = (96, 128)
    cache: str | None = None
    on_error: OnError = "raise"

    @property
    def num_classes(self) -> int:
        return len(CLASSES)

    @property
    def class_names(self) -> tuple[str, ...]:
        return CLASSES

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """What its classes hold that other data sets tell apart."""
        return PARTS

    def source(self, split: Split) -> Source:
        """The files of a split; raises as :meth:`load`, but opens no image."""
        check_split(split)
        root = Path(self.root).expanduser()
        if not root.is_dir():
            raise ValueError(f"`data.root` must be CamVid's folder, but {root} is no folder; give data.root=PATH/TO/camvid, or --data")
        if _is_original(root, split):
            coding = Coding(num_classes=self.num_classes, colours=COLOURS, most_strange=MOST_STRANGE)
            return Source(pairs=original_pairs(root, split, self.on_error), coding=coding)
        return Source(pairs=self._pairs(root, split), coding=Coding(num_classes=self.num_classes, replace=((VOID, IGNORE_INDEX),)))

    def folders(self, split: Split) -> tuple[Path, ...]:
        root = Path(self.root).expanduser()
        if _is_original(root, split):
            has_lists = any((root / f"{name}.txt").is_file() for name in get_args(Split))
            return () if has_lists else (root / STILLS, root / LABELED)
        return root / split, root / f"{split}annot"

    def repeated(self, split: Split) -> list[str]:
        root = Path(self.root).expanduser()
        listed = root / f"{split}.txt"
        if (root / split).is_dir() or not listed.is_file():
            return []
        is_original, lines, words = _is_original(root, split), dict[str, int](), []
        for number, line in read_list(listed):
            parts = line.split()
            for name in [Path(parts[0]).stem] if is_original else [str(_find(root, part) or part) for part in parts]:
                if (first := lines.setdefault(name, number)) != number:
                    words.append(f"{listed}:{number} must name what no other line names, but {name} is in line {first} too")
        return words

    def passed_over(self, split: Split) -> list[str]:
        root = Path(self.root).expanduser()
        is_listed = (root / f"{split}.txt").is_file() and (root / split).is_dir()
        return [f"{root / split}.txt is not read, since {root / split}/ is there: all of its images are of {split}"] if is_listed else []

    def official(self, split: Split) -> Official:
        """The usual split, in SegNet's size or the authors'."""
        return Official(num_images=COUNTS[split], size=(720, 960) if _is_original(Path(self.root).expanduser(), split) else (360, 480))

    def _pairs(self, root: Path, split: str) -> list[Pair]:
        if (root / split).is_dir():
            return pair_folders(root / split, root / f"{split}annot", on_error=self.on_error)
        listed = root / f"{split}.txt"
        if not listed.is_file():
            there = ", ".join(sorted(path.name for path in root.iterdir())) or "nothing"
            error = ValueError if (root / f"{split}annot").exists() else NoSplitError
            raise error(f"{root} must hold {split}/ with {split}annot/, or {split}.txt, or {STILLS}/ with {LABELED}/, but holds {there}")
        return [_listed_pair(root, listed, number, line, self.on_error) for number, line in read_list(listed)]


def _is_original(root: Path, split: str) -> bool:
    return not (root / split).is_dir() and (root / STILLS).is_dir()


def _listed_pair(root: Path, listed: Path, number: int, line: str, on_error: OnError) -> Pair:
    parts = line.split()
    if len(parts) != 2:
        raise ValueError(f"{listed}:{number} must hold an image and a label path, but got {line!r}")
    image, label = (_find(root, part) for part in parts)
    if on_error == "raise" and (image is None or label is None):
        raise ValueError(f"{listed}:{number} must name two files below {root}, but {parts[image is not None]} is not there")
    return image or root / parts[0], label or root / parts[1]


def _find(root: Path, name: str) -> Path | None:
    """SegNet's lists start with a prefix of their own (/SegNet/CamVid/): the longest tail of the path that exists below the root."""
    parts = Path(name).parts
    tails = (root.joinpath(*parts[start:]) for start in range(len(parts)) if parts[start] != "/")
    return next((tail for tail in tails if tail.is_file()), None)
