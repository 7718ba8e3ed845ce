"""Trace a model once and list the layers that may be supervised."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from imachsr.core.layout import extent, find_layout
from imachsr.core.output import logits_of
from imachsr.core.tracing import WIDER, Call, Recording, Seen, left_as_found, named_tensors, run, run_again
from imachsr.core.types import LayerInfo, Layout, Site

_SKIPPED = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Identity)


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Candidates of one model at one input size.

    Attributes:
        layers: Candidate layers in execution order.
        sites: Attentions and fusions, in execution order.
        flops: Of one sample's forward.
        params: Parameters of the modules that were called.
        num_calls: Module calls seen, candidates or not.
        input_size: (H, W) of the example, or (D, H, W).
        module_names: Every module name, for messages about unknown names.
        uncalled: Those that the forward did not call.

    """

    layers: tuple[LayerInfo, ...]
    sites: tuple[Site, ...]
    flops: int
    params: int
    num_calls: int
    input_size: tuple[int, ...]
    module_names: tuple[str, ...]
    uncalled: tuple[str, ...] = ()


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


_REORDERS = ("Alias", "Clone", "Permute", "ReshapeAlias", "Slice", "ToCopy", "Transpose", "UnsafeView", "View")


def _origins(seen: Seen) -> Iterator[tuple[Any, int]]:
    """Nodes, each with its output's number, of the tensor and of what it is a copy, a part or another order of."""
    node, number = seen.node, seen.number
    while node is not None:
        yield node, number
        if not node.name().startswith(_REORDERS):
            return
        node, number = node.next_functions[0]


_CHANNELS: dict[Layout, int] = {"NCHW": 1, "NHWC": 3, "NCDHW": 1, "NDHWC": 4}


def _is_weights_of_positions(seen: Seen, layout: Layout) -> bool:
    """Whether a softmax along another axis than the channels' gave the tensor: the attention ``[B, heads, N, N]`` of N tokens looks like an image."""
    node = seen.node
    while node is not None and (node.name().startswith(("NativeDropout", *_REORDERS)) or _is_masked(node)):
        node = node.next_functions[0][0]
    if layout not in _CHANNELS or node is None or not node.name().startswith("Softmax"):
        return False
    return int(node._saved_dim) % 2**64 not in (_CHANNELS[layout], _CHANNELS[layout] - seen.shadow.ndim + 2**64)  # a negative axis is kept unsigned


def _is_masked(node: Any) -> bool:
    """Of a product with something that has no gradient, as dropout is on a CPU."""
    return node.name().startswith("Mul") and [parent for parent, _ in node.next_functions[1:]] == [None]


def _signature(module: nn.Module) -> str:
    return type(module).__name__ + ":" + ",".join("x".join(map(str, p.shape)) for p in module.parameters())


def trace(model: nn.Module, example: Tensor) -> Trace:
    """List the candidate layers of ``model``, leaving its mode, buffers, gradients and the random state as they were.

    A candidate is a call whose output holds a float tensor with a spatial extent and at least 2 channels, that lies on a gradient path to the
    model's output, and is not: the root; the same tensor as another call's (the outermost module stands for it); the model's output or a mere resize
    of it; dropout or identity; the weights of an attention. Of a tuple, list, dict or dataclass each such tensor is a candidate, ``name[key]``;
    structures inside of it are not looked into, since inner modules give their tensors. No tensor outlives its use in the forward: of each, shape,
    dtype and autograd node are kept.

    Args:
        model: Any module that takes ``[B, 3, H, W]`` (any number of input channels).
        example: Images ``[B, C, H, W]``; the first is repeated to batches of 2 and 3, since some models refuse a batch of 1 in train mode.

    Returns:
        The candidates in execution order; same model and shape give the same names, always.

    Raises:
        ValueError: If the example has the wrong rank or is empty, the model is compiled, or no layer of it can be supervised.
        TypeError: If the model's output holds no class scores.

    """
    if not isinstance(example, Tensor):
        got = f"a {type(example).__name__}"
        raise TypeError(f"`example` must be a tensor of images [B, C, H, W], but got {got}; of a loader's (images, labels) take the images")
    if example.ndim not in (4, 5) or example.numel() == 0:
        raise ValueError(f"`example` must be images [B, C, H, W] or volumes [B, C, D, H, W], but got a tensor of shape {tuple(example.shape)}")
    if (name := next((name for name, module in model.named_modules() if _is_compiled(module)), None)) is not None:
        what = f"its module {name!r}" if name else "it"
        raise ValueError(f"the model must be wrapped before it is compiled, but {what} is compiled already; wrap it, then compile the net")
    size = tuple(int(side) for side in example.shape[2:])
    with left_as_found(model, example.device), torch.enable_grad():
        model.train()
        first = run(model, example[:1].repeat(2, *(1,) * (example.ndim - 1)))
        more, is_wider = run_again(model, example[:1])
    found = _candidates(model, first, more, size, WIDER if is_wider and _is_grown(first.calls, more) else 0)
    if not found:
        raise ValueError(
            f"the model must have a layer to supervise, but none of its {len(first.calls)} module calls gives a spatial feature map "
            f"with a gradient path to the output: {type(model).__name__} at {'x'.join(map(str, size))}"
        )
    names, called = [name for name, _ in model.named_modules() if name], {call.name for call in first.calls}
    return Trace(
        layers=tuple(layer for _, layer in found),
        sites=_sites(first, found),
        flops=first.flops // 2,
        params=first.params,
        num_calls=len(first.calls),
        input_size=size,
        module_names=tuple(names),
        uncalled=tuple(name for name in names if name not in called),
    )


