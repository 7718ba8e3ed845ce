"""A tracker on a thread of its own: what it waits for, nobody else waits for."""

import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from imachsr.tracking.events import Tracker, TrialStart

T = TypeVar("T")
ROWS = 10_000
CLOSE_S = 120.0


class Background:
    """Hands everything on in the order in which it came, and returns at once.

    A tracker that raises is given nothing more. One that is slower than the rows come loses rows, never starts and ends.

    Args:
        tracker: Called on the thread only.
        rows: That may wait, >= 1.
        close_s: Longest wait for it at the end, seconds.
        hint: Said where something was not handed on.
    """

    def __init__(self, tracker: Tracker, *, rows: int = ROWS, close_s: float = CLOSE_S, hint: str = "") -> None:
        self._tracker, self._rows, self._close_s, self._hint = tracker, rows, close_s, hint
        self._calls: queue.SimpleQueue[tuple[bool, Callable[[], Any]] | None] = queue.SimpleQueue()
        self._waiting, self._lost = 0, 0
        self._lock = threading.Lock()
        self._error: Exception | None = None
        self._lines: list[str] = []
        self._thread: threading.Thread | None = None

    def start(self, trial: TrialStart) -> None:
        """Begin a run."""
        self._put(lambda: self._tracker.start(trial))

    def log(self, trial_id: str, row: Mapping[str, float]) -> None:
        """Record a row, or count it as lost when too many wait."""
        kept = dict(row)
        with self._lock:
            if self._waiting >= self._rows:
                self._lost += 1
                return
            self._waiting += 1
        self._put(lambda: self._tracker.log(trial_id, kept), is_row=True)

    def end(self, trial_id: str, state: str, summary: Mapping[str, Any]) -> None:
        """End a run."""
        kept = dict(summary)
        self._put(lambda: self._tracker.end(trial_id, state, kept))

    def close(self) -> list[str]:
        """Wait until all was handed on, at most ``close_s``; the tracker's lines, and what went wrong."""
        self._put(self._close)
        thread, self._thread = self._thread, None
        assert thread is not None
        self._calls.put(None)
        thread.join(self._close_s)
        lines = list(self._lines)
        name = type(self._tracker).__name__
        if self._error is not None:
            lines.append(f"{name} stopped recording: {type(self._error).__name__}: {self._error}{self._hint}")
        if thread.is_alive():
            lines.append(f"{name} did not end within {self._close_s:g} s and was left{self._hint}")
        if self._lost:
            lines.append(f"{name} was too slow for {self._lost} rows{self._hint}")
        self._error, self._lost, self._lines = None, 0, []
        return lines

    def _close(self) -> None:
        self._lines = self._tracker.close()

    def _put(self, call: Callable[[], Any], *, is_row: bool = False) -> None:
        if self._thread is None:
            # A daemon: a process that is to end does not wait for a server.
            self._thread = threading.Thread(target=self._run, name=f"{type(self._tracker).__name__} calls", daemon=True)
            self._thread.start()
        self._calls.put((is_row, call))

    def _run(self) -> None:
        while (item := self._calls.get()) is not None:
            is_row, call = item
            if is_row:
                with self._lock:
                    self._waiting -= 1
            if self._error is None or call == self._close:  # which ends what is open
                try:
                    call()
                except Exception as error:  # whatever a tracker does, training goes on
                    self._error = self._error or error


def within(seconds: float, call: Callable[[], T]) -> T:
    """What a call returns or raises, waited for so long at most; it is left alone, not ended, when it takes longer.

    Raises:
        TimeoutError: If it takes longer.
    """
    found: list[T] = []
    raised: list[Exception] = []

    def run() -> None:
        try:
            found.append(call())
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {seconds:g} s")
    if raised:
        raise raised[0]
    return found[0]
