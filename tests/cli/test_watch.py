"""Searches looked at from another shell."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from imachsr.search.driver import Driver
from tests.cli.command import QUICK, SEARCH, Cli, one_error, process
from tests.report.folders import BASELINE, make, trial
from tests.search.play import EPOCHS, score, toy_driver, toy_search


def run_slowly(driver: Driver, pause: float, hurry: threading.Event) -> None:
    """All trials, one after another, without a pause once there is a hurry."""
    while isinstance(proposal := driver.propose(), dict):
        for epoch in range(1, EPOCHS + 1):
            hurry.wait(pause)
            if driver.on_row(proposal["number"], {"epoch": epoch, **score(proposal["config"], epoch)}):
                break
        driver.on_end(proposal["number"])


def going_on(folder: Path, trials: int) -> Iterator[Path]:
    """A search that this process runs meanwhile, two seconds a trial."""
    space = toy_search(arms=[{"name": "base", "set": {"x": 0.1}}], budget={"trials": trials}, scheduler={"kind": "none"})
    driver, hurry = toy_driver(folder, space), threading.Event()
    thread = threading.Thread(target=lambda: (run_slowly(driver, 0.5, hurry), driver.close()))
    thread.start()
    yield folder
    hurry.set()
    thread.join()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Path]:
    """A search of six trials, which ends in a dozen seconds."""
    yield from going_on(tmp_path / "out", 6)


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[Path]:
    """A search that goes on for longer than any look at it."""
    yield from going_on(tmp_path / "out", 40)


@pytest.mark.long
def test_a_search_is_followed_line_by_line_until_it_ends(running: Path, tmp_path: Path) -> None:
    done = process("watch", "out", cwd=tmp_path)
    assert done.code == 0, done.err
    lines = done.err.splitlines()
    assert len(lines) >= 3
    counts = [int(found[1]) for line in lines if (found := re.match(r"(\d) of 6 trials ended: ", line))]
    assert counts == sorted(counts)
    assert counts[0] < 6
    assert "\x1b" not in done.err + done.out
    assert "6 of 6 trials ended: 6 finished" in done.out
    summary = json.loads((running / "summary.json").read_text())
    best = max(each["value"] for each in summary["trials"])
    assert f"score {best:.2f}, " in done.out
    assert done.out.count("finished") >= 7


@pytest.mark.long
def test_on_a_terminal_bars_move_and_ctrl_c_ends_the_looking_alone(endless: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    watching = subprocess.Popen(
        [sys.executable, "-m", "imachsr", "watch", "out"],
        cwd=tmp_path,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # who starts in the background has it ignored, and so would the child
    )
    os.close(theirs)
    said, end = "", time.monotonic() + 60
    while not re.search(r"trial \d.*[1-4]/4", said):
        assert time.monotonic() < end, said
        if select.select([ours], [], [], 1)[0]:
            said += os.read(ours, 1 << 16).decode(errors="replace")
    assert "━" in said
    watching.send_signal(signal.SIGINT)
    end = time.monotonic() + 60
    while watching.poll() is None and time.monotonic() < end:  # read on: who writes to a full terminal waits for ever
        if select.select([ours], [], [], 0.2)[0]:
            with contextlib.suppress(OSError):
                os.read(ours, 1 << 16)
    assert watching.wait(timeout=1) == 130
    os.close(ours)
    looked = json.loads((endless / "summary.json").read_text())
    assert not looked["finished"], "the search itself must go on"


def test_what_stands_is_shown_once_also_of_a_search_that_nobody_runs(run: Cli, tmp_path: Path) -> None:
    folder = make(tmp_path / "s", [BASELINE, trial(1, "RUNNING", epochs=1, value=12.0)], best=0, finished=False)
    row = json.dumps({"trial": 1, "arm": None, "epoch": 3, "objectives": [21.5]})
    new = json.dumps({"trial": 2, "arm": None, "epoch": 1, "objectives": [7.25]})
    with (folder / "trials.jsonl").open("a") as lines:
        lines.write(f"{row}\n{new}\n" + row[:20])  # the last one is half written
    for args in (["s", "--once"], ["s"]):
        ran = run("watch", *args)
        assert ran.code == 0
        assert "1 of 2 trials ended" in ran.out
        assert re.search(r" 1 .* 21\.50 .* 3/4 .*broken off", ran.out)
        assert re.search(r" 2 .* 7\.25 .* 1/4 .*broken off", ran.out)
        assert "1 finished, 2 broken off" in ran.out
        assert "nobody runs it now; to go on: imachsr search --resume s" in ran.err
    found = json.loads(run("watch", "s", "--json").out)
    assert [(each["number"], each["epochs"], each["value"]) for each in found["trials"]] == [(0, 4, 30.0), (1, 3, 21.5), (2, 1, 7.25)]
    assert found["is_running"] is False


@pytest.mark.parametrize("what", ["nothing", "empty", "training", "newer", "broken", "file"])
def test_what_is_no_search_is_told_in_one_line_and_left_alone(what: str, run: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "x"
    if what == "file":
        folder.write_text("x")
    elif what != "nothing":
        folder.mkdir()
        text = {"training": '{"schema": 1, "metrics": {}}', "newer": '{"schema": 9, "trials": []}', "broken": "{"}.get(what)
        if text:
            (folder / "summary.json").write_text(text)
    before = sorted((path, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file())
    told = {"training": "holds a single training", "newer": "must have schema 1, but has 9", "broken": "must be JSON"}.get(
        what, "--output folder of a search"
    )
    for command in ("watch", "compare", "report"):
        assert told in one_error(run(command, "x"))
    assert sorted((path, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()) == before


def test_searches_stand_side_by_side(run: Cli, tmp_path: Path) -> None:
    make(tmp_path / "one", [BASELINE, trial(1, value=36.0, difference=6.0), trial(2, "PRUNED", value=20.0), trial(3, "FAIL", value=None)], best=1)
    make(tmp_path / "two", [BASELINE], best=0, name="[b]bare[/b]")
    make(tmp_path / "none", [trial(0, "FAIL", arm="baseline", value=None, error="no")], best=None)
    ran = run("compare", "one", "two", "none")
    assert ran.code == 0
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in ran.out.splitlines() if line.startswith("│")]
    assert cells[0] == ["streets", "one", "4", "2", "1", "1", "0.03", "30.00", "36.00", "+6.00", "trial 1: loss dice, alpha 0.2, lr 0.001", ""]
    assert cells[1][:11] == ["[b]bare[/b]", "two", "1", "1", "0", "0", "0.03", "30.00", "30.00", "+0.00", "trial 0: baseline"]
    assert cells[2] == ["streets", "none", "1", "0", "0", "1", "0.03", "", "", "", "", ""]
    found = json.loads(run("compare", "one", "none", "--json").out)
    assert [(line["best"], line["difference"], line["failed"]) for line in found] == [(36.0, 6.0, 1), (None, None, 1)]
    make(tmp_path / "other", [BASELINE], best=0, metric="select/loss")
    assert "searches must have one metric to be compared, but have one select/miou, other select/loss" in one_error(run("compare", "one", "other"))


@pytest.mark.slow
def test_events_are_lines_of_json_for_machines(tmp_path: Path) -> None:
    given = [QUICK, *SEARCH, "--trials", 2, "--concurrency", 1, "--output", "out", "--wandb", "disabled", "run.data.num_val=4", "scheduler.kind=none"]
    done = process("search", *given, "--json-lines", "--quiet", cwd=tmp_path)
    assert done.code == 0, done.err
    events = [json.loads(line) for line in done.out.splitlines()]
    assert [event["event"] for event in events] == ["trial"] * (len(events) - 1) + ["summary"]
    told = {(event["number"], event["epochs"]) for event in events[:-1]}
    assert {(0, 2), (1, 2)} <= told
    assert {key for event in events[:-1] for key in event} == {"event", "number", "arm", "seed", "state", "epochs", "value", "error"}
    assert [each["state"] for each in events[-1]["trials"]] == ["COMPLETE"] * 2
    assert "starting Ray" not in done.err
    assert "must not be given together" in process("search", *given, "--json-lines", "--json", cwd=tmp_path).err


def test_rows_of_another_form_are_passed_over(run: Cli, tmp_path: Path) -> None:
    folder = make(tmp_path / "s", [BASELINE])
    (folder / "trials.jsonl").write_text('{"trial": 7, "epoch": "x", "objectives": [1]}\n{"trial": 7, "epoch": 1, "objectives": []}\n[1]\n')
    found = json.loads(run("watch", "s", "--json").out)
    assert [trial["number"] for trial in found["trials"]] == [0]


def test_settings_that_are_none_are_told_by_watch(run: Cli, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s/search.yaml").write_text("metric: 3\nrun: [1]\n")
    assert "search.yaml" in one_error(run("watch", "s", "--once"))


def test_a_folder_given_twice_is_no_comparison(run: Cli, tmp_path: Path) -> None:
    make(tmp_path / "s", [BASELINE])
    assert "each folder must be given once, but s/../s is there twice" in one_error(run("compare", "s", "s/../s"))


def test_other_data_and_epochs_are_noted(run: Cli, tmp_path: Path) -> None:
    for name, data, epochs in (("a", "1" * 16, 2), ("b", "2" * 16, 3)):
        folder = make(tmp_path / name, [BASELINE])
        summary = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps({**summary, "data": {"train": data}, "max_epochs": epochs}))
    ran = run("compare", "a", "b")
    assert ran.code == 0
    assert "note: the searches have different data: compare differences, not levels" in ran.err
    assert "different epochs" in ran.err
    assert "note:" not in run("compare", "a").err
