"""The command that searches."""

import contextlib
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imachsr.cli.confirming import confirm_search, show
from imachsr.cli.decoding import decoded
from imachsr.cli.exit_codes import INTERRUPTED
from imachsr.cli.failures import failed_trials, failure_of
from imachsr.cli.kinds import check_kind
from imachsr.cli.options import PROJECT, WANDB, Address, Json, Project, Wandb, about_data, join, local, result_folder, tracking_options, yaml_path
from imachsr.cli.tracking import dashboard, open_tracker
from imachsr.console import Progress, people, print_json, print_line, show_search, style_of

if TYPE_CHECKING:
    from imachsr.search.space import Search
    from imachsr.train.courier import Courier

SearchOverrides = Annotated[
    list[str] | None, typer.Argument(help="Settings as key=value, such as budget.trials=6 or run.optimizer.epochs=2.", show_default=False)
]


def _with_confirm(given: list[str], path: Path) -> list[str]:
    """What was given, with the defaults of a confirmation unless that or the file says what is to be confirmed."""
    from imachsr.config.load import load_yaml, parse_overrides
    from imachsr.config.schema import ConfigError

    values = parse_overrides(given)
    if "confirm" in values and values["confirm"] is None:
        raise ConfigError("--confirm and confirm=null must not be given together")
    is_told = load_yaml(path).get("confirm") is not None or any(key.partition(".")[0] == "confirm" for key in values)
    return given if is_told else [*given, "confirm.top=3"]


def _resumed(folder: Path, config: str | None, overrides: list[str], extend: int | None, *, confirm: bool) -> tuple["Search", list[str]]:
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
        raise ConfigError(f"a search must be continued as it began, but {', '.join(wrong)} would change; only budget.* and confirm.* may")
    if extend is not None:
        if "budget.trials" in parse_overrides(overrides):
            raise ConfigError("--extend and --trials must not be given together: so many more trials, or so many in all")
        before = load_yaml(folder / SETTINGS)["budget"]["trials"]
        overrides = [*overrides, f"budget.trials={before + extend}"]
    overrides = _with_confirm(overrides, folder / SETTINGS) if confirm else overrides
    return load_search(folder / SETTINGS, overrides), overrides


