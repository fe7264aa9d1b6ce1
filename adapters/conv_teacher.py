"""A small convolutional net that learns drawings and photographs within minutes, and whose map an image tower imitates.

From scratch a vision transformer needs many more images than a convolutional net to see shapes. DeiT (Touvron et al. 2021)
imitates a convolutional teacher's answers; here the patch tokens imitate its map, place by place (ours).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Channels and stride of each layer: at the end one eighth of the image's height and width.
LAYERS = ((32, 2), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1))
CHANNELS = LAYERS[-1][0]
PARTS = 3  # parts of height and of width that the features tell apart, so that they know where a thing is


class ConvTeacher(nn.Module):
    """Convolutions of 3 x 3, each with batch normalisation and, but for the last, a ReLU; in the precision of its weights.

    That is float32 under mixed precision, too: half-precision convolutions are many times slower than float32 ones on most CPUs.

    Args:
        size: of the features, D.
        width: of the tokens that imitate the map, W.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        before = 3
        self.kernels, self.norms = nn.ParameterList(), nn.ModuleList()
        for i, (channels, _) in enumerate(LAYERS):
            # Matrices (out, in * 9), so that an optimiser for matrices takes them.
            self.kernels.append(nn.Parameter(torch.randn(channels, before * 9) * (2 / (before * 9)) ** 0.5))
            self.norms.append(nn.BatchNorm2d(channels, affine=i + 1 < len(LAYERS)))  # the map is standardised
            before = channels
        self.project = nn.Linear(CHANNELS * PARTS**2, size, bias=False)
        self.imitate = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, CHANNELS))

    def map(self, images: Tensor) -> Tensor:
        """Map (B, C, H / 8, W / 8), of mean 0 and variance 1 in each channel, of network input (B, 3, H, W)."""
        with torch.autocast(images.device.type, enabled=False):
            x = images.to(self.kernels[0].dtype).contiguous(memory_format=torch.channels_last)
            for i, ((_, stride), kernel, norm) in enumerate(zip(LAYERS, self.kernels, self.norms, strict=True)):
                x = x.relu() if i else x
                weight = kernel.view(len(kernel), -1, 3, 3).contiguous(memory_format=torch.channels_last)
                x = norm(F.conv2d(x, weight, stride=stride, padding=1))
        return x

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, D), unit norm, of network input (B, 3, H, W), with which the teacher itself learns."""
        parts = F.adaptive_avg_pool2d(self.map(images).relu(), PARTS).flatten(1)
        with torch.autocast(images.device.type, enabled=False):
            return F.normalize(self.project(parts), dim=-1)

    def distance(self, tokens: Tensor, images: Tensor, grid: tuple[int, int], places: Tensor | None = None) -> Tensor:
        """Mean squared error with which patch tokens tell the map, that of a learned linear reading; 1 tells nothing.

        Args:
            tokens: (B, P, W) of patches.
            images: network input (B, 3, H, W).
            grid: rows and columns of all patches.
            places: (B, P) numbers of the patches in the grid, row by row; None where all are there.
        """
        with torch.no_grad():
            target = F.adaptive_avg_pool2d(self.eval().map(images), grid).flatten(2).transpose(1, 2)
            if places is not None:
                target = target.gather(1, places[..., None].expand(-1, -1, target.shape[2]))
        with torch.autocast(images.device.type, enabled=False):
            return F.mse_loss(self.imitate(tokens.to(target.dtype)), target)
