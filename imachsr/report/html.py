"""One self-contained HTML page about a search."""

import html
import json
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from imachsr.files import write_text
from imachsr.report.table import Row, arms, further, has_seeds, load_summary, rows

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;width:100%;font-size:13px}td,th{padding:.35em .6em;border-bottom:1px solid #ddd;text-align:left;vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}tr.base{background:#eef4ff}tr.stopped,tr.failed{color:#777}
.note{color:#555}code{background:#f3f3f3;padding:.1em .3em}"""


def write_report(folder: Path) -> Path:
    """Write ``report.html`` in the result folder: table, learning curves, settings against the metric, IoU per class.

    Raises:
        ConfigError: If the folder holds no search.
    """
    summary = load_summary(folder)
    curves = _curves(folder)
    figures = [_learning_curves(summary, curves), *_settings(summary), *_classes(summary, curves)]
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        f"<title>{html.escape(summary['name'])}</title><style>{STYLE}</style></head><body>",
        f"<h1>Search {html.escape(summary['name'])}</h1>",
        f"<p class='note'>{_facts(summary)}</p>",
        _table(summary, rows(summary)),
        _arms(summary),
    ]
    for index, (title, note, figure) in enumerate(figures):
        figure.update_layout(template="plotly_white", height=420, margin={"t": 20, "b": 50})
        parts.append(f"<h2>{title}</h2><p class='note'>{note}</p>")
        parts.append(figure.to_html(full_html=False, include_plotlyjs=index == 0))
    path = folder / "report.html"
    write_text(path, "\n".join([*parts, "</body></html>"]))
    return path


def _facts(summary: dict[str, Any]) -> str:
    states = [trial["state"] for trial in summary["trials"]]
    counts = {"finished": states.count("COMPLETE"), "stopped early": states.count("PRUNED"), "failed": states.count("FAIL")}
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    state = "complete" if summary["finished"] else "not complete"
    seeds = "several seeds an arm" if has_seeds(summary) else "one seed per configuration"
    return (
        f"{len(summary['trials'])} trials ({', '.join(f'{n} {name}' for name, n in counts.items())}), {state}, {summary['wall_s'] / 60:.1f} min. "
        f"Metric: {html.escape(summary['metric'])} of the last epoch, {seeds}: the winner is a candidate, not a finding. {versions}."
    )


def _table(summary: dict[str, Any], table: list[Row]) -> str:
    metric = html.escape(summary["metric"])
    seeded = has_seeds(summary)
    head = "<tr><th class=n>trial<th>arm" + ("<th class=n>seed" if seeded else "")
    more = "".join(f"<th class=n>{html.escape(name)}" for name in further(summary))
    head += f"<th class=n>{metric}{more}<th class=n>difference<th class=n>epochs<th>state<th>settings<th>taps</tr>"
    lines = []
    for row in table:
        value = "" if row.value is None else f"{row.value:.2f}"
        difference = "" if row.difference is None else f"{row.difference:+.2f}"
        kind = "base" if row.number == summary["baseline"] else row.state
        name = f"<td class=n>{row.number}<td>{html.escape(row.arm)}" + (f"<td class=n>{row.seed}" if seeded else "")
        others = "".join("<td class=n>" + ("" if each is None else f"{each:.4g}") for each in row.others)
        cells = f"{name}<td class=n>{value}{others}<td class=n>{difference}<td class=n>{row.epochs}<td>{row.state_words}"
        taps = "<br>".join(f"<code>{html.escape(tap)}</code>" for tap in row.taps)
        lines.append(f"<tr class='{kind}'>{cells}<td>{html.escape(row.error or row.settings)}<td>{taps}</tr>")
    return f"<table>{head}{''.join(lines)}</table>"


def _arms(summary: dict[str, Any]) -> str:
    """Means over the seeds; nothing for one seed."""
    if not (found := arms(summary)):
        return ""
    head = f"<tr><th>arm<th class=n>seeds<th class=n>mean {html.escape(summary['metric'])}<th class=n>mean difference<th>of each seed</tr>"
    lines = []
    for arm in found:
        difference = "" if arm.difference is None else f"{arm.difference:+.2f}"
        kind = " class='base'" if arm.is_baseline else ""
        cells = f"<td>{html.escape(arm.name)}<td class=n>{len(arm.values)}<td class=n>{arm.mean:.2f}<td class=n>{difference}<td>{arm.each}"
        lines.append(f"<tr{kind}>{cells}</tr>")
    note = "Differences are against the baseline with the same seed, finished trials only."
    return f"<h2>Arms over their seeds</h2><p class='note'>{note}</p><table>{head}{''.join(lines)}</table>"


def _curves(folder: Path) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    path = folder / "trials.jsonl"
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the line that a crash cut off
        found.setdefault(row["trial"], []).append(row)
    return found


def _learning_curves(summary: dict[str, Any], curves: dict[int, list[dict[str, Any]]]) -> tuple[str, str, go.Figure]:
    figure = go.Figure()
    states = {trial["number"]: trial for trial in summary["trials"]}
    for number, lines in sorted(curves.items()):
        is_base = number == summary["baseline"]
        # summary.json is written when a trial ends: one that has started since is not in it yet.
        trial = states.get(number, {"state": "RUNNING", "arm": lines[0]["arm"], "params": {}})
        line = {"color": "#1f4e9c", "width": 3} if is_base else {"width": 1.5, "dash": "dot" if trial["state"] == "PRUNED" else "solid"}
        label = f"{number} {trial['arm'] or trial['params'].get('method.loss', '')}" + (f" seed {trial.get('seed')}" if has_seeds(summary) else "")
        figure.add_scatter(
            x=[row["epoch"] for row in lines], y=[row.get(summary["metric"]) for row in lines], name=label, line=line, mode="lines+markers"
        )
    figure.update_layout(xaxis_title="epoch", yaxis_title=summary["metric"])
    return "Learning curves", "The baseline is the thick line; dotted trials were stopped early.", figure


def _settings(summary: dict[str, Any]) -> list[tuple[str, str, go.Figure]]:
    """Parallel coordinates over the sampled settings."""
    trials = [trial for trial in summary["trials"] if trial["arm"] is None and trial["value"] is not None]
    keys = list(dict.fromkeys(key for trial in trials for key in trial["params"]))
    if len(trials) < 2 or not keys:
        return []
    dimensions = []
    for key in keys:
        label = key.removeprefix("method.").removeprefix("optimizer.")
        dimensions.append({"label": label, **_axis([trial["params"].get(key, "-") for trial in trials])})
    scores = [trial["value"] for trial in trials]
    dimensions.append({"label": summary["metric"], "values": scores})
    figure = go.Figure(go.Parcoords(line={"color": scores, "colorscale": "Viridis", "showscale": True}, dimensions=dimensions))
    return [("Settings", "Every sampled trial with its last value; stopped trials have had fewer epochs.", figure)]


def _axis(values: list[Any]) -> dict[str, Any]:
    """One axis of the parallel coordinates; "-", a setting that does not exist under a trial's others, lies below the numbers."""
    numbers = [value for value in values if isinstance(value, (int, float))]
    if len(numbers) == len(values):
        return {"values": values}
    if numbers and all(isinstance(value, (int, float)) or value == "-" for value in values):
        low, high = min(numbers), max(numbers)
        below = low - 0.15 * ((high - low) or abs(low) or 1.0)
        ticks = sorted({low, high})
        return {
            "values": [below if value == "-" else value for value in values],
            "tickvals": [below, *ticks],
            "ticktext": ["-", *(f"{tick:.3g}" for tick in ticks)],
        }
    names = sorted({str(value) for value in values})
    return {"values": [names.index(str(value)) for value in values], "tickvals": list(range(len(names))), "ticktext": names}


def _classes(summary: dict[str, Any], curves: dict[int, list[dict[str, Any]]]) -> list[tuple[str, str, go.Figure]]:
    figure = go.Figure()
    prefix = summary["metric"].split("/")[0] + "/iou/"
    for number in dict.fromkeys((summary["baseline"], summary["best"])):
        last = curves.get(number, [{}])[-1] if number is not None else {}
        ious = {key.removeprefix(prefix): value for key, value in last.items() if key.startswith(prefix)}
        if ious:
            figure.add_bar(x=list(ious), y=list(ious.values()), name=f"trial {number}" + (" (baseline)" if number == summary["baseline"] else ""))
    if not figure.data:
        return []
    figure.update_layout(yaxis_title="IoU, percent")
    return [("Classes", "IoU per class at the last epoch.", figure)]
