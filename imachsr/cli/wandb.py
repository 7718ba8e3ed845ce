"""The commands that bring a result folder to W&B: sync, workspace."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from imachsr.cli.options import PROJECT, Json
from imachsr.cli.tracking import dashboard
from imachsr.console import people, plain, print_json

app = typer.Typer(no_args_is_help=True, help="Bring a result folder to W&B: runs that are not there yet, and the dashboard.")
Folder = Annotated[Path, typer.Argument(help="Result folder of a search, a study or a training.")]
Project = Annotated[str | None, typer.Option("--wandb-project", help="Project in W&B.", show_default=f"that of the folder's runs, else {PROJECT}")]


@app.command()
def sync(folder: Folder, wandb_project: Project = None, as_json: Json = False) -> None:
    """Send what the server has not: files of offline runs, and runs made again from the folder's own lines; may be run twice."""
    from imachsr.config.folder import lock
    from imachsr.report.table import load_summary
    from imachsr.search.tracked import recorded
    from imachsr.study.tracked import SETTINGS as STUDY
    from imachsr.study.tracked import recorded as recorded_study
    from imachsr.tracking import sync as bring
    from imachsr.tracking.recorded import Place

    is_study = (folder / STUDY).exists()
    if not is_study and (folder / "summary.json").exists() and (folder / "search.yaml").exists():
        load_summary(folder)  # one that is broken, or of another version, is told as everywhere
    folders = [(folder, recorded_study(folder) if is_study else recorded(folder))]
    if (folder / "confirm" / "summary.json").exists():
        folders.append((folder / "confirm", recorded(folder / "confirm")))
    report = bring.Report()
    for at, runs in folders:
        with lock(at):
            place = Place.of(at)
            project = wandb_project or (place.project if place else PROJECT)
            found = bring.sync(at, runs, project=project, is_named=wandb_project is not None, say=lambda line: people.print(line, soft_wrap=True))
            entity = found.entity or (place.entity if place else "")
            Place(entity=entity, project=project, is_online=not found.failed).write(at)
            report += found
    lines = [] if report.failed or is_study else dashboard(folder)
    counts = {name: len(getattr(report, name)) for name in ("uploaded", "rebuilt", "already", "failed", "aside")}
    if as_json:
        print_json({**dataclasses.asdict(report), "aside": [str(path) for path in report.aside], "dashboard": lines})
    else:
        plain.print(
            "runs sent {uploaded}, made again {rebuilt}, there already {already}, not sent {failed}; files set aside {aside}".format(**counts)
        )
        for line in lines:
            people.print(line, soft_wrap=True)
    if report.failed:
        people.print("failed: " + "; ".join(f"{run}: {why}" for run, why in report.failed.items()), soft_wrap=True, style="red")
        raise typer.Exit(1)


@app.command()
def workspace(folder: Annotated[Path, typer.Argument(help="Result folder of a search.")], wandb_project: Project = None) -> None:
    """Make the dashboard of a search: saved on the server where it can be, else its specification beside the results."""
    from imachsr.report.export import load_confirmation
    from imachsr.report.table import load_summary
    from imachsr.tracking.preflight import entity, preflight
    from imachsr.tracking.recorded import Place
    from imachsr.tracking.workspace import make

    load_summary(folder)
    place, found = Place.of(folder), preflight("auto")
    is_online = found.mode == "online"
    if not is_online:
        people.print(f"W&B is {found.mode}: {found.reason}", soft_wrap=True)
    project = wandb_project or (place.project if place else PROJECT)
    owner = (place.entity if place else "") or (entity() if is_online else "")
    for line in make(folder, load_confirmation(folder), Place(entity=owner, project=project, is_online=is_online)):
        plain.print(line, soft_wrap=True)
