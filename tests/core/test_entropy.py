import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from imachsr import ChannelEntropy, ChannelNormEntropy, SideLabels
from imachsr.core import entropy as module
from imachsr.core.entropy import Regularizer, negative_entropy, parse_regularizer

MEMBERS = get_args(Regularizer)
every = pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.kind)
pixelwise = pytest.mark.parametrize("member", [m for m in MEMBERS if m.kind not in ("spatial", "marginal")], ids=lambda member: member.kind)


def labelled(valid: Tensor) -> SideLabels:
    hard = torch.zeros(valid.shape, dtype=torch.int64)
    return SideLabels(hard=hard, soft=torch.zeros(len(valid), 2, *valid.shape[1:]), valid=valid)


def draw(*, channels: int = 6, scale: float = 2.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = scale * torch.randn(2, channels, 3, 4, generator=generator, dtype=torch.float64)
    valid = torch.rand(2, 3, 4, generator=generator, dtype=torch.float64).mul(4).round() / 4
    return features, valid


ALL = torch.ones(2, 3, 4)


def distribution(values: list[float], temperature: float) -> list[float]:
    top = max(values)
    weights = [math.exp((value - top) / temperature) for value in values]
    return [weight / sum(weights) for weight in weights]


def entropy_of(p: list[float]) -> float:
    return -sum(q * math.log(q) for q in p if q > 0)


def standardised(values: list[float]) -> list[float]:
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values) + 1e-6)
    return [(value - mean) / spread for value in values]


def oracle(term: Any, features: Tensor, valid: Tensor) -> float:
    """The formulas of the docstrings, number by number."""
    b, channels, h, w = features.shape
    cells = [(n, i, j) for n in range(b) for i in range(h) for j in range(w)]
    at = {(n, i, j): [float(value) for value in features[n, :, i, j]] for n, i, j in cells}
    if term.standardize:
        at = {cell: standardised(values) for cell, values in at.items()}
    weight = {(n, i, j): float(valid[n, i, j]) for n, i, j in cells}
    mass = sum(weight.values())
    if term.kind == "spatial":
        images = [n for n in range(b) if any(weight[cell] > 0 for cell in cells if cell[0] == n)]
        one = {
            (n, c): 1 - entropy_of(distribution([at[cell][c] for cell in cells if cell[0] == n], term.temperature)) / math.log(h * w)
            for n in images
            for c in range(channels)
        }
        return sum(one.values()) / len(one)
    p = {cell: distribution(values, term.temperature) for cell, values in at.items()}
    if term.kind == "marginal":
        return 1 - entropy_of([sum(weight[cell] * p[cell][c] for cell in cells) / mass for c in range(channels)]) / math.log(channels)
    one_pixel: Callable[[list[float]], float] = {
        "channel": lambda q: -entropy_of(q),
        "channel_norm": lambda q: 1 - entropy_of(q) / math.log(channels),
        "adapter": lambda q: 1 - entropy_of(q) / math.log(channels),
        "renyi2": lambda q: sum(v * v for v in q),
    }[term.kind]
    return sum(weight[cell] * one_pixel(p[cell]) for cell in cells) / mass


@every
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("standardize", [False, True])
def test_value_is_that_of_the_formula(member: Any, temperature: float, standardize: bool) -> None:
    term = member(temperature=temperature, standardize=standardize)
    features, valid = draw()
    valid[1] = 0  # an image without a label counts nowhere
    for given in (valid, valid * 0 + 1):
        expected = oracle(term, features, given)
        assert term(features, labelled(given)).item() == pytest.approx(expected, rel=1e-9)
        assert term(features.float(), labelled(given.float())).item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


@every
def test_standardised_terms_are_blind_to_the_scale_of_the_features(member: Any) -> None:
    features, valid = draw()
    features = features.abs() * torch.arange(1, 7).view(1, 6, 1, 1)  # some channels are larger throughout
    for term, is_blind in ((member(standardize=True), True), (member(), False)):
        given, scaled = (term(x, labelled(valid)).item() for x in (features, features * 5 + 3))
        assert (given == pytest.approx(scaled, rel=1e-4)) == is_blind


@every
@pytest.mark.parametrize("chunk", [7, 30, 2**17])
def test_the_gradient_is_that_of_the_value_however_it_is_cut(member: Any, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", chunk)
    features, valid = draw()
    features.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: member(temperature=0.7)(x, labelled(valid)), features)


