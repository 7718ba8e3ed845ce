"""What people see in a terminal: progress on stderr, results on stdout."""

import json
import os
import sys
import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from imachsr.report.table import STATES, arms, further, has_seeds, rows


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


class Progress:
    """What people see of a search: a live table on a terminal, else a line for every change."""

    def __init__(self, metric: str, mode: str, epochs: int, *, is_live: bool) -> None:
        self._metric, self._mode, self._epochs = metric, mode, epochs
        self._seen: dict[int, tuple[str, int]] = {}
        self._live = Live(console=people, refresh_per_second=4, transient=True) if is_live else None

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
            summary = {"trials": trials, "mode": self._mode, "baseline": 0, "max_epochs": self._epochs, "metric": self._metric}
            self._live.update(search_table(summary))
            return
        for trial in trials:
            now = (trial["state"], trial["epochs"])
            if self._seen.get(trial["number"]) != now:
                self._seen[trial["number"]] = now
                value = "" if trial["value"] is None else f"  {self._metric} {trial['value']:.2f}"
                error = f"  {trial['error']}" if trial["error"] else ""
                name = f"trial {trial['number']}" + (f" ({trial['arm']})" if trial["arm"] else "")
                people.print(f"{name}: {STATES[trial['state']]}, epoch {trial['epochs']}/{self._epochs}{value}{error}", soft_wrap=True)


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
