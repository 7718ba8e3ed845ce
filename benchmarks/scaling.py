"""What several workers bring, and what Ray Train adds to them.

    python benchmarks/scaling.py               # all of it: about 15 minutes on two cores
    python benchmarks/scaling.py --compare     # only images/s, start-up and memory against torchrun
    python benchmarks/scaling.py --cost        # only what Ray adds to a run: start, reports, stop
    python benchmarks/scaling.py --allreduce   # only how the exchange of gradients grows with their size and with the workers
    python benchmarks/scaling.py --paper       # only 8, 64 and 512 GPUs, computed from measured FLOPs and bytes and stated speeds
    python benchmarks/scaling.py --quick       # one round, few steps: for a look

torchrun's side is a plain hand-written DistributedDataParallel loop on the same batches, model, optimizer, precision and memory layout; each
worker has one thread. In between stands our loop without Ray. Rounds alternate; a ratio is that of the medians over all steps but those of the
first epoch of each round.
Start-up is from the call to the end of the first step; what Ray adds is told in parts: start, one report, stop.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import segmentation_models_pytorch as smp
import torch
import torch.distributed as dist
from ray.train.torch import TorchTrainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from imachsr.config.build import build_model, build_optimizer
from imachsr.config.load import make_run
from imachsr.config.schema import Run
from imachsr.core.types import IGNORE_INDEX
from imachsr.train.batches import batches
from imachsr.train.capacity import connect
from imachsr.train.device import Machine, decide
from imachsr.train.loop import train
from imachsr.train.ray_session import Trainer
from imachsr.train.ray_train import train_distributed

MARK = "SCALING "


def run_of(arguments: argparse.Namespace) -> Run:
    return make_run(
        {
            "data": {"kind": "scenes", "size": [128, 160], "num_train": arguments.samples, "num_val": 8},
            "model": {"kind": "smp", "architecture": "unet", "encoder": arguments.encoder},
            "method": {"alpha": 0.0, "beta": 0.0},
            "optimizer": {"epochs": arguments.epochs, "batch_size": 8},
            "compute": {"threads": 1},
        },
        {},
    )


class Plain(nn.Module):
    """Model and loss in one forward, as our net has them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone = model

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(self.backbone(images).float(), labels, ignore_index=IGNORE_INDEX)


