"""What a network does with data, measured again by other means."""

import copy
import math
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imachsr import EntropyStandard, ExplicitStandard, GradientStandard, IMacHSR, ProbeStandard, UnionStandard, trace
from imachsr.core.calibration import PROBED, RIDGE, Calibration, _probe
from imachsr.core.labels import TapLabels
from imachsr.core.layers import Trace
from imachsr.core.losses.protocol import sample
from imachsr.core.selection import select
from imachsr.core.tracing import seed_forward
from tests.core import nets


def batches(count: int = 2) -> list[tuple[Tensor, Tensor]]:
    return [(nets.images(2, seed=seed), nets.labels(2, seed=seed + 9, void=0.2)) for seed in range(count)]


def encoder() -> nets.Encoder:
    torch.manual_seed(0)
    return nets.Encoder()


def calibration(model: nn.Module, data: Any = None) -> Calibration:
    return Calibration(model, batches() if data is None else data, nets.NUM_CLASSES, 255)


def features_of(model: nn.Module, found: Trace, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """The candidates' tensors, read by hooks of this test (for nets without reused modules or structured outputs)."""
    caught: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(layer.module).register_forward_hook(lambda _m, _a, out, name=layer.address: caught.update({name: out}))
        for layer in found.layers
    ]
    output = model.train()(images)
    for handle in handles:
        handle.remove()
    return [caught[layer.address] for layer in found.layers], output


# ---- the three measurements -----------------------------------------------------------------------------------------------------------------


def test_the_gradient_ratio_is_that_of_finite_differences() -> None:
    model = encoder().double()
    (images, labels), *_ = data = [(images.double(), labels) for images, labels in batches(1)]
    found = trace(model, images)
    ratios = calibration(model, data).gradient_ratios(found.layers, 1)
    for index, layer in enumerate(found.layers):
        shift: list[Tensor] = []

        def loss_at(step: float, name: str = layer.module, shift: list[Tensor] = shift) -> float:
            handle = model.get_submodule(name).register_forward_hook(lambda _m, _a, out: out + step * shift[0])
            value = F.cross_entropy(model.train()(images), labels, ignore_index=255).item()
            handle.remove()
            return value

        hidden, output = features_of(model, found, images)
        (gradient,) = torch.autograd.grad(F.cross_entropy(output, labels, ignore_index=255), hidden[index])
        # Along its own direction a gradient's length is the slope.
        shift.append(gradient / gradient.norm())
        slope = (loss_at(1e-4) - loss_at(-1e-4)) / 2e-4
        assert ratios[index] == pytest.approx(slope / hidden[index].norm().item(), rel=1e-3), layer.address


def test_the_channel_entropy_is_that_of_a_categorical_distribution() -> None:
    model = nets.Vit(prefix=1, blocks=2)
    found = trace(model, nets.images())
    entropies = calibration(model).channel_entropies(found.layers, 2)
    for index, layer in enumerate(found.layers):
        values = []
        for images, _ in batches():
            hidden = features_of(model, found, images)[0][index].detach()
            positions = hidden[:, 1:].flatten(0, 1) if layer.layout == "BNC" else hidden.movedim(1, -1).flatten(0, 2)
            values.append(torch.distributions.Categorical(logits=positions).entropy().mean().item() / math.log(positions.shape[-1]))
        assert entropies[index] == pytest.approx(sum(values) / 2, rel=1e-5), layer.address
        assert 0 <= entropies[index] <= 1


class Split(nn.Module):
    """``same`` shows the classes as they are, ``noise`` nothing of them, ``mixed`` half of it."""

    def __init__(self) -> None:
        super().__init__()
        self.noise, self.mixed, self.same, self.head = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 3, 1)
        for layer in (self.noise, self.mixed, self.same):
            nn.init.eye_(layer.weight[:, :, 0, 0])
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        random, true = torch.randn_like(x), x
        return self.head(self.noise(random) + self.mixed(true + random) + self.same(true))


def shown(seed: int) -> tuple[Tensor, Tensor]:
    labels = nets.labels(4, seed=seed)
    images = F.one_hot(labels, 4).permute(0, 3, 1, 2).float() * 2
    labels[:, :4] = 255
    return images, labels


def test_a_probe_reads_what_there_is_and_no_more() -> None:
    model = Split()
    found = trace(model, torch.randn(2, 4, 32, 32))
    noise, mixed, same = calibration(model, [shown(0), shown(1)]).probe_information(found.layers, 2)
    assert [layer.address for layer in found.layers] == ["noise", "mixed", "same"]
    # Three classes of equal share hold log 3 nats; a ridge keeps the probe a little short of it.
    assert noise == pytest.approx(0.0, abs=0.03)
    assert 0.8 * math.log(3) < same <= math.log(3) + 1e-6
    assert noise + 0.1 < mixed < same - 0.1


