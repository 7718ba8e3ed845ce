"""The command line: layers, settings, train, search, report, export, export-model, evaluate, audit, doctor."""

import contextlib
import dataclasses
import json
import os
import re
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table
from rich.text import Text

from imachsr.cli_export import Ema, Which, export_model
from imachsr.console import Progress, arms_table, people, plain, print_json, search_table
from imachsr.version import __version__

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Intermediate supervision for segmentation models: train, search and report.",
)
INTERRUPTED = 130
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document on stdout, for machines.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings as key=value, such as optimizer.epochs=2 or method.loss=dice.", show_default=False)
]
SearchOverrides = Annotated[
    list[str] | None, typer.Argument(help="Settings as key=value, such as budget.trials=6 or run.optimizer.epochs=2.", show_default=False)
]
DataOverrides = Annotated[
    list[str] | None, typer.Argument(help="Settings over those of the training as key=value, such as data.domain=shifted.", show_default=False)
]
Wandb = Annotated[str, typer.Option("--wandb", help="auto (online with a key and an answering server, else offline), online, offline or disabled.")]
Address = Annotated[
    str | None, typer.Option(help="HOST:PORT of a Ray cluster, or auto for the one of this machine; RAY_ADDRESS does the same.", show_default=False)
]
Project = Annotated[str, typer.Option("--wandb-project", help="Project in W&B.")]


def _local(parameter: typer.CallbackParam, path: Path | None) -> Path | None:
    """Refuse an address: a path of it would be a new folder with a colon in its name."""
    from imachsr.config.schema import ConfigError

    if path is not None and (found := re.match(r"([A-Za-z][\w+.-]+):/+", str(path))):
        given = f"{found[1]}://{str(path)[found.end() :]}"
        raise ConfigError(
            f"`{parameter.opts[0]}` must be a folder, but got {given}; mount it (mount-s3, gcsfuse, rclone mount) and give the folder's path"
        )
    return path


def _free(path: Path, suffix: str = "") -> Path:
    """The path, or with a number behind it when it is taken: a default must never end in an error."""
    candidate, number = Path(f"{path}{suffix}"), 2
    while candidate.exists():
        candidate, number = Path(f"{path}-{number}{suffix}"), number + 1
    return candidate


def _result_folder(output: Path | None, name: str, *, resume: bool, foreign: tuple[str, ...]) -> Path:
    """Where results go; refused when one of ``foreign`` shows that it holds a result of another kind, which would be overwritten."""
    from imachsr.config.schema import ConfigError

    folder = output or (Path("runs") / name if resume else _free(Path("runs") / name))
    if resume and not folder.is_dir():
        raise ConfigError(f"--resume must go with a folder to continue in, but {folder} is none; name it with --output")
    if found := [name for name in foreign if (folder / name).exists()]:
        raise ConfigError(f"{folder} must be a new folder, but holds another kind of result ({found[0]}); give another --output")
    part = next(part for part in (folder, *folder.absolute().parents) if part.exists())
    if not part.is_dir():
        raise ConfigError(f"--output must be a folder, but {part} is a file")
    return folder


def _again(command: str, config: Path, overrides: list[str], folder: Path) -> str:
    """The command that continues what was broken off; settings must be those that it began with."""
    return shlex.join(["imachsr", command, str(config), *overrides, "--output", str(folder), "--resume"])


def _foreign_keys(config: Path, command: str) -> list[str]:
    """Keys by which a file shows that it is for the other one of train and search; none when it may be for this one."""
    from imachsr.config.load import load_yaml
    from imachsr.config.schema import Run
    from imachsr.search.space import Search

    kinds = {"train": set(Run.model_fields), "search": {"base", *Search.model_fields}}
    own, other = kinds[command], kinds["search" if command == "train" else "train"]
    keys = set(load_yaml(config))
    return [] if keys & own - other else sorted(keys & other - own)


def _check_kind(config: Path, command: str) -> None:
    """A file of the other kind would be answered by one complaint a key."""
    from imachsr.config.schema import ConfigError

    what, found, right = ("one run", "a search", "search") if command == "train" else ("a search", "one run", "train")
    if strange := _foreign_keys(config, command):
        raise ConfigError(f"{config} must hold {what}, but holds {found} ({', '.join(strange)}); use: imachsr {right} {config}")


