"""The commands that look at models, settings and losses without training: layers, settings, audit."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table

from imachsr.cli.kinds import foreign_keys
from imachsr.cli.options import Json, Overrides
from imachsr.console import Bar, plain, print_json

if TYPE_CHECKING:
    from imachsr.config.schema import Run


def _base(config: Path) -> "Run":
    """The run of a file, or the one that its trials or arms begin from."""
    from imachsr.config.load import load_run
    from imachsr.search.space import load_search
    from imachsr.study.load import load_study

    kind = foreign_keys(config, "train")[1]
    if kind == "search":
        return load_search(config).base()
    return load_study(config).laid() if kind == "study" else load_run(config)


def layers(
    overrides: Overrides = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file of a run, search or study; its model and standard are taken.", show_default=False)
    ] = None,
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
    max_taps: Annotated[int | None, typer.Option(help="Layers wanted, >= 1.", show_default="7 with auto, else 3")] = None,
    placement: Annotated[str | None, typer.Option(help="Where among the candidates: early, uniform or late.", show_default="uniform")] = None,
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
    from imachsr.config.load import make_run, parse_overrides, run_to_dict
    from imachsr.core.layers import trace
    from imachsr.core.selection import select
    from imachsr.data.samples import check_size

    given = {
        "model.architecture": architecture,
        "model.encoder": encoder,
        "method.standard": standard,
        "method.standard.max_taps": max_taps,
        "method.standard.placement": placement,
    }
    base = run_to_dict(_base(config)) if config else {}
    options = [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    run = make_run(base, parse_overrides([*(overrides or []), *options]))
    # The user's own data set is not asked: it may read the data.
    pixels: Any = size or getattr(run.data, "size", (96, 128))
    check_size(pixels)
    classes = classes or (11 if run.data.kind == "import" else run.data.num_classes)
    model = build_model(run, classes)
    traced = trace(model, torch.randn(2, 3, *pixels))
    with Bar("decoding train") as bar:
        taps = select(selection_standard(run), traced, calibrate(run, model, classes, progress=bar.update))
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


def settings(
    prefix: Annotated[
        str | None, typer.Argument(help="Beginning of keys, such as optimizer or method.loss; all without it.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """List the settings of a run, a search and a study: key, what it takes, default and meaning."""
    from imachsr.search.settings import settings as known
    from imachsr.study.schema import StudyPlan

    found = known(prefix or "", beside={"study": StudyPlan})
    if as_json:
        return print_json([dataclasses.asdict(each) for each in found])
    where = "where a run's begin with run."
    for of, title in (("run", "settings of a run"), ("search", f"settings of a search, {where}"), ("study", f"settings of a study, {where}")):
        rows = [each for each in found if each.of == of]
        table = Table("key", "values", "default", Column("meaning", overflow="fold"), title=title, title_justify="left")
        for each in rows:
            only = f"({', '.join(each.only_with)}) " if each.only_with else ""
            table.add_row(each.key, each.values, each.default, only + each.meaning)
        if rows:
            plain.print(table)
    return None


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
