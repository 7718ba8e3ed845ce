import math

import pytest
import torch

from imachsr.train.metrics import ConfusionMatrix, Reliability


def slow_iou(predicted: list[int], labels: list[int], classes: int) -> list[float]:
    """From the definition: |A and B| / |A or B| over the pixels that count."""
    found = []
    for k in range(classes):
        pairs = [(p == k, y == k) for p, y in zip(predicted, labels, strict=True) if y != 255]
        union = sum(p or y for p, y in pairs)
        found.append(100 * sum(p and y for p, y in pairs) / union if union else math.nan)
    return found


@pytest.mark.parametrize("classes", [2, 3, 11])
@pytest.mark.parametrize("seed", range(3))
def test_iou_accuracy_and_counts_are_those_of_a_loop_over_pixels(classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    predicted = torch.randint(0, classes, (3, 5, 7), generator=generator)
    labels = torch.randint(0, classes, (3, 5, 7), generator=generator)
    labels[torch.rand(3, 5, 7, generator=generator) < 0.2] = 255
    matrix = ConfusionMatrix(classes)
    for one, other in zip(predicted, labels, strict=True):
        matrix.update(one[None], other[None])
    flat, truth = predicted.flatten().tolist(), labels.flatten().tolist()
    assert matrix.iou().tolist() == pytest.approx(slow_iou(flat, truth, classes), nan_ok=True)
    right = [p == y for p, y in zip(flat, truth, strict=True) if y != 255]
    assert matrix.accuracy() == pytest.approx(100 * sum(right) / len(right))
    for p in range(classes):
        for y in range(classes):
            assert matrix.counts[y, p] == sum(a == p and b == y for a, b in zip(flat, truth, strict=True))


def test_a_class_that_is_neither_labelled_nor_predicted_does_not_count_in_the_mean() -> None:
    matrix = ConfusionMatrix(4)
    matrix.update(torch.tensor([[[0, 0, 1, 1]]]), torch.tensor([[[0, 0, 1, 0]]]))
    assert matrix.iou().isnan().tolist() == [False, False, True, True]
    assert matrix.miou() == pytest.approx((200 / 3 + 50) / 2)


def test_a_class_that_is_only_predicted_counts_as_zero() -> None:
    matrix = ConfusionMatrix(3)
    matrix.update(torch.tensor([[[0, 2]]]), torch.tensor([[[0, 0]]]))
    assert matrix.iou().tolist() == pytest.approx([50, math.nan, 0], nan_ok=True)
    assert matrix.miou() == pytest.approx(25)


def test_without_a_counted_pixel_every_score_is_nan() -> None:
    matrix = ConfusionMatrix(3)
    matrix.update(torch.zeros(1, 2, 2, dtype=torch.long), torch.full((1, 2, 2), 255))
    assert math.isnan(matrix.miou())
    assert math.isnan(matrix.accuracy())


def test_what_is_predicted_on_ignored_pixels_does_not_matter() -> None:
    labels = torch.tensor([[[0, 1, 255, 255]]])
    rows = []
    for filler in (0, 1, 99):  # a model may have more outputs than classes where nobody looks
        matrix = ConfusionMatrix(2)
        matrix.update(torch.tensor([[[0, 1, filler, filler]]]), labels)
        rows.append(matrix.counts.tolist())
    assert rows == [[[1, 0], [0, 1]]] * 3


@pytest.mark.parametrize(
    ("predicted", "label", "message"),
    [
        (3, 0, "`0 <= predicted < 3` must hold.*got 3"),
        (0, 3, "`0 <= labels < 3` must hold.*got 3"),
        (0, -100, "`0 <= labels < 3` must hold.*got -100"),
    ],
)
def test_a_value_outside_the_classes_is_refused_and_not_counted_elsewhere(predicted: int, label: int, message: str) -> None:
    matrix = ConfusionMatrix(3)
    with pytest.raises(ValueError, match=message):
        matrix.update(torch.tensor([[[0, predicted]]]), torch.tensor([[[0, label]]]))
    assert matrix.counts.sum() == 0


def slow_ece(logits: torch.Tensor, labels: torch.Tensor, bins: int) -> float:
    """Pixel by pixel, as the formula says."""
    kept: dict[int, list[tuple[float, bool]]] = {}
    for scores, label in zip(logits.movedim(1, -1).reshape(-1, logits.shape[1]), labels.flatten().tolist(), strict=True):
        if label != 255:
            probability = scores.double().softmax(0)
            confidence = float(probability.max())
            kept.setdefault(min(int(confidence * bins), bins - 1), []).append((confidence, int(probability.argmax()) == label))
    total = sum(map(len, kept.values()))
    gaps = [abs(sum(right for _, right in each) - sum(sure for sure, _ in each)) for each in kept.values()]
    return 100 * sum(gaps) / total


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_the_calibration_error_is_that_of_the_formula_in_any_batches(bins: int) -> None:
    generator = torch.Generator().manual_seed(bins)
    logits = 3 * torch.randn(4, 5, 6, 7, generator=generator)
    labels = torch.randint(0, 5, (4, 6, 7), generator=generator)
    labels[:, :2] = 255
    whole, parts = Reliability(bins), Reliability(bins)
    whole.update(logits, labels)
    for each in range(4):
        parts.update(logits[each : each + 1], labels[each : each + 1])
    assert whole.ece() == pytest.approx(slow_ece(logits, labels, bins), abs=1e-4)
    assert parts.ece() == pytest.approx(whole.ece(), abs=1e-9)


def test_a_model_that_is_sure_and_right_is_calibrated_and_one_that_is_sure_and_wrong_is_not() -> None:
    labels = torch.arange(3).repeat(2, 4, 1)
    sure = 100.0 * torch.nn.functional.one_hot(labels, 3).movedim(-1, 1)
    right, wrong = Reliability(), Reliability()
    right.update(sure, labels)
    wrong.update(sure, (labels + 1) % 3)
    assert right.ece() == pytest.approx(0)
    assert wrong.ece() == pytest.approx(100)
    assert Reliability().ece() != Reliability().ece()  # NaN
