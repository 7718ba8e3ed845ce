import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from imachsr import cli
from tests.cli.command import Cli, Ran


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def call(*args: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["imachsr", *map(str, args)])
        code: Any = 0
        with warnings.catch_warnings():
            try:
                cli.main()
            except SystemExit as ending:
                code = ending.code or 0
        return Ran(code, *capfd.readouterr())

    return call


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command and gives it back once its stderr says something."""
    live: list[subprocess.Popen[str]] = []

    def start(*args: object, until: str) -> subprocess.Popen[str]:
        with (tmp_path / "err").open("w") as err:
            command = [sys.executable, "-m", "imachsr", *map(str, args)]
            found = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=err, text=True, start_new_session=True)
        live.append(found)
        deadline = time.monotonic() + 120
        while not re.search(until, (tmp_path / "err").read_text()):
            assert found.poll() is None, (tmp_path / "err").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return found

    yield start
    for each in live:
        if each.poll() is None:
            os.killpg(each.pid, signal.SIGKILL)
            each.wait()
