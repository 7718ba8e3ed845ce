"""Requests to stop that come from outside, answered between two steps."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class TrainingStopped(Exception):  # noqa: N818 - nothing went wrong
    """A training ended early because it was asked to; its checkpoint is on disk.

    Attributes:
        signal_number: SIGINT or SIGTERM; 0 for a notice of another kind.
        step: Steps done.

    """

    def __init__(self, signal_number: int, step: int) -> None:
        super().__init__(signal_number, step)
        self.signal_number, self.step = signal_number, step

    def __str__(self) -> str:
        by = f"by {signal.Signals(self.signal_number).name} " if self.signal_number else ""
        return f"stopped {by}after step {self.step}"


class StopRequest:
    """While entered, SIGINT and SIGTERM are noted instead of ending the process; a second SIGINT raises KeyboardInterrupt at once.

    Outside of the main thread, where no handler can be set, nothing is noted.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    @property
    def is_set(self) -> bool:
        """Whether a signal came."""
        return self.number != 0

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.is_set and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number


_terminated = threading.Event()


def take_termination_as_interrupt() -> None:
    """From now on SIGTERM, which schedulers of clusters send, is answered by whatever answers Ctrl-C at that time.

    To be called when Ray has started, since that sets a handler that ends the process on the spot. Outside of the main thread nothing is changed.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)


def was_terminated() -> bool:
    """Whether the interrupt was a SIGTERM."""
    return _terminated.is_set()


def _interrupt(_: int, frame: FrameType | None) -> None:
    _terminated.set()
    handler = signal.getsignal(signal.SIGINT)
    if callable(handler):
        handler(signal.SIGINT, frame)
    else:  # Ctrl-C is ignored, as in the background of a script
        raise KeyboardInterrupt
