"""The command line as the tests call it, and what they expect of what it says."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
SMALL = ["optimizer.epochs=1", "data.num_train=8", "data.num_val=4", "data.size=[32,32]", "optimizer.batch_size=4"]
SEARCH = [
    "run.optimizer.epochs=2",
    "run.data.num_train=16",
    "run.data.size=[32,32]",
    "run.optimizer.batch_size=4",
    "scheduler.grace=1",
    "selection.blocks=2",
    "selection.guard=0",
]
COMMANDS = [
    *("layers", "settings", "space", "train", "search", "watch", "confirm", "report", "compare"),
    *("export", "export-model", "evaluate", "audit", "doctor"),
]


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Cli = Callable[..., Ran]


def process(*args: object, cwd: Path) -> Ran:
    """The command line in a process of its own."""
    found = subprocess.run([sys.executable, "-m", "imachsr", *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=300)
    return Ran(found.returncode, found.stdout, found.stderr)


def one_error(ran: Ran) -> str:
    """A user's mistake: exit code 2, nothing on stdout, one message, and how to get the traceback."""
    assert ran.code == 2, ran.err
    assert ran.out == ""
    assert "Traceback" not in ran.err
    before, _, message = ran.err.partition("error: ")
    assert "error: " not in before
    assert message.endswith("\nIMACHSR_TRACEBACK=1 shows where\n")
    return message


def unboxed(text: str) -> str:
    """Without rich's frames and line breaks."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


SCENES, QUICK = ROOT / "launch/scenes.yaml", ROOT / "search_spaces/quickstart.yaml"
