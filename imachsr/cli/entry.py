"""The program: its commands, and what its exit codes say."""

import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from imachsr.cli.confirm import confirm
from imachsr.cli.data import app as data
from imachsr.cli.doctor import doctor
from imachsr.cli.exit_codes import INTERRUPTED, TERMINATED
from imachsr.cli.layers import audit, layers, settings
from imachsr.cli.report import export, report
from imachsr.cli.search import search
from imachsr.cli.space import space
from imachsr.cli.study import study
from imachsr.cli.train import train
from imachsr.cli.trained import evaluate, export_model
from imachsr.cli.wandb import app as wandb
from imachsr.cli.watch import compare, watch
from imachsr.console import people, plain
from imachsr.version import __version__

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Intermediate supervision for segmentation models: train, search and report.",
)

for command in (layers, settings, space, train, search, watch, confirm, study, report, compare, export, evaluate, export_model, audit, doctor):
    app.command()(command)
app.add_typer(data, name="data")
app.add_typer(wandb, name="wandb")


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if version:
        plain.print(__version__)
        raise typer.Exit


def _told(error: Exception) -> tuple[str, int]:
    """What is said of an error, and the exit code."""
    if isinstance(error, ValueError):
        return f"error: {error}", 2
    if isinstance(error, (FloatingPointError, OSError, RuntimeError)):
        return f"failed: {error}", 1
    # The user's own model, loss or data set may raise anything.
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"failed: {type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})", 1


def _note_once() -> Callable[..., None]:
    """Shows a warning in one line. Data that are decoded ahead are loaded twice, and would warn twice."""
    told: set[str] = set()

    def show(message: Warning | str, *_args: object, **_options: object) -> None:
        if str(message) not in told:
            told.add(str(message))
            people.print(f"note: {message}", soft_wrap=True)

    return show


def main() -> None:
    """Run the command line: exit code 0, 1 (failed), 2 (the user's mistake, one message), 130 (interrupted) or 143 (by SIGTERM)."""
    # `import: mypackage.module:name` finds what lies beside the user; last, so that a file named like a package hides none.
    sys.path.append(os.getcwd())
    # Before Ray is imported: lines that it holds back as repeated would come at the very end, behind all that keeps them apart.
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", category=UserWarning, module="imachsr")
    warnings.showwarning = _note_once()
    try:
        app()
    except Exception as error:
        if os.environ.get("IMACHSR_TRACEBACK"):
            raise
        message, code = _told(error)
        people.print(message, soft_wrap=True, style="red")
        people.print("IMACHSR_TRACEBACK=1 shows where", style="dim")
        raise SystemExit(code) from None
    except SystemExit as ending:
        if ending.code == INTERRUPTED:  # typer's answer to the signal, without a word
            people.print("interrupted")
            raise SystemExit(_interrupted()) from None
        raise
    except KeyboardInterrupt:
        people.print("interrupted")
        raise SystemExit(_interrupted()) from None


def _interrupted() -> int:
    from imachsr.train.stopping import was_terminated

    return TERMINATED if was_terminated() else INTERRUPTED
