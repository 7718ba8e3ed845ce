"""What the full-size recipes take: FLOPs and memory measured, time and money computed from them for 1, 8 and 64 GPUs.

    python benchmarks/full_size.py                         # all recipes, A100s; two minutes on one core
    python benchmarks/full_size.py --price 3.9 --use 0.25  # at another price a GPU-hour, used to another part
    python benchmarks/full_size.py --tflops 989 --gib 80 --gpu H100 launch/cityscapes.yaml

FLOPs (two a multiplication with its addition; torch's FlopCounterMode) and the tensors that autograd saves for the backward are those of the
recipe's own net. The backbone runs at full size on tensors without contents. What the method adds needs contents: it is measured on two smaller
sizes and follows the line through both, since it grows with the pixels. No time is measured: a GPU is stated.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from imachsr.config.build import build_net
from imachsr.config.load import load_run, load_yaml
from imachsr.config.schema import Run
from imachsr.core.output import logits_of
from imachsr.core.wrapper import IMacHSR
from imachsr.search.scheduler import rung_levels
from imachsr.search.space import Search, load_search
from imachsr.study.load import load_study
from imachsr.study.plan import wanted
from imachsr.study.rows import Known
from imachsr.study.schema import StudyPlan

ROOT = Path(__file__).parents[1]
RECIPES = ("launch/cityscapes.yaml", "launch/camvid_full.yaml", "search_spaces/cityscapes.yaml", "search_spaces/cityscapes_study.yaml")
IMAGES = {"cityscapes": (2975, 500), "camvid": (367, 101)}
"""Of train and val."""

SMALL = ((128, 128), (128, 256))
PER_NODE = 8
LEAST = 2
"""Images of a GPU: BatchNorm over a pooled feature wants more than one."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Of one image, forward and backward.

    Attributes:
        flop: Of the whole net.
        forward: Of the backbone's forward alone.
        method: Of the taps, adapters and losses; in ``flop``.
        saved: Bytes that are kept for the backward, parameters left out.
        parameters: Numbers, of the whole net.
    """

    flop: float
    forward: float
    method: float
    saved: float
    parameters: int


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """What is assumed.

    Attributes:
        tflops: Peak in bfloat16, TFLOP/s.
        use: Part of it that a training gets, in (0, 1].
        gib: Memory, GiB.
        reserve: Of it for CUDA, workspaces and gradients of activations, GiB.
        in_node: Bytes/s between GPUs of a node.
        between: Bytes/s a GPU between nodes.
        price: Of a GPU-hour.
    """

    tflops: float = 312.0
    use: float = 0.35
    gib: float = 80.0
    reserve: float = 6.0
    in_node: float = 250e9
    between: float = 25e9
    price: float = 2.0


@contextmanager
def saved_bytes(module: nn.Module, into: list[int]) -> Iterator[None]:
    """Append the bytes of the storages that autograd saves meanwhile, each counted once, without those of parameters and buffers."""
    own = {tensor.untyped_storage()._cdata for tensor in (*module.parameters(), *module.buffers())}
    seen: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in own:
            seen.setdefault(storage, tensor)  # which keeps it alive, so that its address is not given to another
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield
    into.append(sum(tensor.untyped_storage().nbytes() for tensor in seen.values()))


def backward_flop(
    grad_shape: list[int],
    input_shape: list[int],
    weight_shape: list[int],
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    output_mask: list[bool],
    out_shape: Any,
) -> int:
    """Of a convolution's backward: as much as its forward for the gradient of its input, and for that of its weights.

    torch's own formula takes a grouped convolution's weights for those of a whole one, which is 2048 times too many for the widest of DeepLabV3+.
    """
    places = math.prod((input_shape if transposed else grad_shape)[2:])
    return sum(output_mask[:2]) * 2 * grad_shape[0] * places * math.prod(weight_shape)


def measured(module: nn.Module, forward: Callable[[], Tensor]) -> tuple[float, float, float]:
    """FLOPs of the forward, FLOPs of both, and bytes saved in between, under bfloat16."""
    saved: list[int] = []
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: backward_flop}) as both:
        with saved_bytes(module, saved), torch.autocast("cpu", torch.bfloat16):
            loss = forward()
        ahead = both.get_total_flops()
        loss.backward()
    module.zero_grad(set_to_none=True)
    return ahead, both.get_total_flops(), saved[0]


def net_of(run: Run) -> IMacHSR:
    """Built without its weights, which change no number, and traced on a small size, which makes the same taps."""
    scratch = run.model_copy(update={"model": replace(run.model, encoder_weights=None)})
    return build_net(scratch, num_classes=run.data.num_classes, size=SMALL[1], steps_per_epoch=100)


def work_of(run: Run, *, batch: int = LEAST) -> Work:
    """Of one image of the run's size."""
    classes, size = run.data.num_classes, run.data.size
    net = net_of(run).train()
    added = []
    for small in SMALL:
        images, labels = torch.randn(batch, 3, *small), torch.randint(0, classes, (batch, *small))
        _, whole, kept = measured(net, lambda images=images, labels=labels: net(images, labels).total)
        _, alone, kept_alone = measured(net.backbone, lambda images=images, labels=labels: cross_entropy(net.backbone(images), labels))
        added.append(((whole - alone) / batch, (kept - kept_alone) / batch))
    parameters = sum(parameter.numel() for parameter in net.parameters())
    forward, both, saved = (number / batch for number in full_size(net.backbone, size, batch))
    method, kept = (line([math.prod(small) for small in SMALL], [pair[which] for pair in added], math.prod(size)) for which in (0, 1))
    return Work(flop=both + method, forward=forward, method=method, saved=saved + kept, parameters=parameters)


