"""The commands of a search: search, report, export."""

import contextlib
import dataclasses
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imachsr.cli.common import (
    INTERRUPTED,
    PROJECT,
    WANDB,
    Address,
    Json,
    Project,
    Wandb,
    about_data,
    check_kind,
    decoded,
    free,
    join,
    local,
    open_tracker,
    result_folder,
    tracking_options,
    yaml_path,
)
from imachsr.console import Progress, arms_table, people, plain, print_json, search_table

if TYPE_CHECKING:
    from imachsr.search.space import Search
    from imachsr.train.courier import Courier

SearchOverrides = Annotated[
    list[str] | None, typer.Argument(help="Settings as key=value, such as budget.trials=6 or run.optimizer.epochs=2.", show_default=False)
]


def _check_prefix(overrides: list[str]) -> None:
    """The likeliest slip: a setting of a run where one of the search is meant."""
    from imachsr.config.schema import ConfigError, Run
    from imachsr.search.space import Search

    for text in overrides:
        first = text.partition("=")[0].partition(".")[0].strip()
        if first in Run.model_fields and first not in Search.model_fields:
            raise ConfigError(f"a setting of the base run must begin with run., as in run.{text}, but got {text!r}")


def _resumed(folder: Path, config: str | None, overrides: list[str], extend: int | None) -> tuple["Search", list[str]]:
    """The search that is in a folder, with more of a budget, and what it is continued with."""
    from imachsr.config.load import load_yaml, parse_overrides
    from imachsr.config.schema import ConfigError
    from imachsr.search.folder import CHANGEABLE, SETTINGS, holds_search
    from imachsr.search.space import load_search

    if not holds_search(folder):
        raise ConfigError(f"--resume must name the result folder of a search, but {folder} holds none")
    if config is not None:
        if "=" not in config:
            raise ConfigError(f"{config} must be left out with --resume: the settings are those in {folder / SETTINGS}")
        overrides = [config, *overrides]
    if wrong := [key for key in parse_overrides(overrides) if key.partition(".")[0] not in CHANGEABLE]:
        raise ConfigError(f"a search must be continued as it began, but {', '.join(wrong)} would change; only budget.* may")
    if extend is not None:
        if "budget.trials" in parse_overrides(overrides):
            raise ConfigError("--extend and --trials must not be given together: so many more trials, or so many in all")
        before = load_yaml(folder / SETTINGS)["budget"]["trials"]
        overrides = [*overrides, f"budget.trials={before + extend}"]
    return load_search(folder / SETTINGS, overrides), overrides


def _connected(storage: str, resume: Path | None) -> "Courier":
    """The storage that a search is kept in; what is there and not here is brought when it is continued."""
    from imachsr.config.schema import ConfigError
    from imachsr.search.database import FILE
    from imachsr.search.folder import holds_search
    from imachsr.search.mirror import fetch
    from imachsr.train.courier import connect

    courier = connect(storage)
    if resume is None and FILE in courier.ask("names", ""):
        raise ConfigError(f"{courier.uri} must be a new folder, but holds a search; give another --storage, or continue it with --resume")
    if resume is not None and not holds_search(resume):
        fetch(courier, resume)
    return courier


