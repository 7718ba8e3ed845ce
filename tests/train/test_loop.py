import contextlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imachsr.config.load import load_run
from imachsr.config.schema import ConfigError
from imachsr.data.splits import Selection
from imachsr.train import checkpoint
from imachsr.train.evaluate import evaluate
from imachsr.train.gallery import BEST
from imachsr.train.loop import Result, train
from tests.train.toys import toy_run, without_clock

# Everything that draws while training: dropout, augmentation, and a loss that samples pixels.
DRAWING = {"model__kwargs": {"dropout": 0.3}, "method__loss": "infonce", "method__schedule": "constant", "optimizer__epochs": 4}


def rows(result: Result) -> list[dict[str, float]]:
    return [without_clock(row) for row in result.history]


def weights(folder: Path) -> dict[str, Any]:
    return {key: value for key, value in checkpoint.load(folder)["net"].items() if isinstance(value, torch.Tensor)}


def assert_same_weights(one: Path, other: Path) -> None:
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    return folder, train(toy_run(**DRAWING), output=folder)


def test_the_same_seed_gives_bitwise_the_same_history_and_weights(unbroken: tuple[Path, Result], tmp_path: Path) -> None:
    folder, result = unbroken
    torch.manual_seed(12345)  # what the process drew before does not matter
    again = train(toy_run(**DRAWING), output=tmp_path / "run")
    assert rows(again) == rows(result)
    assert_same_weights(folder, tmp_path / "run")
    other = train(toy_run(**DRAWING, seed=1))
    assert rows(other) != rows(result)


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_a_training_resumed_after_an_epoch_gives_the_numbers_of_an_unbroken_one(unbroken: tuple[Path, Result], tmp_path: Path, epochs: int) -> None:
    folder, result = unbroken
    broken, seen = tmp_path / "run", []

    class StopError(Exception):
        pass

    def stop(row: dict[str, float]) -> None:
        if row["epoch"] == epochs:
            raise StopError

    with pytest.raises(StopError):
        train(toy_run(**DRAWING), output=broken, report=stop)
    assert len((broken / "metrics.jsonl").read_text().splitlines()) == epochs
    torch.manual_seed(999)
    resumed = train(toy_run(**DRAWING), output=broken, resume=True, report=seen.append)
    assert rows(resumed) == rows(result)
    assert [row["epoch"] for row in seen] == list(range(epochs + 1, 5))
    assert_same_weights(folder, broken)


def test_a_training_that_is_scored_now_and_then_is_the_same_training(unbroken: tuple[Path, Result], tmp_path: Path) -> None:
    folder, result = unbroken
    seldom = train(toy_run(**DRAWING, scoring__every=3), output=tmp_path / "run")
    scored = [row for row in rows(result) if row["epoch"] in (3, 4)]
    assert [row for row in rows(seldom) if "val/miou" in row] == scored
    unscored = [{key: value for key, value in row.items() if not key.startswith("val/")} for row in rows(result) if row["epoch"] in (1, 2)]
    assert [row for row in rows(seldom) if "val/miou" not in row] == unscored
    assert [json.loads(line).get("val/miou") for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()][:2] == [None, None]
    assert_same_weights(folder, tmp_path / "run")
    best = json.loads(checkpoint.load(tmp_path / "run", which="best")["history"])
    assert len(best) == max((row["val/miou"], row["epoch"]) for row in scored)[1]
    assert np.load(tmp_path / "run" / BEST)["epoch"] == len(best)


@pytest.mark.parametrize(("every", "then"), [(4, 1), (1, 4)])
def test_how_often_is_scored_may_be_changed_where_a_training_goes_on(unbroken: tuple[Path, Result], tmp_path: Path, every: int, then: int) -> None:
    class StopError(Exception):
        pass

    def stop(row: dict[str, float]) -> None:
        if row["epoch"] == 2:
            raise StopError

    with pytest.raises(StopError):
        train(toy_run(**DRAWING, scoring__every=every), output=tmp_path / "run", report=stop)
    resumed = train(toy_run(**DRAWING, scoring__every=then), output=tmp_path / "run", resume=True)
    assert ["val/miou" in row for row in resumed.history] == [every == 1, every == 1, then == 1, True]
    assert rows(resumed)[-1] == rows(unbroken[1])[-1]
    assert_same_weights(unbroken[0], tmp_path / "run")