def full_size(backbone: nn.Module, size: tuple[int, int], batch: int) -> tuple[float, float, float]:
    """As :func:`measured`, on tensors that have a shape and no contents."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        images, labels = torch.empty(batch, 3, *size), torch.empty(batch, *size, dtype=torch.long)
        return measured(backbone, lambda: cross_entropy(backbone(images), labels))


def cross_entropy(output: Any, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits_of(output).float(), labels)


def line(at: list[float], values: list[float], where: float) -> float:
    slope = (values[1] - values[0]) / (at[1] - at[0])
    return values[0] + slope * (where - at[0])


def step_s(work: Work, images: int, gpus: int, gpu: Gpu) -> float:
    """Of a step with so many images a GPU: compute, and what of the ring all-reduce the backward does not hide."""
    compute = images * work.flop / (1e12 * gpu.tflops * gpu.use)
    if gpus == 1:
        return compute
    bandwidth = gpu.in_node if gpus <= PER_NODE else gpu.between
    exchange = 2 * (gpus - 1) / gpus * 4 * work.parameters / bandwidth
    return compute + max(exchange * min(1.0, 25e6 / (4 * work.parameters)), exchange - 2 / 3 * compute)


def memory_gib(work: Work, images: int, gpu: Gpu) -> float:
    """Weights, gradients and AdamW's two moments in float32, what is saved for the backward, and the reserve."""
    return (16 * work.parameters + images * work.saved) / 2**30 + gpu.reserve


