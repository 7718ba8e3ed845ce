import math
from collections.abc import Mapping
from typing import Any

import pytest

from imachsr.tracking import Combined, NullTracker, Tracker, TrialStart
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


def test_the_null_tracker_takes_a_whole_run_and_has_nothing_to_tell() -> None:
    assert whole(NullTracker()) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_say_is_null_at_any_depth(value: float) -> None:
    assert finite({"deep": {"list": [1.0, value, (value, "x")]}}) == {"deep": {"list": [1.0, None, [None, "x"]]}}


def test_finite_leaves_everything_else_alone() -> None:
    plain = {"a": 1, "b": [1.5, True, None, "nan"], "c": {"d": -0.0}}
    assert finite(plain) == plain


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
