"""FLOPs, saved bytes and the arithmetic on them, against hand counts."""

import re
import sys
from itertools import pairwise

import pytest
import torch
from torch import nn

from benchmarks import full_size
from benchmarks.full_size import Gpu, Work, epoch_s, measured, memory_gib, share_of, step_s, work_of
from imachsr.config.load import make_run
from imachsr.config.schema import Run

WORK = Work(flop=3e12, forward=1e12, method=1e10, saved=2 * 2**30, parameters=10**8)


@pytest.mark.parametrize(
    ("layer", "forward"),
    [
        (nn.Conv2d(8, 16, 3, padding=1), 2 * 20 * 20 * 16 * 8 * 9),
        (nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8), 2 * 20 * 20 * 8 * 9),
        (nn.Conv2d(8, 16, 3, stride=2, groups=2, padding=1), 2 * 10 * 10 * 16 * 4 * 9),
        (nn.ConvTranspose2d(8, 16, 2, stride=2), 2 * 20 * 20 * 8 * 16 * 4),
    ],
)
def test_a_convolution_costs_two_forwards_backward_whatever_its_groups(layer: nn.Module, forward: int) -> None:
    images = torch.randn(3, 8, 20, 20, requires_grad=True)
    ahead, both, _ = measured(layer, lambda: layer(images).float().sum())
    assert (ahead, both) == (3 * forward, 9 * forward)


def test_each_saved_tensor_counts_once_and_parameters_do_not() -> None:
    """x*x and x*3 save x (300 numbers of 4 bytes) alone, w*x the parameter and x."""
    module = nn.Module()
    module.w = nn.Parameter(torch.ones(300))
    images = torch.randn(300, requires_grad=True)
    _, _, saved = measured(module, lambda: (images * images + images * 3 + module.w * images).sum())
    assert saved == 1200


def run_of(**data: object) -> Run:
    model = {"architecture": "fpn", "encoder": "tu-mobilenetv3_small_100", "encoder_weights": "imagenet"}
    return make_run({"data": {"kind": "cityscapes", "root": "nowhere", **data}, "model": model, "method": {"standard": "resolution"}})


@pytest.mark.slow
def test_what_is_followed_to_full_size_is_what_is_measured_there() -> None:
    """Where tensors without contents and the line both end at a size that real tensors can be had of."""
    size, batch = (192, 320), full_size.LEAST
    found = work_of(run_of(size=size))
    net = full_size.net_of(run_of(size=size)).train()
    images, labels = torch.randn(batch, 3, *size), torch.randint(0, 19, (batch, *size))
    _, both, saved = measured(net, lambda: net(images, labels).total)
    assert found.flop == pytest.approx(both / batch, rel=0.01)
    assert found.saved == pytest.approx(saved / batch, rel=0.02)
    assert 0 < found.method < 0.1 * found.flop


def test_a_step_is_its_flops_and_what_of_the_exchange_shows() -> None:
    gpu = Gpu(tflops=100, use=0.5)
    assert step_s(WORK, 4, 1, gpu) == pytest.approx(0.24)
    # 400 MB cross 7/8 twice at 250 GB/s; a sixteenth of them, the last bucket, is not hidden.
    assert step_s(WORK, 4, 8, gpu) == pytest.approx(0.24 + 2 * 7 / 8 * 400e6 / 250e9 / 16)
    assert step_s(WORK, 4, 64, gpu) > step_s(WORK, 4, 8, gpu)


def test_an_epoch_shares_steps_and_scoring_out() -> None:
    gpu = Gpu(tflops=100, use=0.5, in_node=1e18)
    assert epoch_s(WORK, (100, 10), 8, 1, gpu) == pytest.approx(12 * 8 * 0.06 + 10 * 0.02)
    assert epoch_s(WORK, (100, 10), 16, 8, gpu) == pytest.approx(6 * 2 * 0.06 + 2 * 0.02)


def test_a_share_that_does_not_fit_is_split() -> None:
    gpu = Gpu(gib=24, reserve=4)
    assert memory_gib(WORK, 8, gpu) == pytest.approx(16 * 10**8 / 2**30 + 16 + 4)
    assert share_of(WORK, 16, 1, gpu) == (8, 2)
    assert share_of(WORK, 16, 8, gpu) == (2, 1)
    assert share_of(WORK, 16, 64, gpu) == (2, 1)


def test_the_table_has_a_row_for_each_recipe_and_number_of_gpus(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(full_size, "work_of", lambda run: WORK)
    monkeypatch.setattr(sys, "argv", ["full_size.py", "--price", "3", "--gpu", "H200"])
    full_size.main()
    out = capsys.readouterr().out
    assert "Computed for H200" in out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.split("Computed")[1].splitlines() if line.startswith("| ")][1:]
    assert [row[:2] for row in rows] == [[recipe, gpus] for recipe in full_size.RECIPES for gpus in ("1", "8", "64")]
    for recipe in full_size.RECIPES:
        assert all(float(one[6]) > float(other[6]) for one, other in pairwise(row for row in rows if row[0] == recipe))
    assert all(float(row[8]) == pytest.approx(3 * float(row[7]), abs=0.02) for row in rows)


def test_a_sampled_trial_takes_what_its_rungs_leave_it() -> None:
    search = full_size.load_search(
        full_size.ROOT / "search_spaces/cityscapes.yaml", ["scheduler={grace: 5, reduction: 3}", "run.optimizer.epochs=45"]
    )
    assert full_size.mean_epochs(search) == pytest.approx(5 + 10 / 3 + 30 / 9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--use", "0"], "`--use > 0` must hold, but got 0"),
        (["--use", "35"], "`--use <= 1` must hold, but got 35"),
        (["launch/nothing.yaml"], "a recipe must be a file of this repository .* but got launch/nothing.yaml"),
    ],
)
def test_a_wrong_option_is_told(options: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["full_size.py", *options])
    with pytest.raises(SystemExit):
        full_size.main()
    assert re.search(message, capsys.readouterr().err)