def discriminant(x: Tensor, y: Tensor) -> float:
    """Class by class and row by row in float64, with the best of many factors."""
    x = x.double()
    x = (x - x.mean(0)) / (x.std(0) + 1e-6)
    rows, known, read, asked = x[::2], y[::2].tolist(), x[1::2], y[1::2].tolist()
    classes = range(max(*known, *asked) + 1)
    of = {k: [row for row, label in zip(rows, known, strict=True) if label == k] for k in classes}
    means = {k: sum(of[k]) / len(of[k]) if of[k] else torch.zeros(x.shape[1]).double() for k in classes}
    within = sum(torch.outer(row - means[k], row - means[k]) for k in classes for row in of[k]) / len(rows)
    inverse = torch.linalg.inv(within + RIDGE * torch.eye(x.shape[1]).double())
    scores = [[(float(row @ inverse @ means[k] - means[k] @ inverse @ means[k] / 2)) for k in classes] for row in read]
    share = [asked.count(k) / len(asked) for k in classes]

    def surprise(factor: float) -> float:
        total = 0.0
        for row, label in zip(scores, asked, strict=True):
            odds = [share[k] * math.exp(factor * (row[k] - max(row))) for k in classes]
            total -= math.log(odds[label] / sum(odds))
        return total / len(asked)

    return surprise(0.0) - min(surprise(2 ** (step / 10)) for step in range(-100, 21))


@pytest.mark.parametrize("channels", [2, 6, 90])
@pytest.mark.parametrize("signal", [0.0, 0.7, 3.0])
def test_a_probe_is_a_linear_discriminant_that_is_read_on_other_positions(channels: int, signal: float) -> None:
    generator = torch.Generator().manual_seed(channels)
    y = torch.randint(0, 4, (120,), generator=generator)
    y[y == 2] = 0  # one class is absent
    x = torch.randn(120, channels, generator=generator) @ torch.randn(channels, channels, generator=generator)
    x = 5 + x + signal * torch.randn(4, channels, generator=generator)[y] * channels**0.5
    given = _probe(x, y, 4)
    assert given >= 0
    assert given == pytest.approx(discriminant(x, y), abs=5e-3)
    assert given == pytest.approx(_probe(3 * x - 7, y, 4), abs=1e-4)
    order = torch.tensor([2, 3, 0, 1])
    assert given == pytest.approx(_probe(x, order[y], 4), abs=1e-4)


def test_the_probe_of_a_layer_sees_its_features_and_labels() -> None:
    """On a small map the drawn positions are all there are."""
    model = encoder()
    images, labels = nets.images(4), nets.labels(4, seed=3)
    found = trace(model, images)
    index = next(i for i, layer in enumerate(found.layers) if layer.address == "stage2")
    hidden = features_of(model, found, images)[0][index].detach()
    x, y, _ = sample(hidden, TapLabels(labels, nets.NUM_CLASSES, 255).at(tuple(hidden.shape[2:])), PROBED)
    assert len(y) == hidden[:, 0].numel()
    assert calibration(model, [(images, labels)]).probe_information([found.layers[index]], 1)[0] == pytest.approx(discriminant(x, y), abs=5e-3)


def test_a_wide_layer_that_shows_nothing_holds_no_information_and_not_less() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 19, (PROBED,), generator=generator)
    assert 0 <= _probe(torch.randn(PROBED, 1280, generator=generator), y, 19) < 0.02


def test_void_pixels_count_in_no_measurement_that_reads_labels() -> None:
    model = encoder()
    (images, labels), *_ = batches(1)
    found = trace(model, images)
    labels[:, 16:] = 255
    other = labels.clone()
    other[labels == 255] = 99
    for name in ("gradient_ratios", "probe_information"):
        one = getattr(Calibration(model, [(images, labels)], nets.NUM_CLASSES, 255), name)(found.layers, 1)
        two = getattr(Calibration(model, [(images, other)], nets.NUM_CLASSES, 99), name)(found.layers, 1)
        assert one == two
    nothing = torch.full_like(labels, 255)
    assert calibration(model, [(images, nothing)]).gradient_ratios(found.layers, 1) == [0.0] * len(found.layers)
    assert calibration(model, [(images, nothing)]).probe_information(found.layers, 1) == [0.0] * len(found.layers)


