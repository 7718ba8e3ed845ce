"""Images a second of the training loop, without side losses, against a plain PyTorch loop and against Lightning over the same files.

    pip install -e ".[bench]"
    python benchmarks/throughput.py --rows runs/throughput.jsonl --out table.md     # all; the same command goes on after a break
    python benchmarks/throughput.py --cell unet/resnet18 256x320                    # one cell
    python benchmarks/throughput.py --miou 12                                       # val mIoU after equal epochs, ours and today
    python benchmarks/throughput.py --quick                                         # one small cell, few steps: for a look

Four contestants train the same model with AdamW and cross-entropy on the same PNG files:

* `ours`: `imachsr.train.loop.train` as it is, alpha = beta = 0, with its own choice of precision and memory layout.
* `plain`: a loop written by hand, with our data in memory, augmentation, precision, memory layout and kind of AdamW (fused or not).
* `today`: segmentation_models_pytorch in Lightning; a DataLoader whose processes read a PNG an item and augment it with albumentations; float32.
  `--workers` processes, by default one less than there are cores, which is what Lightning suggests.
* `tuned`: the same with our precision and memory layout. Both have the AdamW that torch gives by default.

Lightning's progress bar, logger and checkpoints are off, and starting its processes is not timed. All four live in one process, each in a thread
of its own that a gate lets do some steps at a time, in rounds, in an order that turns; the processes that prepare a contestant's batches are
stopped while it waits. A ratio is the median over rounds of another's seconds over ours in the same round: above 1, ours is faster. Two equal
loops in one process differ by up to 5 %, by where their weights happen to lie: each sitting builds all of them anew, in another order. Where
segmentation_models_pytorch refuses 360 x 480, all four take the next size that it names (368 x 480, 384 x 480).
"""

import argparse
import json
import math
import multiprocessing
import os
import platform
import signal
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import numpy as np
import segmentation_models_pytorch as smp
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from imachsr.config.build import build_optimizer, output_loss
from imachsr.config.load import make_run
from imachsr.config.schema import Run
from imachsr.data.scenes import CLASSES, draw_scene
from imachsr.data.transforms import augment_batch
from imachsr.train.device import Machine, Placement, decide
from imachsr.train.loop import train
from imachsr.train.score import score

