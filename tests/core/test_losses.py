"""What every side loss must keep, checked over the members of the union; a new member needs an oracle and an invariance here and nothing else."""

import math
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any, get_args

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional as F

from imachsr import (
    Affinity,
    BinaryCrossEntropy,
    Boundary,
    Brier,
    DepthRule,
    Dice,
    Focal,
    Hsic,
    InfoNCE,
    JensenShannon,
    Lovasz,
    MiVariational,
    Presence,
    Prototype,
    RegionMutualInformation,
    SoftCrossEntropy,
    Synergy,
    Tversky,
)
from imachsr.core.labels import SideLabels, TapLabels
from imachsr.core.losses import AnySideLoss, SideLoss, losses_of, parse_side_loss
from imachsr.core.losses.protocol import only_drawn, sample
from imachsr.core.selection import DepthStandard
from tests.core.nets import Encoder, images

MEMBERS = get_args(SideLoss)


def over(members: Any) -> Any:
    return pytest.mark.parametrize("member", list(members), ids=lambda member: member.kind)


every = over(MEMBERS)
K = 4
IN_CLASSES = {"mi_variational", "soft_ce", "focal", "bce", "brier", "js", "dice", "tversky", "lovasz", "rmi", "synergy"}
"""Losses whose features are class scores at every position."""
CONSTANT_INSIDE = {"prototype"}
"""Losses that hold a part of their input constant in the gradient; it is compared with the formula's instead."""
IN_THE_PLANE = {"rmi", "boundary", "affinity"}
"""Losses that look at neighbours."""


