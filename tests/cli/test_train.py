import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

from imachsr import console
from imachsr.config.folder import claimed
from imachsr.config.load import dump_yaml, load_run, run_to_dict
from tests.cli.command import ROOT, SCENES, SMALL, Cli, Ran, one_error, process
from tests.data.files import mask, write_image, write_mask


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    """A training, and what its command said."""
    at = tmp_path_factory.mktemp("train")
    return at / "out", process("train", SCENES, *SMALL, "--output", "out", "--json", cwd=at)


def test_train_prints_one_json_document_and_its_progress_elsewhere(trained: tuple[Path, Ran]) -> None:
    folder, ran = trained
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert {key: value for key, value in found.items() if key != "output"} == json.loads((folder / "summary.json").read_text())
    assert found["epochs"] == 1
    lines = ran.err.splitlines()
    assert lines[0] == "training scenes: 1 epochs, results in out"
    assert re.fullmatch(r"epoch 1/1  val/miou +[\d.]+ %  val/loss [\d.]+  train/loss [\d.]+  [\d.]+ s", lines[1])
    assert "\x1b" not in ran.err


@pytest.mark.long
def test_an_epoch_that_is_not_scored_is_told_without_scores(run: Cli, tmp_path: Path) -> None:
    ran = run("train", SCENES, *SMALL, "optimizer.epochs=2", "scoring.every=2", "--output", str(tmp_path / "out"), "--wandb", "disabled")
    assert ran.code == 0, ran.err
    lines = [line for line in ran.err.splitlines() if line.startswith("epoch")]
    assert re.fullmatch(r"epoch 1/2  train/loss [\d.]+  [\d.]+ s", lines[0])
    assert re.match(r"epoch 2/2  val/miou +[\d.]+ %  val/loss", lines[1])


def test_train_leaves_a_run_in_wandb(trained: tuple[Path, Ran]) -> None:
    from tests.tracking import records

    folder, _ = trained
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    found = records.records(path)
    (start,) = records.of(found, "run")
    assert (start.job_type, start.run_id) == ("train", (folder / "wandb-id").read_text())
    assert [row["epoch"] for row in records.rows(found)] == [1]
    assert [ending.exit_code for ending in records.of(found, "exit")] == [0]


@pytest.mark.long
def test_train_without_an_output_takes_a_new_folder_each_time(run: Cli, tmp_path: Path) -> None:
    for folder in ("runs/scenes", "runs/scenes-2"):
        ran = run("train", SCENES, *SMALL, "--wandb", "disabled")
        assert ran.code == 0, ran.err
        assert ran.out.splitlines()[-1].endswith(f"in {folder}")
        assert ran.err.splitlines()[-1] == f"imachsr evaluate {folder}"
        assert list((tmp_path / folder / "checkpoints").glob("*.pt"))
        assert not (tmp_path / folder / "wandb").exists()


