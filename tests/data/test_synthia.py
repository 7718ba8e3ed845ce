"""Both SYNTHIA data sets in small copies of their layouts."""

from pathlib import Path

import numpy as np
import pytest

from imachsr.data.cityscapes import CLASSES as CITYSCAPES
from imachsr.data.synthia_rand import SynthiaRand
from imachsr.data.synthia_sf import SynthiaSF
from tests.data.files import mask, write_image, write_mask, write_png16

SIZE = (40, 50)


def with_instances(classes: np.ndarray) -> np.ndarray:
    """The class in the first channel; in the others instances, which must not matter."""
    return np.stack([classes, classes * 7 + 3, classes * 0 + 200], -1)


@pytest.fixture
def sf(tmp_path: Path) -> Path:
    for number in (1, 2, 5, 6):
        for index in range(2):
            sequence = tmp_path / f"SEQ{number}"
            write_image(sequence / "RGBLeft" / f"{index:07d}.png", index)
            write_mask(sequence / "GTLeft" / f"{index:07d}.png", with_instances(mask(23, 10 * number + index)))
    return tmp_path


@pytest.fixture
def rand(tmp_path: Path) -> Path:
    for index in range(10):
        write_image(tmp_path / "RAND_CITYSCAPES/RGB" / f"{index:07d}.png", index)
        write_png16(tmp_path / "RAND_CITYSCAPES/GT/LABELS" / f"{index:07d}.png", with_instances(mask(23, index)).astype(int) + [0, 300, 1000])
    return tmp_path


def own(raw: np.ndarray) -> np.ndarray:
    """Void is ignored; the other ids count from 0."""
    return np.where(raw == 0, 255, raw.astype(int) - 1)


def test_sf_reads_the_red_channel_and_splits_by_sequence(sf: Path) -> None:
    data = SynthiaSF(root=str(sf), size=SIZE)
    train, val = data.load("train"), data.load("val")
    assert train.names == tuple(f"SEQ{number}_{index:07d}" for number in (1, 2, 5) for index in range(2))
    assert val.names == ("SEQ6_0000000", "SEQ6_0000001")
    assert np.array_equal(train.labels[3].numpy(), own(mask(23, 21)))
    assert data.num_classes == 22
    other = SynthiaSF(root=str(sf), size=SIZE, val_sequences=("SEQ1",), test_sequences=("SEQ2", "SEQ5"))
    assert [len(other.load(split)) for split in ("train", "val", "test")] == [2, 2, 4]


def test_sf_with_the_classes_of_cityscapes(sf: Path) -> None:
    data = SynthiaSF(root=str(sf), size=SIZE, classes="cityscapes")
    assert data.class_names == CITYSCAPES
    raw = mask(23, 10)
    expected = np.where((raw == 0) | (raw > 19), 255, raw.astype(int) - 1)  # its ids 1..19 are the train ids 0..18
    assert np.array_equal(data.load("train").labels[0].numpy(), expected)


def test_sf_names_what_is_missing(sf: Path) -> None:
    with pytest.raises(ValueError, match="`test_sequences` must name a sequence for test, but is empty"):
        SynthiaSF(root=str(sf), size=SIZE).load("test")
    with pytest.raises(ValueError, match="must hold SEQ4, of val, but holds SEQ1, SEQ2, SEQ5, SEQ6"):
        SynthiaSF(root=str(sf), size=SIZE, val_sequences=("SEQ4",)).load("val")
    with pytest.raises(ValueError, match=r"has no SEQ1/; it holds GTLeft, RGBLeft"):
        SynthiaSF(root=str(sf / "SEQ1"), size=SIZE).load("train")
    with pytest.raises(ValueError, match="must share no sequence, but got SEQ6, SEQ6"):
        SynthiaSF(root="x", test_sequences=("SEQ6",))
    with pytest.raises(ValueError, match="must be of SEQ1.* but got 'SEQ7'"):
        SynthiaSF(root="x", val_sequences=("SEQ7",))


def test_rand_reads_all_sixteen_bits_of_the_first_channel(rand: Path) -> None:
    samples = SynthiaRand(root=str(rand), size=SIZE).load("train")
    assert len(samples) == 9
    for index in range(9):
        assert np.array_equal(samples.labels[index].numpy(), own(mask(23, index)))
    values = with_instances(mask(23, 0)).astype(int)
    values[2, 3, 0] = 256 + 3  # whose lower eight bits are a class
    write_png16(rand / "RAND_CITYSCAPES/GT/LABELS/0000000.png", values)
    with pytest.raises(ValueError, match=r"0000000.png must be ids of the table .* but got 259 at \(y, x\) = \(2, 3\)"):
        SynthiaRand(root=str(rand), size=SIZE).load("train")


def test_rand_refuses_grey_with_alpha_by_name(rand: Path) -> None:
    path = write_png16(rand / "RAND_CITYSCAPES/GT/LABELS/0000000.png", with_instances(mask(23, 0)).astype(int)[..., :2])
    with pytest.raises(ValueError, match=f"{path} must have three channels, or one, but has grey and alpha"):
        SynthiaRand(root=str(rand), size=SIZE).load("train")


def test_rand_splits_are_blocks_that_share_nothing(rand: Path) -> None:
    data = SynthiaRand(root=str(rand / "RAND_CITYSCAPES"), size=SIZE, val_fraction=0.2, test_fraction=0.3)
    names = [data.load(split).names for split in ("train", "val", "test")]
    assert [name for part in names for name in part] == [f"{index:07d}" for index in range(10)]
    assert [len(part) for part in names] == [5, 2, 3]


def test_rand_with_the_classes_of_cityscapes(rand: Path) -> None:
    """Against the mapping that papers on adaptation from SYNTHIA use."""
    usual = {3: 0, 4: 1, 2: 2, 21: 3, 5: 4, 7: 5, 15: 6, 9: 7, 6: 8, 16: 9, 1: 10, 10: 11, 17: 12, 8: 13, 18: 14, 19: 15, 20: 16, 12: 17, 11: 18}
    found = SynthiaRand(root=str(rand), size=SIZE, classes="cityscapes").load("train").labels[4].numpy()
    assert np.array_equal(found, np.vectorize(lambda value: usual.get(value, 255))(mask(23, 4)))


@pytest.mark.parametrize("fractions", [(0.0, 0.0), (0.5, 0.5), (-0.1, 0.2), (1.0, 0.0)])
def test_rand_fractions_must_leave_something_to_train_on(fractions: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="`0 < val_fraction`"):
        SynthiaRand(root="x", val_fraction=fractions[0], test_fraction=fractions[1])


def test_other_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="`classes` must be one of .* but got 'city'"):
        SynthiaRand(root="x", classes="city")  # type: ignore[arg-type]
