from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple, get_args

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imachsr import CrossEntropy, Ohem, OutputDice
from imachsr.core.output import OutputLoss, logits_of

every = pytest.mark.parametrize("member", get_args(OutputLoss), ids=lambda member: member.kind)
K = 4


def draw(*, void: float = 0.2, size: tuple[int, int] = (6, 8), seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, K, (2, *size), generator=generator)
    logits = torch.randn(2, K, *size, generator=generator, dtype=torch.float64)
    return logits, torch.where(torch.rand(labels.shape, generator=generator) < void, 255, labels)


def ohem(logits: Tensor, labels: Tensor, keep: float) -> float:
    """The hardest share of the valid pixels, pixel by pixel."""
    losses = []
    for b in range(labels.shape[0]):
        for y in range(labels.shape[1]):
            for x in range(labels.shape[2]):
                if int(labels[b, y, x]) != 255:
                    losses.append(-torch.log_softmax(logits[b, :, y, x], 0)[labels[b, y, x]].item())
    losses.sort(reverse=True)
    kept = losses[: max(1, round(keep * len(losses)))]
    return sum(kept) / len(kept)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, (1.0, 0.5, 0.0, 3.0)])
def test_cross_entropy_is_pytorchs_with_its_weights_and_smoothing(weights: tuple[float, ...] | None, smoothing: float) -> None:
    logits, labels = draw()
    reference = nn.CrossEntropyLoss(None if weights is None else torch.tensor(weights).double(), ignore_index=255, label_smoothing=smoothing)
    value, known = CrossEntropy(class_weights=weights, label_smoothing=smoothing)(logits, labels), reference(logits, labels)
    if smoothing:
        torch.testing.assert_close(value, known, rtol=1e-12, atol=0)
    else:
        assert torch.equal(value, known)  # what a user has trained with before stays the same to the last bit