def draw(
    member: Any, *, batch: int = 2, full: int = 8, size: tuple[int, int] = (4, 4), classes: int = K, void: float = 0.2, seed: int = 0
) -> tuple[Tensor, SideLabels]:
    """Features in float64 and labels of a tap; with void, many positions are partly valid, and without some hold two classes."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, classes, (batch, full // 2 + 1, full // 2 + 1), generator=generator)
    labels = coarse.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :full, 1 : full + 1]
    labels = torch.where(torch.rand(labels.shape, generator=generator) < void, 255, labels)
    z = torch.randn(shape_of(member, batch, classes, size), generator=generator, dtype=torch.float64)
    teacher = torch.randn(batch, classes, *size, generator=generator, dtype=torch.float64)
    return z, replace(TapLabels(labels, classes, 255).at(size), output=teacher)


def shape_of(member: Any, batch: int, classes: int, size: tuple[int, ...]) -> tuple[int, ...]:
    if member.kind == "presence":
        return (batch, classes, 1, 1)
    return (batch, classes if member.kind in IN_CLASSES else 1 if member.kind == "boundary" else 6, *size)


def gradient(of: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    z = z.detach().requires_grad_()
    (grad,) = torch.autograd.grad(of(z), z)
    return grad


def each(labels: SideLabels, change: Callable[[Tensor], Tensor]) -> SideLabels:
    """The labels with all of their maps changed likewise."""
    assert labels.output is not None
    return replace(labels, hard=change(labels.hard), soft=change(labels.soft), valid=change(labels.valid), output=change(labels.output))


# ---- oracles: the formulas of the docstrings, position by position ---------------------------------------------------------------------------


def everywhere(labels: SideLabels) -> list[tuple[int, int, int]]:
    b, h, w = labels.valid.shape
    return [(n, y, x) for n in range(b) for y in range(h) for x in range(w)]


def softmax(scores: Tensor) -> Tensor:
    return torch.exp(scores) / torch.exp(scores).sum()


def sigmoid(score: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-score))


def over_majorities(z: Tensor, labels: SideLabels, term: Callable[[Tensor, int], Tensor]) -> Tensor:
    terms = [term(x, y) for x, y in pixels(z, labels)]
    return sum(terms, z.sum() * 0) / max(len(terms), 1)


def over_shares(z: Tensor, labels: SideLabels, term: Callable[[Tensor, list[float], tuple[int, int, int]], Tensor]) -> Tensor:
    total, mass = z.sum() * 0, 0.0
    for b, i, j in everywhere(labels):
        share = labels.valid[b, i, j].item()
        if share > 0:
            total = total + share * term(z[b, :, i, j], labels.soft[b, :, i, j].tolist(), (b, i, j))
        mass += share
    return total / (mass or 1)


def mi_variational(loss: Any, z: Tensor, labels: SideLabels) -> Tensor:
    return over_majorities(z, labels, lambda x, y: -torch.log(softmax(x)[y]))


def focal(loss: Any, z: Tensor, labels: SideLabels) -> Tensor:
    return over_majorities(z, labels, lambda x, y: -((1 - softmax(x)[y]) ** loss.gamma) * torch.log(softmax(x)[y]))


def soft_ce(loss: Any, z: Tensor, labels: SideLabels) -> Tensor:
    return over_shares(z, labels, lambda x, y, _: -sum(share * torch.log(softmax(x)[k]) for k, share in enumerate(y)))


def bce(loss: Any, z: Tensor, labels: SideLabels) -> Tensor:
    def term(x: Tensor, y: list[float], _: Any) -> Tensor:
        return -sum(y[k] * torch.log(sigmoid(x[k])) + (1 - y[k]) * torch.log(1 - sigmoid(x[k])) for k in range(len(y))) / len(y)

    return over_shares(z, labels, term)


def brier(loss: Any, z: Tensor, labels: SideLabels) -> Tensor:
    return over_shares(z, labels, lambda x, y, _: sum((softmax(x)[k] - share) ** 2 for k, share in enumerate(y)))


def js(loss: Any, z: Tensor, labels: SideLabels) -> Tensor:
    def term(x: Tensor, y: list[float], _: Any) -> Tensor:
        q = softmax(x)
        total = x.sum() * 0
        for k, share in enumerate(y):
            middle = (q[k] + share) / 2
            total = total + q[k] * torch.log(q[k] / middle) / 2
            if share > 0:
                total = total + share * torch.log(share / middle) / 2
        return total

    return over_shares(z, labels, term)


def synergy(loss: Any, z: Tensor, labels: SideLabels) -> Tensor:
    def term(x: Tensor, _: Any, at: tuple[int, int, int]) -> Tensor:
        b, i, j = at
        o, q = softmax(labels.output[b, :, i, j] / loss.temperature), softmax(x / loss.temperature)
        return loss.temperature**2 * sum(o[k] * torch.log(o[k] / q[k]) for k in range(len(o)))

    return over_shares(z, labels, term)


def tversky(loss: Any, z: Tensor, labels: SideLabels) -> Tensor:
    a, b_ = (0.5, 0.5) if loss.kind == "dice" else (loss.alpha, loss.beta)
    terms = []
    for k in range(z.shape[1]):
        hits, predicted, labelled = z.sum() * 0, z.sum() * 0, 0.0
        for b, i, j in everywhere(labels):
            valid, y, q = labels.valid[b, i, j].item(), labels.soft[b, k, i, j].item(), softmax(z[b, :, i, j])[k]
            hits, predicted, labelled = hits + valid * q * y, predicted + valid * q, labelled + valid * y
        if labelled > 0:
            terms.append(1 - hits / (hits + a * (predicted - hits) + b_ * (labelled - hits)))
    return sum(terms, z.sum() * 0) / max(len(terms), 1)


def dice(loss: Any, z: Tensor, labels: SideLabels) -> Tensor:
    terms = []
    for k in range(z.shape[1]):
        both, mass, present = z.sum() * 0, z.sum() * 0, 0.0
        for b, i, j in everywhere(labels):
            valid, y = labels.valid[b, i, j].item(), labels.soft[b, k, i, j].item()
            q = softmax(z[b, :, i, j])[k]
            both, mass, present = both + valid * q * y, mass + valid * (q + y), present + valid * y
        if present > 0:
            terms.append(1 - 2 * both / mass)
    return sum(terms, z.sum() * 0) / max(len(terms), 1)


def lovasz(loss: Any, z: Tensor, labels: SideLabels) -> Tensor:
    """Each step of the sorted errors is weighed with what it adds to the Jaccard loss of the set of wrong positions before it."""
    seen = pixels(z, labels)
    terms = []
    for k in {y for _, y in seen}:
        truth = {n for n, (_, y) in enumerate(seen) if y == k}
        errors = [1 - softmax(x)[k] if y == k else softmax(x)[k] for x, y in seen]
        wrong: set[int] = set()
        total, before = z.sum() * 0, 0.0
        for n in sorted(range(len(seen)), key=lambda n: -errors[n].item()):
            wrong.add(n)
            # With these positions wrong, the intersection is what is left of the truth, and the union is the truth and the false positives.
            now = 1 - len(truth - wrong) / len(truth | wrong)
            total, before = total + errors[n] * (now - before), now
        terms.append(total)
    return sum(terms, z.sum() * 0) / max(len(terms), 1)


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
    return sum(terms, z.sum() * 0) / max(len(terms), 1)


def hsic(loss: Any, z: Tensor, labels: SideLabels) -> Tensor:
    seen = pixels(z, labels)
    if len({y for _, y in seen}) < 2:
        return z.sum() * 0
    x = torch.stack([feature for feature, _ in seen])
    x = torch.stack([(column - column.mean()) / (((column - column.mean()) ** 2).mean() + 1e-6).sqrt() for column in x.T], 1)
    n, channels = x.shape
    k = torch.stack([torch.stack([torch.exp(-((x[i] - x[j]) ** 2).sum() / (2 * channels)) for j in range(n)]) for i in range(n)])
    same = torch.tensor([[float(seen[i][1] == seen[j][1]) for j in range(n)] for i in range(n)], dtype=x.dtype)
    h = torch.eye(n, dtype=x.dtype) - 1 / n
    khk, hlh = h @ k @ h, h @ same @ h
    return 1 - torch.trace(khk @ hlh) / torch.sqrt(torch.trace(khk @ khk) * torch.trace(hlh @ hlh))


def rmi(loss: Any, z: Tensor, labels: SideLabels) -> Tensor:
    """Region by region, with an explicit inverse and determinant."""
    p, y = sigmoid(z) * labels.valid[:, None].double(), (labels.soft * labels.valid[:, None]).double()
    height, width = z.shape[2:]
    if min(height, width) // loss.pool > loss.size:
        height, width = height // loss.pool, width // loss.pool

        def pooled(x: Tensor) -> Tensor:
            s = loss.pool
            return torch.stack(
                [torch.stack([x[:, :, s * i : s * i + s, s * j : s * j + s].mean((2, 3)) for j in range(width)], 2) for i in range(height)], 2
            )

        p, y = pooled(p), pooled(y)
    terms = []
    starts = [(b, i, j) for b in range(len(z)) for i in range(height - loss.size + 1) for j in range(width - loss.size + 1)]
    for k in range(z.shape[1]):
        if not y[:, k].any() or not starts:
            continue
        regions = [torch.stack([x[b, k, i : i + loss.size, j : j + loss.size].reshape(-1) for b, i, j in starts]) for x in (p, y)]
        p_, y_ = (region - region.mean(0) for region in regions)
        n, d = p_.shape
        e = loss.jitter * torch.eye(d, dtype=torch.float64)
        rest = y_.T @ y_ / n - (y_.T @ p_ / n) @ torch.linalg.inv(p_.T @ p_ / n + e) @ (p_.T @ y_ / n) + e
        terms.append(torch.linalg.slogdet(rest).logabsdet / (2 * d))
    return sum(terms, z.sum() * 0) / max(len(terms), 1)


def balanced(z: Tensor, groups: list[list[Tensor]]) -> Tensor:
    return sum((sum(group, z.sum() * 0) / max(len(group), 1) for group in groups), z.sum() * 0) / 2


def boundary(loss: Any, z: Tensor, labels: SideLabels) -> Tensor:
    edges, others = [], []
    _, h, w = labels.hard.shape
    for b, i, j in everywhere(labels):
        here = int(labels.hard[b, i, j])
        if here < 0:
            continue
        near = [int(labels.hard[b, y, x]) for y, x in ((i, j + 1), (i + 1, j)) if y < h and x < w]
        is_mixed = int((labels.soft[b, :, i, j] > 0).sum()) > 1
        is_edge = is_mixed or any(other not in (here, -1) for other in near)
        s = sigmoid(z[b, 0, i, j])
        (edges if is_edge else others).append(-torch.log(s if is_edge else 1 - s))
    return balanced(z, [edges, others])


def affinity(loss: Any, z: Tensor, labels: SideLabels) -> Tensor:
    equal, unequal = [], []
    _, h, w = labels.hard.shape
    for b, i, j in everywhere(labels):
        for y, x in ((i, j + 1), (i + 1, j)):
            if y < h and x < w and labels.hard[b, i, j] >= 0 and labels.hard[b, y, x] >= 0:
                a = (1 + unit(z[b, :, i, j]) @ unit(z[b, :, y, x])) / 2
                is_equal = bool(labels.hard[b, i, j] == labels.hard[b, y, x])
                (equal if is_equal else unequal).append(-torch.log(a if is_equal else 1 - a))
    return balanced(z, [equal, unequal])


def presence(loss: Any, z: Tensor, labels: SideLabels) -> Tensor:
    terms = []
    for b in range(len(z)):
        if bool(labels.valid[b].any()):
            for k in range(z.shape[1]):
                s = sigmoid(z[b, k, 0, 0])
                terms.append(-torch.log(s if bool(labels.soft[b, k].any()) else 1 - s))
    return sum(terms, z.sum() * 0) / max(len(terms), 1)


ORACLES: dict[str, Callable[[Any, Tensor, SideLabels], Tensor]] = {
    "mi_variational": mi_variational,
    "soft_ce": soft_ce,
    "focal": focal,
    "bce": bce,
    "brier": brier,
    "js": js,
    "dice": dice,
    "tversky": tversky,
    "lovasz": lovasz,
    "infonce": infonce,
    "prototype": prototype,
    "hsic": hsic,
    "rmi": rmi,
    "boundary": boundary,
    "affinity": affinity,
    "presence": presence,
    "synergy": synergy,
}

OTHER_SETTINGS: dict[str, dict[str, Any]] = {
    "focal": {"gamma": 0.5},
    "tversky": {"alpha": 0.8, "beta": 0.1},
    "infonce": {"temperature": 0.5, "anchors": 64},
    "prototype": {"temperature": 1.0},
    "hsic": {"samples": 64},
    "rmi": {"size": 2, "pool": 1, "jitter": 1e-2},
    "synergy": {"temperature": 3.0},
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
        {"batch": 1, "size": (1, 1), "void": 0.0},
        {"batch": 1, "size": (1, 2), "seed": 1},
        {"size": (3, 5)},
        {"size": (8, 8), "batch": 1},
        {"full": 4, "size": (6, 3)},
    ],
    ids=[
        "partly void",
        "no void",
        "mostly void",
        "two classes",
        "one position",
        "two positions",
        "odd size",
        "labels' own size",
        "finer and coarser",
    ],
)
def test_value_and_gradient_are_those_of_the_formula(member: Any, case: dict[str, Any]) -> None:
    z, labels = draw(member, **case)
    loss, oracle = member(), ORACLES[member.kind]
    value = loss(z, labels)
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, oracle(loss, z, labels), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient(lambda x: loss(x, labels), z), gradient(lambda x: oracle(loss, x, labels), z), rtol=1e-4, atol=2e-6)


@over(member for member in MEMBERS if {field.name for field in fields(member)} - {"kind", "dimension"})
def test_settings_other_than_the_default_follow_the_formula_too(member: Any) -> None:
    settings = OTHER_SETTINGS[member.kind]
    assert settings.keys() == {field.name for field in fields(member)} - {"kind"} - ({"dimension"} if "dimension" not in settings else set())
    z, labels = draw(member)
    loss = member(**settings)
    value = loss(z, labels)
    torch.testing.assert_close(value, ORACLES[member.kind](loss, z, labels), rtol=1e-5, atol=1e-6)
    assert abs(value.item() - member()(z, labels).item()) > 1e-3 or member.kind == "hsic"


@over(member for member in MEMBERS if member.kind not in CONSTANT_INSIDE)
def test_the_gradient_is_that_of_the_value(member: Any) -> None:
    z, labels = draw(member, batch=2, size=(3, 4))
    assert torch.autograd.gradcheck(lambda x: member()(x, labels), z.requires_grad_())


@every
def test_float32_is_near_float64(member: Any) -> None:
    z, labels = draw(member)
    value = member()(z.float(), labels)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(member()(z, labels).item(), rel=1e-4, abs=1e-6)


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_scored_in_float32(member: Any, dtype: torch.dtype) -> None:
    z, labels = draw(member)
    coarse = z.to(dtype)
    labels = replace(labels, output=labels.output.to(dtype))
    value = member()(coarse, labels)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(member()(coarse.float(), labels).item(), rel=1e-6)
    grad = gradient(lambda x: member()(x, labels), coarse)
    assert grad.dtype == dtype
    assert bool(torch.isfinite(grad).all())


@over(member for member in MEMBERS if member.kind not in IN_THE_PLANE | {"presence"})
def test_positions_may_come_in_any_order(member: Any) -> None:
    z, labels = draw(member)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(5))

    def mixed(x: Tensor) -> Tensor:
        return x.movedim(0, -3).flatten(-3)[..., order].unflatten(-1, (2, 4, 4)).movedim(-3, 0)

    torch.testing.assert_close(member()(mixed(z), each(labels, mixed)), member()(z, labels), rtol=1e-6, atol=1e-9)


@every
@pytest.mark.parametrize("change", [lambda x: x.flip(0), lambda x: x.transpose(-1, -2)], ids=["images in another order", "transposed"])
def test_images_may_come_in_any_order_and_lie_on_their_side(member: Any, change: Callable[[Tensor], Tensor]) -> None:
    z, labels = draw(member, size=(3, 5))
    torch.testing.assert_close(member()(change(z), each(labels, change)), member()(z, labels), rtol=1e-6, atol=1e-9)


@every
def test_classes_may_be_numbered_in_any_order(member: Any) -> None:
    # No window is tied between classes, or the majority would depend on their order.
    z, labels = draw(member, void=0.0, size=(8, 8))
    order = torch.tensor([2, 0, 3, 1])  # the new number of each class
    back = torch.argsort(order)
    other = replace(labels, hard=order[labels.hard], soft=labels.soft[:, back], output=labels.output[:, back])
    moved = z[:, back] if member.kind in IN_CLASSES | {"presence"} else z
    torch.testing.assert_close(member()(moved, other), member()(z, labels), rtol=1e-6, atol=1e-9)


def _per_position(z: Tensor) -> Tensor:
    return torch.rand(len(z), 1, *z.shape[2:], generator=torch.Generator().manual_seed(6), dtype=z.dtype) + 0.5


def _per_channel(z: Tensor) -> Tensor:
    return torch.rand(1, z.shape[1], 1, 1, generator=torch.Generator().manual_seed(7), dtype=z.dtype) + 0.5


def _shifted(z: Tensor, labels: SideLabels) -> tuple[Tensor, SideLabels]:
    return z + _per_position(z), labels


def _scaled(z: Tensor, labels: SideLabels) -> tuple[Tensor, SideLabels]:
    return z * _per_position(z), labels


def _with_every_class_inverted(z: Tensor, labels: SideLabels) -> tuple[Tensor, SideLabels]:
    return -z, replace(labels, soft=1 - labels.soft)


def _with_other_classes_and_the_same_edges(z: Tensor, labels: SideLabels) -> tuple[Tensor, SideLabels]:
    return z, replace(labels, hard=labels.hard * 7 + 3 * (labels.hard >= 0) + 6 * (labels.hard < 0), soft=labels.soft.flip(1))


def _with_other_areas(z: Tensor, labels: SideLabels) -> tuple[Tensor, SideLabels]:
    mixed = torch.where(labels.soft > 0, labels.soft * _per_channel(labels.soft), 0)
    return z, replace(labels, soft=mixed / mixed.sum(1, keepdim=True).clamp(min=1e-9), valid=torch.where(labels.valid > 0, 0.9, 0.0))


INVARIANCES: dict[str, Callable[[Tensor, SideLabels], tuple[Tensor, SideLabels]]] = {
    **dict.fromkeys(["mi_variational", "soft_ce", "focal", "brier", "js", "dice", "tversky", "lovasz", "synergy"], _shifted),
    "bce": _with_every_class_inverted,
    **dict.fromkeys(["infonce", "prototype", "affinity"], _scaled),
    "hsic": lambda z, labels: ((z + 1) * _per_channel(z), labels),
    "rmi": lambda z, labels: (-z, labels),
    "boundary": _with_other_classes_and_the_same_edges,
    "presence": _with_other_areas,
}


@every
def test_what_does_not_matter_does_not_matter_to_the_loss(member: Any) -> None:
    # sigmoid(-z) is not its complement where only a part of a position counts.
    z, labels = draw(member, void=0.0 if member.kind == "rmi" else 0.2)
    other_z, other = INVARIANCES[member.kind](z, labels)
    assert not (torch.equal(other_z, z) and torch.equal(other.soft, labels.soft))
    torch.testing.assert_close(member()(other_z, other), member()(z, labels), rtol=1e-5, atol=1e-7)


@over(member for member in MEMBERS if member.kind != "presence")
def test_void_positions_do_not_count(member: Any) -> None:
    z, labels = draw(member, size=(8, 8), void=0.3)
    is_void = (labels.valid == 0).unsqueeze(1)
    assert bool(is_void.any())
    other = torch.where(is_void, torch.randn(z.shape, generator=torch.Generator().manual_seed(9), dtype=z.dtype) * 100, z)
    torch.testing.assert_close(member()(other, labels), member()(z, labels))
    assert not bool(gradient(lambda x: member()(x, labels), z).masked_select(is_void).any())


def test_void_images_do_not_count_in_presence() -> None:
    z, labels = draw(Presence, batch=3)
    part = each(labels, lambda x: x[:2])
    labels = replace(
        labels, valid=torch.cat([labels.valid[:2], torch.zeros_like(labels.valid[2:])]), soft=labels.soft * (torch.arange(3) < 2)[:, None, None, None]
    )
    torch.testing.assert_close(Presence()(z, labels), Presence()(z[:2], part))
    assert not bool(gradient(lambda x: Presence()(x, labels), z)[2].any())


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("size", [(4, 4), (1, 1), (8, 8)])
def test_with_every_pixel_void_the_loss_is_a_zero_that_is_still_connected(member: Any, size: tuple[int, int], dtype: torch.dtype) -> None:
    z, labels = draw(member, void=1.1, size=size)
    assert not bool(labels.valid.any())
    z = z.to(dtype).requires_grad_()
    value = member()(z, labels)
    value.backward()
    assert value.item() == 0
    assert z.grad is not None
    assert not bool(z.grad.any())


@every
@pytest.mark.parametrize(
    "case",
    [{"batch": 1, "size": (1, 1)}, {"batch": 1, "full": 2, "size": (2, 2)}, {"classes": 2}, {"size": (16, 16)}, {"full": 20, "size": (3, 7)}],
    ids=["one position", "few pixels", "two classes", "finer than the labels", "no divisor"],
)
@pytest.mark.parametrize("void", [0.0, 0.4])
def test_hard_cases_stay_finite_and_above_their_least(member: Any, case: dict[str, Any], void: float) -> None:
    least = math.log(member().jitter) / 2 if member.kind == "rmi" else 0.0
    for seed in range(3):
        z, labels = draw(member, **case, void=void, seed=seed)
        for features in (z, torch.zeros_like(z), z * 1e4, torch.ones_like(z)):
            value = member()(features.float(), labels)
            assert bool(torch.isfinite(value))
            assert value.item() >= least - 1e-5
            assert bool(torch.isfinite(gradient(lambda x, labels=labels: member()(x, labels), features.float())).all())


@every
def test_one_class_alone_is_scored_by_the_formula(member: Any) -> None:
    z, labels = draw(member, void=0.0)
    one = TapLabels(torch.full((2, 8, 8), 2), K, 255).at((4, 4))
    one = replace(one, output=labels.output)
    torch.testing.assert_close(member()(z, one), ORACLES[member.kind](member(), z, one), rtol=1e-5, atol=1e-5)
    assert bool(torch.isfinite(gradient(lambda x: member()(x, one), z)).all())


@over(member for member in MEMBERS if not getattr(member, "needs_dense", False))
def test_a_volume_is_scored_as_its_slices(member: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, K, (2, 3, 8, 8), generator=generator)
    labels[0, 1, :4] = 255
    volume, slices = TapLabels(labels, K, 255).at((3, 4, 4)), TapLabels(labels.flatten(0, 1), K, 255).at((4, 4))
    teacher = torch.randn(2, K, 12, 4, generator=generator)
    z = torch.randn(shape_of(member, 2, K, (12, 4)), generator=generator)
    if member.kind == "presence":  # of a whole volume: present in one of its slices is present
        whole = TapLabels(labels.flatten(1, 2), K, 255).at((12, 4))
        torch.testing.assert_close(member()(z, volume), member()(z, whole))
        return

    def cut(x: Tensor) -> Tensor:
        return x.unflatten(2, (3, 4)).transpose(1, 2).flatten(0, 1)

    value = member()(z, replace(volume, output=teacher))
    torch.testing.assert_close(value, member()(cut(z), replace(slices, output=cut(teacher))), rtol=1e-5, atol=1e-6)


@over(member for member in MEMBERS if not getattr(member, "needs_dense", False))
def test_one_label_an_image_is_scored_as_a_map_of_one_position(member: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1, 2, 255, 1, 0])
    z = torch.randn(shape_of(member, 6, K, (1, 1)), generator=generator, dtype=torch.float64)
    teacher = torch.randn(6, K, 1, 1, generator=generator, dtype=torch.float64)
    given = replace(TapLabels(labels, K, 255).at((7, 5)), output=teacher)
    mapped = replace(TapLabels(labels.view(6, 1, 1), K, 255).at((1, 1)), output=teacher)
    assert not given.is_dense
    value = member()(z, given)
    assert torch.equal(value, member()(z, mapped))
    torch.testing.assert_close(value, ORACLES[member.kind](member(), z, given), rtol=1e-5, atol=1e-6)


@over([MiVariational, SoftCrossEntropy, Focal, BinaryCrossEntropy, Brier, JensenShannon, Synergy])
def test_one_position_of_which_a_part_is_void_counts_in_full(member: Any) -> None:
    labels = torch.full((1, 4, 4), 255)
    labels[0, :2, :] = 1  # a half
    z, teacher = torch.randn(2, 1, K, 1, 1, generator=torch.Generator().manual_seed(0))
    part, whole = (replace(TapLabels(given, K, 255).at((1, 1)), output=teacher) for given in (labels, torch.ones_like(labels)))
    torch.testing.assert_close(member()(z, part), member()(z, whole))


def test_a_single_valid_pixel_among_millions_is_still_a_mean_over_one() -> None:
    labels = torch.full((1, 1600, 1600), 255)
    labels[0, 700, 3] = 2
    at, whole = TapLabels(labels, K, 255).at((1, 1)), TapLabels(torch.full((1, 1, 1), 2), K, 255).at((1, 1))
    z = torch.randn(1, K, 1, 1, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Brier()(z, at), Brier()(z, whole))


@every
def test_descent_on_the_features_lowers_the_loss(member: Any) -> None:
    z, labels = draw(member)
    z = z.float().requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.1)
    values = []
    for _ in range(60):
        value = member()(z, labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    least = math.log(member().jitter) / 2 if member.kind == "rmi" else 0.0
    assert values[-1] - least < 0.7 * (values[0] - least)


@every
def test_the_random_state_is_neither_read_nor_moved(member: Any) -> None:
    z, labels = draw(member, size=(8, 8))
    loss = member(**{knob: 16 for knob in ("anchors", "samples") if hasattr(member, knob)})
    state = torch.get_rng_state()
    first = loss(z, labels)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(123)
    assert torch.equal(loss(z, labels), first)


@every
@pytest.mark.parametrize("classes", [2, 5])
def test_the_adapter_gives_what_the_loss_reads(member: Any, classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    adapter = member().make_adapter(7, classes, generator)
    z = adapter(torch.randn(2, 7, 4, 4, generator=generator))
    wanted = shape_of(member, 2, classes, (4, 4))
    assert z.shape == (2, getattr(member(), "dimension", 7), 4, 4) if wanted[1] == 6 else wanted
    assert getattr(member, "gives_scores", False) == (member.kind in IN_CLASSES)
    _, labels = draw(member, classes=classes)
    assert bool(torch.isfinite(member()(z, labels)))


def test_the_adapter_of_presence_reads_the_mean_over_positions() -> None:
    adapter = Presence().make_adapter(5, 3, torch.Generator().manual_seed(0))
    x = torch.randn(2, 5, 4, 6, generator=torch.Generator().manual_seed(1))
    (weight, bias) = adapter.parameters()
    expected = torch.einsum("kc,bc->bk", weight[:, :, 0, 0], x.mean((2, 3))) + bias
    torch.testing.assert_close(adapter(x)[:, :, 0, 0], expected)


@every
def test_losses_are_frozen_values_with_a_name(member: Any) -> None:
    assert member() == member()
    assert hash(member()) == hash(member())
    assert parse_side_loss(member.kind) == member()
    assert parse_side_loss(loss := member()) is loss
    with pytest.raises(AttributeError):
        member().kind = "another"


@every
def test_the_docstring_tells_formula_source_void_cost_and_settings(member: Any) -> None:
    text = member.__doc__
    assert "``" in text
    assert "O(" in text.split("\n\n")[0]
    assert "Source" in text
    assert any(word in text for word in ("valid", "void", "ignored"))
    assert "``[B, " in member.__call__.__doc__
    assert all(f"{field.name}: " in text for field in fields(member) if field.name != "kind")


@every
def test_each_declared_need_is_a_real_one(member: Any) -> None:
    z, labels = draw(member)
    if getattr(member, "needs_output", False):
        with pytest.raises(ValueError, match=rf"`labels.output` must hold the output's scores for '{member.kind}', but is None"):
            member()(z, replace(labels, output=None))
    else:
        assert torch.equal(member()(z, labels), member()(z, replace(labels, output=None)))
    assert getattr(member, "needs_dense", False) == (member.kind in IN_THE_PLANE)


# ---- against known implementations ----------------------------------------------------------------------------------------------------------


def known_labels(labels: SideLabels) -> Tensor:
    return torch.where(labels.hard < 0, 255, labels.hard)


def test_mutual_information_is_cross_entropy_on_hard_labels() -> None:
    z, labels = draw(MiVariational, size=(8, 8), void=0.3)
    expected = F.cross_entropy(z, labels.hard, ignore_index=-1)
    torch.testing.assert_close(MiVariational()(z, labels), expected)
    torch.testing.assert_close(SoftCrossEntropy()(z, labels), expected)


@pytest.mark.parametrize("void", [0.0, 0.3])
@pytest.mark.parametrize(
    ("loss", "known"),
    [
        (Dice(), smp.losses.DiceLoss("multiclass", ignore_index=255)),
        (Tversky(alpha=0.2, beta=0.7), smp.losses.TverskyLoss("multiclass", ignore_index=255, alpha=0.2, beta=0.7)),
        (Lovasz(), smp.losses.LovaszLoss("multiclass", ignore_index=255)),
    ],
    ids=["dice", "tversky", "lovasz"],
)
def test_overlap_agrees_with_a_known_implementation_where_every_class_is_present(loss: Any, known: Any, void: float) -> None:
    z, labels = draw(type(loss), full=16, size=(16, 16), void=void)
    z = z.float()
    assert set(labels.hard[labels.hard >= 0].tolist()) == set(range(K))
    torch.testing.assert_close(loss(z, labels), known(z, known_labels(labels)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient(lambda x: loss(x, labels), z), gradient(lambda x: known(x, known_labels(labels)), z), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal_agrees_with_a_known_implementation_for_two_classes(gamma: float) -> None:
    # The known one is binary: the softmax of two scores is the sigmoid of their difference.
    z, labels = draw(Focal, classes=2, full=16, size=(16, 16), void=0.3)
    known = smp.losses.FocalLoss("binary", gamma=gamma, ignore_index=255)(z[:, 1] - z[:, 0], known_labels(labels))
    torch.testing.assert_close(Focal(gamma=gamma)(z, labels), known, rtol=1e-6, atol=1e-8)


def test_binary_cross_entropy_agrees_with_a_known_implementation() -> None:
    z, labels = draw(BinaryCrossEntropy, full=16, size=(16, 16), void=0.0)
    known = smp.losses.SoftBCEWithLogitsLoss(ignore_index=None)(z, labels.soft.double())
    torch.testing.assert_close(BinaryCrossEntropy()(z, labels), known)


def test_jensen_shannon_agrees_with_a_known_implementation() -> None:
    z, labels = draw(JensenShannon, void=0.0)
    q, y = F.softmax(z, 1).movedim(1, -1), labels.soft.double().movedim(1, -1)
    q, y, middle = (Categorical(probs=p) for p in (q, y, (q + y) / 2))
    known = (kl_divergence(q, middle) + kl_divergence(y, middle)) / 2
    torch.testing.assert_close(JensenShannon()(z, labels), known.mean(), rtol=1e-6, atol=1e-9)


# ---- of single losses -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "worst"), [(Dice(), 1.0), (Tversky(), 1.0), (Lovasz(), 1.0), (Brier(), 2.0), (JensenShannon(), math.log(2))])
def test_bounded_losses_run_from_zero_for_right_to_their_bound_for_wrong(loss: Any, worst: float) -> None:
    _, labels = draw(type(loss), size=(8, 8), void=0.0)
    right = labels.soft * 100
    wrong = labels.soft.roll(1, 1) * 100
    assert loss(right, labels).item() == pytest.approx(0, abs=1e-6)
    assert loss(wrong, labels).item() == pytest.approx(worst, abs=1e-6)


@pytest.mark.parametrize("loss", [Dice(), Tversky(), Lovasz(), Brier(), JensenShannon(), MiVariational()])
def test_a_right_answer_beside_void_is_right_and_descent_leads_to_it(loss: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(0, K - 1, (2, 8, 8), generator=generator)  # the last class is absent
    labels = classes.repeat_interleave(2, 1).repeat_interleave(2, 2)
    for row, column in ((0, 0), (0, 1)):  # half of each position is void, and a quarter of it is left of some
        labels[:, row::2, column::2] = 255
    labels[:, 1::2, ::4] = 255
    at = TapLabels(labels, K, 255).at((8, 8))
    assert set(at.valid.unique().tolist()) == {0.25, 0.5}
    right = 50 * F.one_hot(classes, K).movedim(-1, 1).float()
    assert loss(right, at).item() == pytest.approx(0, abs=1e-6)
    # The slope points to the right class wherever a position counts.
    unsure = right / 50
    towards = (gradient(lambda z: loss(z, at), unsure) * right).sum(1)
    counts = at.hard >= 0 if loss.kind in {"lovasz", "mi_variational"} else at.valid > 0
    assert (towards[counts] < 0).all()


def test_focal_without_focus_is_cross_entropy_and_easy_pixels_weigh_less_with_it() -> None:
    z, labels = draw(Focal)
    torch.testing.assert_close(Focal(gamma=0.0)(z, labels), MiVariational()(z, labels))
    easy, hard = (torch.tensor([margin, 0.0, 0.0, 0.0]).view(1, K, 1, 1) for margin in (3.0, -1.0))
    at = TapLabels(torch.zeros(1, 1, 1, dtype=torch.int64), K, 255).at((1, 1))
    assert Focal()(easy, at) / MiVariational()(easy, at) < 0.1 < Focal()(hard, at) / MiVariational()(hard, at)


def test_tversky_weighs_false_positives_with_alpha_and_false_negatives_with_beta() -> None:
    labels = TapLabels(torch.tensor([[[0, 0, 1, 1]]]), 2, 255).at((1, 4))
    z = 50 * F.one_hot(torch.tensor([[[0, 1, 1, 1]]]), 2).permute(0, 3, 1, 2).float()  # class 0 is missed once, class 1 given once too often
    expected = 1 - (1 / (1 + 0.9) + 2 / (2 + 0.2)) / 2
    assert Tversky(alpha=0.2, beta=0.9)(z, labels).item() == pytest.approx(expected, rel=1e-6)


def test_lovasz_of_certain_scores_is_the_jaccard_loss() -> None:
    labels = TapLabels(torch.tensor([[[0, 0, 1, 1, 255]]]), 3, 255).at((1, 5))
    z = 50 * F.one_hot(torch.tensor([[[0, 1, 1, 1, 2]]]), 3).permute(0, 3, 1, 2).float()
    assert Lovasz()(z, labels).item() == pytest.approx(1 - (1 / 2 + 2 / 3) / 2, rel=1e-6)


@over([InfoNCE, Prototype, Affinity])
def test_metric_losses_prefer_features_that_agree_within_a_class(member: Any) -> None:
    _, labels = draw(member, void=0.0, size=(8, 8))
    apart, together = labels.soft * 3, torch.ones(2, K, 8, 8)
    assert member()(apart, labels).item() < member()(together, labels).item()


def test_infonce_of_perfect_classes_is_the_log_of_the_number_of_positives() -> None:
    labels = TapLabels(torch.tensor([[[0, 0, 0], [1, 1, 1]]]), 2, 255).at((2, 3))
    assert InfoNCE(temperature=0.01)(labels.soft, labels).item() == pytest.approx(math.log(2), rel=1e-5)


def test_prototype_of_equal_features_is_the_log_of_the_number_of_present_classes() -> None:
    labels = TapLabels(torch.tensor([[[0, 2, 2], [3, 0, 2]]]), 7, 255).at((2, 3))
    assert Prototype()(torch.ones(1, 5, 2, 3), labels).item() == pytest.approx(math.log(3), rel=1e-5)


@over([InfoNCE, Prototype, Affinity])
def test_an_inactive_position_does_not_blow_up_the_gradient(member: Any) -> None:
    z, labels = draw(member, void=0.0)
    usual = gradient(lambda x: member()(x, labels), z).abs().max()
    z[0, :, 1, 1] = 0
    assert bool(gradient(lambda x: member()(x, labels), z).abs().max() < 1e4 * usual)


def test_hsic_is_zero_for_features_that_are_the_label_and_one_for_features_that_are_not() -> None:
    _, labels = draw(Hsic, classes=2, full=32, size=(32, 32), void=0.0)
    generator = torch.Generator().manual_seed(0)
    assert Hsic(samples=512)(labels.soft, labels).item() == pytest.approx(0, abs=1e-3)
    assert Hsic(samples=512)(torch.randn(2, 4, 32, 32, generator=generator), labels).item() > 0.95


def test_region_information_is_more_for_the_labels_themselves_than_for_noise() -> None:
    _, labels = draw(RegionMutualInformation, full=32, size=(32, 32), void=0.0)
    noise = torch.randn(2, K, 32, 32, generator=torch.Generator().manual_seed(0))
    told, untold = (RegionMutualInformation()(z, labels).item() for z in (labels.soft * 8 - 4, noise))
    # Of noise nothing is known: what is left is the entropy of the label regions.
    nothing = RegionMutualInformation()(torch.zeros(2, K, 32, 32), labels).item()
    assert told < nothing - 1
    assert abs(untold - nothing) < 0.1


@pytest.mark.parametrize("jitter", [1e-4, 1e-6, 1e-8])
def test_region_information_of_nearly_certain_scores_is_that_of_float64(jitter: float) -> None:
    # What is left unexplained is smaller than the rounding of covariances in float32: their determinants would be of noise, or not defined.
    labels = torch.zeros(2, 64, 64, dtype=torch.int64)
    labels[:, :, 32:] = 1
    at = TapLabels(labels, 2, 255).at((64, 64))
    z = at.soft * 12 - 6 + 0.01 * torch.randn(2, 2, 64, 64, generator=torch.Generator().manual_seed(0))
    loss = RegionMutualInformation(jitter=jitter)
    assert loss(z, at).item() == pytest.approx(loss(z.double(), at).item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_prototype_at_features_of_zero_is_its_formula_with_the_shortest_length(dtype: torch.dtype) -> None:
    """A position without any feature counts as a vector of length 0 of those that count as 1e-3 long: equally far from all classes."""
    z, labels = draw(Prototype, void=0.0)
    z[0, :, 1, 1] = z[1, :, 0, 2] = 0
    z = z.to(dtype)
    value = Prototype()(z, labels)
    seen = [(x / x.norm().clamp(min=1e-3), y) for x, y in pixels(z.double(), labels)]
    centres = {k: unit(sum(x for x, y in seen if y == k)) for k in {y for _, y in seen}}
    terms = []
    for x, y in seen:
        strength = {k: torch.exp(x @ centre / Prototype().temperature) for k, centre in centres.items()}
        terms.append(-torch.log(strength[y] / sum(strength.values())))
    assert terms[5].item() == pytest.approx(math.log(len(centres)))
    torch.testing.assert_close(value.double(), sum(terms) / len(terms), rtol=1e-5, atol=1e-6)
    grad = gradient(lambda x: Prototype()(x, labels), z)
    assert bool(torch.isfinite(grad).all())


def test_prototype_of_features_that_are_all_zero_is_that_of_classes_that_cannot_be_told_apart() -> None:
    _, labels = draw(Prototype, void=0.0)
    z = torch.zeros(2, 6, 4, 4)
    present = len(set(labels.hard.flatten().tolist()) - {-1})
    assert Prototype()(z, labels).item() == pytest.approx(math.log(present), rel=1e-6)
    assert bool(torch.isfinite(gradient(lambda x: Prototype()(x, labels), z)).all())


def test_an_edge_lies_between_classes_and_not_at_void() -> None:
    labels = TapLabels(torch.tensor([[[0, 0, 1, 255, 2], [0, 0, 1, 1, 2]]]), 3, 255).at((2, 5))
    z = torch.zeros(1, 1, 2, 5, dtype=torch.float64)
    slope = gradient(lambda x: Boundary()(x, labels), z)[0, 0].sign()
    assert slope.tolist() == [[1, -1, 1, 0, 1], [1, -1, 1, -1, 1]]  # an edge wants a higher score


def test_a_rare_edge_weighs_as_much_as_all_others_together() -> None:
    labels = torch.zeros(1, 8, 8, dtype=torch.int64)
    labels[0, 7, 7] = 1
    slope = gradient(lambda x: Boundary()(x, TapLabels(labels, 2, 255).at((8, 8))), torch.zeros(1, 1, 8, 8))
    torch.testing.assert_close(slope[slope < 0].sum(), -slope[slope > 0].sum())


def test_synergy_is_least_at_the_output_and_cross_entropy_for_a_sure_output() -> None:
    z, labels = draw(Synergy, void=0.0, size=(8, 8))
    assert Synergy(temperature=2.0)(labels.output + 3, labels).item() == pytest.approx(0, abs=1e-9)
    sure = replace(labels, output=200 * labels.soft.double())
    torch.testing.assert_close(Synergy()(z, sure), MiVariational()(z, labels))


def test_synergy_does_not_teach_the_output() -> None:
    z, labels = draw(Synergy)
    assert labels.output is not None
    Synergy()(z.requires_grad_(), labels).backward()
    assert labels.output.grad is None
    assert bool(z.grad.any())


@over([InfoNCE, Prototype, Synergy])
def test_a_lower_temperature_sharpens(member: Any) -> None:
    z, labels = draw(member)
    grads = [gradient(lambda x, t=t: member(temperature=t)(x, labels) / (t**2 if member is Synergy else 1), z).norm().item() for t in (1.0, 0.3, 0.1)]
    assert all(cold > warm for warm, cold in pairwise(grads))


# ---- sampling -------------------------------------------------------------------------------------------------------------------------------


def drawn(labels: SideLabels, count: int, number: int) -> tuple[list[int], Tensor]:
    """Positions that are sampled, and whether each is valid; features are the positions' own numbers."""
    b, h, w = labels.hard.shape
    z = torch.arange(b * h * w, dtype=torch.float64).view(b, 1, h, w)
    x, y, is_valid = sample(z, replace(labels, draw=torch.tensor(number)), count)
    chosen = x[:, 0].long()
    assert torch.equal(y, labels.hard.flatten()[chosen])
    assert torch.equal(is_valid, y >= 0)
    return chosen.tolist(), is_valid


