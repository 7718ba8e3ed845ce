"""What `confirm` and a search that confirms itself share: the runs, and how their result is shown."""

import contextlib
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from imachsr.cli.decoding import decoded
from imachsr.cli.tracking import open_tracker
from imachsr.console import Progress, Style, people, plain

if TYPE_CHECKING:
    from imachsr.search.confirm import Plan
    from imachsr.search.space.rules import Confirm


def run_plan(plan: "Plan", at: Path, *, resume: bool, wandb: str, project: str, style: Style) -> tuple[dict[str, Any] | None, Path, list[str]]:
    """Run a confirmation with its progress shown, and write its page and that of its search anew.

    Gives what it found (None: it was interrupted), its page, and the tracker's lines for the user.

    Args:
        plan: What to run.
        at: Its folder.
        resume: Whether it goes on there.
        wandb: As in the option, like ``project``.
        project: Of W&B.
        style: How its progress is shown.
    """
    from imachsr.report.html import write_report
    from imachsr.search.confirm import confirm
    from imachsr.search.summary import FILE as SUMMARY

    search = plan.search
    tracker = open_tracker(at, wandb, project)

    base = search.base()
    if hasattr(base.data, "root"):
        for split in base.subset.splits:
            decoded(base.data, split)
    progress = Progress(
        search.metric.name, search.metric.mode, base.optimizer.epochs, style=style, folder=at, trials=search.budget.trials, event="confirmation"
    )

    def say(line: str) -> None:
        people.print(line, soft_wrap=True)

    def announce() -> None:
        for line in _before(plan, at):
            say(line)

    with progress, contextlib.redirect_stdout(sys.stderr):  # what Ray prints is no result
        found, lines = confirm(plan, at, tracker=tracker, on_change=progress.update, on_ready=announce, say=say, resume=resume)
    page = write_report(at)
    if (at.parent / SUMMARY).exists():  # the search's own page tells of it too, and shows what it prefers
        write_report(at.parent)
    return found, page, lines


def confirm_search(
    folder: Path, summary: dict[str, Any], rules: "Confirm", *, wandb: str, project: str, style: Style
) -> tuple[dict[str, Any] | None, str, list[str]]:
    """Confirm what a finished search found. A confirmation that was begun goes on, one that has ended stays.

    Args:
        folder: Of the search.
        summary: Its summary.json.
        rules: What is to be confirmed.
        wandb: As in the option, like ``project``.
        project: Of W&B.
        style: How progress is shown.

    Returns:
        What it found, None without anything to compare and when it was interrupted; why it says nothing, "" when it does or was interrupted; and the
        tracker's lines for the user.
    """
    from imachsr.config.schema import ConfigError
    from imachsr.report.export import load_confirmation
    from imachsr.search.confirm import FOLDER, load_plan, make_plan
    from imachsr.search.folder import PLAN

    at = folder / FOLDER
    if (before := load_confirmation(folder)) is not None:
        people.print(
            f"{at} holds a confirmation already; to confirm again, move it away and give: imachsr confirm {shlex.quote(str(folder))}", soft_wrap=True
        )
        return before, failure_of(before, at), []
    resume = (at / PLAN).exists()
    try:
        plan = load_plan(at) if resume else make_plan(folder, summary, top=rules.top, seeds=rules.seeds, epochs=rules.epochs)
    except ConfigError as error:  # hours of search are not to end without their own result
        return None, f"the confirmation: {error}", []
    found, page, lines = run_plan(plan, at, resume=resume, wandb=wandb, project=project, style=style)
    if found is None:
        return None, "", lines
    people.print(f"report of the confirmation: {page}", soft_wrap=True)
    return found, failure_of(found, at), lines


def failure_of(found: dict[str, Any], at: Path) -> str:
    """Why a confirmation says nothing, or ""."""
    if found["best"] is None or all(each["verdict"] == "failed" for each in found["configurations"][1:]):
        return f"nothing could be compared; what each run said is in {at / 'trials'}/*/error.txt"
    return ""


def _before(plan: "Plan", at: Path) -> list[str]:
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


def show(found: dict[str, Any]) -> None:
    """A table of all configurations, and what is to be said of each."""
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
