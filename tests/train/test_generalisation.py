"""A finished training on images and data that it has not seen."""

import warnings
from pathlib import Path

import pytest
import torch

from imachsr.config.load import make_run, run_to_dict
from imachsr.config.schema import ConfigError
from imachsr.data.corruptions import CORRUPTIONS, corrupt
from imachsr.data.samples import NoSplitError, Progress, Samples, Split, untold
from imachsr.data.scenes import Scenes
from imachsr.data.transforms import normalize
from imachsr.search.space import make_search
from imachsr.search.task import rehearse
from imachsr.study.driver import fingerprints
from imachsr.study.task import run_to_row
from imachsr.train import checkpoint
from imachsr.train.evaluate import evaluate, trained_model
from imachsr.train.loop import train
from imachsr.train.metrics import ConfusionMatrix
from imachsr.train.score import Corrupted

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


class Coarse:
    """Scenes with three classes, one of which holds what the scenes tell apart."""

    num_classes = 3
    class_names = ("sky", "ground", "building")
    parts = {"ground": ("road", "lane_mark")}

    def load(self, split: str) -> Samples:
        run = make_run({"data": SMALL})
        samples, names = run.data.load("val"), run.data.class_names
        table = torch.full((256,), 255, dtype=torch.uint8)
        for name, number in (("sky", 0), ("road", 1), ("lane_mark", 1), ("building", 2)):
            table[names.index(name)] = number
        return Samples(images=samples.images, labels=table[samples.labels.long()], names=samples.names)


class CoarseApart(Coarse):
    parts = {"ground": ("road",)}


class Strange(Other):
    class_names = ("a", "b", "c", "d", "e", "f")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    optimizer = {"epochs": 3, "batch_size": 4, "lr": 5e-3}
    train(make_run({"data": SMALL, "optimizer": optimizer, "method": {"alpha": 0, "beta": 0}}), output=folder)
    return folder


@pytest.mark.long
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


def test_classes_that_the_data_put_in_one_are_scored_by_the_sum_of_their_probabilities(trained: Path) -> None:
    said = "scored on the 3 classes that both have; road and lane_mark of the model as one, ground; left out: of the model "
    with pytest.warns(UserWarning, match=said):
        found = evaluate(trained, overrides=[f"data={{import: '{__name__}:Coarse'}}"])
    names, samples = make_run({"data": SMALL}).data.class_names, Coarse().load("val")
    model = trained_model(checkpoint.load(trained), make_run({"data": SMALL, "method": {"alpha": 0, "beta": 0}}))
    with torch.no_grad():
        odds = model(normalize(samples.images)).double().exp()
    sky, road, marks, building = (odds[:, names.index(name)] for name in ("sky", "road", "lane_mark", "building"))
    by_name = {"sky": sky, "ground": road + marks, "building": building}
    best = torch.stack(list(by_name.values()), 1).argmax(1)
    for number, name in enumerate(by_name):
        real, counts = samples.labels == number, samples.labels != 255
        hit, either = ((best == number) & real).sum(), (((best == number) | real) & counts).sum()
        assert found[f"val/iou/{name}"] == pytest.approx(100 * float(hit / either), abs=0.5)  # autocast
    chosen = torch.stack(list(by_name.values()), 1) / sum(by_name.values()).unsqueeze(1)  # type: ignore[union-attr]
    right = samples.labels != 255
    nll = -chosen.gather(1, samples.labels.long().clamp(max=2).unsqueeze(1))[:, 0].log()[right].mean()
    assert found["val/nll"] == pytest.approx(float(nll), rel=0.02)