@pytest.mark.parametrize("count", [1, 16, 100, 1000])
def test_a_sample_holds_each_position_at_most_once_and_valid_ones_first(count: int) -> None:
    _, labels = draw(InfoNCE, size=(8, 8), void=0.5)
    valid = int((labels.hard >= 0).sum())
    for number in range(20):
        chosen, is_valid = drawn(labels, count, number)
        assert len(chosen) == len(set(chosen)) == min(count, 128)
        assert int(is_valid.sum()) == min(count, valid)


def test_equal_draws_are_equal_and_others_differ() -> None:
    _, labels = draw(InfoNCE, size=(16, 16))
    samples = [frozenset(drawn(labels, 64, number)[0]) for number in range(50)]
    assert len(set(samples)) == 50
    assert samples == [frozenset(drawn(labels, 64, number)[0]) for number in range(50)]


@pytest.mark.parametrize("start", [0, 1_000_003 * 7, 1_000_003 * 10_000])
def test_every_position_is_drawn_as_often_as_every_other(start: int) -> None:
    """A chi-square statistic of the counts over draws that follow each other, as in training, and of the pairs of neighbours."""
    draws, positions, count = 3000, 64, 16
    labels = TapLabels(torch.zeros(1, 8, 8, dtype=torch.int64), 2, 255).at((8, 8))
    seen = torch.zeros(draws, positions)
    for number in range(draws):
        seen[number, drawn(labels, count, start + number)[0]] = 1
    share = count / positions
    chi = (seen.sum(0) - draws * share).square().sum() / (draws * share * (1 - share))
    assert 30 < chi.item() < 110  # of 63 degrees of freedom: mean 63, standard deviation 11
    both = share * (count - 1) / (positions - 1)
    for distance in (1, 8):
        pairs = (seen * seen.roll(distance, 1)).sum(0)
        chi = (pairs - draws * both).square().sum() / (draws * both * (1 - both))
        assert chi.item() < 130
    after = (seen[:-1] * seen[1:]).sum().item() / (draws - 1) / count  # a draw tells nothing of the next
    assert after == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize(("member", "knob"), [(InfoNCE, "anchors"), (Hsic, "samples")])