MEASUREMENTS = ["gradient_ratios", "channel_entropies", "probe_information"]


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_a_measurement_is_the_mean_over_its_batches_and_looks_at_no_more(name: str) -> None:
    model = encoder()
    found = trace(model, nets.images())
    data = batches(3)
    each = [getattr(calibration(model, [batch]), name)(found.layers, 1) for batch in data]
    assert getattr(calibration(model, data), name)(found.layers, 3) == pytest.approx([sum(values) / 3 for values in zip(*each, strict=True)])
    read: list[int] = []

    class Endless:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            while True:
                read.append(1)
                yield data[0]

    getattr(calibration(model, Endless()), name)(found.layers, 2)
    assert len(read) == 2


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_measuring_leaves_everything_as_it_was_and_is_the_same_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nets.Stateful()
    model.frozen.eval()
    model.body.weight.grad = torch.randn_like(model.body.weight)
    before, grad = copy.deepcopy(model.state_dict()), model.body.weight.grad.clone()
    modes = [module.training for module in model.modules()]
    found = trace(model, nets.images())
    torch.manual_seed(5)
    state, seeded = torch.get_rng_state(), []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    measure = getattr(calibration(model), name)
    first = measure(found.layers, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert not seeded  # GPUs, of which the model is on none
    torch.manual_seed(6)
    with torch.no_grad():
        assert measure(found.layers, 2) == first  # dropout included
    assert all(torch.equal(value.nan_to_num(), before[key].nan_to_num()) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model.body.weight.grad, grad)
    assert [key for key, parameter in model.named_parameters() if parameter.grad is not None] == ["body.weight"]
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_a_failure_leaves_no_hook_and_the_mode_behind(name: str) -> None:
    model = encoder().eval()
    found = trace(model, nets.images())
    with pytest.raises(RuntimeError):
        getattr(calibration(model, [(torch.zeros(2, 5, 32, 32), nets.labels())]), name)(found.layers, 1)
    assert not any(module._forward_hooks or module.training for module in model.modules())


@pytest.mark.parametrize(("device", "seeded"), [("cpu", []), ("cuda:1", [("device", torch.device("cuda:1")), ("seed", 7)])])
def test_a_forward_seeds_the_device_that_it_runs_on_and_no_other(device: str, seeded: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(torch.cuda, "device", lambda which: told.append(("device", which)) or nullcontext())
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda seed: told.append(("seed", seed)))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: told.append(("all", seed)))
    with torch.random.fork_rng(devices=[]):
        seed_forward(7, torch.device(device))
        drawn = torch.rand(3)
        assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(7)))
    assert told == seeded


def test_a_failed_measurement_leaves_no_hook_while_its_error_is_held() -> None:
    # As a notebook holds the last one.
    model = encoder().eval()
    found = trace(model, nets.images())
    with pytest.raises(ValueError, match="labels") as held:
        calibration(model, [(nets.images(), nets.labels() + 200)]).probe_information(found.layers, 1)
    assert held.value.__traceback__ is not None
    assert not any(module._forward_hooks or module.training for module in model.modules())


def test_data_without_a_batch_are_refused() -> None:
    model = encoder()
    found = trace(model, nets.images())
    with pytest.raises(ValueError, match=r"`calibration` must give at least one batch \(images, labels\), but gives none"):
        calibration(model, []).gradient_ratios(found.layers, 2)


def test_a_candidate_that_does_not_fire_on_the_data_is_told() -> None:
    model = encoder()
    found = trace(model, nets.images())
    model.is_skipped = True
    with pytest.raises(ValueError, match=r"every candidate must fire on the calibration data, but 'stage2\.0\.conv' did not \(\d such layers\)"):
        calibration(model).channel_entropies(found.layers, 1)


def test_taps_of_volumes_and_of_images_with_one_label_are_measured() -> None:
    volumes = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 3, 1))
    images, labels = torch.randn(2, 1, 4, 8, 8), torch.randint(0, 3, (2, 4, 8, 8))
    classifier = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    for model, batch in ((volumes, (images, labels)), (classifier, (nets.images(8), torch.arange(8) % 3))):
        found = trace(model, batch[0])
        measured = calibration(model, [batch])
        for name in MEASUREMENTS:
            values = getattr(measured, name)(found.layers, 1)
            assert len(values) == len(found.layers)
            assert all(math.isfinite(value) for value in values)


# ---- what the standards make of them --------------------------------------------------------------------------------------------------------


class Given(Calibration):
    def __init__(self, values: list[float]) -> None:
        self._values = values

    def _given(self, layers: Any, batches: int) -> list[float]:
        return self._values

    gradient_ratios = channel_entropies = probe_information = _given


@pytest.fixture(scope="module")
def ten() -> Trace:
    model = nn.Sequential(*(nn.Conv2d(3 if index == 0 else 4, 4, 3, padding=1) for index in range(10)), nn.Conv2d(4, 3, 1))
    return trace(model, nets.images())


VALUES = [0.5, 0.2, 0.4, 0.3, 0.9, 0.1, 0.1, 0.6, 0.35, 0.7]