MODELS = ("unet/resnet18", "unet/mobilenet_v2", "deeplabv3plus/resnet18", "segformer/mit_b0")
SIZES = ("96x128", "256x320", "360x480")
DIVISOR = {"deeplabv3plus": 16, "segformer": 32}
OTHERS = ("plain", "today", "tuned")
BARS = {"plain": "never below 0.98", "today": "above 1 everywhere, geometric mean at least 1.7", "tuned": "never below 1.0"}
WARM_STEPS = 1


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One measurement."""

    model: str
    size: str
    rounds: int
    steps: int
    sittings: int = 1
    threads: int
    workers: int
    batch: int = 8

    @property
    def pixels(self) -> tuple[int, int]:
        divisor = DIVISOR.get(self.model.partition("/")[0], 1)
        height, width = (math.ceil(int(part) / divisor) * divisor for part in self.size.split("x"))
        return height, width

    @property
    def images(self) -> int:
        """As many as all steps of a sitting take, so that no contestant begins a second epoch."""
        return (1 + WARM_STEPS + self.rounds * self.steps) * self.batch


class _Over(Exception):  # noqa: N818 - no error
    pass


class Gate:
    """Lets a contestant, which runs in a thread of its own, do so many steps and no more."""

    def __init__(self, body: Callable[["Gate"], None]) -> None:
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._left, self._is_over, self._error, self._body = 0, False, None, body
        self._children: set[int] = set()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._go.acquire()
        try:
            if not self._is_over:
                self._body(self)
                raise RuntimeError("a contestant ran out of data")
        except _Over:
            pass
        except BaseException as error:
            self._error = error
        self._stopped.release()

    def step(self) -> None:
        """To be called by the contestant after every step."""
        self._left -= 1
        if self._left == 0:
            self._stopped.release()
            self._go.acquire()
        if self._is_over:
            raise _Over

    def let(self, steps: int) -> float:
        """Seconds of so many steps."""
        before = _children()
        self._signal(signal.SIGCONT)
        self._left = steps
        start = time.perf_counter()
        self._go.release()
        self._stopped.acquire()
        seconds = time.perf_counter() - start
        if self._error is not None:
            raise self._error
        self._children |= _children() - before
        self._signal(signal.SIGSTOP)
        return seconds

    def close(self) -> None:
        self._signal(signal.SIGCONT)
        self._is_over = True
        self._go.release()
        self._thread.join(60)

    def _signal(self, number: int) -> None:
        for pid in self._children & _children():
            os.kill(pid, number)


def _children() -> set[int]:
    return {child.pid for child in multiprocessing.active_children() if child.pid is not None}


# The contestants


def ours(run: Run, gate: Gate) -> None:
    train(run, on_step=lambda _step, _steps: gate.step())


def plain(run: Run, placement: Placement, gate: Gate) -> None:
    samples = run.data.load("train")
    size, total = run.optimizer.batch_size, 0.0
    model = make_model(run).train()
    if placement.is_channels_last:
        model = model.to(memory_format=torch.channels_last)
    fused = build_optimizer(run, nn.Linear(1, 1), 1)[0].defaults["fused"]
    optimizer, schedule = make_optimizer(model, run, len(samples) // size, fused=fused)
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))
    for first in range(0, len(order) - size + 1, size):
        index = order[first : first + size]
        images, labels = augment_batch(
            samples.images[index],
            samples.labels[index],
            spec=run.augment,
            seed=0,
            epoch=1,
            indices=index.tolist(),
            is_channels_last=placement.is_channels_last,
        )
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=placement.is_bfloat16):
            loss = F.cross_entropy(model(images), labels, ignore_index=255)
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.item()
        gate.step()


class Files(Dataset[tuple[Tensor, Tensor]]):
    """A pair of files an item, as tutorials have it; the same changes as :func:`imachsr.data.transforms.augment_batch` draws."""

    def __init__(self, pairs: list[tuple[Path, Path]], run: Run, size: tuple[int, int], ignored: int | None) -> None:
        import albumentations
        import cv2
        from albumentations.pytorch import ToTensorV2

        zoom, jitter = run.augment.scale, run.augment.jitter
        self.pairs, self.ignored = pairs, ignored
        self.transform = albumentations.Compose(
            [
                albumentations.Resize(*size),
                albumentations.HorizontalFlip(p=run.augment.flip),
                albumentations.Affine(scale=zoom, translate_percent=(-0.17, 0.17), border_mode=cv2.BORDER_CONSTANT, fill_mask=255, p=1.0),
                albumentations.RandomBrightnessContrast(jitter, jitter, p=1.0),
                albumentations.Normalize(),
                ToTensorV2(),
            ]
        )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = (np.asarray(Image.open(path)) for path in self.pairs[index])
        if self.ignored is not None:
            label = np.where(label == self.ignored, np.uint8(255), label)
        changed = self.transform(image=image, mask=label)
        return changed["image"], changed["mask"].long()


def today(run: Run, pairs: list[tuple[Path, Path]], cell: Cell, placement: Placement | None, gate: Gate) -> None:
    """With a placement: in its precision and layout."""
    fit_today(run, pairs, cell.pixels, cell.workers, placement, gate.step)


def fit_today(
    run: Run, pairs: list[tuple[Path, Path]], size: tuple[int, int], workers: int, placement: Placement | None, on_step: Callable[[], object]
) -> nn.Module:
    """The model that Lightning has trained."""
    import lightning

    layout = torch.channels_last if placement is not None and placement.is_channels_last else torch.contiguous_format

    class Net(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = make_model(run).to(memory_format=layout)

        def training_step(self, batch: tuple[Tensor, Tensor], _index: int) -> Tensor:
            images, labels = batch
            loss = F.cross_entropy(self.model(images.contiguous(memory_format=layout)), labels, ignore_index=255)
            self.log("train/loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            optimizer, schedule = make_optimizer(self, run, run.optimizer.epochs * (len(pairs) // run.optimizer.batch_size))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

        def on_train_batch_end(self, *_: Any) -> None:
            on_step()

    data = DataLoader(
        Files(pairs, run, size, None if run.data.kind == "folder" else 11),
        batch_size=run.optimizer.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=run.optimizer.epochs,
        precision="bf16-mixed" if placement is not None and placement.is_bfloat16 else "32-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    net = Net()
    trainer.fit(net, data)
    trained: nn.Module = net.model
    return trained


def make_model(run: Run) -> nn.Module:
    torch.manual_seed(run.seed)
    return smp.create_model(run.model.architecture, run.model.encoder, encoder_weights=None, classes=run.data.num_classes)


def make_optimizer(
    model: nn.Module, run: Run, steps: int, *, fused: bool | None = None
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.optimizer.lr, weight_decay=run.optimizer.weight_decay, fused=fused)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, run.optimizer.lr, total_steps=steps + 1)


# The data


def write_scenes(root: Path, size: tuple[int, int], count: int, distinct: int = 24, validation: int = 1) -> None:
    """PNG files in the layout of the folder data set; after the first ones, hard links to them, which cost as much to read."""
    for split, number in (("train", count), ("val", validation)):
        folders = [root / split / "images", root / split / "masks"]
        for folder in folders:
            folder.mkdir(parents=True)
        for index in range(number):
            names = [folder / f"scene_{index:05d}.png" for folder in folders]
            if index < distinct:
                for name, array in zip(names, draw_scene(size, np.random.default_rng([split == "val", index])), strict=True):
                    Image.fromarray(array).save(name)
            else:
                for name in names:
                    name.hardlink_to(name.with_name(f"scene_{index % distinct:05d}.png"))


@contextmanager
def prepared(cell: Cell, camvid: Path | None) -> Iterator[tuple[Run, list[tuple[Path, Path]]]]:
    """A run over the files, and the pairs of them; decoded arrays are gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        if camvid is None:
            write_scenes(Path(folder) / "data", cell.pixels, cell.images)
            data: dict[str, Any] = {"kind": "folder", "root": f"{folder}/data", "class_names": list(CLASSES)}
            images, masks = (Path(folder) / "data/train" / part for part in ("images", "masks"))
        else:
            data = {"kind": "camvid", "root": str(camvid)}
            images, masks = camvid / "train", camvid / "trainannot"
        architecture, encoder = cell.model.split("/")
        settings = {
            "data": {**data, "size": list(cell.pixels), "cache": f"{folder}/cache"},
            "model": {"architecture": architecture, "encoder": encoder},
            "method": {"alpha": 0, "beta": 0},
            "optimizer": {"epochs": 1, "batch_size": cell.batch, "warmup_epochs": 0},
            "compute": {"device": "cpu", "threads": cell.threads},
        }
        pairs = [(path, masks / path.name) for path in sorted(images.iterdir())]
        if len(pairs) < cell.images:
            raise SystemExit(f"{cell.images} images must be there for {cell.rounds} rounds of {cell.steps} steps, but {images} holds {len(pairs)}")
        yield make_run(settings), pairs


