"""Cityscapes in small copies of its layout."""

from pathlib import Path

import numpy as np
import pytest

from imachsr.data.cityscapes import CLASSES, LABEL_IDS, LABEL_TRAIN_IDS, Cityscapes
from imachsr.data.coding import Coding
from tests.data.files import mask, write_image, write_mask

SIZE = (40, 50)
# Written down anew from the table of the official scripts: name, id, train id.
OFFICIAL = """
unlabeled 0 255, ego vehicle 1 255, rectification border 2 255, out of roi 3 255, static 4 255, dynamic 5 255, ground 6 255, road 7 0, sidewalk 8 1,
parking 9 255, rail track 10 255, building 11 2, wall 12 3, fence 13 4, guard rail 14 255, bridge 15 255, tunnel 16 255, pole 17 5, polegroup 18 255,
traffic light 19 6, traffic sign 20 7, vegetation 21 8, terrain 22 9, sky 23 10, person 24 11, rider 25 12, car 26 13, truck 27 14, bus 28 15,
caravan 29 255, trailer 30 255, train 31 16, motorcycle 32 17, bicycle 33 18
"""
TABLE = [(name, int(number), int(train)) for name, number, train in (row.strip().rsplit(" ", 2) for row in OFFICIAL.split(","))]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two cities with two frames each; all 34 ids occur."""
    for city in ("aachen", "ulm"):
        for index in range(2):
            frame = f"{city}_{index:06d}_000019"
            write_image(tmp_path / "leftImg8bit/train" / city / f"{frame}_leftImg8bit.png", index)
            write_mask(label(tmp_path, frame), ids(index))
            for other in ("color", "instanceIds"):  # which the archive has, too
                write_mask(tmp_path / "gtFine/train" / city / f"{frame}_gtFine_{other}.png", ids(index))
            (tmp_path / "gtFine/train" / city / f"{frame}_gtFine_polygons.json").write_text("{}")
    return tmp_path


def label(root: Path, frame: str, what: str = "labelIds") -> Path:
    return root / "gtFine/train" / frame.partition("_")[0] / f"{frame}_gtFine_{what}.png"


def ids(index: int) -> np.ndarray:
    """All ids, and 255 for the licence plate's -1."""
    return np.roll(np.resize([*range(34), 255], SIZE).astype(np.uint8), index)


def test_ids_become_train_ids_by_the_official_table(root: Path) -> None:
    samples = Cityscapes(root=str(root), size=SIZE).load("train")
    assert samples.names == ("aachen_000000_000019", "aachen_000001_000019", "ulm_000000_000019", "ulm_000001_000019")
    train_id = {**{number: train for _, number, train in TABLE}, 255: 255}
    expected = np.vectorize(train_id.__getitem__)(ids(1))
    assert np.array_equal(samples.labels[1].numpy(), expected)
    assert tuple(name for name, _, train in sorted(TABLE, key=lambda row: row[2]) if train != 255) == CLASSES


def test_train_ids_are_preferred_where_a_split_has_all_of_them(root: Path) -> None:
    frames = [f"{city}_{index:06d}_000019" for city in ("aachen", "ulm") for index in range(2)]
    for frame in frames:
        write_mask(label(root, frame, "labelTrainIds"), mask(19, 3))
    assert np.array_equal(Cityscapes(root=str(root), size=SIZE).load("train").labels[2].numpy(), mask(19, 3))
    label(root, frames[2], "labelTrainIds").unlink()
    found = Cityscapes(root=str(root), size=SIZE).load("train").labels[0].numpy()
    assert not np.array_equal(found, mask(19, 3))
    assert 255 in found  # labelIds again, for all frames alike


@pytest.mark.parametrize("coding", [LABEL_IDS, LABEL_TRAIN_IDS])
def test_a_licence_plate_is_ignored_in_files_with_a_sign_too(coding: Coding) -> None:
    classes, wrong = coding.classes(np.array([[-1, 255, 7]]))
    assert classes[0, :2].tolist() == [255, 255]
    assert not wrong.any()


def test_an_id_that_the_table_has_not_is_an_error(root: Path) -> None:
    values = ids(0)
    values[3, 4] = 34
    write_mask(label(root, "ulm_000001_000019"), values)
    with pytest.raises(ValueError, match=r"ulm_000001_000019_gtFine_labelIds.png must be ids of the table .* got 34 at \(y, x\) = \(3, 4\)"):
        Cityscapes(root=str(root), size=SIZE).load("train")


@pytest.mark.parametrize(
    ("remove", "wording"),
    [
        ("gtFine/train/ulm/ulm_000001_000019_gtFine_labelIds.png", "ulm_000001_000019_leftImg8bit.png has none in .*gtFine/train/ulm"),
        ("leftImg8bit/train/ulm/ulm_000001_000019_leftImg8bit.png", "ulm_000001_000019_gtFine_labelIds.png has none in .*leftImg8bit/train/ulm"),
    ],
)
def test_a_file_without_its_partner_is_named(remove: str, wording: str, root: Path) -> None:
    (root / remove).unlink()
    with pytest.raises(ValueError, match=wording):
        Cityscapes(root=str(root), size=SIZE).load("train")


def test_wrong_folders_and_names_are_named(root: Path) -> None:
    with pytest.raises(ValueError, match=r"folder .*leftImg8bit/val must exist, but does not; .*leftImg8bit holds train"):
        Cityscapes(root=str(root), size=SIZE).load("val")
    with pytest.raises(ValueError, match=r"must hold leftImg8bit/ and gtFine/, but has no leftImg8bit/; it holds train"):
        Cityscapes(root=str(root / "gtFine"), size=SIZE).load("train")
    write_image(root / "leftImg8bit/train/ulm/frame.png")
    with pytest.raises(ValueError, match=r"images must be named CITY_.* but got .*ulm/frame.png \(1 such files\)"):
        Cityscapes(root=str(root), size=SIZE).load("train")
