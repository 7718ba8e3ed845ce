"""Two processes with an uneven part of the batch each learn what one process learns from all of it."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, get_args

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from imachsr import CrossEntropy, ExplicitStandard, Hsic, IMacHSR, InfoNCE
from imachsr.core.entropy import Regularizer
from imachsr.core.losses import SideLoss
from imachsr.core.output import OutputLoss
from tests.core import nets
from tests.processes import leave

WORLD = 2
PARTS = (slice(0, 2), slice(2, 5))
"""Images of each rank."""
Grads = dict[str, Tensor]

OF_EACH_RANK = {"lovasz", "infonce", "hsic", "rmi", "ohem"}
"""Losses that cannot be computed from sums over the ranks, and say so."""


@dataclass(frozen=True)
class Nothing:
    """An output loss that asks for nothing, so that the side losses are seen alone."""

    family: ClassVar[str] = "nothing"

    def __call__(self, output: Tensor, labels: Tensor, *, ignore_index: int) -> Tensor:
        return output.sum() * 0.0


def side(loss: Any) -> dict[str, Any]:
    few = {"infonce": InfoNCE(anchors=64), "hsic": Hsic(samples=64)}  # as many on both ranks
    alone = {"output_loss": Nothing()} if loss.kind in OF_EACH_RANK else {}
    return {"loss": few.get(loss.kind, loss), "alpha": 0.6, "beta": 0.0, **alone}


def output(loss: Any) -> dict[str, Any]:
    weighed = CrossEntropy(class_weights=(0.2, 1.0, 3.0), label_smoothing=0.1) if loss.kind == "cross_entropy" else loss
    return {"output_loss": weighed, "loss": "brier", "alpha": 0.0 if loss.kind in OF_EACH_RANK else 0.6, "beta": 0.0}


CASES: dict[str, dict[str, Any]] = {
    **{f"side/{member.kind}": side(member()) for member in get_args(SideLoss)},
    **{f"entropy/{member.kind}": {"loss": "dice", "entropy": member(), "alpha": 0.6, "beta": 2.0} for member in get_args(Regularizer)},
    **{f"output/{member.kind}": output(member()) for member in get_args(OutputLoss)},
    "one loss a tap, by depth": {"loss": ["prototype", "boundary"], "alpha": 0.6, "beta": 0.2, "profile": "linear_depth"},
    "frozen batch norm": {"loss": ["prototype", "dice"], "alpha": 0.6, "beta": 0.2, "frozen": True},
}
KINDS = {name: name.split("/")[-1] for name in CASES}
EXACT = [name for name in CASES if KINDS[name] not in OF_EACH_RANK]
BATCHES = ("void", "one rank of void only")


class Frozen(nn.BatchNorm2d):
    """Stays in evaluation mode, as in fine-tuning with small batches."""

    def train(self, mode: bool = True) -> "Frozen":
        return super().train(False)


def build(case: str) -> IMacHSR:
    knobs = dict(CASES[case])
    torch.manual_seed(0)
    model = nets.Encoder()
    if knobs.pop("frozen", False):
        for block in [module for module in model.modules() if isinstance(module, nets.Block)]:
            block.norm = Frozen(block.norm.num_channels).eval()
            nn.init.normal_(block.norm.running_mean)
    standard = ExplicitStandard(layers=("stage1", "stage2"))
    return IMacHSR(model.double(), example=nets.images().double(), num_classes=3, standard=standard, heterogeneity="off", **knobs)


def batch(which: str) -> tuple[Tensor, Tensor]:
    labels = nets.labels(5, 10, 10, seed=2, void=0.15).repeat_interleave(4, 1).repeat_interleave(4, 2)[:, 1:33, 3:35].contiguous()
    labels[1, :20] = 255  # unlike counts of valid pixels on the ranks
    labels[3] = 255
    labels[PARTS[0]] = torch.where(labels[PARTS[0]] == 2, 0, labels[PARTS[0]])  # a class that one rank alone sees
    if which == "one rank of void only":
        labels[PARTS[0]] = 255
    return nets.images(5).double(), labels


def gradients(net: nn.Module, parts: list[tuple[Tensor, Tensor]], of: Callable[[Any], Tensor] = lambda losses: losses.total) -> Grads:
    """Of the sum over micro-batches; all but the last without synchronisation."""
    for index, (images, labels) in enumerate(parts):
        is_last = index == len(parts) - 1
        with nullcontext() if is_last or not isinstance(net, DistributedDataParallel) else net.no_sync():
            (of(net(images, labels)) / len(parts)).backward()
    found = {name.removeprefix("module."): p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad(set_to_none=True)
    return found


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    found: dict[tuple[str, str], Any] = {}
    for case in CASES:
        # find_unused_parameters stays off: an adapter that the wrapped forward does not see would raise in the second step.
        net = DistributedDataParallel(build(case))
        for which in BATCHES:
            net.module.set_extra_state(torch.tensor(0))
            images, labels = batch(which)
            found[case, which] = gradients(net, [(images[PARTS[rank]], labels[PARTS[rank]])])
    images, labels = batch("void")
    found["accumulated", ""] = gradients(DistributedDataParallel(build(ACCUMULATED)), micro_batches(images[PARTS[rank]], labels[PARTS[rank]]))
    for case in MISSED:
        net = DistributedDataParallel(build(case), find_unused_parameters=True)
        net.module.backbone.is_skipped = rank == 1
        found["missed", case] = gradients(net, [(images[PARTS[rank]], labels[PARTS[rank]])])
    if rank == 0:
        with torch.no_grad():
            found["scored", ""] = build("side/dice").eval()(images[PARTS[0]], labels[PARTS[0]]).total
    torch.save(found, os.path.join(folder, f"{rank}.pt"))
    leave()


MISSED = ("side/prototype", "side/brier", "side/dice")
ACCUMULATED = "one loss a tap, by depth"


def micro_batches(images: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(images[:1], labels[:1]), (images[1:], labels[1:])]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str], Grads]]:
    folder: Path = tmp_path_factory.mktemp("ddp")
    mp.spawn(work, args=(str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


def agree(found: Grads, expected: Grads) -> None:
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(
            found[name], grad, rtol=1e-7, atol=1e-10 * max(1.0, grad.abs().max().item()), msg=lambda m, name=name: f"{name}: {m}"
        )


def differs(one: Grads, other: Grads) -> bool:
    return any(not torch.allclose(one[name], other[name], rtol=1e-3, atol=1e-9) for name in one)


@pytest.mark.parametrize("which", BATCHES)
@pytest.mark.parametrize("case", EXACT)
def test_the_gradient_is_that_of_one_process_on_the_joined_batch(case: str, which: str, ranks: Any) -> None:
    alone = gradients(build(case), [batch(which)])
    if CASES[case]["alpha"] > 0:
        assert any(name.startswith("adapters.") for name in alone) or CASES[case]["loss"].kind == "affinity"
    assert all(bool(grad.any()) for name, grad in alone.items() if not name.endswith(".bias"))
    for rank in ranks:
        agree(rank[case, which], alone)


@pytest.mark.parametrize("case", [case for case in EXACT if KINDS[case] not in {"cross_entropy", "brier"}])
def test_a_plain_mean_of_the_ranks_would_be_another_gradient(case: str) -> None:
    """The batch is uneven enough that each exact loss is told from one that each rank takes by itself."""
    images, labels = batch("void")
    alone = gradients(build(case), [(images, labels)])
    own = [gradients(build(case), [(images[part], labels[part])]) for part in PARTS]
    assert differs(alone, {name: (own[0][name] + own[1][name]) / 2 for name in alone})


@pytest.mark.parametrize("which", BATCHES)
@pytest.mark.parametrize("case", [case for case in CASES if KINDS[case] in OF_EACH_RANK])
def test_a_loss_of_each_rank_says_so_and_is_the_mean_of_the_ranks(case: str, which: str, ranks: Any) -> None:
    loss = CASES[case]["output_loss" if case.startswith("output/") else "loss"]
    loss = loss if not isinstance(loss, str) else None
    text = " ".join(type(loss).__doc__.split())
    assert any(phrase in text for phrase in ("Each rank", "each rank"))
    images, labels = batch(which)
    own = [gradients(build(case), [(images[part], labels[part])]) for part in PARTS]
    has_labels = [bool((labels[part] != 255).any()) for part in PARTS]
    # Contrast is a mean over the anchors of all ranks, here as many on each that has labels.
    shares = [has / sum(has_labels) if KINDS[case] == "infonce" else 1 / WORLD for has in has_labels]
    expected = {name: sum(share * grads[name] for share, grads in zip(shares, own, strict=True)) for name in own[1]}
    assert any(bool(grad.any()) for grad in expected.values())
    for rank in ranks:
        agree(rank[case, which], expected)


@pytest.mark.parametrize("which", BATCHES)
@pytest.mark.parametrize("case", CASES)
def test_both_ranks_hold_the_same_gradient(case: str, which: str, ranks: Any) -> None:
    first, second = (rank[case, which] for rank in ranks)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_accumulated_gradients_are_the_mean_of_the_joined_micro_batches(ranks: Any) -> None:
    images, labels = batch("void")
    split = [micro_batches(images[part], labels[part]) for part in PARTS]
    joined = [(torch.cat([a, b]), torch.cat([y, z])) for (a, y), (b, z) in zip(*split, strict=True)]
    alone = gradients(build(ACCUMULATED), joined)
    for rank in ranks:
        agree(rank["accumulated", ""], alone)
    # A mean of means is not the mean over all valid pixels where the micro-batches hold unlike numbers of them.
    assert differs(alone, gradients(build(ACCUMULATED), [(images, labels)]))


def test_scoring_takes_no_part_in_sums_over_the_ranks(ranks: Any) -> None:
    """Outside of training each process may score batches of its own, and another number of them: the first rank scores alone."""
    images, labels = batch("void")
    with torch.no_grad():
        alone = build("side/dice").eval()(images[PARTS[0]], labels[PARTS[0]]).total
    assert ranks[0]["scored", ""].item() == pytest.approx(alone.item(), rel=1e-12)


@pytest.mark.parametrize("case", MISSED)
def test_a_tap_that_fires_on_one_rank_only_is_that_ranks_own_affair(case: str, ranks: Any) -> None:
    """The other rank takes no part in its sums: they would wait, or be added to another tap's."""
    images, labels = batch("void")
    alone = gradients(build(case), [(images[PARTS[0]], labels[PARTS[0]])])
    for rank in ranks:
        found = rank["missed", case]
        agree(
            {name: found[name] for name in found if name.startswith("adapters.1")}, {n: g / 2 for n, g in alone.items() if n.startswith("adapters.1")}
        )
        assert all(bool(torch.isfinite(gradient).all()) for gradient in found.values())
    agree(ranks[0]["missed", case], ranks[1]["missed", case])
