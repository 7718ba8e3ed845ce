"""Parts of a search's page that need no script."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from imachsr.report import relations
from imachsr.report.table import Row, arms, further, has_seeds, whole

Summary = Mapping[str, Any]
Lines = Sequence[Mapping[str, Any]]
_DIGITS = 6
_DIAGRAM = 300
_LINES = (
    "<p class='key'><span><i class='dashed' style='color:var(--base)'></i>baseline</span><span><i style='color:var(--best)'></i>best</span>"
    "<span><i style='color:var(--other)'></i>others</span>"
)
KEY = f"{_LINES}<span><i style='color:var(--other);border-top-style:dashed'></i>stopped early</span></p>"
RUNG_KEY = f"{_LINES}<span>\u2297 stopped there</span></p>"
IMPORTANCE = (
    "The share of the variance of the metric's ranks that goes with each setting alone, over finished sampled trials, and what a setting without "
    "effect would have by chance; sorted by how far it is above that. It is association: the sampler chose these values, and settings that changed "
    "together cannot be told apart."
)


def curve(lines: Lines, metric: str) -> list[tuple[int, float]]:
    """Epochs and values; epochs without a value are left out."""
    return [(line["epoch"], float(f"{line[metric]:.{_DIGITS}g}")) for line in lines if isinstance(line.get(metric), (int, float))]


def table(summary: Summary, lines: Sequence[Row]) -> str:
    """Every trial."""
    seeded = has_seeds(summary)
    numbers = {"trial": True, "arm": False, **({"seed": True} if seeded else {}), summary["metric"]: True, **dict.fromkeys(further(summary), True)}
    columns = numbers | {"difference": True, "epochs": True, "state": False, "settings": False, "taps": False}
    head = "".join(f"<th{' class=n' * is_n}><button>{html.escape(name)}</button></th>" for name, is_n in columns.items())
    found = []
    for place, row in enumerate(lines):
        kind = " ".join((row.state, *["base"] * (row.number == summary["baseline"]), *["best"] * (row.number == summary["best"])))
        cells = f"<td class=n>{row.number}<td>{html.escape(row.arm)}" + (f"<td class=n>{row.seed}" if seeded else "")
        cells += f"<td class=n>{_number(row.value, '.2f')}" + "".join(f"<td class=n>{_number(each, '.4g')}" for each in row.others)
        cells += f"<td class=n>{_number(row.difference, '+.2f')}<td class=n>{row.epochs}<td>{row.state_words}"
        stop = 0 if place == 0 else -1  # for the Tab key: arrows do the rest
        taps = "<br>".join(f"<code>{html.escape(tap)}</code>" for tap in row.taps)
        found.append(
            f"<tr data-n='{row.number}' tabindex='{stop}' class='{kind}'>{cells}"
            f"<td class='long'>{html.escape(row.error or row.settings)}<td>{taps}</tr>"
        )
    return f"<div class='wide tall'><table><thead><tr>{head}</tr></thead><tbody>{''.join(found)}</tbody></table></div>"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def arms_table(summary: Summary) -> str:
    """Means over the seeds; "" for one seed."""
    found = [(arm.name, str(len(arm.values)), f"{arm.mean:.2f}", _number(arm.difference, "+.2f"), arm.each) for arm in arms(summary)]
    return _plain(["arm", "seeds", f"mean {summary['metric']}", "mean difference", "of each seed"], found) if found else ""


def _plain(head: Sequence[str], lines: Sequence[Sequence[str]], *, size: str = "") -> str:
    """A table of texts, numbers between its first and its last column; a ``narrow`` one is as wide as these need."""
    columns = range(len(head))
    kind = ["" if place in (0, len(head) - 1) else " class=n" for place in columns]
    first = "".join(f"<th{kind[place]}>{html.escape(head[place])}" for place in columns)
    others = "".join("<tr>" + "".join(f"<td{kind[place]}>{html.escape(line[place])}" for place in columns) + "</tr>" for line in lines)
    return f"<div class='wide {size}'><table><tr>{first}</tr>{others}</table></div>"


def importance(summary: Summary) -> str:
    """Of the settings; "" with too few trials."""
    whole = [trial for trial in summary["trials"] if trial["arm"] is None and trial["state"] == "COMPLETE" and trial["value"] is not None]
    found = relations.associations(whole)
    lines = [(each.key, f"{each.share:.2f}", f"{each.chance:.2f}", str(each.trials), each.measure) for each in found]
    return _plain(["setting", "share", "by chance", "trials", "measure"], lines) if lines else ""


def rungs(summary: Summary, curves: Mapping[int, Lines]) -> str:
    """How many trials came to each rung, and went on; "" without rungs."""
    found = relations.rungs(summary, {number: curve(lines, summary["metric"]) for number, lines in curves.items()})
    lines = [(str(level), str(came), str(came - stopped), str(stopped), f"{best:.2f}") for level, came, stopped, best in found]
    return _plain(["epoch", "came", "not stopped", "stopped", f"best {summary['metric']} there"], lines, size="narrow") if lines else ""


def classes(summary: Summary, curves: Mapping[int, Lines], shown: Mapping[str, int]) -> str:
    """IoU of each class of the baseline and the best trial, with a bar for what is between them; "" where rows have none."""
    prefix = summary["metric"].split("/")[0] + "/iou/"
    last = {name: curves[number][-1] for name, number in shown.items() if number in curves}
    keys = [key for key in dict.fromkeys(key for row in last.values() for key in row) if key.startswith(prefix)]
    values = {key: [row[key] for row in last.values() if isinstance(row.get(key), (int, float))] for key in keys}
    most = max((abs(each[1] - each[0]) for each in values.values() if len(each) == 2), default=0.0) or 1.0
    lines = []
    for key in keys:
        cells = "".join(f"<td class=n>{_number(row.get(key), '.2f')}" for row in last.values())
        if len(last) == 2:
            difference = values[key][1] - values[key][0] if len(values[key]) == 2 else None
            cells += f"<td class=n>{_number(difference, '+.2f')}<td>{_bar(0.0 if difference is None else difference / most)}"
        lines.append(f"<tr><td>{html.escape(key.removeprefix(prefix))}{cells}</tr>")
    head = "".join(f"<th class=n>{name}" for name in last) + ("<th class=n>difference<th>worse | better" if len(last) == 2 else "")
    return f"<div class='wide'><table><tr><th>class{head}</tr>{''.join(lines)}</table></div>" if lines else ""


def _bar(share: float) -> str:
    """From -1 to 1, about a middle."""
    left, kind = (50 + min(0.0, 50 * share), "base" if share > 0 else "best")
    return (
        f"<svg width='102' height='14' aria-hidden='true'><path class='axis' d='M51,0V14'/>"
        f"<rect class='bar {kind}' x='{left + 1:.1f}' y='2' width='{abs(50 * share):.1f}' height='10'/></svg>"
    )


def diagram(curves: Sequence[tuple[str, Sequence[tuple[float, float, float]]]]) -> str:
    """Accuracy by confidence, from 0 to 1."""
    low, size = 40, _DIAGRAM
    lines = [f"<path class='axis' d='M{low},8V{size + 8}H{size + low}'/><path class='axis stopped' d='M{low},{size + 8}L{size + low},8'/>"]
    for name, points in curves:
        placed = [(low + size * x, size + 8 - size * y, share) for x, y, share in points]
        kind = "base" if name == "baseline" else "best"
        lines.append(f"<polyline class='mark {kind}' points='{' '.join(f'{x:.1f},{y:.1f}' for x, y, _ in placed)}'/>")
        lines += [f"<circle class='dot {kind}' cx='{x:.1f}' cy='{y:.1f}' r='{2 + 8 * share**0.5:.1f}'/>" for x, y, share in placed]
    text = "".join(
        f"<text x='{low + size * each}' y='{size + 24}' text-anchor='middle'>{each:g}</text><text x='{low - 6}' y='{size + 12 - size * each}' "
        f"text-anchor='end'>{each:g}</text>"
        for each in (0, 0.5, 1)
    )
    text += f"<text x='{low + size / 2}' y='{size + 42}' text-anchor='middle'>confidence</text><text x='{low + 6}' y='16'>share that is right</text>"
    return f"{KEY}<svg width='{size + low + 16}' height='{size + 48}' role='img' aria-label='calibration'>{''.join(lines)}{text}</svg>"


def cost(summary: Summary) -> str:
    """Time, money and trials, spent and allowed."""
    states = [trial["state"] for trial in summary["trials"]]
    lines = [("trials", str(len(states)), f"of {summary.get('budget')}"), ("failed trials", str(states.count("FAIL")), "")]
    lines.append(("wall time, hours", f"{summary['wall_s'] / 3600:.3g}", ""))
    lines += [
        (f"spent: {name.replace('_', ' ')}", f"{value:.4g}", "") for name, value in summary.get("spent", {}).items() if value and name != "hours"
    ]
    lines += _troubles(summary)
    saved = sum(whole(summary, trial) - trial["epochs"] for trial in summary["trials"] if trial["state"] == "PRUNED")
    lines.append(("epochs not run, since trials were stopped", str(saved), ""))
    if summary.get("ended_early"):
        lines.append(("ended early", "", str(summary["ended_early"])))
    return _plain(["", "", ""], lines, size="narrow")


def _troubles(summary: Summary) -> list[tuple[str, str, str]]:
    """How often the search and its trials had to go on from where they were; older versions kept no count of it."""
    sittings, counts = summary.get("sittings"), [trial.get("troubles") for trial in summary["trials"]]
    known, missing = [each for each in counts if each], sum(not each for each in counts)
    words = "" if not missing else f"{missing} trials not recorded" if known else "not recorded"
    told = [str(sum(each[key] for each in known)) if known else "" for key in ("restarts", "lost", "resumed")]
    resumes = ("times the search was resumed", "" if sittings is None else str(sittings - 1), "not recorded" if sittings is None else "")
    names = ("restarts of trials whose worker died", "trials lost, whose worker died too often", "trials continued when the search was resumed")
    return [*((name, number, words) for name, number in zip(names, told, strict=True)), resumes] if counts else [resumes]


def alarms(summary: Summary) -> str:
    """What should not be: different settings with equal results."""
    return "".join(f"<p class='verdict'>{html.escape(each)}</p>" for each in summary.get("alarms", ()))
