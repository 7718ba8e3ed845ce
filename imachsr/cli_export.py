"""The command that takes a trained model out of imachsr."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from imachsr.console import people, plain, print_json

Which = Annotated[str, typer.Option("--which", help="latest, or best: the checkpoint with the highest score.")]
Ema = Annotated[bool, typer.Option("--no-ema", help="Take the weights of the last step, where optimizer.ema kept a mean of them.")]


def export_model(
    folder: Annotated[Path, typer.Argument(help="Folder of a training, with checkpoints/.")],
    out: Annotated[Path | None, typer.Option(help="File to write; must not exist.", show_default="model.pt, .pt2 or .onnx")] = None,
    format: Annotated[  # noqa: A002 - the option's name
        str, typer.Option(help="state-dict (the model's own keys), exported (a program of torch.export) or onnx.")
    ] = "state-dict",
    which: Which = "latest",
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(help="Height and width that the file takes, pixels, each >= 32.", show_default="those of the training"),
    ] = None,
    dynamic_batch: Annotated[bool, typer.Option("--dynamic-batch", help="Let the file take any number of images, not one only.")] = False,
    no_ema: Ema = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON document on stdout, for machines.")] = False,
) -> None:
    """Write a trained model without anything of imachsr: a state dict, a program of torch.export, or an ONNX model.

    What a program or an ONNX model gives is compared with what the trained model gives before the file is there.
    """
    from imachsr.train.export_model import SUFFIXES
    from imachsr.train.export_model import export_model as write

    target = out or Path("model").with_suffix(SUFFIXES.get(format, (".pt",))[0])
    found = write(folder, target, format=format, which=which, size=size, is_dynamic_batch=dynamic_batch, use_ema=not no_ema)  # type: ignore[arg-type]
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
