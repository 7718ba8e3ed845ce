"""What a network does with a few batches, measured for the standards that ask."""

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imachsr.core.entropy import negative_entropy
from imachsr.core.labels import TapLabels
from imachsr.core.layout import to_nchw, volume_of
from imachsr.core.losses.protocol import sample
from imachsr.core.output import CrossEntropy
from imachsr.core.taps import Recorder
from imachsr.core.tracing import left_as_found, seed_forward
from imachsr.core.types import LayerInfo, Tap

PROBED = 1024
"""Positions of a batch that the linear probe sees."""
RIDGE = 0.3
"""r of the linear probe, beside a variance of 1 a channel."""
_FACTORS = (0.0, *(2.0 ** (step / 2) for step in range(-16, 4)))


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
        """``H(Y) - CE`` of a linear probe on each layer, nats >= 0, mean over batches; fitted on one half of the positions, read on the other."""

        def information(features: list[Tensor], output: Tensor, labels: Tensor, size: tuple[int, ...]) -> list[float]:
            draw = torch.tensor(self._seed, device=labels.device)
            at_taps = TapLabels(labels, self._num_classes, self._ignore_index, draw=draw)
            found = []
            for layer, tensor in zip(layers, features, strict=True):
                hidden = to_nchw(tensor.detach(), layer.layout, size)
                if not at_taps.is_dense:
                    hidden = hidden.mean((2, 3), keepdim=True)
                extent = (at_taps.is_dense and volume_of(tensor, layer.layout)) or tuple(hidden.shape[2:])
                x, y, is_valid = sample(hidden, at_taps.at(extent), PROBED)
                found.append(_probe(x[is_valid], y[is_valid], self._num_classes))
            return found

        return self._mean(layers, batches, information)

    def _mean(self, layers: Sequence[LayerInfo], batches: int, measure: Callable[..., list[float]]) -> list[float]:
        # Closed at once on an error too, which would hold the generator, and with it hooks and the mode, as long as it lives itself.
        with closing(self._forwards(layers, batches)) as forwards:
            rows = [measure(features, output, labels, size) for features, output, labels, size in forwards]
        if not rows:
            raise ValueError("`calibration` must give at least one batch (images, labels), but gives none")
        return [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]

    def _forwards(self, layers: Sequence[LayerInfo], batches: int) -> Generator[tuple[list[Tensor], Tensor, Tensor, tuple[int, ...]]]:
        recorder = Recorder(self._model, tuple(Tap(layer=layer, reason="") for layer in layers))
        try:
            for images, labels in islice(iter(self._batches), batches):
                with left_as_found(self._model, images.device), torch.enable_grad():
                    seed_forward(self._seed, images.device)
                    self._model.train()
                    with recorder.recording():
                        output = self._model(images)
                    caught = recorder.take(self._model)
                    missing = [layer.address for layer in layers if layer.address not in caught]
                    if missing:
                        raise ValueError(
                            f"every candidate must fire on the calibration data, but {missing[0]!r} did not ({len(missing)} such layers)"
                        )
                    yield [caught[layer.address] for layer in layers], output, labels, tuple(images.shape[2:])
        finally:
            recorder.remove(self._model)


@torch.no_grad()
def _probe(x: Tensor, y: Tensor, num_classes: int) -> float:
    """Information in nats, >= 0, that a linear discriminant, fitted on the even rows, has about the classes of the odd ones.

    ``H(Y) - min_t CE(softmax_k(log pi_k + t (x a_k - m_k a_k / 2)), Y)`` with ``a_k = (S + r I)^-1 m_k`` of standardised x, where m_k are the means
    and S the covariance within the classes, and pi the shares of the rows that are read. The one factor t takes back what the fit is too sure of: in
    wide layers a logistic regression, which has no such factor, ends with less than nothing. Source: Friedman 1989 (regularized discriminants).
    """
    if len(y) < 4:
        return 0.0
    x = (x - x.mean(0)) / (x.std(0) + 1e-6)
    fitted, known, read, asked = x[::2], y[::2], x[1::2], y[1::2]
    members = F.one_hot(known, num_classes).to(x.dtype)
    means = (members.T @ fitted) / members.sum(0).clamp(min=1).unsqueeze(1)
    axes = _solved(fitted - means[known], means.T)
    scores = read @ axes - (means.T * axes).sum(0) / 2
    prior = (torch.bincount(asked, minlength=num_classes).to(x.dtype) / len(asked)).clamp(min=1e-12).log()
    surprises = [float(F.cross_entropy(prior + factor * scores, asked)) for factor in _FACTORS]
    return surprises[0] - min(surprises)


def _solved(rows: Tensor, right: Tensor) -> Tensor:
    """``(R^T R / n + r I)^-1 B`` for R ``[n, C]`` and B ``[C, K]``, by the smaller of the two squares."""
    n, channels = rows.shape
    scaled = rows / math.sqrt(n)
    ridge = RIDGE * torch.eye(min(n, channels), dtype=rows.dtype, device=rows.device)
    solved: Tensor
    if channels <= n:
        solved = torch.linalg.solve(scaled.T @ scaled + ridge, right)
    else:
        solved = (right - scaled.T @ torch.linalg.solve(scaled @ scaled.T + ridge, scaled @ right)) / RIDGE
    return solved
