"""Intermediate supervision inside PyTorch Lightning: three lines of a LightningModule.

pip install lightning
python examples/with_lightning.py
"""

from typing import Any

import lightning
import segmentation_models_pytorch as smp
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import imachsr
from imachsr.data.scenes import Scenes


class Segmenter(lightning.LightningModule):
    """A module as people write it; the marked lines are all that is new."""

    def __init__(self, num_classes: int, example: Tensor) -> None:
        super().__init__()
        model = smp.Unet("resnet18", encoder_weights=None, classes=num_classes)
        self.net = imachsr.IMacHSR(model, example=example, num_classes=num_classes)  # 1

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        losses = self.net(*batch)  # 2
        self.log_dict({"train/output": losses.output, **{f"side/{layer}": value for layer, value in losses.side.items()}})
        return losses.total  # 3

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main(epochs: int = 2) -> tuple[Segmenter, lightning.Trainer]:
    lightning.seed_everything(0)
    scenes = Scenes(size=(64, 64), num_train=8, num_val=4)
    samples = scenes.load("train")
    images, labels = samples.images.float() / 255, samples.labels.long()
    loader = DataLoader(TensorDataset(images, labels), batch_size=4, shuffle=True)
    module = Segmenter(scenes.num_classes, images[:2])
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, log_every_n_steps=1
    )
    trainer.fit(module, loader)
    return module, trainer


if __name__ == "__main__":
    print({name: round(float(value), 3) for name, value in main()[1].callback_metrics.items()})
