"""What two gloo ranks do for the tests that look at it: one pair of processes serves them all."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from imachsr import DepthStandard, IMacHSR
from imachsr.config.build import output_loss
from imachsr.config.training import Compute
from imachsr.core.losses import losses_of
from imachsr.train import epochs, parallel
from imachsr.train.device import Placement
from imachsr.train.loop import train
from imachsr.train.metrics import ConfusionMatrix
from imachsr.train.parallel import agree, mean_over_ranks, parallelise, summed
from imachsr.train.score import score
from imachsr.train.step import train_step
from imachsr.train.stopping import TrainingStopped
from tests.processes import leave
from tests.train.test_nonfinite import STEP, bad_run, samples_of
from tests.train.toys import Bands, Tiny, toy_run

CPU = Placement(device="cpu", is_bfloat16=False, is_channels_last=False)
STEPS = 20
# Model, method, samples a step (that two ranks do not divide), micro-batches, and whether pixels are void.
CASES: dict[str, dict[str, Any]] = {
    "prototype": {"loss": "prototype", "count": 7},
    "dice": {"loss": "dice", "count": 5},
    "brier": {"loss": "brier", "beta": 0.5, "count": 7},
    "frozen": {"loss": "prototype", "count": 5, "norm": {"has_batch_norm": True, "is_frozen": True}},
    "accumulated": {"loss": "brier", "count": 7, "accumulate": 2, "has_void": False},
    "batch norm": {"loss": "brier", "count": 6, "norm": {"has_batch_norm": True}},
}
PER_RANK = ("infonce", "hsic", "lovasz", "rmi")
RUN = {"optimizer__epochs": 2, "augment__flip": 0.5}
UNUSED = {**RUN, "model__kwargs": {"has_unused": True}, "optimizer__epochs": 1}
NORMED = {**RUN, "model__kwargs": {"has_batch_norm": True}, "data__kwargs": {"count": 24, "num_val": 6}}


def pixels(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (6, 8, 8), generator=generator)
    labels[labels == 3] = 255
    return torch.randint(0, 3, (6, 8, 8), generator=generator), labels


def score_of(indices: list[int]) -> dict[str, float]:
    torch.manual_seed(0)
    samples = Bands(num_val=5).load("val").subset(indices)
    return score(Tiny(3), samples, Bands().class_names, loss=output_loss(toy_run()), placement=CPU, prefix="val")


def steps(case: dict[str, Any], rank: int = 0, world: int = 1, accumulate: int | None = None) -> dict[str, Tensor]:
    """Weights in float64 after 20 steps of SGD on the same global batches."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    example = torch.randn(2, 3, 32, 32, generator=generator).double()
    model = Tiny(3, **case.get("norm", {})).double()
    loss = losses_of(case["loss"], (None,) * 2)  # type: ignore[arg-type]
    net = IMacHSR(model, example=example, num_classes=3, standard=DepthStandard(max_taps=2), loss=loss, beta=case.get("beta", 0.01))
    wrapped = parallelise(net.train(), Compute(), CPU)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for _ in range(STEPS):
        images = torch.randn(case["count"], 3, 32, 32, generator=generator).double()
        labels = torch.randint(0, 3, (case["count"], 4, 4), generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2)
        if case.get("has_void", True):
            labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
            labels[1, :20] = 255  # unlike numbers of valid pixels
        mine = slice(rank, None, world)
        parts = case.get("accumulate", 1) if accumulate is None else accumulate
        train_step(wrapped, images[mine], labels[mine], optimizer=optimizer, scheduler=scheduler, placement=CPU, accumulate=parts)
    return net.state_dict()


def raised(work: Callable[[], object]) -> str:
    try:
        work()
    except (ValueError, FloatingPointError, TrainingStopped) as error:
        return f"{type(error).__name__}: {error}"
    return ""


SHARDED = {"compute__parallel": "fsdp", "optimizer__epochs": 2, "optimizer__grad_clip": 1.0, "method__grad_ratio": 0.5}
BOTH = {"optimizer__epochs": 2, "optimizer__ema": 0.9, "method__grad_ratio": 0.5, "model__kwargs": {"dropout": 0.3, "has_batch_norm": True}}
MOVED = {"optimizer__epochs": 3, "recovery__checkpoint_steps": 1}


