"""Trace a model once and list the layers that may be supervised."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imachsr.core.output import logits_of
from imachsr.core.types import LayerInfo, Layout

_WIDER = 32
"""Pixels added to the width in the second trace; most encoders need a multiple of 32."""
_SKIPPED = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Identity)


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Candidates of one model at one input size.

    Attributes:
        layers: Candidate layers in execution order.
        num_calls: Module calls seen, candidates or not.
        input_size: (H, W) of the example.
        module_names: Every module name, for messages about unknown names.

    """

    layers: tuple[LayerInfo, ...]
    num_calls: int
    input_size: tuple[int, int]
    module_names: tuple[str, ...]


@dataclass
class _Call:
    name: str
    nth: int
    module: nn.Module
    order: int
    outputs: list[tuple[str | None, Tensor]]
    versions: list[int]


def named_tensors(output: Any) -> list[tuple[str | None, Tensor]]:
    """Flatten a module's output to (key, tensor) pairs; the key of a bare tensor is None."""
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
def _left_as_found(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Restore mode, buffers, gradients and random state, whatever the forward does to them."""
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


def _own_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, buffer) for name, buffer in module._buffers.items() if buffer is not None]


def _run(model: nn.Module, images: Tensor) -> tuple[list[_Call], Any]:
    torch.default_generator.manual_seed(0)  # a model that skips layers at random skips the same in every trace
    calls: list[_Call] = []
    counts: Counter[str] = Counter()
    handles = []

    def hook_of(name: str) -> Any:
        def hook(module: nn.Module, _args: Any, output: Any) -> None:
            counts[name] += 1
            outputs = named_tensors(output)
            versions = [tensor._version for _, tensor in outputs]
            calls.append(_Call(name, counts[name], module, len(calls), outputs, versions))

        return hook

    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_hook(hook_of(name)))
    try:
        output = model(images)
    finally:
        for handle in handles:
            handle.remove()
    return calls, output


def _run_again(model: nn.Module, image: Tensor) -> list[_Call]:
    """Calls with another batch size and, where the model takes it, wider images: the axes that grow are the batch and the width."""
    try:
        return _run(model, F.pad(image, (0, _WIDER)).repeat(3, 1, 1, 1))[0]
    except Exception:  # a model of one input size says so in its own way
        return _run(model, image.repeat(3, 1, 1, 1))[0]


def _layout(first: Tensor, second: Tensor, size: tuple[int, int]) -> Layout | None:
    """Layout of an output of both traces, or None when it has no spatial extent, or windows are folded into its batch."""
    if not first.is_floating_point() or first.ndim not in (3, 4) or first.ndim != second.ndim:
        return None
    is_batch = [pair == (2, 3) for pair in zip(first.shape, second.shape, strict=True)]
    is_fixed = [a == b for a, b in zip(first.shape, second.shape, strict=True)]
    if first.ndim == 3:
        if not is_fixed[2] or not (is_batch[0] or is_batch[1]):
            return None
        layout: Layout = "BNC" if is_batch[0] else "NBC"
        return layout if _grid(_num_tokens(first, layout), size) is not None else None
    _, a, b, c = first.shape
    aspect = size[0] / size[1]

    def as_image(h: int, w: int) -> bool:
        return h * w >= 1 and abs(h - w * aspect) <= max(1.0, aspect) and h <= size[0] and w <= size[1]

    if not (is_batch[0] and is_fixed[1]):
        return None
    if is_fixed[2] and as_image(b, c):  # first: where the model takes one input size only, both may hold
        return "NCHW"
    return "NHWC" if is_fixed[3] and as_image(a, b) else None


def _num_tokens(tensor: Tensor, layout: Layout) -> int:
    return tensor.shape[1 if layout == "BNC" else 0]


def _grid(tokens: int, size: tuple[int, int]) -> tuple[int, int, int] | None:
    """(h, w, prefix tokens) for the number of tokens: at most 8 prefix tokens, and the finest grid of exactly, else nearly, the input's aspect."""
    height, width = size
    near: tuple[int, int, int] | None = None
    for prefix in range(min(8, tokens - 4) + 1):
        count = tokens - prefix
        h = max(1, round((count * height / width) ** 0.5))
        skew = abs(h * width - count // h * height)
        if count % h or skew >= max(height, width):
            continue
        if skew == 0:
            return h, count // h, prefix
        near = near or (h, count // h, prefix)
    return near


def token_grid(tokens: int, size: tuple[int, int]) -> tuple[int, int, int]:
    """(h, w, prefix) of a token tap.

    Raises:
        ValueError: If the tokens do not form a grid of the input's aspect.

    """
    grid = _grid(tokens, size)
    if grid is None:
        raise ValueError(f"tokens must form a grid of the input's aspect, but got {tokens} tokens for an input of {size}")
    return grid


def _ancestors(tensor: Tensor) -> set[Any]:
    """Every autograd node that the tensor depends on."""
    seen: set[Any] = set()
    stack = [tensor.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        stack.extend(parent for parent, _ in node.next_functions)
    return seen


_RESIZES = (
    "Upsample",
    "Softmax",
    "Sigmoid",
    "LogSoftmax",
    "Alias",
    "View",
    "Squeeze",
    "Unsqueeze",
    "Slice",
    "Clone",
    "ToCopy",
    "Permute",
    "Transpose",
    "UnsafeView",
    "ReshapeAlias",
    "PixelShuffle",
)


def _output_nodes(outputs: list[Tensor]) -> set[Any]:
    """Nodes of the model's outputs, walked back through resizes and activations only."""
    nodes: set[Any] = set()
    for tensor in outputs:
        node: Any = tensor.grad_fn
        while node is not None and node not in nodes:
            nodes.add(node)
            if not node.name().startswith(_RESIZES) or not node.next_functions:
                break
            node = node.next_functions[0][0]
    return nodes


def _signature(module: nn.Module) -> str:
    return type(module).__name__ + ":" + ",".join("x".join(map(str, p.shape)) for p in module.parameters())


def trace(model: nn.Module, example: Tensor) -> Trace:
    """List the candidate layers of ``model``, leaving its mode, buffers, gradients and the random state as they were.

    A candidate is a call whose output holds a float tensor with a spatial extent and at least 2 channels, that lies on a gradient path to the
    model's output, and is not: the root; the same tensor as another call's (the outermost module stands for it); the model's output or a mere resize
    of it; dropout or identity.

    Args:
        model: Any module that takes ``[B, 3, H, W]`` (any number of input channels).
        example: Images ``[B, C, H, W]``; the first is repeated to batches of 2 and 3, since some models refuse a batch of 1 in train mode.

    Returns:
        The candidates in execution order; same model and shape give the same names, always.

    Raises:
        ValueError: If the example has the wrong rank or is empty, or no layer of the model can be supervised.
        TypeError: If the model's output holds no class scores.

    """
    if example.ndim != 4 or example.numel() == 0:
        raise ValueError(f"`example` must be images [B, C, H, W], but got a tensor of shape {tuple(example.shape)}")
    size = (int(example.shape[-2]), int(example.shape[-1]))
    with _left_as_found(model, example.device), torch.enable_grad():
        model.train()
        calls, output = _run(model, example[:1].repeat(2, 1, 1, 1))
        more = _run_again(model, example[:1])
    found = _candidates(model, calls, more, output, size)
    if not found:
        raise ValueError(
            f"the model must have a layer to supervise, but none of its {len(calls)} module calls gives a spatial feature map "
            f"with a gradient path to the output: {type(model).__name__} at {size[0]}x{size[1]}"
        )
    names = tuple(name for name, _ in model.named_modules() if name)
    return Trace(layers=tuple(found), num_calls=len(calls), input_size=size, module_names=names)


def _candidates(model: nn.Module, calls: list[_Call], more: list[_Call], output: Any, size: tuple[int, int]) -> list[LayerInfo]:
    finals = [tensor for _, tensor in named_tensors(output)] or [logits_of(output)]
    reached: set[Any] = set()
    for tensor in finals:
        reached |= _ancestors(tensor)
    excluded = _output_nodes(finals)
    twins = {(call.name, call.nth): call for call in more}
    modules = dict(model.named_modules())
    counts = Counter(call.name for call in calls)
    by_tensor: dict[tuple[Any, int], LayerInfo] = {}  # a later call that gives the same tensor is a module further out
    for call in calls:
        twin = twins.get((call.name, call.nth))
        if twin is None or isinstance(call.module, _SKIPPED) or len(twin.outputs) != len(call.outputs):
            continue
        for (key, tensor), version, (_, other) in zip(call.outputs, call.versions, twin.outputs, strict=True):
            node, twin_of = tensor.grad_fn, (tensor.grad_fn, tensor.output_nr)
            layout = _layout(tensor, other, size)
            if layout is None or node is None or node in excluded or node not in reached:
                continue
            if tensor._version != version or (key is not None and twin_of in by_tensor):
                continue  # rewritten in place later on, or a mere collection of what inner modules gave
            channels, (h, w) = _extent(tensor, layout, size)
            if channels < 2 or h * w < 2:
                continue
            inner = by_tensor.pop(twin_of, None)
            by_tensor[twin_of] = _layer(call, key, tensor, layout, channels, (h, w), size, modules, counts[call.name], inner)
    return _without_structured_twins(sorted(by_tensor.values(), key=lambda layer: layer.order))


def _layer(
    call: _Call,
    key: str | None,
    tensor: Tensor,
    layout: Layout,
    channels: int,
    extent: tuple[int, int],
    size: tuple[int, int],
    modules: dict[str, nn.Module],
    num_calls: int,
    inner: LayerInfo | None,
) -> LayerInfo:
    parent, _, _ = call.name.rpartition(".")
    is_block = isinstance(modules[parent], (nn.Sequential, nn.ModuleList)) and next(call.module.children(), None) is not None
    container, block_cls = (parent, type(call.module).__name__) if is_block else ("", "")
    if inner is not None and inner.container:  # the outermost module stands for the output; the innermost block for its stage
        container, block_cls = inner.container, inner.block_cls
    nth = f"#{call.nth}" if call.nth > 1 else ""
    return LayerInfo(
        address=call.name + nth + (f"[{key}]" if key is not None else ""),
        module=call.name,
        nth=call.nth,
        num_calls=num_calls,
        key=key,
        order=call.order,
        depth=call.name.count(".") + 1,
        cls=type(call.module).__name__,
        layout=layout,
        channels=channels,
        height=extent[0],
        width=extent[1],
        stride=size[0] / extent[0],
        dtype=str(tensor.dtype).removeprefix("torch."),
        params=sum(p.numel() for p in call.module.parameters()),
        signature=_signature(call.module),
        container=container,
        block_cls=block_cls,
    )


def _extent(tensor: Tensor, layout: Layout, size: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    if layout == "NCHW":
        return tensor.shape[1], (tensor.shape[2], tensor.shape[3])
    if layout == "NHWC":
        return tensor.shape[3], (tensor.shape[1], tensor.shape[2])
    h, w, _ = token_grid(_num_tokens(tensor, layout), size)
    return tensor.shape[2], (h, w)


def _without_structured_twins(layers: list[LayerInfo]) -> list[LayerInfo]:
    """Of a structured output keep the largest tensor."""
    largest: dict[tuple[str, int], LayerInfo] = {}
    for layer in layers:
        if layer.key is None:
            continue
        call = (layer.module, layer.nth)
        best = largest.get(call)
        if best is None or layer.channels * layer.height * layer.width > best.channels * best.height * best.width:
            largest[call] = layer
    return [layer for layer in layers if layer.key is None or largest[(layer.module, layer.nth)] is layer]
