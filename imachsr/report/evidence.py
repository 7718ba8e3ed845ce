"""What trainings kept beside their numbers: images with what was predicted, and the counts of all pixels."""

import base64
import html
import io
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

IGNORED = 255
PALETTE = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0), (240, 228, 66), (70, 70, 70))
"""Okabe and Ito's colours, which colour-blind people can tell apart; from the ninth class on, lighter and darker ones of these."""
Arrays = dict[str, Any]


def load(folder: Path, number: int | None, name: str) -> Arrays | None:
    """Arrays of a file of a trial; None where it is missing, or cannot be read, as when a crash cut it off: then a warning names it.

    Args:
        folder: Result folder of the search.
        number: Of the trial.
        name: Of the file.
    """
    if number is None:
        return None
    path = folder / "trials" / f"{number:04d}" / name
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        warnings.warn(f"{path} cannot be read, and what it would show is left out: {type(error).__name__}", stacklevel=2)
        return None


def pictures(folder: Path, shown: dict[str, int]) -> str:
    """Images with their labels, each trial's prediction, and where the last two trials differ; "" without any.

    Args:
        folder: Result folder of the search.
        shown: Number of a trial by what it is called, the baseline first.
    """
    samples = next((found for number in shown.values() if (found := load(folder, number, "samples.npz")) is not None), None)
    if samples is None or not {"images", "labels", "class_names"} <= set(samples) or not len(samples["labels"]):
        return ""
    labels = samples["labels"]
    predicted: dict[str, Any] = {}
    for name, number in shown.items():
        found, own = load(folder, number, "evaluation.npz"), load(folder, number, "samples.npz")
        is_same = own is not None and "index" in own and "index" in samples and np.array_equal(own["index"], samples["index"])
        if found is not None and is_same and "predicted" in found and found["predicted"].shape == labels.shape:
            predicted[name] = found["predicted"]
    names = [str(each) for each in samples["class_names"]]
    colours = _colours(len(names))
    figures = []
    for place in range(len(labels)):
        figures.append(_figure(np.moveaxis(samples["images"][place], 0, -1), "image"))
        figures.append(_figure(colours[labels[place]], "truth"))
        figures += [
            _figure(np.where((labels[place] == IGNORED)[..., None], colours[IGNORED], colours[each[place]]), n) for n, each in predicted.items()
        ]
        if len(predicted) == 2:
            figures.append(_figure(_differing(labels[place], *(each[place] for each in predicted.values())), "where they differ"))
    key = "".join(
        f"<span><span class='swatch' style='background:rgb{tuple(int(c) for c in colours[place])}'></span>{html.escape(name)}</span>"
        for place, name in enumerate(names)
    )
    note = "Evenly spread over the images that are scored, at the last epoch; chosen by place, not by result."
    if len(predicted) == 2:
        note += " Where they differ: blue, only the best is right; orange, only the baseline is; grey, both are wrong, in unlike ways."
    columns = f"grid-template-columns:repeat({len(figures) // len(labels)},minmax(110px,1fr))"  # a line for each image
    return f"<p class='note'>{note}</p><p class='key'>{key}</p><div class='wide'><div class='shots' style='{columns}'>{''.join(figures)}</div></div>"


def _differing(labels: Any, base: Any, best: Any) -> Any:
    picture = np.full((*labels.shape, 3), 255, dtype=np.uint8)
    differ = (base != best) & (labels != IGNORED)
    picture[differ] = (130, 130, 130)
    picture[differ & (best == labels)] = PALETTE[0]
    picture[differ & (base == labels)] = PALETTE[1]
    return picture


def _colours(count: int) -> Any:
    """uint8 ``[256, 3]``: of each class, white where labels are ignored."""
    colours = np.full((256, 3), 255, dtype=np.uint8)
    for place in range(min(count, IGNORED)):
        turn, colour = place // len(PALETTE), np.array(PALETTE[place % len(PALETTE)], dtype=float)
        colours[place] = colour if not turn else colour * 0.6 if turn % 2 else colour + (255 - colour) * 0.55
    return colours


def _figure(picture: Any, caption: str) -> str:
    target = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture, dtype=np.uint8)).save(target, "PNG", optimize=True)
    text = html.escape(caption)
    source = f"data:image/png;base64,{base64.b64encode(target.getvalue()).decode()}"
    return f"<figure><img alt='{text}' src='{source}'><figcaption>{text}</figcaption></figure>"


def confusion(folder: Path, number: int) -> str:
    """Table of where the pixels of each class went, percent of the class; "" without counts."""
    found, samples = load(folder, number, "evaluation.npz"), load(folder, number, "samples.npz")
    if found is None or "confusion" not in found:
        return ""
    counts = found["confusion"].astype(float)
    names = [str(each) for each in samples["class_names"]] if samples is not None and "class_names" in samples else list(map(str, range(len(counts))))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1.0)
    head = "".join(f"<th scope='col'>{html.escape(name)}" for name in names)
    lines = []
    for name, row, total in zip(names, shares, counts.sum(1), strict=True):
        cells = "".join(f"<td style='background:rgba(0,114,178,{share * 0.6:.3f})'>{100 * share:.0f}" if total else "<td>" for share in row)
        lines.append(f"<tr><th scope='row'>{html.escape(name)}{cells}</tr>")
    return f"<div class='wide'><table class='matrix'><tr><th>truth \\ predicted{head}</tr>{''.join(lines)}</table></div>"


def reliability(folder: Path, shown: dict[str, int]) -> tuple[str, list[tuple[str, list[tuple[float, float, float]]]]]:
    """Expected calibration errors in words, and for each trial the bins that hold pixels: confidence, accuracy, share of the pixels.

    Args:
        folder: Result folder of the search.
        shown: Number of a trial by what it is called.
    """
    words, curves = [], []
    for name, number in shown.items():
        found = load(folder, number, "evaluation.npz")
        if found is None or "reliability" not in found:
            continue
        pixels, confidence, right = found["reliability"]
        is_full = pixels > 0
        if not is_full.any():
            continue
        mean, accuracy, share = confidence[is_full] / pixels[is_full], right[is_full] / pixels[is_full], pixels[is_full] / pixels.sum()
        words.append(f"{name} {100 * float((share * abs(mean - accuracy)).sum()):.2f}")
        curves.append((name, [(float(a), float(b), float(c)) for a, b, c in zip(mean, accuracy, share, strict=True)]))
    return ", ".join(words), curves
