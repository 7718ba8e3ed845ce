import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from imachsr.data.splits import Selection
from imachsr.train import footprint
from imachsr.train.footprint import Footprint, TooLargeError, fair_share_mib, measure
from imachsr.train.loop import train
from tests.train.toys import Bands, toy_run, without_clock

WIDE = """
import json, sys, time
import torch
from imachsr.config.load import make_run
from imachsr.train import footprint
from imachsr.train.footprint import measure
from imachsr.train.device import Machine, decide
from imachsr.config.build import build_net, build_optimizer
from imachsr.data.transforms import normalize
from imachsr.train.step import train_step
run = make_run(json.loads(sys.argv[1]))
torch.set_num_threads(1)
samples = run.data.load("train")
if sys.argv[2] == "told":
    found = measure(run, samples)
    print(json.dumps([found.memory_mib, found.step_ms]))
else:
    placement, count = decide(run.compute, Machine.here()), run.optimizer.batch_size
    net = placement.put_net(build_net(run, num_classes=run.data.num_classes, size=samples.images.shape[-2:], samples=samples, steps_per_epoch=1))
    optimizer, scheduler = build_optimizer(run, net, 1)
    net.train()
    peak, times = footprint._Peak(placement.device), []
    peak.reset()
    for _ in range(4):
        began = time.process_time()
        images, labels = normalize(samples.images[:count]), samples.labels[:count].long()
        train_step(net, images, labels, optimizer=optimizer, scheduler=scheduler, placement=placement)
        times.append(time.process_time() - began)
    print(json.dumps([peak.mib(), 1e3 * min(times)]))
"""


def in_a_process(run: dict[str, object], what: str, root: Path) -> tuple[float, float]:
    command = [sys.executable, "-W", "ignore", "-c", WIDE, json.dumps(run), what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, env={**os.environ, "PYTHONPATH": str(root)})
    memory, step = json.loads(done.stdout)
    return memory, step


@pytest.mark.slow
@pytest.mark.parametrize("batch", [8, 16])
def test_what_is_told_of_a_batch_is_what_it_takes(batch: int, root: Path) -> None:
    run: dict[str, object] = {
        "data": {"kind": "scenes", "size": [96, 96], "num_train": 16},
        "model": {"kind": "smp", "architecture": "unet", "encoder": "resnet18"},
        "optimizer": {"batch_size": batch},
        "compute": {"device": "cpu", "precision": "float32", "threads": 1},
    }
    told, taken = in_a_process(run, "told", root), in_a_process(run, "taken", root)
    # Both with all that a process holds. The time is that of a clock on the wall on a machine that others use.
    assert 0.8 * taken[0] < told[0] < 1.4 * taken[0]
    assert 0.5 * taken[1] < told[1]


def test_memory_grows_with_the_batch_and_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(batch: int, size: int) -> float:
        return measure(toy_run(optimizer__batch_size=batch, data__size=size), Bands(count=batch, size=size).load("train")).memory_mib

    small, large = told(8, 64), told(64, 256)
    assert large > small + 100  # 64 images of 3 x 256 x 256 in float32 alone are 48 MiB, and two layers of 8 and 12 channels keep theirs


def test_the_line_through_two_batches_is_followed_to_the_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {1: 117.0, 2: 130.0, 3: 144.0, 4: 160.0}
    sizes: list[int] = []

    def stepped(net: object, images: torch.Tensor, *rest: object, **more: object) -> None:
        sizes.append(len(images))

    monkeypatch.setattr(footprint, "train_step", stepped)
    monkeypatch.setattr(footprint._Peak, "mib", lambda self: told[sizes[-1]])
    samples = Bands(count=64).load("train")
    assert measure(toy_run(optimizer__batch_size=32), samples).memory_mib == pytest.approx(160 + 15 * 28)
    assert set(sizes) == {2, 4}
    # A worker's share of it, in its micro-batches.
    assert measure(toy_run(optimizer__batch_size=32, optimizer__accumulate=2), samples, workers=2).memory_mib == pytest.approx(160 + 15 * 4)
    for few in told:  # nothing to be followed: the floor counts once
        assert measure(toy_run(optimizer__batch_size=few), samples).memory_mib == told[few]


def test_memory_that_runs_out_already_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (MemoryError("no"), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: not enough memory: you tried")):

        def full(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(footprint, "train_step", full)
        with pytest.raises(TooLargeError):
            measure(toy_run(), Bands().load("train"))
    monkeypatch.setattr(footprint, "train_step", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("another")))
    with pytest.raises(RuntimeError, match="another"):
        measure(toy_run(), Bands().load("train"))


@pytest.mark.long
def test_what_earlier_trainings_left_in_the_process_hides_nothing() -> None:
    samples = Bands(count=32, size=256).load("train")
    small, large = (toy_run(optimizer__batch_size=count, optimizer__epochs=1, data__size=256, data__count=32) for count in (4, 20))
    before = measure(large, samples).memory_mib - measure(small, samples).memory_mib
    train(large, evaluate_on="select", selection=Selection(fraction=0.25, blocks=1, guard=1))
    after = measure(large, samples).memory_mib - measure(small, samples).memory_mib
    assert before > 40  # 16 images more, of 0.75 MiB each before the first layer alone
    # A peak differs by some MiB from one time to the next, and the line from two to four images multiplies that by eight; what was hidden would be 0.
    assert after > 0.5 * before


def test_a_training_that_was_measured_before_is_bitwise_the_same() -> None:
    run, selection = toy_run(model__dropout=0.3), Selection(fraction=0.25, blocks=1, guard=1)
    plain = train(run, evaluate_on="select", selection=selection).history
    measure(run, run.data.load("train"))
    measured = train(run, evaluate_on="select", selection=selection).history
    assert [without_clock(row) for row in measured] == [without_clock(row) for row in plain]


def test_a_trial_s_share_is_nine_tenths_of_the_least_bound_over_all_trials() -> None:
    assert fair_share_mib("cpu", trials=4, limits=lambda: [8000.0, 4000.0]) == pytest.approx(900)
    assert 0 < fair_share_mib("cpu", trials=1) <= 0.9 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20


def test_a_footprint_is_of_plain_numbers() -> None:
    found = measure(toy_run(), Bands().load("train"))
    assert isinstance(found, Footprint)
    assert found.step_ms > 0
    assert found.memory_mib > 50  # a process with torch in it
