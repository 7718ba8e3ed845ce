"""What a network does with a few batches, measured for the standards that ask."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imachsr.core.entropy import negative_entropy
from imachsr.core.labels import TapLabels
from imachsr.core.layout import to_nchw
from imachsr.core.losses.protocol import sample
from imachsr.core.output import CrossEntropy
from imachsr.core.taps import Recorder
from imachsr.core.tracing import left_as_found
from imachsr.core.types import LayerInfo, Tap

PROBED = 1024
"""Positions of a batch that the linear probe sees."""


class Calibration:
    """A model and batches. Forwards run in train mode; mode, buffers, gradients and the random state are left as they were.

    Args:
        model: The backbone.
        batches: Images and labels, as in training; read again for every measurement, so no iterator that ends.
        num_classes: K.
        ignore_index: Label of pixels that do not count.
        seed: Of the positions that the probe sees.

    """

    def __init__(self, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], num_classes: int, ignore_index: int, *, seed: int = 0) -> None:
        self._model, self._batches = model, batches
        self._num_classes, self._ignore_index, self._seed = num_classes, ignore_index, seed

    def gradient_ratios(self, layers: Sequence[LayerInfo], batches: int) -> list[float]:
        """``|dL/dh| / |h|`` of each layer, mean over batches; L is the cross-entropy of the model's output."""

        def ratios(features: list[Tensor], output: Tensor, labels: Tensor, size: tuple[int, ...]) -> list[float]:
            loss = CrossEntropy()(output, labels, ignore_index=self._ignore_index)
            gradients = torch.autograd.grad(loss, features, allow_unused=True)
            norms = [0.0 if g is None else float(g.float().norm()) for g in gradients]
            return [norm / max(float(h.detach().float().norm()), 1e-12) for norm, h in zip(norms, features, strict=True)]

        return self._mean(layers, batches, ratios)

    def channel_entropies(self, layers: Sequence[LayerInfo], batches: int) -> list[float]:
        """``H / log C`` of each layer's channels, in [0, 1], mean over positions and batches."""

        def entropies(features: list[Tensor], output: Tensor, labels: Tensor, size: tuple[int, ...]) -> list[float]:
            found = []
            for layer, tensor in zip(layers, features, strict=True):
                hidden = to_nchw(tensor.detach(), layer.layout, size)
                found.append(-float(negative_entropy(hidden, 1.0).mean()) / math.log(layer.channels))
            return found

        return self._mean(layers, batches, entropies)

    def probe_information(self, layers: Sequence[LayerInfo], batches: int) -> list[float]:
        """``H(Y) - CE`` of a linear probe on each layer, nats, mean over batches; fitted on one half of the positions, read on the other."""

        def information(features: list[Tensor], output: Tensor, labels: Tensor, size: tuple[int, ...]) -> list[float]:
            draw = torch.tensor(self._seed, device=labels.device)
            at_taps = TapLabels(labels, self._num_classes, self._ignore_index, draw=draw)
            found = []
            for layer, tensor in zip(layers, features, strict=True):
                hidden = to_nchw(tensor.detach(), layer.layout, size)
                if not at_taps.is_dense:
                    hidden = hidden.mean((2, 3), keepdim=True)
                extent = tuple(tensor.shape[2:]) if layer.layout == "NCDHW" and at_taps.is_dense else tuple(hidden.shape[2:])
                x, y, is_valid = sample(hidden, at_taps.at(extent), PROBED)
                found.append(_probe(x[is_valid], y[is_valid], self._num_classes))
            return found

        return self._mean(layers, batches, information)

    def _mean(self, layers: Sequence[LayerInfo], batches: int, measure: Callable[..., list[float]]) -> list[float]:
        rows = [measure(features, output, labels, size) for features, output, labels, size in self._forwards(layers, batches)]
        if not rows:
            raise ValueError("`calibration` must give at least one batch (images, labels), but gives none")
        return [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]

    def _forwards(self, layers: Sequence[LayerInfo], batches: int) -> Iterator[tuple[list[Tensor], Tensor, Tensor, tuple[int, ...]]]:
        recorder = Recorder(self._model, tuple(Tap(layer=layer, reason="") for layer in layers))
        try:
            for images, labels in islice(iter(self._batches), batches):
                with left_as_found(self._model, images.device), torch.enable_grad():
                    torch.manual_seed(self._seed)
                    self._model.train()
                    with recorder.recording():
                        output = self._model(images)
                    caught = recorder.take()
                    missing = [layer.address for layer in layers if layer.address not in caught]
                    if missing:
                        raise ValueError(
                            f"every candidate must fire on the calibration data, but {missing[0]!r} did not ({len(missing)} such layers)"
                        )
                    yield [caught[layer.address] for layer in layers], output, labels, tuple(images.shape[2:])
        finally:
            recorder.remove()


@torch.enable_grad()
def _probe(x: Tensor, y: Tensor, num_classes: int) -> float:
    """Information in nats that a ridge-regularised logistic regression, fitted on the even rows, has about the classes of the odd ones."""
    if len(y) < 4:
        return 0.0
    x = (x - x.mean(0)) / (x.std(0) + 1e-6)
    weight = torch.zeros(x.shape[1], num_classes, device=x.device, dtype=x.dtype, requires_grad=True)
    bias = torch.zeros(num_classes, device=x.device, dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x[::2] @ weight + bias, y[::2]) + 1e-2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    share = torch.bincount(y[1::2], minlength=num_classes).to(x.dtype) / len(y[1::2])
    entropy = -(share * share.clamp(min=1e-12).log()).sum()
    return float(entropy - F.cross_entropy(x[1::2] @ weight.detach() + bias.detach(), y[1::2]))