def test_epochs_on_disk_that_were_not_reported_are_reported_first(unbroken: tuple[Path, Result], tmp_path: Path) -> None:
    folder, result = unbroken
    shutil.copytree(folder, tmp_path / "run")
    seen: list[dict[str, float]] = []
    train(toy_run(**DRAWING), output=tmp_path / "run", resume=True, reported=2, report=seen.append)
    assert seen == list(result.history[2:])


@pytest.mark.parametrize(
    ("change", "named"),
    [({"optimizer__lr": 1e-3}, "optimizer"), ({"seed": 4}, "seed"), ({"method__alpha": 0.1, "augment__flip": 0}, "method, augment")],
)
def test_other_settings_on_resume_are_refused_by_name(unbroken: tuple[Path, Result], tmp_path: Path, change: dict[str, Any], named: str) -> None:
    shutil.copytree(unbroken[0], tmp_path / "run")
    before = (tmp_path / "run" / "run.yaml").read_text()
    with pytest.raises(ConfigError, match=f"must be continued with the settings that it began with, but {named} changed; see run.yaml"):
        train(toy_run(**{**DRAWING, **change}), output=tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "run.yaml").read_text() == before


def test_name_and_compute_may_change_on_resume(unbroken: tuple[Path, Result], tmp_path: Path) -> None:
    shutil.copytree(unbroken[0], tmp_path / "run")
    resumed = train(toy_run(**DRAWING, name="other", compute__threads=None), output=tmp_path / "run", resume=True)
    assert resumed.history == unbroken[1].history


def test_the_layout_in_memory_may_change_on_resume(tmp_path: Path) -> None:
    def until(epochs: int, layout: str) -> None:
        def stop(row: dict[str, float]) -> None:
            if row["epoch"] == epochs:
                raise KeyError

        with contextlib.suppress(KeyError):  # the optimizer is a fused one, which goes through weights and moments as they lie
            train(toy_run(compute__channels_last=layout), output=tmp_path, resume=True, report=stop)

    until(1, "on")
    until(2, "off")
    until(3, "on")
    train(toy_run(), output=tmp_path / "unbroken")
    moved = weights(tmp_path)
    for key, value in weights(tmp_path / "unbroken").items():
        torch.testing.assert_close(moved[key], value, rtol=1e-4, atol=1e-5)


def test_the_time_of_a_training_is_that_of_all_its_processes_and_stays_when_it_is_over(tmp_path: Path) -> None:
    def break_off(step: int, steps: int) -> None:
        time.sleep(0.3)
        if step == 5:
            raise KeyError

    run, summary = toy_run(), tmp_path / "summary.json"
    with pytest.raises(KeyError):
        train(run, output=tmp_path, on_step=break_off)
    train(run, output=tmp_path, resume=True)
    assert 4 * 0.3 < json.loads(summary.read_text())["wall_s"] < 10  # the fifth step was not saved
    before = summary.read_bytes(), summary.stat().st_mtime_ns
    train(run, output=tmp_path, resume=True)
    assert (summary.read_bytes(), summary.stat().st_mtime_ns) == before
    summary.unlink()  # killed before it was written
    train(run, output=tmp_path, resume=True)
    assert json.loads(summary.read_text())["wall_s"] > 4 * 0.3


