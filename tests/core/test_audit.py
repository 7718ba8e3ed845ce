from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, ClassVar, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imachsr.core.audit import EQUIVALENT, Angle, audit
from imachsr.core.labels import SideLabels
from imachsr.core.losses import SideLoss
from imachsr.core.output import CrossEntropy

KINDS = [member.kind for member in get_args(SideLoss)]
OUTPUT = "cross_entropy (output)"


@pytest.fixture(scope="module")
def angles() -> dict[frozenset[str], Angle]:
    return {frozenset((angle.first, angle.second)): angle for angle in audit(draws=20)}


@dataclass(frozen=True, kw_only=True)
class Own:
    """A loss of a user, on scores."""

    kind: str = "own"
    family: ClassVar[str] = "metric"

    def make_adapter(self, channels: int, num_classes: int, generator: torch.Generator) -> nn.Module:
        return nn.Identity()

    def __call__(self, z: Tensor, labels: SideLabels) -> Tensor:
        raise NotImplementedError


class CrossEntropyCalledMetric(Own):
    def __call__(self, z: Tensor, labels: SideLabels) -> Tensor:
        return F.cross_entropy(z, labels.hard, ignore_index=-1)


class CrossEntropyInOtherUnits(Own):
    def __call__(self, z: Tensor, labels: SideLabels) -> Tensor:
        return 3.0 + 0.01 * F.cross_entropy(z, labels.hard, ignore_index=-1)


class SmoothedCrossEntropy(Own):
    def __call__(self, z: Tensor, labels: SideLabels) -> Tensor:
        return F.cross_entropy(z, labels.hard, ignore_index=-1, label_smoothing=0.05)


class Backwards(Own):
    def __call__(self, z: Tensor, labels: SideLabels) -> Tensor:
        return -F.cross_entropy(z, labels.hard, ignore_index=-1)


class Norm(Own):
    def __call__(self, z: Tensor, labels: SideLabels) -> Tensor:
        return z.square().mean()


def test_every_pair_is_compared_once(angles: dict[frozenset[str], Angle]) -> None:
    assert set(angles) == {frozenset(pair) for pair in combinations([OUTPUT, *KINDS], 2)}
    assert all(-1 <= angle.cosine <= 1 and angle.spread >= 0 for angle in angles.values())


@pytest.mark.parametrize("kind", ["mi_variational", "soft_ce"])
def test_cross_entropy_under_another_name_is_found_equivalent(kind: str, angles: dict[frozenset[str], Angle]) -> None:
    angle = angles[frozenset((OUTPUT, kind))]
    assert angle.cosine > 0.999
    assert angle.is_equivalent
    assert angle.same_family


@pytest.mark.parametrize(("one", "other"), combinations([OUTPUT, *KINDS], 2))
def test_losses_of_different_families_are_not_equivalent(one: str, other: str, angles: dict[frozenset[str], Angle]) -> None:
    angle = angles[frozenset((one, other))]
    families = {OUTPUT: CrossEntropy.family, **{member.kind: member.family for member in get_args(SideLoss)}}
    assert angle.same_family == (families[one] == families[other])
    if not angle.same_family:
        assert angle.cosine < EQUIVALENT
        assert not angle.is_equivalent
    assert angle.is_honest


@pytest.mark.parametrize(
    "liar", [CrossEntropyCalledMetric(), CrossEntropyInOtherUnits(), SmoothedCrossEntropy()], ids=lambda liar: type(liar).__name__
)
def test_cross_entropy_declared_as_another_family_is_caught(liar: Any) -> None:
    (angle,) = audit([liar], draws=10)
    assert angle.is_equivalent
    assert not angle.same_family
    assert not angle.is_honest


@pytest.mark.parametrize("own", [Backwards(), Norm()], ids=lambda own: type(own).__name__)
def test_what_trains_another_thing_is_honest_under_its_own_family(own: Any) -> None:
    (angle,) = audit([own], draws=10)
    assert not angle.is_equivalent
    assert angle.is_honest


def test_the_cosine_is_that_of_the_losses() -> None:
    opposite, aside = audit([Backwards()], draws=5)[0], audit([Norm()], draws=5)[0]
    assert opposite.cosine == pytest.approx(-1, abs=1e-9)
    assert opposite.spread == pytest.approx(0, abs=1e-9)
    assert abs(aside.cosine) < 0.5
    assert aside.spread > 0


def test_a_pair_is_honest_unless_it_is_equivalent_under_two_families() -> None:
    angle = Angle(first="a", second="b", cosine=EQUIVALENT, spread=0.0, same_family=False)
    assert angle.is_equivalent
    assert not angle.is_honest
    assert replace(angle, same_family=True).is_honest
    assert replace(angle, cosine=EQUIVALENT - 1e-6).is_honest


def test_equal_seeds_give_equal_angles_and_the_global_state_is_left_alone() -> None:
    state = torch.get_rng_state()
    first = audit(draws=2, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(9)
    assert audit(draws=2, seed=3) == first
    assert audit(draws=2, seed=4) != first


@pytest.mark.parametrize("draws", [1, 0])
def test_fewer_draws_than_a_spread_needs_are_refused(draws: int) -> None:
    with pytest.raises(ValueError, match=f"`draws >= 2` must hold, but got {draws}"):
        audit(draws=draws)
