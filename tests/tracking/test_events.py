import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from imachsr.tracking import Combined, ConsoleTracker, JsonLinesTracker, NullTracker, Tracker, TrialStart
from imachsr.tracking.events import finite

START = TrialStart(id="a-0001", name="0001-arm", group="g", job_type="baseline", config={"lr": 1e-3, "size": (2, 3)}, tags=("arm",))


class Recorder:
    """Remembers its calls; raises in the ones named."""

    def __init__(self, broken: tuple[str, ...] = ()) -> None:
        self.broken = broken
        self.calls: list[str] = []

    def _note(self, name: str) -> None:
        self.calls.append(name)
        if name in self.broken:
            raise OSError(f"disk full in {name}")

    def start(self, trial: TrialStart) -> None:
        self._note("start")

    def log(self, trial_id: str, row: Mapping[str, float]) -> None:
        self._note("log")

    def end(self, trial_id: str, state: str, summary: Mapping[str, Any]) -> None:
        self._note("end")

    def close(self) -> list[str]:
        self._note("close")
        return ["look here"]


def whole(tracker: Tracker) -> list[str]:
    tracker.start(START)
    tracker.log(START.id, {"epoch": 1, "val/miou": 12.5})
    tracker.log(START.id, {"epoch": 2, "val/miou": 13.5})
    tracker.end(START.id, "finished", {})
    return tracker.close()


def read(path: Path) -> list[dict[str, Any]]:
    def no_nan(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    return [json.loads(line, parse_constant=no_nan) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("make", [lambda tmp: NullTracker(), lambda tmp: ConsoleTracker(lambda line: None), lambda tmp: JsonLinesTracker(tmp / "x")])
def test_local_trackers_take_a_whole_run_and_have_nothing_to_tell(make: Any, tmp_path: Path) -> None:
    assert whole(make(tmp_path)) == []


def test_json_lines_can_be_read_after_every_event(tmp_path: Path) -> None:
    path = tmp_path / "made" / "events.jsonl"
    tracker = JsonLinesTracker(path)
    steps = [
        lambda: tracker.start(START),
        lambda: tracker.log(START.id, {"epoch": 1, "val/miou": 3.5}),
        lambda: tracker.log(START.id, {"epoch": 2, "val/miou": 4.5}),
        lambda: tracker.end(START.id, "stopped", {"why": Path("x")}),
    ]
    for count, step in enumerate(steps, 1):
        step()
        assert len(read(path)) == count
    start, first, second, end = read(path)
    expected = {**dataclasses.asdict(START), "config": {"lr": 1e-3, "size": [2, 3]}, "tags": ["arm"]}
    assert start == {"event": "start", **expected}
    assert [first["row"], second["row"]] == [{"epoch": 1, "val/miou": 3.5}, {"epoch": 2, "val/miou": 4.5}]
    assert end == {"event": "end", "id": START.id, "state": "stopped", "summary": {"why": "x"}}


def test_json_lines_go_on_in_a_file_that_is_there(tmp_path: Path) -> None:
    for epoch in (1, 2):
        JsonLinesTracker(tmp_path / "events.jsonl").log("a", {"epoch": epoch})
    assert [line["row"]["epoch"] for line in read(tmp_path / "events.jsonl")] == [1, 2]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_say_is_null_at_any_depth(value: float, tmp_path: Path) -> None:
    tracker = JsonLinesTracker(tmp_path / "events.jsonl")
    tracker.log("a", {"epoch": 1, "val/loss": value})
    tracker.end("a", "failed", {"deep": {"list": [1.0, value, (value, "x")]}})
    row, end = read(tmp_path / "events.jsonl")
    assert row["row"] == {"epoch": 1, "val/loss": None}
    assert end["summary"]["deep"]["list"] == [1.0, None, [None, "x"]]


def test_finite_leaves_everything_else_alone() -> None:
    plain = {"a": 1, "b": [1.5, True, None, "nan"], "c": {"d": -0.0}}
    assert finite(plain) == plain


def test_console_shows_name_epoch_and_main_numbers() -> None:
    lines: list[str] = []
    tracker = ConsoleTracker(lines.append)
    tracker.start(START)
    tracker.log(START.id, {"epoch": 3, "val/miou": 41.23456, "train/loss": 0.5, "val/iou/road": 90.0, "time/epoch_s": 2.0})
    tracker.end(START.id, "failed", {"error": "ValueError: no"})
    assert lines == ["0001-arm: started", "0001-arm: epoch 3  val/miou 41.23  train/loss 0.5", "0001-arm: failed: ValueError: no"]


def test_console_shows_the_numbers_that_are_asked_for() -> None:
    lines: list[str] = []
    ConsoleTracker(lines.append, metrics=["val/iou/road", "absent"]).log("unseen", {"epoch": 1, "val/miou": 1.0, "val/iou/road": 90.0})
    assert lines == ["unseen: epoch 1  val/iou/road 90"]


def test_console_prints_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    whole(ConsoleTracker())
    assert capsys.readouterr().out.splitlines()[-1] == "0001-arm: finished"


@pytest.mark.parametrize("where", ["start", "log", "end", "close"])
def test_a_tracker_that_raises_is_dropped_and_told_once_while_the_others_go_on(where: str) -> None:
    before, broken, after = Recorder(), Recorder(broken=(where, "log")), Recorder()
    combined = Combined([before, broken, after])
    lines = whole(combined)
    assert before.calls == after.calls == ["start", "log", "log", "end", "close"]
    last = "log" if where in ("end", "close") else where
    assert broken.calls[-1] == last
    assert broken.calls.count(last) == 1
    assert lines == ["look here", "look here", f"Recorder stopped recording: OSError: disk full in {last}"]
    assert combined.close() == ["look here", "look here"]


def test_a_close_that_raises_loses_no_other_tracker() -> None:
    last = Recorder()
    assert Combined([Recorder(broken=("close",)), last]).close() == ["look here", "Recorder stopped recording: OSError: disk full in close"]
    assert last.calls == ["close"]


def test_an_interrupt_is_not_swallowed() -> None:
    class Interrupted(Recorder):
        def log(self, trial_id: str, row: Mapping[str, float]) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Combined([Interrupted()]).log("a", {})
