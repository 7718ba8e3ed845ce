"""Images with the masks that belong to them and the masks that were predicted, from the files of a training, for W&B."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

SAMPLES = "samples.npz"
PREDICTED = {"best": "evaluation_best.npz", "final": "evaluation.npz"}
IGNORED = 255


class Pictures:
    """Of a search, or of one training.

    Files are those of :class:`imachsr.train.gallery.Gallery`. A stopped trial has no images of its own; any other's are the same.

    Args:
        folder: Result folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._samples: dict[str, Any] | None = None

    def note(self, trial: Path) -> None:
        """Keep the images of a training, where it has any and none are kept yet: those of a trial that is stopped go."""
        if self._samples is None:
            self._samples = _read(trial / SAMPLES)

    def of(self, trial: Path) -> dict[str, list[Any]]:
        """What a training predicts, as lists of wandb.Image under ``images/best`` and ``images/final``; {} where its files are not seen."""
        for other in (trial, *sorted(self._folder.glob("trials/*"))):
            self.note(other)
        if self._samples is None:
            return {}
        found = {f"images/{name}": _read(trial / file) for name, file in PREDICTED.items()}
        return {key: _images(self._samples, each) for key, each in found.items() if each is not None and _fits(self._samples, each)}


def _fits(samples: dict[str, Any], found: dict[str, Any]) -> bool:
    return bool(found["predicted"].shape == samples["labels"].shape)


def _images(samples: dict[str, Any], found: dict[str, Any]) -> list[Any]:
    import wandb

    names = {number: str(name) for number, name in enumerate(samples["class_names"])} | {IGNORED: "ignored"}
    images = []
    for image, label, predicted, name in zip(samples["images"], samples["labels"], found["predicted"], samples["names"], strict=True):
        masks = {"prediction": predicted, "ground_truth": label}
        images.append(
            wandb.Image(
                image.transpose(1, 2, 0),
                caption=f"{name}, epoch {int(found['epoch'])}, mIoU of all {float(found['score']):.2f} %",
                masks={key: {"mask_data": mask.astype(np.uint8), "class_labels": names} for key, mask in masks.items()},
            )
        )
    return images


def _read(path: Path) -> dict[str, Any] | None:
    try:
        with np.load(path, allow_pickle=False) as held:
            return {name: held[name] for name in held.files}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # not there, or not whole: there is none
        return None
