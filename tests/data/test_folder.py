"""Any folder of images with masks: layouts, kinds of masks, and every way in which they are broken."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imachsr.data.folder import Folder
from imachsr.data.samples import Split
from tests.data.files import mask, write_image, write_mask, write_png_of_few_bits

NAMES = ("ground", "wall", "roof")
SIZE = (40, 50)


def folder(root: Path, **settings: Any) -> Folder:
    return Folder(root=str(root), class_names=NAMES, size=SIZE, **settings)


def fill(images: Path, masks: Path, count: int, suffix: str = "", first: int = 0) -> None:
    for index in range(first, first + count):
        write_image(images / f"a_{index:02d}.png", index)
        write_mask(masks / f"a_{index:02d}{suffix}.png", mask(3, index))


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    fill(tmp_path / "images", tmp_path / "masks", 10)
    return tmp_path


@pytest.mark.parametrize("layout", ["{split}/{part}", "{part}/{split}"])
def test_splits_may_lie_above_or_below_images_and_masks(tmp_path: Path, layout: str) -> None:
    counts: dict[Split, int] = {"train": 3, "val": 2, "test": 1}
    for first, (split, count) in enumerate(counts.items()):
        images, masks = (tmp_path / layout.format(split=split, part=part) for part in ("images", "masks"))
        fill(images, masks, count, first=10 * first)
    for first, (split, count) in enumerate(counts.items()):
        samples = folder(tmp_path).load(split)
        assert samples.names == tuple(f"a_{10 * first + index:02d}" for index in range(count))
        for index in range(count):
            assert np.array_equal(samples.labels[index].numpy(), mask(3, 10 * first + index))


def test_a_flat_folder_keeps_the_last_fifth_for_validation(flat: Path) -> None:
    assert folder(flat).load("train").names == tuple(f"a_{index:02d}" for index in range(8))
    assert folder(flat).load("val").names == ("a_08", "a_09")
    with pytest.raises(ValueError, match=r"must hold test/images and test/masks, images/test and masks/test"):
        folder(flat).load("test")


def test_a_flat_folder_of_two_gives_one_to_each_side_and_of_one_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "two" / "images", tmp_path / "two" / "masks", 2)
    two = folder(tmp_path / "two")
    assert (len(two.load("train")), len(two.load("val"))) == (1, 1)
    fill(tmp_path / "one" / "images", tmp_path / "one" / "masks", 1)
    with pytest.raises(ValueError, match=r"one/images must hold at least 2 images, to train and to validate on, but holds 1"):
        folder(tmp_path / "one").load("train")


def test_a_folder_with_splits_is_not_taken_for_a_flat_one(tmp_path: Path) -> None:
    fill(tmp_path / "images" / "train", tmp_path / "masks" / "train", 2)
    with pytest.raises(ValueError, match=r"must hold val/images and val/masks, images/val and masks/val"):
        folder(tmp_path).load("val")


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"`data.root` must be the data set's folder, but {tmp_path}/none is no folder"):
        folder(tmp_path / "none").load("train")


def test_a_mask_suffix_picks_the_masks_among_other_files(tmp_path: Path) -> None:
    fill(tmp_path / "images", tmp_path / "masks", 5, suffix="_mask")
    for index in range(5):
        write_image(tmp_path / "masks" / f"a_{index:02d}_colour.png")
        write_image(tmp_path / "masks" / f"a_{index:02d}.png")
    samples = folder(tmp_path, mask_suffix="_mask").load("train")
    assert len(samples) == 4
    assert np.array_equal(samples.labels[2].numpy(), mask(3, 2))


def test_masks_without_the_suffix_are_no_partners(flat: Path) -> None:
    with pytest.raises(ValueError, match=rf"{flat}/images/a_00.png has none in {flat}/masks \(10 such files\)"):
        folder(flat, mask_suffix="_mask").load("train")


def test_a_suffix_that_all_masks_have_is_proposed(tmp_path: Path) -> None:
    fill(tmp_path / "images", tmp_path / "masks", 5, suffix="_mask")
    with pytest.raises(ValueError, match=r"a_00.png has none in .*masks \(5 such files\); with data.mask_suffix=_mask all have one"):
        folder(tmp_path).load("train")
    (tmp_path / "masks" / "a_03_mask.png").rename(tmp_path / "masks" / "a_03_other.png")
    with pytest.raises(ValueError, match=r"\(5 such files\)$"):
        folder(tmp_path).load("train")


def test_ignored_values_become_255_and_none_is_moved_twice(flat: Path) -> None:
    values = mask(3, 0)
    values[:10], values[10:20] = 7, 255
    write_mask(flat / "masks" / "a_00.png", values)
    labels = folder(flat, ignore=(7, 2)).load("train").labels
    expected = values.copy()
    expected[(values == 7) | (values == 2)] = 255
    assert np.array_equal(labels[0].numpy(), expected)


def test_a_palette_gives_indices_not_colours(flat: Path) -> None:
    values = mask(3, 4)
    image = Image.fromarray(values).convert("P")
    image.putdata(values.flatten().tolist())
    image.putpalette([200, 10, 10, 10, 200, 10, 10, 10, 200])
    image.save(flat / "masks" / "a_00.png")
    assert Image.open(flat / "masks" / "a_00.png").mode == "P"
    assert np.array_equal(folder(flat).load("train").labels[0].numpy(), values)


def test_masks_that_lost_their_values_are_refused_by_what_they_are(flat: Path) -> None:
    # Each value is one of the classes, so that nothing else would tell.
    path = flat / "masks" / "a_01.jpg"
    Image.fromarray(np.ones((40, 50), np.uint8)).save(path)
    path.with_suffix(".png").unlink()
    with pytest.raises(
        ValueError, match=f"{path} must keep each pixel's value, but is compressed as JPEG, which changes them; make the labels again as PNG"
    ):
        folder(flat).load("train")


def test_tiff_files_are_labels_unless_their_compression_changes_values(flat: Path) -> None:
    path, values = flat / "masks" / "a_01.tif", mask(3, 5)
    path.with_suffix(".png").unlink()
    Image.fromarray(values).save(path, compression="tiff_lzw")
    assert np.array_equal(folder(flat).load("train").labels[1].numpy(), values)
    Image.fromarray(values).save(path, compression="jpeg")
    with pytest.raises(ValueError, match=f"{path} must keep each pixel's value, but is compressed as JPEG"):
        folder(flat).load("train")


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits_holds_classes_not_brightness(flat: Path, bits: int) -> None:
    values = mask(min(3, 2**bits), 6)
    write_png_of_few_bits(flat / "masks" / "a_00.png", values, bits)
    assert np.array_equal(folder(flat).load("train").labels[0].numpy(), values)


def test_labels_of_16_bits_are_read_and_not_wrapped(flat: Path) -> None:
    values = mask(3, 1, dtype=np.uint16)
    write_mask(flat / "masks" / "a_00.png", values)
    assert np.array_equal(folder(flat).load("train").labels[0].numpy(), values)
    values[5, 6] = 256 + 1
    path = write_mask(flat / "masks" / "a_00.png", values)
    with pytest.raises(ValueError, match=rf"labels of {path} .* but got 257 at \(y, x\) = \(5, 6\), and 1 such pixels"):
        folder(flat).load("train")
    values[5, 6] = 1000
    write_mask(flat / "masks" / "a_00.png", values)
    assert folder(flat, ignore=(1000,)).load("train").labels[0, 5, 6] == 255


def test_a_label_out_of_range_is_told_with_file_place_and_count(flat: Path) -> None:
    values = mask(3, 2)
    values[4, 8], values[4, 9], values[20, 0] = 3, 9, 3
    path = write_mask(flat / "masks" / "a_03.png", values)
    with pytest.raises(ValueError, match=rf"labels of {path} must be in 0..2 or 255 .*, but got 3 at \(y, x\) = \(4, 8\), and 3 such pixels"):
        folder(flat).load("train")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_a_mask_of_several_channels_is_refused(flat: Path, mode: str) -> None:
    path = flat / "masks" / "a_01.png"
    Image.fromarray(mask(3)).convert(mode).save(path)
    with pytest.raises(ValueError, match=rf"{path} must hold one class index a pixel \(grey or palette\), but has mode {mode}"):
        folder(flat).load("train")


def test_a_mask_of_fractions_is_refused(flat: Path) -> None:
    (flat / "masks" / "a_01.png").unlink()
    Image.fromarray(mask(3).astype(np.float32)).save(flat / "masks" / "a_01.tif")
    with pytest.raises(ValueError, match="a_01.tif must hold one class index a pixel .* but has mode F"):
        folder(flat).load("train")


def test_an_image_of_16_bits_is_refused_rather_than_clipped(flat: Path) -> None:
    path = write_mask(flat / "images" / "a_01.png", mask(3, dtype=np.uint16) * 300)
    with pytest.raises(ValueError, match=f"{path} must have 8 bits a channel, but has mode I;16"):
        folder(flat).load("train")


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_images_of_other_modes_become_rgb(flat: Path, mode: str) -> None:
    grey = Image.new("L", (50, 40), 255).convert(mode)
    path = flat / "images" / ("a_00.tif" if mode == "CMYK" else "a_00.png")
    (flat / "images" / "a_00.png").unlink()
    grey.save(path)
    assert bool((folder(flat).load("train").images[0] == 255).all())


@pytest.mark.parametrize("part", ["images", "masks"])
def test_a_truncated_file_is_named(flat: Path, part: str) -> None:
    path = flat / part / "a_05.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=f"{path} must be a readable image, but: "):
        folder(flat).load("train")


def test_a_file_that_is_no_image_is_named(flat: Path) -> None:
    (flat / "images" / "a_02.png").write_text("not a picture")
    with pytest.raises(ValueError, match="a_02.png must be a readable image, but: cannot identify image file"):
        folder(flat).load("train")


def test_a_lonely_image_or_mask_is_named_and_counted(flat: Path) -> None:
    (flat / "masks" / "a_03.png").unlink()
    (flat / "masks" / "a_04.png").unlink()
    with pytest.raises(ValueError, match=rf"every file must have its partner, but {flat}/images/a_03.png has none in {flat}/masks \(2 such files\)"):
        folder(flat).load("train")
    (flat / "images" / "a_03.png").unlink()
    (flat / "images" / "a_04.png").unlink()
    (flat / "images" / "a_05.png").unlink()
    with pytest.raises(ValueError, match=rf"{flat}/masks/a_05.png has none in {flat}/images \(1 such files\)"):
        folder(flat).load("train")


def test_two_images_of_one_stem_are_refused(flat: Path) -> None:
    write_image(flat / "images" / "a_02.jpg")
    with pytest.raises(ValueError, match=f"each stem must occur once in {flat}/images, but got a_02.jpg and a_02.png"):
        folder(flat).load("train")


def test_files_that_are_no_images_are_passed_over(flat: Path) -> None:
    (flat / "images" / "notes.txt").write_text("x")
    (flat / "masks" / "Thumbs.db").write_bytes(b"x")
    for part in ("images", "masks"):  # what macOS leaves beside every file of a foreign disk
        (flat / part / "._a_02.png").write_bytes(b"Mac OS X")
    assert len(folder(flat).load("train")) == 8


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(ValueError, match=r"images must hold images \(.png, .jpg.*\), but holds none"):
        folder(tmp_path).load("train")


def test_missing_masks_are_told(flat: Path) -> None:
    (flat / "masks").rename(flat / "labels")
    with pytest.raises(ValueError, match=f"folder {flat}/masks must exist, but does not; {flat} holds images, labels"):
        folder(flat).load("train")


def test_resizing_makes_no_labels_that_were_not_there(flat: Path) -> None:
    values = np.zeros((40, 50), np.uint8)
    values[:, 25:] = 2
    write_mask(flat / "masks" / "a_00.png", values)
    samples = Folder(root=str(flat), class_names=NAMES, size=(33, 47)).load("train")
    assert samples.labels.shape[1:] == (33, 47)
    assert samples.labels[0].unique().tolist() == [0, 2]
    assert torch.equal(samples.labels[0, 0], samples.labels[0, -1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_names": ("a",)}, "`class_names` must hold 2 to 255 names, but got 1"),
        ({"class_names": tuple(map(str, range(256)))}, "`class_names` must hold 2 to 255 names, but got 256"),
        ({"class_names": ("a", "b", "a")}, "`class_names` must differ, but got a, b, a"),
        ({"class_names": NAMES, "ignore": (-1,)}, r"`ignore >= 0` must hold, but got \[-1\]"),
        ({"class_names": NAMES, "size": (8, 64)}, r"`size` must be \(height, width\) of at least 32 pixels, but got \(8, 64\)"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Folder(root="x", **settings)


def test_files_without_a_partner_are_skipped_where_that_is_wanted(tmp_path: Path) -> None:
    fill(tmp_path / "train" / "images", tmp_path / "train" / "masks", 24)
    (tmp_path / "train" / "masks" / "a_03.png").unlink()
    (tmp_path / "train" / "images" / "a_07.png").unlink()
    with pytest.warns(UserWarning, match="2 of 24 samples are skipped") as told:
        samples = folder(tmp_path, on_error="skip").load("train")
    assert f"{tmp_path}/train/masks/a_03.png must exist, but does not" in str(told[0].message)
    assert f"{tmp_path}/train/images/a_07.png must exist, but does not" in str(told[0].message)
    assert samples.names == tuple(f"a_{index:02d}" for index in range(24) if index not in (3, 7))


def test_an_unknown_answer_to_errors_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`on_error` must be one of \('raise', 'skip'\), but got 'ignore'"):
        folder(Path("x"), on_error="ignore")