@pytest.mark.long
def test_trainings_that_begin_at_once_take_a_folder_each(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "imachsr", "train", str(SCENES), *SMALL, "--wandb", "disabled"]
    both = [
        subprocess.Popen([*command, f"seed={seed}"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) for seed in (1, 2)
    ]
    folders = [each.communicate(timeout=300)[0].split()[-1] for each in both]
    assert sorted(folders) == ["runs/scenes", "runs/scenes-2"]
    for seed, folder in enumerate(folders, 1):
        assert yaml.safe_load((tmp_path / folder / "run.yaml").read_text())["seed"] == seed
        assert (tmp_path / folder / "summary.json").exists()


def test_a_folder_in_use_or_of_other_things_is_left_alone(run: Cli, tmp_path: Path) -> None:
    with claimed(tmp_path / "out"):
        for more in ([], ["--resume"]):
            assert "out must not be in use, but another command works in it" in one_error(run("train", SCENES, *SMALL, "--output", "out", *more))
    (tmp_path / "own").mkdir()
    (tmp_path / "own/run.yaml").write_text("mine: 1")
    for more in ([], ["--resume"]):
        assert "own must be a new folder, but holds run.yaml; give another --output" in one_error(
            run("train", SCENES, *SMALL, "--output", "own", *more)
        )
    assert [(path.name, path.read_text()) for path in (tmp_path / "own").iterdir()] == [("run.yaml", "mine: 1")]


def test_a_training_of_before_marks_goes_on_and_no_other_folder_does(run: Cli, tmp_path: Path) -> None:
    for name, settings in (("same", []), ("other", ["seed=9"])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.yaml").write_text(dump_yaml(run_to_dict(load_run(SCENES, [*SMALL, *settings]))))
    assert run("train", SCENES, *SMALL, "--output", "same", "--resume", "--wandb", "disabled").code == 0
    assert "other must be a new folder, but holds run.yaml" in one_error(run("train", SCENES, *SMALL, "--output", "other", "--resume"))
    shutil.rmtree(tmp_path / "same/checkpoints")  # to save room
    assert "same must be a new folder, but holds a training" in one_error(run("train", SCENES, *SMALL, "--output", "same"))


def test_a_mistake_that_shows_late_leaves_no_folder(run: Cli, tmp_path: Path) -> None:
    assert "resnet999" in one_error(run("train", SCENES, *SMALL, "model.encoder=resnet999", "--wandb", "disabled"))
    assert not (tmp_path / "runs/scenes").exists()
    assert "must be a folder that can be made" in one_error(run("train", SCENES, *SMALL, "--output", "/proc/none", "--wandb", "disabled"))


def test_a_training_goes_on_where_it_was_broken_off(trained: tuple[Path, Ran], run: Cli) -> None:
    folder, _ = trained
    refused = one_error(run("train", SCENES, *SMALL, "--output", folder))
    assert "must be a new folder" in refused
    assert "--resume" in refused
    changed = one_error(run("train", SCENES, *SMALL, "optimizer.lr=0.5", "--output", folder, "--resume"))
    assert "optimizer changed" in changed
    ran = run("train", SCENES, *SMALL, "--output", folder, "--resume", "--json", "--wandb", "disabled")
    assert json.loads(ran.out)["metrics"] == json.loads((folder / "metrics.jsonl").read_text())


@pytest.mark.long
def test_an_epoch_that_ended_before_it_was_reported_is_reported_on_resume_and_no_other(run: Cli, tmp_path: Path) -> None:
    from imachsr.train import loop
    from tests.tracking import records

    def fail_after_checkpoint_2(output: Path, history: list[dict[str, float]]) -> None:
        if len(history) == 2:
            raise RuntimeError("the disk went away")

    command = ("train", SCENES, *SMALL, "optimizer.epochs=3", "--output", tmp_path / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_write_history", fail_after_checkpoint_2)
        assert "the disk went away" in run(*command).err
    assert run(*command, "--resume").code == 0
    assert run(*command, "--resume").code == 0  # it is over
    files = sorted((tmp_path / "out").glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime)
    assert [[row["epoch"] for row in records.rows(records.records(path))] for path in files] == [[1], [2, 3]]


def test_evaluate_scores_the_data_that_is_asked_for(trained: tuple[Path, Ran], run: Cli) -> None:
    folder, ran = trained
    same = json.loads(run("evaluate", folder, "--json").out)
    assert same["val/miou"] == pytest.approx(json.loads(ran.out)["metrics"]["val/miou"])
    shifted = json.loads(run("evaluate", folder, "data.domain=shifted", "--json").out)
    assert shifted["val/loss"] != same["val/loss"]
    assert set(json.loads(run("evaluate", folder, "--split", "train", "--json").out)) >= {"train/miou", "train/loss"}
    text = run("evaluate", folder).out
    assert f"{same['val/miou']:.2f} %" in text
    assert f"{same['val/loss']:.4f}" in text


def test_evaluate_tells_how_often_it_is_right_by_how_sure_it_is(trained: tuple[Path, Ran], run: Cli) -> None:
    folder, _ = trained
    row = json.loads(run("evaluate", folder, "--reliability", "--json").out)
    bins = row["val/reliability"]
    pixels = sum(each["pixels"] for each in bins)
    assert sum(each["pixels"] * each["right"] for each in bins) / pixels == pytest.approx(row["val/accuracy"])
    assert sum(each["pixels"] * abs(each["right"] - each["confidence"]) for each in bins) / pixels == pytest.approx(row["val/ece"])
    shown = run("evaluate", folder, "--reliability").out
    assert all(f"{each['confidence']:.2f}" in shown and str(each["pixels"]) in shown for each in bins)
    both = run("evaluate", folder, "--reliability", "--corruptions", "fog")
    assert both.code == 2
    assert "must go without --corruptions" in both.err


@pytest.mark.long
def test_export_model_writes_what_it_says(trained: tuple[Path, Ran], run: Cli, tmp_path: Path) -> None:
    folder, _ = trained
    ran = run("export-model", folder)
    assert ran.code == 0, ran.err
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    assert {name.partition(".")[0] for name in weights} == {"encoder", "decoder", "segmentation_head"}
    for wording in ("model.pt (state-dict, ", "float32 [B, 3, 32, 32], RGB, (x / 255 - mean) / std"):
        assert wording in ran.out
    assert re.search(r"classes .* 9 ", ran.out)
    ran = run("export-model", folder, "--format", "exported", "--which", "best", "--size", 64, 96, "--json")
    found = json.loads(ran.out)
    wanted = {"out": "model.pt2", "format": "exported", "num_classes": 9, "input_size": [64, 96], "is_dynamic_batch": False, "is_ema": False}
    assert wanted.items() <= found.items()
    assert found["difference"] < 1e-4
    assert tuple(torch.export.load(tmp_path / "model.pt2").module()(torch.zeros(1, 3, 64, 96)).shape) == (1, 9, 64, 96)
    assert "model.pt must not exist yet, but does" in one_error(run("export-model", folder))


def test_nothing_is_announced_that_cannot_begin(trained: tuple[Path, Ran], run: Cli, tmp_path: Path) -> None:
    folder, _ = trained
    (tmp_path / "empty").mkdir()
    for args in (
        ["train", SCENES, *SMALL, "--output", folder],
        ["train", ROOT / "launch/camvid.yaml", "--data", "empty"],
        ["search", ROOT / "search_spaces/camvid.yaml", "--data", "empty"],
    ):
        ran = run(*args)
        one_error(ran)
        assert "results in" not in ran.err


@pytest.mark.long
def test_files_are_decoded_once_with_a_bar_on_a_terminal_and_what_is_skipped_is_told_once(
    run: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split, count in (("train", 11), ("val", 2), ("test", 2)):
        for number in range(count):
            write_image(tmp_path / f"data/{split}/images/{number}.png", number)
            write_mask(tmp_path / f"data/{split}/masks/{number}.png", mask(3, number))
    (tmp_path / "data/train/images/4.png").write_text("broken")
    (tmp_path / "run.yaml").write_text(
        "data: {kind: folder, root: data, class_names: [a, b, c], size: [32, 32], cache: cache, on_error: skip}\n"
        "optimizer: {epochs: 1, batch_size: 4}\n"
    )
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(console, "people", Console(stderr=True, force_terminal=True, width=80))
    monkeypatch.setattr(console, "BAR_AFTER_S", 0.0)
    ran = run("train", "run.yaml", "--output", "out", "--wandb", "disabled")
    assert ran.code == 0, ran.err
    text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", ran.err)
    assert re.search(r"decoding val .* 1/2 ", text)
    assert re.search(r"decoding train .* 1/11 ", text)
    assert text.count("note: 1 of 11 samples are skipped") == 1
    decoded = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert "decoding" not in run("evaluate", "out", "--split", "val").err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == decoded
    assert "decoding test" in run("evaluate", "out", "--split", "test").err


def test_a_training_that_fails_is_exit_code_1(run: Cli, tmp_path: Path) -> None:
    (tmp_path / "diverging.py").write_text(
        "calls = []\n"
        "def loss(output, labels, ignore_index):\n"
        "    calls.append(1)\n"
        "    return output.mean() * (float('nan') if len(calls) > 3 else 1.0)\n"
    )
    ran = run("train", SCENES, *SMALL, "optimizer.epochs=3", "output_loss.import=diverging:loss", "--output", "out", "--wandb", "disabled")
    assert (ran.code, ran.out) == (1, "")
    assert "failed: " in ran.err
    assert "IMACHSR_TRACEBACK=1 shows where" in ran.err
    assert "Traceback" not in ran.err


def test_a_loss_of_the_users_that_raises_while_training_is_told_with_its_line(run: Cli, tmp_path: Path) -> None:
    (tmp_path / "raising.py").write_text(
        "calls = []\n"
        "def loss(output, labels, ignore_index):\n"
        "    calls.append(1)\n"
        "    if len(calls) > 1:\n"
        "        raise KeyError('second step')\n"
        "    return output.mean()\n"
    )
    ran = run("train", SCENES, *SMALL, "output_loss.import=raising:loss", "--output", "out", "--wandb", "disabled")
    assert (ran.code, ran.out) == (1, "")
    assert "failed: KeyError: 'second step' (raising.py:5)" in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.long
def test_an_interrupted_training_says_how_it_goes_on(started: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    long = [*SMALL[1:], "optimizer.epochs=500"]
    untracked = ["--wandb", "disabled", "--wandb-project", "my streets"]
    training = started("train", SCENES, *long, "--output", "my out", *untracked, until=r"epoch 2/500")
    os.kill(training.pid, signal.SIGINT)
    out, _ = training.communicate(timeout=60)
    err = (tmp_path / "err").read_text()
    assert (training.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "interrupted"
    (hint,) = [line.removeprefix("to go on: ") for line in err.splitlines() if line.startswith("to go on: ")]
    assert shlex.join(untracked) in hint
    rows = len((tmp_path / "my out/metrics.jsonl").read_text().splitlines())

    words = hint.replace("imachsr", f"{sys.executable} -m imachsr", 1)
    again = subprocess.Popen(["bash", "-c", f"exec {words}"], cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert again.stderr
    first = next(line for line in again.stderr if line.startswith("epoch"))
    again.kill()
    again.communicate()
    assert first.startswith(f"epoch {rows + 1}/500")