# Measurement


def quality(model: str, size: str, epochs: int, seeds: int, workers: int, threads: int) -> str:
    """Table of val mIoU after equal epochs on drawn scenes: our loop as it is, and Lightning in float32; one row a seed."""
    torch.set_num_threads(threads)
    lines = ["| seed | ours, val mIoU | today, val mIoU | ours, s | today, s |", "|---|---|---|---|---|"]
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            pixels = Cell(model=model, size=size, rounds=1, steps=1, threads=threads, workers=workers).pixels
            write_scenes(Path(folder) / "data", pixels, 160, distinct=160, validation=60)
            architecture, encoder = model.split("/")
            run = make_run(
                {
                    "seed": seed,
                    "data": {
                        "kind": "folder",
                        "root": f"{folder}/data",
                        "class_names": list(CLASSES),
                        "size": list(pixels),
                        "cache": f"{folder}/cache",
                    },
                    "model": {"architecture": architecture, "encoder": encoder},
                    "method": {"alpha": 0, "beta": 0},
                    "optimizer": {"epochs": epochs, "batch_size": 8},
                    "compute": {"device": "cpu", "threads": threads},
                }
            )
            images, masks = (Path(folder) / "data/train" / part for part in ("images", "masks"))
            start = time.perf_counter()
            mine = train(run).metrics["val/miou"]
            middle = time.perf_counter()
            trained = fit_today(run, [(path, masks / path.name) for path in sorted(images.iterdir())], pixels, workers, None, lambda: None)
            end = time.perf_counter()
            plain32 = Placement(device="cpu", is_bfloat16=False, is_channels_last=False)
            theirs = score(trained, run.data.load("val"), run.data.class_names, loss=output_loss(run), placement=plain32, prefix="val")["val/miou"]
            lines.append(f"| {seed} | {mine:.2f} | {theirs:.2f} | {middle - start:.0f} | {end - middle:.0f} |")
            print(lines[-1], flush=True)
    return "\n".join(lines)


def measure(cell: Cell, camvid: Path | None) -> dict[str, Any]:
    torch.set_num_threads(cell.threads)
    with prepared(cell, camvid) as (run, pairs):
        placement = decide(run.compute, Machine.here())
        bodies: dict[str, Callable[[Gate], None]] = {
            "ours": partial(ours, run),
            "plain": partial(plain, run, placement),
            "today": partial(today, run, pairs, cell, None),
            "tuned": partial(today, run, pairs, cell, placement),
        }
        seconds: dict[str, list[float]] = {name: [] for name in bodies}
        for sitting in range(cell.sittings):
            for name, values in sit({name: bodies[name] for name in turned(list(bodies), sitting)}, cell).items():
                seconds[name] += values
    kind = f"{'bfloat16' if placement.is_bfloat16 else 'float32'}, {'NHWC' if placement.is_channels_last else 'NCHW'}"
    return {"cell": asdict(cell), "data": str(camvid or "scenes"), "ours": kind, "machine": machine(), "seconds": seconds}


