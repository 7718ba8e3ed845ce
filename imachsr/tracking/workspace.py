"""The dashboard of a search in W&B: a saved workspace, made from the search's files."""

import contextlib
import io
import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from imachsr.files import write_text
from imachsr.tracking import overview
from imachsr.tracking.background import within
from imachsr.tracking.recorded import Place, load

FILE = "wandb-workspace.json"
CHOICES = ("standard", "loss", "entropy", "max_taps", "alpha", "beta")
"""Axes of the parallel coordinates among the trials' configurations; none is logarithmic, since the baseline's weights are 0."""
SAVE_S = 60.0
"""Longest wait for the server, seconds."""


def build(held: Mapping[str, Any], confirmed: Mapping[str, Any] | None, *, entity: str, project: str) -> Any:
    """The workspace, not yet saved.

    Args:
        held: summary.json of the search.
        confirmed: confirm.json, if it was confirmed.
        entity: User or team in W&B; "" while nobody is logged in.
        project: Of W&B.
    """
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces import expr

    groups = [f"{held['name']}-{held['uid']}"]
    baseline = held["baseline"]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"{held['name']} {held['uid']}",
        sections=[
            ws.Section(name="Search", panels=_of_the_search(held), is_open=True),
            ws.Section(name="Differences from the baseline", panels=_differences(held, confirmed), is_open=True),
            ws.Section(name="Learning curves", panels=_curves(held), is_open=True),
            ws.Section(name="Images", panels=_images(), is_open=True),
            ws.Section(name="Runs", panels=_runs(), is_open=True),
        ],
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=[expr.Metric("Group").isin(groups)],
            order=[expr.Ordering(item=expr.Summary(held["metric"]), ascending=held["mode"] == "min")],
            pinned_columns=[f"summary:{held['metric']}", *(f"config:choice/{name}.value" for name in CHOICES), "summary:time/step_ms"],
            **({} if baseline is None else {"baseline_run": f"{held['uid']}-{baseline:04d}"}),
        ),
    )


def _of_the_search(held: Mapping[str, Any]) -> list[Any]:
    from wandb_workspaces.reports import v2 as wr

    metric = held["metric"]
    columns = [wr.ParallelCoordinatesPlotColumn(metric=wr.Config(f"choice/{name}"), display_name=name) for name in CHOICES]
    columns += [
        wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric("trial/num_taps"), display_name="taps"),
        wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(metric), display_name=metric),
    ]
    step = wr.SummaryMetric("time/step_ms")
    return [
        wr.ParallelCoordinatesPlot(columns=columns, title=f"What leads to {metric}", layout=wr.Layout(w=24, h=10)),
        wr.ParameterImportancePlot(with_respect_to=metric, layout=wr.Layout(w=12, h=10)),
        wr.ScatterPlot(title=f"{metric} against the time of a step", x=step, y=wr.SummaryMetric(metric), layout=wr.Layout(w=12, h=10)),
        wr.WeavePanelSummaryTable(table_name=overview.TABLE, layout=wr.Layout(w=24, h=10)),
    ]


def _differences(held: Mapping[str, Any], confirmed: Mapping[str, Any] | None) -> list[Any]:
    from wandb_workspaces.reports import v2 as wr

    bars = wr.CustomChart(
        query={"summaryTable": {"tableKey": f"{overview.DIFFERENCES}_table"}},
        chart_name="wandb/bar/v0",
        chart_fields={"label": "configuration", "value": "difference"},
        chart_strings={"title": f"{held['metric']} against the baseline of the same seed"},
        layout=wr.Layout(w=12, h=10),
    )
    return [bars, wr.MarkdownPanel(markdown=table_of(held, confirmed), layout=wr.Layout(w=12, h=10))]


