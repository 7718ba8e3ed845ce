"""The data commands as a user meets them: what is right, every kind of mistake, and a training on what was prepared."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli.command import ROOT, Cli, one_error
from tests.data.files import mask, write_image, write_mask
from tests.data.server import Site, serving
from tests.data.test_download import packed

FOLDER = ["class_names=[road,car,sky]"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound data set with 6 samples in train and 2 in val."""
    for split, count, first in (("train", 6, 0), ("val", 2, 6)):  # no image is in both
        for index in range(count):
            write_image(tmp_path / "set" / split / "images" / f"a_{index}.png", first + index)
            write_mask(tmp_path / "set" / split / "masks" / f"a_{index}.png", mask(3, index))
    return tmp_path / "set"


def checked(run: Cli, folder: Path, *args: object) -> tuple[int, dict[str, Any]]:
    ran = run("data", "check", "folder", folder, *FOLDER, "--json", *args)
    return ran.code, json.loads(ran.out)


def test_a_sound_data_set_passes_with_its_numbers(folder: Path, run: Cli) -> None:
    code, found = checked(run, folder)
    assert (code, found["ok"]) == (0, True)
    train = found["splits"]["train"]
    assert (train["samples"], train["sizes"], train["problems"]) == (6, {"40x50": 6}, {})
    every = np.stack([mask(3, index) for index in range(6)])
    for value, name in enumerate(("road", "car", "sky")):
        assert train["classes"][name]["percent"] == pytest.approx(100 * (every == value).mean())
        assert train["classes"][name]["images"] == sum((each == value).any() for each in every)
    assert "test" in found["splits"]["test"]["missing"]
    ran = run("data", "check", "folder", folder, *FOLDER)
    assert ran.code == 0
    assert "all is well" in ran.out
    assert "test: none" in ran.out


def broken(folder: Path) -> None:
    """One of everything that may be wrong with files."""
    images, masks = folder / "train/images", folder / "train/masks"
    (masks / "a_0.png").unlink()
    (images / "a_1.png").unlink()
    (images / "a_2.png").write_bytes((images / "a_2.png").read_bytes()[:100])
    write_mask(masks / "a_3.png", mask(3, 3, size=(40, 60)))
    values = mask(3, 4)
    values[0, :7] = 9
    write_mask(masks / "a_4.png", values)
    write_mask(masks / "a_5.png", np.stack([mask(3, 5)] * 3, -1))


def test_each_fault_is_named_with_its_file(folder: Path, run: Cli) -> None:
    broken(folder)
    code, found = checked(run, folder)
    assert (code, found["ok"]) == (2, False)
    problems = {kind: each["first"] for kind, each in found["splits"]["train"]["problems"].items()}
    assert {kind: len(first) for kind, first in problems.items()} == dict.fromkeys(
        ("image without label", "label without image", "broken file", "size differs", "unknown label value", "label of another make"), 1
    )
    assert f"{folder / 'train/images/a_0.png'} has no label {folder / 'train/masks/a_0.png'}" in problems["image without label"]
    assert f"{folder / 'train/masks/a_1.png'} has no image {folder / 'train/images/a_1.png'}" in problems["label without image"]
    assert f"{folder / 'train/images/a_2.png'} must be a readable image" in problems["broken file"][0]
    assert "a_3.png must have the 40 x 50 pixels of" in problems["size differs"][0]
    assert "but got 9 at (y, x) = (0, 0), and 7 such pixels" in problems["unknown label value"][0]
    assert "a_5.png must hold one class index a pixel (grey or palette), but has mode RGB" in problems["label of another make"][0]
    assert found["splits"]["train"]["unknown_values"] == {"9": 7}
    assert found["splits"]["train"]["samples"] == 4  # whose both files are there
    assert not found["splits"]["val"]["problems"]
    ran = run("data", "check", "folder", folder, *FOLDER)
    assert ran.code == 2
    assert "6 problems" in ran.out
    assert run("data", "check", "folder", folder, *FOLDER, "--split", "val").code == 0


def test_many_faults_are_capped_and_counted(folder: Path, run: Cli) -> None:
    for index in range(30):
        write_image(folder / "val/images" / f"b_{index}.png")
    code, found = checked(run, folder)
    problem = found["splits"]["val"]["problems"]["image without label"]
    assert (code, problem["count"], len(problem["first"])) == (2, 30, 20)
    assert "and 10 more" in run("data", "check", "folder", folder, *FOLDER).out