def sit(bodies: dict[str, Callable[[Gate], None]], cell: Cell) -> dict[str, list[float]]:
    """Seconds of each contestant in each round."""
    gates = {name: Gate(body) for name, body in bodies.items()}
    seconds: dict[str, list[float]] = {name: [] for name in gates}
    try:
        for gate in gates.values():
            gate.let(1)  # with all that comes before the first step
            gate.let(WARM_STEPS)
        for index in range(cell.rounds):
            for name in turned(list(gates), index):
                seconds[name].append(gates[name].let(cell.steps))
    finally:
        for gate in gates.values():
            gate.close()
    return seconds


def turned(names: list[str], by: int) -> list[str]:
    by %= len(names)
    return names[by:] + names[:by]


def machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{name}, {os.cpu_count()} cores, torch {torch.__version__}"


def ratios(row: dict[str, Any], other: str) -> list[float]:
    return [theirs / mine for theirs, mine in zip(row["seconds"][other], row["seconds"]["ours"], strict=True)]


def table(rows: list[dict[str, Any]]) -> str:
    head = ["model", "size", "ours, images/s", *(f"over {other}" for other in OTHERS)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        cell = Cell(**row["cell"])
        speed = cell.steps * cell.batch / statistics.median(row["seconds"]["ours"])
        cells = [cell.model, "x".join(map(str, cell.pixels)), f"{speed:.1f}"]
        for other in OTHERS:
            low, middle, high = statistics.quantiles(ratios(row, other), n=4, method="inclusive")
            cells.append(f"{middle:.3f} ({low:.3f}-{high:.3f})")
        lines.append(f"| {' | '.join(cells)} |")
    notes = []
    for other in OTHERS:
        middles = [statistics.median(ratios(row, other)) for row in rows]
        notes.append(f"* over {other}: geometric mean {statistics.geometric_mean(middles):.3f}, least {min(middles):.3f} (bar: {BARS[other]})")
    first = Cell(**rows[0]["cell"])
    where = f"{rows[0]['machine']}; {first.threads} threads, batch {first.batch}, {first.workers} loading processes for Lightning"
    return "\n".join([*lines, "", *notes, "", f"{where}; ours: {rows[0]['ours']}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sittings", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4, help="in a sitting")
    parser.add_argument("--steps", type=int, default=2, help="of each contestant in a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=max((os.cpu_count() or 2) - 1, 1), help="processes of Lightning's DataLoader")
    parser.add_argument("--cell", nargs=2, metavar=("MODEL", "SIZE"), help="such as unet/resnet18 256x320")
    parser.add_argument("--data", type=Path, help="CamVid's folder, with train/ and trainannot/, instead of drawn scenes")
    parser.add_argument("--rows", type=Path, help="JSON lines that rows are added to; cells that are there are not measured again")
    parser.add_argument("--out", type=Path, help="file for the table")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--miou", type=int, metavar="EPOCHS", help="instead of speeds, val mIoU of ours and of today after so many epochs, three seeds"
    )
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.miou:
        model, size = arguments.cell or (MODELS[0], SIZES[0])
        print(quality(model, size, arguments.miou, 3, arguments.workers, arguments.threads))
        return
    plan = [(model, size) for size in SIZES for model in MODELS]
    plan = [tuple(arguments.cell)] if arguments.cell else plan[:1] if arguments.quick else plan
    sittings, rounds, steps = (1, 3, 2) if arguments.quick else (arguments.sittings, arguments.rounds, arguments.steps)
    known = [json.loads(line) for line in arguments.rows.read_text().splitlines()] if arguments.rows and arguments.rows.exists() else []
    rows = []
    for model, size in plan:
        counts = {"rounds": rounds, "steps": steps, "sittings": sittings}
        cell = Cell(model=model, size=size, **counts, threads=arguments.threads, workers=arguments.workers)
        same = {"cell": asdict(cell), "data": str(arguments.data or "scenes"), "machine": machine()}
        row = next((row for row in known if all(row[key] == value for key, value in same.items())), None)
        if row is None:
            row = measure(cell, arguments.data)
            if arguments.rows:
                arguments.rows.parent.mkdir(parents=True, exist_ok=True)
                with arguments.rows.open("a") as file:
                    file.write(json.dumps(row) + "\n")
        rows.append(row)
        print(table([row]).splitlines()[2], flush=True)
    text = table(rows)
    print(f"\n{text}")
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
