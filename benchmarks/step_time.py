"""Time of one training step under each number format and memory layout, interleaved: python benchmarks/step_time.py"""

import argparse
import statistics
import time

import torch

from imachsr.config.build import build_net, build_optimizer
from imachsr.config.load import make_run
from imachsr.train.device import Placement
from imachsr.train.step import train_step

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--encoder", default="resnet18")
parser.add_argument("--rounds", type=int, default=15)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--alpha", type=float, default=0.4)
arguments = parser.parse_args()

torch.set_num_threads(arguments.threads)
run = make_run({}, {"model.encoder": arguments.encoder, "method.alpha": arguments.alpha})
images = torch.randn(8, 3, 96, 128)
labels = torch.randint(0, 9, (8, 96, 128))
cases = {}
for is_bfloat16 in (False, True):
    for is_channels_last in (False, True):
        place = Placement(device="cpu", is_bfloat16=is_bfloat16, is_channels_last=is_channels_last)
        net = build_net(run, num_classes=9, size=(96, 128))
        place.put_net(net)
        cases[("bfloat16" if is_bfloat16 else "float32") + (" NHWC" if is_channels_last else " NCHW")] = (place, net, *build_optimizer(run, net, 100))
times: dict[str, list[float]] = {name: [] for name in cases}
for _ in range(arguments.rounds + 2):
    for name, (place, net, optimizer, scheduler) in cases.items():
        start = time.perf_counter()
        train_step(net, images, labels, optimizer=optimizer, scheduler=scheduler, placement=place)
        times[name].append(time.perf_counter() - start)
base = statistics.median(times["float32 NCHW"][2:])
for name, values in times.items():
    median = statistics.median(values[2:])
    print(f"{name:15} {1e3 * median:7.1f} ms  {base / median:5.2f} x")
