"""Two Ray Train workers (gloo) of a Ray that is started once."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import ray

from imachsr.config.schema import ConfigError
from imachsr.train.checkpoint import load
from imachsr.train.evaluate import evaluate
from imachsr.train.loop import train
from imachsr.train.ray_train import train_distributed
from tests.train.toys import toy_run, without_clock

SETTINGS: dict[str, Any] = {"optimizer__epochs": 3, "augment__scale": [1, 1]}


@pytest.fixture(scope="module")
def trained(own_ray: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, float]]]:
    folder, seen = tmp_path_factory.mktemp("ray") / "run", []
    train_distributed(toy_run(**SETTINGS), workers=2, output=folder, report=seen.append)
    return folder, seen


def test_two_workers_give_what_one_process_gives_with_the_same_global_batch(trained: tuple[Path, list[dict[str, float]]]) -> None:
    # Group norm, float32 and no padding: a mean over two halves is the mean over the whole. Dice is a ratio of sums, hence the tolerance.
    folder, _ = trained
    alone = train(toy_run(**SETTINGS)).history
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    for one, two in zip(alone, lines, strict=True):
        assert two.keys() == one.keys()
        assert two["train/lr"] == one["train/lr"]
        for key in ("train/output", "train/loss", "val/loss"):
            assert two[key] == pytest.approx(one[key], rel=0.05), key


def test_each_row_is_reported_once_as_it_is_on_disk(trained: tuple[Path, list[dict[str, float]]]) -> None:
    folder, seen = trained
    assert seen == [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert json.loads((folder / "summary.json").read_text())["metrics"] == seen[-1]
    assert evaluate(folder)["val/miou"] == pytest.approx(seen[-1]["val/miou"])


def test_a_folder_that_holds_a_training_is_refused_before_any_worker_starts(trained: tuple[Path, list[dict[str, float]]]) -> None:
    with pytest.raises(ConfigError, match="must be a new folder, but holds a training"):
        train_distributed(toy_run(**SETTINGS), workers=2, output=trained[0])


@pytest.mark.parametrize(
    ("settings", "workers", "message"),
    [
        ({"optimizer__batch_size": 64, "data__kwargs": {"count": 64}}, 64, "must have 64 CPUs for 64 workers, but has 2; lower --workers"),
        ({}, 3, "must be a multiple of the 3 workers, but got 4"),
        ({}, 0, "`workers >= 1` must hold, but got 0"),
        ({"compute__device": "cuda"}, 2, "`compute.device` must be a device of the cluster, but got 'cuda'"),
    ],
)
def test_what_can_never_run_is_refused_at_once(own_ray: None, tmp_path: Path, settings: dict[str, Any], workers: int, message: str) -> None:
    if ray.cluster_resources().get("GPU"):
        pytest.skip("the messages are for a machine without a GPU")
    with pytest.raises(ConfigError, match=message):
        train_distributed(toy_run(**settings), workers=workers, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"data__kwargs": {"count": 7}, "optimizer__batch_size": 8},
            "the number of training samples.* must be a multiple of the 2 workers, but got 7",
        ),
        ({"data": {"kind": "camvid", "root": "no/such/folder"}}, "`data.root` must be CamVid's folder, but no/such/folder is no folder"),
        ({"data__kwargs": {"has_val": False}}, r"load\('val'\) of 'tests.train.toys:Bands' must work, but: RuntimeError: val must stay unseen"),
        ({"model__kwargs": {"dropout": 7.0}}, "model: 'tests.train.toys:Tiny' must work, but: ValueError: dropout probability"),
        ({"method__loss": ["dice", "brier", "dice"]}, "data, model and method must fit, but: `loss` must hold one loss a tap, but got 3 losses"),
    ],
)
def test_data_and_model_are_tried_before_ray_is_asked(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "nowhere:1")  # to ask would fail in another way
        patch.setattr(ray, "is_initialized", lambda: False)
        with pytest.raises(ValueError, match=message):
            train_distributed(toy_run(**settings), workers=2, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_mistake_that_only_workers_can_see_is_told_and_not_retried(own_ray: None, tmp_path: Path) -> None:
    log = tmp_path / "asked"
    run = toy_run(data={"import": "tests.train.toys:HereOnly", "pid": os.getpid(), "log": str(log)})
    with pytest.raises(ConfigError, match=r"load\('train'\) of 'tests.train.toys:HereOnly' must work, but: FileNotFoundError: no such folder"):
        train_distributed(run, workers=2, output=tmp_path / "run")
    assert 1 <= len(log.read_text().splitlines()) <= 2, "once a worker"


@pytest.mark.slow
def test_a_training_that_diverges_is_told_as_such_and_not_retried(own_ray: None, tmp_path: Path) -> None:
    run = toy_run(optimizer__lr=1e30, optimizer__batch_size=8, optimizer__warmup_epochs=0)
    with pytest.raises(FloatingPointError, match="val/loss must be finite, but got .* after epoch 1"):
        train_distributed(run, workers=2, output=tmp_path / "run")


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_is_replaced_and_training_goes_on_from_the_checkpoint(own_ray: None, tmp_path: Path) -> None:
    marker, seen = tmp_path / "killed", []
    model = {"import": "tests.train.toys:faulty", "marker": str(marker)}
    # Ranks get batches of four out of eight; the fourth step of two an epoch is in the second epoch.
    settings = {**SETTINGS, "data__kwargs": {"count": 16}, "optimizer__batch_size": 8}
    expected, reference = [], tmp_path / "unbroken"
    train_distributed(toy_run(**settings, model={**model, "fault": "none"}), workers=2, output=reference, report=expected.append)
    run = toy_run(**settings, model={**model, "fault": "kill", "at": 4})
    train_distributed(run, workers=2, output=tmp_path / "run", report=seen.append)
    assert marker.exists()
    assert [without_clock(row) for row in seen] == [without_clock(row) for row in expected]
    one, two = load(reference)["net"], load(tmp_path / "run")["net"]
    assert all(bool((one[key] == two[key]).all()) for key in one if key.endswith(("weight", "bias")))