@pytest.mark.parametrize("keep", [0.01, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("void", [0.0, 0.7])
def test_ohem_is_the_mean_of_the_hardest_share_of_the_valid_pixels(keep: float, void: float) -> None:
    logits, labels = draw(void=void)
    assert Ohem(keep=keep)(logits, labels).item() == pytest.approx(ohem(logits, labels, keep), rel=1e-9)


def test_ohem_reaches_the_hardest_pixels_only() -> None:
    logits, labels = draw(void=0.0)
    logits.requires_grad_()
    (grad,) = torch.autograd.grad(Ohem(keep=0.25)(logits, labels), logits)
    assert int((grad.abs().sum(1) > 0).sum()) == round(0.25 * labels.numel())


@pytest.mark.parametrize("void", [0.0, 0.3])
def test_dice_agrees_with_a_known_implementation(void: float) -> None:
    logits, labels = draw(void=void)
    known = smp.losses.DiceLoss("multiclass", ignore_index=255)(logits, labels)
    torch.testing.assert_close(OutputDice()(logits, labels), known, rtol=1e-6, atol=1e-7)


def test_dice_is_over_present_classes_only() -> None:
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    right = F.one_hot(labels, K).permute(0, 3, 1, 2).float() * 50
    assert OutputDice()(right, labels).item() == pytest.approx(0, abs=1e-6)
    assert OutputDice()(-right, labels).item() == pytest.approx(1, abs=1e-6)


@every
def test_with_every_pixel_ignored_the_loss_is_a_zero_that_is_still_connected(member: Any) -> None:
    logits, labels = draw()
    logits.requires_grad_()
    value = member()(logits, torch.full_like(labels, 255))
    value.backward()
    assert value.item() == 0
    assert logits.grad is not None
    assert not bool(logits.grad.any())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_pixels_of_classes_without_weight_alone_are_a_zero_too(smoothing: float) -> None:
    logits, labels = draw(void=0.3)
    labels = torch.where(labels == 255, 255, 1)
    value = CrossEntropy(class_weights=(1.0, 0.0, 1.0, 1.0), label_smoothing=smoothing)(logits.requires_grad_(), labels)
    assert value.item() == 0
    (grad,) = torch.autograd.grad(value, logits)
    assert not bool(grad.any())


@every
def test_ignored_pixels_do_not_count(member: Any) -> None:
    logits, labels = draw(void=0.5)
    moved = torch.where((labels == 255).unsqueeze(1), torch.randn_like(logits) * 100, logits)
    torch.testing.assert_close(member()(moved, labels), member()(logits, labels))
    torch.testing.assert_close(member()(logits, torch.where(labels == 255, 9, labels), ignore_index=9), member()(logits, labels))


@every
def test_scores_of_another_size_are_resized_to_the_labels(member: Any) -> None:
    logits, _ = draw(size=(3, 4))
    _, labels = draw()
    resized = F.interpolate(logits, size=(6, 8), mode="bilinear", align_corners=False)
    assert torch.equal(member()(logits, labels), member()(resized, labels))


@every
def test_an_image_a_label_and_volumes_are_scored_as_maps_are(member: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    labels = torch.tensor([0, 255, 3, 1])
    logits = torch.randn(4, K, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(member()(logits, labels), member()(logits[..., None, None], labels[:, None, None]))
    volume, given = torch.randn(2, K, 3, 4, 5, generator=generator), torch.randint(0, K, (2, 3, 4, 5), generator=generator)
    torch.testing.assert_close(member()(volume, given), member()(volume.flatten(2, 3), given.flatten(1, 2)))
    coarse = torch.randn(2, K, 3, 2, 3, generator=generator)
    resized = F.interpolate(coarse, size=(3, 4, 5), mode="trilinear", align_corners=False)
    torch.testing.assert_close(member()(coarse, given), member()(resized, given))


@every
def test_scores_without_the_labels_axes_are_refused(member: Any) -> None:
    _, labels = draw()
    with pytest.raises(ValueError, match=r"scores must be \[B, K, \.\.\.\] for labels \[2, 6, 8\], but got \[2, 4\]"):
        member()(torch.zeros(2, K), labels)


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_scored_in_float32(member: Any, dtype: torch.dtype) -> None:
    logits, labels = draw()
    value = member()((logits * 30).to(dtype), labels)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(member()((logits * 30).to(dtype).double(), labels).item(), rel=1e-4)


@every
def test_the_gradient_is_that_of_the_value(member: Any) -> None:
    logits, labels = draw(size=(3, 3))
    assert torch.autograd.gradcheck(lambda x: member()(x, labels), logits.requires_grad_())


@every
@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_an_auxiliary_output_counts_by_its_weight(member: Any, weight: float) -> None:
    logits, labels = draw()
    aux, _ = draw(size=(3, 4), seed=5)
    loss = member(aux_weight=weight)
    value = loss(OrderedDict(out=logits, aux=aux), labels)
    torch.testing.assert_close(value, loss(logits, labels) + weight * loss(aux, labels))


class WithLogits(dict[str, Any]):
    """A mapping that has its scores as an attribute alone."""

    def __init__(self, scores: torch.Tensor, of: torch.Tensor) -> None:
        super().__init__(scores=scores)
        self.logits = of


class Named(NamedTuple):
    loss: torch.Tensor
    logits: torch.Tensor


def test_scores_are_found_in_what_models_give() -> None:
    logits, _ = draw()
    structures = [{"out": logits, "aux": logits + 1}, OrderedDict(out=logits), SimpleNamespace(logits=logits), (logits, None), [logits, logits + 1]]
    structures += [{"aux": logits + 1, "logits": logits}, {"semantic": logits}, {"semantic": logits, "instances": None}]
    structures += [{"out": None, "logits": logits}, WithLogits(scores=logits + 1, of=logits), Named(logits + 1, logits)]
    for output in (logits, *structures):
        assert logits_of(output) is logits


@pytest.mark.parametrize(
    ("output", "name"),
    [
        ([], "list"),
        ((None, torch.zeros(1)), "tuple"),
        ({"boxes": torch.zeros(1), "masks": torch.zeros(1)}, "dict with the keys boxes, masks"),
        ({"out": 3}, "dict with the keys out"),
        (SimpleNamespace(logits=[]), "SimpleNamespace"),
        (None, "NoneType"),
    ],
)
def test_another_output_is_refused(output: Any, name: str) -> None:
    known = r"a tensor, a tuple that begins with one, a mapping with 'out' or 'logits' or one tensor alone, or have `\.logits`"
    with pytest.raises(TypeError, match=f"must be {known}, but got {name}$"):
        logits_of(output)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CrossEntropy(label_smoothing=1.0), r"`0 <= label_smoothing < 1` must hold, but got 1.0"),
        (lambda: CrossEntropy(label_smoothing=-0.1), r"`0 <= label_smoothing < 1` must hold, but got -0.1"),
        (lambda: CrossEntropy(class_weights=(1.0, -1.0)), r"`class_weights >= 0` must hold, but got \(1.0, -1.0\)"),
        (lambda: CrossEntropy(class_weights=(1.0, float("nan"))), r"`class_weights >= 0` must hold"),
        (lambda: CrossEntropy(class_weights=(1.0,))(*draw()), r"`class_weights` must have 4 values, one a class, but got 1"),
        (lambda: Ohem(keep=0.0), r"`0 < keep <= 1` must hold, but got 0.0"),
        (lambda: Ohem(keep=1.1), r"`0 < keep <= 1` must hold, but got 1.1"),
        (lambda: OutputDice(aux_weight=-1.0), r"`aux_weight >= 0` must hold, but got -1.0"),
        (lambda: OutputDice(aux_weight=float("nan")), r"`aux_weight >= 0` must hold, but got nan"),
    ],
)
def test_values_out_of_range_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
