"""What people see in a terminal: progress on stderr, results on stdout."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Literal, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from imachsr.report.table import OPEN, STATES, arms, further, has_seeds, rows, short, whole


def _console(*, stderr: bool) -> Console:
    """Texts as they are: a path, a class name or an error may hold [brackets] or :colons:, which are no markup here."""
    console = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 160  # a file or a pipe has no width; 80 columns would break tables into pieces
    return console


BAR_AFTER_S = 1.0
people = _console(stderr=True)  # progress and hints
plain = _console(stderr=False)  # results


def print_json(value: Any) -> None:
    """Print a result for machines, as one JSON document."""
    from imachsr.tracking.events import finite

    sys.stdout.write(json.dumps(finite(value), indent=1) + "\n")


def print_line(value: Any, out: TextIO | None = None) -> None:
    """Print one event for machines, as a line of JSON, at once; on stdout as it is now, or was."""
    from imachsr.tracking.events import finite

    print(json.dumps(finite(value)), file=out or sys.stdout, flush=True)


class Bar:
    """A bar on stderr for work in this process, once it takes longer than a second; none where stderr is no terminal."""

    def __init__(self, what: str) -> None:
        from rich import progress

        columns = (progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn(), progress.TimeRemainingColumn())
        self._bar = progress.Progress(*columns, console=people, transient=True)
        self._task = self._bar.add_task(what)
        self._began = time.monotonic()

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def update(self, done: int, total: int) -> None:
        """So many of all are done; the bar goes with the last."""
        self._bar.update(self._task, completed=done, total=total)
        if done == total:
            self._end()
        elif people.is_interactive and time.monotonic() - self._began > BAR_AFTER_S:
            self._bar.start()

    def _end(self) -> None:
        if self._bar.live.is_started:  # else rich would print an empty line where there is no terminal
            self._bar.stop()


Style = Literal["live", "lines", "json", "quiet"]


def style_of(*, as_json: bool = False, json_lines: bool = False, quiet: bool = False) -> Style:
    """How progress is shown with these options, on what stderr is."""
    if json_lines:
        return "json"
    return "quiet" if quiet else "live" if people.is_terminal and not as_json else "lines"


class Progress:
    """What is shown of a search while it runs.

    Args:
        metric: Its name.
        mode: max or min.
        epochs: Of a whole trial.
        style: ``live``, a view that is drawn anew, for a terminal; ``lines``, a line on stderr for every change; ``json``, an object a line on stdout
            for every change, with the keys event, number, arm, seed, state, epochs, value, error; or ``quiet``, nothing.
        folder: Of the results, whose summary.json tells what is left of the budget.
        trials: In all.
        event: What such an object is of.
    """

    def __init__(
        self, metric: str, mode: str, epochs: int, *, style: Style, folder: Path | None = None, trials: int | None = None, event: str = "trial"
    ) -> None:
        self._facts = {"metric": metric, "mode": mode, "max_epochs": epochs, "baseline": 0, "budget": trials}
        self._style, self._folder, self._out, self._event = style, folder, sys.stdout, event
        self._seen: dict[int, tuple[str, int]] = {}
        self._live = Live(console=people, refresh_per_second=4, transient=True) if style == "live" else None

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def update(self, trials: list[dict[str, Any]]) -> None:
        """Show all trials, as in summary.json."""
        if self._live:
            self._live.update(overview({**_told(self._folder), **self._facts, "trials": trials}, height=people.height))
            return
        for trial in trials if self._style != "quiet" else ():
            now = (trial["state"], trial["epochs"])
            if self._seen.get(trial["number"]) == now:
                continue
            self._seen[trial["number"]] = now
            if self._style == "json":
                told = {key: trial.get(key) for key in ("number", "arm", "seed", "state", "epochs", "value", "error")}
                print_line({"event": self._event, **told}, self._out)
                continue
            value = "" if trial["value"] is None else f"  {self._facts['metric']} {trial['value']:.2f}"
            error = f"  {trial['error']}" if trial["error"] else ""
            name = f"trial {trial['number']}" + (f" ({trial['arm']})" if trial["arm"] else "")
            state = f"{STATES[trial['state']]}, epoch {trial['epochs']}/{whole(self._facts, trial)}"
            people.print(f"{name}: {state}{value}{error}", soft_wrap=True)


def _told(folder: Path | None) -> dict[str, Any]:
    """What summary.json held last; {} where there is none yet."""
    try:
        found: Any = json.loads((folder / "summary.json").read_text(encoding="utf-8")) if folder is not None else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def overview(summary: dict[str, Any], *, height: int) -> Group:
    """A search at a glance: where it stands, a bar for each running trial, and as much of its table as fits.

    Args:
        summary: As in summary.json.
        height: Lines of the terminal.
    """
    trials = summary["trials"]
    running = [trial for trial in trials if trial["state"] == "RUNNING"]
    bars = Table.grid(padding=(0, 1))
    most = max(1, height // 3)
    for trial in running[:most]:
        name = f"trial {trial['number']}" + (f" ({trial['arm']})" if trial["arm"] else "")
        value = "" if trial["value"] is None else f"{trial['value']:.2f}"
        total = whole(summary, trial)
        done = f"{trial['epochs']}/{total}"
        bars.add_row(name, ProgressBar(total=total, completed=trial["epochs"], width=24), done, value, Text(short(trial["params"])))
    if len(running) > most:
        bars.add_row(f"and {len(running) - most} more")
    ended = {**summary, "trials": [trial for trial in trials if trial["state"] != "RUNNING"]}
    kept = rows(ended)[: max(1, height - len(running[:most]) - 10)]
    shown = {**ended, "trials": [trial for trial in ended["trials"] if trial["number"] in {row.number for row in kept}]}
    return Group(Text("\n".join(standing(summary))), bars, *([search_table(shown)] if kept else []))


def standing(summary: dict[str, Any]) -> list[str]:
    """Two or three lines: how many trials ended how, the best against the baseline, what is left."""
    trials, sign = summary["trials"], 1 if summary["mode"] == "max" else -1
    states = [trial["state"] for trial in trials]
    counts = [f"{states.count(state)} {name}" for state, name in STATES.items() if states.count(state)]
    of = f" of {summary['budget']}" if summary.get("budget") else ""
    lines = [f"{sum(state not in OPEN for state in states)}{of} trials ended: " + (", ".join(counts) or "none yet")]
    whole = [trial for trial in trials if trial["state"] == "COMPLETE" and trial["value"] is not None]
    baseline = next((trial for trial in whole if trial["number"] == summary.get("baseline")), None)
    if whole:
        best = max(whole, key=lambda trial: sign * float(trial["value"]))
        against = "" if baseline is None or best is baseline else f", {best['difference'] or 0:+.2f} against the baseline's {baseline['value']:.2f}"
        lines.append(f"best so far: trial {best['number']}, {summary['metric']} {best['value']:.2f}{against}")
    left = [] if summary.get("left_s") is None else [f"about {_span(summary['left_s'])} left"]
    spent = summary.get("spent") or {}
    left += [f"{_span(3600 * spent['hours'])} spent"] if spent.get("hours") else []
    left += [f"{spent['money']:.2f} of money spent"] if spent.get("money") else []
    return lines + ([", ".join(left)] if left else [])


def _span(seconds: float) -> str:
    """A time as people say it."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def search_table(summary: dict[str, Any]) -> Table:
    """A search's table; ``summary`` as in summary.json."""
    metric = summary["metric"]
    shown = Table(title=f"{metric} of the last epoch" + (", percent" if "iou" in metric or metric.endswith(("accuracy", "ece")) else ""))
    seeded = has_seeds(summary)
    for name in ("trial", *(["seed"] if seeded else []), "mIoU" if metric.endswith("miou") else metric, *further(summary), "difference", "epochs"):
        shown.add_column(name, justify="right")
    for name in ("state", "configuration"):
        shown.add_column(name, overflow="fold")
    for row in rows(summary):
        value = "" if row.value is None else f"{row.value:.2f}"
        difference = "" if row.difference is None else f"{row.difference:+.2f}"
        what = f"{row.arm}: {row.settings}" if row.arm else row.settings
        style = "bold" if row.number == summary["baseline"] else "dim" if row.state in ("stopped", "failed") else None
        name = [str(row.number), *([str(row.seed)] if seeded else [])]
        others = ["" if each is None else f"{each:.4g}" for each in row.others]
        shown.add_row(*name, value, *others, difference, row.epochs, row.state_words, row.error or what, style=style)
    return shown


def arms_table(summary: dict[str, Any]) -> Table | None:
    """Means over the seeds and paired differences of a search's arms; None for a search with one seed."""
    if not (found := arms(summary)):
        return None
    shown = Table(title="arms over their seeds, against the baseline with the same seed", title_justify="left")
    for name in ("arm", "seeds", "mean", "difference", "of each seed"):
        shown.add_column(name, justify="left" if name in ("arm", "of each seed") else "right", overflow="fold")
    for arm in found:
        difference = "" if arm.difference is None else f"{arm.difference:+.2f}"
        shown.add_row(arm.name, str(len(arm.values)), f"{arm.mean:.2f}", difference, arm.each, style="bold" if arm.is_baseline else None)
    return shown


def show_search(summary: dict[str, Any], page: Path) -> None:
    """A search's table, the means of its arms, and where its report is."""
    plain.print(search_table(summary))
    if (means := arms_table(summary)) is not None:
        plain.print(means)
    plain.print(f"report: {page}", soft_wrap=True)
