"""The command that asks whether what a search found is real."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from imachsr.cli.confirming import failure_of, run_plan, show
from imachsr.cli.exit_codes import INTERRUPTED
from imachsr.cli.options import PROJECT, WANDB, Json, Project, Wandb
from imachsr.cli.tracking import dashboard
from imachsr.console import people, plain, print_json, print_line, style_of


def confirm(
    folder: Annotated[Path, typer.Argument(help="Result folder of a search; the confirmation goes to confirm/ in it.")],
    top: Annotated[int | None, typer.Option(help="Best sampled configurations, beside all arms.", show_default="3")] = None,
    seeds: Annotated[int | None, typer.Option(help="Seeds of each, which the search never used.", show_default="8")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of every run.", show_default="those of the search")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Runs at a time.", show_default="that of the search")] = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Run also where the seeds are too few for anything to win.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the confirmation that was begun.")] = False,
    wandb: Wandb = WANDB,
    wandb_project: Project = PROJECT,
    as_json: Json = False,
    json_lines: Annotated[
        bool, typer.Option("--json-lines", help="Print an object a line on stdout for every change (event: confirmation), then the result.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress; the result and what goes wrong only.")] = False,
) -> None:
    """Run a search's best and its arms again, with fresh paired seeds, trained on all of train and scored on val; test the differences."""
    from imachsr.config.schema import ConfigError
    from imachsr.report.table import load_summary
    from imachsr.search.confirm import FOLDER, SEEDS, TOP, load_plan, make_plan

    if as_json and json_lines:
        raise ConfigError("--json and --json-lines must not be given together: one document at the end, or a line a change")
    at = folder / FOLDER
    summary = load_summary(folder)
    if resume:
        plan = load_plan(at, top=top, seeds=seeds, epochs=epochs, concurrency=concurrency)
    else:
        plan = make_plan(
            folder, summary, top=TOP if top is None else top, seeds=SEEDS if seeds is None else seeds, epochs=epochs, concurrency=concurrency
        )
        if (obstacle := plan.obstacle()) and not anyway:
            raise ConfigError(f"{obstacle}, or fewer comparisons, or --anyway")
    found, page, lines = run_plan(
        plan, at, resume=resume, wandb=wandb, project=wandb_project, style=style_of(as_json=as_json, json_lines=json_lines, quiet=quiet)
    )
    quoted = shlex.quote(str(folder))
    if found is None:
        people.print(f"to go on: imachsr confirm {quoted} --resume", soft_wrap=True)
        raise typer.Exit(INTERRUPTED)
    if as_json:
        print_json({**found, "output": str(at), "report": str(page)})
    elif json_lines:
        print_line({"event": "summary", **found, "output": str(at), "report": str(page)})
    else:
        show(found)
        plain.print(f"report: {page}", soft_wrap=True)
        for line in [*lines, *dashboard(folder, wandb), f"imachsr export {quoted}"]:
            people.print(line, soft_wrap=True)
    if failure := failure_of(found, at):
        people.print(f"failed: {failure}", soft_wrap=True, style="red")
        raise typer.Exit(1)
