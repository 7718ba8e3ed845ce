"""What is told of a data set that is not the whole one."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imachsr.data import CamVid, Cityscapes, SynthiaRand, SynthiaSF
from imachsr.data.inspection import inspect_source, tell_known
from imachsr.data.official import Official
from imachsr.data.samples import Split
from tests.data.test_layout import above, camvid, camvid_original, cityscapes, synthia_rand, synthia_sf

WHOLE = Official(num_images=3, size=(30, 40), notes=("more",))


@pytest.mark.parametrize(
    ("count", "sizes", "words"),
    [
        (3, {(30, 40): 3}, []),
        (2, {(30, 40): 2}, ["2 of the official 3 images"]),
        (4, {(30, 40): 4}, ["4 images, official are 3"]),
        (3, {(15, 20): 3}, ["15 x 20, official is 30 x 40"]),
        (2, {(30, 40): 1, (15, 20): 2, (1, 1): 1}, ["2 of the official 3 images; 15 x 20 and 1 other sizes, official is 30 x 40"]),
    ],
)
def test_what_differs_is_told(count: int, sizes: dict[tuple[int, int], int], words: list[str]) -> None:
    assert WHOLE.compare(count, Counter(sizes)) == [*words, "more"]
    assert Official(size=(30, 40)).compare(count, Counter({(30, 40): count})) == []


def notes(data: Any, split: Split) -> list[str]:
    found = inspect_source(split, data.source(split))
    tell_known(data, split, found)
    assert "listed twice" not in found.problems
    return found.notes


SIZE = "40 x 50, official is"
PARTS: list[tuple[Callable[[Path], Any], Split, list[str]]] = [
    (camvid, "train", [f"2 of the official 367 images; {SIZE} 360 x 480"]),
    (camvid_original, "val", [f"2 of the official 101 images; {SIZE} 720 x 960"]),
    (cityscapes, "train", [f"2 of the official 2975 images; {SIZE} 1024 x 2048"]),
    (cityscapes, "val", [f"2 of the official 500 images; {SIZE} 1024 x 2048"]),
    (synthia_rand, "train", [f"3 of the official 8460 images; {SIZE} 760 x 1280"]),
    (synthia_rand, "val", [f"1 of the official 940 images; {SIZE} 760 x 1280"]),
    (
        synthia_sf,
        "train",
        [
            f"{SIZE} 1080 x 1920",
            "SEQ2, SEQ3, SEQ4, SEQ5 of the official SEQ1 to SEQ6 are not there, and not trained on",
            "all sequences hold 4 images, official are 2224",
        ],
    ),
    (synthia_sf, "val", [f"{SIZE} 1080 x 1920"]),
    (above, "train", []),
]


@pytest.mark.parametrize(("make", "split", "words"), PARTS, ids=[f"{make.__name__}-{split}" for make, split, _ in PARTS])
def test_a_small_copy_is_told_to_be_one(make: Callable[[Path], Any], split: Split, words: list[str], tmp_path: Path) -> None:
    assert notes(make(tmp_path), split) == words


def test_the_splits_of_a_kind_have_their_published_numbers(tmp_path: Path) -> None:
    root = str(tmp_path)
    splits: tuple[Split, ...] = ("train", "val", "test")
    assert [CamVid(root=root).official(split).num_images for split in splits] == [367, 101, 233]
    assert [Cityscapes(root=root).official(split).num_images for split in splits] == [2975, 500, 1525]
    drawn = SynthiaRand(root=root, val_fraction=0.2, test_fraction=0.1)
    assert [drawn.official(split).num_images for split in splits] == [6580, 1880, 940]
    (tmp_path / "SEQ1").mkdir()
    assert SynthiaSF(root=root).official("val").num_images is None
