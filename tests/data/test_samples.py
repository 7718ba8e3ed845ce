"""What every data set gives, checked at the door; and the contract of all data sets."""

from dataclasses import fields
from typing import Any, get_args

import numpy as np
import pytest
import torch

from imachsr.data import DatasetSpec
from imachsr.data.samples import Samples, check_size, check_split
from tests.data.files import mask, write_image, write_mask, write_png16


def samples(count: int = 4, size: tuple[int, int] = (3, 5)) -> Samples:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 4, (count, *size), dtype=torch.uint8, generator=generator)
    return Samples(images=images, labels=labels, names=tuple(f"s_{index}" for index in range(count)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(4, 3, 3, 5)}, r"`images` must be uint8 \[N, 3, H, W\], but got torch.float32 \[4, 3, 3, 5\]"),
        ({"images": torch.zeros(4, 1, 3, 5, dtype=torch.uint8)}, r"`images` must be uint8 \[N, 3, H, W\], but got torch.uint8 \[4, 1, 3, 5\]"),
        ({"images": torch.zeros(3, 3, 5, dtype=torch.uint8)}, r"but got torch.uint8 \[3, 3, 5\]"),
        ({"labels": torch.zeros(4, 3, 5, dtype=torch.int64)}, r"`labels` must be uint8 \[4, 3, 5\], but got torch.int64 \[4, 3, 5\]"),
        ({"labels": torch.zeros(4, 5, 3, dtype=torch.uint8)}, r"`labels` must be uint8 \[4, 3, 5\], but got torch.uint8 \[4, 5, 3\]"),
        ({"names": ("a",)}, "`names` must name 4 samples, but got 1"),
    ],
)
def test_tensors_of_another_kind_are_refused(change: dict[str, Any], message: str) -> None:
    good = samples()
    with pytest.raises(ValueError, match=message):
        Samples(**{"images": good.images, "labels": good.labels, "names": good.names, **change})


@pytest.mark.parametrize(
    ("values", "names", "refused"),
    [
        ((0, 255), ("no", "yes"), "none of yes"),
        ((1, 255), ("no", "yes"), "none of no"),
        ((0, 1, 255), ("no", "yes"), ""),
        ((0,), ("no", "yes"), ""),  # a part without a finding, and nothing ignored
        ((0, 255), ("no", "yes", "other"), ""),
    ],
)
def test_masks_of_0_and_255_are_refused_for_two_classes(values: tuple[int, ...], names: tuple[str, ...], refused: str) -> None:
    given = samples()
    for index, labels in enumerate(given.labels):
        labels[:] = values[index % len(values)]
    if not refused:
        given.check_binary("train", names)
        return
    with pytest.raises(ValueError, match=f"train must have pixels of both classes, but has {refused}, and some of 255"):
        given.check_binary("train", names)


def test_a_subset_has_its_samples_in_the_order_asked_for_and_is_a_copy() -> None:
    whole = samples()
    part = whole.subset([2, 0])
    assert part.names == ("s_2", "s_0")
    assert torch.equal(part.images, torch.stack([whole.images[2], whole.images[0]]))
    assert torch.equal(part.labels, torch.stack([whole.labels[2], whole.labels[0]]))
    part.images.zero_()
    assert whole.images[2].any()


def test_a_fingerprint_is_of_every_pixel_label_name_and_of_their_order() -> None:
    whole = samples()
    known = {whole.fingerprint()}
    assert samples().fingerprint() in known
    assert whole.subset(range(4)).fingerprint() in known
    dot, label = samples(), samples()
    dot.images[3, 2, 2, 4] ^= 1
    label.labels[0, 0, 0] ^= 1
    named = Samples(images=whole.images, labels=whole.labels, names=("s_0", "s_1", "s_2", "t_3"))
    cut = Samples(images=whole.images.reshape(4, 3, 5, 3), labels=whole.labels.reshape(4, 5, 3), names=whole.names)
    known |= {each.fingerprint() for each in (dot, label, named, cut, whole.subset([1, 0, 2, 3]), whole.subset([0, 1, 2]))}
    assert len(known) == 7


