"""What Ray's daemons and its native code print into a driver, kept apart from what a person is told."""

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO


class DaemonsApart(io.TextIOBase):
    """A text stream that passes everything on, but pages of the state of a lost node go to a file.

    Args:
        people: Where everything else goes.
        path: The file, which is added to; made with the first page.
    """

    def __init__(self, people: TextIO, path: Path) -> None:
        self._people, self._path = people, path
        self._is_theirs = False

    def write(self, text: str) -> int:
        """One piece of what is printed; the end of a line may come by itself."""
        self._is_theirs = "(raylet)" in text[:40] or (self._is_theirs and text == "\n")
        if not self._is_theirs:
            return self._people.write(text)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            return file.write(text)

    def flush(self) -> None:
        """Pass it on."""
        self._people.flush()

    def isatty(self) -> bool:
        """Whether people see it as it is printed."""
        return self._people.isatty()


@contextlib.contextmanager
def held_stderr() -> Iterator[Callable[[], str]]:
    """Hold back what this process, its native code too, writes to stderr: passed on at the end, dropped when something is raised.

    Yields:
        A call that gives what there is so far.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)

        def text() -> str:
            sys.stderr.flush()
            return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors="replace")

        try:
            yield text
            passed_on = text()
        finally:
            os.dup2(kept, 2)
            os.close(kept)
    sys.stderr.write(passed_on)
