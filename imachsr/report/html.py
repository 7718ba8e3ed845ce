"""One self-contained HTML page about a search."""

import errno
import html
import json
import warnings
from importlib import resources
from pathlib import Path
from typing import Any

from imachsr.config.schema import ConfigError
from imachsr.config.words import word
from imachsr.files import write_text
from imachsr.report import evidence, sections
from imachsr.report.confirmed import differences, followed, followed_by_itself
from imachsr.report.network import network
from imachsr.report.relations import front, rungs
from imachsr.report.table import STATES, has_seeds, load_summary, rows, state_of_open
from imachsr.report.verdict import commands, confirmation_of, is_confirmation, verdict

_DIGITS = 6
_PLAIN = (bool, int, float, str, type(None))
Curves = dict[int, list[dict[str, Any]]]


def write_report(folder: Path) -> Path:
    """Write ``report.html`` in the result folder: the verdict, then what it rests on; it loads nothing from elsewhere.

    Raises:
        ConfigError: If the folder holds no search, or cannot be written to.
    """
    text = _page(folder, load_summary(folder), _rows(folder))
    path = folder / "report.html"
    try:
        write_text(path, text.encode("utf-8", "replace").decode())  # names of classes can hold what was no UTF-8
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise ConfigError(f"{folder} must be writable for report.html, but: {error.strerror}; copy the folder to where you may write") from None
    return path


def _page(folder: Path, summary: dict[str, Any], curves: Curves) -> str:
    confirmation = confirmation_of(folder)
    summary, prefers = (followed_by_itself if is_confirmation(folder) else followed)(summary, confirmation)
    data = _data(summary, curves, state_of_open(folder))
    parts = [part for part in _parts(folder, summary, curves, data, differences(confirmation)) if part[2]]
    links = "".join(f"<a href='#{_id(title)}'>{title}</a>" for title, _, _ in parts)
    body = "".join(f"<section id='{_id(title)}'><h2>{title}</h2><p class='note'>{note}</p>{content}</section>" for title, note, content in parts)
    kind = "Confirmation" if is_confirmation(folder) else "Search"
    name = html.escape(summary["name"])
    said = f"<p class='verdict'>{html.escape(prefers)}</p>" if prefers else ""
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>{name}</title><style>{_asset('page.css')}</style></head><body><h1>{kind} {name}</h1>"
        f"{verdict(folder, summary, confirmation)}{said}<p class='note'>{_facts(summary)}</p>{sections.alarms(summary)}<nav>{links}</nav>{body}"
        "<div id='tip' role='tooltip' hidden></div><dialog id='details' aria-label='Trial'><pre id='details-text'></pre>"
        "<button id='close'>close</button></dialog>"
        f"<script type='application/json' id='data'>{_json(data)}</script><script>{_asset('page.js')}</script></body></html>\n"
    )


def _parts(folder: Path, summary: dict[str, Any], curves: Curves, data: dict[str, Any], confirmed: str) -> list[tuple[str, str, str]]:
    """Title, note and content of each section; one without content is left out."""
    shown = {"baseline": summary["baseline"], "best": summary["best"]}
    shown = {name: number for name, number in shown.items() if number is not None}
    if len(set(shown.values())) < len(shown):
        del shown["best"]
    words, bins = evidence.reliability(folder, shown)
    matrices = "".join(f"<h3>{name}</h3>{table}" for name, number in shown.items() if (table := evidence.confusion(folder, number)))
    try:
        about_network, drawing = network(folder, summary, curves)
    except ConfigError as error:
        warnings.warn(f"{error}; the page has no drawing of the network", stacklevel=2)
        about_network, drawing = "", ""
    has_metric = any(summary["metric"] in row for lines in curves.values() for row in lines)
    drawn = (
        sections.KEY + _drawn("curves", "learning curves") if has_metric else f"<p>No row of trials.jsonl has {html.escape(summary['metric'])}.</p>"
    )
    can_compare = sum(trial["arm"] is None and trial["value"] is not None for trial in data["trials"]) > 1
    return [
        ("Confirmed differences", "A small dot is a pair of runs with one seed, a large one their mean, a line its 95 % interval. Blue: better; "
         "orange: worse; grey: neither, as far as these runs can tell.", confirmed),
        ("Settings", "Sampled trials with their last value; stopped ones, dashed, had fewer epochs. Drag along an axis to choose a range of it: the "
         "table and the other diagrams follow; a click on the axis lets go.", _drawn("coordinates", "parallel coordinates") if can_compare else ""),
        ("Importance of settings", sections.IMPORTANCE, sections.importance(summary)),
        ("Learning curves", "A cross is where a trial was stopped.", drawn if curves else ""),
        ("Trade-offs", "Finished trials. A dark rim: none other is better in one of the two and as good in the other.",
         "".join(_drawn("scatter", f"{each['y']} against {each['x']}", place) for place, each in enumerate(data["scatters"]))),
        ("Network", about_network, drawing),
        ("Rungs", "Where sampled trials were compared with each other, and went on or were stopped. Arms always go on, and are not counted.",
         _rungs(summary, curves)),
        ("Classes", "IoU of each class at the last epoch, percent.", sections.classes(summary, curves, shown)),
        ("Pictures", "", evidence.pictures(folder, shown)),
        ("Confusion", "Where the pixels of each class went, percent of the class.", matrices),
        ("Calibration", f"Expected calibration error, percent: {html.escape(words)}. On the dashed line it is zero; a larger dot is more pixels.",
         sections.diagram(bins) if bins else ""),
        ("Arms over their seeds", "Differences are against the baseline with the same seed, finished trials only.", sections.arms_table(summary)),
        ("Cost", "", sections.cost(summary)),
        ("Trials", "<span id='count'></span>. Click a heading to sort, a row for all about a trial.", sections.table(summary, rows(summary))),
        ("Commands", "To run it again, and to go on.", commands(folder, summary)),
    ]  # fmt: skip