def test_a_folder_that_holds_a_training_is_refused_and_left_as_it_is(unbroken: tuple[Path, Result]) -> None:
    folder, _ = unbroken
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="must be a new folder, but holds a training; give another --output, or continue it with --resume"):
        train(toy_run(), output=folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_the_files_of_a_training_say_what_ran_and_what_came_out(unbroken: tuple[Path, Result]) -> None:
    folder, result = unbroken
    pictures = {"samples.npz", "evaluation.npz", "evaluation_best.npz"}
    assert {path.name for path in folder.iterdir()} == {"run.yaml", "metrics.jsonl", "checkpoints", "summary.json", *pictures}
    assert load_run(folder / "run.yaml") == toy_run(**DRAWING)
    assert [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] == list(result.history)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["metrics"] == result.metrics == result.history[-1]
    assert summary["taps"] == list(result.taps)
    assert (summary["schema"], summary["name"], summary["epochs"]) == (1, "run", 4)
    assert summary["parameters"] == sum(value.numel() for key, value in weights(folder).items() if key.startswith("backbone."))


def test_rows_have_the_keys_that_are_documented(unbroken: tuple[Path, Result]) -> None:
    _, result = unbroken
    keys = {"epoch", "val/miou", "val/boundary_iou", "val/accuracy", "val/ece", "val/nll", "val/loss", "val/iou/road", "val/iou/sky", "val/iou/tree"}
    keys |= {"train/loss", "train/output", "train/side", "train/entropy", "train/lr", "time/step_ms", "time/epoch_s", "images_per_s"}
    keys |= {"train/nonfinite", "memory/peak_mib"}
    keys |= {f"tap/{address}/{part}" for address in result.taps for part in ("std", "side", "entropy")}
    assert len(result.taps) == 2
    for number, row in enumerate(result.history, 1):
        assert row.keys() == keys
        assert row["epoch"] == number
        assert row["train/loss"] == pytest.approx(row["train/output"] + row["train/side"] + row["train/entropy"], rel=1e-5)
        assert row["val/miou"] == pytest.approx(sum(row[f"val/iou/{name}"] for name in ("road", "sky", "tree")) / 3)
        method = toy_run(**DRAWING).method
        assert row["train/side"] == pytest.approx(method.alpha / 2 * sum(row[f"tap/{address}/side"] for address in result.taps), rel=1e-5)
        assert row["train/entropy"] == pytest.approx(method.beta / 2 * sum(row[f"tap/{address}/entropy"] for address in result.taps), rel=1e-5)


def test_output_only_rows_have_no_side_and_no_tap() -> None:
    result = train(toy_run(method__alpha=0, method__beta=0, optimizer__epochs=1))
    assert result.taps == ()
    assert not [key for key in result.metrics if key.startswith(("tap/", "train/side", "train/entropy"))]
    assert result.metrics["train/loss"] == result.metrics["train/output"]


def test_a_class_that_is_neither_labelled_nor_predicted_has_no_key_and_no_share_in_the_mean() -> None:
    scripted = {"import": "tests.train.toys:Scripted", "shares": [1.0], "steps": 2}
    run = toy_run(data__kwargs={"fourth": "sign"}, model=scripted, method__alpha=0, method__beta=0, optimizer__epochs=1)
    assert run.data.num_classes == 4
    row = train(run).metrics
    assert {key for key in row if key.startswith("val/iou/")} == {"val/iou/road", "val/iou/sky", "val/iou/tree"}
    assert row["val/miou"] == 100


def test_training_learns() -> None:
    result = train(toy_run(optimizer__epochs=12))
    assert result.metrics["val/miou"] > 70  # a guess has 20, one class for all at most 11
    assert result.metrics["train/loss"] < result.history[0]["train/loss"] / 2


@pytest.mark.parametrize(("at", "epochs"), [(1, 0), (3, 1)])
def test_a_loss_that_is_not_finite_stops_the_training_and_is_named(tmp_path: Path, at: int, epochs: int) -> None:
    run = toy_run(model={"import": "tests.train.toys:faulty", "fault": "nan", "at": at})
    with pytest.raises(FloatingPointError, match="every term must be finite, but output loss is nan"):
        train(run, output=tmp_path / "run")
    # What was learnt before the fault is kept, and the faulty epoch is not on disk.
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == epochs
    assert checkpoint.exists(tmp_path / "run") == (epochs > 0)
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.filterwarnings("ignore:`optimizer.batch_size` must be at most:UserWarning")
@pytest.mark.parametrize("evaluate_on", ["val", "select"])
def test_weights_that_the_last_step_spoilt_are_an_error_and_not_a_result(tmp_path: Path, evaluate_on: Any) -> None:
    # One step an epoch: its loss is taken before it, so only the score can tell.
    settings: dict[str, Any] = {"optimizer__lr": 1e30, "optimizer__batch_size": 64, "optimizer__warmup_epochs": 0, "data__kwargs": {"count": 24}}
    output, seen = tmp_path / "run", []
    with pytest.raises(FloatingPointError, match=f"{evaluate_on}/loss must be finite, but got (nan|inf) after epoch 1; lower optimizer.lr"):
        train(toy_run(**settings), output=output, evaluate_on=evaluate_on, report=seen.append)
    assert seen == []
    assert not checkpoint.exists(output)
    assert (output / "metrics.jsonl").read_text() == ""


def test_a_batch_larger_than_the_data_trains_on_all_of_them_in_one_step() -> None:
    message = "`optimizer.batch_size` must be at most 8, the number of training samples, but got 64; a step takes all 8"
    with pytest.warns(UserWarning, match=message) as told:
        result = train(toy_run(optimizer__batch_size=64, optimizer__epochs=2))
    assert len(told) == 1
    schedule = [train(toy_run(optimizer__batch_size=8, optimizer__epochs=2)).history, result.history]
    assert [[without_clock(row) for row in history] for history in schedule] == [rows(result)] * 2


def test_a_search_s_score_never_touches_val() -> None:
    run = toy_run(data__kwargs={"has_val": False, "count": 24}, optimizer__epochs=1)
    with pytest.raises(
        ValueError, match=r"load\('val'\) of 'tests.train.toys:Bands' must work, but: RuntimeError: val must stay unseen \(toys.py:\d+\)"
    ):
        train(run)
    result = train(run, evaluate_on="select", selection=Selection(fraction=0.25, blocks=1, guard=1))
    assert not [key for key in result.metrics if key.startswith("val/")]
    assert 0 <= result.metrics["select/miou"] <= 100


def test_the_score_of_evaluate_is_that_of_the_last_row(unbroken: tuple[Path, Result]) -> None:
    folder, result = unbroken
    row = evaluate(folder)
    assert row == {key: value for key, value in result.metrics.items() if key.startswith("val/")}
    other = evaluate(folder, split="test")
    assert {key.replace("test/", "val/") for key in other} == row.keys()
    assert other["test/loss"] != row["val/loss"]
    assert evaluate(folder, overrides=["data.kwargs.num_val=2"]) != row


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.kwargs.has_unused=true"],
            "must begin with data, compute, output_loss, or be scoring.batch_size, since .* trained already, but got model.kwargs.has_unused",
        ),
        (["optimizer.lr=3"], "but got optimizer.lr"),
        (["data.kwargs.num_val=2", "seed=3"], "but got seed"),
        (["method.alpha=0"], "but got method.alpha"),
        (["data.kwargs"], "must have the form key=value"),
    ],
)
def test_evaluating_on_what_does_not_fit_is_told(unbroken: tuple[Path, Result], overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate(unbroken[0], overrides=overrides)


def test_what_changes_no_weights_may_be_given(unbroken: tuple[Path, Result]) -> None:
    plain = evaluate(unbroken[0], overrides=["compute.channels_last=off"])
    assert plain["val/miou"] == pytest.approx(unbroken[1].metrics["val/miou"])
    smooth = evaluate(unbroken[0], overrides=["output_loss.label_smoothing=0.5"])
    assert smooth["val/miou"] == unbroken[1].metrics["val/miou"]
    assert smooth["val/loss"] > plain["val/loss"]


def test_a_model_whose_code_has_changed_since_is_told_with_what_is_missing(unbroken: tuple[Path, Result], tmp_path: Path) -> None:
    state = checkpoint.load(unbroken[0])
    state["net"] = {key.replace("backbone.head", "backbone.tail"): value for key, value in state["net"].items()}
    checkpoint.save(tmp_path, state, step=state["step"])
    with pytest.raises(ConfigError, match=r"must be the one that was trained, but: .*Missing .*head.weight.*Unexpected .*tail.weight"):
        evaluate(tmp_path)


def test_an_unknown_split_is_told(unbroken: tuple[Path, Result]) -> None:
    with pytest.raises(ValueError, match="`split` must be one of"):
        evaluate(unbroken[0], split="vall")  # type: ignore[arg-type]


@pytest.mark.long
def test_a_real_model_on_scenes_is_trained_resumed_and_evaluated_the_same(tmp_path: Path) -> None:
    run = toy_run(
        data={"kind": "scenes", "size": [32, 32], "num_train": 8, "num_val": 4},
        model={"kind": "smp", "encoder": "tu-mobilenetv3_small_100"},
        optimizer__epochs=2,
    )
    whole = train(run, output=tmp_path / "whole")
    copy = tmp_path / "copy"

    class StopError(Exception):
        pass

    def stop(row: dict[str, float]) -> None:
        raise StopError

    with pytest.raises(StopError):
        train(run, output=copy, report=stop)
    assert rows(train(run, output=copy, resume=True)) == rows(whole)
    assert_same_weights(copy, tmp_path / "whole")  # BatchNorm's statistics too
    assert evaluate(copy)["val/miou"] == whole.metrics["val/miou"]
