"""Offline runs, broken files and nothing at all, brought to a server by the real client."""

import json
import time
from pathlib import Path

import pytest
import wandb

from imachsr.config.schema import ConfigError
from imachsr.search.tracked import recorded
from imachsr.tracking import fragments
from imachsr.tracking.sync import ASIDE, sync
from imachsr.tracking.wandb import WandbTracker
from tests.tracking import records
from tests.tracking.conftest import KEY
from tests.tracking.folders import STATES, epochs, row, searched
from tests.tracking.server import Server
from tests.tracking.test_online import history, play

IDS = [f"u1-{number:04d}" for number in range(len(STATES))]


@pytest.fixture
def offline(server: Server, tmp_path: Path) -> Path:
    """A search whose runs are in files; the client's service has ended, as at a process's end."""
    folder = searched(tmp_path / "s")
    play(WandbTracker(folder, project="streets", mode="offline"), folder)
    wandb.teardown()
    assert server.runs == {}
    return folder


def check(server: Server) -> None:
    for number, state in enumerate(STATES):
        assert history(server, IDS[number]) == [row(number, epoch) for epoch in range(1, epochs(number) + 1)]
        assert server.exits[IDS[number]] == (1 if state == "FAIL" else 0)
        assert server.runs[IDS[number]]["groupName"] == "streets-u1"
        assert sum("images/final" in line for line in server.history[IDS[number]]) == 1


def test_an_offline_file_holds_images_masks_and_the_table(offline: Path) -> None:
    by_id = {path.stem.removeprefix("run-"): path for path in fragments.find(offline)}
    assert sorted(by_id) == [*IDS, "u1-search"]
    for number, run in enumerate(IDS):
        held = records.records(by_id[run])
        assert records.rows(held) == [row(number, epoch) for epoch in range(1, epochs(number) + 1)]
        assert [ending.exit_code for ending in records.of(held, "exit")] == [STATES[number] == "FAIL"]
        media = by_id[run].parent / "files/media/images"
        # Two images at the best and the last epoch, each with the mask that is true and the one that is predicted.
        assert len(list(media.glob("images/*.png"))) == 4
        assert len(list(media.glob("mask/images/*.mask.png"))) == 8
    whole = records.records(by_id["u1-search"])
    sent = [artifact.name for artifact in records.of(whole, "artifact")]
    assert sent[-1] == "search-u1"
    assert len(sent) == 3  # with those of the two tables
    (table,) = (by_id["u1-search"].parent / "files/media/table/search").glob("trials_*.table.json")
    assert [line[0] for line in json.loads(table.read_text())["data"]] == [0, 1, 2, 3]


@pytest.mark.long
def test_offline_runs_are_sent_whole_and_once(offline: Path, server: Server) -> None:
    told: list[str] = []
    found = sync(offline, recorded(offline), project="streets", say=told.append)
    assert (found.uploaded, found.rebuilt, found.failed, found.aside) == (IDS, ["u1-search"], {}, [])
    assert told == [*(f"{run} sent" for run in IDS), "u1-search made again from the search's lines"]
    check(server)
    assert any(name.startswith("media/images/mask/") for name in server.files)
    assert "search-u1" in server.artifacts
    begun = dict(server.begun)
    again = sync(offline, recorded(offline), project="streets")
    assert (again.already, again.uploaded, again.rebuilt) == ([*IDS, "u1-search"], [], [])
    assert server.begun == begun
    assert [path for path in offline.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()] == []


@pytest.mark.long
def test_what_cannot_be_read_is_set_aside_and_made_again(offline: Path, server: Server) -> None:
    files = {path.stem.removeprefix("run-"): path for path in fragments.find(offline)}
    files[IDS[0]].write_bytes(files[IDS[0]].read_bytes()[:7])  # as a killed driver leaves it
    files[IDS[1]].write_bytes(files[IDS[1]].read_bytes()[:-30])  # cut off
    damaged = bytearray(files[IDS[2]].read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    files[IDS[2]].write_bytes(damaged)
    told: list[str] = []
    found = sync(offline, recorded(offline), project="streets", say=told.append)
    assert sorted(found.rebuilt) == [*IDS[:3], "u1-search"]
    assert IDS[3] in found.uploaded
    assert found.aside == [offline / ASIDE / files[IDS[0]].parent.name]
    assert told[0] == f"{files[IDS[0]].parent.name} cannot be read; it was set aside in {offline / ASIDE}"
    assert (found.aside[0] / files[IDS[0]].name).stat().st_size == 7
    check(server)
    assert sync(offline, recorded(offline), project="streets").already == [*IDS, "u1-search"]


def test_a_run_that_was_continued_in_another_file_is_one_run(server: Server, tmp_path: Path) -> None:
    folder = searched(tmp_path / "s")
    one = recorded(folder)[1]
    for place, lines in enumerate((one.rows[:2], one.rows[2:])):
        tracker = WandbTracker(folder, project="streets", mode="offline")
        tracker.start(one.start)
        for line in lines:
            tracker.log(one.start.id, line)
        if place:
            tracker.end(one.start.id, one.state, one.summary)
        tracker.close()
        time.sleep(0 if place else 1.1)  # the client names folders by the second
    wandb.teardown()
    assert sync(folder, [one], project="streets").rebuilt == [one.start.id, "u1-search"]
    assert history(server, one.start.id) == [row(1, epoch) for epoch in (1, 2, 3)]
    assert sync(folder, [one], project="streets").rebuilt == []


@pytest.mark.slow
def test_a_search_that_was_never_tracked_is_made_from_its_lines(server: Server, tmp_path: Path) -> None:
    folder = searched(tmp_path / "s")
    found = sync(folder, recorded(folder), project="streets")
    assert found.rebuilt == [*IDS, "u1-search"]
    assert server.runs[IDS[1]]["project"] == "streets"
    check(server)


def test_without_a_server_nothing_is_touched(offline: Path, server: Server) -> None:
    server.stop()
    before = sorted(offline.rglob("*"))
    with pytest.raises(ConfigError, match="runs must go to a W&B server that answers, with a key, but: .* does not answer"):
        sync(offline, recorded(offline), project="streets")
    assert sorted(offline.rglob("*")) == before


@pytest.mark.slow
def test_what_a_server_refuses_is_told_and_can_be_sent_later(offline: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imachsr.tracking.sync.UPLOAD_S", 2)
    server.fault = "500"
    one = recorded(offline)[:1]
    files = {each.start.id for each in one}
    for path in fragments.find(offline):
        if path.stem.removeprefix("run-") not in files:
            (path.parent / f"{path.name}.synced").touch()
    found = sync(offline, one, project="streets")
    assert found.failed[IDS[0]] == "it took more than 2 s"
    server.fault = ""
    monkeypatch.setattr("imachsr.tracking.sync.UPLOAD_S", 60)
    assert sync(offline, one, project="streets").uploaded == [IDS[0]]
    assert history(server, IDS[0]) == [row(0, epoch) for epoch in (1, 2, 3)]
