"""The commands of one training: train, evaluate, export-model."""

import contextlib
import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from imachsr.cli.common import (
    INTERRUPTED,
    PROJECT,
    WANDB,
    Address,
    Json,
    Overrides,
    Project,
    Wandb,
    about_data,
    again,
    check_kind,
    decoded,
    join,
    local,
    open_tracker,
    result_folder,
    yaml_path,
)
from imachsr.console import Bar, people, plain, print_json

DataOverrides = Annotated[
    list[str] | None, typer.Argument(help="Settings over those of the training as key=value, such as data.domain=shifted.", show_default=False)
]
Which = Annotated[str, typer.Option("--which", help="latest, or best: the checkpoint with the highest score.")]
Ema = Annotated[bool, typer.Option("--no-ema", help="Take the weights of the last step, where optimizer.ema kept a mean of them.")]


def _run_id(folder: Path) -> str:
    """The training's id in W&B, kept in its folder so that a resumed training goes on in the same run."""
    from imachsr.search.tracked import TRAINING_ID

    path = folder / TRAINING_ID
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(f"train-{os.urandom(4).hex()}")
    return path.read_text()


def _reported(folder: Path) -> int:
    """Epochs that the tracker was given of the training in a folder; it may have ended between the checkpoint of one and that."""
    path = folder / "reported"
    return int(path.read_text()) if path.exists() else 0


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


def _prepared(storage: str, folder: Path, run: Any, *, resume: bool) -> Any:
    """A courier to the storage, which was tried, fits the training, and has given what is only there."""
    from imachsr.train import courier, stored

    found = courier.connect(storage)
    stored.prepare(found, folder, run, resume=resume)
    return found


@contextlib.contextmanager
def _uploading(courier: Any, folder: Path, run: Any, say: Callable[[str], object]) -> Iterator[Any]:
    """What keeps the storage up to date, where there is one; at the end it is told what is there, and what is not."""
    from imachsr.train.upload import Mirror

    if courier is None:
        yield None
        return
    mirror = Mirror(courier, folder, keep=run.recovery.keep, say=say)
    try:
        with mirror:
            yield mirror
    finally:
        say(str(mirror.stored))


