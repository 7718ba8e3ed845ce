import sys
import time
from pathlib import Path
from typing import Any

import pytest

from imachsr.train.daemons import DaemonsApart
from imachsr.train.restarts import PATIENCE_S, Monitor, Restart


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Heard:
    def __init__(self) -> None:
        self.restarts: list[Restart] = []
        self.said: list[str] = []
        self.monitor = Monitor(report=lambda row: None, on_step=lambda step: None, on_restart=self.restarts.append, say=self.said.append)

    def hear(self, *messages: tuple[str, Any]) -> None:
        for kind, value in messages:
            self.monitor.hear(kind, value)


def test_a_restart_tells_why_how_long_and_how_many_steps_are_done_again(clock: Clock) -> None:
    heard = Heard()
    heard.hear(("start", 2), ("step", 1))
    clock.now += 3
    heard.hear(("step", 40), ("lost", "a worker was lost"))
    clock.now += 7.5
    heard.hear(("start", 1), ("step", 38))
    assert [str(each) for each in heard.restarts] == [
        "a worker was lost: 1 worker goes on after step 37, 7.5 s after the last sign of life; 3 steps are done again"
    ]
    heard.hear(("step", 39), ("start", 2), ("step", 40))  # one more has come
    assert [each.reason for each in heard.restarts] == ["a worker was lost", "the cluster changed"]


def test_epochs_that_a_new_group_tells_again_are_reported_once() -> None:
    rows: list[dict[str, float]] = []
    monitor = Monitor(report=rows.append, on_step=lambda step: None, on_restart=lambda restart: None, say=lambda line: None, epochs=1)
    for epoch in (2, 3):
        monitor.hear("row", {"epoch": epoch, "val/miou": 50.0})
    monitor.hear("lost", "a worker was lost")  # between the checkpoint of the fourth epoch and its report
    monitor.hear("start", 2)
    for epoch in (1, 2, 3, 4, 5):
        monitor.hear("row", {"epoch": epoch, "val/miou": 50.0})
    assert [row["epoch"] for row in rows] == [2, 3, 4, 5]


def test_absence_is_told_once_and_ends_with_the_next_group(clock: Clock) -> None:
    heard = Heard()
    heard.hear(("start", 2), ("step", 1))
    assert heard.monitor.absent_s == 0
    heard.hear(("lost", "a worker was lost"))
    heard.monitor.tell_wait(2, 1, 300)
    assert heard.said == []
    clock.now += PATIENCE_S + 1
    for _ in range(2):
        heard.monitor.tell_wait(2, 1, 300)
    assert heard.said == ["a worker was lost; waiting up to 300 s for 2 of the workers to start; the cluster has room for 1"]
    heard.hear(("start", 2))
    assert heard.monitor.absent_s == 0


def test_workers_are_absent_from_the_time_at_which_a_node_is_taken_away_unless_they_go_on(clock: Clock) -> None:
    heard = Heard()
    heard.hear(("start", 2), ("step", 1), ("leaving", 20.0))
    clock.now += 15
    heard.hear(("step", 5))
    assert heard.monitor.absent_s == 0
    clock.now += 10
    assert heard.monitor.absent_s == 5
    heard.hear(("step", 6))  # the node is still there
    assert heard.monitor.absent_s == 0
    heard.hear(("start", 1), ("step", 7))
    assert heard.restarts[0].reason == "a node was taken away"


def test_the_first_that_calls_itself_controller_is_it(clock: Clock) -> None:
    heard = Heard()
    heard.hear(("controller", "the controller"), ("controller", "a worker that it has started"))
    assert heard.monitor.controller == "the controller"


def test_pages_of_daemons_are_kept_apart_from_what_people_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stream = DaemonsApart(sys.stderr, tmp_path / "ray" / "daemons.txt")
    print("before", file=stream)
    print("\x1b[33m(raylet)\x1b[0m Raylet is terminated.\n    [state-dump] much", file=stream)
    print("after", file=stream, flush=True)
    assert capsys.readouterr().err == "before\nafter\n"
    assert (tmp_path / "ray" / "daemons.txt").read_text() == "\x1b[33m(raylet)\x1b[0m Raylet is terminated.\n    [state-dump] much\n"


def test_rows_that_a_new_group_tells_again_are_no_sign_of_life_of_the_old_one() -> None:
    restarts: list[Restart] = []
    monitor = Monitor(report=lambda row: None, on_step=lambda step: None, on_restart=restarts.append, say=lambda line: None)
    for kind, value in (("start", 2), ("step", 1), ("row", {"epoch": 1}), ("step", 4), ("lost", "a worker was lost")):
        monitor.hear(kind, value)
    time.sleep(0.2)
    for kind, value in (("start", 2), ("row", {"epoch": 1}), ("step", 4)):
        monitor.hear(kind, value)
    (restart,) = restarts
    assert restart.seconds >= 0.2
    assert (restart.steps, restart.step) == (1, 3)
