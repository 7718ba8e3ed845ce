"""The command that compares arms over paired seeds, from its file to its tables."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from imachsr.files import write_text
from imachsr.study.rows import read
from tests.cli.command import QUICK, ROOT, SCENES, Cli, one_error, process

ABLATION = ROOT / "search_spaces/ablation.yaml"
TOY = """
name: toy
run:
  data: {kind: scenes, num_train: 8, num_val: 4, size: [32, 32]}
  optimizer: {epochs: 3, batch_size: 4}
arms:
  - {name: output_only, set: {method.alpha: 0, method.beta: 0}}
  - {name: full, set: {method.loss: prototype}}
cells:
  - {name: whole}
  - {name: half, set: {subset.share: 0.5}, seeds: [1]}
  - {name: timed, equal: time, like: whole}
seeds: [1, 2]
primary: {cell: whole, arm: full}
charts: [{over: subset.share, cells: [half, whole]}]
effects: [{cell: whole, arm: full, key: method.loss, values: [dice], seeds: [1]}]
against_itself: {cell: half, seeds: [7]}
also_on: {shifted: {data.domain: shifted}}
corruptions: {names: [fog], severities: [3]}
"""


BARE = ["cells=[{name: whole}]", "charts=[]", "against_itself=null", "effects=[]", "primary=null"]


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    write_text(tmp_path / "toy.yaml", TOY)
    return tmp_path / "toy.yaml"


@pytest.mark.long
def test_a_study_survives_a_kill_and_its_rows_stand_for_its_runs(toy: Path, tmp_path: Path, started: Callable[..., "subprocess.Popen[str]"]) -> None:
    command = ("study", "toy.yaml", "--output", "s", "--wandb", "disabled")
    first = started(*command, until="finished")
    os.kill(first.pid, signal.SIGKILL)
    first.wait(timeout=60)
    before = (tmp_path / "s/runs.csv").read_text().splitlines()
    ran = process(*command, "--json", cwd=tmp_path)
    assert ran.code == 0, ran.err
    found, rows = json.loads(ran.out), read(tmp_path / "s/runs.csv")
    assert (tmp_path / "s/runs.csv").read_text().splitlines()[: len(before)] == before, "what had ended is not run again"
    assert found["done"] == found["total"] == len(rows)
    assert len({(row.key, row.seed) for row in rows}) == len(rows)
    assert {row.cell for row in rows} <= {"whole", "half", "timed"}
    assert {row.taps for row in rows if row.arm == "output_only"} == {0}
    assert all(row.taps > 0 for row in rows if row.arm == "full")
    for row in rows:
        assert {"val/miou", "val/ece", "val/nll", "val/boundary_iou", "shifted/miou", "corrupted/miou", "time/step_ms", "wall_s"} <= set(row.scores)
    comparisons = {(each["cell"], each["arm"]): each for each in found["comparisons"]}
    assert set(comparisons) == {("whole", "full"), ("half", "full"), ("timed", "full")}
    values = {(row.cell, row.arm, row.seed): row.scores["val/miou"] for row in rows if not row.setting}
    assert comparisons["half", "full"]["differences"]["1"] == pytest.approx(values["half", "full", 1] - values["half", "output_only", 1], abs=1e-5)
    dice = next(row for row in rows if row.setting == "method.loss=dice")
    assert found["effects"][0]["values"][0]["each"] == [pytest.approx(dice.scores["val/miou"] - values["whole", "output_only", 1], abs=1e-5)]
    assert (found["against_itself"]["runs"], found["against_itself"]["of"]) == (2, 2)
    assert not list((tmp_path / "s/runs").glob("*/checkpoints")), "checkpoints would fill the disk"
    # Anyone with the rows gets the same tables, without data or a run.
    again = process("study", "toy.yaml", "--rows", "s/runs.csv", "--no-run", "--output", "t", cwd=tmp_path)
    assert again.code == 0, again.err
    for name in ("study.json", "differences.svg", "gain_over_subset_share.svg"):
        assert (tmp_path / "t" / name).read_bytes() == (tmp_path / "s" / name).read_bytes(), name
    told = (tmp_path / "t/study.md").read_text()
    own, proviso = told.rstrip("\n").rsplit("\n", 1)
    assert own + "\n" == (tmp_path / "s/study.md").read_text()
    assert proviso == f"* {len(rows)} rows were made elsewhere: that `primary` was declared before is the word of the study's file alone."


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_signal_saves_what_runs_and_the_printed_command_goes_on(
    number: int, code: int, toy: Path, tmp_path: Path, started: Callable[..., "subprocess.Popen[str]"]
) -> None:
    long = ("run.optimizer.epochs=40", "run.data.num_train=32", "cells=[{name: whole}]", "charts=[]", "against_itself=null", "effects=[]")
    running = started("study", "toy.yaml", *long, "--output", "s", "--wandb", "disabled", until="runs at a time")
    wait_for_rows(tmp_path / "s", running)
    running.send_signal(number)
    running.communicate(timeout=120)
    err = (tmp_path / "err").read_text()
    assert running.returncode == code, err
    assert "Traceback" not in err
    assert "logging.cc" not in err
    assert "to go on: imachsr study toy.yaml" in err
    kept = {path.parent.name: len(path.read_text().splitlines()) for path in (tmp_path / "s/runs").glob("*/metrics.jsonl")}
    assert kept
    assert list((tmp_path / "s/runs").glob("*/checkpoints/*"))
    ran = process("study", "toy.yaml", *long, "--output", "s", "--wandb", "disabled", "--quiet", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert {row.epochs for row in read(tmp_path / "s/runs.csv")} == {40}


def wait_for_rows(folder: Path, running: "subprocess.Popen[str]") -> None:
    """Until an epoch of a run is on disk."""
    import time

    end = time.monotonic() + 120
    while not any(path.read_text().count("\n") >= 2 for path in folder.glob("runs/*/metrics.jsonl")):
        assert time.monotonic() < end
        assert running.poll() is None
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("args", "wording"),
    [
        (["none.yaml"], "none.yaml"),
        (["toy.yaml", "--cell", "hole"], "--cell must name a cell of the study, but got 'hole'; nearest: 'whole'"),
        (["toy.yaml", "--hours", "0"], "`--hours > 0` must hold, but got 0"),
        (["toy.yaml", "--rows", "none.csv"], "none.csv must be a CSV file of a study's runs"),
        (["toy.yaml", "--json", "--json-lines"], "--json and --json-lines must not be given together"),
        (["toy.yaml", "--no-run", "--retry-failed"], "--no-run and --retry-failed must not be given together"),
        (["toy.yaml", "--no-run", "--cell", "whole"], "--no-run and --cell must not be given together"),
        (["toy.yaml", "--no-run", "--hours", "1"], "--no-run and --hours must not be given together"),
        (["toy.yaml", "--no-run", "--rows", "/dev/null"], "/dev/null:1 must name the columns cell, arm"),
        (["toy.yaml", "run.model.encoder=resnet999"], "whole, output_only: "),
        (
            ["toy.yaml", "also_on={x: {output_loss: {kind: cross_entropy, class_weights: [1, 2]}}}"],
            "also_on.x: output_loss.class_weights: must have 9",
        ),
        (
            ["toy.yaml", "arms=[{name: a}, {name: b, set: {optimizer.progressive: {of: data, until: [1], shares: [0.5]}}}]", *BARE],
            "arms must see the same data as often, but `optimizer.progressive`",
        ),
        (["toy.yaml", "seeds=[1,1]"], "seeds: each must be there once"),
        (["toy.yaml", "run.optimizer.epoch=3"], "optimizer.epoch: is no setting"),
        (
            ["toy.yaml", "cells=[{name: a, set: {subset.hold_out: x}}]", "charts=[]", "against_itself=null", "effects=[]", "primary=null"],
            "`hold_out` must be one of several",
        ),
        (["toy.yaml", "--data", "here"], "--data sets run.data.root"),
        ([str(QUICK)], f"{QUICK} must hold a study, but holds a search"),
        ([str(SCENES)], f"{SCENES} must hold a study, but holds one run"),
    ],
)
@pytest.mark.usefixtures("toy")
def test_a_mistake_is_told_before_anything_runs(args: list[str], wording: str, run: Cli, tmp_path: Path) -> None:
    assert wording in one_error(run("study", *args, "--output", "out", "--wandb", "disabled"))
    assert not list(tmp_path.glob("out/runs/*"))


@pytest.mark.usefixtures("toy")
def test_a_folder_with_something_else_is_left_alone(run: Cli, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    write_text(tmp_path / "s/notes.txt", "mine")
    assert "s must be a new folder, but holds notes.txt; give another --output" in one_error(run("study", "toy.yaml", "--output", "s", "--no-run"))
    (tmp_path / "s/.lock").touch()  # as a training leaves it
    assert "must be a new folder or hold this study, but holds notes.txt" in one_error(run("study", "toy.yaml", "--output", "s", "--no-run"))
    ran = run("study", "toy.yaml", "--output", "t", "--no-run")
    assert ran.code == 0
    assert ran.out.endswith("tables: t/study.md\n"), "no rows are there"
    assert "must hold this study, but holds 'toy'" in one_error(run("study", "toy.yaml", "name=other", "--output", "t", "--no-run"))
    assert (tmp_path / "s/notes.txt").read_text() == "mine"


@pytest.mark.usefixtures("toy")
def test_without_an_output_a_study_goes_on_where_it_was_even_beside_something_else(run: Cli, tmp_path: Path) -> None:
    (tmp_path / "runs/toy").mkdir(parents=True)
    write_text(tmp_path / "runs/toy/notes.txt", "mine")
    for _ in range(2):
        ran = run("study", "toy.yaml", "--no-run", "--json")
        assert ran.code == 0, ran.err
        assert json.loads(ran.out)["output"] == "runs/toy-2"
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"toy", "toy-2"}


@pytest.mark.usefixtures("toy")
def test_rows_of_other_data_are_refused(run: Cli, tmp_path: Path) -> None:
    from imachsr.study.folder import Study
    from imachsr.study.load import load_study

    plan = load_study(tmp_path / "toy.yaml")
    with Study(plan=plan, folder=tmp_path / "s") as held:
        held.note(held.todo()[0], {"scores": {"val/miou": 1.0}}, "0123456789abcdef")
    message = one_error(run("study", "toy.yaml", "--rows", "s/runs.csv", "--output", "t", "--wandb", "disabled"))
    assert "rows that are there must be of the same data, but that of whole, output_only, seed 1 has the fingerprint 0123456789abcdef" in message


def test_search_says_that_a_study_is_none(run: Cli) -> None:
    assert f"imachsr study {ABLATION}" in one_error(run("search", ABLATION))


@pytest.mark.usefixtures("toy")
def test_for_machines_everything_on_stdout_is_json(run: Cli) -> None:
    ran = run("study", "toy.yaml", "--output", "s", "--no-run", "--json-lines")
    assert ran.code == 0, ran.err
    assert [json.loads(line)["event"] for line in ran.out.splitlines()] == ["summary"]
    assert json.loads(ran.out)["total"] == 11 + 1


def test_what_is_missing_is_counted_and_the_command_that_goes_on_would_run_something(toy: Path, tmp_path: Path) -> None:
    from imachsr.cli.study import _what_is_missing
    from imachsr.study.folder import Study
    from imachsr.study.load import load_study

    def said(*cells: str, ended: int) -> str:
        with Study(plan=load_study(toy), folder=tmp_path / "-".join([*cells, str(ended)]), only=cells) as held:
            for each in held.todo()[:ended]:
                held.note(each, {"scores": {"val/miou": 1.0, "time/step_ms": 5.0}}, "")
            return _what_is_missing(held, ["toy.yaml"], list(cells), 9)

    assert said(ended=1) == "11 runs are missing; to go on: imachsr study toy.yaml"
    assert said("half", ended=2) == "1 run is missing; to go on: imachsr study toy.yaml --cell half"
    assert said("half", ended=3) == "9 runs of all cells are missing; to go on with all: imachsr study toy.yaml"
    assert (
        said("timed", ended=0)
        == "9 runs of all cells are missing; timed needs the times of another cell's runs; to go on with all: imachsr study toy.yaml"
    )