def plain_loop(arguments: argparse.Namespace) -> None:
    """One rank of torchrun."""
    started = float(os.environ["SCALING_STARTED"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    run = run_of(arguments)
    samples = run.data.load("train")
    placement = decide(run.compute, Machine.here())
    net = placement.put_net(Plain(build_model(run, run.data.num_classes)))
    optimizer, scheduler = build_optimizer(run, net, len(samples) // 8)
    wrapped = DistributedDataParallel(net) if world > 1 else net
    epochs: list[float] = []
    first = 0.0
    for epoch in range(1, run.optimizer.epochs + 1):
        before = time.perf_counter()
        for images, labels in batches(samples, run, epoch=epoch, rank=rank, world=world):
            optimizer.zero_grad(set_to_none=True)
            with placement.autocast():
                loss = wrapped(placement.put_images(images), labels)
            loss.backward()
            optimizer.step()
            scheduler.step()
            float(loss.detach())
            first = first or time.time() - started
        epochs.append(time.perf_counter() - before)
    if rank == 0:
        print(MARK + json.dumps({"epochs": epochs, "start_s": first, "mib": peak_mib()}), flush=True)
    dist.barrier()
    os._exit(0)


def our_loop(arguments: argparse.Namespace) -> None:
    """One rank of torchrun with our loop: what of the difference is ours, and what Ray's."""
    started = float(os.environ["SCALING_STARTED"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    first: list[float] = []
    done = train(run_of(arguments), on_step=lambda step, steps: None if first else first.append(time.time() - started))
    if dist.get_rank() == 0:
        epochs = [row["time/epoch_s"] for row in done.history]
        print(MARK + json.dumps({"epochs": epochs, "start_s": first[0], "mib": peak_mib()}), flush=True)
    dist.barrier()
    os._exit(0)


def peak_mib() -> float:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(status["VmHWM"].split()[0]) / 1024


def ours(arguments: argparse.Namespace) -> None:
    """One training by Ray Train, in a process of its own."""
    started = float(os.environ["SCALING_STARTED"])
    rows: list[dict[str, float]] = []
    first: list[float] = []

    def on_step(step: int) -> None:
        if not first:
            first.append(time.time() - started)

    with tempfile.TemporaryDirectory() as folder:
        train_distributed(run_of(arguments), workers=arguments.workers, output=Path(folder) / "run", report=rows.append, on_step=on_step)
    epochs = [row["time/epoch_s"] for row in rows]
    found = {"epochs": epochs, "start_s": first[0], "mib": rows[-1]["memory/peak_mib"]}
    print(MARK + json.dumps(found), flush=True)


def measured(arguments: argparse.Namespace, side: str, workers: int) -> dict[str, Any]:
    options = [
        "--samples",
        str(arguments.samples),
        "--epochs",
        str(arguments.epochs),
        "--encoder",
        arguments.encoder,
        "--workers",
        str(workers),
        "--side",
        side,
    ]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"] if side != "ray" else [sys.executable]
    environment = {**os.environ, "SCALING_STARTED": str(time.time()), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, __file__, *options], env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if not lines:
        raise RuntimeError(f"{side} with {workers} workers must end with its times, but: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(lines[0].removeprefix(MARK))
    return found


def compare(arguments: argparse.Namespace) -> None:
    columns = [
        "workers",
        "torchrun, images/s",
        "our loop by torchrun",
        "Ray Train",
        "ratios",
        "start-up, s",
        "MiB a worker",
    ]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for workers in (1, 2) if arguments.workers is None else (arguments.workers,):
        rounds: dict[str, list[dict[str, Any]]] = {"torchrun": [], "loop": [], "ray": []}
        for number in range(arguments.rounds):
            for side in rounds if number % 2 == 0 else reversed(rounds):
                rounds[side].append(measured(arguments, side, workers))
        sides = list(rounds.values())
        images = arguments.samples // 8 * 8
        speeds = [images / statistics.median(seconds for found in side for seconds in found["epochs"][1:]) for side in sides]
        cells = [*(f"{speed:.1f}" for speed in speeds), ", ".join(f"{speed / speeds[0]:.3f}" for speed in speeds[1:])]
        cells.append(", ".join(f"{statistics.median(found['start_s'] for found in side):.1f}" for side in sides))
        cells.append(", ".join(f"{statistics.median(found['mib'] for found in side):.0f}" for side in sides))
        print(f"| {workers} | " + " | ".join(cells) + " |", flush=True)


def reporting(config: dict[str, Any]) -> None:
    began = time.time()
    times = []
    for number in range(5):
        time.sleep(2)  # an epoch: reports without a pause would queue up, and be told as the time that the end takes
        before = time.perf_counter()
        ray.train.report({"epoch": number})
        times.append(time.perf_counter() - before)
    Path(config["out"]).write_text(json.dumps({"began": began, "ended": time.time(), "report_s": statistics.median(times)}))


def ray_cost(rounds: int) -> None:
    """What a run of one worker pays to Ray: from the call to the first line of its code, for a report, from its last line to the end."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # as `imachsr train` has it
    connect(cpus=2)
    for name, trainer in (("Ray's TorchTrainer", TorchTrainer), ("imachsr's, which waits less at the end", Trainer)):
        start, stop, report = [], [], []
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "times.json"
                config = ray.train.RunConfig(name="cost", storage_path=folder)
                one = ray.train.ScalingConfig(num_workers=1)
                before = time.time()
                trainer(reporting, train_loop_config={"out": str(out)}, run_config=config, scaling_config=one).fit()
                found = json.loads(out.read_text())
                start.append(found["began"] - before)
                stop.append(time.time() - found["ended"])
                report.append(found["report_s"])
        parts = [f"start {statistics.median(start):.1f} s", f"a report {1e3 * statistics.median(report):.0f} ms"]
        print(f"\nA run of one worker by {name}, medians of {rounds}: {', '.join(parts)}, stop {statistics.median(stop):.1f} s", flush=True)


def reduce_rank(rank: int, world: int, folder: str, sizes: list[int], repeats: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{world}", rank=rank, world_size=world)
    for size in sizes:
        gradient = torch.ones(size * 2**20 // 4)
        times = []
        for _ in range(repeats + 2):
            dist.barrier()
            before = time.perf_counter()
            dist.all_reduce(gradient)
            times.append(time.perf_counter() - before)
        if rank == 0:
            middle = statistics.median(times[2:])
            print(f"| {world} | {size} | {1e3 * middle:.1f} | {2 * (world - 1) / world * size / 1024 / middle:.2f} |", flush=True)
    dist.barrier()
    os._exit(0)


def allreduce(arguments: argparse.Namespace) -> None:
    print("| workers | gradient, MiB | all-reduce, ms | moved by each worker, GiB/s |\n|---|---|---|---|", flush=True)
    for world in (2, 3, 4):
        with tempfile.TemporaryDirectory() as folder:
            context = torch.multiprocessing.get_context("spawn")
            ranks = [context.Process(target=reduce_rank, args=(rank, world, folder, [1, 8, 55, 128], arguments.repeats)) for rank in range(world)]
            for process in ranks:
                process.start()
            for process in ranks:
                process.join()


def paper() -> None:
    """Step time of N GPUs: compute, plus what of the ring all-reduce the backward does not hide."""
    from benchmarks.full_size import measured

    tera, use, in_node, between, hop, per_node, batch = 312e12, 0.35, 250e9, 25e9, 15e-6, 8, 4
    print(f"Assumed: GPUs of {tera / 1e12:.0f} TFLOP/s (bfloat16) used to {use:.0%}, {batch} images of 512x1024 each,")
    print(f"{in_node / 1e9:.0f} GB/s within a node of {per_node}, {between / 1e9:.0f} GB/s between nodes, {1e6 * hop:.0f} us a hop;")
    print("float32 gradients in buckets of 25 MB; all but the last is hidden by the backward, two thirds of the compute, as far as that lasts.\n")
    columns = ["model", "TFLOP a step and GPU", "gradient, MB", "GPUs", "compute, ms", "exchange, ms", "step, ms", "images/s", "efficiency"]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for architecture, encoder in (("unet", "resnet18"), ("deeplabv3plus", "resnet18"), ("segformer", "mit_b0")):
        model = smp.create_model(architecture, encoder, encoder_weights=None, classes=19).train()
        _, both, _ = measured(model, lambda model=model: model(torch.zeros(2, 3, 256, 256)).sum())
        flops = both / 2 * (512 * 1024) / 256**2 * batch  # convolutions grow with the pixels
        size = 4 * sum(parameter.numel() for parameter in model.parameters())
        compute = flops / (tera * use)
        for gpus in (1, 8, 64, 512):
            bandwidth = in_node if gpus <= per_node else between
            exchange = 0.0 if gpus == 1 else 2 * (gpus - 1) / gpus * size / bandwidth + 2 * math.log2(gpus) * hop
            last = exchange * min(1.0, 25e6 / size)
            step = compute + max(last, exchange - 2 / 3 * compute)
            cells = [f"{flops / 1e12:.2f}", f"{size / 1e6:.0f}", str(gpus), f"{1e3 * compute:.1f}", f"{1e3 * exchange:.2f}", f"{1e3 * step:.1f}"]
            print(f"| {architecture}/{encoder} | " + " | ".join([*cells, f"{gpus * batch / step:.0f}", f"{compute / step:.2f}"]) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--allreduce", action="store_true")
    parser.add_argument("--paper", action="store_true")
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--side", choices=("torchrun", "loop", "ray"), help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, help="only this row of --compare")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.samples, arguments.epochs = 1, 16, 3
    if arguments.side == "torchrun":
        plain_loop(arguments)
    elif arguments.side == "loop":
        our_loop(arguments)
    elif arguments.side == "ray":
        ours(arguments)
    elif arguments.allreduce:
        allreduce(arguments)
    elif arguments.paper:
        paper()
    elif arguments.compare:
        compare(arguments)
    elif arguments.cost:
        ray_cost(3 * arguments.rounds)
    else:
        compare(arguments)
        ray_cost(3 * arguments.rounds)
        print()
        allreduce(arguments)
        print()
        paper()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # for its neighbour
    main()
