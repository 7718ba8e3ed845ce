"""Trace a model once and list the layers that may be supervised."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from imachsr.core.types import LayerInfo, Layout

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
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for buffer, saved in buffers:
                buffer.copy_(saved)


def _run(model: nn.Module, images: Tensor) -> tuple[list[_Call], Any]:
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


def _layout(first: Tensor, second: Tensor, batches: tuple[int, int], stride_of: tuple[int, int]) -> Layout | None:
    """Layout of an output seen with two batch sizes, or None when it has no spatial extent or no batch axis in front."""
    if not first.is_floating_point() or first.ndim not in (3, 4) or first.ndim != second.ndim:
        return None
    if (first.shape[0], second.shape[0]) != batches:
        return None  # windows folded into the batch, or the batch on another axis
    if first.ndim == 3:
        return "BNC" if _grid(first.shape[1], stride_of) is not None else None
    _, a, b, c = first.shape
    aspect = stride_of[0] / stride_of[1]

    def as_image(h: int, w: int) -> bool:
        return h * w >= 1 and abs(h - w * aspect) <= max(1.0, aspect) and h <= stride_of[0] and w <= stride_of[1]

    if as_image(b, c) and not (as_image(a, b) and c > max(a, b)):
        return "NCHW"
    return "NHWC" if as_image(a, b) else None


def _grid(tokens: int, size: tuple[int, int]) -> tuple[int, int, int] | None:
    """(h, w, prefix tokens) for the number of tokens: the finest grid with the input's aspect and at most 8 prefix tokens."""
    height, width = size
    for prefix in range(0, 9):
        count = tokens - prefix
        if count < 4:
            return None
        h = round((count * height / width) ** 0.5)
        if h > 0 and count % h == 0 and abs(h * width - count // h * height) < max(height, width):
            return h, count // h, prefix
    return None


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
    "Contiguous",
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
        example: Images ``[B, C, H, W]``; a batch of 1 is repeated to 2, since some models refuse it in train mode.

    Returns:
        The candidates in execution order; same model and shape give the same names, always.

    Raises:
        ValueError: If the example has the wrong rank, or no layer of the model can be supervised.

    """
    if example.ndim != 4:
        raise ValueError(f"`example` must be images [B, C, H, W], but got a tensor of shape {tuple(example.shape)}")
    size = (int(example.shape[-2]), int(example.shape[-1]))
    pair = example[:1].repeat(2, 1, 1, 1)
    with _left_as_found(model, example.device), torch.enable_grad():
        model.train()
        calls, output = _run(model, pair)
        more, _ = _run(model, example[:1].repeat(3, 1, 1, 1))
    found = _candidates(model, calls, more, output, size)
    if not found:
        raise ValueError(
            f"the model must have a layer to supervise, but none of its {len(calls)} module calls gives a spatial feature map "
            f"with a gradient path to the output: {type(model).__name__} at {size[0]}x{size[1]}"
        )
    names = tuple(name for name, _ in model.named_modules() if name)
    return Trace(layers=tuple(found), num_calls=len(calls), input_size=size, module_names=names)


def _candidates(model: nn.Module, calls: list[_Call], more: list[_Call], output: Any, size: tuple[int, int]) -> list[LayerInfo]:
    finals = [tensor for _, tensor in named_tensors(output)]
    reached: set[Any] = set()
    for tensor in finals:
        reached |= _ancestors(tensor)
    excluded = _output_nodes(finals)
    twins = {(call.name, call.nth): call for call in more}
    modules = dict(model.named_modules())
    by_tensor: dict[Any, LayerInfo] = {}  # a later call that gives the same tensor is a module further out
    for call in calls:
        twin = twins.get((call.name, call.nth))
        if twin is None or isinstance(call.module, _SKIPPED) or len(twin.outputs) != len(call.outputs):
            continue
        for (key, tensor), version, (_, other) in zip(call.outputs, call.versions, twin.outputs, strict=True):
            node = tensor.grad_fn
            layout = _layout(tensor, other, (2, 3), size)
            if layout is None or node is None or node in excluded or node not in reached:
                continue
            if tensor._version != version or (key is not None and node in by_tensor):
                continue  # rewritten in place later on, or a mere collection of what inner modules gave
            channels, (h, w) = _extent(tensor, layout, size)
            if channels < 2 or h * w < 2:
                continue
            inner = by_tensor.pop(node, None)
            by_tensor[node] = _layer(call, key, tensor, layout, channels, (h, w), size, modules, inner)
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
    h, w, _ = token_grid(tensor.shape[1], size)
    return tensor.shape[2], (h, w)


def _without_structured_twins(layers: list[LayerInfo]) -> list[LayerInfo]:
    """Of a structured output keep the largest tensor, unless it is the only address of that tensor."""
    largest: dict[tuple[str, int], LayerInfo] = {}
    for layer in layers:
        if layer.key is None:
            continue
        call = (layer.module, layer.nth)
        best = largest.get(call)
        if best is None or layer.channels * layer.height * layer.width > best.channels * best.height * best.width:
            largest[call] = layer
    return [layer for layer in layers if layer.key is None or largest[(layer.module, layer.nth)] is layer]
