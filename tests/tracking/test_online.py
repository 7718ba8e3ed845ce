"""The real client online, against a server on this machine: what a search looks like there, and what a faulty server costs."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import wandb
from PIL import Image

from imachsr.config.load import load_yaml, parse_yaml
from imachsr.search.space import make_search
from imachsr.search.tracked import recorded, sweep_of
from imachsr.tracking import Tracker, fragments
from imachsr.tracking import wandb as tracking
from imachsr.tracking.background import Background
from imachsr.tracking.recorded import Place
from imachsr.tracking.sync import sync
from imachsr.tracking.wandb import WandbTracker
from tests.tracking import records
from tests.tracking.conftest import KEY, fresh, serving
from tests.tracking.folders import METRIC, STATES, epochs, row, searched
from tests.tracking.server import Server

ROOT = Path(__file__).parents[2]


def play(tracker: Tracker, folder: Path, *, numbers: tuple[int, ...] = (0, 1, 2, 3), is_ended: bool = True) -> list[str]:
    """What the folder holds, as a driver tells it."""
    for each in (recorded(folder)[number] for number in numbers):
        tracker.start(each.start)
        for line in each.rows:
            tracker.log(each.start.id, line)
        if is_ended:
            tracker.end(each.start.id, each.state, each.summary)
    return tracker.close() if is_ended else []


def history(server: Server, run: str) -> list[dict[str, Any]]:
    """Rows of numbers, without what the client adds."""
    kept = [{key: value for key, value in line.items() if not key.startswith("_")} for line in server.history[run]]
    return [line for line in kept if not any(key.startswith("images/") for key in line)]


def pixels(server: Server, path: str) -> Any:
    return np.asarray(Image.open(io.BytesIO(server.files[path])))


class Shown(NamedTuple):
    server: Server
    folder: Path


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """The server after a search, and the search's folder."""
    at = tmp_path_factory.mktemp("shown")
    with fresh(at) as patch, serving(patch) as served:
        folder = searched(at / "s")
        lines = play(Background(WandbTracker(folder, project="streets")), folder)
        assert lines == [f"W&B: {served.url}/tester/streets"]
        assert served.unknown == []
        yield Shown(served, folder)


def test_a_search_is_a_group_of_runs_with_all_rows_and_ends(shown: Shown) -> None:
    for number, state in enumerate(STATES):
        run = shown.server.runs[f"u1-{number:04d}"]
        assert (run["groupName"], run["jobType"]) == ("streets-u1", "trial" if number else "baseline")
        assert history(shown.server, f"u1-{number:04d}") == [row(number, epoch) for epoch in range(1, epochs(number) + 1)]
        assert shown.server.exits[f"u1-{number:04d}"] == (1 if state == "FAIL" else 0)
        assert shown.server.summary[f"u1-{number:04d}"]["trial/num_taps"] == min(number, 2)
    assert shown.server.summary["u1-0002"]["trial/state"] == "stopped"
    assert Place.of(shown.folder) == Place(entity="tester", project="streets", is_online=True)
    assert all(each.is_synced for path in fragments.find(shown.folder) if (each := fragments.read(path)) is not None)


def test_the_configuration_is_whole_and_flat(shown: Shown) -> None:
    config = {key: held["value"] for key, held in json.loads(shown.server.runs["u1-0001"]["config"]).items()}
    assert config["method/loss/kind"] == "dice"
    assert config["seed"] == 7
    assert config["versions/torch"] == "2.14.1"
    assert config["data_fingerprint/train"] == "abc"
    assert (config["knobs/method/alpha"], config["knobs/method/loss"]) == (0.1, "dice")
    choices = {key.removeprefix("choice/"): value for key, value in config.items() if key.startswith("choice/")}
    assert choices == {"standard": "auto", "loss": "dice", "entropy": "channel_norm", "alpha": 0.1, "beta": 0.0708, "max_taps": 7}
    assert not any(isinstance(value, dict) and value for key, value in config.items() if key != "_wandb")


