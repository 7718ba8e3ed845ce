import threading
import time
from collections.abc import Mapping
from typing import Any

import pytest

from imachsr.tracking import TrialStart
from imachsr.tracking.background import Background, within

START = TrialStart(id="a", name="a", group="g")


class Slow:
    """Writes down its calls, with the thread; may wait for a gate, or raise."""

    def __init__(self, *, raises: str = "") -> None:
        self.calls: list[Any] = []
        self.threads: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.raises = raises

    def _note(self, *call: Any) -> None:
        self.gate.wait(20)
        self.calls.append(call)
        self.threads.add(threading.current_thread().name)
        if call[0] == self.raises:
            raise OSError("disk full")

    def start(self, trial: TrialStart) -> None:
        self._note("start", trial.id)

    def log(self, trial_id: str, row: Mapping[str, float]) -> None:
        self._note("log", row["epoch"])

    def end(self, trial_id: str, state: str, summary: Mapping[str, Any]) -> None:
        self._note("end", state)

    def close(self) -> list[str]:
        self._note("close")
        return ["look here"]


def play(tracker: Background, rows: int) -> None:
    tracker.start(START)
    for epoch in range(1, rows + 1):
        tracker.log("a", {"epoch": epoch})
    tracker.end("a", "finished", {})


def test_all_is_handed_on_in_order_on_one_other_thread() -> None:
    slow = Slow()
    tracker = Background(slow)
    play(tracker, 50)
    assert tracker.close() == ["look here"]
    assert slow.calls == [("start", "a"), *(("log", epoch) for epoch in range(1, 51)), ("end", "finished"), ("close",)]
    assert len(slow.threads) == 1
    assert threading.current_thread().name not in slow.threads


def test_a_tracker_that_hangs_holds_nobody_up_and_is_left_at_the_end() -> None:
    slow = Slow()
    slow.gate.clear()
    tracker = Background(slow, close_s=0.3, hint="; try again")
    started = time.monotonic()
    play(tracker, 2000)
    assert time.monotonic() - started < 1
    assert tracker.close() == ["Slow did not end within 0.3 s and was left; try again"]
    assert time.monotonic() - started < 5
    slow.gate.set()


def test_too_many_rows_are_counted_and_no_start_or_end_is_lost() -> None:
    slow = Slow()
    slow.gate.clear()
    tracker = Background(slow, rows=3, hint="; try again")
    play(tracker, 10)
    play(tracker, 1)
    slow.gate.set()
    assert tracker.close() == ["look here", "Slow was too slow for 8 rows; try again"]
    assert slow.calls == [("start", "a"), ("log", 1), ("log", 2), ("log", 3), ("end", "finished"), ("start", "a"), ("end", "finished"), ("close",)]


def test_what_raises_is_given_nothing_more_but_is_closed() -> None:
    slow = Slow(raises="log")
    tracker = Background(slow, hint="; try again")
    play(tracker, 5)
    assert tracker.close() == ["look here", "Slow stopped recording: OSError: disk full; try again"]
    assert slow.calls == [("start", "a"), ("log", 1), ("close",)]


def test_a_row_that_is_changed_after_it_was_told_is_told_as_it_was() -> None:
    slow = Slow()
    slow.gate.clear()
    tracker = Background(slow)
    row = {"epoch": 1.0}
    tracker.log("a", row)
    row["epoch"] = 2.0
    slow.gate.set()
    tracker.close()
    assert slow.calls[0] == ("log", 1.0)


def test_a_call_that_ends_in_time_gives_what_it_returns_or_raises() -> None:
    assert within(5, lambda: 7) == 7

    def wrong() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        within(5, wrong)
    gate = threading.Event()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.1 s"):
        within(0.1, lambda: gate.wait(20))
    gate.set()
