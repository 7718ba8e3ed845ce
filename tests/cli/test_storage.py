import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.command import SCENES, SMALL, Cli, one_error

TRAIN = ["train", SCENES, *SMALL, "--wandb", "disabled", "--storage", "kept"]


@pytest.mark.long
def test_a_training_is_kept_in_a_storage_and_goes_on_from_there(run: Cli, tmp_path: Path) -> None:
    ran = run(*TRAIN, "--output", "out")
    assert ran.code == 0, ran.err
    uri = (tmp_path / "kept").as_uri()
    assert f"{uri} holds the checkpoint of step 2, and all files\n" in ran.err
    assert (tmp_path / "kept/summary.json").read_bytes() == (tmp_path / "out/summary.json").read_bytes()
    assert (tmp_path / "kept/reported").read_text() == "1\n"
    refused = one_error(run(*TRAIN, "--output", "other"))
    assert f"{uri} must be a new folder, but holds a training; give another --storage, or continue it with --resume" in refused
    changed = one_error(run(*TRAIN, "optimizer.lr=0.5", "--output", "other", "--resume"))
    assert "holds one with other settings (optimizer)" in changed
    again = run(*TRAIN, "--output", "other", "--resume", "--json")
    assert again.code == 0, again.err
    assert "epoch 1/1" not in again.err, "it was reported already"
    assert json.loads(again.out)["metrics"] == json.loads((tmp_path / "out/summary.json").read_text())["metrics"]
    assert run("evaluate", "other").code == 0


@pytest.mark.slow
def test_a_training_that_is_stopped_says_what_is_kept_and_how_to_go_on(started: Callable[..., "subprocess.Popen[str]"], tmp_path: Path) -> None:
    process = started(*TRAIN[:2], "optimizer.epochs=50", *SMALL[1:], *TRAIN[-4:], "--output", "out", until="epoch 2/50")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    said = (tmp_path / "err").read_text()
    assert f"{(tmp_path / 'kept').as_uri()} holds the checkpoint of step " in said
    assert "and all files" in said
    assert "--storage kept" in said.partition("to go on: ")[2]


def test_doctor_looks_at_a_storage_without_a_cluster(run: Cli, tmp_path: Path) -> None:
    ran = run("doctor", "--json", "--storage", (tmp_path / "kept").as_uri())
    (found,) = (check for check in json.loads(ran.out) if check["name"] == "storage here")
    assert found["state"] == "ok"
    ran = run("doctor", "--json", "--storage", "file:///proc/no/such")
    assert ran.code == 1
    assert "must be writable and readable, but: " in next(check["finding"] for check in json.loads(ran.out) if check["name"] == "storage here")