def chosen(standard: Any, found: Trace, values: list[float]) -> list[int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [found.layers.index(tap.layer) for tap in select(standard, found, Given(values))]


def test_gradient_takes_local_minima_first_and_then_the_lowest(ten: Trace) -> None:
    # Strict minima: 0.2 (1), 0.3 (3), 0.35 (8); the plateau of 0.1 is none, but lowest among the others.
    assert chosen(GradientStandard(max_taps=2), ten, VALUES) == [1, 3]
    assert chosen(GradientStandard(max_taps=3), ten, VALUES) == [1, 3, 8]
    assert chosen(GradientStandard(max_taps=5), ten, VALUES) == [1, 3, 5, 6, 8]
    reasons = [tap.reason for tap in select(GradientStandard(max_taps=4), ten, Given(VALUES))]
    assert reasons[0] == "gradient: |dL/dh| / |h| is 0.2, a local minimum"
    assert reasons[2] == "gradient: |dL/dh| / |h| is 0.1, among the lowest"


def test_gradient_quantiles_share_the_sum(ten: Trace) -> None:
    standard = GradientStandard(take="quantiles")
    total, run, expected = sum(VALUES), 0.0, []
    for index, value in enumerate(VALUES):
        while len(expected) < 3 and run + value >= total * (len(expected) + 1) / 4:
            expected.append(index)
        run += value
    assert chosen(standard, ten, VALUES) == expected
    assert chosen(standard, ten, [0.0] * 10) == [0, 1, 2]
    with pytest.raises(ValueError, match=r"`take` must be one of \('minima', 'quantiles'\), but got 'lowest'"):
        GradientStandard(take="lowest")  # type: ignore[arg-type]


def test_entropy_takes_the_most_overconfident(ten: Trace) -> None:
    assert chosen(EntropyStandard(max_taps=3), ten, VALUES) == [1, 5, 6]
    (tap, *_) = select(EntropyStandard(max_taps=3), ten, Given(VALUES))
    assert tap.reason == "entropy: H / log C is 0.2, rank 3 of 10"


@pytest.mark.parametrize("name", ["gradient", "entropy"])
def test_the_best_that_are_far_enough_apart_are_taken(name: str, ten: Trace) -> None:
    ranking = [5, 6, 1, 3, 8, 2, 0, 7, 9, 4] if name == "entropy" else [1, 3, 8, 5, 6, 2, 0, 7, 9, 4]
    for gap in range(4):
        expected: list[int] = []
        for index in ranking:
            if all(abs(index - other) > gap for other in expected):
                expected.append(index)
        assert chosen({"kind": name, "min_gap": gap}, ten, VALUES) == sorted(expected[:3])


def test_probe_takes_equal_steps_of_information(ten: Trace) -> None:
    information = [0.1, 0.1, 0.31, 0.2, 0.52, 0.4, 0.6, 0.9, 0.8, 0.9]
    steps = [0.1 + m / 4 * 0.8 for m in (1, 2, 3)]
    expected = [next(i for i, value in enumerate(information) if value >= step) for step in steps]
    assert chosen(ProbeStandard(), ten, information) == expected
    assert chosen(ProbeStandard(), ten, [0.4] * 10) == [0, 1, 2]  # nothing tells them apart: the first of them
    assert "from 0.1 to 0.9 nats" in select(ProbeStandard(), ten, Given(information))[0].reason


# ---- through the wrapper --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gradient", "entropy", "probe"])
def test_a_net_is_built_on_what_the_data_show(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first, again = (IMacHSR(encoder(), example=nets.images(), num_classes=3, standard=name, calibration=batches()) for _ in range(2))
    assert [tap.layer.address for tap in first.taps] == [tap.layer.address for tap in again.taps]
    assert [tap.reason for tap in first.taps] == [tap.reason for tap in again.taps]
    losses = first(nets.images(), nets.labels())
    losses.total.backward()
    assert list(losses.side) == [tap.layer.address for tap in first.taps]


def test_a_union_may_mix_data_and_structure() -> None:
    union = UnionStandard(standards=(EntropyStandard(max_taps=1), ExplicitStandard(layers=("stem",))))
    net = IMacHSR(encoder(), example=nets.images(), num_classes=3, standard=union, calibration=batches())
    assert "stem" in [tap.layer.address for tap in net.taps]
    assert any(tap.reason.startswith("entropy: H / log C is 0.") for tap in net.taps)


@pytest.mark.parametrize("name", ["gradient", "entropy", "probe"])
def test_without_data_building_is_refused(name: str) -> None:
    model = encoder()
    with pytest.raises(ValueError, match=rf"`calibration` must give batches \(images, labels\) for the standard '{name}', but is None"):
        IMacHSR(model, example=nets.images(), num_classes=3, standard=name)
    assert not any(module._forward_hooks for module in model.modules())
