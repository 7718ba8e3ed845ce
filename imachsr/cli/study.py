"""The command that compares arms over paired seeds."""

import contextlib
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imachsr.cli.decoding import decoded
from imachsr.cli.exit_codes import INTERRUPTED
from imachsr.cli.kinds import check_kind
from imachsr.cli.options import (
    PROJECT,
    WANDB,
    Address,
    Json,
    Project,
    Wandb,
    about_data,
    default_folder,
    folder_to_be,
    join,
    local,
    tracking_options,
    yaml_path,
)
from imachsr.cli.tracking import open_tracker
from imachsr.console import Style, people, plain, print_json, print_line, style_of

if TYPE_CHECKING:
    from imachsr.data.samples import Split
    from imachsr.study.driver import Standing
    from imachsr.study.findings import Findings
    from imachsr.study.folder import Study

StudyOverrides = Annotated[
    list[str] | None, typer.Argument(help="Settings as key=value, such as seeds=[0,1,2] or run.optimizer.epochs=2.", show_default=False)
]


def study(
    config: Annotated[Path, typer.Argument(help="YAML file of a study, such as search_spaces/ablation.yaml.")],
    overrides: StudyOverrides = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for all results; one that holds this study is continued.", callback=local, show_default="runs/NAME"),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the data set; sets run.data.root.", callback=local, show_default=False)] = None,
    rows: Annotated[
        list[Path] | None,
        typer.Option(help="CSV file of runs that need not be run again, such as a published one; may be repeated.", show_default=False),
    ] = None,
    cell: Annotated[list[str] | None, typer.Option(help="Run this cell only; may be repeated.", show_default="all")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Runs at a time; sets budget.concurrency.", show_default="that of the file")] = None,
    hours: Annotated[float | None, typer.Option(help="Begin no run after so long; the same command goes on.", show_default=False)] = None,
    no_run: Annotated[bool, typer.Option("--no-run", help="Run nothing: make tables and pictures from the rows that are there.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run again what failed.")] = False,
    address: Address = None,
    wandb: Wandb = WANDB,
    wandb_project: Project = PROJECT,
    json_lines: Annotated[bool, typer.Option("--json-lines", help="Print progress as a line of JSON a change on stdout, for machines.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print no progress.")] = False,
    as_json: Json = False,
) -> None:
    """Compare arms over paired seeds in several cells, with exact tests; what has ended is never run again.

    Writes runs.csv (a row a run), study.json, study.md and pictures. The same command goes on where it was broken off.
    """
    from imachsr.config.schema import ConfigError
    from imachsr.study.driver import run_study
    from imachsr.study.folder import Study
    from imachsr.study.load import load_study
    from imachsr.study.rows import read

    if hours is not None and hours <= 0:
        raise ConfigError(f"`--hours > 0` must hold, but got {hours:g}")
    if as_json and json_lines:
        raise ConfigError("--json and --json-lines must not be given together: one document at the end, or a line a change")
    if no_run and retry_failed:
        raise ConfigError("--no-run and --retry-failed must not be given together: run nothing, or what failed")
    for name, value in (("--cell", cell), ("--hours", hours), ("--concurrency", concurrency)):
        if no_run and value:
            raise ConfigError(f"--no-run and {name} must not be given together: it is about what runs, and the tables are of all that is there")
    check_kind(config, "study")
    given = [*(overrides or []), *([] if data is None else [f"run.data.root={yaml_path(data)}"])]
    given += [] if concurrency is None else [f"budget.concurrency={concurrency}"]
    with about_data(data, "run.data"):
        plan = load_study(config, given)
    _check_cells(cell or [], [each.name for each in plan.cells])
    folder = folder_to_be(output or _default(plan.name))
    published = [row for path in rows or [] for row in read(path)]
    join(address)
    with Study(plan=plan, folder=folder, published=published, only=frozenset(cell or ())) as held:
        if retry_failed and (forgotten := held.forget_failed()):
            people.print(f"{forgotten} failed runs are tried again", soft_wrap=True)
        for line in held.told():
            _say(f"note: {line}")
        interrupted, lines = False, []
        if not no_run:
            style = style_of(as_json=as_json, json_lines=json_lines, quiet=quiet)
            _announce(held)
            _decode(held)
            tracker = open_tracker(folder, wandb, wandb_project)
            with Watch(style, plan.metric) as watch, contextlib.redirect_stdout(sys.stderr):
                interrupted = run_study(held, tracker=tracker, on_change=watch.update, say=_say, hours=hours)
                lines = tracker.close()
        findings = written(held)
    if json_lines:
        print_line({"event": "summary", **findings.to_dict(), "output": str(folder)})
    else:
        _show(findings, folder, as_json=as_json)
    for line in lines:
        _say(line)
    if not no_run and findings.done < findings.total:
        options = [*_option("--data", data), *(word for path in rows or [] for word in ("--rows", str(path))), *_option("--concurrency", concurrency)]
        options += [*_option("--address", address), *tracking_options(wandb, wandb_project)]
        _say(_what_is_missing(held, [str(config), *(overrides or []), "--output", str(folder), *options], cell or [], findings.total - findings.done))
    if interrupted:
        raise typer.Exit(INTERRUPTED)
    if held.lost or findings.failures:
        where = folder / "runs.csv"
        _say(f"failed: {len(held.lost)} runs were lost, {len(findings.failures)} failed; errors are in {where}, --retry-failed tries again")
        raise typer.Exit(1)