def _check_prefix(overrides: list[str]) -> None:
    """The likeliest slip: a setting of a run where one of the search is meant."""
    from imachsr.config.schema import ConfigError, Run
    from imachsr.search.space import Search

    for text in overrides:
        first = text.partition("=")[0].partition(".")[0].strip()
        if first in Run.model_fields and first not in Search.model_fields:
            raise ConfigError(f"a setting of the base run must begin with run., as in run.{text}, but got {text!r}")


@contextlib.contextmanager
def _about_data(data: Path | None, key: str) -> Iterator[None]:
    """Name the option when what it sets is refused."""
    from imachsr.config.schema import ConfigError

    try:
        yield
    except ConfigError as error:
        if data is None or "'root' is no setting" not in str(error):
            raise
        hint = f"--data sets {key}.root: leave it out, or choose a data set that is read from a folder, by {key}.kind"
        raise ConfigError(f"{error}\n{hint}") from None


def _quoted(path: Path) -> str:
    """The path as a YAML text, absolute: workers and later commands may run in another folder."""
    return json.dumps(str(path.expanduser().absolute()))


def _tracker(folder: Path, mode: str, project: str) -> Any:
    from typing import get_args

    from imachsr.config.schema import ConfigError, near
    from imachsr.tracking.events import Combined
    from imachsr.tracking.wandb import Mode, WandbTracker

    if mode not in get_args(Mode):
        raise ConfigError(f"--wandb must be one of {', '.join(get_args(Mode))}, but got {mode!r}; {near(mode, list(get_args(Mode)))}")
    return Combined([WandbTracker(folder, project=project, mode=mode)])  # type: ignore[arg-type]


def _run_id(folder: Path) -> str:
    """The training's id in W&B, kept in its folder so that a resumed training goes on in the same run."""
    path = folder / "wandb-id"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(f"train-{os.urandom(4).hex()}")
    return path.read_text()


def _reported(folder: Path) -> int:
    """Epochs that the tracker was given of the training in a folder; it may have ended between the checkpoint of one and that."""
    path = folder / "reported"
    return int(path.read_text()) if path.exists() else 0


@app.command()
def layers(
    overrides: Overrides = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of a run or a search; its model and standard are taken.", show_default=False)] = None,
    architecture: Annotated[str | None, typer.Option(help="Architecture of segmentation_models_pytorch.", show_default="unet")] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Encoder of segmentation_models_pytorch, or tu-NAME for one of timm.", show_default="resnet18")
    ] = None,
    standard: Annotated[
        str | None,
        typer.Option(
            help="Rule that chooses: auto, resolution, stage, depth, flops, explicit (method.standard.layers), ...; an unknown one lists all.",
            show_default="auto",
        ),
    ] = None,
    max_taps: Annotated[int | None, typer.Option(help="Layers wanted, >= 1.", show_default="3")] = None,
    placement: Annotated[
        str | None, typer.Option(help="Where among the candidates: early, uniform or late.", show_default="early with auto, else uniform")
    ] = None,
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(help="Height and width of the traced image, pixels, each >= 32.", show_default="that of the data"),
    ] = None,
    classes: Annotated[int | None, typer.Option(help="Number of classes, >= 2.", min=2, show_default="that of the data")] = None,
    as_json: Json = False,
) -> None:
    """Show a model's candidate layers, and those that a standard chooses.

    Data are read only by the standards that look at them (gradient, entropy, probe).
    """
    import torch

    from imachsr.config.build import build_model, calibrate, selection_standard
    from imachsr.config.load import load_run, make_run, parse_overrides, run_to_dict
    from imachsr.core.layers import trace
    from imachsr.core.selection import select
    from imachsr.data.samples import check_size
    from imachsr.search.space import load_search

    given = {
        "model.architecture": architecture,
        "model.encoder": encoder,
        "method.standard": standard,
        "method.standard.max_taps": max_taps,
        "method.standard.placement": placement,
    }
    is_search = config is not None and bool(_foreign_keys(config, "train"))
    base = run_to_dict(load_search(config).base() if is_search else load_run(config)) if config else {}
    run = make_run(base, {**{key: value for key, value in given.items() if value is not None}, **parse_overrides(overrides or [])})
    # The user's own data set is not asked: it may read the data.
    pixels: Any = size or getattr(run.data, "size", (96, 128))
    check_size(pixels)
    classes = classes or (11 if run.data.kind == "import" else run.data.num_classes)
    model = build_model(run, classes)
    traced = trace(model, torch.randn(2, 3, *pixels))
    taps = select(selection_standard(run), traced, calibrate(run, model, classes))
    if as_json:
        found = [{**dataclasses.asdict(tap.layer), "reason": tap.reason} for tap in taps]
        candidates = [dataclasses.asdict(layer) for layer in traced.layers]
        return print_json({"taps": [tap.layer.address for tap in taps], "chosen": found, "candidates": candidates, "input_size": list(pixels)})
    reasons = {tap.layer.address: tap.reason for tap in taps}
    table = Table("", Column("layer", overflow="fold"), "class", "C", "h x w", "stride", "parameters", "reason")
    for layer in traced.layers:
        reason = reasons.get(layer.address)
        cells = ["*" if reason else "", layer.address, layer.cls, str(layer.channels), f"{layer.height} x {layer.width}", f"{layer.stride:.3g}"]
        table.add_row(*cells, f"{layer.params:,}", reason or "", style="bold green" if reason else None)
    plain.print(table)
    plain.print(f"{len(taps)} of {len(traced.layers)} candidates chosen: {', '.join(reasons)}")
    return None


