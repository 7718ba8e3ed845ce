"""What a training step costs with intermediate supervision, against the same model without, with an auxiliary head, and with deep supervision.

    python benchmarks/step_cost.py                  # the tables, about 40 minutes on two cores
    python benchmarks/step_cost.py --growth --out FOLDER   # how it grows with taps, classes and resolution: step_cost_growth.md and .svg
    python benchmarks/step_cost.py --quick          # fewer steps, one model: for a look

All cases run in one process, interleaved, on the same batches, forward, backward and AdamW; a ratio is the median over steps of its time over
the plain step's of the same round. Two plain models run, and their ratio is the band of the measurement. Peak memory is the largest running
sum of the allocator's events during one step (torch.profiler), and the largest resident size of a fresh process. The order of the cases
turns from round to round, so that none is always behind the same one.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import segmentation_models_pytorch as smp
import torch
from growth_plot import Point, figure
from torch import Tensor, nn
from torch.nn import functional as F

import imachsr
from imachsr.core.entropy import Regularizer
from imachsr.core.losses import SideLoss

MODELS = (("unet", "resnet18"), ("deeplabv3plus", "resnet18"), ("segformer", "mit_b0"))
STAGE_3 = {"resnet18": "encoder.layer3", "mit_b0": "encoder.norm3"}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One problem size."""

    model: tuple[str, str]
    size: int = 256
    batch: int = 2
    classes: int = 19


def plain(setting: Setting) -> nn.Module:
    torch.manual_seed(0)
    return smp.create_model(*setting.model, encoder_weights=None, classes=setting.classes)


class OutputOnly(nn.Module):
    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.model = plain(setting)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.model(images), labels, ignore_index=255)


class AuxiliaryHead(OutputOnly):
    """As in mmsegmentation: 3x3 convolution to 256 channels, BatchNorm, ReLU, dropout, 1x1 convolution on stage 3.

    Upsampled cross-entropy with weight 0.4.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.kept: list[Tensor] = []
        stage = self.model.get_submodule(STAGE_3[setting.model[1]])
        stage.register_forward_hook(lambda _module, _args, output: self.kept.append(output))
        with torch.no_grad():
            self.model.eval()(torch.zeros(1, 3, setting.size, setting.size))
        channels = self.kept.pop().shape[1]
        body = [nn.Conv2d(channels, 256, 3, padding=1, bias=False), nn.BatchNorm2d(256), nn.ReLU(), nn.Dropout2d(0.1)]
        self.head = nn.Sequential(*body, nn.Conv2d(256, setting.classes, 1))

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        self.kept.clear()
        total = super().forward(images, labels)
        scores = F.interpolate(self.head(self.kept.pop()), size=labels.shape[1:], mode="bilinear", align_corners=False)
        return total + 0.4 * F.cross_entropy(scores, labels, ignore_index=255)


class DeepSupervision(OutputOnly):
    """As in nnU-Net: a 1x1 head on every decoder stage, labels downsampled by nearest, weights 1/2^i."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.kept: list[Tensor] = []
        blocks = self.model.decoder.blocks
        for block in list(blocks)[:-1]:
            block.register_forward_hook(lambda _module, _args, output: self.kept.append(output))
        with torch.no_grad():
            self.model.eval()(torch.zeros(1, 3, setting.size, setting.size))
        self.heads = nn.ModuleList(nn.Conv2d(kept.shape[1], setting.classes, 1) for kept in self.kept)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        self.kept.clear()
        total = super().forward(images, labels)
        for step, (head, kept) in enumerate(zip(reversed(self.heads), reversed(self.kept), strict=True), 1):
            small = F.interpolate(labels[:, None].float(), size=kept.shape[2:], mode="nearest")[:, 0].long()
            total = total + 0.5**step * F.cross_entropy(head(kept), small, ignore_index=255)
        return total


class Supervised(nn.Module):
    def __init__(self, setting: Setting, **options: Any) -> None:
        super().__init__()
        example = torch.randn(2, 3, setting.size, setting.size)
        self.net = imachsr.IMacHSR(plain(setting), example=example, num_classes=setting.classes, heterogeneity="off", **options)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.net(images, labels).total


