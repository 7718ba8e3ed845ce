"""CamVid as users have it on disk, in small copies of its layouts and for real."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imachsr.data import images as decoding
from imachsr.data.camvid import CLASSES, CamVid
from imachsr.data.inspection import inspect_source, tell_known
from imachsr.data.samples import Split
from tests.data.files import mask, write_image, write_mask

SIZE = (40, 50)


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """Folders train, trainannot, val, valannot with 4 and 2 frames in mixed formats."""
    root = tmp_path / "camvid"
    for split, suffixes in (("train", (".png", ".jpg", ".PNG", ".bmp")), ("val", (".jpeg", ".png"))):
        for index, suffix in enumerate(suffixes):
            write_image(root / split / f"0001TP_{index:06d}{suffix}", index)
            write_mask(root / f"{split}annot" / f"0001TP_{index:06d}.png", mask(12, index))
    return root


def with_lists(root: Path, prefix: str = "/SegNet/CamVid/") -> Path:
    """SegNet's lists; the folders get other names, so that only the lists lead to them."""
    for split in ("train", "val"):
        lines = []
        for image in sorted((root / split).iterdir()):
            lines.append(f"{prefix}frames/{split}/{image.name} {prefix}labels/{split}/{image.stem}.png")
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n\n")
        (root / "frames").mkdir(exist_ok=True)
        (root / "labels").mkdir(exist_ok=True)
        (root / split).rename(root / "frames" / split)
        (root / f"{split}annot").rename(root / "labels" / split)
    return root


def test_folders_of_mixed_formats_load_in_name_order(official: Path) -> None:
    samples = CamVid(root=str(official), size=SIZE).load("train")
    assert samples.names == tuple(f"0001TP_{index:06d}" for index in range(4))
    assert len(CamVid(root=str(official), size=SIZE).load("val")) == 2
    for index in range(4):
        expected = mask(12, index).astype(np.int64)
        expected[expected == 11] = 255
        assert np.array_equal(samples.labels[index].numpy(), expected)


def test_lossless_images_keep_their_pixels_and_lossy_ones_nearly(official: Path) -> None:
    samples = CamVid(root=str(official), size=SIZE).load("train")
    for index, path in enumerate(sorted((official / "train").iterdir())):
        picture = np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)
        assert np.array_equal(samples.images[index].numpy(), picture)


def test_void_is_ignored_and_no_class(official: Path) -> None:
    data = CamVid(root=str(official), size=SIZE)
    assert data.num_classes == len(data.class_names) == 11
    labels = data.load("train").labels
    assert bool((labels == 255).any())
    assert labels[labels != 255].max() <= 10


def test_lists_with_segnets_prefix_name_the_same_samples(official: Path) -> None:
    folders = CamVid(root=str(official), size=SIZE).load("train")
    listed = CamVid(root=str(with_lists(official)), size=SIZE).load("train")
    assert listed.names == folders.names
    assert torch.equal(listed.images, folders.images)
    assert torch.equal(listed.labels, folders.labels)


@pytest.mark.parametrize("prefix", ["", "./", "CamVid/", "/somewhere/else/entirely/"])
def test_lists_may_have_any_prefix(official: Path, prefix: str) -> None:
    assert len(CamVid(root=str(with_lists(official, prefix)), size=SIZE).load("val")) == 2


def test_lists_may_be_absolute(official: Path) -> None:
    assert len(CamVid(root=str(with_lists(official, f"{official}/")), size=SIZE).load("val")) == 2


def test_a_missing_root_is_named_with_the_option_that_sets_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"`data.root` must be CamVid's folder, but {tmp_path}/none is no folder; give data.root=PATH/TO/camvid"):
        CamVid(root=str(tmp_path / "none")).load("train")


def test_a_missing_split_tells_what_is_there(official: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"must hold test/ with testannot/, or test.txt, or 701_.*, but holds train, trainannot, val, valannot",
    ):
        CamVid(root=str(official)).load("test")