def written(held: "Study") -> "Findings":
    """Write study.json, study.md and the pictures of what is there; the findings."""
    import json

    from imachsr.files import write_text
    from imachsr.study.document import document
    from imachsr.study.findings import find
    from imachsr.study.plots import plot
    from imachsr.tracking.events import finite

    findings = find(held.plan, held.known)
    plots = plot(findings, held.folder)
    write_text(held.folder / "study.md", document(findings, plots=plots, provisos=held.provisos()))
    write_text(held.folder / "study.json", json.dumps(finite({"schema": 1, **findings.to_dict()}), indent=1) + "\n")
    return findings


def _default(name: str) -> Path:
    """runs/NAME, or the first with a number behind it that is new or holds this study."""
    from imachsr.study.folder import holds

    path, number = default_folder(name), 2
    while path.exists() and not holds(path, name):
        path, number = default_folder(f"{name}-{number}"), number + 1
    return path


def _check_cells(given: list[str], known: list[str]) -> None:
    from imachsr.config.schema import ConfigError, near

    for name in given:
        if name not in known:
            raise ConfigError(f"--cell must name a cell of the study, but got {name!r}; {near(name, known)}")


def _option(name: str, value: object) -> list[str]:
    return [] if value is None else [name, str(value)]


def _what_is_missing(held: "Study", words: list[str], cells: list[str], of_all: int) -> str:
    """How many runs are missing, and the command that goes on: with the cells that were run, or, when these have ended, with all."""
    missing = held.missing()
    if cells and not any(each.run is not None for each in missing):
        why = f"; {', '.join(sorted({each.cell for each in missing}))} needs the times of another cell's runs" if missing else ""
        return f"{of_all} runs of all cells are missing{why}; to go on with all: {shlex.join(['imachsr', 'study', *words])}"
    chosen = [word for name in cells for word in ("--cell", name)]
    return f"{len(missing)} {'run is' if len(missing) == 1 else 'runs are'} missing; to go on: {shlex.join(['imachsr', 'study', *words, *chosen])}"


def _say(line: str) -> None:
    people.print(line, soft_wrap=True)


def _announce(held: "Study") -> None:
    """What is said before anything runs."""
    from imachsr.search.paired import ALPHA, pairs_needed
    from imachsr.study.comparisons import families_of, primary_smallest

    plan, missing = held.plan, len(held.missing())
    arms = ", ".join(arm.name for arm in plan.arms[1:])
    _say(f"study {plan.name}: {arms} against {plan.control}, {len(plan.cells)} cells; {missing} runs to go; results in {held.folder}")
    if (least := primary_smallest(plan)) is not None and least >= ALPHA:
        _say(
            f"note: with so few seeds the comparison that was declared beforehand could not win, whatever its gain; {pairs_needed(1)} seeds would do"
        )
    for family in families_of(plan):
        what = f"the {family['comparisons']} comparisons of {family['name']}"
        if family["smallest"] >= ALPHA:
            need = pairs_needed(family["comparisons"])
            _say(f"note: with so few seeds none of {what} could win after Holm, whatever its gain; {need} seeds would do")