def train(
    config: Annotated[Path, typer.Argument(help="YAML file of a run, such as launch/scenes.yaml.")],
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option(help="New folder for checkpoint, metrics and settings.", callback=local, show_default="runs/NAME")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the data set; sets data.root.", callback=local, show_default=False)] = None,
    workers: Annotated[str, typer.Option(help="Ray Train workers: N, or MIN:MAX for as many as the cluster has; 0 trains in this process.")] = "0",
    address: Address = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the training in --output, or in --storage where that is newer.")] = False,
    storage: Annotated[
        str | None,
        typer.Option(help="Also keep the training in s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, ... or another folder.", show_default=False),
    ] = None,
    wandb: Wandb = WANDB,
    wandb_project: Project = PROJECT,
    as_json: Json = False,
) -> None:
    """Train one run; val is scored after every epoch."""
    from imachsr.config.load import load_run, run_to_dict
    from imachsr.config.schema import ConfigError
    from imachsr.files import write_text
    from imachsr.search.tracked import training_start
    from imachsr.train import checkpoint
    from imachsr.train.loop import train as train_here
    from imachsr.train.stopping import TrainingStopped

    check_kind(config, "train")
    given = [*(overrides or []), *([f"data.root={yaml_path(data)}"] if data else [])]
    with about_data(data, "data"):
        run = load_run(config, given)
    group = _workers(workers)
    join(address, has_workers=group != 0)
    folder = result_folder(output, run.name, resume=resume, foreign=("study.sqlite3",), is_stored=storage is not None)
    if not resume and checkpoint.exists(folder):
        raise ConfigError(f"{folder} must be a new folder, but holds a training; give another --output, or continue it with --resume")
    if hasattr(run.data, "root"):
        decoded(run.data, "val")  # the likeliest mistake, told before anything else is
    courier = None if storage is None else _prepared(storage, folder, run, resume=resume)
    tracker = open_tracker(folder, wandb, wandb_project)
    people.print(f"training {run.name}: {run.optimizer.epochs} epochs, results in {folder}")
    key, reported = "", _reported(folder) if resume else 0

    def report(row: dict[str, float]) -> None:
        nonlocal key
        if not key:
            key = _run_id(folder)
            tracker.start(training_start(run_to_dict(run), folder.absolute(), key))
        tracker.log(key, row)
        write_text(folder / "reported", f"{row['epoch']:g}\n")
        numbers = f"val/miou {row['val/miou']:5.2f} %  val/loss {row['val/loss']:.3f}  train/loss {row['train/loss']:.3f}"
        people.print(f"epoch {row['epoch']:g}/{run.optimizer.epochs}  {numbers}  {row['time/epoch_s']:.1f} s")

    def say(line: str) -> None:
        people.print(line, soft_wrap=True)

    state = "failed"
    try:
        if hasattr(run.data, "root"):
            decoded(run.data, "train")
        if group:
            from imachsr.train.daemons import DaemonsApart
            from imachsr.train.ray_train import train_distributed

            apart = DaemonsApart(sys.stderr, folder / "ray" / "daemons.txt")
            with contextlib.redirect_stdout(apart), contextlib.redirect_stderr(apart):  # what Ray prints is no result
                train_distributed(
                    run,
                    workers=group,
                    output=folder,
                    report=report,
                    resume=resume,
                    reported=reported,
                    on_restart=lambda restart: say(str(restart)),
                    say=say,
                    courier=courier,
                )
        else:
            with _uploading(courier, folder, run, say) as mirror, Bar("steps") as bar:
                train_here(run, output=folder, report=report, resume=resume, reported=reported, mirror=mirror, on_step=bar.update)
        state = "finished"
    except (KeyboardInterrupt, TrainingStopped, RuntimeError) as ending:
        if isinstance(ending, TrainingStopped):
            say(str(ending))
        if checkpoint.exists(folder) or (folder.is_dir() and not isinstance(ending, RuntimeError)):
            cluster = [*(["--workers", workers] if group else []), *(["--address", address] if address else [])]
            cluster += ["--storage", storage] if storage else []
            say(f"to go on: {again('train', config, [*given, *cluster], folder, wandb=wandb, project=wandb_project)}")
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


def _corruptions(row: dict[str, float], severities: Sequence[int]) -> Table:
    """The table of spoilt images, by corruption and severity."""
    names = list(dict.fromkeys(key.split("/")[1] for key in row if key.count("/") == 3))
    columns = [Column(f"severity {each}", justify="right") for each in severities]
    table = Table("corruption", *columns, Column("mean", justify="right"), title="mIoU on spoilt images, percent", title_justify="left")
    for name in names:
        values = [row[f"corrupted/{name}/{each}/miou"] for each in severities]
        table.add_row(name, *(f"{value:.2f}" for value in (*values, sum(values) / len(values))))
    return table


