"""Running a model to look at it: everything is left as it was, and calls are told apart."""

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from imachsr import trace
from imachsr.core.tracing import WIDER, left_as_found, named_tensors, run, run_again
from tests.core import nets


def test_the_probe_leaves_everything_as_it_was() -> None:
    torch.manual_seed(0)
    model = nets.Stateful()
    model.frozen.eval()
    model.body.weight.grad = torch.randn_like(model.body.weight)
    handle = model.body.register_forward_hook(lambda *_: None)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    buffers = {name: id(value) for name, value in model.named_buffers()}
    modes = {name: module.training for name, module in model.named_modules()}
    grad, state = model.body.weight.grad.clone(), torch.get_rng_state()
    example = nets.images(1)
    trace(model, example)
    for name, value in model.state_dict().items():
        assert torch.equal(value.nan_to_num(), before[name].nan_to_num()), name
    assert {name: id(value) for name, value in model.named_buffers()} == buffers
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert torch.equal(model.body.weight.grad, grad)
    assert [name for name, parameter in model.named_parameters() if parameter.grad is not None] == ["body.weight"]
    assert torch.equal(torch.get_rng_state(), state)
    assert sum(len(module._forward_hooks) for module in model.modules()) == 1
    assert torch.equal(example, nets.images(1))
    handle.remove()


def test_a_failing_forward_leaves_the_model_as_it_was() -> None:
    model = nets.Norm(inplace=False)
    model.head = nn.Conv2d(5, 3, 1)  # does not fit
    model.eval()
    before = model.norm.running_mean.clone()
    with pytest.raises(RuntimeError, match="expected input"):
        trace(model, nets.images())
    assert not any(module.training or module._forward_hooks for module in model.modules())
    assert torch.equal(model.norm.running_mean, before)


def test_what_is_done_inside_is_undone_even_after_an_error() -> None:
    model = nets.Stateful()
    model.frozen.eval()
    modes = [module.training for module in model.modules()]
    kept, state = model.assigned, torch.get_rng_state()

    def spoil() -> None:
        with left_as_found(model, torch.device("cpu")):
            model.eval()
            model.norm.running_mean.add_(3.0)
            model.assigned = torch.full((), 7.0)
            torch.rand(5)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        spoil()
    assert [module.training for module in model.modules()] == modes
    assert model.assigned is kept
    assert model.assigned.item() == 0
    assert not bool(model.norm.running_mean.any())
    assert torch.equal(torch.get_rng_state(), state)


def test_calls_tell_when_they_begin_and_end_and_what_is_around_them() -> None:
    calls = {call.name: call for call in run(nets.Encoder(), nets.images()).calls}
    assert [call.order for call in calls.values()] == list(range(len(calls)))
    outer, inner = calls["stage1"], calls["stage1.0.conv"]
    assert inner.parent is calls["stage1.0"]
    assert inner.parent.parent is outer
    assert outer.parent is None
    assert outer.begun < inner.begun < inner.ended < outer.ended
    assert calls["stem"].ended < outer.begun
    assert calls["stem"].ended < calls["stage2"].begun


def test_a_module_that_calls_itself_is_counted_from_the_inside() -> None:
    class Recursive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor, depth: int = 2) -> Tensor:
            return self.conv(self(x, depth - 1) if depth else x)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body, self.head = nn.Conv2d(3, 4, 1), Recursive(), nn.Conv2d(4, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(self.stem(x)))

    bodies = [call for call in run(Model(), nets.images()).calls if call.name == "body"]
    assert [call.nth for call in bodies] == [1, 2, 3]
    assert bodies[0].parent is bodies[1]
    assert bodies[1].parent is bodies[2]


def test_a_call_that_fails_and_is_caught_by_the_model_does_not_confuse_the_others() -> None:
    class Careful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wrong, self.right, self.head = nn.Conv2d(9, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            try:
                x = self.wrong(x)
            except RuntimeError:
                x = self.right(x)
            return self.head(x)

    assert [(call.name, call.nth) for call in run(Careful(), nets.images()).calls] == [("right", 1), ("head", 1)]
    assert [layer.address for layer in trace(Careful(), nets.images()).layers] == ["right"]


@pytest.mark.parametrize(
    ("output", "keys"),
    [
        (torch.zeros(1), [None]),
        ((torch.zeros(1), 3, torch.zeros(2)), ["0", "2"]),
        ([torch.zeros(1), [torch.zeros(2)]], ["0"]),
        ({"a": torch.zeros(1), 7: torch.zeros(1), "none": None}, ["a", "7"]),
        (nets.Pair(torch.zeros(1), torch.zeros(2)), ["small", "big"]),
        ("text", []),
        (None, []),
    ],
)
def test_tensors_of_an_output_are_named_by_their_keys(output: Any, keys: list[str | None]) -> None:
    assert [key for key, _ in named_tensors(output)] == keys


def peak_bytes(work: Callable[[], object]) -> int:
    """Largest running sum of what is allocated and freed."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def test_a_trace_takes_hardly_more_memory_than_a_forward_without_gradients() -> None:
    blocks = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(12)]
    model = nn.Sequential(nn.Conv2d(3, 8, 1), *blocks, nn.Conv2d(8, 3, 1))
    images = torch.randn(3, 3, 64, 64 + WIDER)  # as in its larger run

    def inference() -> None:
        with torch.no_grad():
            model(images)

    found = peak_bytes(lambda: trace(model, torch.randn(2, 3, 64, 64)))
    assert found < 1.25 * peak_bytes(inference) < 0.5 * peak_bytes(lambda: model(images))


class Slopes(nn.Module):
    """Looks at gradients of its own while it runs."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.body, self.head = how, nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "autograd":
            inner = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.body(inner).square().sum(), inner, create_graph=True)
        else:
            slope = torch.func.grad(lambda inner: inner.pow(3).sum())(x)
        return self.head(self.body(slope))


@pytest.mark.parametrize("how", ["autograd", "func"])
def test_a_model_that_takes_gradients_in_its_forward_is_traced(how: str) -> None:
    addresses = [layer.address for layer in trace(Slopes(how), nets.images()).layers]
    assert addresses[-1] == ("body#2" if how == "autograd" else "body")


@pytest.mark.parametrize(("model", "width", "is_wider"), [(nets.Norm(inplace=False), 32, True), (nets.OneSize(), 64, False)])
def test_the_second_run_is_wider_where_the_model_takes_it(model: nn.Module, width: int, is_wider: bool) -> None:
    calls, told = run_again(model, nets.images(1, 32, width))
    first = run(model, nets.images(2, 32, width)).calls
    assert told == is_wider
    for here, there in zip(first, calls, strict=True):
        a, b = here.outputs[0].shadow, there.outputs[0].shadow
        assert (a.shape[0], b.shape[0]) == (2, 3)
        assert (a.shape[3] < b.shape[3]) == is_wider
