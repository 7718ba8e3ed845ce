"""The command that trains one run."""

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from imachsr.cli.decoding import decoded
from imachsr.cli.exit_codes import INTERRUPTED
from imachsr.cli.kinds import check_kind
from imachsr.cli.options import (
    PROJECT,
    WANDB,
    Address,
    Json,
    Overrides,
    Project,
    Wandb,
    about_data,
    again,
    default_folder,
    join,
    local,
    result_folder,
    yaml_path,
)
from imachsr.cli.tracking import open_tracker
from imachsr.console import Bar, people, plain, print_json


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


def _is_known(folder: Path, run: Any, resume: bool) -> bool:
    """Whether a folder without a mark is a training's: a node's own that its workers have left, or one of before such marks."""
    from imachsr.config.continued import changed
    from imachsr.config.load import load_yaml, run_to_dict
    from imachsr.train import checkpoint
    from imachsr.train.stored import BEGUN

    settings = folder / "run.yaml"
    if checkpoint.exists(folder):
        return True
    is_same = resume and settings.exists() and not changed(load_yaml(settings), run_to_dict(run))
    return is_same or (resume and (folder / BEGUN).exists())


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
    context: typer.Context,
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
    from imachsr.config.folder import claimed, claimed_new
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
    folder = result_folder(output, run.name, resume=resume, foreign=("study.sqlite3", "search.yaml", "study.yaml"), is_stored=storage is not None)
    is_default = output is None and not resume
    folder = context.with_resource(claimed_new(default_folder(run.name)) if is_default else claimed(folder, is_known=_is_known(folder, run, resume)))
    if not resume and (checkpoint.exists(folder) or _reported(folder)):
        raise ConfigError(f"{folder} must be a new folder, but holds a training; give another --output, or continue it with --resume")
    if hasattr(run.data, "root") and run.subset.hold_out is None:
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
        scores = f"val/miou {row['val/miou']:5.2f} %  val/loss {row['val/loss']:.3f}  " if "val/miou" in row else ""
        numbers = f"{scores}train/loss {row['train/loss']:.3f}"
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
        if checkpoint.exists(folder) or ((folder / "run.yaml").exists() and not isinstance(ending, RuntimeError)):
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
