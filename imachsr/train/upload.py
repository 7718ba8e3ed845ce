"""A training's folder kept up to date in a storage, beside the training and without ever holding it up."""

import contextlib
import re
import secrets
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from imachsr.train import checkpoint
from imachsr.train.checkpoint import FOLDER
from imachsr.train.courier import Courier, MissingError, RemoteError
from imachsr.train.gallery import BEST, LAST, SAMPLES
from imachsr.train.manifest import Manifest

RESULT = ("run.yaml", "metrics.jsonl", "summary.json", SAMPLES, LAST, BEST)
"""What the loop writes beside the checkpoints."""
TOLD = ("reported", "wandb-id")
"""What the command line writes."""
END_S = 600.0
"""Longest wait for uploads at the end of a training, seconds."""
STOP_S = 20.0
"""The same when it was broken off: whoever sends SIGTERM sends SIGKILL later, often after 30 s."""
WAIT_S = (1.0, 60.0)
"""Wait after the first failure, doubled with each, and the longest, seconds."""
_OWNER = "owner"
_HELD = ".imachsr-uploading"
_DATA = re.compile(r"\d{8,}-[0-9a-f]{16}\.pt")


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What a storage holds of a training.

    Attributes:
        uri: The storage.
        step: Of its newest checkpoint; None: it holds none.
        missing: What it lacks: steps of checkpoints, and names of files.
        why: Of the last failure, when something is missing.
    """

    uri: str
    step: int | None
    missing: tuple[str, ...] = ()
    why: str = ""

    def __str__(self) -> str:
        has = "no checkpoint" if self.step is None else f"the checkpoint of step {self.step}"
        if not self.missing:
            return f"{self.uri} holds {has}, and all files"
        return f"{self.uri} holds {has}, but not {', '.join(self.missing)}: {self.why or 'there was no more time'}"


def remote_name(manifest: Manifest) -> str:
    """Name of a checkpoint's file in a storage, which no other content ever has: what a manifest there names is never overwritten."""
    return f"{manifest.step:08d}-{manifest.sha256[:16]}.pt"