def broken(run: Any, output: Path, at: int) -> str:
    """Train up to a step, where all ranks are told to stop, from where it was."""
    done = [0]
    return raised(
        lambda: train(
            run, output=output, resume=True, on_step=lambda step, _: done.__setitem__(0, step), notice=lambda: "stop" if done[0] == at else ""
        )
    )


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    at = Path(folder)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    epochs.POLL_S = 0.0
    parallel.PIECE_BYTES = 1000  # a state comes in several
    weights = {name: steps(case, rank, 2) for name, case in CASES.items()}
    weights |= {name: steps({"loss": name, "count": 6}, rank, 2) for name in PER_RANK}
    torch.save(weights, at / f"weights{rank}.pt")
    found: dict[str, Any] = {"agree": agree(rank == 0, rank == 1, False), "summed": summed(rank, 5)}
    matrix = ConfusionMatrix(3)
    predicted, labels = pixels(0)
    matrix.update(predicted[rank::2], labels[rank::2])
    matrix.sum_over_ranks()
    found |= {"counts": matrix.counts.tolist(), "score": score_of(list(range(5))), "one sample": score_of([0])}
    found["mean"] = mean_over_ranks({"both": rank, f"only{rank}": 5.0})
    found["ohem"] = train(toy_run(output_loss="ohem", optimizer__epochs=1)).metrics["train/loss"]
    found["rows"] = train(toy_run(**RUN)).history
    found["unused"] = train(toy_run(**UNUSED)).history
    found["normed"] = train(toy_run(**NORMED), output=at / "normed").history
    # Sharded weights, against whole ones, and broken off.
    found["ddp"] = train(toy_run(**{**SHARDED, "compute__parallel": "ddp"}), output=at / "ddp").history
    found["fsdp"] = train(toy_run(**SHARDED), output=at / "fsdp").history
    found["fsdp stopped"] = broken(toy_run(**SHARDED), at / "fsdp2", 3)
    found["fsdp resumed"] = train(toy_run(**SHARDED), output=at / "fsdp2", resume=True).history
    found["fsdp 1 to 2"] = broken(toy_run(**SHARDED), at / "fsdp121", 3)
    found["ddp under fsdp"] = raised(lambda: train(toy_run(**SHARDED), output=at / "ddp", resume=True))
    found["ema under fsdp"] = raised(lambda: train(toy_run(**SHARDED, optimizer__ema=0.9)))
    found["sync"] = raised(lambda: train(toy_run(compute__sync_batch_norm=True)))
    found["too many parts"] = raised(lambda: train(toy_run(optimizer__accumulate=3)))
    # Everything that each rank has of its own, broken off.
    found["both"] = train(toy_run(**BOTH), output=at / "both").history
    found["both stopped"] = broken(toy_run(**BOTH), at / "both2", 3)
    found["both resumed"] = train(toy_run(**BOTH), output=at / "both2", resume=True).history
    # One rank alone has the bad sample.
    nan = {"optimizer__accumulate": 2}
    found["nan"] = raised(lambda: train(bad_run(**nan), output=at / "nan"))
    found["nan resumed"] = train(bad_run(**nan, recovery__nonfinite="skip"), output=at / "nan", resume=True).history
    found["nan skipped"] = train(bad_run(**nan, recovery__nonfinite="skip"), output=at / "skip").history
    # In the second micro-batch, with gradients of the first one waiting.
    late = {**nan, "data__kwargs": {"count": 16, "bad": [samples_of(STEP)[-1]]}, "recovery__nonfinite": "skip", "optimizer__epochs": 1}
    for kind in ("ddp", "fsdp"):
        found[f"nan late {kind}"] = train(bad_run(**late, compute__parallel=kind)).history
    # A folder of which each machine has its own.
    for number, name in enumerate(("late", "apart")):
        if rank == number:
            shutil.copytree(at / "both", at / f"{name}{rank}")
    dist.barrier()
    found["late"] = train(toy_run(**BOTH), output=at / f"late{rank}", resume=True).history
    found["apart"] = raised(lambda: train(toy_run(**BOTH), output=at / f"apart{rank}", resume=True)).replace("apart1", "apart0")
    if rank == 0:
        shutil.copytree(at / "both", at / "damaged")
        for file in (at / "damaged" / "checkpoints").glob("*.pt"):
            file.write_bytes(b"")
    dist.barrier()
    found["damaged"] = raised(lambda: train(toy_run(**BOTH), output=at / "damaged", resume=True))
    found["nan back"] = raised(lambda: train(bad_run("backward", optimizer__grad_clip=1.0)))
    sharded = {"compute__parallel": "fsdp", "recovery__nonfinite": "rollback", "recovery__checkpoint_steps": 1}
    found["nan fsdp"] = train(bad_run("backward", **sharded), output=at / "nan_fsdp").history
    # From one process to two, and from two to one.
    found["1 to 2"] = train(toy_run(**MOVED), output=at / "one", resume=True).history
    found["2 to 1"] = broken(toy_run(**MOVED), at / "two", 3)
    (at / f"rank{rank}.json").write_text(json.dumps(found))
    leave()
