"""A study's findings in plain words and tables, as Markdown."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from imachsr.search.paired import ALPHA, holm
from imachsr.search.space.rules import is_higher_better
from imachsr.search.verdict import between, number
from imachsr.study.comparisons import Comparison
from imachsr.study.findings import Findings

ABOUT = {
    "val/boundary_iou": "boundary IoU",
    "val/accuracy": "pixel accuracy",
    "val/ece": "ECE",
    "val/nll": "NLL",
    "corrupted/miou": "mIoU, spoilt images",
    "corrupted/ece": "ECE, spoilt images",
}


def document(findings: Findings, *, plots: Sequence[str] = (), provisos: Sequence[str] = ()) -> str:
    """The whole text.

    Args:
        findings: What was found.
        plots: Paths of pictures, relative to the text.
        provisos: What more is to be known of the rows, a sentence without its full stop each.
    """
    parts = [f"# {findings.name}", "## In words", "\n".join(f"* {line}" for line in words(findings))]
    if any(map(_is_told, findings.comparisons)):
        parts += ["## Comparisons", _comparisons(findings)]
    if any(each["runs"] for each in findings.means):
        parts += ["## Means", _means(findings)]
    if any(each["classes"] for each in findings.means):
        parts += ["## IoU of each class", _classes(findings)]
    if any(each.alongside for each in findings.comparisons):
        parts += ["## What else differs", "Mean paired difference with its 95 % interval; not tested.", _alongside(findings)]
    if findings.effects:
        parts += [
            "## Single settings",
            "Explored with few seeds, all else equal; not tested.",
            *(_effect(each, findings.metric) for each in findings.effects),
        ]
    if findings.charts:
        parts += ["## The gain over a setting", *(_chart(each, findings.metric) for each in findings.charts)]
    if plots:
        parts += ["## Pictures", "\n\n".join(f"![{path}]({path})" for path in plots)]
    parts += ["## How to read this", "\n".join(f"* {line}" for line in [*notes(findings), *(f"{each}." for each in provisos)])]
    return "\n\n".join(part for part in parts if part) + "\n"


def words(findings: Findings) -> list[str]:
    """The finding, a sentence a comparison, the declared one first; null results are told like others."""
    lines = [] if findings.done == findings.total else [f"{findings.done} of {findings.total} runs have ended: what follows is not complete."]
    ordered = sorted(findings.comparisons, key=lambda each: not each.is_primary)
    lines += [_sentence(each, findings.metric) for each in ordered if _is_told(each)]
    if waiting := [each for each in ordered if not _is_told(each)]:
        begun = {each.cell for each in ordered if _is_told(each)}
        lines.append(f"No pair of runs has ended yet: {_by_cell(waiting, begun)}.")
    if findings.against_itself is not None:
        lines.append(_itself(findings.against_itself, findings.metric, findings.control))
    if findings.strangers:
        lines.append(_strange(findings.strangers))
    lines += [f"{each['arm']} failed in {each['cell']} with seed {each['seed']}: {each['error']}" for each in findings.failures]
    return lines


def _strange(rows: Sequence[Mapping[str, Any]]) -> str:
    """Who drops a seed or an arm after its runs have ended says so."""
    runs: dict[str, list[str]] = {}
    for each in rows:
        runs.setdefault(f"{each['cell']}, {each['arm']}", []).append(str(each["seed"]))
    names = [f"{name} ({', '.join(seeds)})" for name, seeds in runs.items()]
    more = f"; and of {len(names) - 3} more" if len(names) > 3 else ""
    count = "1 run that has ended is" if len(rows) == 1 else f"{len(rows)} runs that have ended are"
    return f"{count} not of this study as it stands, and counted nowhere: {'; '.join(names[:3])}{more}."


def _is_told(each: Comparison) -> bool:
    """Whether there is something to say of it: a pair of runs that ended, or a run that failed."""
    return each.pairs > 0 or each.verdict == "failed"


def _by_cell(comparisons: Sequence[Comparison], begun: Collection[str]) -> str:
    """Cells, and of those in which others have begun the comparisons."""
    cells: dict[str, list[str]] = {}
    for each in comparisons:
        cells.setdefault(each.cell, []).append(f"{each.arm} against {each.other}")
    return "; ".join(f"{cell} ({', '.join(names)})" if cell in begun else cell for cell, names in cells.items())


def _sentence(each: Comparison, metric: str) -> str:
    name = f"{each.cell}: {each.arm} against {each.other}" + (" (declared beforehand)" if each.is_primary else "")
    if each.difference is None:
        return f"{name}: not judged, since a run failed with {len(each.failed)} of the seeds, and no pair is left."
    what = f"{_amount(each, metric, each.difference)} in the mean of {each.pairs} pair{'s' * (each.pairs != 1)}"
    if each.interval is not None:
        what += f" (95 % interval {between(each.interval, metric, signed=True)})"
    if each.verdict == "failed":
        return f"{name}: not judged, since a run failed with {len(each.failed)} of the seeds; {what}."
    if each.verdict == "incomplete":
        seeds = "1 seed is" if len(each.missing) == 1 else f"{len(each.missing)} seeds are"
        return f"{name}: not judged yet, since {seeds} missing; {what}."
    p = f"p {each.p:.3g}" if each.is_primary else f"p {each.p:.3g}, {each.p_holm:.3g} after Holm"
    if each.verdict == "open":
        return f"{name}: no difference that these runs can show: {what}, {p}."
    return f"{name}: {each.verdict}: {what}, {p}."


def _amount(each: Comparison, metric: str, difference: float) -> str:
    points = f"{number(difference, metric, signed=True)}" + (" points" if "iou" in metric or metric.endswith(("accuracy", "ece")) else "")
    return points + (f", {each.relative:+.1f} per cent of {number(each.other_mean or 0.0, metric)}" if each.relative is not None else "")


def _itself(found: Mapping[str, Any], metric: str, control: str) -> str:
    if found["rate"] is None:
        return f"{control} against itself in {found['cell']}: {found['runs']} of {found['of']} runs have ended."
    return (
        f"{control} against itself in {found['cell']}: {number(found['difference'], metric, signed=True)}, p {found['p']:.3g}; paired at random in "
        f"{found['pairings']} ways, the test finds a difference in {100 * found['rate']:.1f} % of them, where none can be (5 % at most are meant to)."
    )


def _comparisons(findings: Findings) -> str:
    rows = []
    for each in filter(_is_told, findings.comparisons):
        metric = findings.metric
        relative = "" if each.relative is None else f"{each.relative:+.1f}"
        numbers = ["" if p is None else f"{p:.3g}" for p in (each.p, each.p_wilcoxon, each.p_holm)]
        interval = "" if each.interval is None else between(each.interval, metric, signed=True)
        difference = "" if each.difference is None else number(each.difference, metric, signed=True)
        values = " ".join(number(value, metric, signed=True) for value in each.differences.values())
        arm = f"**{each.arm}**" if each.is_primary else each.arm
        rows.append([each.cell, arm, each.other, str(each.pairs), difference, relative, interval, *numbers, each.verdict, values])
    names = ["cell", "arm", "against", "pairs", "difference", "per cent", "95 %", "p", "p Wilcoxon", "p adjusted", "verdict", "of each seed"]
    return table(names, rows)


def _means(findings: Findings) -> str:
    further = dict.fromkeys(name for each in findings.comparisons for name in each.alongside)
    shown = [name for name in (findings.metric, *further) if any(name in each["means"] for each in findings.means)]
    rows = []
    for each in findings.means:
        if not each["runs"]:
            continue
        epochs = " to ".join(map(str, [each["epochs"][0], each["epochs"][-1]][: 1 + (len(each["epochs"]) > 1)])) if each["epochs"] else ""
        cells = ["" if name not in each["means"] else number(each["means"][name], name) for name in shown]
        spread = "" if each["spread"] is None else number(each["spread"], findings.metric)
        step = each["means"].get("time/step_ms")
        rows.append([each["cell"], each["arm"], f"{each['runs']}/{each['seeds']}", epochs, *cells, spread, "" if step is None else f"{step:.0f}"])
    names = [ABOUT.get(name, name) for name in shown]
    return table(["cell", "arm", "runs", "epochs", *names, f"spread of {names[0] if names else findings.metric}", "ms a step"], rows)


def _classes(findings: Findings) -> str:
    shown = list(dict.fromkeys(name for each in findings.means for name in each["classes"]))
    rows = []
    for each in findings.means:
        if each["classes"]:
            cells = [number(value, "iou") if (value := each["classes"].get(name)) is not None else "" for name in shown]
            rows.append([each["cell"], each["arm"], *cells])
    return table(["cell", "arm", *shown], rows)


def _alongside(findings: Findings) -> str:
    shown = list(dict.fromkeys(name for each in findings.comparisons for name in each.alongside))
    rows = []
    for each in filter(_is_told, findings.comparisons):
        cells = []
        for name in shown:
            found = each.alongside.get(name)
            interval = "" if not found or found["interval"] is None else f" ({between(found['interval'], name, signed=True)})"
            relative = "" if not found or found["relative"] is None else f", {found['relative']:+.0f} %"
            cells.append("" if not found else f"{number(found['difference'], name, signed=True)}{interval}{relative}")
        rows.append([each.cell, each.arm, each.other, *cells])
    return table(["cell", "arm", "against", *(ABOUT.get(name, name) for name in shown)], rows)


def _effect(effect: Mapping[str, Any], metric: str) -> str:
    best_first = -1 if is_higher_better(metric) else 1
    known = sorted((each for each in effect["values"] if each["difference"] is not None), key=lambda each: best_first * each["difference"])
    rows = []
    for each in [*known, *(each for each in effect["values"] if each["difference"] is None)]:
        mean = "" if each["mean"] is None else number(each["mean"], metric)
        difference = "" if each["difference"] is None else number(each["difference"], metric, signed=True)
        rows.append([each["value"], str(each["pairs"]), mean, difference, " ".join(number(value, metric, signed=True) for value in each["each"])])
    title = f"`{effect['key']}` of {effect['arm']} in {effect['cell']}, against the control:"
    return f"{title}\n\n" + table([effect["key"], "pairs", "mean", "difference", "of each seed"], rows)


def _chart(chart: Mapping[str, Any], metric: str) -> str:
    rows = []
    for each in sorted(chart["points"], key=lambda point: (point["arm"], point["at"])):
        interval = "" if each["interval"] is None else between(each["interval"], metric, signed=True)
        rows.append([each["arm"], f"{each['at']:g}", each["cell"], number(each["difference"], metric, signed=True), interval])
    return table(["arm", chart["over"], "cell", "difference", "95 %"], rows)


def notes(findings: Findings) -> list[str]:
    """What the numbers mean, and what they do not."""
    lines = [
        f"{findings.metric} of the last epoch. A difference is between two runs with the same seed: the same first weights, the same order of data.",
        "p is of the exact sign-flip test, two-sided; p Wilcoxon of the exact signed-rank test. Intervals are of one comparison each, not adjusted.",
    ]
    lines += _families(findings)
    if findings.primary_smallest is not None and findings.primary_smallest >= ALPHA:
        lines.append(f"The comparison that was declared beforehand could not win: with so few seeds no p is below {findings.primary_smallest:.2g}.")
    if len(findings.machines) > 1:
        lines.append(f"Runs were made on {', '.join(findings.machines)}: the same seed gives the same numbers only on one kind of machine.")
    return lines


def _families(findings: Findings) -> list[str]:
    """Over what p was adjusted, and what one adjustment over all families would leave of the verdicts."""
    if not findings.families:
        return []
    aside = ", the declared one aside" if any(each.is_primary for each in findings.comparisons) else ""
    sizes = "; ".join(f"{each['name']} {each['comparisons']}, {each['smallest']:.2g}" for each in findings.families)
    lines = [
        f"Holm adjusts p over each family of comparisons by itself{aside}; a comparison that failed or is not complete counts with p = 1. "
        f"Families, with their number of comparisons and the smallest adjusted p that their seeds allow: {sizes}."
    ]
    if hopeless := [each["name"] for each in findings.families if each["smallest"] >= ALPHA]:
        lines.append(f"With so few seeds none of the comparisons in {', '.join(hopeless)} could win, however large its gain.")
    others = [each for each in findings.comparisons if not each.is_primary]
    judged = [each for each in others if each.verdict in ("better", "worse")]
    if len(findings.families) > 1 and judged:
        kept = sum(p < ALPHA for p in holm([1.0 if each.p is None else each.p for each in others]))
        least = len(others) * min(each["smallest"] / each["comparisons"] for each in findings.families)
        unable = f"; with these seeds it could leave none, since no adjusted p would be below {min(1.0, least):.2g}" * (least >= ALPHA)
        told = f"{kept} of the {len(judged)} that are better or worse{unable}"
        lines.append(f"One adjustment over all {len(others)} comparisons of all families would leave {told}.")
    return lines


def table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown; a bar in a cell would end it."""
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