def _decode(held: "Study") -> None:
    """Decode data once, with a bar; runs then map what is decoded."""
    from imachsr.config.load import make_run, run_to_dict

    seen: set[str] = set()
    for each in held.todo():
        assert each.run is not None  # todo() gives no other
        further = [make_run(run_to_dict(each.run), dict(own)).data for own in held.plan.also_on.values()]
        scored = further if each.run.subset.hold_out is not None else [each.run.data, *further]
        wanted: list[tuple[Any, Split]] = [(each.run.data, "train"), *((spec, "val") for spec in scored)]
        for spec, split in wanted:
            if hasattr(spec, "root") and (what := f"{spec!r} {split}") not in seen:
                seen.add(what)
                decoded(spec, split)


def _show(findings: "Findings", folder: Path, *, as_json: bool) -> None:
    from imachsr.study.document import words

    if as_json:
        print_json({**findings.to_dict(), "output": str(folder)})
        return
    for line in words(findings):
        plain.print(line, soft_wrap=True)
    rows = f"; rows: {path}" if (path := folder / "runs.csv").exists() else ""
    plain.print(f"tables: {folder / 'study.md'}{rows}", soft_wrap=True)


class Watch:
    """What is shown of a study while it runs: bars in a terminal, else a line a run.

    Args:
        style: See :func:`imachsr.console.style_of`.
        metric: That is tested.
    """

    def __init__(self, style: Style, metric: str) -> None:
        self._style, self._metric, self._out = style, metric, sys.stdout
        self._bars: dict[Any, Any] = {}
        self._live: Any = None

    def __enter__(self) -> "Watch":
        if self._style == "live":
            from rich import progress

            columns = (
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[left]}"),
            )
            self._live = progress.Progress(*columns, console=people, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, standing: "Standing") -> None:
        """Show where it stands."""
        if standing.ended is not None:
            self._tell(standing)
        if self._live is None:
            return
        tasks = {"all": ("all runs", standing.done, standing.total, _left(standing))}
        for each, done, total in standing.running:
            name = " ".join(filter(None, [each.cell, each.arm, each.setting, f"seed {each.seed}"]))
            tasks[name] = (name, done, total, "epochs")
        for gone in set(self._bars) - set(tasks):
            self._live.remove_task(self._bars.pop(gone))
        for key, (name, done, total, left) in tasks.items():
            if key not in self._bars:
                self._bars[key] = self._live.add_task(name, left=left)
            self._live.update(self._bars[key], completed=done, total=total, left=left)

    def _tell(self, standing: "Standing") -> None:
        row = standing.ended
        assert row is not None  # checked by the caller
        value = row.scores.get(self._metric)
        if self._style == "json":
            told = {
                "cell": row.cell,
                "arm": row.arm,
                "setting": row.setting,
                "seed": row.seed,
                "state": row.state,
                "value": value,
                "error": row.error,
            }
            print_line({"event": "run", **told, "done": standing.done, "total": standing.total}, self._out)
        elif self._style != "quiet":
            what = f"{self._metric} {value:.2f}" if value is not None else row.error
            name = " ".join(filter(None, [row.cell, row.arm, row.setting, f"seed {row.seed}"]))
            minutes = f", {row.scores['wall_s'] / 60:.1f} min" if "wall_s" in row.scores else ""
            _say(f"{standing.done}/{standing.total}  {name}: {row.state}  {what}{minutes}{_left(standing, before=', ')}")


def _left(standing: "Standing", before: str = "") -> str:
    return "" if standing.left_s is None else f"{before}about {standing.left_s / 3600:.1f} h left"
