"""grad_ratio: the gradient of each side loss at its tap follows rho times that of everything else there."""

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imachsr import ExplicitStandard, IMacHSR
from imachsr.core.balance import GradientBalance
from imachsr.core.labels import TapLabels
from imachsr.core.layout import to_nchw
from imachsr.core.ranks import Ranks
from imachsr.core.schedules import Linear
from tests.core import nets

STAGES = ExplicitStandard(layers=("stage1", "stage2"))


def build(model: nn.Module | None = None, *, ratio: float | None = 0.5, **knobs: Any) -> IMacHSR:
    torch.manual_seed(0)
    given = {"example": nets.images(), "num_classes": 3, "standard": STAGES, "loss": "brier", **knobs}
    return IMacHSR(nets.Encoder() if model is None else model, grad_ratio=ratio, **given)


def measured(net: IMacHSR, images: Tensor, labels: Tensor) -> dict[str, float]:
    """|gradient of the weighted side loss| over |gradient of all the rest|, at each tap, by two gradients of their own."""
    ratios = {}
    for index, tap in enumerate(net.taps):
        caught: list[Tensor] = []
        handle = net.backbone.get_submodule(tap.layer.module).register_forward_hook(lambda _m, _a, out, c=caught: c.append(out))
        steps = net._steps.clone()
        losses = net(images, labels)
        net._steps.copy_(steps)
        handle.remove()
        address = tap.layer.address
        image = to_nchw(caught[0], tap.layer.layout, tuple(images.shape[2:]))
        at = TapLabels(labels, 3, 255).at(tuple(image.shape[2:]))
        own = losses.weights[f"side/{address}"].detach() * net.losses[index](net.adapters[index](image), at)
        (side,) = torch.autograd.grad(own, caught[0], retain_graph=True)
        (all_of_it,) = torch.autograd.grad(losses.total, caught[0])
        ratios[address] = (side.norm() / (all_of_it - side).norm()).item()
    return ratios


@pytest.mark.parametrize("ratio", [0.02, 0.5, 2.0])
def test_the_measured_ratio_converges_to_rho(ratio: float) -> None:
    net, images, labels = build(ratio=ratio), nets.images(), nets.labels()
    far = measured(net, images, labels)
    for _ in range(80):
        net(images, labels).total.backward()
    assert any(abs(value / ratio - 1) > 0.3 for value in far.values())
    assert measured(net, images, labels) == pytest.approx(dict.fromkeys(far, ratio), rel=0.02)


@pytest.mark.parametrize(
    ("knobs", "expected"),
    [
        ({"schedule": Linear(end=0.2), "total_steps": 10}, {"stage1": 0.1, "stage2": 0.1}),
        ({"profile": "exp"}, {"stage1": 0.5 * 2 / 3, "stage2": 0.5 * 4 / 3}),
    ],
)
def test_a_schedule_and_a_profile_are_not_balanced_away(knobs: dict[str, Any], expected: dict[str, float]) -> None:
    net = build(ratio=0.5, **knobs)
    for _ in range(80):
        net(nets.images(), nets.labels()).total.backward()
    assert measured(net, nets.images(), nets.labels()) == pytest.approx(expected, rel=0.02)


def test_the_factors_are_those_of_one_tap_at_a_time() -> None:
    balance, alone = GradientBalance(4, 0.5), []
    seen = torch.tensor([[4.0, 1.0], [0.0, 3.0], [2.0, float("inf")], [1e-9, 1e9]])
    for step in range(3):
        balance._norms = dict(enumerate(seen * (step + 1)))
        factors = balance.update(Ranks(), [1.0, 1.0, 1.0, 0.5])
        assert balance._norms == {}
    for (rest, side), pull in zip(seen.tolist(), [1.0, 1.0, 1.0, 0.5], strict=True):
        factor = 1.0
        if rest > 0 and 0 < side < math.inf:
            for _ in range(3):
                factor = min(max(math.exp(0.9 * math.log(factor) + 0.1 * math.log(factor * 0.5 * pull * math.sqrt(rest / side))), 1e-3), 1e3)
        alone.append(factor)
    assert factors.tolist() == pytest.approx(alone)
    assert alone[1:3] == [1.0, 1.0]


@pytest.mark.parametrize("layout", ["nhwc", "tokens", "tokens first"])
@pytest.mark.parametrize("entropy", [None, "channel_norm"])
def test_the_ratio_is_that_of_the_layers_own_tensor_in_every_layout(layout: str, entropy: str | None) -> None:
    model: nn.Module = nets.ChannelsLast(8) if layout == "nhwc" else nets.Vit(prefix=1, blocks=2, batch_first=layout == "tokens")
    address = {"nhwc": "mlp", "tokens": "blocks.0", "tokens first": "outer.0"}[layout]
    net = build(model, standard=lambda _: [address], entropy=entropy, beta=0.1)
    for _ in range(80):
        net(nets.images(), nets.labels()).total.backward()
    assert net.balance is not None
    assert net.balance.factors.item() != 1
    assert measured(net, nets.images(), nets.labels())[address] == pytest.approx(0.5, rel=0.02)


