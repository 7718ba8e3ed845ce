"""The commands for a trained model: evaluate, export-model."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table

from imachsr.cli.options import Json
from imachsr.console import Bar, people, plain, print_json

if TYPE_CHECKING:
    from imachsr.train.metrics import Reliability

DataOverrides = Annotated[
    list[str] | None, typer.Argument(help="Settings over those of the training as key=value, such as data.domain=shifted.", show_default=False)
]
Which = Annotated[str, typer.Option("--which", help="latest, or best: the checkpoint with the highest score.")]
Ema = Annotated[bool, typer.Option("--no-ema", help="Take the weights of the last step, where optimizer.ema kept a mean of them.")]


def _corruptions(row: dict[str, float], severities: Sequence[int]) -> Table:
    """The table of spoilt images, by corruption and severity."""
    names = list(dict.fromkeys(key.split("/")[1] for key in row if key.count("/") == 3))
    columns = [Column(f"severity {each}", justify="right") for each in severities]
    table = Table("corruption", *columns, Column("mean", justify="right"), title="mIoU on spoilt images, percent", title_justify="left")
    for name in names:
        values = [row[f"corrupted/{name}/{each}/miou"] for each in severities]
        table.add_row(name, *(f"{value:.2f}" for value in (*values, sum(values) / len(values))))
    return table


def _reliability(counts: "Reliability") -> Table:
    """The table behind a reliability diagram."""
    columns = [Column(name, justify="right") for name in ("mean confidence", "right", "pixels")]
    table = Table(*columns, title="how sure, and how often right, percent", title_justify="left")
    for row in counts.bins():
        table.add_row(f"{row['confidence']:.2f}", f"{row['right']:.2f}", f"{row['pixels']}")
    return table


def evaluate(
    folder: Annotated[Path, typer.Argument(help="Folder of a training, with checkpoints/.")],
    overrides: DataOverrides = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "val",
    which: Which = "latest",
    no_ema: Ema = False,
    corruptions: Annotated[str | None, typer.Option(help="Score on spoilt images: all, or names such as fog,night,jpeg.", show_default=False)] = None,
    severity: Annotated[list[int] | None, typer.Option(help="With --corruptions: 1 to 5; may be repeated.", show_default="1, 2, 3, 4 and 5")] = None,
    reliability: Annotated[bool, typer.Option("--reliability", help="Also tell, by confidence, how often the model is right.")] = False,
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
    from imachsr.train.evaluate import evaluate as score
    from imachsr.train.metrics import Reliability
    from imachsr.train.score import Corrupted

    if reliability and corruptions is not None:
        raise ConfigError("--reliability must go without --corruptions, whose scores are means over many passes")
    if severity and corruptions is None:
        raise ConfigError("--severity must go with --corruptions, such as --corruptions all")
    corrupted = None
    if corruptions is not None:
        chosen = None if corruptions == "all" else tuple(name.strip() for name in corruptions.split(","))
        corrupted = Corrupted(names=chosen, severities=tuple(severity or SEVERITIES))
    of_split, of_which = one_of("--split", split, Split), one_of("`which`", which, checkpoint.Which)
    counts = Reliability()
    given: dict[str, Any] = {"reliability": counts, "split": of_split, "overrides": overrides or [], "which": of_which, "use_ema": not no_ema}
    with Bar(f"decoding {split}" if corrupted is None else "spoilt images") as bar:
        row = score(folder, **given, corrupted=corrupted, progress=bar.update)
    if as_json:
        return print_json(row | ({f"{split}/reliability": counts.bins()} if reliability else {}))
    if reliability:
        plain.print(_reliability(counts))
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
