"""Another process that speaks with a storage, so that no server can hold up or bring down the training."""

import contextlib
import json
import secrets
import subprocess
import sys
import threading
from pathlib import PurePosixPath
from typing import Any

from imachsr import storage
from imachsr.config.schema import ConfigError
from imachsr.train.checkpoint import FOLDER
from imachsr.train.manifest import Manifest, parse_manifest
from imachsr.train.state_file import DamagedError

END_S = 5.0
"""Longest wait for the process to end once it was killed, seconds: one that hangs in a disk cannot."""


class RemoteError(OSError):
    """A storage does not do what it was asked.

    Attributes:
        kind: Of the failure; equal ones need not be told twice.
        why: In words.
    """

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(kind, why)
        self.kind, self.why = kind, why

    def __str__(self) -> str:
        return self.why


class MissingError(RemoteError):
    """There is no such file."""


class Courier:
    """The folder of one training in a storage. The process starts with the first question, and again when it has died.

    Args:
        uri: As :func:`imachsr.storage.address` gives it.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._turn = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._is_closed = False

    def ask(self, do: str, *args: str) -> Any:
        """What a method of :class:`imachsr.storage.Storage` gives.

        Raises:
            MissingError: If there is no such file.
            RemoteError: If it fails in another way.
        """
        with self._turn:
            try:
                process = self._running()
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(json.dumps([do, *args]) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except (OSError, ValueError):  # the pipe is broken, or was closed
                line = ""
            if not line:
                self._process = None
                raise RemoteError("ended", f"the process that speaks with {self.uri} ended")
        answer = json.loads(line)
        if "why" in answer:
            raise (MissingError if answer["is_missing"] else RemoteError)(*answer["why"])
        return answer["value"]

    def _running(self) -> "subprocess.Popen[str]":
        if self._is_closed:
            raise ValueError("closed")
        if self._process is None or self._process.poll() is not None:
            # By its path: the package would import torch, which takes seconds. -P: beside it lie files that are named like packages.
            command = [sys.executable, "-P", storage.__file__, self.uri]
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self._process = subprocess.Popen(command, text=True, **pipes)
        return self._process

    def close(self) -> None:
        """End the process, whatever it does."""
        self._is_closed = True
        if (process := self._process) is not None:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_S)

    def manifests(self) -> tuple[list[Manifest], dict[str, str]]:
        """Those in the storage, oldest first; of the damaged ones what is wrong.

        Raises:
            ConfigError: If one is of another schema.
            RemoteError: If the storage cannot be read.
        """
        found, damaged = [], {}
        for name in self.ask("names", FOLDER):
            if not name.endswith(".json"):
                continue
            try:
                found.append(parse_manifest(self.ask("read", f"{FOLDER}/{name}"), PurePosixPath(self.uri) / FOLDER / name))
            except DamagedError as error:
                damaged[name] = str(error)
            except MissingError:
                continue  # retired since the listing
        return sorted(found, key=lambda manifest: manifest.serial), damaged


def probe(courier: Courier) -> str:
    """Write a file, read it and delete it; "" when that worked, else what did not."""
    return str(courier.ask("reach", secrets.token_hex(8)))


def connect(text: str) -> Courier:
    """A courier to a storage that was tried: a file was written, read and deleted.

    Raises:
        ConfigError: If the address is none, or the storage cannot be used from here.
    """
    try:
        uri = storage.address(text)
    except ValueError as error:
        raise ConfigError(f"--storage: {error}") from None
    courier = Courier(uri)
    if why := probe(courier):
        courier.close()
        raise ConfigError(f"--storage must be a place to write to and to read from, but on this machine {uri} is not: {why}")
    return courier