def test_sampled_losses_depend_on_the_draw_only_where_valid_positions_are_more_than_samples(member: Any, knob: str) -> None:
    z, labels = draw(member, size=(8, 8))
    valid = int((labels.hard >= 0).sum())
    few, all_of_them = member(**{knob: 16}), member(**{knob: valid})
    first, second = labels, replace(labels, draw=torch.tensor(1))
    assert few(z, first) != few(z, second)
    torch.testing.assert_close(all_of_them(z, first), all_of_them(z, second))


@pytest.mark.parametrize(("member", "knob"), [(InfoNCE, "anchors"), (Hsic, "samples")])
def test_no_more_positions_than_asked_are_touched(member: Any, knob: str) -> None:
    z, labels = draw(member, size=(8, 8), void=0.5)
    touched = gradient(lambda x: member(**{knob: 16})(x, labels), z).abs().sum(1) > 0
    assert 10 <= int(touched.sum()) <= 16
    assert not bool((touched & (labels.hard < 0)).any())


@pytest.mark.parametrize(("member", "knob"), [(InfoNCE, "anchors"), (Hsic, "samples")])
@pytest.mark.parametrize("void", [0.0, 0.5, 0.95])
def test_an_adapter_that_sees_the_sample_alone_gives_the_same_loss_and_gradient(member: Any, knob: str, void: float) -> None:
    z, labels = draw(member, size=(8, 8), void=void)
    loss = member(**{knob: 16})
    adapter = torch.nn.Conv2d(z.shape[1], 5, 1).double()
    for features in (z, z.contiguous(memory_format=torch.channels_last)):
        found = []
        for is_first in (False, True):
            leaf = features.clone().requires_grad_()
            read, of_read = only_drawn(leaf, labels, loss.num_read) if is_first else (leaf, labels)
            assert read.shape[-2:] == ((1, 16) if is_first else (8, 8))
            assert of_read.soft.shape[2:] == of_read.valid.shape[1:] == of_read.hard.shape[1:] == read.shape[2:]
            value = loss(adapter(read), of_read)
            found.append((value, *torch.autograd.grad(value, (leaf, adapter.weight, adapter.bias))))
        torch.testing.assert_close(found[0], found[1])
    few = member(**{knob: 1000})
    assert only_drawn(z, labels, few.num_read)[0] is z