def table_of(held: Mapping[str, Any], confirmed: Mapping[str, Any] | None) -> str:
    """The paired differences as Markdown: those of the confirmation with their intervals, else those of the search."""
    if confirmed is None:
        lines = [f"**{held['metric']} minus the baseline's of the same seed**, one run each: candidates, not findings.", ""]
        lines += ["| configuration | difference |", "|---|---|"]
        return "\n".join([*lines, *(f"| {name} | {value:+.3f} |" for name, value in overview.differences(held))])
    lines = [f"**{confirmed['confirmed']} minus the baseline's of the same seed**, mean over {len(confirmed['seeds'])} fresh seeds.", ""]
    lines += ["| configuration | difference | 95 % | p adjusted | verdict |", "|---|---|---|---|---|"]
    for each in confirmed["configurations"][1:]:
        interval = "" if not each.get("interval") else " to ".join("no bound" if bound is None else f"{bound:+.3f}" for bound in each["interval"])
        cells = [_number(each.get("difference"), "+.3f"), interval, _number(each.get("p_holm"), ".3g")]
        lines.append(f"| {each['name']} | {' | '.join(cells)} | {each['verdict']} |")
    return "\n".join(lines)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _curves(held: Mapping[str, Any]) -> list[Any]:
    from wandb_workspaces.reports import v2 as wr

    prefix = held["metric"].partition("/")[0]

    def plot(title: str, metrics: Iterable[str] = (), pattern: str | None = None) -> Any:
        return wr.LinePlot(title=title, x="epoch", y=list(metrics), metric_regex=pattern, max_runs_to_show=100, layout=wr.Layout(w=8, h=6))

    return [
        plot(held["metric"], [held["metric"]]),
        plot("loss on what is scored", [f"{prefix}/loss"]),
        plot("boundary IoU", [f"{prefix}/boundary_iou"]),
        plot("calibration error", [f"{prefix}/ece"]),
        plot("negative log likelihood", [f"{prefix}/nll"]),
        plot("loss in training", ["train/loss"]),
        plot("terms of the loss", ["train/output", "train/side", "train/entropy"]),
        plot("learning rate", ["train/lr"]),
        plot("IoU of each class", pattern=f"{prefix}/iou/.*"),
        plot("scale of the features at the taps", pattern="tap/.*/std"),
        plot("entropy of the features at the taps", pattern="tap/.*/entropy"),
        plot("images a second", ["images_per_s"]),
        plot("time of a step", ["time/step_ms"]),
        plot("peak memory", ["memory/peak_mib"]),
        plot("utilization of GPUs", pattern="gpu/.*/utilization"),
    ]


def _images() -> list[Any]:
    from wandb_workspaces.reports import v2 as wr

    keys = {"images/final": "after the last epoch", "images/best": "after the best epoch"}
    return [wr.MediaBrowser(title=title, media_keys=[key], num_columns=4, layout=wr.Layout(w=24, h=12)) for key, title in keys.items()]


def _runs() -> list[Any]:
    from wandb_workspaces.reports import v2 as wr

    return [wr.RunComparer(diff_only="split", layout=wr.Layout(w=24, h=14))]


def write(folder: Path, workspace: Any, *, url: str = "") -> Path:
    """Write the specification beside the results: what the server is given when it is saved. The path."""
    view = json.loads(workspace._to_model().model_dump_json(by_alias=True, exclude_none=True))  # which `save` sends; there is no public name for it
    write_text(folder / FILE, json.dumps({"url": url, **view}, indent=1) + "\n")
    return folder / FILE


def make(folder: Path, confirmed: Mapping[str, Any] | None, place: Place) -> list[str]:
    """Save the dashboard of a search where its runs are online, else write its specification; lines for the user.

    Args:
        folder: Result folder.
        confirmed: confirm.json, if it was confirmed.
        place: Where the runs are.
    """
    if (held := load(folder)) is None:
        return []
    workspace = build(held, confirmed, entity=place.entity, project=place.project)
    write_command = f"imachsr wandb workspace {shlex.quote(str(folder))}"
    if not place.is_online:
        return [f"W&B: the dashboard's specification is {write(folder, workspace)}; once the runs are online: {write_command}"]
    try:
        return [f"W&B dashboard: {within(SAVE_S, lambda: save(folder, workspace))}"]
    except Exception as error:  # whatever the client raises, the search has ended well
        why = next(iter(str(error).splitlines()), "") or type(error).__name__
        return [f"W&B: the dashboard could not be saved ({why}); its specification is {write(folder, workspace)}; to try again: {write_command}"]


def save(folder: Path, workspace: Any) -> str:
    """Save a workspace on the server, over the one that was saved from this folder before; its address.

    Raises:
        Exception: Whatever the client raises when the server does not take it.
    """
    before = _before(folder)
    if before and (before["entity"], before["project"]) == (workspace.entity, workspace.project):
        workspace._internal_name, workspace._internal_id = before["name"], before["id"]
    with contextlib.redirect_stderr(io.StringIO()):  # the client's own word about it
        workspace.save()
    url = str(workspace.url)
    write(folder, workspace, url=url)
    return url


def _before(folder: Path) -> dict[str, Any]:
    try:
        held: Any = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) and all(held.get(key) for key in ("id", "name", "entity", "project")) else {}