@pytest.mark.parametrize("split", ["Train", "", "validation"])
def test_an_unknown_split_is_refused(split: str) -> None:
    with pytest.raises(ValueError, match=f"`split` must be one of .* but got '{split}'"):
        check_split(split)


def test_the_smallest_size_is_32() -> None:
    check_size((32, 32))
    with pytest.raises(ValueError, match="at least 32"):
        check_size((32, 31))


# Every data set of the union, whichever there are.


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Settings of each kind that load."""
    root = tmp_path_factory.mktemp("all")
    for split in ("train", "val", "test"):
        for index in range(2):
            write_image(root / "camvid" / split / f"{index}.png", index)
            write_mask(root / "camvid" / f"{split}annot" / f"{index}.png", mask(12, index))
            write_image(root / "folder" / split / "images" / f"{index}.png", index)
            write_mask(root / "folder" / split / "masks" / f"{index}.png", mask(2, index))
            frame = f"ulm_000000_{index:06d}"
            write_image(root / "cityscapes/leftImg8bit" / split / "ulm" / f"{frame}_leftImg8bit.png", index)
            write_mask(root / "cityscapes/gtFine" / split / "ulm" / f"{frame}_gtFine_labelIds.png", mask(34, index))
            sequence = root / "sf" / {"train": "SEQ1", "val": "SEQ5", "test": "SEQ6"}[split]
            write_image(sequence / "RGBLeft" / f"{index:07d}.png", index)
            write_mask(sequence / "GTLeft" / f"{index:07d}.png", np.stack([mask(23, index)] * 3, -1))
    for index in range(6):
        write_image(root / "rand/RGB" / f"{index:07d}.png", index)
        write_png16(root / "rand/GT/LABELS" / f"{index:07d}.png", np.stack([mask(23, index)] * 3, -1))
    return {
        "scenes": {"size": (32, 48), "num_train": 2, "num_val": 2, "num_test": 2},
        "camvid": {"root": str(root / "camvid"), "size": (32, 48)},
        "cityscapes": {"root": str(root / "cityscapes"), "size": (32, 48)},
        "synthia_sf": {"root": str(root / "sf"), "size": (32, 48), "val_sequences": ("SEQ5",), "test_sequences": ("SEQ6",)},
        "synthia_rand": {"root": str(root / "rand"), "size": (32, 48), "val_fraction": 0.33, "test_fraction": 0.33},
        "folder": {"root": str(root / "folder"), "class_names": ("a", "b"), "size": (32, 48)},
        "import": {"path": "imachsr.data.scenes:Scenes", "kwargs": {"size": (32, 48), "num_train": 2, "num_val": 2, "num_test": 2}},
    }


@pytest.mark.parametrize("member", get_args(DatasetSpec), ids=lambda member: member.__name__)
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_data_set_gives_checked_samples_twice_the_same(member: Any, split: str, made: dict[str, dict[str, Any]]) -> None:
    kind = next(f.default for f in fields(member) if f.name == "kind")
    data = member(**made[kind])
    found = data.load(split)
    assert found.images.shape == (2, 3, 32, 48)
    assert len(data.class_names) == data.num_classes
    assert bool(((found.labels < data.num_classes) | (found.labels == 255)).all())
    again = member(**made[kind]).load(split)
    assert again.names == found.names
    assert torch.equal(again.images, found.images)
    assert torch.equal(again.labels, found.labels)
    with pytest.raises(ValueError, match="`split` must be one of"):
        data.load("valid")


@pytest.mark.parametrize("member", get_args(DatasetSpec), ids=lambda member: member.__name__)
def test_every_data_set_is_frozen_and_says_what_it_is(member: Any, made: dict[str, dict[str, Any]]) -> None:
    data = member(**made[next(f.default for f in fields(member) if f.name == "kind")])
    with pytest.raises(AttributeError):
        data.kind = "other"
    assert member.__doc__
    assert "Args:" in member.__doc__
