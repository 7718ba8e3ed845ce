"""Pictures of a study's findings."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from imachsr.files import write_atomic
from imachsr.search.verdict import is_percent
from imachsr.study.findings import Findings

# Okabe and Ito's colours, which colour-blind people tell apart.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def plot(findings: Findings, folder: Path) -> list[str]:
    """Write differences.svg, and a picture for each chart, numbered where several are over the same setting; their names.

    Args:
        findings: What was found.
        folder: Where to.
    """
    import matplotlib

    drawn: list[str] = []
    # The same numbers give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "imachsr", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        if any(each.difference is not None for each in findings.comparisons):
            drawn.append(_write(_differences(findings), folder / "differences.svg"))
        for chart in findings.charts:
            if chart["points"]:
                name = f"gain_over_{chart['over'].replace('.', '_')}"
                again = sum(each.startswith(f"{name}.") or each.startswith(f"{name}-") for each in drawn)
                drawn.append(_write(_gain(chart, findings.metric), folder / f"{name}{f'-{again + 1}' * bool(again)}.svg"))
    return drawn


def _unit(metric: str) -> str:
    return f"{metric}, points" if is_percent(metric) else metric


def _differences(findings: Findings) -> Any:
    from matplotlib.figure import Figure

    shown = [each for each in findings.comparisons if each.difference is not None]
    figure = Figure(figsize=(7.5, 1.2 + 0.32 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    for place, each in enumerate(reversed(shown)):
        assert each.difference is not None
        colour = {"better": _COLOURS[2], "worse": _COLOURS[1]}.get(each.verdict, "#666666")
        axes.plot(list(each.differences.values()), [place] * len(each.differences), "|", color=colour, alpha=0.6, markersize=7)
        if each.interval is not None:
            axes.plot(_bounded(each.interval, each.differences.values()), [place, place], "-", color=colour, linewidth=2)
        axes.plot(each.difference, place, "o", color=colour)
    names = [f"{each.cell}: {each.arm} - {each.other}" + (" *" if each.is_primary else "") for each in reversed(shown)]
    axes.set_yticks(range(len(shown)), names)
    axes.axvline(0, color="#999999", linewidth=0.8)
    declared = " (* declared)" if any(each.is_primary for each in shown) else ""
    axes.set_xlabel(f"paired difference of {_unit(findings.metric)}; mean, 95 % interval, each seed{declared}")
    return figure


def _bounded(interval: Sequence[float], beside: Iterable[float]) -> list[float]:
    """An interval without a bound on one side reaches as far as what is drawn beside it; a line to infinity would be drawn nowhere."""
    finite = [value for value in (*interval, *beside) if math.isfinite(value)]
    return [min(max(bound, min(finite)), max(finite)) for bound in interval]


def _gain(chart: dict[str, Any], metric: str) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    points: Sequence[dict[str, Any]] = chart["points"]
    gains = [bound for point in points for bound in (point["difference"], *(point["interval"] or ()))]
    for number, arm in enumerate(dict.fromkeys(point["arm"] for point in points)):
        own = sorted((point for point in points if point["arm"] == arm), key=lambda point: point["at"])
        colour, mark = _COLOURS[number % len(_COLOURS)], "osD^vP*"[number % 7]
        axes.plot([point["at"] for point in own], [point["difference"] for point in own], f"-{mark}", color=colour, label=arm)
        for point in own:
            if point["interval"] is not None:
                axes.plot([point["at"]] * 2, _bounded(point["interval"], gains), color=colour, alpha=0.5)
    places = sorted({point["at"] for point in points})
    if places[0] > 0:
        axes.set_xscale("log", base=2)
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.minorticks_off()
    axes.axhline(0, color="#999999", linewidth=0.8)
    axes.set_xlabel(chart["over"])
    axes.set_ylabel(f"gain in {_unit(metric)}")
    axes.legend(frameon=False)
    return figure


def _write(figure: Any, path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda file: figure.savefig(file, format="svg", metadata={"Date": None}))
    return path.name
