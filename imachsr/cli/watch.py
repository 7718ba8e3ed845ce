"""The commands that look at searches from outside: watch, compare."""

import json
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.table import Table

from imachsr.cli.options import Json
from imachsr.console import overview, people, plain, print_json, standing
from imachsr.files import is_held

EVERY_S = 1.0


def watch(
    folder: Annotated[Path, typer.Argument(help="Result folder of a search, which another process runs.")],
    once: Annotated[bool, typer.Option("--once", help="Show it as it stands now, and end.")] = False,
    as_json: Json = False,
) -> None:
    """Follow a search from another shell until it ends, with --json only as it stands now; reads files only."""
    shown = ""
    state = _state(folder)
    if as_json:
        return print_json({**state, "is_running": is_held(folder)})
    with Live(console=people, refresh_per_second=4, transient=True) if people.is_terminal and not once else _Silent() as live:
        while not once and not state["finished"] and is_held(folder):
            live.update(overview(state, height=people.height))
            if not people.is_terminal and (now := "; ".join(standing(state))) != shown:
                shown = now
                people.print(now, soft_wrap=True)
            time.sleep(EVERY_S)
            state = _state(folder)
    plain.print(overview(state, height=1000))
    if not state["finished"] and not is_held(folder):
        people.print(f"nobody runs it now; to go on: imachsr search --resume {shlex.quote(str(folder))}", soft_wrap=True)
    return None


class _Silent:
    """Stands where nothing is drawn anew."""

    def __enter__(self) -> "_Silent":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to end."""

    def update(self, _: object) -> None:
        """Nothing to draw."""


def _state(folder: Path) -> dict[str, Any]:
    """summary.json with what trials.jsonl knows beyond it; a search of which no trial has ended yet has only that."""
    from imachsr.config.load import load_yaml
    from imachsr.config.schema import ConfigError
    from imachsr.report.table import OPEN, load_summary, state_of_open

    try:
        summary = load_summary(folder)
    except ConfigError:
        if (folder / "summary.json").exists() or not (folder / "search.yaml").exists():
            raise
        settings = load_yaml(folder / "search.yaml")
        metric = {"name": "select/miou", "mode": "max", **_part(settings, "metric")}
        epochs = _part(_part(settings, "run"), "optimizer").get("epochs", 0)
        summary = {"metric": metric["name"], "mode": metric["mode"], "max_epochs": epochs, "baseline": 0, "trials": [], "finished": False}
        summary["budget"] = _part(settings, "budget").get("trials")
    known = {trial["number"]: trial for trial in summary["trials"]}
    for row in _rows(folder):
        number, epoch = row["trial"], row["epoch"]
        fresh = {
            "number": number,
            "arm": row.get("arm"),
            "state": state_of_open(folder),
            "epochs": 0,
            "value": None,
            "difference": None,
            "params": {},
            "taps": [],
        }
        trial = known.setdefault(number, {**fresh, "error": None, "why": "", "seed": 0, "values": {}})
        if trial["state"] in OPEN and epoch > trial["epochs"]:
            trial |= {"epochs": epoch, "value": row["objectives"][0]}
    return {**summary, "trials": [known[number] for number in sorted(known)]}


def _rows(folder: Path) -> list[dict[str, Any]]:
    found = []
    path = folder / "trials.jsonl"
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # it is being written
        if isinstance(row, dict) and all(isinstance(row.get(name), int) for name in ("trial", "epoch")) and _are_numbers(row.get("objectives")):
            found.append(row)
    return found


def _part(settings: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A part of search.yaml as it stands; once a second, so that it is not checked as a whole."""
    from imachsr.config.schema import ConfigError

    found = settings.get(key, {})
    if not isinstance(found, Mapping):
        raise ConfigError(f"search.yaml: `{key}` must be a mapping, but is {found!r}")
    return found


def _are_numbers(values: object) -> bool:
    return isinstance(values, list) and bool(values) and all(isinstance(each, (int, float)) for each in values)


def compare(
    folders: Annotated[list[Path], typer.Argument(help="Result folders of searches.")],
    as_json: Json = False,
) -> None:
    """Put searches side by side: trials, hours, the best against each one's own baseline, and what a confirmation left of that."""
    from imachsr.config.schema import ConfigError

    if twice := [folder for number, folder in enumerate(folders) if folder.resolve() in {each.resolve() for each in folders[:number]}]:
        raise ConfigError(f"each folder must be given once, but {twice[0]} is there twice")
    found = [_line(folder) for folder in folders]
    if len({line["metric"] for line in found}) > 1:
        what = ", ".join(f"{line['folder']} {line['metric']}" for line in found)
        raise ConfigError(f"searches must have one metric to be compared, but have {what}")
    if as_json:
        return print_json(found)
    shown = Table(title=f"{found[0]['metric']} of the last epoch")
    for name in ("search", "folder"):
        shown.add_column(name, overflow="fold")
    for name in ("trials", "finished", "stopped", "failed", "hours", "baseline", "best", "difference"):
        shown.add_column(name, justify="right")
    for name in ("best configuration", "confirmed"):
        shown.add_column(name, overflow="fold")
    for line in found:
        counts = [str(line[name]) for name in ("trials", "finished", "stopped", "failed")]
        values = [
            "" if line[name] is None else f"{line[name]:{form}}" for name, form in (("baseline", ".2f"), ("best", ".2f"), ("difference", "+.2f"))
        ]
        shown.add_row(line["name"], line["folder"], *counts, f"{line['hours']:.2f}", *values, line["configuration"], line["confirmed"])
    plain.print(shown)
    for name, what in (("data", "data"), ("epochs", "epochs")):
        if len({line[name] for line in found}) > 1:
            people.print(f"note: the searches have different {what}: compare differences, not levels", soft_wrap=True)
    people.print("differences are against each search's own baseline, mostly on one seed: candidates, not findings", soft_wrap=True)
    return None


def _line(folder: Path) -> dict[str, Any]:
    from imachsr.report.export import load_confirmation
    from imachsr.report.table import lead, load_summary, short

    summary, confirmation = load_summary(folder), load_confirmation(folder)
    states = [trial["state"] for trial in summary["trials"]]
    by_number = {trial["number"]: trial for trial in summary["trials"]}
    best, ahead = by_number.get(summary["best"]), lead(summary)
    judged = [] if confirmation is None else [each for each in confirmation["configurations"] if each["verdict"] == "better"]
    words = "" if confirmation is None else judged[0]["words"] if judged else "nothing better"
    return {
        "name": summary["name"],
        "folder": str(folder),
        "metric": summary["metric"],
        "is_finished": summary["finished"],
        "trials": len(states),
        "finished": states.count("COMPLETE"),
        "stopped": states.count("PRUNED"),
        "failed": states.count("FAIL"),
        "epochs": summary["max_epochs"],
        "data": " ".join(f"{split} {each}" for split, each in sorted(summary.get("data", {}).items())),
        "hours": round(summary["wall_s"] / 3600, 4),
        "baseline": ahead.baseline,
        "best": ahead.value,
        "difference": ahead.difference,
        "configuration": "" if best is None else f"trial {best['number']}: " + (best["arm"] or short(best["params"])),
        "confirmed": words,
    }