def _connected(storage: str, resume: Path | None) -> "Courier":
    """The storage that a search is kept in; what is there and not here is brought when it is continued."""
    from imachsr.config.schema import ConfigError
    from imachsr.search.folder import SETTINGS, holds_search
    from imachsr.search.mirror import fetch, refuse_older
    from imachsr.train.courier import connect

    courier = connect(storage)
    if resume is None and SETTINGS in courier.ask("names", ""):
        raise ConfigError(f"{courier.uri} must be a new folder, but holds a search; give another --storage, or continue it with --resume")
    if resume is not None:
        (refuse_older if holds_search(resume) else fetch)(courier, resume)
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
        Path | None,
        typer.Option(help="Continue the search in this folder; budget.* and confirm.* may be set anew.", callback=local, show_default=False),
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
    confirm: Annotated[
        bool,
        typer.Option(
            "--confirm",
            help="Confirm what was found when the search has ended, as `imachsr confirm` does, by the file's `confirm`, or top 3 and 8 seeds.",
        ),
    ] = False,
    wandb: Wandb = WANDB,
    wandb_project: Project = PROJECT,
    as_sweep: Annotated[
        bool, typer.Option("--as-sweep", help="Attach the trials to a sweep in W&B, which draws nothing, for the views that only sweeps have.")
    ] = False,
    as_json: Json = False,
    json_lines: Annotated[
        bool,
        typer.Option(
            "--json-lines",
            help="Print an object a line on stdout for every change (event: trial, or confirmation), then the result (event: summary).",
        ),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress; the result and what goes wrong only.")] = False,
) -> None:
    """Search over intermediate supervision with Ray Tune and Optuna."""
    from imachsr.config.folder import free
    from imachsr.config.schema import ConfigError
    from imachsr.report.html import write_report
    from imachsr.search.database import without_password
    from imachsr.search.samplers import notes
    from imachsr.search.space import load_search
    from imachsr.search.tracked import sweep_of
    from imachsr.search.tuner import run_search
    from imachsr.search.warm import lesson, taught

    if as_json and json_lines:
        raise ConfigError("--json and --json-lines must not be given together: one document, or a line for each event")
    options = [("budget.trials", trials), ("budget.concurrency", concurrency), ("run.data.root", yaml_path(data) if data else None)]
    given = [*(overrides or []), *(f"{key}={value}" for key, value in options if value is not None)]
    join(address)
    courier = None if storage is None else _connected(storage, resume)
    lessons = []
    if resume is not None:
        if wrong := [name for name, value in (("--output", output), ("--warm-start", warm_start)) if value]:
            raise ConfigError(f"{wrong[0]} must be left out with --resume, which names the folder to go on in")
        found, given = _resumed(resume, config, given, extend, confirm=confirm)
        folder = resume
    else:
        if config is None:
            raise ConfigError("CONFIG must be the YAML file of a search, such as search_spaces/quickstart.yaml, or --resume a folder to go on in")
        if extend is not None:
            raise ConfigError("--extend must come with --resume, the folder of the search that gets more trials; a new one has --trials")
        check_kind(Path(config), "search")
        given = _with_confirm(given, Path(config)) if confirm else given
        with about_data(data, "run.data"):
            found = load_search(config, given)
        folder = result_folder(output, found.name, resume=False, foreign=("run.yaml", "checkpoints", "checkpoint.pt", "study.yaml"))
        lessons = [lesson(older, found) for older in warm_start or []]
        found = taught(found, lessons)
    tracker = open_tracker(folder, wandb, wandb_project, sweep_of(found) if as_sweep else None)
    base = found.base()
    epochs = base.optimizer.epochs

    is_for_machines = as_json or json_lines

    def say(line: str) -> None:
        if not quiet:
            people.print(line, soft_wrap=True)

    def announce() -> None:
        say(f"search {found.name}: {found.budget.trials} trials of up to {epochs} epochs")
        for each in lessons:
            say(each.words)
        for line in notes(found):
            say(line)
        say(f"results in {folder}; starting Ray ...")

    if hasattr(base.data, "root"):
        for split in base.subset.splits if found.confirm is not None else ("train",):
            decoded(base.data, split)
    style = style_of(as_json=as_json, json_lines=json_lines, quiet=quiet)
    progress = Progress(found.metric.name, found.metric.mode, epochs, style=style, folder=folder, trials=found.budget.trials)
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
    is_shown = study is None or without_password(study) == study
    again = shlex.join(
        ["imachsr", "search", "--resume", str(folder)]
        + [
            word
            for name, value in (("--storage", storage), ("--study", study if is_shown else None), ("--address", address))
            if value
            for word in (name, value)
        ]
        + tracking_options(wandb, wandb_project)
    )
    confirmed: dict[str, Any] | None = None
    unconfirmed = ""
    is_to_confirm = found.confirm is not None and summary["finished"] and not failure
    if found.confirm is not None and is_to_confirm:
        if not is_for_machines:
            show_search(summary, page)
        confirmed, unconfirmed, more = confirm_search(folder, summary, found.confirm, wandb=wandb, project=wandb_project, style=style)
        lines += more
        if confirmed is not None and not is_for_machines:
            show(confirmed)
    is_whole = summary["finished"] and (not is_to_confirm or confirmed is not None or bool(unconfirmed))
    lines += dashboard(folder, wandb)
    told = {**summary, "output": str(folder), "report": str(page), **({"confirm": confirmed} if found.confirm is not None else {})}
    if as_json:
        print_json(told)
    elif json_lines:
        print_line({"event": "summary", **told})
    else:
        if not is_to_confirm:
            show_search(summary, page)
        quoted, run_file, run_folder = shlex.quote(str(folder)), free(Path("best"), ".yaml"), free(Path("runs/best"))
        go_on = [f"imachsr report {quoted}"]
        if not failure:
            go_on += [f"imachsr export {quoted} --out {run_file}", f"imachsr train {run_file} --output {run_folder}"]
        if not is_whole:
            go_on = [again]
        secret = "" if is_whole or is_shown else " (with IMACHSR_STUDY or --study, whose password is not shown)"
        say(f"to look at the runs, and to go on{secret}:")
        for line in [*lines, *go_on]:
            say(f"  {line}")
    for line in summary["alarms"]:
        people.print(f"note: {line}", soft_wrap=True)
    if summary["ended_early"]:
        say(f"ended early: {summary['ended_early']}")
    if not is_whole:  # Tune answers the interrupt by ending in order
        raise typer.Exit(INTERRUPTED)
    if failure or unconfirmed:
        people.print(f"failed: {failure or unconfirmed}", soft_wrap=True, style="red")
        raise typer.Exit(1)
    for line in failed_trials(summary, folder):
        people.print(line, soft_wrap=True)