@app.command()
def settings(
    prefix: Annotated[
        str | None, typer.Argument(help="Beginning of keys, such as optimizer or method.loss; all without it.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """List the settings of a run and of a search: key, what it takes, default and meaning."""
    from imachsr.search.settings import settings as known

    found = known(prefix or "")
    if as_json:
        return print_json([dataclasses.asdict(each) for each in found])
    for of, title in (("run", "settings of a run"), ("search", "settings of a search, where a run's begin with run.")):
        rows = [each for each in found if each.of == of]
        table = Table("key", "values", "default", Column("meaning", overflow="fold"), title=title, title_justify="left")
        for each in rows:
            only = f"({', '.join(each.only_with)}) " if each.only_with else ""
            table.add_row(each.key, each.values, each.default, only + each.meaning)
        if rows:
            plain.print(table)
    return None


def _workers(text: str) -> int | tuple[int, int]:
    """0, N or (MIN, MAX) from what stands on the command line."""
    from imachsr.config.schema import ConfigError

    parts = text.split(":")
    if all(part.isdecimal() for part in parts):
        counts = [int(part) for part in parts]
        if len(counts) == 1:
            return counts[0]
        if len(counts) == 2 and 1 <= counts[0] <= counts[1]:
            return counts[0], counts[1]
    raise ConfigError(f"`--workers` must be N, or MIN:MAX with 1 <= MIN <= MAX, such as 2 or 1:4, but got {text!r}")


def _join(address: str | None, *, has_workers: bool = True) -> None:
    """Say to Ray which cluster is meant."""
    from imachsr.config.schema import ConfigError

    if address is not None and not has_workers:
        raise ConfigError("`--address` must come with `--workers`, since a training without workers stays in this process")
    if has_workers and (address := address or os.environ.get("RAY_ADDRESS")):
        from imachsr.train.capacity import check_address

        check_address(address)
        os.environ["RAY_ADDRESS"] = address


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML file of a run, such as launch/scenes.yaml.")],
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option(help="New folder for checkpoint, metrics and settings.", callback=_local, show_default="runs/NAME")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the data set; sets data.root.", callback=_local, show_default=False)] = None,
    workers: Annotated[str, typer.Option(help="Ray Train workers: N, or MIN:MAX for as many as the cluster has; 0 trains in this process.")] = "0",
    address: Address = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the training in --output.")] = False,
    wandb: Wandb = "auto",
    wandb_project: Project = "imachsr",
    as_json: Json = False,
) -> None:
    """Train one run; val is scored after every epoch."""
    from imachsr.config.load import load_run, run_to_dict
    from imachsr.config.schema import ConfigError
    from imachsr.files import write_text
    from imachsr.tracking.events import TrialStart
    from imachsr.train import checkpoint
    from imachsr.train.loop import train as train_here
    from imachsr.train.stopping import TrainingStopped

    _check_kind(config, "train")
    given = [*(overrides or []), *([f"data.root={_quoted(data)}"] if data else [])]
    with _about_data(data, "data"):
        run = load_run(config, given)
    group = _workers(workers)
    _join(address, has_workers=group != 0)
    folder = _result_folder(output, run.name, resume=resume, foreign=("study.sqlite3",))
    if not resume and checkpoint.exists(folder):
        raise ConfigError(f"{folder} must be a new folder, but holds a training; give another --output, or continue it with --resume")
    if hasattr(run.data, "root"):
        run.data.load("val")  # the likeliest mistake, told before anything else is
    tracker = _tracker(folder, wandb, wandb_project)
    people.print(f"training {run.name}: {run.optimizer.epochs} epochs, results in {folder}")
    key, reported = "", _reported(folder) if resume else 0

    def report(row: dict[str, float]) -> None:
        nonlocal key
        if not key:
            key = _run_id(folder)
            tracker.start(TrialStart(id=key, name=run.name, group=run.name, job_type="train", config=run_to_dict(run)))
        tracker.log(key, row)
        write_text(folder / "reported", f"{row['epoch']:g}\n")
        numbers = f"val/miou {row['val/miou']:5.2f} %  val/loss {row['val/loss']:.3f}  train/loss {row['train/loss']:.3f}"
        people.print(f"epoch {row['epoch']:g}/{run.optimizer.epochs}  {numbers}  {row['time/epoch_s']:.1f} s")

    def say(line: str) -> None:
        people.print(line, soft_wrap=True)

    state = "failed"
    try:
        if group:
            from imachsr.train.daemons import DaemonsApart
            from imachsr.train.ray_train import train_distributed

            with contextlib.redirect_stdout(DaemonsApart(sys.stderr, folder / "ray" / "daemons.txt")):  # what Ray prints is no result
                train_distributed(
                    run,
                    workers=group,
                    output=folder,
                    report=report,
                    resume=resume,
                    reported=reported,
                    on_restart=lambda restart: say(str(restart)),
                    say=say,
                )
        else:
            train_here(run, output=folder, report=report, resume=resume, reported=reported)
        state = "finished"
    except (KeyboardInterrupt, TrainingStopped, RuntimeError) as ending:
        if isinstance(ending, TrainingStopped):
            say(str(ending))
        if checkpoint.exists(folder) or (folder.is_dir() and not isinstance(ending, RuntimeError)):
            cluster = [*(["--workers", workers] if group else []), *(["--address", address] if address else [])]
            say(f"to go on: {_again('train', config, [*given, *cluster], folder)}")
        if isinstance(ending, TrainingStopped):
            raise typer.Exit(128 + (ending.signal_number or INTERRUPTED - 128)) from None
        raise
    finally:
        if key:
            tracker.end(key, state, {})
        lines = tracker.close()
    summary = json.loads((folder / "summary.json").read_text())
    if as_json:
        return print_json({**summary, "output": str(folder)})
    plain.print(f"val/miou {summary['metrics']['val/miou']:.2f} %, {len(summary['taps'])} taps, in {folder}")
    for line in [*lines, f"imachsr evaluate {shlex.quote(str(folder))}"]:
        people.print(line, soft_wrap=True)
    return None


@app.command()
def search(
    config: Annotated[Path, typer.Argument(help="YAML file of a search, such as search_spaces/quickstart.yaml.")],
    overrides: SearchOverrides = None,
    output: Annotated[Path | None, typer.Option(help="New folder for all results.", callback=_local, show_default="runs/NAME")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the data set; sets run.data.root.", callback=_local, show_default=False)] = None,
    trials: Annotated[int | None, typer.Option(help="Trials in all, with the baseline; sets budget.trials.", show_default="that of the file")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Trials at a time; sets budget.concurrency.", show_default="that of the file")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the search in --output, also with more --trials.")] = False,
    wandb: Wandb = "auto",
    wandb_project: Project = "imachsr",
    as_json: Json = False,
) -> None:
    """Search over intermediate supervision with Ray Tune, Optuna and ASHA."""
    from imachsr.report.html import write_report
    from imachsr.search.space import load_search
    from imachsr.search.tuner import run_search

    _check_kind(config, "search")
    _check_prefix(overrides or [])
    options = [("budget.trials", trials), ("budget.concurrency", concurrency), ("run.data.root", _quoted(data) if data else None)]
    given = [*(overrides or []), *(f"{key}={value}" for key, value in options if value is not None)]
    with _about_data(data, "run.data"):
        found = load_search(config, given)
    folder = _result_folder(output, found.name, resume=resume, foreign=("checkpoints", "checkpoint.pt"))
    tracker = _tracker(folder, wandb, wandb_project)
    epochs = found.base().optimizer.epochs

    def announce() -> None:
        people.print(f"search {found.name}: {found.budget.trials} trials of up to {epochs} epochs, {found.budget.concurrency} at a time")
        people.print(f"results in {folder}; starting Ray ...")

    progress = Progress(found.metric.name, found.metric.mode, epochs, is_live=people.is_terminal and not as_json)
    with progress, contextlib.redirect_stdout(sys.stderr):  # what Ray prints is no result
        summary, lines = run_search(found, folder, tracker=tracker, on_change=progress.update, on_ready=announce, resume=resume)
    page = write_report(folder)
    failure = _failure(summary, folder)
    if as_json:
        print_json({**summary, "output": str(folder), "report": str(page)})
    else:
        _show_search(summary, page)
        quoted, run_file, run_folder = shlex.quote(str(folder)), _free(Path("best"), ".yaml"), _free(Path("runs/best"))
        go_on = [f"imachsr report {quoted}"]
        if not failure:
            go_on += [f"imachsr export {quoted} --out {run_file}", f"imachsr train {run_file} --output {run_folder}"]
        if not summary["finished"]:
            go_on = [_again("search", config, given, folder)]
        people.print("to look at the runs, and to go on:")
        for line in [*lines, *go_on]:
            people.print(f"  {line}", soft_wrap=True)
    if not summary["finished"]:  # Tune answers the interrupt by ending in order
        raise typer.Exit(INTERRUPTED)
    if failure:
        people.print(f"failed: {failure}", soft_wrap=True, style="red")
        raise typer.Exit(1)
    if others := [trial for trial in summary["trials"] if trial["state"] == "FAIL"]:
        people.print(f"{len(others)} of {len(summary['trials'])} trials failed; the first: {_why(others[0], folder)}", soft_wrap=True)


def _why(trial: dict[str, Any], folder: Path) -> str:
    return f"trial {trial['number']}: {trial['error']} (in full: {folder / 'trials' / format(trial['number'], '04d') / 'error.txt'})"


def _failure(summary: dict[str, Any], folder: Path) -> str:
    """Why a search found nothing, or "": without the baseline there is nothing to compare with."""
    failed = [trial for trial in summary["trials"] if trial["state"] == "FAIL"]
    baseline = next((trial for trial in failed if trial["number"] == summary["baseline"]), None)
    if baseline is not None:
        return f"the baseline, {_why(baseline, folder)}"
    return f"no trial finished; {_why(failed[0], folder)}" if failed and summary["best"] is None else ""


def _show_search(summary: dict[str, Any], page: Path) -> None:
    plain.print(search_table(summary))
    if (means := arms_table(summary)) is not None:
        plain.print(means)
    plain.print(f"report: {page}", soft_wrap=True)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="Result folder of a search.")], as_json: Json = False) -> None:
    """Show a search's table and write its HTML report; reads files only."""
    from imachsr.report.html import write_report
    from imachsr.report.table import arms, load_summary, rows

    summary = load_summary(folder)
    page = write_report(folder)
    if as_json:
        means = [{**dataclasses.asdict(arm), "mean": arm.mean, "difference": arm.difference} for arm in arms(summary)]
        return print_json({**summary, "rows": [dataclasses.asdict(row) for row in rows(summary)], "arms": means, "report": str(page)})
    _show_search(summary, page)
    return None


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="Result folder of a search.")],
    out: Annotated[Path, typer.Option(help="YAML file to write; must not exist.")] = Path("best.yaml"),
    trial: Annotated[int | None, typer.Option(help="Number of the trial.", show_default="the best finished one")] = None,
    as_json: Json = False,
) -> None:
    """Write a trial's settings as a run of its own."""
    from imachsr.report.export import export as write

    number = write(folder, out, trial=trial)
    if as_json:
        return print_json({"trial": number, "out": str(out)})
    plain.print(f"trial {number} in {out}", soft_wrap=True)
    people.print(f"imachsr train {shlex.quote(str(out))}", soft_wrap=True)
    return None


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(help="Folder of a training, with checkpoints/.")],
    overrides: DataOverrides = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "val",
    which: Which = "latest",
    no_ema: Ema = False,
    as_json: Json = False,
) -> None:
    """Score a trained model; overrides such as data.domain=shifted change the data."""
    from imachsr.train.evaluate import evaluate as score

    row = score(folder, split=split, overrides=overrides or [], which=which, use_ema=not no_ema)  # type: ignore[arg-type]
    if as_json:
        return print_json(row)
    table = Table("metric", "value")
    for key, value in row.items():
        table.add_row(key, f"{value:.4f}" if key.endswith("loss") else f"{value:.2f} %")
    plain.print(table)
    return None


