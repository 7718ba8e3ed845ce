"""A study's runs where runs are tracked."""

import json
from pathlib import Path

import pytest

from imachsr.cli.wandb import sync
from imachsr.config.load import dump_yaml, run_to_dict
from imachsr.config.schema import ConfigError
from imachsr.files import write_text
from imachsr.study.folder import Study
from imachsr.study.tracked import recorded
from tests.study.rows import study
from tests.tracking.server import Server

EPOCHS = [
    {"epoch": 1, "val/miou": 10.0, "train/loss": 2.0, "val/iou/sky": None},
    {"epoch": 2, "val/miou": 20.0, "train/loss": 1.0, "val/iou/sky": 50.0},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run, and one that failed."""
    with Study(plan=study(seeds=[4]), folder=tmp_path / "s") as held:
        first, second = held.todo()[:2]
        for each in (first, second):
            held.output(each).mkdir(parents=True)
            write_text(held.output(each) / "run.yaml", dump_yaml(run_to_dict(each.run)) if each.run else "")
            write_text(held.output(each) / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in EPOCHS))
        held.note(first, {"scores": {"val/miou": 20.0}, "epochs": 2, "facts": {"torch": "2.14.1"}}, "d")
        held.note(second, {"error": "FloatingPointError: loss"}, "d")
    return tmp_path / "s"


def test_runs_are_read_back_as_they_were_told(folder: Path) -> None:
    one, failed = recorded(folder)
    assert (one.start.group, one.start.job_type, one.start.tags, one.state) == ("toy", "study", ("small", "output_only"), "finished")
    assert one.start.config["optimizer"]["epochs"] == 10
    assert (one.start.config["data_fingerprint"], one.start.config["torch"]) == ("d", "2.14.1")
    assert one.rows == [{name: value for name, value in row.items() if value is not None} for row in EPOCHS]
    assert one.summary == {"val/miou": 20.0}
    assert (failed.state, failed.start.tags[1]) == ("failed", "homogeneous")
    assert one.start.id != failed.start.id


def test_a_study_that_was_never_tracked_is_brought_to_the_server(folder: Path, server: Server) -> None:
    one, failed = recorded(folder)
    sync(folder, wandb_project="streets")
    assert {server.runs[each.start.id]["jobType"] for each in (one, failed)} == {"study"}
    assert server.exits == {one.start.id: 0, failed.start.id: 1}
    assert [row["val/miou"] for row in server.history[one.start.id]] == [10.0, 20.0]
    assert server.unknown == []


def test_a_study_without_a_run_is_told(tmp_path: Path) -> None:
    with Study(plan=study(), folder=tmp_path / "s"):
        pass
    with pytest.raises(ConfigError, match=r"must hold a study of which a run has ended, but has no runs.csv yet"):
        recorded(tmp_path / "s")
