"""Run a model and record its module calls."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imachsr.core.operators import Event, Operators, Step

WIDER = 32
"""Pixels added to the width in the second run; most encoders need a multiple of 32."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What is kept of a tensor that a call gave: everything but its values, which would be the memory of a training step.

    Attributes:
        key: In a structured output, see :func:`named_tensors`.
        shadow: Of its shape and dtype, with one value in memory. It shares the version, which counts how often the tensor, or a view of it, was
            rewritten.
        version: When the call ended.
        node: Of autograd, that gave the tensor; None without a gradient.
        number: Of the tensor among the node's outputs.
        step: Operator that gave it; None where operators are not watched, or it does not come from the images.

    """

    key: str | None
    shadow: Tensor
    version: int
    node: Any
    number: int
    step: Step | None

    @property
    def is_rewritten(self) -> bool:
        """Whether its values have changed since the call ended."""
        return self.shadow._version != self.version


def _seen(key: str | None, tensor: Tensor, step: Step | None) -> Seen:
    shadow = tensor.detach()
    shadow.data = torch.empty((), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)
    return Seen(key=key, shadow=shadow, version=tensor._version, node=tensor.grad_fn, number=tensor.output_nr, step=step)


@dataclass(kw_only=True)
class Call:
    """One module call.

    Attributes:
        name: Of the module.
        nth: 1-based among the calls of the module.
        module: That was called.
        parent: The call around it, None for one in the model's own forward.
        begun: Calls begun or ended before it began.
        ended: Calls begun or ended before it ended.
        order: Position in the order in which calls end.
        flops: Of the batch's forward up to its end.
        params: First used up to its end.
        outputs: Its tensors.

    """

    name: str
    nth: int
    module: nn.Module
    parent: "Call | None"
    begun: int
    ended: int = -1
    order: int = -1
    flops: int = 0
    params: int = 0
    outputs: list[Seen] = field(default_factory=list)


@dataclass(kw_only=True)
class Recording:
    """What one run showed.

    Attributes:
        calls: In the order in which they ended.
        output: Of the model.
        events: Attentions and fusions, each with the call that it happened in.
        flops: Of the batch's forward.
        params: Of the modules that were called.

    """

    calls: list[Call]
    output: Any
    events: list[tuple[Event, Call | None]]
    flops: int
    params: int


def named_tensors(output: Any) -> list[tuple[str | None, Tensor]]:
    """The tensors of a module's output with their keys; the key of a bare tensor is None. Structures inside of structures are not looked into."""
    if isinstance(output, Tensor):
        return [(None, output)]
    if isinstance(output, dict):
        pairs = [(str(key), value) for key, value in output.items()]
    elif isinstance(output, (tuple, list)):
        pairs = [(str(index), value) for index, value in enumerate(output)]
    elif hasattr(output, "__dataclass_fields__"):
        pairs = [(name, getattr(output, name)) for name in output.__dataclass_fields__]
    else:
        return []
    return [(key, value) for key, value in pairs if isinstance(value, Tensor)]


@contextmanager
def left_as_found(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Restore mode, buffers and random state, whatever the forward does to them."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(module, name, buffer, buffer.detach().clone()) for module in model.modules() for name, buffer in _own_buffers(module)]
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for module, name, buffer, saved in buffers:
                module._buffers[name] = buffer  # the forward may have assigned another tensor
                if not torch.equal(buffer, saved):
                    buffer.copy_(saved)


def seed_forward(seed: int, device: torch.device) -> None:
    """Seed what a forward draws from on a device, and no more: `torch.manual_seed` seeds every GPU, which `left_as_found` does not restore."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def _own_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, buffer) for name, buffer in module._buffers.items() if buffer is not None]


class _Recorder:
    """Hooks of one run."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.stack: list[Call] = []
        self.time = 0
        self.params = 0
        self.operators: Operators | None = None
        self._counts: Counter[str] = Counter()
        self._seen: set[int] = set()

    def begin(self, name: str, module: nn.Module) -> None:
        # Counted when calls end, as the hooks of a tap do: a module that calls itself ends innermost first.
        self.stack.append(Call(name=name, nth=0, module=module, parent=self.stack[-1] if self.stack else None, begun=self.time))
        self.time += 1
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in self._seen:
                self._seen.add(id(parameter))
                self.params += parameter.numel()

    def end(self, name: str, output: Any) -> None:
        # A forward that was left by an exception which the model itself caught leaves its call on the stack.
        while self.stack and self.stack[-1].name != name:
            self.stack.pop()
        if not self.stack:
            return
        call = self.stack.pop()
        self._counts[name] += 1
        call.nth, call.ended, call.order, call.params = self._counts[name], self.time, len(self.calls), self.params
        call.flops = self.operators.flops if self.operators is not None else 0
        step_of = self.operators.step_of if self.operators is not None else lambda _: None
        call.outputs = [_seen(key, tensor, step_of(tensor)) for key, tensor in named_tensors(output)]
        self.time += 1
        self.calls.append(call)


def run(model: nn.Module, images: Tensor, *, is_watched: bool = True) -> Recording:
    """One forward, which keeps no tensor for a backward: of autograd only its nodes are looked at.

    Args:
        model: As it is, with its mode.
        images: ``[B, C, H, W]`` or ``[B, C, D, H, W]``.
        is_watched: Whether operators are looked at too.

    """
    with suppress(Exception), torch.autograd.graph.saved_tensors_hooks(_drop, _miss):
        return _run(model, images, is_watched)
    return _run(model, images, is_watched)  # it takes gradients itself, or fails, and then says so once more


def _drop(_tensor: Tensor) -> None:
    return None


def _miss(_nothing: None) -> Tensor:
    raise RuntimeError("no tensor is kept for a backward")


def _run(model: nn.Module, images: Tensor, is_watched: bool) -> Recording:
    seed_forward(0, torch.device("cpu"))  # a model that skips layers at random skips the same in every run
    recorder = _Recorder()
    handles = []
    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(_begin_of(recorder, name)))
            handles.append(module.register_forward_hook(_end_of(recorder, name)))
    events: list[tuple[Event, Call | None]] = []
    operators = Operators(images, lambda event: events.append((event, recorder.stack[-1] if recorder.stack else None)), lambda: recorder.time)
    try:
        if is_watched:
            recorder.operators = operators
            with operators:
                output = model(images)
        else:
            output = model(images)
    finally:
        recorder.operators = None  # which refers to the recorder: a circle, whose memory waits for the collector
        for handle in handles:
            handle.remove()
    return Recording(calls=recorder.calls, output=output, events=events, flops=operators.flops, params=recorder.params)


def _begin_of(recorder: _Recorder, name: str) -> Any:
    return lambda module, _args: recorder.begin(name, module)


def _end_of(recorder: _Recorder, name: str) -> Any:
    return lambda _module, _args, output: recorder.end(name, output)


def run_again(model: nn.Module, image: Tensor) -> tuple[list[Call], bool]:
    """Calls with a batch of 3 and, where the model takes it, wider images; and whether they were wider.

    The axes that grow are the batch and the width.
    """
    repeats = (3, *(1,) * (image.ndim - 1))
    try:
        return run(model, F.pad(image, (0, WIDER)).repeat(repeats), is_watched=False).calls, True
    except Exception:  # a model of one input size says so in its own way
        return run(model, image.repeat(repeats), is_watched=False).calls, False
