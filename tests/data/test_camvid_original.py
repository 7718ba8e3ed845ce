"""CamVid's 701 frames as the authors give them, in small copies."""

from pathlib import Path

import numpy as np
import pytest
import torch

from imachsr.data.camvid import CamVid
from imachsr.data.camvid_original import COLOURS, GROUPS, split_of
from imachsr.data.inspection import inspect_source
from imachsr.data.prepare import prepare
from tests.data.files import write_image, write_mask

SIZE = (40, 50)
# label_colors.txt, and SegNet's class by its number; - is void.
TABLE = """
64 128 64 Animal 9|192 0 128 Archway 1|0 128 192 Bicyclist 10|0 128 64 Bridge 1|128 0 0 Building 1|64 0 128 Car 8|64 0 192 CartLuggagePram 9
192 128 64 Child 9|192 192 128 Column_Pole 2|64 64 128 Fence 7|128 0 192 LaneMkgsDriv 3|192 0 64 LaneMkgsNonDriv 3|128 128 64 Misc_Text 6
192 0 192 MotorcycleScooter 10|128 64 64 OtherMoving 8|64 192 128 ParkingBlock 4|64 64 0 Pedestrian 9|128 64 128 Road 3|128 128 192 RoadShoulder 4
0 0 192 Sidewalk 4|192 128 128 SignSymbol 6|128 128 128 Sky 0|64 128 192 SUVPickupTruck 8|0 0 64 TrafficCone 2|0 64 64 TrafficLight 6
192 64 128 Train 8|128 128 0 Tree 5|192 128 192 Truck_Bus 8|64 0 64 Tunnel 1|192 192 0 VegetationMisc 5|0 0 0 Void 255|64 192 0 Wall 1
"""
ROWS = [line.split() for line in TABLE.strip().replace("\n", "|").split("|")]
FRAMES = ["0001TP_008520", "0001TP_008550", "0006R0_f00930", "0016E5_07920", "0016E5_07959", "0016E5_08159", "0016E5_08190", "Seq05VD_f00000"]
SPLITS = {
    "train": ("0001TP_008520", "0006R0_f00930", "0016E5_07920", "0016E5_08190"),
    "val": ("0016E5_07959", "0016E5_08159"),
    "test": ("0001TP_008550", "Seq05VD_f00000"),
}


def picked(seed: int) -> np.ndarray:
    """Rows of the table, all of which occur."""
    return np.random.default_rng(seed).permutation(np.resize(np.arange(32), SIZE[0] * SIZE[1])).reshape(SIZE)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    colours = np.array([row[:3] for row in ROWS], np.uint8)
    for index, frame in enumerate(FRAMES):
        write_image(tmp_path / "701_StillsRaw_full" / f"{frame}.png", index)
        write_mask(tmp_path / "LabeledApproved_full" / f"{frame}_L.png", colours[picked(index)])
    return tmp_path


def test_every_colour_becomes_its_class(root: Path) -> None:
    samples = CamVid(root=str(root), size=SIZE).load("train")
    classes = np.array([int(row[4]) for row in ROWS])
    assert samples.names == SPLITS["train"]
    for index, frame in enumerate(samples.names):
        assert np.array_equal(samples.labels[index].numpy(), classes[picked(FRAMES.index(frame))])
    assert len(dict(COLOURS)) == 32
    assert {name for group in GROUPS.values() for name in group} | {"Void"} == {row[3] for row in ROWS}


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_the_usual_split_goes_by_sequence_and_frame(split: str, root: Path) -> None:
    assert CamVid(root=str(root), size=SIZE).load(split).names == SPLITS[split]  # type: ignore[arg-type]


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_rule_gives_the_frames_of_segnet(split: str, camvid: Path) -> None:
    names = sorted((camvid / split).iterdir())
    assert {split_of(path) for path in names} == {split}


