"""The trained backbone as a file that needs no imachsr: state dict, torch.export program or ONNX model."""

import importlib.util
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from imachsr.config.load import make_run, one_of
from imachsr.config.schema import ConfigError, Run
from imachsr.core.tracing import named_tensors
from imachsr.data.samples import check_size
from imachsr.data.transforms import MEAN, STD
from imachsr.files import write_atomic
from imachsr.train.checkpoint import Which, load_committed
from imachsr.train.evaluate import trained_model
from imachsr.train.state_file import first_line, write_state

Format = Literal["state-dict", "exported", "onnx"]
SUFFIXES: dict[str, tuple[str, ...]] = {"state-dict": (".pt", ".pth"), "exported": (".pt2",), "onnx": (".onnx",)}
TOLERANCE = 1e-4
"""Largest difference between the file's outputs and the model's, relative to the largest output."""
INSTALL = "pip install onnx onnxscript onnxruntime"


@dataclass(frozen=True, kw_only=True)
class ExportedModel:
    """What was written, and what it takes.

    Attributes:
        out: The file.
        format: state-dict, exported or onnx.
        size_bytes: Of the file.
        step: Steps that the checkpoint had done.
        score: Its score, or None.
        is_ema: Whether the weights are the exponential mean, not those of the last step.
        num_classes: K.
        input_size: (H, W) of the images; a state dict takes others too. None: a state dict of a training whose data cannot be read here.
        is_dynamic_batch: Whether the file takes any number of images, not one only; a state dict always does.
        mean: Images are float32 ``[B, 3, H, W]``, RGB, (x / 255 - mean) / std.
        std: Likewise.
        difference: Largest between the file's outputs and the model's on a random image, relative to the largest output; None: not checked.
    """

    out: str
    format: Format
    size_bytes: int
    step: int
    score: float | None
    is_ema: bool
    num_classes: int
    input_size: tuple[int, int] | None
    is_dynamic_batch: bool
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    difference: float | None


def export_model(
    folder: Path,
    out: Path,
    *,
    format: Format = "state-dict",
    which: Which = "latest",
    size: tuple[int, int] | None = None,
    is_dynamic_batch: bool = False,
    use_ema: bool = True,
) -> ExportedModel:
    """Write the bare backbone of a training in eval mode; its outputs are checked against the model's before the file is there.

    Args:
        folder: The training's ``--output``.
        out: File to write; must not exist.
        format: ``state-dict`` (the model's own keys, for ``load_state_dict``), ``exported`` (a program of torch.export) or ``onnx``.
        which: The latest checkpoint, or the best-scored one.
        size: (H, W) that the file takes, pixels, each >= 32; those of the training by default.
        is_dynamic_batch: Let the file take any number of images, not one only.
        use_ema: Take the exponential mean of the weights where the training kept one, not those of the last step.

    Raises:
        ConfigError: If there is no checkpoint, an argument does not fit, a package is missing, or the model cannot be exported.
        RuntimeError: If the file's outputs differ from the model's.
    """
    _check_target(out, format)
    if format == "state-dict" and (size is not None or is_dynamic_batch):
        warnings.warn("--size and --dynamic-batch change nothing in a state dict, which takes images of any size and number", stacklevel=2)
    manifest, state = load_committed(folder, which)
    run = make_run(json.loads(state["run"]))
    model = trained_model(state, run, use_ema=use_ema)
    pixels = _input_size(run, state, size, is_needed=format != "state-dict")
    difference = _write(out, model, pixels, format, is_dynamic_batch)
    return ExportedModel(
        out=str(out),
        format=format,
        size_bytes=out.stat().st_size,
        step=manifest.step,
        score=manifest.score,
        is_ema=use_ema and state["ema"] is not None,
        num_classes=state["num_classes"],
        input_size=pixels,
        is_dynamic_batch=is_dynamic_batch or format == "state-dict",
        difference=difference,
    )


def _check_target(out: Path, format: str) -> None:
    one_of("--format", format, Format)
    if out.suffix not in SUFFIXES[format]:
        other = next((f"; or is --format {name} meant?" for name, known in SUFFIXES.items() if out.suffix in known), "")
        raise ConfigError(f"--out must end in {' or '.join(SUFFIXES[format])} for --format {format}, but got {out}{other}")
    if out.exists():
        raise ConfigError(f"{out} must not exist yet, but does; give another --out")
    if format == "onnx":
        _need("onnx", "onnxscript")


def _need(*packages: str) -> None:
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"--format onnx must have the packages {' and '.join(packages)}, but {missing[0]} is not installed; {INSTALL}")