def search(
    config: Annotated[
        str | None, typer.Argument(help="YAML file of a search, such as search_spaces/quickstart.yaml; left out with --resume.", show_default=False)
    ] = None,
    overrides: SearchOverrides = None,
    output: Annotated[Path | None, typer.Option(help="New folder for all results.", callback=local, show_default="runs/NAME")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the data set; sets run.data.root.", callback=local, show_default=False)] = None,
    trials: Annotated[int | None, typer.Option(help="Trials in all, with the baseline; sets budget.trials.", show_default="that of the file")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Trials at a time; sets budget.concurrency.", show_default="that of the file")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Continue the search in this folder; only budget.* may be set anew.", callback=local, show_default=False)
    ] = None,
    extend: Annotated[int | None, typer.Option(help="With --resume: so many more trials.", min=1, show_default=False)] = None,
    warm_start: Annotated[
        list[Path] | None, typer.Option(help="Result folder of an older search to learn from; may be repeated.", show_default=False)
    ] = None,
    study: Annotated[
        str | None, typer.Option(help="URL of a database for the study, instead of a file in the folder.", envvar="IMACHSR_STUDY", show_default=False)
    ] = None,
    address: Address = None,
    storage: Annotated[
        str | None,
        typer.Option(help="Also keep the search in s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, ... or another folder.", show_default=False),
    ] = None,
    wandb: Wandb = WANDB,
    wandb_project: Project = PROJECT,
    as_json: Json = False,
) -> None:
    """Search over intermediate supervision with Ray Tune and Optuna."""
    from imachsr.config.schema import ConfigError
    from imachsr.report.html import write_report
    from imachsr.search.database import without_password
    from imachsr.search.samplers import notes
    from imachsr.search.space import load_search
    from imachsr.search.tuner import run_search
    from imachsr.search.warm import lesson, taught

    _check_prefix(overrides or [])
    options = [("budget.trials", trials), ("budget.concurrency", concurrency), ("run.data.root", yaml_path(data) if data else None)]
    given = [*(overrides or []), *(f"{key}={value}" for key, value in options if value is not None)]
    join(address)
    courier = None if storage is None else _connected(storage, resume)
    lessons = []
    if resume is not None:
        if wrong := [name for name, value in (("--output", output), ("--warm-start", warm_start)) if value]:
            raise ConfigError(f"{wrong[0]} must be left out with --resume, which names the folder to go on in")
        found, given = _resumed(resume, config, given, extend)
        folder = resume
    else:
        if config is None:
            raise ConfigError("CONFIG must be the YAML file of a search, such as search_spaces/quickstart.yaml, or --resume a folder to go on in")
        if extend is not None:
            raise ConfigError("--extend must come with --resume, the folder of the search that gets more trials; a new one has --trials")
        check_kind(Path(config), "search")
        with about_data(data, "run.data"):
            found = load_search(config, given)
        folder = result_folder(output, found.name, resume=False, foreign=("checkpoints", "checkpoint.pt"))
        lessons = [lesson(older, found) for older in warm_start or []]
        found = taught(found, lessons)
    tracker = open_tracker(folder, wandb, wandb_project)
    base = found.base()
    epochs = base.optimizer.epochs

    def say(line: str) -> None:
        people.print(line, soft_wrap=True)

    def announce() -> None:
        say(f"search {found.name}: {found.budget.trials} trials of up to {epochs} epochs")
        for each in lessons:
            say(each.words)
        for line in notes(found):
            say(line)
        say(f"results in {folder}; starting Ray ...")

    if hasattr(base.data, "root"):
        decoded(base.data, "train")
    progress = Progress(found.metric.name, found.metric.mode, epochs, is_live=people.is_terminal and not as_json)
    with progress, contextlib.redirect_stdout(sys.stderr):  # what Ray prints is no result
        summary, lines = run_search(
            found,
            folder,
            tracker=tracker,
            on_change=progress.update,
            on_ready=announce,
            say=say,
            resume=resume is not None,
            study_url=study,
            courier=courier,
            learnt=[trial for each in lessons for trial in each.trials],
        )
    page = write_report(folder)
    failure = failure_of(summary, folder)
    again = shlex.join(
        ["imachsr", "search", "--resume", str(folder)]
        + [word for name, value in (("--storage", storage), ("--study", study and without_password(study))) if value for word in (name, value)]
        + tracking_options(wandb, wandb_project)
    )
    if as_json:
        print_json({**summary, "output": str(folder), "report": str(page)})
    else:
        _show_search(summary, page)
        quoted, run_file, run_folder = shlex.quote(str(folder)), free(Path("best"), ".yaml"), free(Path("runs/best"))
        go_on = [f"imachsr report {quoted}"]
        if not failure:
            go_on += [f"imachsr export {quoted} --out {run_file}", f"imachsr train {run_file} --output {run_folder}"]
        if not summary["finished"]:
            go_on = [again]
        say("to look at the runs, and to go on:")
        for line in [*lines, *go_on]:
            say(f"  {line}")
    for line in summary["alarms"]:
        people.print(f"note: {line}", soft_wrap=True)
    if summary["ended_early"]:
        say(f"ended early: {summary['ended_early']}")
    if not summary["finished"]:  # Tune answers the interrupt by ending in order
        raise typer.Exit(INTERRUPTED)
    if failure:
        people.print(f"failed: {failure}", soft_wrap=True, style="red")
        raise typer.Exit(1)
    if others := [trial for trial in summary["trials"] if trial["state"] == "FAIL"]:
        say(f"{len(others)} of {len(summary['trials'])} trials failed; the first: {_why(others[0], folder)}")


def _why(trial: dict[str, Any], folder: Path) -> str:
    own = folder / "trials" / format(trial["number"], "04d")
    return f"trial {trial['number']}: {trial['error']} (in full: {own / 'error.txt'}; by itself: imachsr train {shlex.quote(str(own / 'run.yaml'))})"


def failure_of(summary: dict[str, Any], folder: Path) -> str:
    """Why a search found nothing, or "": without the baseline there is nothing to compare with."""
    failed = [trial for trial in summary["trials"] if trial["state"] == "FAIL"]
    baseline = next((trial for trial in failed if trial["number"] == summary["baseline"]), None)
    if baseline is not None:
        return f"the baseline, {_why(baseline, folder)}"
    beyond = [trial for trial in summary["trials"] if not trial.get("feasible", True)]
    if (bare := next((trial for trial in beyond if trial["number"] == summary["baseline"]), None)) is not None:
        return f"the baseline, trial {bare['number']}, is {bare['why']}; raise the limit, or lower what a trial takes"
    if beyond and summary["best"] is None and not failed:
        return f"no trial finished; trial {beyond[0]['number']} is {beyond[0]['why']}"
    return f"no trial finished; {_why(failed[0], folder)}" if failed and summary["best"] is None else ""


def _show_search(summary: dict[str, Any], page: Path) -> None:
    plain.print(search_table(summary))
    if (means := arms_table(summary)) is not None:
        plain.print(means)
    plain.print(f"report: {page}", soft_wrap=True)


def report(folder: Annotated[Path, typer.Argument(help="Result folder of a search.")], as_json: Json = False) -> None:
    """Show a search's table and write its HTML report; reads files only."""
    from imachsr.report.html import write_report
    from imachsr.report.table import arms, load_summary, rows

    summary = load_summary(folder)
    page = write_report(folder)
    if as_json:
        means = [{**dataclasses.asdict(arm), "mean": arm.mean, "difference": arm.difference} for arm in arms(summary)]
        return print_json({**summary, "rows": [dataclasses.asdict(row) for row in rows(summary)], "arms": means, "report": str(page)})
    _show_search(summary, page)
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