def test_missing_labels_are_named(official: Path) -> None:
    (official / "valannot").rename(official / "labels")
    with pytest.raises(ValueError, match=f"folder {official}/valannot must exist, but does not"):
        CamVid(root=str(official)).load("val")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("frames/val/0001TP_000000.jpeg\n", r"val.txt:1 must hold an image and a label path, but got 'frames/val/0001TP_000000.jpeg'"),
        (
            "/S/frames/val/0001TP_000000.jpeg /S/labels/val/0001TP_000000.png\n\n/S/frames/val/no.png /S/labels/val/0001TP_000001.png\n",
            r"val.txt:3 must name two files below .*, but /S/frames/val/no.png is not there",
        ),
        ("frames/val/0001TP_000000.jpeg labels/val/gone.png\n", r"val.txt:1 must name two files below .*, but labels/val/gone.png is not there"),
        ("\n\n", r"val.txt must name at least one image and label, but names none"),
    ],
)
def test_a_wrong_list_is_named_with_its_line(official: Path, text: str, message: str) -> None:
    root = with_lists(official)
    (root / "val.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        CamVid(root=str(root), size=SIZE).load("val")


def test_a_list_that_windows_wrote_is_read(official: Path) -> None:
    root = with_lists(official)
    lines = (root / "val.txt").read_text().splitlines()
    expected = CamVid(root=str(root), size=SIZE).load("val").names
    (root / "val.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert CamVid(root=str(root), size=SIZE).load("val").names == expected


def test_backslashes_in_lists_are_as_windows_writes_paths(official: Path) -> None:
    root = with_lists(official, prefix="CamVid\\")
    expected = CamVid(root=str(root), size=SIZE).load("val").names
    (root / "val.txt").write_text((root / "val.txt").read_text().replace("/", "\\"))
    assert CamVid(root=str(root), size=SIZE).load("val").names == expected


def test_a_list_beside_the_folder_that_goes_before_it_is_noted(official: Path) -> None:
    (official / "train.txt").write_text("train/0001TP_000000.png trainannot/0001TP_000000.png\n")
    data = CamVid(root=str(official), size=SIZE)
    for split, notes in (
        ("train", [f"{official}/train.txt is not read, since {official}/train/ is there: all of its images are of train"]),
        ("val", []),
    ):
        found = inspect_source(split, data.source(split))
        tell_known(data, split, found)
        assert [words for words in found.notes if "official" not in words] == notes
    assert len(data.load("train")) == 4


def test_a_list_that_is_no_text_is_named(official: Path) -> None:
    root = with_lists(official)
    (root / "val.txt").write_bytes(b"frames/\xff\xfe.png labels/x.png")
    with pytest.raises(ValueError, match=r"val.txt must be a readable text file, but: 'utf-8' codec"):
        CamVid(root=str(root), size=SIZE).load("val")


def test_labels_of_the_32_class_edition_are_refused_with_file_value_place_and_count(official: Path) -> None:
    wrong = mask(11, 0)
    wrong[7, 9], wrong[30, 3] = 12, 31
    path = write_mask(official / "valannot" / "0001TP_000001.png", wrong)
    with pytest.raises(ValueError, match=rf"labels of {path} must be in 0..10 or 255 .* got 12 at \(y, x\) = \(7, 9\), and 2 such pixels in all"):
        CamVid(root=str(official), size=SIZE).load("val")


@pytest.mark.parametrize("size", [(31, 64), (64, 16), (0, 0)])
def test_a_small_size_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="of at least 32 pixels"):
        CamVid(root="x", size=size)


def test_the_home_folder_may_be_written_as_a_tilde(official: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(official.parent))
    assert len(CamVid(root="~/camvid", size=SIZE).load("val")) == 2


# On the real street scenes.


@pytest.fixture(scope="module")
def real(camvid: Path, tmp_path_factory: pytest.TempPathFactory) -> CamVid:
    return CamVid(root=str(camvid), size=(96, 128), cache=str(tmp_path_factory.mktemp("camvid")))


def test_real_frames_and_labels_have_their_known_numbers(real: CamVid) -> None:
    counts: dict[Split, int] = {"train": 367, "val": 101}
    for split, count in counts.items():
        samples = real.load(split)
        assert samples.images.shape == (count, 3, 96, 128)
        assert samples.labels.shape == (count, 96, 128)
        assert len(set(samples.names)) == count
        labels = samples.labels
        assert bool(((labels <= 10) | (labels == 255)).all())


def test_real_classes_have_the_shares_of_a_street(real: CamVid) -> None:
    labels = real.load("train").labels
    valid = labels[labels != 255].long()
    share = dict(zip(CLASSES, (torch.bincount(valid, minlength=11) / len(valid)).tolist(), strict=True))
    assert min(share.values()) > 0
    assert share["road"] > 0.2
    assert share["building"] > 0.15
    for name in ("pole", "sign", "bicyclist", "pedestrian"):
        assert share[name] < 0.03, name
    assert 0.005 < float((labels == 255).double().mean()) < 0.1
    is_sky, is_road = labels == CLASSES.index("sky"), labels == CLASSES.index("road")
    rows = torch.arange(96).view(1, -1, 1)
    assert (is_sky * rows).sum() / is_sky.sum() < 35
    assert (is_road * rows).sum() / is_road.sum() > 60


def test_real_labels_match_an_independent_resize(real: CamVid, camvid: Path) -> None:
    samples = real.load("val")
    name = samples.names[40]
    full = np.asarray(Image.open(camvid / "valannot" / f"{name}.png")).astype(np.int64)
    full[full == 11] = 255
    rows, columns = ((np.arange(count) + 0.5) * whole / count for count, whole in ((96, full.shape[0]), (128, full.shape[1])))
    assert np.array_equal(samples.labels[40].numpy(), full[np.ix_(rows.astype(int), columns.astype(int))])


def test_the_second_load_decodes_nothing(real: CamVid, monkeypatch: pytest.MonkeyPatch) -> None:
    first = real.load("val")

    def refuse(path: Path) -> None:
        raise AssertionError(f"{path} is decoded again")

    monkeypatch.setattr(decoding, "open_image", refuse)
    started = time.process_time()
    second = real.load("val")
    assert time.process_time() - started < 0.5
    assert torch.equal(first.images, second.images)
    with pytest.raises(AssertionError, match="is decoded again"):
        CamVid(root=real.root, size=(32, 32), cache=real.cache).load("val")


def test_a_listed_file_that_is_missing_is_skipped_where_that_is_wanted(tmp_path: Path) -> None:
    root = tmp_path / "camvid"
    for index in range(12):
        write_image(root / "frames" / f"a_{index:02d}.png", index)
        write_mask(root / "labels" / f"a_{index:02d}.png", mask(12, index))
    lines = [f"/SegNet/frames/a_{index:02d}.png /SegNet/labels/a_{index:02d}.png" for index in range(12)]
    (root / "train.txt").write_text("\n".join(lines))
    (root / "labels" / "a_05.png").unlink()
    with pytest.raises(ValueError, match="train.txt:6 must name two files below"):
        CamVid(root=str(root), size=SIZE).load("train")
    with pytest.warns(UserWarning, match=r"1 of 12 samples are skipped .*a_05.png must exist, but does not"):
        samples = CamVid(root=str(root), size=SIZE, on_error="skip").load("train")
    assert samples.names == tuple(f"a_{index:02d}" for index in range(12) if index != 5)
