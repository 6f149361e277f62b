"""ResNet-8 with GroupNorm: residual blocks of He et al., arXiv 1512.03385, in the size of their
CIFAR networks (6n + 2 layers, n = 1). Batch normalization would mix examples, so their gradients
could not be clipped one by one."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from node.config import TaskSection

GROUPS = 8


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut (1×1 where the size changes)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(GROUPS, after)
        self.second = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(GROUPS, after)
        same = before == after and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm1(self.first(x)))
        return functional.relu(self.norm2(self.second(y)) + self.shortcut(x))


def resnet8(task: TaskSection, shape: tuple[int, int, int]) -> nn.Module:
    """Widths 16, 32, 64; 77,850 parameters for 3×32×32 and ten classes."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 16, 3, padding=1, bias=False), nn.GroupNorm(GROUPS, 16), nn.ReLU(),
        Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, task.outputs),
    )  # fmt: skip