def test_labels_of_a_sample_are_those_of_its_positions() -> None:
    z, labels = draw(InfoNCE, size=(8, 8), void=0.3)
    numbers = torch.arange(labels.hard.numel(), dtype=z.dtype).view(len(z), 1, 8, 8)
    read, of_read = only_drawn(numbers, labels, 40)
    at = read.long().flatten()
    assert torch.equal(of_read.hard.flatten(), labels.hard.flatten()[at])
    assert torch.equal(of_read.valid.flatten(), labels.valid.flatten()[at])
    assert torch.equal(of_read.soft.flatten(2)[0], labels.soft.permute(1, 0, 2, 3).flatten(1)[:, at])


# ---- one loss a tap -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taps() -> tuple[Any, ...]:
    from imachsr import trace

    return DepthStandard(max_taps=5).select(trace(Encoder(), images()))


@pytest.mark.parametrize("loss", ["dice", Dice()])
def test_one_loss_serves_all_taps(loss: Any, taps: Any) -> None:
    assert losses_of(loss, taps) == (Dice(),) * 5


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_sequence_gives_each_tap_its_own(kind: Any, taps: Any) -> None:
    assert losses_of(kind(["dice", Brier(), "pixel_contrast"]), taps[:3]) == (Dice(), Brier(), InfoNCE())