app.command()(export_model)


@app.command()
def audit(
    draws: Annotated[int, typer.Option(help="Random draws, >= 2.", min=2)] = 40,
    threshold: Annotated[float, typer.Option(help="Smallest cosine to show, in [-1, 1].", min=-1, max=1)] = 0.8,
    as_json: Json = False,
) -> None:
    """Compare the gradients of all losses: those that point the same way train the same thing, whatever their names.

    Exit code 1 when two equivalent losses declare different families.
    """
    import torch

    from imachsr.core.audit import EQUIVALENT
    from imachsr.core.audit import audit as compare

    torch.set_num_threads(1)  # the tensors are tiny
    angles = sorted(compare(draws=draws), key=lambda angle: -angle.cosine)
    wrong = [angle for angle in angles if not angle.is_honest]
    if as_json:
        print_json([{**dataclasses.asdict(angle), "equivalent": angle.is_equivalent, "honest": angle.is_honest} for angle in angles])
    else:
        table = Table("loss", "loss", "gradient cosine", "spread", "family", "verdict")
        for angle in angles:
            if angle.cosine >= threshold:
                family = "same" if angle.same_family else "different"
                verdict = ("equivalent" if angle.is_equivalent else "differs") + ("" if angle.is_honest else ": family is wrong")
                table.add_row(angle.first, angle.second, f"{angle.cosine:.4f}", f"{angle.spread:.3f}", family, verdict)
        plain.print(table)
        plain.print(f"equivalent from a mean cosine of {EQUIVALENT} over {draws} draws; {len(angles)} pairs, {len(wrong)} with a wrong family")
    if wrong:
        raise typer.Exit(1)


