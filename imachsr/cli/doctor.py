"""The command that checks this machine, or a cluster: doctor."""

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from imachsr.cli.options import Json, local
from imachsr.console import plain, print_json


def doctor(
    address: Annotated[
        str | None, typer.Option(help="Also check all nodes of the Ray cluster at HOST:PORT, or at auto for this machine's.", show_default=False)
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(help="Folder for results that all nodes should share, or s3://BUCKET/FOLDER, ... that they should reach.", show_default=False),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of a data set that all nodes should see.", callback=local, show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Check this machine: versions, devices, memory, W&B; with --address the nodes of a cluster: versions, resources, storage, clocks, network, data.

    Exit code 1 when something that is needed is missing.
    """
    from imachsr.doctor import diagnose

    with contextlib.redirect_stdout(sys.stderr):  # what Ray prints is no result
        checks = diagnose(address, storage=storage, data=data)
    if as_json:
        print_json([dataclasses.asdict(check) for check in checks])
    else:
        table = Table("", "check", Column("finding", overflow="fold"))
        for check in checks:
            mark = Text(check.state, style={"ok": "green", "warning": "yellow", "error": "red"}[check.state])
            table.add_row(mark, check.name, check.finding)
        plain.print(table)
    if any(check.state == "error" for check in checks):
        raise typer.Exit(1)
