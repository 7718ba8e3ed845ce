"""What a confirmation found, as a table and as a drawing of the differences with their intervals."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from imachsr.report.export import preferred

Summary = Mapping[str, Any]
Found = Mapping[str, Any]
_WIDTH, _EDGE, _ROW, _TOP = 350, 16, 46, 30
_FIRST = ("value", "mean")


def followed(summary: Summary, confirmation: Found | None) -> tuple[dict[str, Any], str]:
    """The summary with the best that a confirmation prefers, and what is to be said of it; as it is, and "", where that changes nothing.

    A confirmation that likes the baseline best leaves the search's best in its place: there would be nothing to compare the baseline with.

    Args:
        summary: Of the search.
        confirmation: Of it, None without one.
    """
    number = preferred(summary, confirmation)
    if confirmation is None or number is None or number == summary["best"]:
        return dict(summary), ""
    if number == summary["baseline"]:
        words = f"The confirmation prefers the baseline; what stands beside it as the best is the search's best, trial {summary['best']}."
        return dict(summary), words
    arm = next(trial["arm"] for trial in summary["trials"] if trial["number"] == number)
    name = f"trial {number}" + (f" ({arm})" if arm else "")
    words = f"The confirmation prefers {name} to the search's best, trial {summary['best']}: wherever this page shows the best, it is {name}."
    return {**summary, "best": number}, words


def followed_by_itself(summary: Summary, confirmation: Found | None) -> tuple[dict[str, Any], str]:
    """The same for the summary of a confirmation, whose trials have the configurations' names as arms: the numbers are those of its search.

    The two differ where the best mean is that of a configuration that failed with some seeds.
    """
    own = [trial["number"] for trial in summary["trials"] if confirmation and trial["arm"] == confirmation["best"] and trial["state"] == "COMPLETE"]
    number = min(own, default=summary["best"])
    if confirmation is None or number == summary["best"]:
        return dict(summary), ""
    words = f"Wherever this page shows the best, it is {confirmation['best']}: others with as good a mean failed with some of the seeds."
    return {**summary, "best": number}, words


def differences(confirmation: Found | None) -> str:
    """Drawing and table of the paired differences; "" without any."""
    if confirmation is None:
        return ""
    baseline, *others = confirmation["configurations"]
    drawn = [each for each in others if each.get("difference") is not None]
    if not drawn:
        return ""
    return f"<div class='beside'>{_forest(drawn, baseline['name'], confirmation)}{_table([baseline, *others], confirmation['confirmed'])}</div>"


def _table(configurations: Sequence[Found], metric: str) -> str:
    lines = []
    for each in configurations:
        search, interval = each.get("search") or {}, each.get("interval")
        cells = [
            _number(found.get(key), metric, sign) for found in (search, each) for key, sign in ((_FIRST[found is each], ""), ("difference", "+"))
        ]
        cells += ["" if not interval else " to ".join(_number(bound, metric, "+") or "no bound" for bound in interval)]
        cells += ["" if each.get(key) is None else f"{each[key]:.3g}" for key in ("p", "p_holm")]
        numbers = "".join(f"<td class=n>{cell}" for cell in cells)
        lines.append(f"<tr><td>{html.escape(each['name'])}{numbers}<td>{html.escape(each['verdict'])}</tr>")
    names = ("searched", "difference", "confirmed", "difference", "95 % interval", "p", "adjusted")
    head = "".join(f"<th class=n>{name}" for name in names)
    return f"<div class='wide'><table><tr><th>configuration{head}<th>verdict</tr>{''.join(lines)}</table></div>"


def _number(value: float | None, metric: str, sign: str = "") -> str:
    """As the command line writes it: two digits of a percentage."""
    is_percent = "iou" in metric or metric.endswith(("accuracy", "ece"))
    return "" if value is None or not math.isfinite(value) else f"{value:{sign}{'.2f' if is_percent else '.4g'}}"


def _forest(drawn: Sequence[Found], baseline: str, confirmation: Found) -> str:
    """A row each: small dots are pairs, the large one is their mean, the line its interval."""
    metric = confirmation["confirmed"]
    bounds = [bound for each in drawn for bound in each.get("interval") or () if bound is not None and math.isfinite(bound)]
    pairs = [value for each in drawn for value in (each.get("differences") or {}).values()]
    known = [0.0, *bounds, *pairs, *(each["difference"] for each in drawn)]
    low, high = (min(known), max(known)) if max(known) > min(known) else (-1.0, 1.0)

    def across(value: float) -> float:
        return _EDGE + (value - low) / (high - low) * (_WIDTH - 2 * _EDGE)

    foot = _TOP + _ROW * len(drawn)
    parts = [f"<path class='axis stopped' d='M{across(0):.1f},{_TOP - 6}V{foot}'/><path class='axis' d='M4,{foot}H{_WIDTH - 4}'/>"]
    parts += [_row(each, _TOP + _ROW * row, across, (low, high)) for row, each in enumerate(drawn)]
    for value in _ticks(low, high):
        text = "0" if value == 0 else f"{value:+.3g}"
        parts.append(f"<text x='{across(value):.1f}' y='{foot + 16}' text-anchor='middle'>{text}</text>")
    sides = ("worse", "better") if confirmation.get("mode", "max") == "max" else ("better", "worse")
    parts += [
        f"<text x='4' y='14' text-anchor='start'>{sides[0]}</text><text x='{_WIDTH - 4}' y='14' text-anchor='end'>{sides[1]}</text>",
        f"<text x='{_WIDTH / 2:.0f}' y='{foot + 36}' text-anchor='middle'>difference in {html.escape(metric)} against {_cut(baseline, 16)}</text>",
    ]
    label = html.escape("; ".join(f"{each['name']}: {_number(each['difference'], metric, '+')}" for each in drawn), quote=True)
    return f"<svg class='forest' width='{_WIDTH}' height='{foot + 44}' role='img' aria-label='{label}'>{''.join(parts)}</svg>"


def _row(each: Found, top: float, across: Any, span: tuple[float, float]) -> str:
    """An interval without a bound goes to the end of the axis."""
    kind, y = {"better": "base", "worse": "best"}.get(each["verdict"], ""), top + 24
    parts = [f"<text class='name' x='4' y='{top + 10:.1f}'>{_cut(each['name'], 44)}</text>"]
    if interval := each.get("interval"):
        ends = [edge if bound is None or not math.isfinite(bound) else bound for bound, edge in zip(interval, span, strict=True)]
        parts.append(f"<path class='interval {kind}' d='M{across(ends[0]):.1f},{y:.1f}H{across(ends[1]):.1f}'/>")
    pairs = each.get("differences") or {}
    parts += [f"<circle class='pair' cx='{across(value):.1f}' cy='{y + 10:.1f}' r='2.5'/>" for value in pairs.values()]
    parts.append(f"<circle class='dot {kind}' cx='{across(each['difference']):.1f}' cy='{y:.1f}' r='6'/>")
    return "".join(parts)


def _cut(name: str, most: int) -> str:
    """A name that fits, all of it on hovering."""
    short = name if len(name) <= most else name[: most - 1] + "\u2026"
    return html.escape(short) + (f"<title>{html.escape(name)}</title>" if short != name else "")


def _ticks(low: float, high: float) -> list[float]:
    """Round values, zero among them, 2 to 6 of them."""
    step = 10.0 ** math.floor(math.log10((high - low) / 3))
    step *= next(each for each in (1, 2, 5, 10) if (high - low) / (step * each) <= 5)
    return [step * each for each in range(math.ceil(low / step), math.floor(high / step) + 1)]
