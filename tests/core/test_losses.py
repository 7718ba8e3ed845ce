"""What every side loss must keep, checked over the members of the union; a new member needs an oracle here and nothing else."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, get_args

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor
from torch.nn import functional as F

from imachsr import Brier, Dice, Hsic, InfoNCE, MiVariational, Prototype
from imachsr.core.labels import SideLabels, TapLabels
from imachsr.core.losses import AnySideLoss, SideLoss, parse_side_loss

MEMBERS = get_args(SideLoss)
every = pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.kind)
K = 4
IN_CLASSES = {"mi_variational", "dice", "brier"}
"""Losses whose features are class scores."""
CONSTANT_INSIDE = {"prototype"}
"""Losses that hold a part of their input constant in the gradient; it is compared with the formula's instead."""


def draw(
    member: Any, *, batch: int = 2, full: int = 8, size: tuple[int, int] = (4, 4), classes: int = K, void: float = 0.2, seed: int = 0
) -> tuple[Tensor, SideLabels]:
    """Features in float64 and labels of a tap; with void, many pixels are partly valid."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, classes, (batch, full // 2, full // 2), generator=generator)
    labels = coarse.repeat_interleave(2, 1).repeat_interleave(2, 2)
    labels = torch.where(torch.rand(labels.shape, generator=generator) < void, 255, labels)
    channels = classes if member.kind in IN_CLASSES else 6
    z = torch.randn(batch, channels, *size, generator=generator, dtype=torch.float64)
    return z, TapLabels(labels, classes, 255).at(size)


def score(loss: Any, z: Tensor, labels: SideLabels, seed: int = 0) -> Tensor:
    return loss(z, labels, generator=torch.Generator().manual_seed(seed))


def gradient(of: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    z = z.detach().requires_grad_()
    (grad,) = torch.autograd.grad(of(z), z)
    return grad


def everywhere(labels: SideLabels) -> list[tuple[int, int, int]]:
    b, h, w = labels.valid.shape
    return [(n, y, x) for n in range(b) for y in range(h) for x in range(w)]


# ---- oracles: the formulas of the docstrings, pixel by pixel --------------------------------------------------------------------------------


def mi_variational(loss: Any, z: Tensor, labels: SideLabels) -> Tensor:
    total, mass = z.sum() * 0, 0.0
    for b, i, j in everywhere(labels):
        q = torch.exp(z[b, :, i, j]) / torch.exp(z[b, :, i, j]).sum()
        for k in range(z.shape[1]):
            total = total - float(labels.valid[b, i, j]) * float(labels.soft[b, k, i, j]) * torch.log(q[k])
        mass += float(labels.valid[b, i, j])
    return total / mass


def dice(loss: Any, z: Tensor, labels: SideLabels) -> Tensor:
    terms = []
    for k in range(z.shape[1]):
        both, mass, present = z.sum() * 0, z.sum() * 0, 0.0
        for b, i, j in everywhere(labels):
            valid, y = float(labels.valid[b, i, j]), float(labels.soft[b, k, i, j])
            q = torch.exp(z[b, k, i, j]) / torch.exp(z[b, :, i, j]).sum()
            both, mass, present = both + valid**2 * q * y, mass + valid * (q + y), present + valid * y
        if present > 0:
            terms.append(1 - 2 * both / mass)
    return sum(terms, z.sum() * 0) / len(terms)


def brier(loss: Any, z: Tensor, labels: SideLabels) -> Tensor:
    total, mass = z.sum() * 0, 0.0
    for b, i, j in everywhere(labels):
        q = torch.exp(z[b, :, i, j]) / torch.exp(z[b, :, i, j]).sum()
        total = total + float(labels.valid[b, i, j]) * sum((q[k] - float(labels.soft[b, k, i, j])) ** 2 for k in range(z.shape[1]))
        mass += float(labels.valid[b, i, j])
    return total / mass


def pixels(z: Tensor, labels: SideLabels) -> list[tuple[Tensor, int]]:
    return [(z[b, :, i, j], int(labels.hard[b, i, j])) for b, i, j in everywhere(labels) if int(labels.hard[b, i, j]) >= 0]


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum().sqrt()


def infonce(loss: Any, z: Tensor, labels: SideLabels) -> Tensor:
    seen = [(unit(x), y) for x, y in pixels(z, labels)]
    anchors = []
    for a, (x, y) in enumerate(seen):
        strength = {n: torch.exp(x @ other / loss.temperature) for n, (other, _) in enumerate(seen) if n != a}
        positives = [n for n in strength if seen[n][1] == y]
        if positives:
            anchors.append(-sum(torch.log(strength[p] / sum(strength.values())) for p in positives) / len(positives))
    return sum(anchors, z.sum() * 0) / max(len(anchors), 1)


def prototype(loss: Any, z: Tensor, labels: SideLabels) -> Tensor:
    seen = [(unit(x), y) for x, y in pixels(z, labels)]
    centres = {k: unit(sum(x for x, y in seen if y == k).detach()) for k in {y for _, y in seen}}
    terms = []
    for x, y in seen:
        strength = {k: torch.exp(x @ centre / loss.temperature) for k, centre in centres.items()}
        terms.append(-torch.log(strength[y] / sum(strength.values())))
    return sum(terms) / len(terms)


def hsic(loss: Any, z: Tensor, labels: SideLabels) -> Tensor:
    seen = pixels(z, labels)
    x = torch.stack([feature for feature, _ in seen])
    x = torch.stack([(column - column.mean()) / (((column - column.mean()) ** 2).mean() + 1e-6).sqrt() for column in x.T], 1)
    n, channels = x.shape
    k = torch.stack([torch.stack([torch.exp(-((x[i] - x[j]) ** 2).sum() / (2 * channels)) for j in range(n)]) for i in range(n)])
    same = torch.tensor([[float(seen[i][1] == seen[j][1]) for j in range(n)] for i in range(n)], dtype=x.dtype)
    h = torch.eye(n, dtype=x.dtype) - 1 / n
    khk, hlh = h @ k @ h, h @ same @ h
    return 1 - torch.trace(khk @ hlh) / torch.sqrt(torch.trace(khk @ khk) * torch.trace(hlh @ hlh))


ORACLES: dict[str, Callable[[Any, Tensor, SideLabels], Tensor]] = {
    "mi_variational": mi_variational,
    "dice": dice,
    "brier": brier,
    "infonce": infonce,
    "prototype": prototype,
    "hsic": hsic,
}


# ---- the contract ---------------------------------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize(
    "case",
    [
        {},
        {"void": 0.0},
        {"void": 0.6, "seed": 3},
        {"classes": 2},
        {"batch": 1, "size": (1, 2), "seed": 1},
        {"size": (3, 5)},
        {"size": (8, 8), "batch": 1},
    ],
    ids=["partly void", "no void", "mostly void", "two classes", "two pixels", "odd size", "labels' own size"],
)
def test_value_and_gradient_are_those_of_the_formula(member: Any, case: dict[str, Any]) -> None:
    z, labels = draw(member, **case)
    loss, oracle = member(), ORACLES[member.kind]
    value = score(loss, z, labels)
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, oracle(loss, z, labels), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient(lambda x: score(loss, x, labels), z), gradient(lambda x: oracle(loss, x, labels), z), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("member", [member for member in MEMBERS if member.kind not in CONSTANT_INSIDE], ids=lambda member: member.kind)
def test_the_gradient_is_that_of_the_value(member: Any) -> None:
    z, labels = draw(member)
    assert torch.autograd.gradcheck(lambda x: score(member(), x, labels), z.requires_grad_())


@every
def test_float32_is_near_float64(member: Any) -> None:
    z, labels = draw(member)
    value = score(member(), z.float(), labels)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(score(member(), z, labels).item(), rel=1e-4, abs=1e-6)


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_scored_in_float32(member: Any, dtype: torch.dtype) -> None:
    z, labels = draw(member)
    coarse = z.to(dtype)
    value = score(member(), coarse, labels)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(score(member(), coarse.float(), labels).item(), rel=1e-6)
    assert bool(torch.isfinite(gradient(lambda x: score(member(), x, labels), coarse)).all())


@every
def test_pixels_may_come_in_any_order(member: Any) -> None:
    z, labels = draw(member)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(5))

    def mixed(x: Tensor) -> Tensor:
        return x.movedim(0, -3).flatten(-3)[..., order].unflatten(-1, (2, 4, 4)).movedim(-3, 0)

    other = SideLabels(hard=mixed(labels.hard), soft=mixed(labels.soft), valid=mixed(labels.valid))
    torch.testing.assert_close(score(member(), mixed(z), other), score(member(), z, labels), rtol=1e-6, atol=1e-9)


@every
def test_classes_may_be_numbered_in_any_order(member: Any) -> None:
    # No window is tied between classes, or the majority would depend on their order.
    z, labels = draw(member, void=0.0)
    order = torch.tensor([2, 0, 3, 1])  # the new number of each class
    back = torch.argsort(order)
    other = SideLabels(hard=order[labels.hard], soft=labels.soft[:, back], valid=labels.valid)
    moved = z[:, back] if member.kind in IN_CLASSES else z
    torch.testing.assert_close(score(member(), moved, other), score(member(), z, labels), rtol=1e-6, atol=1e-9)


@every
def test_what_does_not_matter_to_the_scores_does_not_matter_to_the_loss(member: Any) -> None:
    z, labels = draw(member)
    per_pixel = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(6), dtype=torch.float64) + 0.5
    per_channel = torch.rand(1, z.shape[1], 1, 1, generator=torch.Generator().manual_seed(7), dtype=torch.float64) + 0.5
    same = {
        "log_score": z + per_pixel,
        "overlap": z + per_pixel,
        "quadratic": z + per_pixel,
        "metric": z * per_pixel,
        "dependence": z * per_channel + per_channel,
    }
    torch.testing.assert_close(score(member(), same[member.family], labels), score(member(), z, labels), rtol=1e-5, atol=1e-7)


@every
def test_void_pixels_do_not_count(member: Any) -> None:
    z, labels = draw(member, size=(8, 8), void=0.3)
    is_void = (labels.valid == 0).unsqueeze(1)
    assert bool(is_void.any())
    other = torch.where(is_void, torch.randn_like(z) * 100, z)
    torch.testing.assert_close(score(member(), other, labels), score(member(), z, labels))
    assert not bool(gradient(lambda x: score(member(), x, labels), z).masked_select(is_void).any())


@every
@pytest.mark.parametrize("size", [(4, 4), (1, 1)])
def test_with_every_pixel_void_the_loss_is_a_zero_that_is_still_connected(member: Any, size: tuple[int, int]) -> None:
    z, labels = draw(member, void=1.1, size=size)
    assert not bool(labels.valid.any())
    z = z.float().requires_grad_()
    value = score(member(), z, labels)
    value.backward()
    assert value.item() == 0
    assert z.grad is not None
    assert not bool(z.grad.any())


@every
@pytest.mark.parametrize(
    "case",
    [{"batch": 1, "size": (1, 1)}, {"batch": 1, "full": 2, "size": (2, 2)}, {"classes": 2}, {"size": (16, 16)}, {"full": 20, "size": (3, 7)}],
    ids=["one pixel", "one class", "two classes", "finer than the labels", "no divisor"],
)
@pytest.mark.parametrize("void", [0.0, 0.4])
def test_hard_cases_stay_finite(member: Any, case: dict[str, Any], void: float) -> None:
    for seed in range(4):
        z, labels = draw(member, **case, void=void, seed=seed)
        for features in (z, torch.zeros_like(z), z * 1e4, torch.ones_like(z)):
            value = score(member(), features.float(), labels)
            assert bool(torch.isfinite(value))
            assert value.item() >= -1e-5
            assert bool(torch.isfinite(gradient(lambda x, labels=labels: score(member(), x, labels), features.float())).all())


@pytest.mark.parametrize("member", [MiVariational, Brier])
def test_one_pixel_of_which_a_part_is_void_counts_in_full(member: Any) -> None:
    labels = torch.full((1, 4, 4), 255)
    labels[0, 0, :3] = 1  # 3 of 16 pixels
    z = torch.randn(1, K, 1, 1, generator=torch.Generator().manual_seed(0))
    part, whole = (TapLabels(given, K, 255).at((1, 1)) for given in (labels, torch.ones_like(labels)))
    torch.testing.assert_close(score(member(), z, part), score(member(), z, whole))


@every
def test_descent_on_the_features_lowers_the_loss(member: Any) -> None:
    z, labels = draw(member)
    z = z.float().requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.1)
    values = []
    for _ in range(60):
        value = score(member(), z, labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.7 * values[0]


@every
def test_the_random_state_is_left_alone_and_only_the_generator_matters(member: Any) -> None:
    z, labels = draw(member, size=(8, 8))
    state = torch.get_rng_state()
    first = score(member(), z, labels, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(123)
    assert torch.equal(score(member(), z, labels, seed=1), first)


@every
@pytest.mark.parametrize("classes", [2, 5])
def test_the_adapter_gives_what_the_loss_reads(member: Any, classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    adapter = member().make_adapter(7, classes, generator)
    z = adapter(torch.randn(2, 7, 4, 4, generator=generator))
    assert z.shape[1] == (classes if member.kind in IN_CLASSES else getattr(member(), "dimension", 7))
    _, labels = draw(member, classes=classes)
    assert bool(torch.isfinite(score(member(), z, labels)))


@every
def test_losses_are_frozen_values_with_a_name(member: Any) -> None:
    assert member() == member()
    assert hash(member()) == hash(member())
    assert parse_side_loss(member.kind) == member()
    assert parse_side_loss(loss := member()) is loss
    with pytest.raises(AttributeError):
        member().kind = "another"


# ---- of single losses -----------------------------------------------------------------------------------------------------------------------


def test_mutual_information_is_cross_entropy_on_hard_labels() -> None:
    z, labels = draw(MiVariational, size=(8, 8), void=0.3)
    expected = F.cross_entropy(z, labels.hard, ignore_index=-1)
    torch.testing.assert_close(score(MiVariational(), z, labels), expected)


@pytest.mark.parametrize("void", [0.0, 0.3])
def test_dice_agrees_with_a_known_implementation_where_every_class_is_present(void: float) -> None:
    z, labels = draw(Dice, full=16, size=(16, 16), void=void)
    assert set(labels.hard[labels.hard >= 0].tolist()) == set(range(K))
    known = smp.losses.DiceLoss("multiclass", ignore_index=255)(z, torch.where(labels.hard < 0, 255, labels.hard))
    torch.testing.assert_close(score(Dice(), z, labels), known, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("loss", "worst"), [(Dice(), 1.0), (Brier(), 2.0)])
def test_class_losses_run_from_zero_for_right_to_their_bound_for_wrong(loss: Any, worst: float) -> None:
    _, labels = draw(type(loss), size=(8, 8), void=0.0)
    right = labels.soft * 100
    wrong = labels.soft.roll(1, 1) * 100
    assert score(loss, right, labels).item() == pytest.approx(0, abs=1e-6)
    assert score(loss, wrong, labels).item() == pytest.approx(worst, abs=0.1 if loss.kind == "dice" else 1e-6)


@pytest.mark.parametrize("member", [InfoNCE, Prototype])
def test_metric_losses_prefer_features_that_agree_within_a_class(member: Any) -> None:
    _, labels = draw(member, void=0.0)
    apart, together = labels.soft * 3, torch.ones(2, K, 4, 4)
    assert score(member(), apart, labels).item() < score(member(), together, labels).item()


def test_infonce_of_perfect_classes_is_the_log_of_the_number_of_positives() -> None:
    labels = TapLabels(torch.tensor([[[0, 0, 0], [1, 1, 1]]]), 2, 255).at((2, 3))
    value = score(InfoNCE(temperature=0.01), labels.soft, labels)
    assert float(value) == pytest.approx(float(torch.tensor(2.0).log()), rel=1e-5)


def test_prototype_of_equal_features_is_the_log_of_the_number_of_present_classes() -> None:
    labels = TapLabels(torch.tensor([[[0, 2, 2], [3, 0, 2]]]), 7, 255).at((2, 3))
    assert float(score(Prototype(), torch.ones(1, 5, 2, 3), labels)) == pytest.approx(float(torch.tensor(3.0).log()), rel=1e-5)


def test_hsic_is_zero_for_features_that_are_the_label_and_one_for_features_that_are_not() -> None:
    _, labels = draw(Hsic, classes=2, full=32, size=(16, 16), void=0.0)
    generator = torch.Generator().manual_seed(0)
    assert score(Hsic(samples=512), labels.soft, labels).item() == pytest.approx(0, abs=1e-3)
    noise = torch.randn(2, 4, 16, 16, generator=generator)
    assert score(Hsic(samples=512), noise, labels).item() > 0.95


@pytest.mark.parametrize(("member", "knob"), [(InfoNCE, "anchors"), (Hsic, "samples")])
def test_sampled_losses_depend_on_the_seed_only_where_pixels_are_more_than_samples(member: Any, knob: str) -> None:
    z, labels = draw(member, size=(8, 8))
    valid = int((labels.hard >= 0).sum())
    few, all_of_them = member(**{knob: 16}), member(**{knob: valid})
    assert score(few, z, labels, seed=0) != score(few, z, labels, seed=1)
    assert score(few, z, labels, seed=0) == score(few, z, labels, seed=0)
    assert score(all_of_them, z, labels, seed=0) == score(all_of_them, z, labels, seed=1)


@pytest.mark.parametrize(("member", "knob"), [(InfoNCE, "anchors"), (Hsic, "samples")])
def test_a_sample_holds_valid_pixels_each_at_most_once(member: Any, knob: str) -> None:
    z, labels = draw(member, size=(8, 8), void=0.5)
    touched = gradient(lambda x: score(member(**{knob: 16}), x, labels), z).abs().sum(1) > 0
    assert int(touched.sum()) <= 16
    assert int(touched.sum()) >= 10
    assert not bool((touched & (labels.hard < 0)).any())


@pytest.mark.parametrize("member", [InfoNCE, Prototype])
def test_a_lower_temperature_sharpens_the_metric_losses(member: Any) -> None:
    z, labels = draw(member)
    grads = [float(gradient(lambda x, t=t: score(member(temperature=t), x, labels), z).norm()) for t in (1.0, 0.3, 0.1)]
    assert all(cold > warm for warm, cold in pairwise(grads))


# ---- the declared families ------------------------------------------------------------------------------------------------------------------


@every
def test_the_declared_family_agrees_with_the_direction_of_the_gradient(member: Any) -> None:
    """Cosine to cross-entropy on the same scores over random draws: 1 for a log score, clearly less for every other family."""
    cosines = []
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        z = 2 * torch.randn(2, K, 6, 6, generator=generator, dtype=torch.float64)
        labels = TapLabels(torch.randint(0, K, (2, 6, 6), generator=generator), K, 255).at((6, 6))
        ours = gradient(lambda x, labels=labels: score(member(), x, labels), z)
        reference = gradient(lambda x, labels=labels: F.cross_entropy(x, labels.hard), z)
        cosines.append(float(F.cosine_similarity(ours.flatten(), reference.flatten(), dim=0)))
    mean = sum(cosines) / len(cosines)
    if member.family == "log_score":
        assert min(cosines) > 0.999
    else:
        assert mean < 0.9, mean


# ---- errors ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InfoNCE(temperature=0), r"`temperature > 0` must hold, but got 0"),
        (lambda: Prototype(temperature=float("nan")), r"`temperature > 0` must hold, but got nan"),
        (lambda: Prototype(dimension=0), r"`dimension >= 1` must hold, but got 0"),
        (lambda: InfoNCE(anchors=1), r"`anchors >= 2` must hold, but got 1"),
        (lambda: Hsic(samples=1), r"`samples >= 2` must hold, but got 1"),
        (lambda: parse_side_loss("protoype"), r"`loss` must be one of \['brier', .*\], but got 'protoype'; nearest: 'prototype'"),
    ],
)
def test_values_out_of_range_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_what_is_no_side_loss_is_refused() -> None:
    with pytest.raises(TypeError, match="`loss` must have `family`, `make_adapter` and `__call__`, but got function"):
        parse_side_loss(F.cross_entropy)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"`loss` must be a side loss, but got its class; write Dice\(\)"):
        parse_side_loss(Dice)  # type: ignore[arg-type]
    assert isinstance(Dice(), AnySideLoss)
