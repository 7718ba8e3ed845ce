import os
import pickle
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from imachsr.config.schema import ConfigError
from imachsr.train import checkpoint

STATE: dict[str, Any] = {"run": "{}", "num_classes": 3, "net": {"w": torch.arange(50.0)}, "optimizer": {}, "scheduler": {}, "history": "[]"}


class Bomb:
    """A pickle of this runs a command when it is read naively."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def test_what_is_saved_comes_back_and_nothing_else_lies_in_the_folder(tmp_path: Path) -> None:
    for factor in (1, 2):
        checkpoint.save(tmp_path, {**STATE, "net": {"w": factor * torch.arange(50.0)}})
    state = checkpoint.load(tmp_path)
    assert torch.equal(state["net"]["w"], 2 * torch.arange(50.0))
    assert {key: state[key] for key in ("run", "num_classes", "history")} == {"run": "{}", "num_classes": 3, "history": "[]"}
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.FILE]


KILLED = """
import os, pathlib, signal, sys
from imachsr.files import write_atomic
def write(file):
    file.write(b"x" * 100_000)
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
write_atomic(pathlib.Path(sys.argv[1]), write)
"""


def test_a_writer_killed_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, STATE)
    before = (tmp_path / checkpoint.FILE).read_bytes()
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / checkpoint.FILE)], timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / checkpoint.FILE).read_bytes() == before
    checkpoint.save(tmp_path, {**STATE, "num_classes": 4})
    assert checkpoint.load(tmp_path)["num_classes"] == 4


@pytest.mark.parametrize("form", ["torch", "legacy", "pickle"])
def test_code_in_a_checkpoint_is_refused_and_does_not_run(tmp_path: Path, form: str) -> None:
    marker, state = tmp_path / "ran", {"schema": checkpoint.SCHEMA, **STATE, "bomb": Bomb(tmp_path / "ran")}
    path = tmp_path / checkpoint.FILE
    if form == "pickle":
        path.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(ConfigError, match="must be a checkpoint of imachsr, but cannot be read"):
        checkpoint.load(tmp_path)
    assert not marker.exists()


def test_a_missing_checkpoint_is_told_with_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must hold checkpoint.pt, but does not; give the --output folder of a training"):
        checkpoint.load(tmp_path / "nowhere")


def test_a_truncated_or_foreign_file_is_a_config_error_wherever_it_ends(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, STATE)
    path, generator = tmp_path / checkpoint.FILE, random.Random(0)
    whole = path.read_bytes()
    broken = [whole[: len(whole) * part // 12] for part in range(12)]
    broken += [generator.randbytes(200) for _ in range(40)]
    broken += [pickle.dumps(list(range(30)))[:cut] for cut in range(1, 60, 3)]
    broken += [b"PK\x03\x04" + generator.randbytes(90), b"text of another program\n", b"a" * 300, pickle.dumps({"schema": 1}), pickle.dumps([1])]
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"checkpoint.pt must (be|have)") as caught:
            checkpoint.load(tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({**STATE, "schema": 99}, "must have schema 1, but has 99"),
        ({"model": torch.zeros(2)}, "must have schema 1, but has None"),
        (torch.zeros(3), "must have schema 1, but has None"),
        ({"schema": 1, "run": "{}", "net": {}}, "lacks num_classes, optimizer, scheduler, history"),
    ],
)
def test_a_file_of_another_version_or_program_is_refused(tmp_path: Path, state: Any, message: str) -> None:
    torch.save(state, tmp_path / checkpoint.FILE)
    with pytest.raises(ConfigError, match=message):
        checkpoint.load(tmp_path)
