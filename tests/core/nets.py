"""Small nets written by hand, one for each way in which a model may be built. All give class scores ``[B, K, H, W]``."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

NUM_CLASSES = 3


def images(batch: int = 2, height: int = 32, width: int = 32, *, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def labels(batch: int = 2, height: int = 32, width: int = 32, *, seed: int = 1, void: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, NUM_CLASSES, (batch, height, width), generator=generator)
    return torch.where(torch.rand(classes.shape, generator=generator) < void, 255, classes)


class Norm(nn.Module):
    """conv - norm - act - head, at full resolution; ``rewrites`` the norm's output by a plain call, too."""

    def __init__(self, *, inplace: bool, rewrites: bool = False) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace)
        self.head, self.rewrites = nn.Conv2d(8, NUM_CLASSES, 1), rewrites

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        if self.rewrites:
            x.mul_(2.0)
        return self.head(self.act(x))


class Reused(nn.Module):
    """One activation that is called after each of three convolutions; the last call may be skipped."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8, 8))
        self.act, self.head = nn.ReLU(), nn.Conv2d(8, NUM_CLASSES, 1)
        self.num_calls = 3

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        for _ in range(self.num_calls - 3):
            x = self.act(x)
        x = self.second(x)
        x = self.act(x) if self.num_calls > 1 else x
        x = self.third(x)
        return self.head(self.act(x) if self.num_calls > 2 else x)


@dataclass
class Pair:
    small: Tensor
    big: Tensor


class Fork(nn.Module):
    """A module that gives two tensors of its own in one structure."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.weight = kind, nn.Parameter(torch.ones(2, 8, 1, 1))

    def forward(self, x: Tensor) -> Any:
        small, big = F.avg_pool2d(x * self.weight[0], 2), x * self.weight[1]
        made = {"tuple": (small, big), "list": [small, big], "dict": {"small": small, "big": big}, "dataclass": Pair(small, big)}
        return made[self.kind]


