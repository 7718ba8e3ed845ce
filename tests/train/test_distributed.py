"""The loop as one of two ranks of torch.distributed (gloo), without Ray."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from imachsr.data.samples import Samples
from imachsr.train.evaluate import evaluate, score
from imachsr.train.loop import _mean_over_ranks, train
from imachsr.train.metrics import ConfusionMatrix
from tests.processes import leave
from tests.train.toys import Bands, Tiny, toy_run, without_clock

RUN = {"optimizer__epochs": 2, "augment__flip": 0.5}
UNUSED = {**RUN, "model__kwargs": {"has_unused": True}, "optimizer__epochs": 1}
NORMED = {**RUN, "model__kwargs": {"has_batch_norm": True}, "data__kwargs": {"count": 24, "num_val": 6}}
DROPOUT = {**RUN, "model__kwargs": {"dropout": 0.5}, "optimizer__epochs": 2}


def _pixels(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (6, 8, 8), generator=generator)
    labels[labels == 3] = 255
    return torch.randint(0, 3, (6, 8, 8), generator=generator), labels


def _samples() -> Samples:
    return Bands(num_val=5).load("val")


def _score(samples: Samples) -> dict[str, float]:
    from imachsr.config.build import output_loss
    from imachsr.train.device import Placement

    torch.manual_seed(0)
    placement = Placement(device="cpu", is_bfloat16=False, is_channels_last=False)
    return score(Tiny(3), samples, Bands().class_names, loss=output_loss(toy_run()), placement=placement, prefix="val")


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    matrix = ConfusionMatrix(3)
    predicted, labels = _pixels(0)
    matrix.update(predicted[rank::2], labels[rank::2])
    matrix.sum_over_ranks()
    found: dict[str, Any] = {"counts": matrix.counts.tolist(), "mean": _mean_over_ranks({"both": rank, f"only{rank}": 5.0})}
    found["score"] = _score(_samples())
    found["one_sample"] = _score(_samples().subset([0]))
    for name, settings in (("rows", RUN), ("unused", UNUSED)):
        found[name] = train(toy_run(**settings), output=Path(folder) / name).history
    found["normed"] = train(toy_run(**NORMED), output=Path(folder) / "normed").history
    found["dropout"] = train(toy_run(**DROPOUT), output=Path(folder) / "dropout", report=lambda row: _keep(row, Path(folder), rank)).history
    dist.barrier()
    if rank == 0:
        os.replace(Path(folder) / "first.pt", Path(folder) / "dropout" / "checkpoint.pt")
    dist.barrier()
    found["resumed"] = train(toy_run(**DROPOUT), output=Path(folder) / "dropout", resume=True).history
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps(found))
    leave()


def _keep(row: dict[str, float], folder: Path, rank: int) -> None:
    if rank == 0 and row["epoch"] == 1:
        (folder / "first.pt").write_bytes((folder / "dropout" / "checkpoint.pt").read_bytes())


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("gloo")
    mp.spawn(_rank, args=(str(folder),), nprocs=2)
    return [{**json.loads((folder / f"rank{rank}.json").read_text()), "folder": str(folder)} for rank in range(2)]


def test_the_confusion_matrix_summed_over_ranks_is_that_of_one_process(ranks: list[dict[str, Any]]) -> None:
    matrix = ConfusionMatrix(3)
    matrix.update(*_pixels(0))
    assert [found["counts"] for found in ranks] == [matrix.counts.tolist()] * 2


def test_scores_over_ranks_are_those_of_one_process(ranks: list[dict[str, Any]]) -> None:
    expected = _score(_samples())
    assert ranks[0]["score"] == ranks[1]["score"] == pytest.approx(expected)


def test_a_rank_without_samples_reports_the_others_score(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["one_sample"] == ranks[1]["one_sample"] == pytest.approx(_score(_samples().subset([0])))


def test_a_mean_over_ranks_counts_a_key_where_it_is(ranks: list[dict[str, Any]]) -> None:
    assert [found["mean"] for found in ranks] == [{"both": 0.5, "only0": 5.0, "only1": 5.0}] * 2


def test_all_ranks_report_the_same_rows(ranks: list[dict[str, Any]]) -> None:
    for name in ("rows", "unused", "normed", "dropout", "resumed"):
        assert ranks[0][name] == ranks[1][name]


def test_two_ranks_train_as_one_process_with_the_same_global_batch(ranks: list[dict[str, Any]]) -> None:
    # Means over pixels differ a little where ranks have unequal numbers of valid ones; without padding there are none, and Dice is the exception.
    alone = train(toy_run(**RUN)).history
    for one, two in zip(alone, ranks[0]["rows"], strict=True):
        assert two["train/output"] == pytest.approx(one["train/output"], rel=0.02)
        assert two["val/loss"] == pytest.approx(one["val/loss"], rel=0.02)
        assert two["train/lr"] == one["train/lr"]
        assert without_clock(two).keys() == without_clock(one).keys()


def test_parameters_without_a_gradient_do_not_break_training_on_ranks(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["unused"][0]["train/loss"] == pytest.approx(ranks[0]["rows"][0]["train/loss"], rel=0.5)


def test_the_score_of_a_model_with_batch_norm_is_that_of_its_checkpoint(ranks: list[dict[str, Any]]) -> None:
    # Ranks gather statistics of other images; scored and saved must be one model all the same.
    row = ranks[0]["normed"][-1]
    found = evaluate(Path(ranks[0]["folder"]) / "normed")
    assert found == pytest.approx({key: value for key, value in row.items() if key.startswith("val/")}, rel=1e-6)


def test_resumed_ranks_draw_what_unbroken_ones_draw(ranks: list[dict[str, Any]]) -> None:
    for one, two in zip(ranks[0]["dropout"], ranks[0]["resumed"], strict=True):
        assert without_clock(two) == without_clock(one)
