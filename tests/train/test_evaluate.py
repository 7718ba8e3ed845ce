"""Scores of any number of ranks, which are forked here; see test_loop.py for those of a finished training."""

import json
import multiprocessing as mp
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from imachsr import DepthStandard, IMacHSR
from imachsr.config.training import Compute
from imachsr.core.output import CrossEntropy, Ohem, OutputDice
from imachsr.data.samples import Samples
from imachsr.data.transforms import normalize
from imachsr.train.device import Placement
from imachsr.train.parallel import parallelise
from imachsr.train.score import images_at_once, score
from tests.processes import leave
from tests.train.toys import Bands, Tiny, toy_run

CPU = Placement(device="cpu", is_bfloat16=False, is_channels_last=False)
FORK = mp.get_context("fork")
NAMES = Bands().class_names


class Precise(nn.Module):
    """In float64, where what the size of a batch does to the rounding of a forward does not show; its output has the form that a test wants."""

    def __init__(self, form: Callable[[Tensor], Any] = lambda scores: scores) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model, self.form = Tiny(3).double(), form

    def forward(self, images: Tensor) -> Any:
        return self.form(self.model(images.double()))


def supervised() -> IMacHSR:
    torch.manual_seed(0)
    return IMacHSR(Tiny(3), example=torch.zeros(2, 3, 32, 32), num_classes=3, standard=DepthStandard(max_taps=2), loss="dice")


def voided(count: int) -> Samples:
    """Images with unlike numbers of valid pixels, the fourth without any."""
    samples = Bands(num_val=count).load("val")
    labels = samples.labels.clone()
    for image in range(count):
        labels[image, : image % 30] = 255
    labels[3:4] = 255
    return Samples(images=samples.images, labels=labels, names=samples.names)


def nan_of_void(output: Tensor, labels: Tensor) -> Tensor:
    """A user's loss, which is NaN without a valid pixel."""
    return F.cross_entropy(output, labels, ignore_index=255)


def scores(count: int, loss: Callable[..., Any], model: nn.Module | None = None) -> dict[str, float]:
    def called(output: Any, labels: Tensor, *, ignore_index: int) -> Any:
        return loss(output, labels) if loss is nan_of_void else loss(output, labels, ignore_index=ignore_index)

    return score(model or Precise(), voided(count), NAMES, loss=called, placement=CPU, prefix="val")


def on_ranks(world: int, folder: Path, work: Callable[[], dict[str, Any]]) -> list[dict[str, Any]]:
    """What each rank gives; those that wait for each other in vain fail."""

    def rank_of(rank: int) -> None:
        store = f"file://{folder}/store"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=timedelta(seconds=20))
        (folder / f"{rank}.json").write_text(json.dumps(work()))
        leave()

    started = [FORK.Process(target=rank_of, args=(rank,)) for rank in range(world)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0] * world
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]


@pytest.mark.parametrize("count", [33, 1], ids=["one image more than two batches a rank", "fewer images than ranks"])
def test_sharded_models_are_scored_whatever_the_shares_of_the_ranks_are(tmp_path: Path, count: int) -> None:
    def work() -> dict[str, float]:
        return scores(count, CrossEntropy(), parallelise(supervised(), Compute(parallel="fsdp"), CPU))

    first, second = on_ranks(2, tmp_path, work)
    assert first == second == pytest.approx(scores(count, CrossEntropy(), supervised()), rel=1e-5)


@pytest.mark.parametrize("world", [2, 4])
def test_the_loss_does_not_depend_on_the_number_of_ranks(tmp_path: Path, world: int) -> None:
    losses: dict[str, Callable[..., Any]] = {"cross": CrossEntropy(), "dice": OutputDice(), "ohem": Ohem(), "own": nan_of_void}

    def work() -> dict[str, Any]:
        return {name: scores(37, loss) for name, loss in losses.items()}

    alone = work()
    for found in on_ranks(world, tmp_path, work):
        for name, row in alone.items():
            assert found[name] == pytest.approx(row, rel=1e-13), name


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_scores_do_not_depend_on_the_images_at_a_time(batch: int) -> None:
    seen: list[int] = []

    class Counted(Precise):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(len(images))
            found: Tensor = super().forward(images)
            return found

    given = {"loss": CrossEntropy(), "placement": CPU, "prefix": "val"}
    many, few = (score(Counted().eval(), voided(37), Bands().class_names, batch=each, **given) for each in (37, batch))
    assert few == pytest.approx(many, rel=1e-12)
    assert seen[1:] == [min(batch, 37 - start) for start in range(0, 37, batch)]


@pytest.mark.parametrize(
    ("dotted", "workers", "expected"),
    [
        ({}, 1, 16),
        ({"optimizer__batch_size": 8}, 3, 6),
        ({"optimizer__batch_size": 8, "optimizer__accumulate": 2}, 2, 4),
        ({"optimizer__batch_size": 64}, 1, 16),
        ({"optimizer__batch_size": 1}, 1, 2),
        ({"scoring__batch_size": 40}, 4, 40),
    ],
)
def test_twice_a_steps_images_are_scored_at_a_time_unless_something_is_said(dotted: dict[str, Any], workers: int, expected: int) -> None:
    assert images_at_once(toy_run(**{"optimizer__batch_size": 8, **dotted}), workers=workers) == expected


def test_cross_entropy_is_the_mean_over_all_valid_pixels_of_the_split() -> None:
    samples = voided(37)
    with torch.no_grad():
        logits = Precise().eval()(normalize(samples.images))
    expected = F.cross_entropy(logits, samples.labels.long(), ignore_index=255).item()
    for loss in (CrossEntropy(), nan_of_void):
        assert scores(37, loss)["val/loss"] == pytest.approx(expected, rel=1e-12)


def test_another_loss_is_that_of_each_image_weighted_by_its_valid_pixels() -> None:
    samples, model = voided(20), Precise().eval()
    total, pixels = 0.0, 0
    for image, labels in zip(normalize(samples.images), samples.labels.long(), strict=True):
        with torch.no_grad():
            total += OutputDice()(model(image[None]), labels[None]).item() * int((labels != 255).sum())
        pixels += int((labels != 255).sum())
    assert scores(20, OutputDice())["val/loss"] == pytest.approx(total / pixels, rel=1e-12)


def test_without_a_valid_pixel_the_loss_is_0() -> None:
    samples = voided(4).subset([3])
    row = score(Precise(), samples, NAMES, loss=CrossEntropy(), placement=CPU, prefix="val")
    assert row["val/loss"] == 0.0


@pytest.mark.parametrize(
    ("form", "factor"),
    [
        (lambda scores: {"out": scores, "aux": scores}, 1.4),
        (lambda scores: (scores, scores.mean(), "more"), 1.0),
        (lambda scores: SimpleNamespace(logits=scores), 1.0),
    ],
    ids=["with aux", "tuple", "object"],
)
def test_outputs_of_every_form_are_cut_into_images(form: Callable[[Tensor], Any], factor: float) -> None:
    plain = scores(20, CrossEntropy())["val/loss"]
    assert scores(20, CrossEntropy(), Precise(form))["val/loss"] == pytest.approx(factor * plain, rel=1e-12)
