"""Intermediate supervision inside the Hugging Face Trainer: three lines of a Trainer.

pip install "transformers[torch]"
python examples/with_transformers.py
"""

import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import SegformerConfig, SegformerForSemanticSegmentation, Trainer, TrainingArguments, set_seed

import imachsr
from imachsr.data.scenes import Scenes


class SceneDataset(Dataset):
    """Street scenes in the form that the Trainer collates."""

    def __init__(self, scenes: Scenes) -> None:
        self.samples = scenes.load("train")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.samples.images[index].float() / 255, "labels": self.samples.labels[index].long()}


class SupervisedTrainer(Trainer):
    """A Trainer whose model is the wrapped one; the marked lines, and the one in main, are all that is new."""

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any) -> Any:
        losses = model(inputs["pixel_values"], inputs["labels"])  # 2
        self.log({"output": losses.output.item(), **{f"side/{layer}": value.item() for layer, value in losses.side.items()}})
        return (losses.total, {}) if return_outputs else losses.total  # 3


def main(steps: int = 4) -> tuple[SegformerForSemanticSegmentation, list[dict[str, float]]]:
    set_seed(0)
    scenes = Scenes(size=(64, 64), num_train=8, num_val=4)
    data = SceneDataset(scenes)
    # A small one without pretrained weights; from_pretrained gives a larger one.
    config = SegformerConfig(num_labels=scenes.num_classes, hidden_sizes=[16, 32, 64, 96], depths=[1, 1, 1, 1], decoder_hidden_size=64)
    model = SegformerForSemanticSegmentation(config)
    example = torch.stack([data[0]["pixel_values"], data[1]["pixel_values"]])
    net = imachsr.IMacHSR(model, example=example, num_classes=scenes.num_classes)  # 1
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            use_cpu=True,
            save_steps=steps,
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        trainer = SupervisedTrainer(model=net, args=arguments, train_dataset=data)
        trainer.train()
    return model, trainer.state.log_history  # the model is trained, and saved by its own save_pretrained


if __name__ == "__main__":
    for row in main()[1]:
        print({name: round(value, 3) for name, value in row.items() if isinstance(value, float)})