@pytest.mark.parametrize(("count", "share", "early"), [(5, 0.5, 2), (4, 0.5, 2), (1, 0.5, 1), (2, 0.1, 1), (5, 0.99, 4), (10, 0.3, 3), (5, 0.6, 3)])
def test_a_rule_by_depth_splits_the_taps_at_its_share(count: int, share: float, early: int) -> None:
    assert DepthRule(early="affinity", late="dice", share=share).each(count) == ["affinity"] * early + ["dice"] * (count - early)


def test_a_rule_by_depth_is_taken_up(taps: Any) -> None:
    assert losses_of(DepthRule(early="affinity", late=Tversky()), taps) == (Affinity(), Affinity(), Tversky(), Tversky(), Tversky())


@pytest.mark.parametrize("count", [0, 1, 4, 6])
def test_a_sequence_of_another_length_is_refused(count: int, taps: Any) -> None:
    with pytest.raises(ValueError, match=f"`loss` must hold one loss a tap, but got {count} losses for 5 taps"):
        losses_of(["dice"] * count, taps)


@pytest.mark.parametrize(
    "wrap", [lambda loss: loss, lambda loss: [loss] * 5, lambda loss: DepthRule(early="dice", late=loss)], ids=["one", "list", "rule"]
)
def test_what_is_no_side_loss_is_refused_wherever_it_stands(wrap: Callable[[Any], Any], taps: Any) -> None:
    with pytest.raises(TypeError, match="`loss` must have `family`, `make_adapter` and `__call__`, but got function"):
        losses_of(wrap(F.cross_entropy), taps)
    with pytest.raises(TypeError, match=r"`loss` must be a side loss, but got its class; write Dice\(\)"):
        losses_of(wrap(Dice), taps)
    with pytest.raises(ValueError, match=r"`loss` must be one of \['affinity', .*\], but got 'protoype'; nearest: 'prototype'"):
        losses_of(wrap("protoype"), taps)
    with pytest.raises(TypeError, match="`loss` must have `family`, `make_adapter` and `__call__`, but got (set|NoneType)"):
        losses_of(wrap({"dice"}), taps)


