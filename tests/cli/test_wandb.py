"""A result folder is brought to W&B; a search and a training are seen there while they run."""

import fcntl
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from imachsr.tracking.workspace import FILE
from tests.cli.command import QUICK, SCENES, SEARCH, SMALL, Cli, one_error
from tests.tracking.conftest import KEY, own_wandb, server
from tests.tracking.folders import searched
from tests.tracking.server import Server

__all__ = ["own_wandb", "server"]  # fixtures


@pytest.fixture
def online(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return server


def test_sync_sends_makes_again_and_shows_and_may_be_run_twice(online: Server, run: Cli, tmp_path: Path) -> None:
    searched(tmp_path / "s")
    ran = run("wandb", "sync", "s", "--wandb-project", "streets")
    assert (ran.code, ran.out) == (0, "runs sent 0, made again 5, there already 0, not sent 0; files set aside 0\n")
    assert f"W&B dashboard: {online.url}/tester/streets?nw=" in ran.err
    assert len(online.views) == 1
    assert online.runs["u1-0001"]["project"] == "streets"
    again = run("wandb", "sync", "s", "--json")
    found = json.loads(again.out)
    assert found["already"] == ["u1-0000", "u1-0001", "u1-0002", "u1-0003", "u1-search"]
    assert (found["uploaded"], found["rebuilt"], found["failed"]) == ([], [], {})
    assert again.code == 0


@pytest.mark.usefixtures("own_wandb")
@pytest.mark.parametrize("what", ["sync", "workspace"])
def test_a_folder_without_results_is_a_mistake(what: str, run: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty must be the" in one_error(run("wandb", what, "empty"))


@pytest.mark.usefixtures("own_wandb")
def test_sync_without_a_key_is_a_mistake_that_tells_how_to_get_one(run: Cli, tmp_path: Path) -> None:
    searched(tmp_path / "s")
    assert "with a key, but: no key was found (run `wandb login`, or set WANDB_API_KEY)" in one_error(run("wandb", "sync", "s"))


@pytest.mark.usefixtures("own_wandb")
def test_workspace_without_a_server_writes_the_specification(run: Cli, tmp_path: Path) -> None:
    searched(tmp_path / "s")
    ran = run("wandb", "workspace", "s", "--wandb-project", "streets")
    assert ran.code == 0
    assert ran.out == f"W&B: the dashboard's specification is s/{FILE}; once the runs are online: imachsr wandb workspace s\n"
    assert "W&B is offline: no key was found" in ran.err
    assert json.loads((tmp_path / "s" / FILE).read_text())["project"] == "streets"


def test_workspace_goes_where_the_user_is(online: Server, run: Cli, tmp_path: Path) -> None:
    searched(tmp_path / "s")
    ran = run("wandb", "workspace", "s")
    assert ran.code == 0, ran.err
    assert ran.out.startswith(f"W&B dashboard: {online.url}/tester/imachsr?nw=")
    assert online.views[0]["entityName"] == "tester"


def test_a_search_that_is_running_is_not_synced(online: Server, run: Cli, tmp_path: Path) -> None:
    folder = searched(tmp_path / "s")
    (folder / "study.sqlite3").touch()
    with (folder / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "s must not be in use, but another command works in it" in one_error(run("wandb", "sync", "s"))
    assert online.runs == {}


def test_a_training_is_a_run_with_its_images(online: Server, run: Cli, tmp_path: Path) -> None:
    ran = run("train", SCENES, *SMALL, "--output", "t", "--wandb-project", "streets")
    assert ran.code == 0, ran.err
    ((key, about),) = online.runs.items()
    assert key == (tmp_path / "t/wandb-id").read_text()
    assert (about["jobType"], about["project"], online.exits[key]) == ("train", "streets", 0)
    config = {name: held["value"] for name, held in json.loads(about["config"]).items()}
    assert (config["optimizer/epochs"], config["seed"], config["choice/loss"]) == (1, 0, "brier")
    assert "versions/torch" in config
    rows = [line for line in online.history[key] if "train/loss" in line]
    written = json.loads((tmp_path / "t/metrics.jsonl").read_text())
    assert len(rows) == 1
    for name in ("epoch", "val/miou", "val/ece", "train/lr", "time/step_ms", "memory/peak_mib"):
        assert rows[0][name] == pytest.approx(written[name])
    assert any("images/final" in line for line in online.history[key])
    assert json.loads(run("wandb", "sync", "t", "--json").out)["already"] == [key]


@pytest.mark.slow
def test_a_search_is_seen_online_and_its_key_is_seen_nowhere(online: Server, tmp_path: Path) -> None:
    """A real search with real workers; the key is in the driver's environment only."""
    command = [sys.executable, "-m", "imachsr", "search", str(QUICK), *SEARCH, "--trials", "4", "--concurrency", "2", "--output", "s", "--as-sweep"]
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}
    with tempfile.TemporaryDirectory(prefix="k") as short:  # a socket's path holds 107 bytes
        environment["RAY_TMPDIR"] = short
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, env=environment)
        of_ray = [path for path in Path(short).rglob("*") if path.is_file()]
        assert any("session_" in str(path) for path in of_ray)
        assert [path for path in of_ray if KEY.encode() in path.read_bytes()] == []
    assert ran.returncode == 0, ran.stderr
    assert f"W&B: {online.url}/tester/imachsr" in ran.stderr
    assert "W&B dashboard: " in ran.stderr
    summary = json.loads((tmp_path / "s/summary.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "s/trials.jsonl").read_text().splitlines()]
    for trial in summary["trials"]:
        key = f"{summary['uid']}-{trial['number']:04d}"
        rows = [line for line in online.history[key] if "train/loss" in line]
        own = [line for line in lines if line["trial"] == trial["number"]]
        assert [line["epoch"] for line in rows] == [line["epoch"] for line in own]
        assert [line["select/miou"] for line in rows] == pytest.approx([line["select/miou"] for line in own])
        assert online.exits[key] == 0
        assert online.runs[key]["jobType"] == ("trial" if trial["number"] else "baseline")
        assert sum("images/final" in line for line in online.history[key]) == 1
    assert len(online.views) == len(online.sweeps) == 1
    assert online.runs[f"{summary['uid']}-0001"]["sweep"] == "sweep1"
    assert f"search-{summary['uid']}" in online.artifacts
    assert online.unknown == []
    everything = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in everything if KEY.encode() in path.read_bytes()] == []
    assert KEY not in ran.stdout + ran.stderr