def _rungs(summary: dict[str, Any], curves: Curves) -> str:
    table = sections.rungs(summary, curves)
    return sections.RUNG_KEY + _drawn("rungs", f"{summary['metric']} at each rung") + table if table else ""


def _id(title: str) -> str:
    return title.lower().replace(" ", "-")


def _drawn(kind: str, label: str, place: int = 0) -> str:
    return f"<div class='wide' data-draw='{kind}' data-chart='{place}' data-label='{html.escape(label, quote=True)}'></div>"


def _asset(name: str) -> str:
    return resources.files("imachsr.report").joinpath(name).read_text(encoding="utf-8")


def _json(data: dict[str, Any]) -> str:
    """For inside of a script: there, "<" begins the end of it."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _facts(summary: dict[str, Any]) -> str:
    states = [trial["state"] for trial in summary["trials"]]
    counts = {"finished": states.count("COMPLETE"), "stopped early": states.count("PRUNED"), "failed": states.count("FAIL")}
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    state = "complete" if summary["finished"] else "not complete"
    seeds = "several seeds an arm" if has_seeds(summary) else "one seed per configuration"
    return html.escape(
        f"{len(states)} trials ({', '.join(f'{n} {name}' for name, n in counts.items())}), {state}, {summary['wall_s'] / 60:.1f} min. "
        f"Metric: {summary['metric']} of the last epoch, {seeds}. {versions}."
    )


def _rows(folder: Path) -> Curves:
    found: Curves = {}
    path = folder / "trials.jsonl"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    broken: list[int] = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and isinstance(row.get("trial"), int) and isinstance(row.get("epoch"), int):
            found.setdefault(row["trial"], []).append(row)
        elif row is not None or number < len(lines):  # the last line may be being written, or was cut off by a crash
            broken.append(number)
    if broken:
        warnings.warn(f"{path}: {len(broken)} lines cannot be read, and are left out, the first of them line {broken[0]}", stacklevel=2)
    return found


def _data(summary: dict[str, Any], curves: Curves, state: str) -> dict[str, Any]:
    """What the page's script draws; trials that have begun since are in this state."""
    # summary.json is written when a trial ends: one that has started since is not in it yet.
    known = {trial["number"] for trial in summary["trials"]}
    begun: list[dict[str, Any]] = [
        {
            "number": number,
            "arm": lines[0].get("arm"),
            "state": state,
            "epochs": len(lines),
            "value": None,
            "params": {},
            "taps": [],
            "error": None,
        }
        for number, lines in sorted(curves.items())
        if number not in known
    ]
    trials = [
        {
            **{key: trial[key] for key in ("number", "arm", "epochs", "taps", "error")},
            "params": {key: value if isinstance(value, _PLAIN) else word(value) for key, value in trial["params"].items()},
            "value": _rounded(trial["value"]),
            "state": STATES[trial["state"]],
            "seed": trial.get("seed", 0),
            "wall_s": trial.get("wall_s", 0),
            "curve": sections.curve(curves.get(trial["number"], []), summary["metric"]),
        }
        for trial in [*summary["trials"], *begun]
    ]
    fixed = {key: summary[key] for key in ("metric", "mode", "baseline", "best")}
    counts = rungs(summary, {trial["number"]: trial["curve"] for trial in trials})
    levels = [{"epoch": level, "came": came, "stopped": stopped} for level, came, stopped, _ in counts]
    return {**fixed, "trials": trials, "scatters": _scatters(summary, curves), "rungs": levels}


def _scatters(summary: dict[str, Any], curves: Curves) -> list[dict[str, Any]]:
    """The metric against step time, calibration error and the further objectives; finished trials."""
    metric, prefix = summary["metric"], summary["metric"].split("/")[0]
    modes = {"time/step_ms": "min", f"{prefix}/ece": "min"} | {each["name"]: each["mode"] for each in summary.get("objectives", ())}
    found = []
    for name, mode in modes.items():
        points = []
        for trial in summary["trials"]:
            other = curves.get(trial["number"], [{}])[-1].get(name)
            if trial["state"] == "COMPLETE" and trial["value"] is not None and isinstance(other, (int, float)):
                points.append((float(f"{other:.{_DIGITS}g}"), _rounded(trial["value"]) or 0.0, trial["number"]))
        if len(points) > 1 and name != metric:
            best = front(points, is_more_better=(mode == "max", summary["mode"] == "max"))
            found.append({"x": name, "y": metric, "points": points, "front": best})
    return found


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")