def test_every_trial_shows_the_same_images_with_its_own_masks_at_best_and_last(shown: Shown) -> None:
    with np.load(shown.folder / "trials/0000/samples.npz") as held:
        images, labels = held["images"], held["labels"]
    for number in range(4):
        (line,) = [line for line in shown.server.history[f"u1-{number:04d}"] if "images/final" in line]
        assert line["epoch"] == epochs(number)
        for key, file in (("images/final", "evaluation.npz"), ("images/best", "evaluation_best.npz")):
            with np.load(shown.folder / f"trials/{number:04d}" / file) as held:
                predicted, epoch = held["predicted"], int(held["epoch"])
            for place, masks in enumerate(line[key]["all_masks"]):
                assert line[key]["captions"][place].startswith(f"{('first', 'second')[place]}, epoch {epoch}, mIoU of all 3")
                assert np.array_equal(pixels(shown.server, line[key]["filenames"][place]), images[place].transpose(1, 2, 0))
                assert np.array_equal(pixels(shown.server, masks["prediction"]["path"]), predicted[place])
                assert np.array_equal(pixels(shown.server, masks["ground_truth"]["path"]), labels[place])
        labelled = json.loads(shown.server.runs[f"u1-{number:04d}"]["config"])["_wandb"]["value"]["mask/class_labels"].values()
        assert {each["key"].split("_wandb_")[0] for each in labelled} == {"images/final", "images/best"}
        assert all(each["value"] == {"0": "road", "1": "sky", "2": "car", "255": "ignored"} for each in labelled)


def test_the_search_as_a_whole_is_a_table_bars_and_an_artifact(shown: Shown) -> None:
    assert shown.server.runs["u1-search"]["jobType"] == "search"
    table = json.loads(next(data for name, data in shown.server.files.items() if name.endswith("search/trials.table.json")))
    rows = [dict(zip(table["columns"], line, strict=True)) for line in table["data"]]
    assert [(line["number"], line["state"], line[METRIC], line["method.loss"]) for line in rows] == [
        (0, "COMPLETE", 26.5, None),
        (1, "COMPLETE", 27.5, "dice"),
        (2, "PRUNED", 24.5, "dice"),
        (3, "FAIL", 25.5, "dice"),
    ]
    bars = json.loads(next(data for name, data in shown.server.files.items() if name.endswith("search/differences_table.table.json")))
    assert bars["data"] == [["trial 0001", 1.0]]
    assert shown.server.summary["u1-search"]["best/trial"] == 1
    artifact = shown.server.artifacts["search-u1"]
    assert artifact["type"] == "search"
    assert sorted(artifact["manifest"]["contents"]) == ["search.yaml", "summary.json", "trials.jsonl"]
    assert any(data == (shown.folder / "trials.jsonl").read_bytes() for name, data in shown.server.files.items() if name.endswith("/trials.jsonl"))


def test_a_search_that_is_continued_goes_on_in_the_same_runs(server: Server, tmp_path: Path) -> None:
    folder = searched(tmp_path / "s")
    one = recorded(folder)[1]
    for place, sitting in enumerate((one.rows[:2], one.rows[2:])):
        tracker = WandbTracker(folder, project="streets")
        tracker.start(one.start)
        for line in sitting:
            tracker.log(one.start.id, line)
        if place:
            tracker.end(one.start.id, "finished", one.summary)
        tracker.close()
        time.sleep(0 if place else 1.1)  # the client names folders by the second
    assert server.begun["u1-0001"] == 2
    assert history(server, "u1-0001") == [row(1, epoch) for epoch in (1, 2, 3)]
    assert [line["_step"] for line in server.history["u1-0001"]] == [0, 1, 2, 3]
    assert server.exits["u1-0001"] == 0


