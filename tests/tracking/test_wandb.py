import math
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import wandb

from imachsr.tracking import Combined, TrialStart
from imachsr.tracking import wandb as tracking
from imachsr.tracking.preflight import Mode, preflight
from imachsr.tracking.wandb import WandbTracker
from tests.tracking import records
from tests.tracking.conftest import KEY
from tests.tracking.server import Server

pytestmark = pytest.mark.usefixtures("own_wandb")

ROWS: list[dict[str, float]] = [
    {"epoch": epoch, "val/miou": 10.5 * epoch, "val/iou/road": 50.25, "tap/encoder.layer1.0/std": 0.5, "train/loss": 1.0 / epoch}
    for epoch in (1, 2, 3)
]


def begin(number: int, **given: Any) -> TrialStart:
    whole = {
        "id": f"u1-{number:04d}",
        "name": f"{number:04d}-arm",
        "group": "streets-u1",
        "config": {"optimizer": {"lr": 1e-3, "epochs": 3}, "data": {"size": [32, 48]}, "trial": number, "arm": None},
        "tags": ("arm",),
    }
    return TrialStart(**{**whole, **given})


def files(folder: Path) -> list[Path]:
    wandb.teardown()  # as at a process's end: the client's service writes what it still holds
    return sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))


def dead_url() -> str:
    """An address at which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_an_offline_run_holds_what_the_trial_was_and_did(tmp_path: Path) -> None:
    tracker = WandbTracker(tmp_path, project="streets", mode="offline")
    start = begin(0, job_type="baseline")
    tracker.start(start)
    for row in ROWS:
        tracker.log(start.id, row)
    tracker.end(start.id, "finished", {"value": 31.5, "taps": ["encoder.layer1"], "error": None, "odd": math.nan})
    lines = tracker.close()

    (path,) = files(tmp_path)
    found = records.records(path)
    (run,) = records.of(found, "run")
    assert (run.run_id, run.display_name, run.run_group, run.job_type, list(run.tags)) == (start.id, start.name, start.group, "baseline", ["arm"])
    assert run.project == "streets"
    config = records.config(found)
    config.pop("_wandb")
    assert config == {"optimizer/lr": 1e-3, "optimizer/epochs": 3, "data/size": [32, 48], "trial": 0, "arm": None}
    assert records.rows(found) == ROWS
    summary = records.summary(found)
    assert {key: summary[key] for key in ROWS[-1]} == ROWS[-1]
    end = {key.removeprefix("trial/"): value for key, value in summary.items() if key.startswith("trial/")}
    assert end == {"value": 31.5, "taps": ["encoder.layer1"], "num_taps": 1, "error": None, "odd": None, "state": "finished"}
    assert lines == ["W&B: 1 of 1 runs are not on the server, or not whole: offline was asked for", f"imachsr wandb sync {tmp_path}"]


def test_the_epoch_is_the_step_of_every_metric(tmp_path: Path) -> None:
    tracker = WandbTracker(tmp_path, mode="offline")
    tracker.start(begin(0))
    tracker.end("u1-0000", "finished", {})
    (path,) = files(tmp_path)
    metrics = records.of(records.records(path), "metric")
    assert [(metric.name or metric.glob_name, metric.step_metric) for metric in metrics] == [("epoch", ""), ("*", "epoch")]


@pytest.mark.parametrize(("state", "code"), [("finished", 0), ("stopped", 0), ("failed", 1)])
def test_only_a_failed_trial_has_exit_code_1(state: str, code: int, tmp_path: Path) -> None:
    tracker = WandbTracker(tmp_path, mode="offline")
    tracker.start(begin(0))
    tracker.end("u1-0000", state, {})
    (path,) = files(tmp_path)
    found = records.records(path)
    assert [exit_.exit_code for exit_ in records.of(found, "exit")] == [code]
    assert records.summary(found)["trial/state"] == state


def test_two_trials_at_a_time_keep_their_rows_apart(tmp_path: Path) -> None:
    tracker = WandbTracker(tmp_path, mode="offline")
    for number in (1, 2):
        tracker.start(begin(number))
    for row in ROWS:
        for number in (1, 2):
            tracker.log(f"u1-{number:04d}", {**row, "val/miou": number})
    tracker.end("u1-0002", "stopped", {})
    tracker.end("u1-0001", "failed", {})
    found = {path.stem.removeprefix("run-"): records.records(path) for path in files(tmp_path)}
    assert sorted(found) == ["u1-0001", "u1-0002"]
    for number in (1, 2):
        mine = found[f"u1-{number:04d}"]
        assert records.rows(mine) == [{**row, "val/miou": number} for row in ROWS]
        assert records.config(mine)["trial"] == number
        assert [exit_.exit_code for exit_ in records.of(mine, "exit")] == [1 if number == 1 else 0]


def test_what_is_open_when_a_search_is_broken_off_ends_as_failed(tmp_path: Path) -> None:
    tracker = WandbTracker(tmp_path, mode="offline")
    tracker.start(begin(0))
    tracker.log("u1-0000", ROWS[0])
    assert len(tracker.close()) == 2
    (path,) = files(tmp_path)
    found = records.records(path)
    assert records.rows(found) == ROWS[:1]
    assert [exit_.exit_code for exit_ in records.of(found, "exit")] == [1]


def test_rows_are_on_disk_a_moment_after_they_are_logged(tmp_path: Path) -> None:
    """A driver that is killed writes no last word; the client's own habit is 15 s."""
    tracker = WandbTracker(tmp_path, mode="offline")
    tracker.start(begin(0))
    tracker.log("u1-0000", ROWS[0])
    (path,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 8
    while not (rows := records.rows(records.records(path))) and time.monotonic() < deadline:
        time.sleep(0.1)
    tracker.close()
    assert rows == ROWS[:1]


def test_a_run_that_is_continued_keeps_its_id(tmp_path: Path) -> None:
    for row in ROWS[:2]:
        tracker = WandbTracker(tmp_path, mode="offline")
        tracker.start(begin(0))
        tracker.log("u1-0000", row)
        tracker.end("u1-0000", "finished", {})
        time.sleep(1.1 if row is ROWS[0] else 0)  # the client names folders by the second
    parts = [records.records(path) for path in files(tmp_path)]
    assert [records.of(part, "run")[0].run_id for part in parts] == ["u1-0000", "u1-0000"]
    assert [row["epoch"] for part in parts for row in records.rows(part)] == [1, 2]


def test_disabled_writes_and_tells_nothing(tmp_path: Path) -> None:
    tracker = WandbTracker(tmp_path / "out", mode="disabled")
    tracker.start(begin(0))
    tracker.log("u1-0000", ROWS[0])
    tracker.end("u1-0000", "finished", {})
    assert tracker.close() == []
    assert not (tmp_path / "out").exists()


def test_without_a_run_there_is_nothing_to_sync(tmp_path: Path) -> None:
    assert WandbTracker(tmp_path, mode="offline").close() == []


# Preflight


@pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
def test_a_mode_that_is_asked_for_is_taken_whatever_the_environment_says(mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled" if mode != "disabled" else "online")
    found = preflight(mode)
    assert (found.mode, found.reason) == (mode, f"{mode} was asked for")


@pytest.mark.parametrize(
    ("value", "mode"), [("online", "online"), ("offline", "offline"), ("disabled", "disabled"), ("dryrun", "offline"), ("run", "online")]
)
def test_auto_obeys_the_environment(value: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", value)
    found = preflight("auto")
    assert found.mode == mode
    assert "WANDB_MODE" in found.reason


def test_auto_without_a_key_is_offline_and_tells_how_to_get_one() -> None:
    found = preflight("auto")
    assert found.mode == "offline"
    assert "wandb login" in found.reason
    assert "WANDB_API_KEY" in found.reason


def test_a_line_break_behind_the_key_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", f"{KEY}\n")
    assert preflight("offline").reason == "offline was asked for"
    assert os.environ["WANDB_API_KEY"] == KEY


def test_auto_with_a_key_but_no_server_is_offline_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    url = dead_url()
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    started = time.monotonic()
    found = preflight("auto")
    assert time.monotonic() - started < 5
    assert found.mode == "offline"
    assert f"{url} does not answer" in found.reason


def test_auto_does_not_wait_for_a_server_that_only_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        started = time.monotonic()
        assert preflight("auto", timeout=0.5).mode == "offline"
        assert time.monotonic() - started < 5


def test_auto_with_a_key_in_netrc_and_a_server_is_online(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine example.com login user password {KEY}\n")
    monkeypatch.setenv("NETRC", str(netrc))
    assert preflight("auto").mode == "offline"
    netrc.write_text(f"machine 127.0.0.1 login user password {KEY}\n")
    assert preflight("auto").mode == "online"


def test_a_broken_netrc_is_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine machine {{{\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert preflight("auto").mode == "offline"


# Online, with the real client against a server on this machine


def test_online_every_trial_is_a_run_with_all_its_rows(server: Server, tmp_path: Path) -> None:
    tracker = WandbTracker(tmp_path, project="streets", mode="auto")
    assert tracker.preflight.mode == "online"
    states = ["finished", "stopped", "failed"]
    for number, state in enumerate(states):
        start = begin(number, job_type="trial" if number else "baseline")
        tracker.start(start)
        for row in ROWS[: 3 - number]:
            tracker.log(start.id, row)
        tracker.end(start.id, state, {"value": number + 0.5})
    lines = tracker.close()

    assert server.unknown == []
    assert len(lines) == 1
    assert lines[0].startswith(f"W&B: {server.url}/")
    assert lines[0].endswith("/streets")
    for number, state in enumerate(states):
        key = f"u1-{number:04d}"
        run = server.runs[key]
        assert (run["groupName"], run["jobType"]) == ("streets-u1", "trial" if number else "baseline")
        assert (run["displayName"], run["tags"], run["project"]) == (f"{number:04d}-arm", ["arm"], "streets")
        rows = [{name: value for name, value in row.items() if not name.startswith("_")} for row in server.history[key]]
        assert rows == ROWS[: 3 - number]
        assert server.summary[key]["trial/state"] == state
        assert server.summary[key]["trial/value"] == number + 0.5
        assert server.exits[key] == (1 if state == "failed" else 0)


def test_a_key_reaches_the_server_and_no_file(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    tracker = WandbTracker(folder, mode="auto")
    tracker.start(begin(0))
    tracker.log("u1-0000", ROWS[0])
    tracker.end("u1-0000", "finished", {})
    tracker.close()
    assert any(header.startswith("Basic ") for header in server.keys)
    everything = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in everything)
    assert [path for path in everything if KEY.encode() in path.read_bytes()] == []


def test_a_server_that_dies_costs_one_short_wait_and_no_row(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "FINISH_S", 2)
    tracker = WandbTracker(tmp_path, mode="auto")
    combined = Combined([tracker])
    combined.start(begin(0))
    combined.log("u1-0000", ROWS[0])
    server.stop()
    started = time.monotonic()
    for epoch in range(2, 200):
        combined.log("u1-0000", {"epoch": epoch})
    assert time.monotonic() - started < 5
    combined.end("u1-0000", "finished", {})
    assert time.monotonic() - started < 10
    assert tracker.preflight.mode == "offline"

    combined.start(begin(1))
    combined.log("u1-0001", ROWS[0])
    combined.end("u1-0001", "finished", {})
    lines = combined.close()
    assert len(lines) == 3
    assert lines[1] == "W&B: 2 of 2 runs are not on the server, or not whole: the server failed (Timed out finishing run.)"
    assert lines[2] == f"imachsr wandb sync {tmp_path}"
    (after,) = files(tmp_path)
    assert records.rows(records.records(after)) == ROWS[:1]
    (broken,) = (tmp_path / "wandb").glob("run-*/run-u1-0000.wandb")
    assert [row["epoch"] for row in records.rows(records.records(broken))] == list(range(1, 200))


def test_a_server_that_refuses_a_run_leaves_it_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "INIT_S", 2)
    monkeypatch.setenv("WANDB_BASE_URL", dead_url())
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    tracker = WandbTracker(tmp_path, mode="online")
    tracker.start(begin(0))
    tracker.log("u1-0000", ROWS[0])
    tracker.end("u1-0000", "finished", {})
    lines = tracker.close()
    (path,) = files(tmp_path)
    found = records.records(path)
    assert records.of(found, "run")[0].run_id == "u1-0000-offline"
    assert records.rows(found) == ROWS[:1]
    assert lines[0].startswith("W&B: 1 of 1 runs are not on the server, or not whole: the server failed (")


def test_online_without_a_key_is_written_offline(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    tracker = WandbTracker(tmp_path, mode="online")
    tracker.start(begin(0))
    tracker.end("u1-0000", "finished", {})
    assert len(files(tmp_path)) == 1
    assert "server failed" in tracker.close()[0]
    assert server.runs == {}


# An environment that the client would not start with


@pytest.mark.parametrize("mode", ["auto", "online", "offline"])
@pytest.mark.parametrize(("name", "value"), [("WANDB_BASE_URL", "foo"), ("WANDB_MODE", "bogus")])
def test_wrong_settings_of_the_client_are_told_and_runs_are_written_offline(
    name: str, value: str, mode: Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    tracker = WandbTracker(tmp_path, mode=mode)
    combined = Combined([tracker])
    assert tracker.preflight.mode == "offline"
    assert f"{name} is '{value}': " in tracker.preflight.reason
    combined.start(begin(0))
    combined.log("u1-0000", ROWS[0])
    combined.end("u1-0000", "finished", {})
    lines = combined.close()
    assert lines[0].startswith(f"W&B: 1 of 1 runs are not on the server, or not whole: {name} is '{value}'")
    (path,) = files(tmp_path)
    assert records.rows(records.records(path)) == ROWS[:1]
