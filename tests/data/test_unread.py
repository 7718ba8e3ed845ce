"""What lies among a data set's files and is not read is told: as a problem where images should be, as a note elsewhere."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from imachsr.data import CamVid, Folder
from imachsr.data.images import FromFiles
from imachsr.data.inspection import Findings, tell_known, tell_shared
from imachsr.data.layout import find_sources
from imachsr.data.samples import Split
from imachsr.data.unread import tell_unread
from tests.data.files import mask, write_image, write_mask
from tests.data.test_layout import KINDS, above, below, camvid, camvid_original, cityscapes, fill, flat, synthia_sf


def told(data: FromFiles, *splits: Split) -> tuple[dict[Split, dict[str, list[str]]], list[str], dict[Split, Findings]]:
    """Problems by split and kind, and notes on the whole, of everything but the contents of files."""
    sources, findings = find_sources(data, splits or ("train", "val", "test"), is_asked=False)
    for split in sources:
        findings[split] = Findings(split=split)
        tell_known(data, split, findings[split])
    tell_shared(sources, findings)
    notes = tell_unread(data, findings)
    return {split: found.named for split, found in findings.items() if found.named}, notes, findings


def distinct(root: Path) -> None:
    """Files of the builders have the same content in train and val; here each has its own."""
    for index, path in enumerate(sorted(path for path in root.rglob("*.png") if path.is_file())):
        with path.open("ab") as file:
            file.write(f"{index}".encode())


@pytest.mark.parametrize("make", KINDS)
def test_nothing_is_told_of_a_whole_data_set(make: Callable[[Path], FromFiles], tmp_path: Path) -> None:
    data = make(tmp_path)
    distinct(tmp_path)
    assert told(data)[:2] == ({}, [])


def test_what_the_archives_of_cityscapes_hold_besides_is_no_problem(tmp_path: Path) -> None:
    data = cityscapes(tmp_path)
    for name in ("color", "instanceIds", "instanceTrainIds"):
        write_mask(tmp_path / f"gtFine/train/ulm/ulm_0_gtFine_{name}.png", mask(3))
    (tmp_path / "gtFine/train/ulm/ulm_0_gtFine_polygons.json").write_text("{}")
    (tmp_path / "README").write_text("x")
    (tmp_path / "license.txt").write_text("x")
    write_image(tmp_path / "leftImg8bit/train_extra/bonn/bonn_0_leftImg8bit.png", 1)
    write_image(tmp_path / "leftImg8bit/train_extra/bonn/bonn_1_leftImg8bit.png", 1)
    write_mask(tmp_path / "gtCoarse/train/ulm/ulm_0_gtCoarse_labelIds.png", mask(3))
    distinct(tmp_path)
    problems, notes, findings = told(data)
    assert not problems
    places = f"{tmp_path}/gtCoarse (1), {tmp_path}/leftImg8bit/train_extra (2)"
    assert notes == [f"3 images beside those of the splits are not read: {places}"]
    assert not any("read" in words for words in findings["train"].notes)


def test_many_other_folders_are_counted(tmp_path: Path) -> None:
    data = synthia_sf(tmp_path)
    for name in ("RGBRight", "GTRight", "GTLeftDebug", "DepthLeft"):
        for sequence in ("SEQ1", "SEQ6"):
            write_image(tmp_path / sequence / name / "0000000.png")
    distinct(tmp_path)
    problems, notes, _ = told(data)
    assert not problems
    assert notes[0].startswith(f"8 images beside those of the splits are not read: {tmp_path}/SEQ1/DepthLeft (1), ")
    assert notes[0].endswith(" and 3 other folders") or notes[0].endswith(", and 3 other folders")


def test_a_mislaid_image_and_an_empty_city_are_problems(tmp_path: Path) -> None:
    data = cityscapes(tmp_path)
    distinct(tmp_path)
    lost = write_image(tmp_path / "leftImg8bit/train/ulm_9_leftImg8bit.png", 5)
    (tmp_path / "leftImg8bit/train/aachen").mkdir()
    strange = write_mask(tmp_path / "gtFine/val/ulm/ulm_0.png", mask(3))
    problems, _, _ = told(data)
    folder = tmp_path / "leftImg8bit/train"
    assert problems["train"] == {
        "not read": [f"{lost} lies among the files of train, but is not read: images are read from the folders in {folder}"],
        "empty folder": [f"{folder / 'aachen'} must hold files of train, but holds none"],
    }
    assert problems["val"] == {"not read": [f"{strange} lies among the files of val, but is not read: has not the name of one"]}


def test_folders_in_a_folder_of_images_are_problems(tmp_path: Path) -> None:
    data = camvid(tmp_path)
    distinct(tmp_path)
    for part in ("train", "trainannot"):
        write_image(tmp_path / part / "more/b_0.png", 7)
    (tmp_path / "val/a_9.png").mkdir()
    (tmp_path / "val/.hidden").mkdir()
    problems, _, _ = told(data)
    assert problems["train"]["not read"] == [
        f"{tmp_path / part}/more/b_0.png lies among the files of train, but is not read: images are read from {tmp_path / part} itself"
        for part in ("train", "trainannot")
    ]
    assert problems["val"] == {"not read": [f"{tmp_path}/val/a_9.png must be an image by its name, but is a folder"]}
    assert len(data.source("val").pairs) == 2
    assert not told(data, "val")[0].get("train")


def test_files_of_other_kinds_are_noted(tmp_path: Path) -> None:
    data = camvid(tmp_path)
    distinct(tmp_path)
    for name in ("b.gif", "c.npy", "notes.txt", "README", ".DS_Store", "Thumbs.db"):
        (tmp_path / "train" / name).write_text("x")
    problems, notes, findings = told(data)
    assert not problems
    assert not notes
    expected = f"2 files in {tmp_path}/train are no images by their names (.gif: 1, .npy: 1) and are not read, such as {tmp_path}/train/b.gif"
    assert expected in findings["train"].notes


def test_a_misnamed_split_beside_a_flat_folder_is_a_problem(tmp_path: Path) -> None:
    data = flat(tmp_path)
    distinct(tmp_path)
    for part in ("images", "masks"):
        write_image(tmp_path / "validation" / part / "v.png", 9)
    write_image(tmp_path / "unlabelled/u.png")
    problems, notes, _ = told(data)
    (words,) = problems["val"]["not read"]
    assert words.startswith(f"{tmp_path}/validation seems to be of val, but its images (2, such as {tmp_path}/validation/images/v.png) are not read")
    assert words.endswith(f": val is read from {tmp_path}/images and {tmp_path}/masks")
    assert notes == [f"1 images beside those of the splits are not read: {tmp_path}/unlabelled (1)"]


@pytest.mark.parametrize("first", [above, below])
def test_a_second_layout_is_a_problem(first: Callable[[Path], Folder], tmp_path: Path) -> None:
    data = first(tmp_path)
    distinct(tmp_path)
    extra = write_image(tmp_path / ("images/train/c.png" if first is above else "train/c.png"), 8)
    problems, _, _ = told(data)
    assert str(extra) in problems["train"]["not read"][0]


def test_masks_without_the_suffix_are_left_alone(tmp_path: Path) -> None:
    for split in ("train", "val"):
        fill(tmp_path / split / "images", tmp_path / split / "masks", label="a_{}_mask.png")
        write_image(tmp_path / split / "masks/a_0_colour.png")
    distinct(tmp_path)
    assert not told(Folder(root=str(tmp_path), class_names=("a", "b", "c"), mask_suffix="_mask"))[0]


def listed(root: Path) -> CamVid:
    fill(root / "frames", root / "labels", count=4)
    (root / "train.txt").write_text("/S/frames/a_0.png /S/labels/a_0.png\n\nframes/a_1.png labels/a_1.png\nframes/a_0.png labels/a_1.png\n")
    (root / "val.txt").write_text("frames/a_2.png labels/a_2.png\n")
    return CamVid(root=str(root))


def test_a_list_that_names_a_file_twice_is_a_problem(tmp_path: Path) -> None:
    problems, notes, _ = told(listed(tmp_path))
    assert problems == {
        "train": {
            "listed twice": [
                f"{tmp_path}/train.txt:4 must name what no other line names, but {tmp_path}/frames/a_0.png is in line 1 too",
                f"{tmp_path}/train.txt:4 must name what no other line names, but {tmp_path}/labels/a_1.png is in line 3 too",
            ]
        }
    }
    assert notes == [f"2 images beside those of the splits are not read: {tmp_path}/frames (1), {tmp_path}/labels (1)"]


def test_a_list_of_the_authors_frames_that_names_one_twice_is_a_problem(tmp_path: Path) -> None:
    data = camvid_original(tmp_path)
    distinct(tmp_path)
    (tmp_path / "val.txt").write_text("0016E5_07950\n0016E5_07950.png\n")
    assert told(data)[0] == {"val": {"listed twice": [f"{tmp_path}/val.txt:2 must name what no other line names, but 0016E5_07950 is in line 1 too"]}}


def test_a_copy_under_another_name_is_in_two_splits(tmp_path: Path) -> None:
    data = camvid(tmp_path)
    distinct(tmp_path)
    shutil.copyfile(tmp_path / "train/a_1.png", tmp_path / "val/b.png")
    write_mask(tmp_path / "valannot/b.png", mask(3))
    shutil.copyfile(tmp_path / "train/a_1.png", tmp_path / "train/c.png")  # within a split it leaks nothing
    write_mask(tmp_path / "trainannot/c.png", mask(3))
    assert told(data)[0] == {"val": {"in two splits": [f"{tmp_path}/val/b.png of val has the same content as {tmp_path}/train/a_1.png of train"]}}