def test_lists_go_before_the_rule(root: Path) -> None:
    (root / "train.txt").write_text("0016E5_07959\n/SegNet/CamVid/train/0016E5_08159.png /SegNet/CamVid/trainannot/0016E5_08159.png\n")
    assert CamVid(root=str(root), size=SIZE).load("train").names == ("0016E5_07959", "0016E5_08159")
    with pytest.raises(ValueError, match=r"must hold val.txt beside train.txt, but does not; without any list the standard split is made"):
        CamVid(root=str(root), size=SIZE).load("val")
    (root / "val.txt").write_text("test_00001.png\n")
    with pytest.raises(ValueError, match=r"val.txt:1 must name a frame of 701_StillsRaw_full.* but test_00001 is none; lists of renumbered copies"):
        CamVid(root=str(root), size=SIZE).load("val")


def test_a_colour_that_is_not_in_the_table_is_named(root: Path) -> None:
    path = root / "LabeledApproved_full/0016E5_07959_L.png"
    values = np.zeros((*SIZE, 3), np.uint8)
    values[7, 9:12] = (1, 2, 3)
    write_mask(path, values)
    strange = r"got \(1, 2, 3\) at \(y, x\) = \(7, 9\), and 3 such pixels in all; up to 0.1% of a file would be ignored"
    with pytest.raises(ValueError, match=rf"0016E5_07959_L.png must be colours of the table .* but {strange}"):
        CamVid(root=str(root), size=SIZE).load("val")
    write_mask(path, values[..., 0])
    with pytest.raises(ValueError, match="0016E5_07959_L.png must hold a colour a pixel, but has mode L"):
        CamVid(root=str(root), size=SIZE).load("val")


def test_single_pixels_of_other_colours_are_ignored_and_told(root: Path) -> None:
    colours = np.array([row[:3] for row in ROWS], np.uint8)[picked(4)]
    before = CamVid(root=str(root), size=SIZE).load("val").labels[0].clone()
    colours[7, 9], colours[3, 3] = (1, 2, 3), (128, 128, 127)  # two of 2000: a thousandth
    path = write_mask(root / "LabeledApproved_full/0016E5_07959_L.png", colours)
    with pytest.warns(
        UserWarning, match=rf"2 pixels of 1 label files have a colour that is not in the table, and are ignored; the first file: {path}"
    ):
        labels = CamVid(root=str(root), size=SIZE).load("val").labels[0]
    before[7, 9], before[3, 3] = 255, 255
    assert torch.equal(labels, before)
    source = CamVid(root=str(root), size=SIZE).source("val")
    found = inspect_source("val", source)
    assert not found.problems
    assert found.traits == {"label has pixels of an unknown colour, few enough to be ignored": 1}
    assert found.unknown == {"(1, 2, 3)": 1, "(128, 128, 127)": 1}
    assert found.pixels.sum() == 2 * 2000  # none is lost
    with pytest.warns(UserWarning, match="2 pixels of 1 label files"):
        prepare(source, size=(32, 32), cache=str(root / "cache"))


def test_strange_names_and_missing_partners_are_named(root: Path) -> None:
    write_image(root / "701_StillsRaw_full/test_00001.png")
    with pytest.raises(ValueError, match=r"test_00001.png must be named by its sequence .* or list the frames of each split"):
        CamVid(root=str(root), size=SIZE).load("train")
    (root / "701_StillsRaw_full/test_00001.png").unlink()
    (root / "LabeledApproved_full/0016E5_07959_L.png").unlink()
    with pytest.raises(ValueError, match=r"0016E5_07959.png has none in .*LabeledApproved_full \(1 such"):
        CamVid(root=str(root), size=SIZE).load("val")
    (root / "LabeledApproved_full").rename(root / "labels")
    with pytest.raises(ValueError, match="must hold LabeledApproved_full/ beside 701_StillsRaw_full/"):
        CamVid(root=str(root), size=SIZE).load("val")