@pytest.mark.parametrize("chunk", [1, 5, 64, 2**17])
def test_pieces_change_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features = draw()[0]
    log_p = F.log_softmax(features / 0.7, 1)
    monkeypatch.setattr(module, "_CHUNK", chunk)
    features.requires_grad_()
    value = negative_entropy(features, 0.7)
    torch.testing.assert_close(value.detach(), (log_p.exp() * log_p).sum(1))
    seed = torch.randn(value.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(value, features, seed)
    entropy = -(log_p.exp() * log_p).sum(1, keepdim=True)
    torch.testing.assert_close(gradient, seed.unsqueeze(1) * log_p.exp() * (log_p + entropy) / 0.7)


def test_a_gpu_is_not_given_the_small_pieces_of_a_cpu() -> None:
    def pieces(device: str) -> int:  # only shapes: there need be no such memory
        return len(module._chunks(torch.empty(2, 512, 256 * 128, device=device).expand(2, -1, -1)))

    assert (pieces("cpu"), pieces("meta")) == (128, 1)
    assert len(module._chunks(torch.empty(16, 2048, 128 * 64, device="meta"))) == 4


def test_the_gradient_of_the_papers_term_is_the_known_one() -> None:
    """(1 / tau) p_j (log p_j + H) in each pixel, over the number of pixels."""
    features, _ = draw()
    features.requires_grad_()
    (grad,) = torch.autograd.grad(ChannelEntropy(temperature=0.7)(features, labelled(ALL)), features)
    p = torch.softmax(features.detach() / 0.7, 1)
    entropy = -(p * p.log()).sum(1, keepdim=True)
    torch.testing.assert_close(grad, p * (p.log() + entropy) / 0.7 / (2 * 3 * 4))


def named_entropy(kind: str, features: Tensor) -> float:
    """The entropy that a term is about, by torch's own distributions."""
    if kind == "spatial":
        return torch.distributions.Categorical(logits=features.flatten(2)).entropy().mean().item()
    if kind == "marginal":
        return torch.distributions.Categorical(probs=features.softmax(1).mean((0, 2, 3))).entropy().item()
    if kind == "renyi2":
        return -features.softmax(1).square().sum(1).log().mean().item()
    return torch.distributions.Categorical(logits=features.movedim(1, -1)).entropy().mean().item()


@every
def test_a_step_of_descent_raises_the_entropy_that_the_term_names(member: Any) -> None:
    features, _ = draw()
    if member.kind == "marginal":
        features[:, 0] += 2
    features.requires_grad_()
    (grad,) = torch.autograd.grad(member()(features, labelled(ALL)), features)
    before = features.detach()
    assert named_entropy(member.kind, before - 0.5 * grad) > named_entropy(member.kind, before)
    assert named_entropy(member.kind, before + 0.5 * grad) < named_entropy(member.kind, before)


def peaked(kind: str, channels: int) -> Tensor:
    """Features of no entropy."""
    features = torch.zeros(2, channels, 3, 4)
    if kind == "spatial":
        features[:, :, 1, 2] = 1e3
    else:
        features[:, 0] = 1e3
    return features


@every
@pytest.mark.parametrize("channels", [2, 64])
def test_the_range_runs_from_flat_to_peaked_features(member: Any, channels: int) -> None:
    lowest, highest = {"channel": (-math.log(channels), 0.0), "renyi2": (1 / channels, 1.0)}.get(member.kind, (0.0, 1.0))
    assert member()(torch.zeros(2, channels, 3, 4), labelled(ALL)).item() == pytest.approx(lowest, abs=1e-5)
    assert member()(peaked(member.kind, channels), labelled(ALL)).item() == pytest.approx(highest, abs=1e-5)
    for seed in range(5):
        assert lowest - 1e-5 <= member()(draw(channels=channels, seed=seed, scale=10.0**seed)[0], labelled(ALL)).item() <= highest + 1e-5


def test_the_marginal_term_sees_a_collapse_that_the_channel_term_takes_for_confidence() -> None:
    features = torch.zeros(1, 4, 2, 2)
    for position in range(4):
        features[0, position, position // 2, position % 2] = 1e3  # each position is sure, of a channel of its own
    valid = labelled(torch.ones(1, 2, 2))
    terms = {member.kind: member()(features, valid).item() for member in MEMBERS}
    assert terms["channel_norm"] == pytest.approx(1)
    assert terms["marginal"] == pytest.approx(0, abs=1e-6)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_taken_in_float32(member: Any, dtype: torch.dtype) -> None:
    features = (draw(scale=50.0)[0]).to(dtype).requires_grad_()
    p = torch.softmax(features.detach(), 1)
    if dtype == torch.float16:
        assert bool((p * p.log()).isnan().any())  # what a plain formula in half precision gives
    value = member()(features, labelled(ALL))
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(member()(features.detach().double(), labelled(ALL)).item(), rel=1e-3, abs=1e-6)
    assert features.grad is not None
    assert features.grad.dtype == dtype
    assert bool(torch.isfinite(features.grad).all())


@every
def test_the_memory_format_does_not_matter_and_is_kept(member: Any) -> None:
    plain, _ = draw()
    turned = plain.clone().contiguous(memory_format=torch.channels_last).requires_grad_()
    plain.requires_grad_()
    values = [member()(x, labelled(ALL)) for x in (plain, turned)]
    torch.testing.assert_close(values[1], values[0], rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(value, x)[0] for value, x in zip(values, (plain, turned), strict=True)]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-10, atol=1e-15)
    if member.kind in ("channel", "channel_norm", "adapter"):
        assert gradients[1].is_contiguous(memory_format=torch.channels_last)


@pixelwise
def test_void_pixels_do_not_count_and_their_number_does_not_matter(member: Any) -> None:
    features, _ = draw()
    valid = torch.zeros(2, 3, 4)
    valid[0, 1, 2] = 0.25
    alone = member()(features[:1, :, 1:2, 2:3], labelled(torch.ones(1, 1, 1)))
    assert member()(features, labelled(valid)).item() == pytest.approx(alone.item(), rel=1e-6)


@every
def test_with_every_pixel_void_the_term_is_a_zero_that_is_still_connected(member: Any) -> None:
    features = draw()[0].float().requires_grad_()
    value = member()(features, labelled(torch.zeros(2, 3, 4)))
    value.backward()
    assert value.item() == 0
    assert features.grad is not None
    assert not bool(features.grad.any())


@every
def test_a_single_position_has_a_value_and_no_spatial_entropy(member: Any) -> None:
    features = draw()[0][:, :, :1, :1].requires_grad_()
    value = member()(features, labelled(torch.ones(2, 1, 1)))
    (gradient,) = torch.autograd.grad(value, features)
    assert bool(gradient.any()) == (member.kind != "spatial")
    if member.kind == "spatial":
        assert value.item() == 0
    else:
        assert value.item() == pytest.approx(oracle(member(), features.detach(), torch.ones(2, 1, 1)), rel=1e-9)


# ---- memory ---------------------------------------------------------------------------------------------------------------------------------


def kept(run: Callable[[Tensor], Tensor], features: Tensor) -> tuple[int, bool]:
    """Bytes kept for the backward pass beside the features themselves, and whether these are kept as they are."""
    features.requires_grad_()
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = run(features)
    own = features.untyped_storage().data_ptr()
    is_kept = storages.pop(own, None) is not None
    value.backward()
    return sum(storages.values()), is_kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("member", [m for m in MEMBERS if m.kind in ("channel", "channel_norm", "adapter")], ids=lambda m: m.kind)
def test_for_the_backward_pass_two_numbers_a_position_are_kept_beside_the_tap(member: Any, dtype: torch.dtype) -> None:
    shape, positions = (2, 64, 16, 16), 2 * 16 * 16
    term, labels = member(), labelled(torch.ones(2, 16, 16))
    beside, is_kept = kept(lambda x: term(x, labels), torch.randn(shape).to(dtype))
    assert is_kept
    # Two numbers in full precision, and the weights and the like of the mean over pixels, which are a few numbers a position too.
    assert 2 * positions * 4 <= beside <= 5 * positions * 4

    def plain(x: Tensor) -> Tensor:
        log_p = F.log_softmax(x.float(), 1)
        return (log_p.exp() * log_p).sum(1).mean()

    plainly, _ = kept(plain, torch.randn(shape).to(dtype))
    assert plainly >= 2 * positions * 64 * 4
    assert beside < plainly / 20


@every
def test_second_derivatives_are_right_too(member: Any) -> None:
    features, valid = draw(channels=3)
    features.requires_grad_()
    plain, differentiable = (
        torch.autograd.grad(member(temperature=0.7)(features, labelled(valid)), features, create_graph=create_graph)[0]
        for create_graph in (False, True)
    )
    torch.testing.assert_close(differentiable.detach(), plain)
    assert torch.autograd.gradgradcheck(lambda x: member(temperature=0.7)(x, labelled(valid)), features)


# ---- settings -------------------------------------------------------------------------------------------------------------------------------


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
    with pytest.raises(ValueError, match=r"`entropy` must be one of \['adapter', 'channel', .*\], but got 'chanel'; nearest: 'channel'"):
        parse_regularizer("chanel")
    for wrong in (0.5, ChannelNormEntropy):
        with pytest.raises(TypeError, match="`entropy` must be a name, None or an object called"):
            parse_regularizer(wrong)  # type: ignore[arg-type]