def test_the_gate_changes_no_gradient() -> None:
    with_gate, without = build(), build(ratio=None)
    for net in (with_gate, without):
        net(nets.images(), nets.labels()).total.backward()  # the first step's factors are 1
    for (name, ours), theirs in zip(with_gate.backbone.named_parameters(), without.backbone.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


def test_the_weights_that_are_told_are_those_of_the_sum() -> None:
    net = build()
    for _ in range(5):
        losses = net(nets.images(), nets.labels())
        losses.total.backward()
    told = losses.output + sum(losses.weights[key] * value for key, value in losses.terms.items())
    torch.testing.assert_close(losses.total, told)
    assert losses.weights["side/stage1"].item() != pytest.approx(0.2, rel=0.01)
    assert losses.weights["entropy/stage1"] == pytest.approx(net.objective.beta / 2)  # the entropy terms are not balanced


def test_factors_stay_within_their_limits() -> None:
    balance = GradientBalance(2, 1.0, momentum=0.0, limits=(0.5, 2.0))
    balance._norms = {0: torch.tensor([1e6, 1.0]), 1: torch.tensor([1.0, 1e6])}
    assert balance.update(Ranks(), [1, 1]).tolist() == [2.0, 0.5]
    net = build(ratio=1e9)
    for _ in range(200):
        net(nets.images(), nets.labels()).total.backward()
    assert net.balance is not None
    assert net.balance.factors.tolist() == pytest.approx([1e3, 1e3])


@pytest.mark.parametrize("norms", [[0.0, 1.0], [1.0, 0.0], [float("nan"), 1.0], [1.0, float("inf")], [0.0, 0.0]])
def test_a_step_that_tells_nothing_changes_nothing(norms: list[float]) -> None:
    balance = GradientBalance(1, 0.5)
    balance._norms = {0: torch.tensor(norms)}
    assert balance.update(Ranks(), [1]).tolist() == [1.0]


def test_the_mean_is_one_of_logarithms() -> None:
    balance = GradientBalance(1, 0.5, momentum=0.75)
    expected = 1.0
    for rest, side in ((4.0, 1.0), (9.0, 0.25), (1.0, 16.0)):
        balance._norms = {0: torch.tensor([rest, side])}
        wanted = expected * 0.5 * (rest / side) ** 0.5
        expected = expected**0.75 * wanted**0.25
        assert balance.update(Ranks(), [1]).item() == pytest.approx(expected, rel=1e-5)


def test_a_missed_tap_keeps_its_factor_and_the_others_go_on() -> None:
    net = build()
    assert net.balance is not None
    for _ in range(5):
        net(nets.images(), nets.labels()).total.backward()
    net(nets.images(), nets.labels())  # takes up the last backward pass
    before = net.balance.factors.clone()
    net.backbone.is_skipped = True
    for _ in range(5):
        net(nets.images(), nets.labels()).total.backward()
    after = net.balance.factors
    assert after[0] != before[0]
    assert after[1] == before[1]
    net.backbone.is_skipped = False
    assert list(net(nets.images(), nets.labels()).side) == ["stage1", "stage2"]


def test_evaluation_neither_moves_nor_forgets_the_factors() -> None:
    net = build()
    assert net.balance is not None
    for _ in range(5):
        net(nets.images(), nets.labels()).total.backward()
    before = net.balance.factors.clone()
    net.eval()
    with torch.no_grad():
        losses = net(nets.images(), nets.labels())
    assert torch.equal(net.balance.factors, before)
    assert [losses.weights[f"side/{name}"].item() for name in ("stage1", "stage2")] == pytest.approx((net.objective.alpha / 2 * before).tolist())


def test_factors_are_part_of_the_state_and_copies_are_their_own() -> None:
    net = build()
    for _ in range(5):
        net(nets.images(), nets.labels()).total.backward()
    fresh = build()
    fresh.load_state_dict(net.state_dict())
    assert fresh.balance is not None
    assert net.balance is not None
    assert torch.equal(fresh.balance.factors, net.balance.factors)
    assert not torch.equal(fresh.balance.factors, torch.ones(2))
    net(nets.images(), nets.labels()).total.backward()
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        # The next step takes up the last backward, in a copy as after loading a state dict.
        loaded, again = build(), copy.deepcopy(twin)
        loaded.load_state_dict(net.state_dict())
        for other in (loaded, again):
            other(nets.images(), nets.labels())
        assert loaded.balance is not None
        assert again.balance is not None
        assert torch.equal(loaded.balance.factors, again.balance.factors)
        assert not torch.equal(again.balance.factors, net.balance.factors)
        before = net.balance.factors.clone()
        for _ in range(3):
            twin(nets.images(), nets.labels()).total.backward()
        assert torch.equal(net.balance.factors, before)
        assert not torch.equal(twin.balance.factors, before)


def test_a_detached_head_has_no_rest_and_keeps_its_weight() -> None:
    class Cut(nets.Encoder):
        def forward(self, x: Tensor) -> Tensor:
            y = self.stage1(self.stem(x))
            return F.interpolate(self.head(self.stage2(y)), size=x.shape[-2:])

    net = build(Cut(), standard=ExplicitStandard(layers=("stage2",)), output_loss=lambda output, labels, *, ignore_index: output.detach().mean())
    for _ in range(3):
        net(nets.images(), nets.labels()).side["stage2"].backward()
    assert net.balance is not None
    assert net.balance.factors.tolist() == [1.0]


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize(("what", "backend"), [("net", "aot_eager"), ("whole net", "eager"), ("backbone", "aot_eager")])
def test_a_compiled_net_is_refused_with_the_way_out(what: str, backend: str) -> None:
    net = build()
    torch._dynamo.reset()
    if what == "backbone":
        net.backbone.compile(backend=backend)
    run: Any = net if what == "backbone" else torch.compile(net, backend=backend, fullgraph=what == "whole net")
    with pytest.raises(Exception, match="`grad_ratio` must be None under torch.compile"):
        run(nets.images(), nets.labels()).total.backward()
    torch._dynamo.reset()
    if what == "net":  # uncompiled it goes on
        net(nets.images(), nets.labels()).total.backward()
