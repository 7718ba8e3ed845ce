"""The commands that read what a search has left: report, export."""

import dataclasses
import shlex
from pathlib import Path
from typing import Annotated

import typer

from imachsr.cli.options import Json
from imachsr.console import people, plain, print_json, show_search


def report(folder: Annotated[Path, typer.Argument(help="Result folder of a search.")], as_json: Json = False) -> None:
    """Show a search's table and write its HTML report; reads files only."""
    from imachsr.report.html import write_report
    from imachsr.report.table import arms, load_summary, rows

    summary = load_summary(folder)
    page = write_report(folder)
    if as_json:
        means = [{**dataclasses.asdict(arm), "mean": arm.mean, "difference": arm.difference} for arm in arms(summary)]
        return print_json({**summary, "rows": [dataclasses.asdict(row) for row in rows(summary)], "arms": means, "report": str(page)})
    show_search(summary, page)
    return None


def export(
    folder: Annotated[Path, typer.Argument(help="Result folder of a search.")],
    out: Annotated[Path, typer.Option(help="YAML file to write; must not exist.")] = Path("best.yaml"),
    trial: Annotated[int | None, typer.Option(help="Number of the trial.", show_default="the best finished one")] = None,
    as_json: Json = False,
) -> None:
    """Write a trial's settings as a run of its own; its comments say where they come from, and what one more run is expected to give."""
    from imachsr.report.export import export as write

    written = write(folder, out, trial=trial)
    if as_json:
        return print_json({"trial": written.trial, "out": str(out), "provenance": written.provenance})
    plain.print(f"trial {written.trial} in {out}", soft_wrap=True)
    if expected := written.provenance["expected"]:
        plain.print(f"expected of one more run: {expected['metric']} from {expected['low']:.4g} to {expected['high']:.4g} (95 %)", soft_wrap=True)
    people.print(f"imachsr train {shlex.quote(str(out))}", soft_wrap=True)
    return None
