"""The loop as one of two ranks of torch.distributed (gloo), without Ray; what the ranks did is in ranks.py."""

import json
import math
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from imachsr import ExplicitStandard, IMacHSR
from imachsr.config.schema import ConfigError
from imachsr.train import checkpoint
from imachsr.train.evaluate import evaluate
from imachsr.train.loop import train
from imachsr.train.metrics import ConfusionMatrix
from imachsr.train.parallel import synchronise_batch_norm
from tests.train import ranks
from tests.train.toys import Tiny, toy_run, without_clock

pytestmark = pytest.mark.long
Ranks = list[dict[str, Any]]
EXACT = [name for name in ranks.CASES if name != "batch norm"]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("imachsr.train.epochs.POLL_S", 0.0)
        assert ranks.broken(toy_run(**ranks.MOVED), folder / "one", 3) == "TrainingStopped: stopped after step 3"
        assert ranks.broken(toy_run(**ranks.SHARDED), folder / "fsdp121", 1) == "TrainingStopped: stopped after step 1"
    mp.spawn(ranks.work, args=(str(folder),), nprocs=2)
    return [
        {
            **json.loads((folder / f"rank{rank}.json").read_text()),
            "weights": torch.load(folder / f"weights{rank}.pt", weights_only=True),
            "folder": folder,
        }
        for rank in range(2)
    ]


def rows(history: Any) -> list[dict[str, float]]:
    return [without_clock(row) for row in history]


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Of all weights, relative to the first ones'."""
    pairs = [(one[key], other[key]) for key in one if key.endswith(("weight", "bias"))]
    return math.sqrt(sum(float((a - b).square().sum()) for a, b in pairs) / sum(float(a.square().sum()) for a, _ in pairs))


