"""A search's bookkeeping kept up to date in a storage, beside the search and without ever holding it up."""

import contextlib
import json
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from imachsr.config.schema import ConfigError
from imachsr.search.database import FILE as STUDY
from imachsr.search.database import URL_FILE
from imachsr.search.folder import SETTINGS
from imachsr.search.ledger import FILE as LEDGER
from imachsr.search.networks import FILE as NETWORKS
from imachsr.search.summary import FILE as SUMMARY
from imachsr.search.summary import Trials
from imachsr.train.courier import Courier, MissingError, RemoteError

NAMES = (SETTINGS, URL_FILE, STUDY, LEDGER, NETWORKS, SUMMARY)
"""Files that a search is continued from, in the order in which they are written."""
EVERY_S = 10.0
"""Least time between two rounds of uploads, seconds."""
END_S = 120.0
"""Longest wait for the last one, seconds."""


def trial_uri(uri: str, number: int) -> str:
    """Where a trial's training is kept in the storage of its search."""
    return f"{uri}/trials/{number:04d}"


class FolderMirror:
    """Uploads what has changed from a thread while it is entered; a failure is told once, and tried again with the next change.

    Args:
        courier: To the storage.
        folder: Result folder of the search.
        say: Told, from the thread, of the first failure.
    """

    def __init__(self, courier: Courier, folder: Path, *, say: Callable[[str], object] = lambda line: None) -> None:
        self._courier, self._folder, self._say = courier, folder, say
        self._wakes = threading.Event()
        self._is_ending = threading.Event()
        self._sent: dict[str, tuple[int, int]] = {}
        self._forgotten: list[int] = []
        self._why = ""
        self._thread = threading.Thread(target=self._work, name="search storage", daemon=True)

    def __enter__(self) -> "FolderMirror":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._is_ending.set()
        self._wakes.set()
        self._thread.join(END_S)
        if self._thread.is_alive() or self._why:
            self._say(f"{self._courier.uri} lacks what the search did last ({self._why or 'no answer'}); all of it is in {self._folder}")
        self._courier.close()

    def following(self, on_change: Callable[[Trials], object]) -> Callable[[Trials], object]:
        """What is called with all trials when one has changed, which then is also seen here.

        What the storage holds of a trial that has ended early is deleted: nothing goes on from it, and it is large.
        """
        seen: set[int] = set()

        def told(trials: Trials) -> None:
            ended = {trial["number"] for trial in trials if trial["state"] in ("PRUNED", "FAIL")} - seen
            seen.update(ended)
            self._forgotten.extend(sorted(ended))
            self._wakes.set()
            on_change(trials)

        return told

    def _work(self) -> None:
        while not self._is_ending.is_set():
            self._wakes.wait()
            self._wakes.clear()
            self._round()
            self._is_ending.wait(EVERY_S)
        self._round()

    def _round(self) -> None:
        try:
            for name in NAMES:
                self._upload(name)
            while self._forgotten:
                self._delete(self._forgotten[0])
                self._forgotten.pop(0)
        except RemoteError as error:
            if not self._why:
                self._say(f"{self._courier.uri} cannot be written, and the search goes on without it: {error}")
            self._why = str(error)
        else:
            self._why = ""

    def _upload(self, name: str) -> None:
        path = self._folder / name
        try:
            status = path.stat()
        except FileNotFoundError:
            return
        state = (status.st_mtime_ns, status.st_size)
        if self._sent.get(name) == state:
            return
        copy = self._folder / f".{name}.upload"
        try:
            _copy(path, copy)
            self._courier.ask("put", name, str(copy))
        finally:
            copy.unlink(missing_ok=True)
        self._sent[name] = state

    def _delete(self, number: int) -> None:
        folder = f"trials/{number:04d}"
        for inner in (f"{folder}/checkpoints", folder):
            with contextlib.suppress(MissingError):
                for name in self._courier.ask("names", inner):
                    with contextlib.suppress(MissingError):
                        self._courier.ask("delete", f"{inner}/{name}")


def _copy(path: Path, copy: Path) -> None:
    """A copy of a file that is being written: of a database as it was between two transactions, of lines those that are whole."""
    if path.name == STUDY:
        with contextlib.closing(sqlite3.connect(path)) as source, contextlib.closing(sqlite3.connect(copy)) as target:
            source.backup(target)
    else:
        copy.write_bytes(path.read_bytes())


def refuse_older(courier: Courier, folder: Path) -> None:
    """Refuse to go on in a folder that lacks what its storage has: another machine went on, and its trials would be overwritten.

    Raises:
        ConfigError: Says how much is there, and what to do.
        RemoteError: If the storage cannot be read.
    """
    path = folder / f".{SUMMARY}.there"
    try:
        courier.ask("fetch", SUMMARY, str(path))
        there = _epochs(path)
    except MissingError:
        return
    finally:
        path.unlink(missing_ok=True)
    here = _epochs(folder / SUMMARY)
    if lacking := sum(count > here.get(number, -1) for number, count in there.items()):
        raise ConfigError(
            f"{folder} must hold all that {courier.uri} does, but lacks epochs of {lacking} of its {len(there)} trials: the search was continued "
            "elsewhere; continue it in a new folder, --resume NEW with the same --storage"
        )


def _epochs(summary: Path) -> dict[int, int]:
    """Of each trial, by a summary; none where that is missing or broken."""
    try:
        return {int(trial["number"]): int(trial["epochs"]) for trial in json.loads(summary.read_text(encoding="utf-8"))["trials"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def fetch(courier: Courier, folder: Path) -> None:
    """Bring the bookkeeping of a search to a folder that has none.

    Raises:
        ConfigError: If the storage holds no search.
        RemoteError: If it cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        path = folder / f"{name}.fetched.tmp"
        try:
            courier.ask("fetch", name, str(path))
        except MissingError:
            has_study = name != STUDY or (folder / URL_FILE).exists()
            if name == SETTINGS or not has_study:
                raise ConfigError(f"{courier.uri} must hold a search to go on with, but has no {name}") from None
        else:
            path.replace(folder / name)
        path.unlink(missing_ok=True)
