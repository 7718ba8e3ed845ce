"""Losses on the arrangement of labels: regions, boundaries, neighbours, presence in the image, and the model's own output."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imachsr.core.adapters import make_projection
from imachsr.core.labels import SideLabels
from imachsr.core.losses.protocol import ToClasses, ToNothing, directions
from imachsr.core.messages import require
from imachsr.core.types import in_full


@dataclass(frozen=True, kw_only=True)
class RegionMutualInformation(ToClasses):
    """Negative lower bound on the mutual information of label and score regions, ``mean_k log det(S_k) / (2 d)``. O(B K h w d).

    S_k = Cov(Y) - Cov(Y, P) (Cov(P) + e I)^-1 Cov(P, Y) + e I, over all regions of ``size x size`` = d positions; Y class shares and P =
    sigmoid(z), both times the share of valid pixels. At least log(e) / 2, and blind to the sign: z and -z are as informative. Only present
    classes count. Each rank uses its own regions. Covariances and what comes of them are float64, since the determinants are tiny. Source: Zhao
    et al. 2019, eq. 12; the bound alone, without its cross-entropy.

    Args:
        size: Side of a region, >= 2.
        pool: Side of the averaging before, >= 1; left out where it would leave less than ``size + 1`` positions a side.
        jitter: e > 0.

    """

    kind: Literal["rmi"] = "rmi"
    size: int = 3
    pool: int = 2
    jitter: float = 1e-4
    family: ClassVar[str] = "structure"
    needs_dense: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self.size >= 2, "size >= 2", self.size)
        require(self.pool >= 1, "pool >= 1", self.pool)
        require(self.jitter > 0, "jitter > 0", self.jitter)

    def __call__(self, z: Tensor, labels: SideLabels) -> Tensor:
        """Negative bound in nats a position, from z ``[B, K, h, w]``; 0 for a tap smaller than a region."""
        weight = labels.valid.unsqueeze(1)
        p, y = torch.sigmoid(in_full(z)) * weight, (labels.soft * weight).to(in_full(z).dtype)
        if min(z.shape[2:]) >= self.pool * (self.size + 1):
            p, y = F.avg_pool2d(p, self.pool), F.avg_pool2d(y, self.pool)
        if min(p.shape[2:]) < self.size:
            return p.sum() * 0.0
        is_present = (y.amax((0, 2, 3)) > 0).double()
        p, y = self._regions(p), self._regions(y)
        count = p.shape[2]
        jitter = self.jitter * torch.eye(p.shape[1], dtype=torch.float64, device=z.device)
        pp, yy, yp = ((a @ b.transpose(1, 2) / count) for a, b in ((p, p), (y, y), (y, p)))
        factor = _cholesky(pp + jitter)
        explained = torch.linalg.solve_triangular(factor, yp.transpose(1, 2), upper=False)
        rest = yy - explained.transpose(1, 2) @ explained + jitter
        log_det = 2 * _cholesky(rest).diagonal(dim1=1, dim2=2).log().sum(1)
        bound = (log_det * is_present).sum() / is_present.sum().clamp(min=1) / (2 * p.shape[1])
        result: Tensor = bound.to(in_full(z).dtype)
        return result

    def _regions(self, x: Tensor) -> Tensor:
        """Centred regions, float64 ``[K, d, N]``, of ``[B, K, h, w]``."""
        windows = x.unfold(2, self.size, 1).unfold(3, self.size, 1)
        flat = windows.permute(1, 4, 5, 0, 2, 3).flatten(3).flatten(1, 2).double()  # before the products, as in the source
        return flat - flat.mean(2, keepdim=True)


def _cholesky(matrices: Tensor) -> Tensor:
    """Factors of matrices ``[K, d, d]``; NaN where one has none, so that the loss is not finite, and told as such, instead of an error of its own."""
    factor, info = torch.linalg.cholesky_ex(matrices)
    return torch.where((info > 0)[:, None, None], torch.nan, factor)


@dataclass(frozen=True, kw_only=True)
class Boundary:
    """Balanced binary cross-entropy of an edge map: ``-(mean_{edges} log s_p + mean_{others} log(1 - s_p)) / 2`` with s = sigmoid(z). O(Bhw).

    A position is an edge when its valid pixels are of several classes, or its right or lower neighbour's majority is of another class; those of
    which less than half is valid are neither edges nor others. Means are over all ranks, and that over nothing is 0. Source: after Xie & Tu
    2015 (HED) for the balance, Takikawa et al. 2019 for edges as supervision of a segmentation network.
    """

    kind: Literal["boundary"] = "boundary"
    family: ClassVar[str] = "structure"
    needs_dense: ClassVar[bool] = True

    def make_adapter(self, channels: int, num_classes: int, generator: torch.Generator) -> nn.Module:
        """1x1 convolution C -> 1."""
        return make_projection(channels, 1, generator)

    def __call__(self, z: Tensor, labels: SideLabels) -> Tensor:
        """Balanced cross-entropy in nats, from z ``[B, 1, h, w]``."""
        z = in_full(z).squeeze(1)
        y = labels.hard
        is_edge = labels.soft.amax(1) < 1
        for axis in (1, 2):
            here, there = y.narrow(axis, 0, y.shape[axis] - 1), y.narrow(axis, 1, y.shape[axis] - 1)
            differs = (here != there) & (here >= 0) & (there >= 0)
            pad = (0, 0, 0, 1) if axis == 1 else (0, 1)
            is_edge = is_edge | F.pad(differs, pad)
        is_valid = y >= 0
        loss = F.binary_cross_entropy_with_logits(z, is_edge.to(z.dtype), reduction="none")
        edges, others = (is_edge & is_valid).to(z.dtype), (~is_edge & is_valid).to(z.dtype)
        return (labels.mean(loss, edges) + labels.mean(loss, others)) / 2


@dataclass(frozen=True, kw_only=True)
class Affinity(ToNothing):
    """Agreement of neighbours: ``-(mean_{equal} log a_pq + mean_{unequal} log(1 - a_pq)) / 2`` over neighbouring pairs. O(BChw).

    a_pq = (1 + cos(h_p, h_q)) / 2 of features h and the right or lower neighbour q of p, both with a valid majority. Logarithms end at
    log(1e-4). Means are over all ranks, and that over nothing is 0. Source: after Ke et al. 2018 (adaptive affinity fields).
    """

    kind: Literal["affinity"] = "affinity"
    family: ClassVar[str] = "structure"
    needs_dense: ClassVar[bool] = True

    def __call__(self, z: Tensor, labels: SideLabels) -> Tensor:
        """Balanced cross-entropy in nats, from z ``[B, C, h, w]``; 0 for a single position."""
        x, y = directions(z, 1), labels.hard
        equal = unequal = x.sum() * 0.0
        counts = []
        for axis in (1, 2):
            length = y.shape[axis] - 1
            here, there = y.narrow(axis, 0, length), y.narrow(axis, 1, length)
            a = (1 + (x.narrow(axis + 1, 0, length) * x.narrow(axis + 1, 1, length)).sum(1)) / 2
            is_valid = (here >= 0) & (there >= 0)
            same, other = (is_valid & (here == there)).to(x.dtype), (is_valid & (here != there)).to(x.dtype)
            # log(0) and its infinite slope are kept out: neighbours may be equal, or opposite, to the last bit.
            equal = equal - (a.clamp(min=1e-4).log() * same).sum()
            unequal = unequal - ((1 - a).clamp(min=1e-4).log() * other).sum()
            counts.append(torch.stack([same.sum(), other.sum()]))
        same_count, other_count = labels.ranks.mean(counts[0] + counts[1]).clamp(min=1e-6)
        result: Tensor = (equal / same_count + unequal / other_count) / 2
        return result


class _PooledLinear(nn.Module):
    """Mean over positions, then a linear map: ``[B, C, h, w] -> [B, K, 1, 1]``."""

    def __init__(self, projection: nn.Module) -> None:
        super().__init__()
        self.projection = projection

    def forward(self, features: Tensor) -> Tensor:
        pooled: Tensor = self.projection(features.mean((2, 3), keepdim=True))
        return pooled


@dataclass(frozen=True, kw_only=True)
class Presence:
    """Which classes occur in the image: ``-1/(BK) sum_b sum_k t_bk log s_bk + (1 - t_bk) log(1 - s_bk)`` with s = sigmoid(z). O(BChw).

    t_bk is 1 where class k has a valid pixel in image b. Images without a valid pixel do not count, and B counts the others of all ranks.
    Source: Zhang et al. 2018 (EncNet, semantic encoding loss).
    """

    kind: Literal["presence"] = "presence"
    family: ClassVar[str] = "image"

    def make_adapter(self, channels: int, num_classes: int, generator: torch.Generator) -> nn.Module:
        """Mean over positions, then linear C -> K."""
        return _PooledLinear(make_projection(channels, num_classes, generator))

    def __call__(self, z: Tensor, labels: SideLabels) -> Tensor:
        """Mean binary cross-entropy in nats, from z ``[B, K, 1, 1]``."""
        z = in_full(z).mean((2, 3))
        target = ((labels.soft * labels.valid.unsqueeze(1)).amax((2, 3)) > 0).to(z.dtype)
        has_pixels = (labels.valid.amax((1, 2)) > 0).to(z.dtype)
        return labels.mean(F.binary_cross_entropy_with_logits(z, target, reduction="none").mean(1), has_pixels)


@dataclass(frozen=True, kw_only=True)
class Synergy(ToClasses):
    """Agreement with the model's own output: ``T^2/V sum_p v_p KL(softmax(o_p/T) | softmax(z_p/T))``, o without gradient. O(BKHW).

    o are the output's scores, averaged to the tap's resolution, v_p the share of valid pixels and V their sum over all ranks. For a one-hot
    teacher it is cross-entropy. Source: Hinton et al. 2015; Sun et al. 2019 (knowledge synergy).

    Args:
        temperature: T > 0.

    """

    kind: Literal["synergy"] = "synergy"
    temperature: float = 1.0
    family: ClassVar[str] = "self_distillation"
    needs_output: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self.temperature > 0, "temperature > 0", self.temperature)

    def __call__(self, z: Tensor, labels: SideLabels) -> Tensor:
        """Divergence in nats, from z ``[B, K, h, w]``."""
        if labels.output is None:
            raise ValueError("`labels.output` must hold the output's scores for 'synergy', but is None")
        log_q = F.log_softmax(in_full(z) / self.temperature, 1)
        log_o = F.log_softmax(labels.output.to(log_q.dtype) / self.temperature, 1)
        return self.temperature**2 * labels.mean((log_o.exp() * (log_o - log_q)).sum(1))


StructureLoss = RegionMutualInformation | Boundary | Affinity | Presence | Synergy
