"""What may be said of a search or a confirmation, and the commands that say more."""

import html
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imachsr.config.load import load_yaml
from imachsr.config.schema import ConfigError
from imachsr.report.export import CONFIRMED, load_confirmation, read_confirmation
from imachsr.report.table import lead

PLAN = "plan.json"
Summary = Mapping[str, Any]


def confirmation_of(folder: Path) -> dict[str, Any] | None:
    """What a confirmation found, from its own folder or that of its search; None before it has ended.

    Raises:
        ConfigError: If its file is broken, or of another version.
    """
    return read_confirmation(folder / CONFIRMED.name) if is_confirmation(folder) else load_confirmation(folder)


def is_confirmation(folder: Path) -> bool:
    """Whether a result folder is that of a confirmation, whatever its name, not of the search that it confirms."""
    return (folder / PLAN).exists()


def verdict(folder: Path, summary: Summary, confirmation: Mapping[str, Any] | None) -> str:
    """The first thing that the page says: of confirmed differences where there are any, else that there are none."""
    if confirmation is not None:
        lines = _confirmed(confirmation)
    elif is_confirmation(folder):
        lines = ["This confirmation has not ended. Its runs are judged once all have: a look at the half of them would find wins of chance."]
    else:
        lines = _unconfirmed(folder, summary)
    first, *others = (html.escape(line) for line in lines)
    return f"<section class='verdict' aria-label='Verdict'><p class='lead'>{first}</p>{''.join(f'<p>{line}</p>' for line in others)}</section>"


def _confirmed(found: Mapping[str, Any]) -> list[str]:
    baseline, *others = found["configurations"]
    better = [each["name"] for each in others if each["verdict"] == "better"]
    over = f"over {len(found['seeds'])} seeds that the search never used, on {found['confirmed']}"
    first = (
        f"Better than {baseline['name']} {over}: {', '.join(better)}."
        if better
        else f"Nothing was found to be better than {baseline['name']} {over}."
    )
    words = [each["words"] + "." for each in sorted(others, key=lambda each: each["name"] not in better)]
    return [first, *words, baseline["words"] + ".", *found["notes"]]


def _unconfirmed(folder: Path, summary: Summary) -> list[str]:
    trials = {trial["number"]: trial for trial in summary["trials"]}
    best, base = trials.get(summary["best"]), trials.get(summary["baseline"])
    metric = summary["metric"]
    if best is None or best["value"] is None:
        failed = sum(trial["state"] == "FAIL" for trial in trials.values())
        why = f"; {failed} of {len(trials)} failed, and why is in trials/*/error.txt" if failed else ""
        return [f"No trial has finished yet{why}: there is nothing to compare."]
    name = f"trial {best['number']}" + (f" ({best['arm']})" if best["arm"] else "")
    if base is None or base["value"] is None or base["state"] != "COMPLETE":
        return [f"Best: {name}, {metric} {best['value']:.4g}. No baseline has finished, so that there is nothing to compare it with."]
    if best["number"] == base["number"]:
        return [f"Nothing that was tried scored better than the baseline: {metric} {base['value']:.4g}."]
    ahead = lead(summary)
    count = "one seed" if ahead.seeds == 1 else f"{ahead.seeds} seeds"
    compared = f"{ahead.value:.4g} against {ahead.baseline:.4g}" + " in the mean" * (ahead.seeds > 1)
    if ahead.difference is not None:
        compared += f", {ahead.difference:+.2f}"
    lines = [
        f"Best: {name}, {metric} {compared} of the baseline. {count.capitalize()}: a candidate, not a finding.",
        f"The best of {sum(trial['state'] == 'COMPLETE' for trial in trials.values())} finished trials is in part luck. There is no interval and no "
        "p-value before it has been run again with fresh seeds.",
    ]
    if can_confirm(summary):
        lines.append(f"To find out: imachsr confirm {shlex.quote(str(folder))}")
    return lines


def can_confirm(summary: Summary) -> bool:
    """Whether there is a baseline, and a split that the search has not scored on."""
    return summary["baseline"] is not None and summary["best"] is not None and summary["metric"].startswith("select/")


def commands(folder: Path, summary: Summary) -> str:
    """What to type to run the search again, and to go on."""
    at = shlex.quote(str(folder))
    if is_confirmation(folder):
        lines = _of_confirmation(folder, summary)
    elif _is_of_function(folder):
        lines = [
            f"imachsr.search(space, train, output={str(folder)!r}, resume=True)  # in Python, with the space and the function that it began with"
        ]
    else:
        lines = [f"imachsr search {shlex.quote(str(folder / 'search.yaml'))} --output {shlex.quote(str(folder) + '-again')}"]
        lines.append(f"imachsr search --resume {at}" + (" --extend 20" if summary["finished"] else ""))
        lines += [f"imachsr confirm {at}"] if can_confirm(summary) else []
        lines += [f"imachsr export {at} --out best.yaml", "imachsr train best.yaml"] if summary["best"] is not None else []
    return f"<pre>{html.escape(chr(10).join(lines))}</pre>"


def _is_of_function(folder: Path) -> bool:
    """Whether a search is over a function of the user's own, which no command can run."""
    try:
        return load_yaml(folder / "search.yaml").get("function") is not None
    except ConfigError:
        return False


def _of_confirmation(folder: Path, summary: Summary) -> list[str]:
    """The commands take the folder of the search, and find a confirmation in it by its name."""
    whole = folder.resolve()
    search = folder.parent if folder.name else whole.parent
    lines = []
    if whole.name != CONFIRMED.parent.name or not (whole.parent / "summary.json").exists():
        lines.append(f"# first move this folder back: it must be {CONFIRMED.parent}/ in the folder of its search")
        search = Path("SEARCH")
    at = shlex.quote(str(search))
    lines += [] if summary["finished"] else [f"imachsr confirm {at} --resume"]
    return [*lines, f"imachsr export {at} --out best.yaml", "imachsr train best.yaml"]
