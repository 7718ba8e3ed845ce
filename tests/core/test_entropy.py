import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from imachsr import ChannelEntropy, ChannelNormEntropy
from imachsr.core.entropy import Regularizer, parse_regularizer

every = pytest.mark.parametrize("member", get_args(Regularizer), ids=lambda member: member.kind)


def draw(*, channels: int = 6, scale: float = 2.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = scale * torch.randn(2, channels, 3, 4, generator=generator, dtype=torch.float64)
    valid = torch.rand(2, 3, 4, generator=generator, dtype=torch.float64).mul(4).round() / 4
    return features, valid


def oracle(term: Any, features: Tensor, valid: Tensor | None) -> float:
    """The formulas of the docstrings, pixel by pixel."""
    total, mass = 0.0, 0.0
    b, channels, h, w = features.shape
    for n in range(b):
        for i in range(h):
            for j in range(w):
                pixel = [float(v) for v in features[n, :, i, j]]
                if getattr(term, "standardize", False):
                    mean = sum(pixel) / channels
                    spread = math.sqrt(sum((v - mean) ** 2 for v in pixel) / channels + 1e-6)
                    pixel = [(v - mean) / spread for v in pixel]
                weights = [math.exp(v / term.temperature) for v in pixel]
                entropy = -sum(p / sum(weights) * math.log(p / sum(weights)) for p in weights)
                weight = 1.0 if valid is None else float(valid[n, i, j])
                total += weight * (1 - entropy / math.log(channels) if term.kind == "channel_norm" else -entropy)
                mass += weight
    return total / mass


@every
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("weighted", [True, False])
def test_value_is_that_of_the_formula(member: Any, temperature: float, weighted: bool) -> None:
    features, valid = draw()
    term = member(temperature=temperature)
    given = valid if weighted else None
    assert term(features, given).item() == pytest.approx(oracle(term, features, given), rel=1e-9)
    assert term(features.float(), given).item() == pytest.approx(oracle(term, features, given), rel=1e-4)


def test_standardised_entropy_is_that_of_the_formula_and_blind_to_the_scale_of_the_features() -> None:
    features, valid = draw()
    term = ChannelNormEntropy(standardize=True)
    assert term(features, valid).item() == pytest.approx(oracle(term, features, valid), rel=1e-9)
    assert term(features * 5 + 3, valid).item() == pytest.approx(term(features, valid).item(), rel=1e-4)
    assert ChannelNormEntropy()(features * 5 + 3, valid).item() > 1.5 * ChannelNormEntropy()(features, valid).item()


@every
def test_the_gradient_is_that_of_the_value(member: Any) -> None:
    features, valid = draw()
    assert torch.autograd.gradcheck(lambda x: member(temperature=0.7)(x, valid), features.requires_grad_())


def test_the_gradient_of_the_papers_term_is_the_known_one() -> None:
    """(1 / tau) p_j (log p_j + H) in each pixel, over the number of pixels."""
    features, _ = draw()
    features.requires_grad_()
    (grad,) = torch.autograd.grad(ChannelEntropy(temperature=0.7)(features), features)
    p = torch.softmax(features.detach() / 0.7, 1)
    entropy = -(p * p.log()).sum(1, keepdim=True)
    torch.testing.assert_close(grad, p * (p.log() + entropy) / 0.7 / (2 * 3 * 4))


@every
def test_a_step_of_descent_raises_the_entropy(member: Any) -> None:
    features, _ = draw()
    features.requires_grad_()
    (grad,) = torch.autograd.grad(member()(features), features)

    def entropy(x: Tensor) -> float:
        return float(torch.distributions.Categorical(logits=x.movedim(1, -1)).entropy().mean())

    assert entropy(features.detach() - 0.5 * grad) > entropy(features.detach())


@every
@pytest.mark.parametrize("channels", [2, 64])
def test_the_range_runs_from_flat_to_peaked_features(member: Any, channels: int) -> None:
    lowest, highest = (0.0, 1.0) if member.kind == "channel_norm" else (-math.log(channels), 0.0)
    flat = torch.zeros(2, channels, 3, 4)
    peaked = flat.clone()
    peaked[:, 0] = 1e3
    assert member()(flat).item() == pytest.approx(lowest, abs=1e-5)
    assert member()(peaked).item() == pytest.approx(highest, abs=1e-5)
    assert lowest - 1e-5 <= member()(draw(channels=channels)[0]).item() <= highest + 1e-5


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_taken_in_float32(member: Any, dtype: torch.dtype) -> None:
    features = (draw(scale=50.0)[0]).to(dtype).requires_grad_()
    p = torch.softmax(features.detach(), 1)
    if dtype == torch.float16:
        assert bool((p * p.log()).isnan().any())  # what a plain formula in half precision gives
    value = member()(features)
    value.backward()
    assert value.dtype == torch.float32
    assert bool(torch.isfinite(value))
    assert features.grad is not None
    assert bool(torch.isfinite(features.grad).all())


@every
def test_void_pixels_do_not_count_and_their_number_does_not_matter(member: Any) -> None:
    features, _ = draw()
    valid = torch.zeros(2, 3, 4)
    valid[0, 1, 2] = 0.25
    assert member()(features, valid).item() == pytest.approx(member()(features[:1, :, 1:2, 2:3]).item(), rel=1e-6)


@every
def test_with_every_pixel_void_the_term_is_a_zero_that_is_still_connected(member: Any) -> None:
    features = draw()[0].float().requires_grad_()
    value = member()(features, torch.zeros(2, 3, 4))
    value.backward()
    assert value.item() == 0
    assert features.grad is not None
    assert not bool(features.grad.any())


@every
@pytest.mark.parametrize("temperature", [0, -1.0, float("nan")])
def test_a_temperature_out_of_range_is_refused(member: Any, temperature: float) -> None:
    with pytest.raises(ValueError, match=f"`temperature > 0` must hold, but got {temperature}"):
        member(temperature=temperature)


@every
def test_a_regularizer_is_found_by_its_name(member: Any) -> None:
    assert parse_regularizer(member.kind) == member()
    assert parse_regularizer(term := member(temperature=2.0)) is term


def test_what_is_no_regularizer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`entropy` must be one of \['channel', 'channel_norm'\], but got 'chanel'; nearest: 'channel'"):
        parse_regularizer("chanel")
    for wrong in (0.5, ChannelEntropy):
        with pytest.raises(TypeError, match="`entropy` must be a name, None or an object called"):
            parse_regularizer(wrong)  # type: ignore[arg-type]