def test_shipped_losses_fit_the_protocol() -> None:
    assert all(isinstance(member(), AnySideLoss) for member in MEMBERS)


# ---- errors ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InfoNCE(temperature=0), r"`temperature > 0` must hold, but got 0"),
        (lambda: Prototype(temperature=float("nan")), r"`temperature > 0` must hold, but got nan"),
        (lambda: Prototype(dimension=0), r"`dimension >= 1` must hold, but got 0"),
        (lambda: InfoNCE(anchors=1), r"`anchors >= 2` must hold, but got 1"),
        (lambda: Hsic(samples=1), r"`samples >= 2` must hold, but got 1"),
        (lambda: Focal(gamma=-0.5), r"`gamma >= 0` must hold, but got -0.5"),
        (lambda: Tversky(alpha=0.0), r"`alpha > 0` must hold, but got 0.0"),
        (lambda: Tversky(beta=-1.0), r"`beta > 0` must hold, but got -1.0"),
        (lambda: RegionMutualInformation(size=1), r"`size >= 2` must hold, but got 1"),
        (lambda: RegionMutualInformation(pool=0), r"`pool >= 1` must hold, but got 0"),
        (lambda: RegionMutualInformation(jitter=0.0), r"`jitter > 0` must hold, but got 0.0"),
        (lambda: Synergy(temperature=-1.0), r"`temperature > 0` must hold, but got -1.0"),
        (lambda: DepthRule(early="dice", late="brier", share=0.0), r"`0 < share < 1` must hold, but got 0.0"),
        (lambda: DepthRule(early="dice", late="brier", share=1.0), r"`0 < share < 1` must hold, but got 1.0"),
    ],
)
def test_values_out_of_range_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