class Structured(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.stem, self.fork, self.head = nn.Conv2d(3, 8, 3, padding=1), Fork(kind), nn.Conv2d(8, NUM_CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        given = self.fork(self.stem(x))
        small, big = (given.small, given.big) if isinstance(given, Pair) else given.values() if isinstance(given, dict) else given
        return self.head(big + F.interpolate(small, size=big.shape[-2:]))


class Wrapped(nn.Module):
    """What the output may be: ``how`` turns the scores into what the model gives."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.body = how, nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Conv2d(8, NUM_CLASSES * (16 if how == "shuffle" else 1), 1)
        self.up, self.activation, self.inner = nn.Upsample(scale_factor=2), nn.Softmax(1), nn.Sequential(nn.Identity(), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Any:
        scores = self.head(self.inner(self.body(x)))
        if self.how == "up":
            return self.up(scores)
        if self.how == "interpolate":
            return F.interpolate(scores, scale_factor=2, mode="bilinear")
        if self.how == "softmax":
            return self.activation(scores)
        if self.how == "shuffle":
            return F.pixel_shuffle(scores, 4)
        if self.how == "crop":
            return scores[..., 1:-1, 1:-1]
        if self.how == "dict":
            return {"out": scores, "aux": F.interpolate(scores, scale_factor=2)}
        if self.how == "namespace":
            return SimpleNamespace(logits=scores)
        if self.how == "number":
            return SimpleNamespace(value=1)
        return scores


class ChannelsLast(nn.Module):
    """A patch embedding, then layers on ``[B, h, w, C]`` as in Swin."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.patch, self.norm, self.mlp = nn.Conv2d(3, channels, 4, stride=4), nn.LayerNorm(channels), nn.Linear(channels, channels)
        self.head = nn.Conv2d(channels, NUM_CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mlp(self.norm(self.patch(x).permute(0, 2, 3, 1)))
        return F.interpolate(self.head(x.permute(0, 3, 1, 2)), scale_factor=4)


class Attention(nn.Module):
    """Softmax attention whose map ``[B, heads, N, N]`` passes a module, so that a hook sees it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv, self.soft = nn.Linear(channels, 3 * channels), nn.Softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        return (self.soft(q @ k.transpose(-1, -2)) @ v).transpose(1, 2).flatten(2)


class Layer(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(channels), Attention(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(self.norm(x))


class Vit(nn.Module):
    """Tokens with ``prefix`` extra tokens in front, in batch-first order or not."""

    def __init__(self, *, prefix: int = 1, blocks: int = 6, batch_first: bool = True) -> None:
        super().__init__()
        self.batch_first, self.prefix = batch_first, nn.Parameter(torch.randn(1, prefix, 8))
        self.patch, self.blocks = nn.Conv2d(3, 8, 8, stride=8), nn.ModuleList(Layer(8) for _ in range(blocks))
        self.outer = nn.ModuleList(nn.Linear(8, 8) for _ in range(0 if batch_first else 1))
        self.head = nn.Linear(8, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x)
        h, w = x.shape[-2:]
        x = torch.cat([self.prefix.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
        for block in self.blocks:
            x = block(x)
        for layer in self.outer:
            x = layer(x.transpose(0, 1)).transpose(0, 1)
        scores = self.head(x[:, self.prefix.shape[1] :]).transpose(1, 2)
        return F.interpolate(scores.unflatten(2, (h, w)), scale_factor=8)


class Windowed(nn.Module):
    """A layer that sees windows folded into the batch: its first axis is B times the number of windows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.in_windows, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 8), nn.Conv2d(8, NUM_CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, c, h, w = x.shape
        windows = x.reshape(b, c, h // 8, 8, w // 8, 8).permute(0, 2, 4, 3, 5, 1).reshape(-1, 64, c)
        x = self.in_windows(windows).reshape(b, h // 8, w // 8, 8, 8, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)
        return self.head(x)


class DeadBranch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.alive, self.dead, self.cut = (nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8, 8))
        self.head = nn.Conv2d(8, NUM_CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.alive(x)
        self.dead(x)
        return self.head(x + self.cut(x).detach())


class OneSize(nn.Module):
    """Takes only 32x64 images, for its learned positions."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.positions = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Parameter(torch.zeros(1, 8, 16, 32))
        self.act, self.head = nn.ReLU(), nn.Conv2d(8, NUM_CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.head(self.act(self.body(x) + self.positions)), scale_factor=2)


class LayerDrop(nn.Module):
    """Skips each layer at random."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layers = nn.Conv2d(3, 8, 3, padding=1), nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(8))
        self.head = nn.Conv2d(8, NUM_CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x) if float(torch.rand(())) < 0.5 else x
        return self.head(x)


class Stateful(nn.Module):
    """Keeps statistics in every way in which modules keep them, in a mixture of modes."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.drop = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(0.5)
        self.frozen, self.head = nn.BatchNorm2d(8), nn.Conv2d(8, NUM_CLASSES, 1)
        self.register_buffer("assigned", torch.zeros(()))
        self.register_buffer("unset", None)
        self.register_buffer("expanded", torch.ones(1).expand(4))
        self.register_buffer("infinite", torch.tensor([float("nan"), float("inf")]))

    def forward(self, x: Tensor) -> Tensor:
        self.assigned = self.assigned + 1
        return self.head(self.drop(self.frozen(self.norm(self.body(x)))))


class Block(nn.Module):
    def __init__(self, channels: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, outputs, 3, stride, 1), nn.GroupNorm(2, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class Encoder(nn.Module):
    """Two stages of two blocks and a head; the second stage may be skipped, run under checkpointing, or be rewritten in place afterwards."""

    def __init__(self, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = Block(3, 4, 1)
        self.stage1 = nn.Sequential(Block(4, 6, 2), Block(6, 6, 1))
        self.stage2 = nn.Sequential(Block(6, 8, 2), Block(8, 8, 1))
        self.drop, self.head = nn.Dropout(dropout), nn.Conv2d(8, NUM_CLASSES, 1)
        self.is_skipped, self.is_rewritten = False, False
        self.reentrant: bool | None = None

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        x = self.stage1(self.stem(x))
        if self.is_skipped:
            x = F.pad(F.avg_pool2d(x, 2), (0, 0, 0, 0, 0, 2))
        elif self.reentrant is not None:
            x = checkpoint(self.stage2, x, use_reentrant=self.reentrant)
        else:
            x = self.stage2(x)
        if self.is_rewritten:
            x.mul_(2.0)
        return F.interpolate(self.head(self.drop(x)), size=size, mode="bilinear")
