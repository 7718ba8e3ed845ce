"""Watch the operators of one forward: FLOPs, receptive fields, attention and fusion."""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakTensorKeyDictionary


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One operator's result, and where it comes from. Each is equal to itself only.

    Attributes:
        field: Receptive field, pixels along the longer side.
        jump: Distance of neighbouring positions, pixels.
        area: Fewest positions of any convolution, pooling or resize on its way.
        is_softmax: Whether it holds softmax weights.

    """

    field: float = 1.0
    jump: float = 1.0
    area: int = 2**62
    is_softmax: bool = False


@dataclass(frozen=True, kw_only=True)
class Event:
    """An operator that a standard looks for.

    Attributes:
        kind: ``attention`` or ``fusion``.
        detail: ``cat`` or ``add`` of a fusion, the operator's name of an attention.
        time: Module calls begun or ended before it.
        step: Its result.

    """

    kind: str
    detail: str
    time: int
    step: Step


class Operators(TorchDispatchMode):
    """Records operators while a model runs.

    Args:
        images: The input, from which histories start.
        tell: Called with each event.
        now: Gives the time of an event.
    """

    def __init__(self, images: Tensor, tell: Callable[[Event], object], now: Callable[[], int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # mypy takes no exclusion through super()
        self.flops = 0
        self._tell, self._now = tell, now
        # A position in one corner sees the opposite one from there on: nothing more is to be seen.
        self._limit = 2.0 * max(images.shape[2:]) - 1
        self._axis = max(range(images.ndim - 2), key=lambda axis: int(images.shape[2 + axis]))
        self._known = WeakTensorKeyDictionary({images: Step()})

    def step_of(self, tensor: Tensor) -> Step | None:
        """What gave a tensor; None for one that does not come from the images."""
        step: Step | None = self._known.get(tensor)
        return step

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        sources = [(leaf, self._known[leaf]) for leaf in given if leaf in self._known]
        out = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_flatten(out)[0] if isinstance(leaf, Tensor)]
        name = func._overloadpacket.__name__
        self._count(func, name, args, kwargs, out)
        if sources and outputs and not name.endswith("_like"):  # what is only shaped like features, as a dropout mask, holds nothing of them
            step = self._step(name, args, sources, outputs[0])
            self._notice(name, sources, outputs[0], step)
            for tensor in outputs:
                self._known[tensor] = step
        return out

    def _count(self, func: Any, name: str, args: Any, kwargs: Any, out: Any) -> None:
        if "scaled_dot_product" in name:  # torch counts the GPU variants only
            query, key, value = args[:3]
            self.flops += 2 * prod(query.shape) * key.shape[-2] + 2 * prod(query.shape[:-1]) * key.shape[-2] * value.shape[-1]
        elif func._overloadpacket in flop_registry:
            self.flops += int(flop_registry[func._overloadpacket](*args, **kwargs, out_val=out))

    def _step(self, name: str, args: Any, sources: list[tuple[Tensor, Step]], out: Tensor) -> Step:
        # A gate that is spread over all positions (squeeze and excitation) does not make its partner coarse, nor far-sighted.
        histories = [history for tensor, history in sources if tensor.shape == out.shape] or [history for _, history in sources]
        widest = max(histories, key=lambda h: h.field)
        area = min(history.area for history in histories)
        field, jump, is_softmax = widest.field, widest.jump, "softmax" in name
        if name in ("convolution", "max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d", "avg_pool3d"):
            kernel, stride, dilation, is_transposed = _window(name, args, self._axis)
            reach = dilation * (kernel - 1)
            if is_transposed:
                field, jump = field + reach // stride * jump, jump / stride
            else:
                field, jump = field + reach * jump, jump * stride
            area = min(area, prod(out.shape[2:]))
        elif "upsample" in name or "adaptive" in name:
            ratio = _along(args[0].shape[2:], self._axis) / _along(out.shape[2:], self._axis)
            field, jump = field + _reach(name, ratio) * jump, jump * ratio
            area = min(area, prod(out.shape[2:]))
        elif name == "mean" and args[0].ndim >= 4 and len(args) > 1 and len(args[1]) > 1:  # over all positions
            longest = max(args[0].shape[axis] for axis in args[1])
            field, jump, area = field + (longest - 1) * jump, jump * longest, 1
        elif name == "pixel_shuffle":
            jump /= args[1]
        elif name == "pixel_unshuffle":
            field, jump = field + (args[1] - 1) * jump, jump * args[1]
        elif name == "bmm" and len(sources) > 1 or "scaled_dot_product" in name:
            field = self._limit
        elif name in _PASSING or (name in ("mul", "mul_", "div", "div_") and len(sources) == 1):
            is_softmax = any(history.is_softmax for _, history in sources)
        return Step(field=min(field, self._limit), jump=jump, area=area, is_softmax=is_softmax)

    def _notice(self, name: str, sources: list[tuple[Tensor, Step]], out: Tensor, step: Step) -> None:
        time = self._now()
        if "scaled_dot_product" in name or (name == "bmm" and any(history.is_softmax for _, history in sources)):
            self._tell(Event(kind="attention", detail=name.strip("_"), time=time, step=step))
        operands = [history for tensor, history in sources if tensor.ndim >= 4]
        if name == "cat" and len(operands) > 1 and out.ndim >= 4:
            self._tell(Event(kind="fusion", detail="cat", time=time, step=step))
        elif name in ("add", "add_") and len(operands) > 1 and len({history.area for history in operands}) > 1:
            self._tell(Event(kind="fusion", detail="add", time=time, step=step))


_PASSING = (
    *("view", "_unsafe_view", "reshape", "expand", "transpose", "permute", "t", "squeeze", "unsqueeze", "slice", "select", "alias", "detach"),
    *("clone", "_to_copy", "native_dropout"),
)
"""Operators behind which softmax weights are softmax weights still."""


def _along(values: Any, axis: int) -> int:
    """The value of the axis, where there is one for each; all share a single one."""
    return int(values[min(axis, len(values) - 1)])


def _window(name: str, args: Any, axis: int) -> tuple[int, int, int, bool]:
    """Kernel, stride and dilation along an axis, and whether the convolution is transposed."""
    if name == "convolution":
        _, weight, _, stride, _, dilation, is_transposed, *_ = args
        return weight.shape[2 + min(axis, weight.ndim - 3)], _along(stride, axis), _along(dilation, axis), bool(is_transposed)
    kernel = _along(args[1], axis)
    stride = _along(args[2], axis) if len(args) > 2 and args[2] else kernel
    dilation = _along(args[4], axis) if name.startswith("max") and len(args) > 4 else 1
    return kernel, stride, dilation, False


def _reach(name: str, ratio: float) -> int:
    """Neighbours that a resize of ``ratio`` inputs a position looks at, beside the nearest."""
    if ratio == 1 or "nearest" in name:
        return 0
    if "upsample" in name and "_aa" not in name:
        return 3 if "cubic" in name else 1
    return max(1, ceil(ratio) - 1)