def test_trials_belong_to_one_sweep_where_that_is_wanted(server: Server, tmp_path: Path) -> None:
    folder = searched(tmp_path / "s")
    sweep = sweep_of(make_search(load_yaml(folder / "search.yaml")))
    play(WandbTracker(folder, project="streets", sweep=sweep), folder, numbers=(0, 1))
    assert (server.runs["u1-0001"]["sweep"], server.runs["u1-0000"]["sweep"]) == ("sweep1", "sweep1")
    assert server.runs["u1-search"].get("sweep") is None
    play(WandbTracker(folder, project="streets"), folder, numbers=(2,))  # continued, without a word of it
    assert server.runs["u1-0002"]["sweep"] == "sweep1"
    (made,) = server.sweeps
    config = parse_yaml(made["config"])
    assert (config["method"], config["metric"], made["projectName"]) == ("custom", {"goal": "maximize", "name": METRIC}, "streets")
    assert config["parameters"] == {
        "knobs/method/alpha": {"distribution": "uniform", "min": 0.01, "max": 1.0},
        "knobs/method/loss": {"values": ["dice", "brier"]},
    }
    assert config["parameters"].keys() <= json.loads(server.runs["u1-0001"]["config"]).keys()
    assert "WANDB_SWEEP_ID" not in os.environ


def test_a_sweep_that_cannot_be_made_costs_a_line(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise wandb.Error("no sweeps here")

    monkeypatch.setattr(wandb, "sweep", refuse)
    folder = searched(tmp_path / "s")
    lines = play(WandbTracker(folder, project="streets", sweep={"method": "custom"}), folder, numbers=(0, 1))
    assert lines == [f"W&B: {server.url}/tester/streets", "W&B: the trials belong to no sweep (no sweeps here)"]
    assert history(server, "u1-0001") == [row(1, epoch) for epoch in (1, 2, 3)]
    assert os.environ["WANDB_API_KEY"] == KEY


def test_the_key_is_not_in_the_environment_that_workers_inherit(server: Server, tmp_path: Path) -> None:
    folder = searched(tmp_path / "s")
    tracker = WandbTracker(folder, project="streets")
    assert "WANDB_API_KEY" not in os.environ
    assert play(tracker, folder, numbers=(0,)) == [f"W&B: {server.url}/tester/streets"]
    assert os.environ["WANDB_API_KEY"] == KEY
    assert [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()] == []


# Faults


@pytest.mark.parametrize("fault", [pytest.param("500", marks=pytest.mark.slow), "malformed"])
def test_a_server_that_answers_nonsense_costs_no_row_and_no_second(
    fault: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "INIT_S", 2)
    monkeypatch.setattr(tracking, "FINISH_S", 1)
    folder = searched(tmp_path / "s")
    tracker = Background(WandbTracker(folder, project="streets"), close_s=60)
    server.fault = fault
    started = time.monotonic()
    play(tracker, folder, is_ended=False)
    assert time.monotonic() - started < 1
    lines = tracker.close()
    assert lines[0].startswith("W&B: 5 of 5 runs are not on the server, or not whole: the server failed (")
    assert lines[-1] == f"imachsr wandb sync {folder}"
    held = kept(folder)
    for number in range(4):
        assert held[f"u1-{number:04d}"] == [row(number, epoch) for epoch in range(1, epochs(number) + 1)]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["500", "malformed"])
def test_a_server_that_turns_bad_midway_costs_no_row(fault: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "INIT_S", 2)
    monkeypatch.setattr(tracking, "FINISH_S", 1)
    folder = searched(tmp_path / "s")
    tracker = WandbTracker(folder, project="streets")
    background = Background(tracker, close_s=60)
    play(background, folder, numbers=(0,), is_ended=False)
    deadline = time.monotonic() + 10
    while not server.runs and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    server.fault = fault
    lines = play(background, folder, numbers=(1, 2, 3))
    assert "are not on the server, or not whole: the server failed (" in lines[1]
    held = kept(folder)
    for number in range(4):
        assert held[f"u1-{number:04d}"] == [row(number, epoch) for epoch in range(1, epochs(number) + 1)]


