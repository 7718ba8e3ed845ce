"""Two processes with half of the batch each learn what one process learns from all of it."""

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from imachsr import ExplicitStandard, IMacHSR
from tests.core import nets

NUM_PROCESSES = 2


def build() -> IMacHSR:
    torch.manual_seed(0)
    example = nets.images().double()
    return IMacHSR(
        nets.Encoder().double(),
        example=example,
        num_classes=3,
        standard=ExplicitStandard(layers=("stage1", "stage2")),
        loss=["mi_variational", "brier"],
        alpha=0.6,
        beta=0.2,
        heterogeneity="off",
    )


def batch() -> tuple[Tensor, Tensor]:
    """No void, and as many images as make equal shards: only then is the mean of means the mean."""
    return nets.images(4).double(), nets.labels(4)


def step(net: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Any]:
    losses = net(images, labels)
    losses.total.backward()
    grads = {name.removeprefix("module."): parameter.grad for name, parameter in net.named_parameters()}
    return {"grads": grads, "total": losses.total.detach(), "side": {key: value.detach() for key, value in losses.side.items()}}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=NUM_PROCESSES)
    images, labels = batch()
    # find_unused_parameters stays off: an adapter that the wrapped forward does not see would raise in the second step.
    net = DistributedDataParallel(build())
    step(net, images[rank::NUM_PROCESSES], labels[rank::NUM_PROCESSES])
    net.zero_grad(set_to_none=True)
    torch.save(step(net, images[rank::NUM_PROCESSES], labels[rank::NUM_PROCESSES]), os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def test_two_processes_learn_what_one_learns_from_the_joined_batch(tmp_path: Path) -> None:
    mp.spawn(work, args=(str(tmp_path),), nprocs=NUM_PROCESSES)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(NUM_PROCESSES)]
    alone = step(build(), *batch())
    assert any(name.startswith("adapters.") for name in alone["grads"])
    for name, grad in alone["grads"].items():
        assert bool(grad.any()), name
        for rank in ranks:
            torch.testing.assert_close(rank["grads"][name], grad, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close((ranks[0]["total"] + ranks[1]["total"]) / 2, alone["total"], rtol=1e-6, atol=1e-9)
    assert not torch.equal(ranks[0]["side"]["stage1"], ranks[1]["side"]["stage1"])  # each saw its own half