@app.command()
def doctor(
    address: Annotated[
        str | None, typer.Option(help="Also check all nodes of the Ray cluster at HOST:PORT, or at auto for this machine's.", show_default=False)
    ] = None,
    storage: Annotated[Path | None, typer.Option(help="Folder for results that all nodes should share.", callback=_local, show_default=False)] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of a data set that all nodes should see.", callback=_local, show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Check this machine: versions, devices, memory, W&B; with --address the nodes of a cluster: versions, resources, storage, clocks, network, data.

    Exit code 1 when something that is needed is missing.
    """
    from imachsr.doctor import diagnose

    with contextlib.redirect_stdout(sys.stderr):  # what Ray prints is no result
        checks = diagnose(address, storage=storage, data=data)
    if as_json:
        print_json([dataclasses.asdict(check) for check in checks])
    else:
        table = Table("", "check", Column("finding", overflow="fold"))
        for check in checks:
            mark = Text(check.state, style={"ok": "green", "warning": "yellow", "error": "red"}[check.state])
            table.add_row(mark, check.name, check.finding)
        plain.print(table)
    if any(check.state == "error" for check in checks):
        raise typer.Exit(1)


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if version:
        plain.print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line: exit code 0, 1 (failed), 2 (the user's mistake, one message) or 130 (interrupted)."""
    # `import: mypackage.module:name` finds what lies beside the user; last, so that a file named like a package hides none.
    sys.path.append(os.getcwd())
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", category=UserWarning, module="imachsr")
    warnings.showwarning = lambda message, *_args, **_options: people.print(f"note: {message}", soft_wrap=True)
    try:
        app()
    except ValueError as error:
        if os.environ.get("IMACHSR_TRACEBACK"):
            raise
        people.print(f"error: {error}", soft_wrap=True, style="red")
        people.print("IMACHSR_TRACEBACK=1 shows where", style="dim")
        raise SystemExit(2) from None
    except (FloatingPointError, OSError, RuntimeError) as error:
        if os.environ.get("IMACHSR_TRACEBACK"):
            raise
        people.print(f"failed: {error}", soft_wrap=True, style="red")
        people.print("IMACHSR_TRACEBACK=1 shows where", style="dim")
        raise SystemExit(1) from None
    except Exception as error:  # the user's own model, loss or data set may raise anything
        if os.environ.get("IMACHSR_TRACEBACK"):
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        people.print(f"failed: {type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})", soft_wrap=True, style="red")
        people.print("IMACHSR_TRACEBACK=1 shows where", style="dim")
        raise SystemExit(1) from None
    except SystemExit as ending:
        if ending.code == INTERRUPTED:  # typer's answer to the signal, without a word
            people.print("interrupted")
        raise
    except KeyboardInterrupt:
        people.print("interrupted")
        raise SystemExit(INTERRUPTED) from None
