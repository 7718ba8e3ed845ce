"""A U-Net of 26 thousand parameters: the smallest net with stages, changes of resolution and depth, so that the standards differ on it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (12, 16, 24, 32)


class Block(nn.Module):
    """A residual block; its first one in a stage halves the resolution."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.skip = nn.Conv2d(inputs, width, 1, stride, bias=False) if stride > 1 or inputs != width else nn.Identity()
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm1(self.conv1(x)))
        out: Tensor = self.act(self.norm2(self.conv2(y)) + self.skip(x))
        return out


class TinyUNet(nn.Module):
    """Scores ``[B, K, H, W]`` of images ``[B, 3, H, W]``; H and W are multiples of 16."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, WIDTHS[0], 3, 2, 1, bias=False), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU())
        steps = list(zip(WIDTHS, WIDTHS[1:], strict=False))
        self.stages = nn.ModuleList(nn.Sequential(Block(inputs, width, 2), Block(width, width, 1)) for inputs, width in steps)
        self.ups = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs + width, inputs, 3, 1, 1, bias=False), nn.BatchNorm2d(inputs), nn.ReLU()) for inputs, width in steps[::-1]
        )
        self.head = nn.Conv2d(WIDTHS[0], num_classes, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        skips = []
        for stage in self.stages:
            skips.append(x)
            x = stage(x)
        for up in self.ups:
            skip = skips.pop()
            x = up(torch.cat([F.interpolate(x, size=skip.shape[-2:], mode="nearest"), skip], 1))
        return F.interpolate(self.head(x), scale_factor=2.0, mode="bilinear", align_corners=False)