def cases_of(setting: Setting) -> dict[str, Callable[[], nn.Module]]:
    cases: dict[str, Callable[[], nn.Module]] = {
        "output only": lambda: OutputOnly(setting),
        "output only, again": lambda: OutputOnly(setting),
        "auxiliary head": lambda: AuxiliaryHead(setting),
    }
    if setting.model[0] == "unet":
        cases["deep supervision"] = lambda: DeepSupervision(setting)
    cases["iMacHSR, defaults"] = lambda: Supervised(setting)
    for loss in get_args(SideLoss):
        cases[f"loss {loss.kind}"] = lambda loss=loss: Supervised(setting, loss=loss(), entropy=None)
    for entropy in get_args(Regularizer):
        # The entropy of an adapter's scores needs a loss that makes some; the others stand alone.
        options = {"loss": "dice"} if entropy.kind == "adapter" else {"alpha": 0.0}
        cases[f"entropy {entropy.kind}"] = lambda entropy=entropy, options=options: Supervised(setting, entropy=entropy(), **options)
    return cases


def batch_of(setting: Setting, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(setting.batch, 3, setting.size, setting.size, generator=generator)
    coarse = torch.rand(setting.batch, setting.classes, 8, 8, generator=generator)
    labels = F.interpolate(coarse, size=images.shape[2:], mode="bilinear", align_corners=False).argmax(1)
    labels[:, -setting.size // 16 :] = 255
    return images, labels


def step(module: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    module(images, labels).backward()
    optimizer.step()


def peak_mib(module: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> float:
    """Largest running sum of what one step allocates and frees, MiB."""
    # What was allocated before must not be freed meanwhile: its size is not known, or taken for that of an older block at its address.
    optimizer.zero_grad(set_to_none=True)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        step(module, optimizer, images, labels)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak / 2**20


def measure(setting: Setting, cases: dict[str, Callable[[], nn.Module]], rounds: int) -> list[dict[str, Any]]:
    built = {}
    for name, make in cases.items():
        module = make().train()
        built[name] = module, torch.optim.AdamW(module.parameters(), lr=1e-4)
    times: dict[str, list[float]] = {name: [] for name in built}
    for index in range(rounds + 2):
        images, labels = batch_of(setting, index)
        names = list(built)
        first = index % len(names)
        for name in names[first:] + names[:first]:
            module, optimizer = built[name]
            start = time.perf_counter()
            step(module, optimizer, images, labels)
            times[name].append(time.perf_counter() - start)
    rows = []
    base = times["output only"][2:]
    images, labels = batch_of(setting, 0)
    memory = {name: peak_mib(*pair, images, labels) for name, pair in built.items()}
    for name in built:
        ratios = [mine / plain for mine, plain in zip(times[name][2:], base, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows.append(
            {
                "case": name,
                "ms": 1e3 * statistics.median(times[name][2:]),
                "ratio": middle,
                "low": low,
                "high": high,
                "mib": memory[name],
                "memory_ratio": memory[name] / memory["output only"],
            }
        )
    return rows


def resident_mib(setting: Setting, case: str) -> float:
    """Largest resident size of a fresh process that does three steps of one case, MiB."""
    arguments = [sys.executable, __file__, "--resident", case, "--model", "/".join(setting.model), "--threads", str(torch.get_num_threads())]
    arguments += ["--batch", str(setting.batch)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["mib"])


def table(rows: list[dict[str, Any]], resident: dict[str, float]) -> str:
    lines = ["| case | step, ms | time ratio | quartiles | peak, MiB | memory ratio | resident, MiB |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        whole = f"{resident[row['case']]:.0f}" if row["case"] in resident else ""
        quartiles = f"{row['low']:.3f}-{row['high']:.3f}"
        cells = [f"{row['ms']:.1f}", f"{row['ratio']:.3f}", quartiles, f"{row['mib']:.0f}", f"{row['memory_ratio']:.3f}", whole]
        lines.append(f"| {row['case']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


GROWTH = {
    "taps": [(taps, 19, 256) for taps in (1, 2, 3, 4, 6)],
    "classes": [(3, classes, 256) for classes in (2, 11, 19, 64, 150)],
    "side of the images, pixels": [(3, 19, size) for size in (128, 192, 256, 384)],
}
"""(taps, classes, side) of each panel; what is in several is measured once."""


def growth(rounds: int, batch: int) -> tuple[str, str]:
    """Table in Markdown and plot as SVG."""
    lines = ["| taps | classes | side, pixels | time ratio | quartiles | memory ratio |", "|---|---|---|---|---|---|"]
    rows: dict[tuple[int, int, int], dict[str, Any]] = {}
    for taps, classes, size in dict.fromkeys(plan for panel in GROWTH.values() for plan in panel):
        setting = Setting(model=MODELS[0], size=size, classes=classes, batch=batch)
        standard = imachsr.ResolutionStandard(max_taps=taps, direction="both")
        cases = {"output only": lambda s=setting: OutputOnly(s), "iMacHSR": lambda s=setting, k=standard: Supervised(s, standard=k)}
        row = rows[taps, classes, size] = measure(setting, cases, rounds)[1]
        lines.append(f"| {taps} | {classes} | {size} | {row['ratio']:.3f} | {row['low']:.3f}-{row['high']:.3f} | {row['memory_ratio']:.3f} |")
        print(lines[-1], flush=True)
    panels = {}
    for axis, (name, plans) in enumerate(GROWTH.items()):
        panels[name] = [Point(x=plan[axis], low=rows[plan]["low"], middle=rows[plan]["ratio"], high=rows[plan]["high"]) for plan in plans]
    head = f"{'/'.join(MODELS[0])}, 3 taps, K=19, 256x256 where not varied, batch {batch}, {torch.get_num_threads()} threads, {rounds} steps"
    return f"{head}\n\n" + "\n".join(lines) + "\n", figure(panels, head)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=Setting.batch)
    parser.add_argument("--model", help="one of " + ", ".join("/".join(model) for model in MODELS))
    parser.add_argument("--cases", help="only cases that contain one of these words, separated by commas; the plain ones always run")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--resident", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="with --growth: folder for the table and the plot")
    arguments = parser.parse_args()
    if arguments.out and not arguments.growth:
        parser.error("--out belongs to --growth; the tables are printed")
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    rounds = 8 if arguments.quick else arguments.rounds
    models = [tuple(arguments.model.split("/"))] if arguments.model else MODELS[:1] if arguments.quick else MODELS
    if arguments.resident:
        setting = Setting(model=models[0], batch=arguments.batch)
        module = cases_of(setting)[arguments.resident]().train()
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)
        for index in range(3):
            step(module, optimizer, *batch_of(setting, index))
        # Not ru_maxrss, in which Linux keeps the size of the parent that started the process.
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        print(json.dumps({"mib": int(status["VmHWM"].split()[0]) / 1024}))
        return
    if arguments.growth:
        table_text, plot = growth(rounds, arguments.batch)
        if arguments.out:
            arguments.out.mkdir(parents=True, exist_ok=True)
            (arguments.out / "step_cost_growth.md").write_text(f"{table_text}\n![growth of the cost](step_cost_growth.svg)\n")
            (arguments.out / "step_cost_growth.svg").write_text(plot)
        return
    for model in models:
        setting = Setting(model=model, batch=arguments.batch)
        words = (arguments.cases or "").split(",")
        cases = {name: make for name, make in cases_of(setting).items() if name.startswith("output only") or any(word in name for word in words)}
        rows = measure(setting, cases, rounds)
        main_cases = [name for name in cases if not name.startswith(("loss", "entropy")) and "again" not in name]
        resident = {} if arguments.quick else {name: resident_mib(setting, name) for name in main_cases}
        sizes = f"{setting.size}x{setting.size}, batch {setting.batch}, K={setting.classes}"
        head = f"{'/'.join(model)}, {sizes}, float32, {arguments.threads} threads, {rounds} steps"
        print(f"\n{head}\n\n{table(rows, resident)}", flush=True)


if __name__ == "__main__":
    main()
