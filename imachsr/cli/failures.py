"""What is said of trials that failed: which, with which settings, where to look, and how to run one by itself."""

import shlex
from pathlib import Path
from typing import Any

MOST = 5
"""Failed trials that are told one by one."""


def failure_of(summary: dict[str, Any], folder: Path) -> str:
    """Why a search found nothing, or "": without the baseline there is nothing to compare with."""
    failed = [trial for trial in summary["trials"] if trial["state"] == "FAIL"]
    baseline = next((trial for trial in failed if trial["number"] == summary["baseline"]), None)
    if baseline is not None:
        return f"the baseline, {why(baseline, folder)}"
    beyond = [trial for trial in summary["trials"] if not trial.get("feasible", True)]
    if (bare := next((trial for trial in beyond if trial["number"] == summary["baseline"]), None)) is not None:
        return f"the baseline, trial {bare['number']}, is {bare['why']}; raise the limit, or lower what a trial takes"
    if beyond and summary["best"] is None and not failed:
        return f"no trial finished; trial {beyond[0]['number']} is {beyond[0]['why']}"
    if failed and summary["best"] is None:
        return f"no trial finished; {why(failed[0], folder)}"
    cut = next((trial for trial in summary["trials"] if trial["number"] == summary["baseline"] and trial["state"] == "PRUNED"), None)
    if summary.get("finished") and cut is not None:
        told = f"the baseline, trial {cut['number']}, was stopped after {cut['epochs']} of {cut.get('max_epochs') or summary['max_epochs']} epochs"
        return f"{told} ({summary['ended_early']}), so that there is nothing to compare with; search again in a new folder with a larger budget"
    return "no trial finished" if summary.get("finished") and summary["best"] is None and summary["trials"] else ""


def failed_trials(summary: dict[str, Any], folder: Path) -> list[str]:
    """Lines on the trials of a search that failed, of many on the first ones; [] where none did."""
    failed = [trial for trial in summary["trials"] if trial["state"] == "FAIL"]
    lines = [f"{len(failed)} of {len(summary['trials'])} trials failed:"] if failed else []
    lines += [f"  {why(trial, folder)}" for trial in failed[:MOST]]
    if len(failed) > MOST:
        lines.append(f"  and {len(failed) - MOST} more, each with its error.txt in {folder / 'trials'}")
    return lines


def why(trial: dict[str, Any], folder: Path) -> str:
    """A failed trial in a line."""
    from imachsr.report.table import short

    own = folder / "trials" / format(trial["number"], "04d")
    name = ": ".join(part for part in (trial["arm"], short(trial["params"])) if part)
    called = f"trial {trial['number']} ({name})" if name else f"trial {trial['number']}"
    return f"{called}: {trial['error']} (in full: {own / 'error.txt'}; by itself: imachsr train {shlex.quote(str(own / 'run.yaml'))})"
