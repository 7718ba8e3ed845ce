"""A finished training on images and data that it has not seen."""

import warnings
from pathlib import Path

import pytest
import torch

from imachsr.config.load import make_run
from imachsr.config.schema import ConfigError
from imachsr.data.corruptions import CORRUPTIONS, corrupt
from imachsr.data.samples import Samples
from imachsr.data.transforms import normalize
from imachsr.train import checkpoint
from imachsr.train.evaluate import Corrupted, evaluate, trained_model
from imachsr.train.loop import train
from imachsr.train.metrics import ConfusionMatrix

SMALL = {"kind": "scenes", "num_train": 16, "num_val": 6, "size": [32, 64]}
CAMVID = ("Sky", "Building", "Column_Pole", "Road", "Water", "Tree")


class Other:
    """Scenes whose labels are called and numbered otherwise; water is in no scene."""

    num_classes = 6
    class_names = CAMVID

    def load(self, split: str) -> Samples:
        run = make_run({"data": SMALL})
        samples, names = run.data.load("val"), run.data.class_names
        table = torch.full((256,), 4, dtype=torch.uint8)
        for number, name in enumerate(("sky", "building", "pole", "road", "", "vegetation")):
            if name:
                table[names.index(name)] = number
        table[255] = 255
        return Samples(images=samples.images, labels=table[samples.labels.long()], names=samples.names)


class Strange(Other):
    class_names = ("a", "b", "c", "d", "e", "f")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    optimizer = {"epochs": 3, "batch_size": 4, "lr": 5e-3}
    train(make_run({"data": SMALL, "optimizer": optimizer, "method": {"alpha": 0, "beta": 0}}), output=folder)
    return folder


def test_spoilt_images_are_scored_as_if_they_lay_on_disk(trained: Path) -> None:
    found = evaluate(trained, corrupted=Corrupted(names=("fog", "jpeg"), severities=(1, 4)))
    run = make_run({"data": SMALL})
    samples, state = run.data.load("val"), checkpoint.load(trained)
    model = trained_model(state, make_run({"data": SMALL, "method": {"alpha": 0, "beta": 0}}))
    for name in ("fog", "jpeg"):
        for severity in (1, 4):
            matrix = ConfusionMatrix(run.data.num_classes)
            images = corrupt(samples.images, name, severity, numbers=range(6))
            with torch.no_grad():
                matrix.update(model(normalize(images)).argmax(1), samples.labels.long())
            assert found[f"corrupted/{name}/{severity}/miou"] == pytest.approx(matrix.miou(), abs=0.5)  # autocast
    for name in ("fog", "jpeg"):
        assert found[f"corrupted/{name}/miou"] == pytest.approx(sum(found[f"corrupted/{name}/{severity}/miou"] for severity in (1, 4)) / 2)
    each = [value for key, value in found.items() if key.count("/") == 3]
    assert found["corrupted/miou"] == pytest.approx(sum(each) / 4)
    assert len(each) == 4


def test_all_corruptions_at_all_severities_are_the_default(trained: Path) -> None:
    told: list[tuple[int, int]] = []
    found = evaluate(trained, corrupted=Corrupted(severities=(2,)), progress=lambda done, total: told.append((done, total)))
    assert {key.split("/")[1] for key in found if key.count("/") == 3} == set(CORRUPTIONS)
    assert told[-1] == (12, 12)
    assert Corrupted().severities == (1, 2, 3, 4, 5)


def test_data_with_other_classes_are_scored_on_those_that_both_have(trained: Path) -> None:
    own = evaluate(trained)
    with pytest.warns(UserWarning, match="scored on the 5 classes that both have; left out: of the model .*car.*; of the data Water"):
        found = evaluate(trained, overrides=[f"data={{import: '{__name__}:Other'}}"])
    assert {key for key in found if key.startswith("val/iou/")} <= {f"val/iou/{name}" for name in ("sky", "building", "pole", "road", "vegetation")}
    # The same images; fewer classes to choose from, so that no pixel is lost to a class that is left out.
    assert found["val/iou/sky"] >= own["val/iou/sky"] - 1e-6
    assert found["val/iou/road"] > 0


@pytest.mark.parametrize("given", [{"names": ()}, {"names": ("fog", "fog")}, {"names": ("snow",)}, {"severities": (0,)}, {"severities": (2, 2)}])
def test_ways_to_spoil_are_checked_before_anything_is_loaded(given: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(ConfigError, match="`(corruptions|severities)` must"):
        Corrupted(**given)  # type: ignore[arg-type]


def test_a_loss_with_weights_of_all_classes_does_not_hinder_fewer(trained: Path) -> None:
    weights = "output_loss={kind: cross_entropy, class_weights: [1, 1, 1, 1, 1, 1, 1, 1, 2]}"
    with pytest.warns(UserWarning, match="scored on the 5 classes"):
        assert evaluate(trained, overrides=[f"data={{import: '{__name__}:Other'}}", weights])["val/loss"] > 0


def test_data_without_a_class_in_common_are_refused(trained: Path) -> None:
    with pytest.raises(ConfigError, match="the data must have the 9 classes .* or two that are called as these, but have 6: a, b"):
        evaluate(trained, overrides=[f"data={{import: '{__name__}:Strange'}}"])


def test_the_held_out_sequence_is_what_val_is_scored_on(tmp_path: Path) -> None:
    raw = {"data": {"import": f"{__name__}:Two"}, "subset": {"hold_out": "b"}, "optimizer": {"epochs": 1, "batch_size": 2}}
    run = make_run({**raw, "method": {"alpha": 0, "beta": 0}})
    result = train(run, output=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert evaluate(tmp_path)["val/miou"] == pytest.approx(result.metrics["val/miou"])


class Two:
    """Two sequences; val is none of them."""

    num_classes = 9
    class_names = tuple("abcdefghi")

    def load(self, split: str) -> Samples:
        found = make_run({"data": SMALL}).data.load("train" if split == "train" else "val")
        names = tuple(f"{'ab'[index % 2]}_{index:03d}" for index in range(len(found)))
        return Samples(images=found.images, labels=found.labels, names=names if split == "train" else found.names)