def share_of(work: Work, batch: int, gpus: int, gpu: Gpu) -> tuple[int, int]:
    """Images of a GPU at once, and how often, so that they fit."""
    whole = max(batch // gpus, LEAST)
    times = next(n for n in range(1, whole + 1) if whole % n == 0 and (memory_gib(work, whole // n, gpu) <= gpu.gib or whole // n <= LEAST))
    return whole // times, times


def epoch_s(work: Work, counts: tuple[float, float], batch: int, gpus: int, gpu: Gpu) -> float:
    """Of so many images to train on and to score; reading and augmenting them is assumed to be hidden."""
    train, val = counts
    images, times = share_of(work, batch, gpus, gpu)
    at_once = images * gpus * times
    return train // at_once * step_s(work, images * times, gpus, gpu) + math.ceil(val / gpus) * work.forward / (1e12 * gpu.tflops * gpu.use)


def rows_of_training(name: str, run: Run, work: Work, gpu: Gpu) -> Iterator[list[str]]:
    for gpus in (1, 8, 64):
        batch = max(run.optimizer.batch_size, LEAST * gpus)
        images, times = share_of(work, batch, gpus, gpu)
        epoch = epoch_s(work, IMAGES[run.data.kind], batch, gpus, gpu)
        hours = epoch * run.optimizer.epochs / 3600
        sizes = [str(batch), f"{images} x {times}", f"{memory_gib(work, images, gpu):.0f}"]
        yield [name, str(gpus), *sizes, f"{epoch:.2f}", f"{hours:.2f}", f"{gpus * hours:.2f}", f"{gpus * hours * gpu.price:.2f}"]


def mean_epochs(search: Search) -> float:
    """Of a sampled trial under successive halving where each rung stops as many as it is to: one in ``reduction`` goes on."""
    most, reduction = search.base().optimizer.epochs, search.scheduler.reduction
    rungs = [0, *rung_levels(grace=search.scheduler.grace, reduction=reduction, max_epochs=most), most]
    return sum((rung - before) / reduction**number for number, (before, rung) in enumerate(pairwise(rungs)))


def rows_of_search(name: str, search: Search, work: Work, gpu: Gpu) -> Iterator[list[str]]:
    run, fixed = search.base(), len(search.fixed())
    images_of_train, part = IMAGES[run.data.kind][0], search.selection.fraction
    epoch = epoch_s(work, (images_of_train * (1 - part), images_of_train * part), run.optimizer.batch_size, 1, gpu)
    total = fixed * run.optimizer.epochs + (search.budget.trials - fixed) * mean_epochs(search)
    images, times = share_of(work, run.optimizer.batch_size, 1, gpu)
    for gpus in (1, 8, 64):
        # A whole trial cannot be shared by several GPUs, and is what the last rung waits for.
        hours = max(total / gpus, run.optimizer.epochs) * epoch / 3600
        sizes = [str(run.optimizer.batch_size), f"{images} x {times}", f"{memory_gib(work, images, gpu):.0f}"]
        yield [name, str(gpus), *sizes, f"{epoch:.2f}", f"{hours:.2f}", f"{gpus * hours:.2f}", f"{gpus * hours * gpu.price:.2f}"]


def rows_of_study(name: str, plan: StudyPlan, work: Work, gpu: Gpu) -> Iterator[list[str]]:
    """A run takes one GPU; those of equal time, whose epochs the others' times will tell, take the control's; spoilt images are left out."""
    planned = [each.run or plan.run_of(plan.cell(each.cell), plan.control, each.seed) for each in wanted(plan, Known())]
    run, (train, val) = planned[0], IMAGES[planned[0].data.kind]
    images, times = share_of(work, run.optimizer.batch_size, 1, gpu)

    def hours_of(each: Run) -> float:
        seen = (train * each.subset.share, 0.0)
        scored = epoch_s(work, (0, val), each.optimizer.batch_size, 1, gpu)  # the last epoch alone
        return (each.optimizer.epochs * epoch_s(work, seen, each.optimizer.batch_size, 1, gpu) + scored) / 3600

    taken = [hours_of(each) for each in planned]
    epoch = epoch_s(work, (train, 0), run.optimizer.batch_size, 1, gpu)
    for gpus in (1, 8, 64):
        hours = max(sum(taken) / gpus, 2 * max(taken))  # what is of equal time begins when what it is equal to has ended
        sizes = [str(run.optimizer.batch_size), f"{images} x {times}", f"{memory_gib(work, images, gpu):.0f}"]
        yield [name, str(gpus), *sizes, f"{epoch:.2f}", f"{hours:.2f}", f"{gpus * hours:.2f}", f"{gpus * hours * gpu.price:.2f}"]


def table(columns: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--gpu", default="A100", help="its name, for the text")
    for name, default in vars(Gpu()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=default)
    arguments = parser.parse_args()
    for name in vars(Gpu()):
        if not 0 < getattr(arguments, name) < math.inf and name not in ("price", "reserve"):
            parser.error(f"`--{name.replace('_', '-')} > 0` must hold, but got {getattr(arguments, name):g}")
    if arguments.use > 1:
        parser.error(f"`--use <= 1` must hold, but got {arguments.use:g}")
    if missing := [recipe for recipe in arguments.recipes if not (ROOT / recipe).is_file()]:
        parser.error(f"a recipe must be a file of this repository such as {RECIPES[0]}, but got {missing[0]}")
    gpu = Gpu(**{name: getattr(arguments, name) for name in vars(Gpu())})
    works, times = [], []
    for recipe in arguments.recipes:
        keys = load_yaml(ROOT / recipe)
        rows_of: Callable[[Work, Gpu], Iterator[list[str]]]
        if "space" in keys:
            search = load_search(ROOT / recipe)
            run, rows_of = search.base(), partial(rows_of_search, recipe, search)
        elif "cells" in keys:
            plan = load_study(ROOT / recipe)
            run, rows_of = plan.run_of(plan.cells[0], plan.arms[-1].name, plan.seeds[0]), partial(rows_of_study, recipe, plan)
        else:
            run = load_run(ROOT / recipe)
            rows_of = partial(rows_of_training, recipe, run)
        work = work_of(run)
        size = "x".join(map(str, run.data.size))
        numbers = [f"{work.parameters / 1e6:.1f}", f"{work.forward / 1e12:.2f}", f"{work.flop / 1e12:.2f}", f"{100 * work.method / work.flop:.2f}"]
        works.append([recipe, f"{run.model.architecture}/{run.model.encoder}", size, *numbers, f"{work.saved / 2**20:.0f}"])
        times += rows_of(work, gpu)
    print("Measured:\n")
    table(["recipe", "network", "size", "parameters, M", "forward, TFLOP", "both, TFLOP", "of it the method, %", "saved, MiB an image"], works)
    print(
        f"Computed for {arguments.gpu}: {gpu.tflops:.0f} TFLOP/s (bfloat16) used to {gpu.use:.0%}, {gpu.gib:.0f} GiB with {gpu.reserve:.0f} reserved,"
    )
    print(f"{gpu.in_node / 1e9:.0f} GB/s within a node of {PER_NODE}, {gpu.between / 1e9:.0f} GB/s between nodes, {gpu.price:g} a GPU-hour:\n")
    columns = ["recipe", "GPUs", "images a step", "at once a GPU", "memory, GiB", "epoch, s", "all, h", "GPU-hours", "cost"]
    table(columns, times)


if __name__ == "__main__":
    main()
