"""Read tapped layers through forward hooks, and only while asked."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from imachsr.core.tracing import named_tensors
from imachsr.core.types import Tap

MAX_CONSECUTIVE_MISSES = 20


class Recorder:
    """Catches the tensors of the tapped calls of one forward.

    A plain class whose hooks are objects, not closures: a model that holds it can be deep-copied and pickled.
    """

    def __init__(self, model: nn.Module, taps: tuple[Tap, ...]) -> None:
        self.taps = taps
        self.misses: Counter[str] = Counter()
        self._row: Counter[str] = Counter()
        self._is_recording = False
        self._calls: Counter[str] = Counter()
        self._caught: dict[str, tuple[Tensor, int]] = {}
        modules = dict(model.named_modules())
        for name in dict.fromkeys(tap.layer.module for tap in taps):
            # Registered once, when wrapping: torch.compile never sees hooks that are added after its first call.
            modules[name].register_forward_hook(_TapHook(self, name))

    def remove(self, model: nn.Module) -> None:
        """Take the hooks off again."""
        for module in model.modules():
            for key, hook in list(module._forward_hooks.items()):
                if isinstance(hook, _TapHook) and hook.recorder is self:
                    del module._forward_hooks[key]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_caught": {}, "_calls": Counter(), "_is_recording": False}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Catch while the body runs; forget on an error."""
        self._calls.clear()
        self._caught.clear()
        self._is_recording = True
        try:
            yield
        except BaseException:
            self._caught.clear()
            raise
        finally:
            self._is_recording = False

    def catch(self, name: str, output: Any) -> None:
        """Called by the hooks."""
        if not self._is_recording:
            return
        self._calls[name] += 1
        nth = self._calls[name]
        for tap in self.taps:
            layer = tap.layer
            if layer.module == name and layer.nth == nth:
                tensors = dict(named_tensors(output))
                if layer.key in tensors:
                    tensor = tensors[layer.key]
                    self._caught[layer.address] = (tensor, _version(tensor))

    def take(self, model: nn.Module) -> dict[str, Tensor]:
        """Tensors by tap address, in tap order; the buffer is emptied, so that nothing outlives the step.

        Args:
            model: That has just run. A tap may be missed in eval mode: what runs in training alone is then no miss.

        Raises:
            RuntimeError: If a caught tensor was rewritten in place, has no gradient although gradients are on (reentrant activation checkpointing),
                a tap's module was called more often than in the trace or is another than the one that was wrapped, or a tap missed 20 consecutive
                forwards in training.

        """
        caught, self._caught = self._caught, {}
        features: dict[str, Tensor] = {}
        for tap in self.taps:
            address, name = tap.layer.address, tap.layer.module
            if self._calls[name] > tap.layer.num_calls:
                raise RuntimeError(
                    f"module {name!r} of tap {address!r} must be called at most {tap.layer.num_calls} times, as in the trace, "
                    f"but was called {self._calls[name]} times; trace the model as it is trained, or choose another layer"
                )
            if address not in caught:
                self._check_wrapped(model, tap)
                if model.training:
                    self._miss(address)
                continue
            self._row[address] = 0
            tensor, version = caught[address]
            if _version(tensor) != version:
                raise RuntimeError(
                    f"the output of tap {address!r} must not change after its module returns, but it was rewritten in place; "
                    "tap the module that rewrites it (often the in-place activation behind it)"
                )
            if torch.is_grad_enabled() and not tensor.requires_grad:
                raise RuntimeError(
                    f"the output of tap {address!r} must require a gradient, but it does not: the layers before it are frozen, or run under "
                    "reentrant activation checkpointing (pass use_reentrant=False), so that its side loss would train nothing"
                )
            features[address] = tensor
        return features

    def _check_wrapped(self, model: nn.Module, tap: Tap) -> None:
        name = tap.layer.module
        module = dict(model.named_modules()).get(name)
        if module is None or not any(isinstance(hook, _TapHook) and hook.recorder is self for hook in module._forward_hooks.values()):
            raise RuntimeError(
                f"module {name!r} of tap {tap.layer.address!r} must be the one that was wrapped, but was replaced since; change the model first "
                "(SyncBatchNorm.convert_sync_batchnorm, quantization, adapters), then wrap it"
            )

    def _miss(self, address: str) -> None:
        self.misses[address] += 1
        self._row[address] += 1
        if self._row[address] >= MAX_CONSECUTIVE_MISSES:
            raise RuntimeError(f"tap {address!r} must fire, but was missed by {self._row[address]} consecutive forwards; choose another layer")


class _TapHook:
    def __init__(self, recorder: Recorder, name: str) -> None:
        self.recorder = recorder
        self.name = name

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self.recorder.catch(self.name, output)


def _version(tensor: Tensor) -> int:
    """How often a tensor was rewritten; 0 where nobody counts: in a compiled graph, and of what is made under ``torch.inference_mode``.

    What is always rewritten was no candidate in the trace.
    """
    return 0 if torch.compiler.is_compiling() or tensor.is_inference() else tensor._version
