"""The command that asks whether what a search found is real."""

import contextlib
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from imachsr.cli.common import INTERRUPTED, PROJECT, WANDB, Json, Project, Wandb, decoded, open_tracker
from imachsr.console import Progress, people, plain, print_json


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
) -> None:
    """Run a search's best and its arms again, with fresh paired seeds, trained on all of train and scored on val; test the differences."""
    from imachsr.config.schema import ConfigError
    from imachsr.report.html import write_report
    from imachsr.report.table import load_summary
    from imachsr.search.confirm import FOLDER, SEEDS, TOP, load_plan, make_plan
    from imachsr.search.confirm import confirm as run

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
    search = plan.search
    tracker = open_tracker(at, wandb, wandb_project)

    def announce() -> None:
        for line in _before(plan, at):
            people.print(line, soft_wrap=True)

    base = search.base()
    if hasattr(base.data, "root"):
        for split in ("train", "val"):
            decoded(base.data, split)
    progress = Progress(search.metric.name, search.metric.mode, base.optimizer.epochs, is_live=people.is_terminal and not as_json)
    with progress, contextlib.redirect_stdout(sys.stderr):  # what Ray prints is no result
        found, lines = run(plan, at, tracker=tracker, on_change=progress.update, on_ready=announce, resume=resume)
    page = write_report(at)
    quoted = shlex.quote(str(folder))
    if found is None:
        people.print(f"to go on: imachsr confirm {quoted} --resume", soft_wrap=True)
        raise typer.Exit(INTERRUPTED)
    if as_json:
        print_json({**found, "output": str(at), "report": str(page)})
    else:
        _show(found)
        plain.print(f"report: {page}", soft_wrap=True)
        for line in [*lines, f"imachsr export {quoted}"]:
            people.print(line, soft_wrap=True)
    if found["best"] is None or all(each["verdict"] == "failed" for each in found["configurations"][1:]):
        people.print(f"failed: nothing could be compared; what each run said is in {at / 'trials'}/*/error.txt", soft_wrap=True, style="red")
        raise typer.Exit(1)


def _before(plan: Any, at: Path) -> list[str]:
    """What is said before anything runs."""
    facts, runs = plan.facts, len(plan.search.fixed())
    names = ", ".join(each["name"] for each in facts["configurations"][1:])
    lines = [
        f"confirming {facts['search']}: {names} against {facts['configurations'][0]['name']}, {len(facts['seeds'])} seeds each: {runs} runs of "
        f"{facts['epochs']} epochs, scored on {facts['confirmed']}",
        *(f"trial {each['trial']} is left out, since it is the same as {each['same_as']}" for each in facts["left_out"]),
        f"results in {at}; starting Ray ...",
    ]
    if not facts["is_finished"]:
        lines.insert(0, "note: the search has not finished; what is best in it now is confirmed")
    if obstacle := plan.obstacle():
        lines.insert(0, f"note: {obstacle}")
    return lines


def _show(found: dict[str, Any]) -> None:
    from imachsr.search.verdict import between, is_percent

    metric, searched = found["confirmed"], found["metric"]
    shown = Table(title=f"{metric} of the last epoch, mean over {len(found['seeds'])} seeds" + (", percent" if is_percent(metric) else ""))
    shown.add_column("configuration", overflow="fold")
    for name in (f"search: {searched}", "difference", f"confirmed: {metric}", "difference", "95 %", "p", "p adjusted"):
        shown.add_column(name, justify="right")
    shown.add_column("verdict")
    for each in found["configurations"]:
        cells = [
            _cell(each["search"]["value"], searched),
            _cell(each["search"]["difference"], searched, signed=True),
            _cell(each["mean"], metric),
            _cell(each.get("difference"), metric, signed=True),
            between(each["interval"], metric, signed=True) if each.get("interval") else "",
            *("" if each.get(key) is None else f"{each[key]:.3g}" for key in ("p", "p_holm")),
        ]
        shown.add_row(each["name"], *cells, each["verdict"], style="bold" if each["verdict"] in ("baseline", "better") else None)
    plain.print(shown)
    for each in found["configurations"]:
        plain.print(each["words"], soft_wrap=True)
    for note in found["notes"]:
        plain.print(note, soft_wrap=True)


def _cell(value: float | None, metric: str, *, signed: bool = False) -> str:
    from imachsr.search.verdict import number

    return "" if value is None else number(value, metric, signed=signed)
