"""Which splits are there: of test nothing may be there, but not a part of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imachsr.data import CamVid, Cityscapes, Folder, SynthiaRand, SynthiaSF
from imachsr.data.layout import find_sources
from imachsr.data.samples import Split
from tests.data.files import mask, write_image, write_mask

SPLITS: tuple[Split, ...] = ("train", "val", "test")


def fill(images: Path, labels: Path, image: str = "a_{}.png", label: str = "a_{}.png", count: int = 2) -> None:
    for index in range(count):
        write_image(images / image.format(index), index)
        write_mask(labels / label.format(index), mask(3, index))


def camvid(root: Path) -> CamVid:
    for split in ("train", "val"):
        fill(root / split, root / f"{split}annot")
    return CamVid(root=str(root))


def camvid_original(root: Path) -> CamVid:
    for sequence in ("0006R0_f0093{}", "0016E5_0795{}"):
        fill(root / "701_StillsRaw_full", root / "LabeledApproved_full", f"{sequence}.png", f"{sequence}_L.png")
    (root / "train.txt").write_text("0006R0_f00930\n0006R0_f00931\n")
    (root / "val.txt").write_text("0016E5_07950\n0016E5_07951\n")
    return CamVid(root=str(root))


def cityscapes(root: Path) -> Cityscapes:
    for split in ("train", "val"):
        fill(root / "leftImg8bit" / split / "ulm", root / "gtFine" / split / "ulm", "ulm_{}_leftImg8bit.png", "ulm_{}_gtFine_labelIds.png")
    return Cityscapes(root=str(root))


def above(root: Path) -> Folder:
    for split in ("train", "val"):
        fill(root / split / "images", root / split / "masks")
    return Folder(root=str(root), class_names=("a", "b", "c"))


def below(root: Path) -> Folder:
    for split in ("train", "val"):
        fill(root / "images" / split, root / "masks" / split)
    return Folder(root=str(root), class_names=("a", "b", "c"))


def flat(root: Path) -> Folder:
    fill(root / "images", root / "masks", count=5)
    return Folder(root=str(root), class_names=("a", "b", "c"))


def synthia_sf(root: Path, **settings: Any) -> SynthiaSF:
    for name in ("SEQ1", "SEQ6"):
        fill(root / name / "RGBLeft", root / name / "GTLeft")
    return SynthiaSF(root=str(root), **settings)


def synthia_rand(root: Path) -> SynthiaRand:
    fill(root / "RGB", root / "GT/LABELS", count=4)
    return SynthiaRand(root=str(root))


KINDS = [camvid, camvid_original, cityscapes, above, below, flat, synthia_sf, synthia_rand]


@pytest.mark.parametrize("make", KINDS)
def test_a_test_split_of_which_nothing_is_there_is_no_problem_unless_it_is_asked_for(make: Callable[[Path], Any], tmp_path: Path) -> None:
    data = make(tmp_path)
    sources, findings = find_sources(data, SPLITS, is_asked=False)
    assert list(sources) == ["train", "val"]
    assert findings["test"].missing
    assert not findings["test"].problems
    _, findings = find_sources(data, SPLITS, is_asked=True)
    assert findings["test"].problems == {"split missing": 1}


PARTS: list[tuple[Callable[[Path], Any], str]] = [
    (camvid, "test/a_0.png"),
    (camvid, "testannot/a_0.png"),
    (camvid, "test.txt"),
    (camvid, "Test/a_0.png"),
    (camvid_original, "test.txt"),
    (cityscapes, "leftImg8bit/test/ulm/ulm_0_leftImg8bit.png"),
    (cityscapes, "gtFine/test/ulm/ulm_0_gtFine_labelIds.png"),
    (above, "test/images/a_0.png"),
    (above, "test/masks/a_0.png"),
    (above, "test/a_0.png"),
    (above, "testing/images/a_0.png"),
    (below, "images/test/a_0.png"),
    (below, "masks/test/a_0.png"),
]


@pytest.mark.parametrize(("make", "part"), PARTS, ids=[f"{make.__name__}-{part}" for make, part in PARTS])
def test_a_part_of_a_test_split_is_a_problem(make: Callable[[Path], Any], part: str, tmp_path: Path) -> None:
    data = make(tmp_path)
    if part.endswith(".txt"):
        (tmp_path / part).write_text("nowhere.png nothing.png\nnowhere.png\n")
    else:
        write_image(tmp_path / part)
    _, findings = find_sources(data, SPLITS, is_asked=False)
    assert findings["test"].problems == {"split missing": 1}


def test_two_test_images_of_one_stem_are_a_problem(tmp_path: Path) -> None:
    data = camvid(tmp_path)
    fill(tmp_path / "test", tmp_path / "testannot")
    write_image(tmp_path / "test/a_0.jpg")
    _, findings = find_sources(data, SPLITS, is_asked=False)
    assert findings["test"].problems == {"split missing": 1}
    assert "each stem must occur once" in str(findings["test"].missing)


def test_a_sequence_that_is_set_for_test_must_be_there(tmp_path: Path) -> None:
    _, findings = find_sources(synthia_sf(tmp_path, test_sequences=("SEQ3",)), SPLITS, is_asked=False)
    assert findings["test"].problems == {"split missing": 1}