def test_palettes_and_sixteen_bits_are_taken_by_their_values(folder: Path, run: Cli) -> None:
    palette = Image.fromarray(mask(3, 0)).convert("P")
    palette.putpalette([128, 64, 128, 0, 0, 142, *range(18)])
    palette.save(folder / "train/masks/a_0.png")
    write_mask(folder / "train/masks/a_1.png", mask(3, 1, dtype=np.uint16))
    code, found = checked(run, folder)
    assert code == 0
    assert found["splits"]["train"]["traits"] == {"label has a palette; its indices count": 1, "label has 16 or more bits a pixel": 1}
    palette.putpixel((2, 1), 5)
    palette.save(folder / "train/masks/a_0.png")
    write_mask(folder / "train/masks/a_1.png", np.full((40, 50), 300, np.uint16))
    code, found = checked(run, folder)
    first = found["splits"]["train"]["problems"]["unknown label value"]["first"]
    assert code == 2
    assert "but got 5 at (y, x) = (1, 2), and 1 such pixels in all; the file has a palette, whose indices count and not its colours" in first[0]
    assert "but got 300 at" in first[1]


def test_a_split_by_another_name_is_pointed_at(folder: Path, run: Cli) -> None:
    (folder / "val").rename(folder / "valid")
    code, found = checked(run, folder)
    assert code == 2
    assert f"{folder / 'valid'} seems to be it: rename it to val" in found["splits"]["val"]["missing"]


def test_an_image_in_two_splits_is_a_problem(folder: Path, run: Cli) -> None:
    root = folder.parent / "camvid"
    for index in range(3):
        write_image(root / "frames" / f"{index}.png", index)
        write_mask(root / "labels" / f"{index}.png", mask(11, index))
    (root / "train.txt").write_text("frames/0.png labels/0.png\nframes/1.png labels/1.png\n")
    (root / "val.txt").write_text("frames/1.png labels/1.png\nframes/2.png labels/2.png\n")
    ran = run("data", "check", "camvid", root)
    assert ran.code == 2
    assert "frames/1.png is in train and in val" in ran.out


def test_data_without_files_are_counted_too(run: Cli) -> None:
    ran = run("data", "check", "scenes", "num_train=2", "num_val=1", "num_test=1", "--json")
    assert ran.code == 0
    assert [each["samples"] for each in json.loads(ran.out)["splits"].values()] == [2, 1, 1]


MISTAKES: list[tuple[list[object], str]] = [
    (["check", "foldr", "set"], "but got 'foldr'; nearest: 'folder'"),
    (["check", "folder", "set"], "data.class_names: must be given, but is missing; such as class_names=[road,other]"),
    (["check", "folder", "nothing", *FOLDER], "PATH must be the data set's folder, but "),
    (["check", "folder"], "data.root: must be given, but is missing; name its folder behind the kind"),
    (["check", "folder", "set", *FOLDER, "--split", "vall"], "--split must be one of train, val, test, but got 'vall'; nearest: 'val'"),
    (["check", "folder", "set", "class_nams=[a,b]"], "'class_nams' is no setting of 'folder'; nearest: 'class_names'"),
    (["check", "scenes", "set"], "'root' is no setting of 'scenes'"),
    (["check", "cityscapes", "set"], "must hold leftImg8bit/ and gtFine/, but has no leftImg8bit/; it holds train, val"),
    (["check", "synthia_sf", "set"], "must hold SEQ1/, but has no SEQ1/; it holds train, val"),
    (["check", "synthia_rand", "set"], "must hold RGB/ and GT/LABELS/, but has no RGB/; it holds train, val"),
    (["prepare", "folder", "set", *FOLDER, "--size", "8", "64"], "`size` must be (height, width) of at least 32 pixels, but got (8, 64)"),
    (["prepare", "folder", "set", *FOLDER, "--size", "32", "32", "--out", "set/train/images/a_0.png"], "--out must be a folder, but "),
    (["prepare", "folder", "set", *FOLDER, "--size", "32", "32", "--split", "test"], "must hold test/images and test/masks"),
    (["prepare", "folder", "set", *FOLDER, "on_error=skip", "--size", "32", "32"], "`on_error` must be raise to prepare, but got skip"),
    (["prepare", "scenes", "seed=1", "--size", "32", "32"], "NAME must be a data set that is read from files, but scenes is not"),
    (["download", "cityscape"], "but got 'cityscape'; nearest: 'cityscapes'"),
    (["download", "camvid"], "--out must be given for camvid"),
    (["download", "cityscapes", "--out", "x"], "--out, --url and --sha256 must come with camvid, since cityscapes needs a login"),
    (["download", "camvid", "--out", "x", "--url", "nowhere.zip"], "`url` must be the http or https address of a file, but got 'nowhere.zip'"),
    (["download", "camvid", "--out", "set/train/images/a_0.png"], "--out must be a folder, but set/train/images/a_0.png is a file"),
    (["download", "camvid", "--out", "x", "--sha256", "12"], "`sha256` must be 64 hexadecimal digits, but got '12'"),
]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("args", "wording"), MISTAKES, ids=lambda each: " ".join(map(str, each)) if isinstance(each, list) else "")
def test_a_mistake_is_one_message_and_leaves_nothing(args: list[object], wording: str, run: Cli, tmp_path: Path) -> None:
    before = set(tmp_path.rglob("*"))
    assert wording in one_error(run("data", *args))
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.long
def test_what_is_prepared_is_what_a_training_uses(folder: Path, run: Cli, tmp_path: Path) -> None:
    ran = run("data", "prepare", "folder", folder, *FOLDER, "--size", "32", "48", "--out", tmp_path / "ahead")
    assert ran.code == 0, ran.err
    assert "train: 6 samples of 32 x 48, 0.0 MB, 6 decoded now" in ran.out
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "ahead").iterdir()}
    again = run("data", "prepare", "folder", folder, *FOLDER, "--size", "32", "48", "--out", tmp_path / "ahead", "--json")
    told = json.loads(again.out)
    assert [each["decoded"] for each in told["splits"].values()] == [0, 0]
    short = ["optimizer.epochs=1", "optimizer.batch_size=4", "--wandb", "disabled", "--output", "out"]
    ran = run("train", ROOT / "launch/camvid.yaml", *told["settings"], *short)
    assert ran.code == 0, ran.err
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "ahead").iterdir()} == kept


