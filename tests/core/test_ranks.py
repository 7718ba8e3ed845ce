"""Sums and means over processes, with the gradient that DistributedDataParallel makes of them."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from imachsr.core.ranks import Ranks
from tests.processes import leave

WORLD = 2
SHARES = torch.tensor([[1.0, 2.0, 3.0], [10.0, 0.0, 5.0], [7.0, 7.0, 7.0]], dtype=torch.float64)
"""Three samples: the first rank has one, the second has two."""


def shard(rank: int) -> Tensor:
    return SHARES[:1] if rank == 0 else SHARES[1:]


class OfSums(nn.Module):
    """A loss that is no mean of its samples' losses, as Dice is none: a ratio of sums."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64))

    def forward(self, x: Tensor, ranks: Ranks) -> Tensor:
        above, below = ranks.sum(torch.stack([(x * self.weight).square().sum(), (x.sin() * self.weight).square().sum()]))
        return (above / below).log()


class OfMeans(OfSums):
    """A mean over all samples: the rank's sum over the ranks' mean count."""

    def forward(self, x: Tensor, ranks: Ranks) -> Tensor:
        return (x * self.weight).square().sum() / ranks.mean(torch.tensor(float(len(x))))


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    ranks = Ranks.here()
    found: dict[str, Any] = {"world": ranks.world, "mean": ranks.mean(torch.tensor([1.0 + rank, 4.0]))}
    mine = torch.tensor(3.0 + rank)
    found["sum"] = ranks.sum(mine)
    found["mine"] = mine  # is not written to
    square = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    found["of another order in memory"] = ranks.mean(square if rank == 0 else square.T.contiguous().T)
    weighed = torch.tensor(2.0, requires_grad=True)
    found["mean has a gradient"] = ranks.mean(weighed).requires_grad
    for loss in (OfSums, OfMeans):
        net = DistributedDataParallel(loss())
        value = net(shard(rank), ranks)
        value.backward()
        found[loss.__name__] = {"value": value.detach(), "grad": net.module.weight.grad}
    torch.save(found, os.path.join(folder, f"{rank}.pt"))
    leave()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, args=(str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


def test_means_and_sums_are_over_both_processes(found: list[dict[str, Any]]) -> None:
    for rank, of in enumerate(found):
        assert of["world"] == 2
        assert of["mean"].tolist() == [1.5, 4.0]
        assert of["sum"].item() == 7.0
        assert of["mine"].item() == 3.0 + rank
        assert not of["mean has a gradient"]


@pytest.mark.parametrize("loss", [OfSums, OfMeans])
def test_the_averaged_gradient_is_that_of_one_process_with_all_samples(loss: Any, found: list[dict[str, Any]]) -> None:
    alone = loss()
    value = alone(SHARES, Ranks())
    value.backward()
    for of in found:
        torch.testing.assert_close(of[loss.__name__]["grad"], alone.weight.grad, rtol=1e-12, atol=1e-12)
    values = [of[loss.__name__]["value"] for of in found]
    torch.testing.assert_close(sum(values) / WORLD, value.detach(), rtol=1e-12, atol=1e-12)
    if loss is OfSums:  # each rank sees the whole
        torch.testing.assert_close(values[0], values[1], rtol=0, atol=0)


def test_axes_may_lie_in_another_order_in_the_memory_of_each_process(found: list[dict[str, Any]]) -> None:
    for of in found:
        assert of["of another order in memory"].tolist() == [[1, 2], [3, 4]]


def test_outside_of_a_process_group_there_is_one_rank_and_everything_is_its_own() -> None:
    ranks = Ranks.here()
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    assert ranks == Ranks(world=1)
    assert ranks.sum(x) is x
    assert ranks.mean(x) is x