def kept(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows by run in the client's own files, by the tests' reader."""
    wandb.teardown()
    found: dict[str, list[dict[str, Any]]] = {}
    for path in fragments.find(folder):
        lines = [line for line in records.rows(records.records(path)) if METRIC in line]
        found.setdefault(path.stem.removeprefix("run-").removesuffix(tracking.APART), []).extend(lines)
    return found


@pytest.mark.parametrize("delay_s", [0.1, pytest.param(5.0, marks=pytest.mark.slow)])
def test_a_slow_server_holds_nobody_up_and_gets_every_row(delay_s: float, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "INIT_S", 60)
    monkeypatch.setattr(tracking, "FINISH_S", 120)
    folder = searched(tmp_path / "s")
    tracker = Background(WandbTracker(folder, project="streets"), close_s=400)
    server.delay_s = delay_s
    started = time.monotonic()
    play(tracker, folder, numbers=(0,), is_ended=False)
    tracker.end("u1-0000", "finished", {})
    assert time.monotonic() - started < 1
    lines = tracker.close()
    assert lines == [f"W&B: {server.url}/tester/streets"]
    assert history(server, "u1-0000") == [row(0, epoch) for epoch in (1, 2, 3)]


DRIVER = """
import sys, time
from pathlib import Path
from imachsr.search.tracked import recorded
from imachsr.tracking.background import Background
from imachsr.tracking.wandb import WandbTracker
folder = Path(sys.argv[1])
one = recorded(folder)[1]
tracker = Background(WandbTracker(folder, project="streets"))
tracker.start(one.start)
for row in one.rows[:2]:
    tracker.log(one.start.id, row)
time.sleep(600)
"""


@pytest.mark.long
def test_what_a_killed_driver_had_not_sent_is_told_and_made_again(server: Server, tmp_path: Path) -> None:
    folder = searched(tmp_path / "s")
    killed = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder)], cwd=ROOT, start_new_session=True, env={**os.environ, "WANDB_MODE": "online"}
    )
    try:
        deadline = time.monotonic() + 60
        while not any((found := fragments.read(path)) and len(found.epochs) == 2 for path in fragments.find(folder)):
            assert time.monotonic() < deadline
            assert killed.poll() is None
            time.sleep(0.05)
    finally:
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
    assert "u1-0001" not in server.exits
    one = recorded(folder)[1]
    time.sleep(1.1)  # the client names folders by the second
    tracker = WandbTracker(folder, project="streets")
    tracker.start(one.start)
    tracker.log(one.start.id, one.rows[2])
    tracker.end(one.start.id, "finished", one.summary)
    lines = tracker.close()
    assert lines[1:] == [
        "W&B: 1 of 2 runs are not on the server, or not whole: an earlier sitting was offline, or broken off",
        f"imachsr wandb sync {folder}",
    ]
    assert sync(folder, [one], project="streets").rebuilt == ["u1-0001", "u1-search"]
    assert history(server, "u1-0001") == [row(1, epoch) for epoch in (1, 2, 3)]
    assert server.exits["u1-0001"] == 0


@pytest.mark.slow
def test_a_search_that_confirms_itself_is_two_groups_and_the_key_stays_in_the_driver(server: Server, tmp_path: Path) -> None:
    """The whole way, by the command line: searched and confirmed online."""
    small = ["run.optimizer.epochs=1", "run.data.num_train=16", "run.data.size=[32,32]", "run.optimizer.batch_size=4", "scheduler={kind: none}"]
    given = [*small, "selection.blocks=2", "selection.guard=0", "budget.trials=2", "confirm.top=1", "confirm.seeds=6"]
    command = [sys.executable, "-m", "imachsr", "search", str(ROOT / "search_spaces/quickstart.yaml"), *given, "--output", "s", "--wandb", "online"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr
    groups: dict[str, list[str]] = {}
    for run in server.runs.values():
        groups.setdefault(run["groupName"].rpartition("-")[0], []).append(run["jobType"])
    assert {name: sorted(set(kinds)) for name, kinds in groups.items()} == {
        "quickstart": ["baseline", "search", "trial"],
        "quickstart-confirm": ["confirm", "search"],
    }
    assert groups["quickstart-confirm"].count("confirm") == 12
    confirmed = [key for key, run in server.runs.items() if run["jobType"] == "confirm"]
    assert all(server.exits[key] == 0 for key in confirmed)
    assert all(history(server, key)[-1]["epoch"] == 1 and "val/miou" in history(server, key)[-1] for key in confirmed)
    assert server.unknown == []
    files = [path for path in tmp_path.rglob("*") if path.is_file() and "user" not in path.relative_to(tmp_path).parts]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert KEY not in ran.stdout + ran.stderr
