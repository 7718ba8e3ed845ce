import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F

from imachsr.train.metrics import BoundaryIoU, ConfusionMatrix, NegativeLogLikelihood, Reliability


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
    assert wrong.bins() == [{"pixels": 24, "confidence": pytest.approx(100), "right": 0}]
    assert Reliability().bins() == []


def slow_boundary_iou(predicted: torch.Tensor, labels: torch.Tensor, classes: int, width: int) -> list[float]:
    """From the definition: masks eroded one class and image at a time, by scipy; the border of the image is outside of every mask."""
    sums = np.zeros((classes, 2))
    for p, y in zip(predicted.numpy(), labels.numpy(), strict=True):
        is_valid = y != 255
        for k in range(classes):
            bands = []
            for classes_of in (y, p):
                mask = (classes_of == k) & is_valid
                eroded = ndimage.binary_erosion(mask | ~is_valid, np.ones((3, 3)), iterations=width, border_value=0)
                bands.append(mask & ~eroded)
            sums[k] += [(bands[0] & bands[1]).sum(), (bands[0] | bands[1]).sum()]
    return [100 * both / union if union else math.nan for both, union in sums]


@pytest.mark.parametrize(("share", "size"), [(0.02, (24, 40)), (0.1, (24, 40)), (0.02, (90, 130))])
@pytest.mark.parametrize("seed", range(3))
def test_boundary_iou_is_that_of_eroded_masks(share: float, size: tuple[int, int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(3, 5, 4, 6, generator=generator)
    logits = F.interpolate(coarse, size=size, mode="bilinear")
    labels = logits.argmax(1)
    predicted = F.interpolate(coarse + 0.3 * torch.rand(coarse.shape, generator=generator), size=size, mode="bilinear").argmax(1)
    labels[F.interpolate(torch.rand(3, 1, 6, 6, generator=generator), size=size)[:, 0] < 0.15] = 255
    width = max(1, round(share * math.hypot(*size)))
    found = BoundaryIoU(6, share)  # one class does not occur
    for one, other in zip(predicted, labels, strict=True):
        found.update(one[None], other[None])
    expected = slow_boundary_iou(predicted, labels, 6, width)
    both, label, prediction = found.sums.double()
    assert (100 * both / (label + prediction - both)).tolist() == pytest.approx(expected, nan_ok=True)
    assert found.mean() == pytest.approx(np.nanmean(expected))


def test_boundary_iou_by_hand() -> None:
    """A square of 4 in the middle of 12x12 (d is 1), found one pixel to the right: bands of 12 pixels, of which 6 are in both."""
    labels, predicted = torch.zeros(1, 12, 12, dtype=torch.long), torch.zeros(1, 12, 12, dtype=torch.long)
    labels[:, 4:8, 4:8] = 1
    predicted[:, 4:8, 5:9] = 1
    found = BoundaryIoU(2, 1 / 17)
    found.update(predicted, labels)
    assert found.sums[:, 1].tolist() == [6, 12, 12]
    exact = BoundaryIoU(2)
    exact.update(labels, labels)
    assert exact.mean() == 100


def test_boundary_iou_falls_faster_than_iou_when_a_shape_is_shifted() -> None:
    labels = torch.zeros(1, 64, 64, dtype=torch.long)
    labels[:, 16:48, 16:48] = 1
    matrix, found = ConfusionMatrix(2), BoundaryIoU(2)
    matrix.update(labels.roll(2, 2), labels)
    found.update(labels.roll(2, 2), labels)
    assert found.mean() < matrix.miou() - 20


def test_nothing_counted_gives_nan() -> None:
    nothing = torch.full((1, 8, 8), 255)
    boundary, likelihood = BoundaryIoU(3), NegativeLogLikelihood()
    boundary.update(torch.zeros(1, 8, 8, dtype=torch.long), nothing)
    likelihood.update(torch.zeros(1, 3, 8, 8), nothing)
    assert math.isnan(boundary.mean())
    assert math.isnan(likelihood.mean())


def test_negative_log_likelihood_is_cross_entropy_in_float64_whatever_the_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = 5 * torch.randn(6, 4, 7, 9, generator=generator), torch.randint(0, 4, (6, 7, 9), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.3] = 255
    found = NegativeLogLikelihood()
    for start, end in ((0, 1), (1, 6)):
        found.update(logits[start:end], labels[start:end])
    assert found.mean() == pytest.approx(F.cross_entropy(logits.double(), labels, ignore_index=255).item(), rel=1e-6)


def test_a_hopeless_prediction_costs_what_it_says() -> None:
    found = NegativeLogLikelihood()
    found.update(torch.tensor([0.0, 200.0]).view(1, 2, 1, 1), torch.zeros(1, 1, 1, dtype=torch.long))
    assert found.mean() == pytest.approx(200)