def test_the_folder_of_what_is_prepared_may_be_given_as_the_setting(folder: Path, run: Cli, tmp_path: Path) -> None:
    command = ("data", "prepare", "folder", folder, *FOLDER, "--size", "32", "48")
    told = json.loads(run(*command, f"cache={tmp_path / 'kept'}", "--json").out)
    assert told["folder"] == str(tmp_path / "kept")
    assert told["settings"].count(f"data.cache={tmp_path / 'kept'}") == 1
    assert sum("cache" in each for each in told["settings"]) == 1
    assert [each["decoded"] for each in json.loads(run(*command, "--out", tmp_path / "kept", "--json").out)["splits"].values()] == [0, 0]
    assert "the folder must be given once" in one_error(run(*command, f"cache={tmp_path / 'kept'}", "--out", "other"))


def test_camvid_is_fetched_and_leads_to_the_check(run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(Site(packed("x/CamVid/train/a.png", "x/CamVid/trainannot/a.png")), "camvid.zip") as site:
        ran = run("data", "download", "camvid", "--out", "got", "--url", site.url)
        assert ran.code == 0, ran.err
        assert "unpacked: got/camvid/x/CamVid (train 1 images)" in ran.out
        assert "next: imachsr data check camvid got/camvid/x/CamVid" in ran.out
        assert "there already: got/camvid/x/CamVid" in run("data", "download", "camvid", "--out", "got", "--url", site.url).out


@pytest.mark.parametrize("kind", ["cityscapes", "synthia_sf", "synthia_rand"])
def test_what_needs_a_login_is_told(kind: str, run: Cli) -> None:
    ran = run("data", "download", kind)
    assert ran.code == 0
    assert "https://" in ran.out
    assert f"next: imachsr data check {kind} FOLDER" in ran.out


def test_a_half_test_split_is_refused_by_check_and_prepare(folder: Path, run: Cli) -> None:
    write_image(folder / "test/images/a_0.png")
    ran = run("data", "check", "folder", folder, *FOLDER)
    assert ran.code == 2
    assert f"test: wrong: folder {folder / 'test/masks'} must exist, but does not" in ran.out
    said = one_error(run("data", "prepare", "folder", folder, *FOLDER, "--size", "32", "32", "--out", "ahead"))
    assert f"folder {folder / 'test/masks'} must exist, but does not" in said
    said = one_error(run("data", "prepare", "folder", folder, *FOLDER, "data.size=[64,64]", "--size", "32", "32", "--out", "ahead"))
    assert "the size must be given once, but --size is 32 32, and `data.size=[64,64]` given too; leave it out" in said


def test_classes_without_a_pixel_are_noted(folder: Path, run: Cli) -> None:
    assert checked(run, folder)[1]["splits"]["train"]["notes"] == []
    ran = run("data", "check", "folder", folder, "class_names=[road,car,sky,bus,van]")
    assert "train: note: no pixel of bus, van" in ran.out
    assert "val: note" not in ran.out
    for path in folder.glob("*/masks/*.png"):
        labels = np.asarray(Image.open(path))
        Image.fromarray(np.where(labels > 0, 255, 0).astype(np.uint8)).save(path)
    ran = run("data", "check", "folder", folder, "class_names=[nothing,road]")
    assert ran.code == 2
    rule = "which is ignored: in a binary mask the two classes must be 0 and 1"
    assert re.search(rf"train: one class of two: 1\n  no pixel of road, but \d+ of 255, {rule}", ran.out)
    settings = ["data.kind=folder", f"data.root={folder}", "data.class_names=[nothing,road]", "data.size=[32,48]", "optimizer.epochs=1"]
    said = one_error(run("train", ROOT / "launch/camvid.yaml", *settings, "--wandb", "disabled", "--output", "out"))
    assert "what is trained on must have pixels of both classes, but has none of road, and some of 255, which is ignored; in a binary mask" in said


def test_a_split_without_a_labelled_pixel_is_refused_but_for_a_test_split(folder: Path, run: Cli) -> None:
    shutil.copytree(folder / "val", folder / "test")
    for split in ("val", "test"):
        for path in folder.glob(f"{split}/masks/*.png"):
            Image.fromarray(np.full_like(np.asarray(Image.open(path)), 255)).save(path)
    ran = run("data", "check", "folder", folder, *FOLDER)
    assert ran.code == 2
    assert "val: no labels: 1\n  no pixel has a class: all labels are 255, which is ignored" in ran.out
    assert "test: note: no pixel has a class: all labels are 255, which is ignored" in ran.out
    settings = ["data.kind=folder", f"data.root={folder}", *(f"data.{each}" for each in FOLDER), "data.size=[32,48]", "data.on_error=raise"]
    short = ["optimizer.epochs=1", "optimizer.batch_size=4", "--wandb", "disabled", "--output", "out"]
    said = one_error(run("train", ROOT / "launch/camvid.yaml", *settings, *short))
    assert "what is scored on must have a pixel with a class, but all labels of its 2 samples are 255" in said


def test_what_is_no_fault_is_noted_and_all_is_well(run: Cli, tmp_path: Path) -> None:
    for index, split in enumerate(("train", "val")):
        write_image(tmp_path / f"set/leftImg8bit/{split}/ulm/ulm_0_leftImg8bit.png", index)
        write_mask(tmp_path / f"set/gtFine/{split}/ulm/ulm_0_gtFine_labelIds.png", mask(3) + 7)  # road, sidewalk and, ignored, parking
    write_image(tmp_path / "set/leftImg8bit/train_extra/bonn/bonn_0_leftImg8bit.png", 9)
    ran = run("data", "check", "cityscapes", tmp_path / "set")
    assert ran.code == 0
    assert "train: note: 1 of the official 2975 images; 40 x 50, official is 1024 x 2048" in ran.out
    assert f"note: 1 images beside those of the splits are not read: {tmp_path}/set/leftImg8bit/train_extra (1)" in ran.out
    assert "all is well" in ran.out
    found = json.loads(run("data", "check", "cityscapes", tmp_path / "set", "--json").out)
    assert found["ok"]
    assert found["splits"]["val"]["notes"] == ["1 of the official 500 images; 40 x 50, official is 1024 x 2048"]
    assert "train_extra" in found["notes"][0]


def test_what_is_not_read_where_images_should_be_is_a_problem(folder: Path, run: Cli) -> None:
    write_image(folder / "train/images/more/b.png", 20)
    (folder / "val/images/a_7.png").write_bytes((folder / "train/images/a_3.png").read_bytes())
    write_mask(folder / "val/masks/a_7.png", mask(3))
    code, found = checked(run, folder)
    assert code == 2
    assert set(found["splits"]["train"]["problems"]) == {"not read"}
    (words,) = found["splits"]["val"]["problems"]["in two splits"]["first"]
    assert words == f"{folder}/val/images/a_7.png of val has the same content as {folder}/train/images/a_3.png of train"