class Mirror:
    """Uploads from a thread while it is entered. A checkpoint's manifest comes last: what a reader sees there is whole.

    The newest checkpoint goes first, and the best one when there is time; those that were replaced before their turn came are left out.

    Args:
        courier: To the storage.
        folder: The training's ``--output``.
        keep: How many of the newest stay in the storage, >= 1, besides the best one.
        names: Small files to upload with the checkpoints.
        has_checkpoints: Whether checkpoints are uploaded by this process.
        say: Told, from the thread, of failures, one of a kind, and of their end.
        end_s: Longest wait at the end, seconds.
        stop_s: The same after an exception, seconds.
    """

    def __init__(
        self,
        courier: Courier,
        folder: Path,
        *,
        keep: int = 2,
        names: tuple[str, ...] = (*RESULT, *TOLD),
        has_checkpoints: bool = True,
        say: Callable[[str], object] = lambda line: warnings.warn(line, stacklevel=2),
        end_s: float = END_S,
        stop_s: float = STOP_S,
    ) -> None:
        self.courier = courier
        self._folder, self._keep, self._names, self._has_checkpoints, self._say = folder, keep, names, has_checkpoints, say
        self._end_s, self._stop_s = end_s, stop_s
        self._word = secrets.token_hex(8)
        self._wakes = threading.Condition()
        self._is_woken = self._is_ending = self._is_over = False
        self._is_own, self._is_announced, self._has_uploaded = True, False, False
        self._sent: dict[str, tuple[int, int]] = {}
        self._there: list[Manifest] = []  # manifests in the storage, as far as known
        self._is_known = False
        self._told: set[str] = set()
        self._why = ""
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Mirror":
        self._thread = threading.Thread(target=self._work, name="storage", daemon=True)
        self._thread.start()
        self.wake()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._thread is not None
        with self._wakes:
            self._is_ending = True
            self._wakes.notify()
        try:
            self._thread.join(self._end_s if error is None else self._stop_s)
        finally:
            self._is_over = True
            self.courier.close()
            self._thread.join(self._stop_s)

    def hurry(self) -> None:
        """The training was broken off: wait at the end as little as after an exception."""
        self._end_s = self._stop_s

    def wake(self) -> None:
        """There is something new in the folder. Returns at once."""
        with self._wakes:
            self._is_woken = True
            self._wakes.notify()

    @property
    def stored(self) -> Stored:
        """What is there, and what is not; of the folder as it is now."""
        there = self._there
        files = [name for name in self._names if self._is_new(name)]
        steps = [f"that of step {manifest.step}" for manifest in self._wanted() if not _holds(there, manifest)] if self._has_checkpoints else []
        return Stored(uri=self.courier.uri, step=there[-1].step if there else None, missing=(*steps, *files), why=self._why)

    def _work(self) -> None:
        failures = 0
        while not self._is_over:
            with self._wakes:
                if failures and self._is_ending:
                    self._wakes.wait_for(lambda: self._is_over, WAIT_S[0])
                elif failures:  # not tried again sooner for a new checkpoint, but at the end
                    self._wakes.wait_for(lambda: self._is_ending, min(WAIT_S[0] * 2 ** (failures - 1), WAIT_S[1]))
                else:
                    self._wakes.wait_for(lambda: self._is_woken or self._is_ending)
                self._is_woken = False
                is_last = self._is_ending
            try:
                self._send()
            except Exception as error:  # of whatever kind: the training goes on
                if self._is_over and self._is_own:
                    return
                failures += 1
                self._tell(error)
                self._is_known = self._is_announced = False
                self._sent = {}
            else:
                if failures:
                    self._why = ""
                    self._say(f"uploads work again: {self.stored}")
                failures = 0
                if is_last:
                    return

    def _tell(self, error: Exception) -> None:
        kind, self._why = (error.kind, error.why) if isinstance(error, RemoteError) else (type(error).__name__, f"{type(error).__name__}: {error}")
        if kind not in self._told:
            self._told.add(kind)
            again = "is tried again while the training goes on" if self._is_own else "is not tried again"
            self._say(f"an upload failed and {again}: {self.stored}")

    def _send(self) -> None:
        """Upload what is new."""
        if self._has_checkpoints:
            self._require_own()
            self._there = self._there if self._is_known else self._take_stock()
            self._is_known = True
        self._send_files()
        while self._has_checkpoints and (left := [manifest for manifest in self._wanted() if not _holds(self._there, manifest)]):
            try:
                self._send_checkpoint(left[0])
            except RemoteError as error:
                if (self._folder / FOLDER / left[0].file).exists():
                    raise
                if error.kind == "ended":
                    raise  # else it was replaced by a newer one meanwhile
        self._send_files()

    def _require_own(self) -> None:
        """A process that was taken for dead, and replaced, must not overwrite what its successor uploads."""
        if not self._is_announced:
            self._is_own = not self._has_uploaded or self._owner() in (self._word, "")
            if self._is_own:
                self.courier.ask("write", _OWNER, self._word)
                self._is_announced = self._has_uploaded = True
        if self._owner() != self._word:
            self._is_over, self._is_own = True, False
            raise RemoteError("owner", "another process uploads to it now, so that this one no longer does")

    def _owner(self) -> str:
        try:
            return str(self.courier.ask("read", _OWNER))
        except MissingError:
            return ""

    def _take_stock(self) -> list[Manifest]:
        manifests, damaged = self.courier.manifests()
        for name in damaged:
            self.courier.ask("delete", f"{FOLDER}/{name}")
        return manifests

    def _wanted(self) -> list[Manifest]:
        """Checkpoints that should be there, first things first."""
        here = checkpoint.committed(self._folder)
        best = checkpoint.best_of(here)
        return [*here[-1:], *([best] if best is not None and best != here[-1] else [])]

    def _send_checkpoint(self, manifest: Manifest) -> None:
        sent = replace(manifest, file=remote_name(manifest))
        if self.courier.ask("names", FOLDER).get(sent.file) != sent.size_bytes:
            with _held(self._folder, manifest) as path:
                self.courier.ask("put", f"{FOLDER}/{sent.file}", str(path))
        self._require_own()  # the upload may have taken long
        self.courier.ask("write", f"{FOLDER}/{sent.name}", sent.to_bytes().decode())
        self._there = sorted([*(each for each in self._there if each.name != sent.name), sent], key=lambda each: each.serial)
        self._retire()

    def _retire(self) -> None:
        """Delete what is not kept: the manifest first, so that no reader takes a deleted checkpoint for a damaged one."""
        best = checkpoint.best_of(self._there)
        # What is wanted there stays too, or it would be sent again without end: the best one here need not be the best one there.
        kept = [
            each for each in self._there if each in self._there[-self._keep :] or each == best or any(_holds([each], one) for one in self._wanted())
        ]
        for each in [each for each in self._there if each not in kept]:
            self.courier.ask("delete", f"{FOLDER}/{each.name}")
        self._there = kept
        named = {each.file for each in kept}
        for name in self.courier.ask("names", FOLDER):
            if _DATA.fullmatch(name) and name not in named:
                self.courier.ask("delete", f"{FOLDER}/{name}")

    def _send_files(self) -> None:
        for name in self._names:
            while self._is_new(name):
                now = self._state(name)
                self.courier.ask("put", name, str(self._folder / name))
                if now is not None:
                    self._sent[name] = now

    def _is_new(self, name: str) -> bool:
        now = self._state(name)
        return now is not None and self._sent.get(name) != now

    def _state(self, name: str) -> tuple[int, int] | None:
        try:
            found = (self._folder / name).stat()
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_ino


@contextlib.contextmanager
def _held(folder: Path, manifest: Manifest) -> Iterator[Path]:
    """Where a checkpoint's file stays until it is uploaded, also when it is retired meanwhile."""
    path, held = folder / FOLDER / manifest.file, folder / _HELD
    held.unlink(missing_ok=True)
    try:
        held.hardlink_to(path)
    except OSError:  # it is gone, or the disk has no links
        yield path
        return
    try:
        yield held
    finally:
        held.unlink(missing_ok=True)


def _holds(there: list[Manifest], manifest: Manifest) -> bool:
    return any(each.serial == manifest.serial and each.sha256 == manifest.sha256 for each in there)