@pytest.mark.parametrize("name", EXACT)
def test_twenty_steps_on_two_ranks_are_those_of_one_process_on_the_joined_batch(two_ranks: Ranks, name: str) -> None:
    case = ranks.CASES[name]
    one = ranks.steps(case, accumulate=1)
    first, second = (found["weights"][name] for found in two_ranks)
    torch.testing.assert_close({**first, "_extra_state": 0}, {**one, "_extra_state": 0}, rtol=1e-10, atol=1e-12)
    assert all(torch.equal(first[key], second[key]) for key in first if key != "_extra_state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "STEPS", 0)
        assert distance(ranks.steps(case), one) > 1e-3  # it went somewhere


def test_ordinary_batch_norm_sees_each_ranks_images_alone(two_ranks: Ranks) -> None:
    one = ranks.steps(ranks.CASES["batch norm"])
    assert 1e-4 < distance(one, two_ranks[0]["weights"]["batch norm"]) < 1e-2


@pytest.mark.parametrize("name", ranks.PER_RANK)
def test_losses_of_each_rank_train_the_same_weights_on_both(two_ranks: Ranks, name: str) -> None:
    first, second = (found["weights"][name] for found in two_ranks)
    for key in first.keys() - {"_extra_state"}:
        assert torch.equal(first[key], second[key])
        assert bool(first[key].isfinite().all())
    assert two_ranks[0]["ohem"] == two_ranks[1]["ohem"] > 0


def test_flags_counts_and_rows_are_shared(two_ranks: Ranks) -> None:
    for found in two_ranks:
        assert found["agree"] == [True, True, False]
        assert found["summed"] == [0 + 1, 5 + 5]
        assert found["mean"] == {"both": 0.5, "only0": 5.0, "only1": 5.0}


def test_the_confusion_matrix_summed_over_ranks_is_that_of_one_process(two_ranks: Ranks) -> None:
    matrix = ConfusionMatrix(3)
    matrix.update(*ranks.pixels(0))
    assert [found["counts"] for found in two_ranks] == [matrix.counts.tolist()] * 2


@pytest.mark.parametrize(("key", "indices"), [("score", [0, 1, 2, 3, 4]), ("one sample", [0])])
def test_scores_over_ranks_are_those_of_one_process(two_ranks: Ranks, key: str, indices: list[int]) -> None:
    assert two_ranks[0][key] == two_ranks[1][key] == pytest.approx(ranks.score_of(indices))


def test_all_ranks_report_the_same_and_are_told_the_same(two_ranks: Ranks) -> None:
    for key in two_ranks[0].keys() - {"weights", "damaged"}:
        assert two_ranks[0][key] == two_ranks[1][key], key


def test_two_ranks_train_as_one_process_with_the_same_global_batch(two_ranks: Ranks) -> None:
    for one, two in zip(train(toy_run(**ranks.RUN)).history, two_ranks[0]["rows"], strict=True):
        assert without_clock(two).keys() == without_clock(one).keys()
        losses = [key for key in one if key.endswith(("loss", "output", "side", "entropy", "lr"))]
        assert len(losses) > 6
        assert {key: two[key] for key in losses} == pytest.approx({key: one[key] for key in losses}, rel=1e-4)


def test_parameters_without_a_gradient_do_not_break_training_on_ranks(two_ranks: Ranks) -> None:
    assert two_ranks[0]["unused"][0]["train/loss"] == pytest.approx(two_ranks[0]["rows"][0]["train/loss"], rel=0.5)


@pytest.mark.parametrize("name", ["normed", "both"])
def test_the_score_of_a_model_with_batch_norm_is_that_of_its_checkpoint(two_ranks: Ranks, name: str) -> None:
    # Ranks gather statistics of other images, also in the mean of the weights; scored and saved must be one model all the same.
    row = two_ranks[0][name][-1]
    found = evaluate(two_ranks[0]["folder"] / name)
    assert found == pytest.approx({key: value for key, value in row.items() if key.startswith("val/")}, rel=1e-6)


def test_ranks_that_were_stopped_and_resumed_end_bitwise_like_unbroken_ones(two_ranks: Ranks) -> None:
    found = two_ranks[0]
    for name in ("both", "fsdp"):
        assert found[f"{name} stopped"] == "TrainingStopped: stopped after step 3"
        assert rows(found[f"{name} resumed"]) == rows(found[name])
        one, other = (checkpoint.load(found["folder"] / folder) for folder in (name, f"{name}2"))
        for part in ("net", "ema") if one["ema"] else ("net",):
            assert all(torch.equal(one[part][key], value) for key, value in other[part].items() if isinstance(value, torch.Tensor))


def test_a_training_goes_on_with_another_number_of_ranks(two_ranks: Ranks) -> None:
    found, whole = two_ranks[0], rows(train(toy_run(**ranks.MOVED)).history)
    assert found["2 to 1"] == "TrainingStopped: stopped after step 3"
    assert json.loads(checkpoint.load(found["folder"] / "two")["progress"])[1]["counts"]["train/loss"] == 1
    seen: list[int] = []
    back = train(toy_run(**ranks.MOVED), output=found["folder"] / "two", resume=True, on_step=lambda step, steps: seen.append(step))
    assert seen == [4, 5, 6]
    for history in (found["1 to 2"], back.history):
        for one, two in zip(whole, rows(history), strict=True):
            assert two == pytest.approx(one, rel=1e-3)


def test_sharded_weights_train_as_whole_ones_and_are_saved_whole(two_ranks: Ranks) -> None:
    found = two_ranks[0]
    for whole, sharded in zip(rows(found["ddp"]), rows(found["fsdp"]), strict=True):
        assert sharded == pytest.approx(whole, rel=1e-4)
    state, other = (checkpoint.load(found["folder"] / name) for name in ("fsdp", "ddp"))
    shapes = {key: value.shape for key, value in other["net"].items() if isinstance(value, torch.Tensor)}
    assert {key: value.shape for key, value in state["net"].items() if isinstance(value, torch.Tensor)} == shapes
    scores = evaluate(found["folder"] / "fsdp")
    assert scores == pytest.approx({key: value for key, value in found["fsdp"][-1].items() if key.startswith("val/")}, rel=1e-5)


def test_what_does_not_go_with_sharding_or_ranks_is_refused(two_ranks: Ranks) -> None:
    found = two_ranks[0]
    assert "must be continued with `compute.parallel` = ddp, but got fsdp" in found["ddp under fsdp"]
    assert "`optimizer.ema` must be null under `compute.parallel` = fsdp, where no worker has all weights; use ddp" in found["ema under fsdp"]
    assert "`compute.sync_batch_norm` must be off on CPUs, where torch has no SyncBatchNorm, but is on; or use GPUs" in found["sync"]
    told = "`optimizer.accumulate` must be at most 2, the samples of a step that the smallest share of 2 workers has, but got 3"
    assert told in found["too many parts"]
    with pytest.raises(ConfigError, match="must be continued with `compute.parallel` = fsdp, but got ddp"):
        train(toy_run(**{**ranks.SHARDED, "compute__parallel": "ddp"}), output=found["folder"] / "fsdp", resume=True)


def test_a_sharded_training_goes_on_from_one_rank_where_nothing_is_sharded_and_on_one_again(two_ranks: Ranks) -> None:
    found = two_ranks[0]
    assert found["fsdp 1 to 2"] == "TrainingStopped: stopped after step 3"
    back = train(toy_run(**ranks.SHARDED), output=found["folder"] / "fsdp121", resume=True)
    for one, moved in zip(rows(found["fsdp"]), rows(back.history), strict=True):
        assert moved == pytest.approx(one, rel=1e-3)
    one, other = (checkpoint.load(found["folder"] / name) for name in ("fsdp", "fsdp121"))
    for key, value in one["net"].items():
        if key != "balance._extra_state":  # what the last backward of one rank showed, which sees its own part of a batch
            torch.testing.assert_close(other["net"][key], value, rtol=1e-3, atol=1e-5)
    moments = [state["optimizer"]["state"]["backbone.head.weight"] for state in (one, other)]
    assert set(moments[0]) == {"step", "exp_avg", "exp_avg_sq"}
    torch.testing.assert_close(moments[1], moments[0], rtol=1e-2, atol=1e-6)


def test_rank_0s_checkpoint_is_that_of_all_and_one_that_it_alone_does_not_see_is_told(two_ranks: Ranks) -> None:
    found = two_ranks[0]
    assert rows(found["late"]) == rows(found["both"])  # as on a shared disk that has not shown it to rank 1 yet
    assert "must be a folder that all workers share, but worker 1 sees a checkpoint in" in found["apart"]
    assert found["damaged"] == two_ranks[1]["damaged"]
    assert "must hold a whole checkpoint, but" in found["damaged"]


def test_one_ranks_nan_is_told_by_both_and_names_where_it_comes_from(two_ranks: Ranks) -> None:
    found = two_ranks[0]
    assert found["nan"].startswith("FloatingPointError: every term must be finite, but output loss is nan; side loss of tap 'first.1' is nan")
    assert found["nan"].endswith("; the state after step 2 is kept: --resume with recovery.nonfinite=skip goes on behind the next")
    assert "the gradient of the backbone must be finite, but its norm is nan" in found["nan back"]


def test_both_ranks_leave_out_the_step_of_one_ranks_nan(two_ranks: Ranks) -> None:
    found = two_ranks[0]
    assert rows(found["nan resumed"]) == rows(found["nan skipped"])
    for name in ("nan skipped", "nan fsdp"):
        assert [row["train/nonfinite"] for row in found[name]] == [1, 2]
        assert all(math.isfinite(value) for row in found[name] for value in row.values())


def test_nothing_of_a_step_that_is_left_out_stays_in_sharded_gradients(two_ranks: Ranks) -> None:
    """Not those of the micro-batches before the one that was not finite."""
    (whole,), (sharded,) = (two_ranks[0][f"nan late {parallel}"] for parallel in ("ddp", "fsdp"))
    assert whole["train/nonfinite"] == sharded["train/nonfinite"] == 1
    # Biases before BatchNorm have no gradient but rounding, which AdamW makes large: 0.0003 of the loss; what had stayed was 0.004.
    assert sharded["val/loss"] == pytest.approx(whole["val/loss"], rel=1e-3)


def test_conversion_to_sync_batch_norm_keeps_taps_and_numbers() -> None:
    def make() -> IMacHSR:
        torch.manual_seed(0)
        model = Tiny(3, has_batch_norm=True)
        standard = ExplicitStandard(layers=("first.1", "second.1"))
        return IMacHSR(model, example=torch.randn(2, 3, 32, 32), num_classes=3, standard=standard, loss="dice").train()

    plain, converted = make(), make()
    assert synchronise_batch_norm(converted) is converted
    assert [type(converted.backbone.get_submodule(name)) for name in ("first.1", "second.1")] == [nn.SyncBatchNorm] * 2
    assert converted.state_dict().keys() == plain.state_dict().keys()
    images, labels = torch.randn(2, 3, 32, 32), torch.randint(0, 3, (2, 32, 32))
    one, other = plain(images, labels), converted(images, labels)
    assert other.side.keys() == {"first.1", "second.1"}
    assert other.total.item() == one.total.item()