def _is_compiled(module: nn.Module) -> bool:
    """A graph that was compiled before sees no hook that comes later. Told by what torch.compile leaves, since importing its class takes a second."""
    return "_orig_mod" in module._modules or module._compiled_call_impl is not None


def _is_grown(calls: list[Call], more: list[Call]) -> bool:
    """Whether any feature map grew with the image; where a model brings images to a size of its own none does, and its tokens stay as many."""
    twins = {(call.name, call.nth): call for call in more}
    both = [(call, twin) for call in calls if (twin := twins.get((call.name, call.nth))) is not None]
    pairs = [pair for call, twin in both for pair in zip(call.outputs, twin.outputs, strict=False)]
    return any(one.shadow.ndim > 3 and one.shadow.shape[1:] != two.shadow.shape[1:] for one, two in pairs)


def _candidates(model: nn.Module, first: Recording, more: list[Call], size: tuple[int, ...], wider: int) -> list[tuple[Call, LayerInfo]]:
    finals = [tensor for _, tensor in named_tensors(first.output)] or [logits_of(first.output)]
    reached: set[Any] = set()
    for tensor in finals:
        reached |= _ancestors(tensor)
    excluded = _output_nodes(finals)
    twins = {(call.name, call.nth): call for call in more}
    modules, counts = dict(model.named_modules()), Counter(call.name for call in first.calls)
    by_tensor: dict[tuple[Any, int], tuple[Call, LayerInfo]] = {}  # a later call that gives the same tensor is a module further out
    for call in first.calls:
        twin = twins.get((call.name, call.nth))
        if twin is None or isinstance(call.module, _SKIPPED) or len(twin.outputs) != len(call.outputs):
            continue
        for seen, other in zip(call.outputs, twin.outputs, strict=True):
            layout = find_layout(seen.shadow, other.shadow, size, wider=wider)
            if layout is None or seen.node is None or seen.node in excluded or seen.node not in reached:
                continue
            if _is_weights_of_positions(seen, layout):
                continue
            if seen.is_rewritten or (seen.key is not None and any(origin in by_tensor for origin in _origins(seen))):
                continue  # rewritten in place later on, or a mere collection of what inner modules gave
            channels, shape = extent(seen.shadow, layout, size)
            if channels < 2 or prod(shape) < 2:
                continue
            _, inner = by_tensor.pop((seen.node, seen.number), (None, None))
            by_tensor[seen.node, seen.number] = call, _layer(call, seen, layout, channels, shape, size, modules, counts[call.name], inner)
    return sorted(by_tensor.values(), key=lambda pair: pair[1].order)


def _layer(
    call: Call,
    seen: Seen,
    layout: Layout,
    channels: int,
    shape: tuple[int, int],
    size: tuple[int, ...],
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
        address=call.name + nth + (f"[{seen.key}]" if seen.key is not None else ""),
        module=call.name,
        nth=call.nth,
        num_calls=num_calls,
        key=seen.key,
        order=call.order,
        depth=call.name.count(".") + 1,
        cls=type(call.module).__name__,
        layout=layout,
        channels=channels,
        height=shape[0],
        width=shape[1],
        stride=size[-1] / shape[1],
        dtype=str(seen.shadow.dtype).removeprefix("torch."),
        params=sum(p.numel() for p in call.module.parameters()),
        signature=_signature(call.module),
        container=container,
        block_cls=block_cls,
        flops=call.flops // 2,
        params_used=call.params,
        receptive_field=seen.step.field if seen.step is not None else 0.0,
    )


def _sites(first: Recording, found: list[tuple[Call, LayerInfo]]) -> tuple[Site, ...]:
    by_call = {id(call): layer for call, layer in sorted(found, key=lambda pair: pair[1].channels * pair[1].height * pair[1].width)}
    by_step = {seen.step: layer for call, layer in found for seen in call.outputs if seen.key == layer.key}
    sites = []
    for event, inner in first.events:
        begun, around = event.time, inner
        if event.kind == "attention":
            after = None
            while around is not None and after is None:
                begun, after = around.begun, by_call.get(id(around))
                around = around.parent
        else:
            after = by_step.get(event.step) or next((layer for call, layer in found if call.ended >= event.time), None)
        before = [layer for call, layer in found if call.ended < begun]
        site = Site(
            kind=event.kind,
            detail=event.detail,
            module=inner.name if inner is not None else "",
            before=before[-1].address if before else None,
            after=after.address if after is not None else None,
        )
        sites.append(site)
    return tuple(sites)