def _input_size(run: Run, state: dict[str, Any], given: tuple[int, int] | None, *, is_needed: bool) -> tuple[int, int] | None:
    """(H, W) of the images: as given, as the checkpoint or the data set's settings tell, or as the data are."""
    found = given or state.get("size") or getattr(run.data, "size", None)
    try:
        found = found or run.data.load("val").images.shape[-2:]
    except Exception as error:  # the user's own data set may raise anything; a model is often exported where its data are not
        if is_needed:
            raise ConfigError(f"--size must be given where the training's data cannot be read, but is not; reading them gave: {error}") from None
        return None
    pixels = (int(found[0]), int(found[1]))
    check_size(pixels)
    return pixels


def _write(out: Path, model: nn.Module, pixels: tuple[int, int] | None, format: str, is_dynamic_batch: bool) -> float | None:
    """Write the file, and give the difference that a check of its outputs found."""
    found: list[float | None] = []
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if format == "state-dict":
            write_state(out, model.state_dict())
            return None
        assert pixels is not None
        batches = [_images(count, pixels) for count in ((2, 3) if is_dynamic_batch else (1,))]
        program = _program(model, batches[0], is_dynamic_batch)
        write = _write_program if format == "exported" else _write_onnx
        write_atomic(out, lambda file: found.append(write(program, model, batches, file)))
    except OSError as error:
        raise ConfigError(f"--out must be a file that can be written, but {out}: {error.strerror}") from None
    return found[0]


def _images(count: int, pixels: tuple[int, int]) -> Tensor:
    """Random images as normalised ones are distributed."""
    return torch.randn(count, 3, *pixels, generator=torch.Generator().manual_seed(count))


def _program(model: nn.Module, images: Tensor, is_dynamic_batch: bool) -> ExportedProgram:
    size = " x ".join(map(str, images.shape[-2:]))
    try:
        with torch.no_grad():
            model(images)
    except Exception as error:  # the user's own model may raise anything
        raise ConfigError(f"the model must take images of {size}, but: {first_line(error)}; give another --size") from error
    batch = ({0: torch.export.Dim("batch", min=1)},) if is_dynamic_batch else None
    try:
        with torch.no_grad():
            return torch.export.export(model, (images,), dynamic_shapes=batch)
    except Exception as error:  # likewise
        hint = "--format state-dict works for every model" + (", and leaving --dynamic-batch out for more" if is_dynamic_batch else "")
        raise ConfigError(f"the model must be one that torch.export can export, but: {first_line(error)}; {hint}") from error


def _write_program(program: ExportedProgram, model: nn.Module, batches: list[Tensor], file: IO[bytes]) -> float:
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    return _check(loaded, model, batches)


def _write_onnx(program: ExportedProgram, model: nn.Module, batches: list[Tensor], file: IO[bytes]) -> float | None:
    import onnx

    with torch.no_grad():
        output = model(batches[0])
    names = [name or "logits" for name, _ in named_tensors(output)]
    if len(names) != len(_tensors(output)):  # structures inside of structures: torch names them
        names = []
    converted: Any = torch.onnx.export(program, input_names=["images"], output_names=names or None, dynamo=True, verbose=False)
    content = converted.model_proto.SerializeToString()
    onnx.checker.check_model(content)
    file.write(content)
    if importlib.util.find_spec("onnxruntime") is None:
        warnings.warn(f"the ONNX model was not checked against the model, since onnxruntime is not installed; {INSTALL}", stacklevel=2)
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return _check(lambda images: [torch.from_numpy(each) for each in session.run(None, {"images": images.numpy()})], model, batches)


def _check(outputs: Callable[[Tensor], Any], model: nn.Module, batches: list[Tensor]) -> float:
    """Largest difference from the model's own outputs, relative to the largest of them.

    Raises:
        RuntimeError: If it is above :data:`TOLERANCE`, or the shapes differ.
    """
    largest = 0.0
    with torch.no_grad():
        pairs = [(_tensors(outputs(images)), _tensors(model(images))) for images in batches]
    for ours, theirs in pairs:
        got, wanted = ([list(each.shape) for each in tensors] for tensors in (ours, theirs))
        if got != wanted:
            raise RuntimeError(f"the file's outputs must have the model's shapes {wanted}, but have {got}; nothing was written")
        for our, their in zip(ours, theirs, strict=True):
            scale = max(float(their.abs().max()), torch.finfo(torch.float32).tiny)
            difference = float((our - their).abs().max()) / scale
            if not difference <= TOLERANCE:
                rule = f"the file's outputs must differ from the model's by {TOLERANCE:g} of the largest at most"
                raise RuntimeError(f"{rule}, but do by {difference:.2g}; nothing was written")
            largest = max(largest, difference)
    return largest


def _tensors(output: Any) -> list[Tensor]:
    return [each for each in tree_leaves(output) if isinstance(each, Tensor)]