def evaluate(
    folder: Annotated[Path, typer.Argument(help="Folder of a training, with checkpoints/.")],
    overrides: DataOverrides = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "val",
    which: Which = "latest",
    no_ema: Ema = False,
    corruptions: Annotated[str | None, typer.Option(help="Score on spoilt images: all, or names such as fog,night,jpeg.", show_default=False)] = None,
    severity: Annotated[list[int] | None, typer.Option(help="With --corruptions: 1 to 5; may be repeated.", show_default="1, 2, 3, 4 and 5")] = None,
    as_json: Json = False,
) -> None:
    """Score a trained model; overrides such as data.domain=shifted change the data.

    Data with other classes are scored on those that both have, by their names.
    """
    from imachsr.config.load import one_of
    from imachsr.config.schema import ConfigError
    from imachsr.data import Split
    from imachsr.data.corruptions import SEVERITIES
    from imachsr.train import checkpoint
    from imachsr.train.evaluate import Corrupted
    from imachsr.train.evaluate import evaluate as score

    if severity and corruptions is None:
        raise ConfigError("--severity must go with --corruptions, such as --corruptions all")
    corrupted = None
    if corruptions is not None:
        chosen = None if corruptions == "all" else tuple(name.strip() for name in corruptions.split(","))
        corrupted = Corrupted(names=chosen, severities=tuple(severity or SEVERITIES))
    of_split, of_which = one_of("--split", split, Split), one_of("`which`", which, checkpoint.Which)
    given: dict[str, Any] = {"split": of_split, "overrides": overrides or [], "which": of_which, "use_ema": not no_ema}
    with Bar(f"decoding {split}" if corrupted is None else "spoilt images") as bar:
        row = score(folder, **given, corrupted=corrupted, progress=bar.update)
    if as_json:
        return print_json(row)
    if corrupted is not None:
        plain.print(_corruptions(row, corrupted.severities))
    table = Table("metric", "value")
    for key, value in row.items():
        if corrupted is not None and key.count("/") > 1:  # in the table above
            continue
        table.add_row(key, f"{value:.4f}" if key.endswith(("loss", "nll")) else f"{value:.2f} %")
    plain.print(table)
    return None


def export_model(
    folder: Annotated[Path, typer.Argument(help="Folder of a training, with checkpoints/.")],
    out: Annotated[Path | None, typer.Option(help="File to write; must not exist.", show_default="model.pt, .pt2 or .onnx")] = None,
    format: Annotated[str, typer.Option(help="state-dict (the model's own keys), exported (a program of torch.export) or onnx.")] = "state-dict",
    which: Which = "latest",
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(help="Height and width that the file takes, pixels, each >= 32.", show_default="those of the training"),
    ] = None,
    dynamic_batch: Annotated[bool, typer.Option("--dynamic-batch", help="Let the file take any number of images, not one only.")] = False,
    no_ema: Ema = False,
    as_json: Json = False,
) -> None:
    """Write a trained model without anything of imachsr: a state dict, a program of torch.export, or an ONNX model.

    What a program or an ONNX model gives is compared with what the trained model gives before the file is there.
    """
    from imachsr.config.load import one_of
    from imachsr.train import checkpoint
    from imachsr.train.export_model import SUFFIXES, Format
    from imachsr.train.export_model import export_model as write

    of_format, of_which = one_of("--format", format, Format), one_of("`which`", which, checkpoint.Which)
    target = out or Path("model").with_suffix(SUFFIXES[of_format][0])
    found = write(folder, target, format=of_format, which=of_which, size=size, is_dynamic_batch=dynamic_batch, use_ema=not no_ema)
    if as_json:
        return print_json(dataclasses.asdict(found))
    height, width = found.input_size or ("H", "W")
    rows = {
        "file": f"{found.out} ({found.format}, {found.size_bytes / 1e6:.1f} MB)",
        "checkpoint": f"step {found.step}" + ("" if found.score is None else f", score {found.score:.2f}"),
        "weights": "mean over the steps (optimizer.ema)" if found.is_ema else "as the step left them",
        "input": f"float32 [{'B' if found.is_dynamic_batch else 1}, 3, {height}, {width}], RGB, (x / 255 - mean) / std",
        "mean, std": f"{found.mean}, {found.std}",
        "classes": str(found.num_classes),
    }
    if found.format != "state-dict":
        checked = "not checked" if found.difference is None else f"{found.difference:.1e} of the largest output"
        rows["difference from the trained model"] = checked
    table = Table("what", "value", show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    plain.print(table)
    if found.format == "state-dict":
        people.print(f"model.load_state_dict(torch.load({str(found.out)!r})) takes them; the model is that of {folder / 'run.yaml'}", soft_wrap=True)
    return None