@pytest.mark.parametrize("given", [{"names": ()}, {"names": ("fog", "fog")}, {"names": ("snow",)}, {"severities": (0,)}, {"severities": (2, 2)}])
def test_ways_to_spoil_are_checked_before_anything_is_loaded(given: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(ConfigError, match="`(corruptions|severities)` must"):
        Corrupted(**given)  # type: ignore[arg-type]


@pytest.mark.long
def test_a_loss_with_weights_of_all_classes_does_not_hinder_fewer(trained: Path, tmp_path: Path) -> None:
    weights = {"kind": "cross_entropy", "class_weights": [1, 1, 1, 1, 1, 1, 1, 1, 2]}
    raw = {"data": SMALL, "output_loss": weights, "optimizer": {"epochs": 1, "batch_size": 8}, "method": {"alpha": 0, "beta": 0}}
    train(make_run(raw), output=tmp_path)
    with pytest.warns(UserWarning, match="scored on the 5 classes"):
        assert evaluate(tmp_path, overrides=[f"data={{import: '{__name__}:Other'}}"])["val/loss"] > 0
    given = ["output_loss={kind: cross_entropy, class_weights: [1, 1, 1, 1, 1, 1, 1, 1, 3]}"]
    assert evaluate(trained, overrides=given)["val/loss"] != evaluate(trained)["val/loss"]
    with (
        pytest.warns(UserWarning, match="scored on the 5"),
        pytest.raises(ConfigError, match="output_loss must be left out, since it is of 9 classes, and 5 are scored"),
    ):
        evaluate(trained, overrides=[f"data={{import: '{__name__}:Other'}}", *given])
    with pytest.raises(ConfigError, match="output_loss must be left out, since spoilt images are scored without a loss"):
        evaluate(trained, overrides=given, corrupted=Corrupted(names=("fog",)))
    with pytest.raises(ConfigError, match="output_loss.class_weights: must have 9 values, one a class, but got 2"):
        evaluate(trained, overrides=["output_loss={kind: cross_entropy, class_weights: [1, 2]}"])


def test_data_without_a_class_in_common_are_refused(trained: Path) -> None:
    with pytest.raises(ConfigError, match="the data must have the 9 classes .* or two that are called as these, but have 6: a, b"):
        evaluate(trained, overrides=[f"data={{import: '{__name__}:Strange'}}"])


@pytest.mark.long
def test_the_held_out_sequence_is_what_val_is_scored_on_and_val_need_not_be_there(tmp_path: Path) -> None:
    raw = {"data": {"import": f"{__name__}:Two"}, "subset": {"hold_out": "b"}, "optimizer": {"epochs": 1, "batch_size": 2}}
    run = make_run({**raw, "method": {"alpha": 0, "beta": 0}})
    result = train(run, output=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert evaluate(tmp_path)["val/miou"] == pytest.approx(result.metrics["val/miou"])
    both = {"corruptions": {"names": ["fog"], "severities": [3]}, "also_on": {}}
    row = run_to_row(run_to_dict(run), str(tmp_path / "row"), "data", both)
    assert row["scores"]["val/miou"] == pytest.approx(result.metrics["val/miou"])
    assert "corrupted/fog/miou" in row["scores"]
    assert len(fingerprints([("key", run)], {})) == 1
    with pytest.raises(NoSplitError):
        fingerprints([("key", make_run({**raw, "subset": {}}))], {})


def test_a_search_whose_runs_hold_a_sequence_out_needs_no_val() -> None:
    raw = {"data": {"import": f"{__name__}:Two"}, "subset": {"hold_out": "b"}, "optimizer": {"epochs": 1, "batch_size": 2}}
    whole = {
        "run": raw,
        "score_on": "val",
        "scheduler": {"kind": "none"},
        "metric": {"name": "val/miou"},
        "space": {"method.alpha": {"float": [0.1, 1.0]}},
    }
    assert set(rehearse(make_search(whole))) == {"train"}
    with pytest.raises(NoSplitError):
        rehearse(make_search({**whole, "run": {**raw, "subset": {}}}))


class Two:
    """Two sequences, and no val."""

    num_classes = 9
    class_names = tuple("abcdefghi")

    def load(self, split: str) -> Samples:
        if split != "train":
            raise NoSplitError(f"no {split}")
        found = make_run({"data": SMALL}).data.load("train")
        names = tuple(f"{'ab'[index % 2]}_{index:03d}" for index in range(len(found)))
        return Samples(images=found.images, labels=found.labels, names=names)


def test_train_is_not_loaded_to_score_val(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, loaded = Scenes.load, []

    def load(self: Scenes, split: Split, *, progress: Progress = untold) -> Samples:
        loaded.append(split)
        return real(self, split, progress=progress)

    monkeypatch.setattr(Scenes, "load", load)
    evaluate(trained)
    assert loaded == ["val"]


def test_rows_that_took_other_classes_together_are_of_other_data() -> None:
    run = make_run({"data": SMALL})
    found = [
        fingerprints([("key", run)], {"there": {"data": {"import": f"{__name__}:{name}"}}})["key"] for name in ("Coarse", "Coarse", "CoarseApart")
    ]
    assert found[0] == found[1] != found[2]
