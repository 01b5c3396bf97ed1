"""The networks in plain torch.nn, with torchvision's module names, for parity tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

STAGES = {
    "resnet8": (1, 1, 1),
    "resnet32": (5, 5, 5),
    "resnet10": (1, 1, 1, 1),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnext50_32x4d": (3, 4, 6, 3),
}


class Block(nn.Module):
    def __init__(self, inner, width, stride, bottleneck, groups, padded):
        super().__init__()
        out = 4 * width if bottleneck else width
        if bottleneck:
            middle = width if groups == 1 else width * 2
            self.conv1 = nn.Conv2d(inner, middle, 1, bias=False)
            self.conv2 = nn.Conv2d(
                middle, middle, 3, stride, 1, groups=groups, bias=False
            )
            self.conv3 = nn.Conv2d(middle, out, 1, bias=False)
            self.bn1, self.bn2 = nn.BatchNorm2d(middle), nn.BatchNorm2d(middle)
            self.bn3 = nn.BatchNorm2d(out)
        else:
            self.conv1 = nn.Conv2d(inner, out, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
            self.bn1, self.bn2 = nn.BatchNorm2d(out), nn.BatchNorm2d(out)
        self.bottleneck, self.stride, self.side = bottleneck, stride, (out - inner) // 2
        if not padded and (stride != 1 or inner != out):
            self.downsample = nn.Sequential(
                nn.Conv2d(inner, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x):
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.bottleneck:
            y = self.bn3(self.conv3(functional.relu(y)))
        if hasattr(self, "downsample"):
            x = self.downsample(x)
        elif self.side:
            x = x[:, :, :: self.stride, :: self.stride]
            x = functional.pad(x, (0, 0, 0, 0, self.side, self.side))
        return functional.relu(x + y)


class Network(nn.Module):
    def __init__(self, name, width, num_classes, stem="cifar", channels=3):
        super().__init__()
        bottleneck, groups = "50" in name, 32 if "resnext" in name else 1
        size, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.stem = stem
        self.conv1 = nn.Conv2d(channels, width, size, stride, size // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.stages, inner = len(STAGES[name]), width
        padded = self.stages == 3
        for stage, blocks in enumerate(STAGES[name]):
            made = []
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                wide = width * 2**stage
                made.append(Block(inner, wide, stride, bottleneck, groups, padded))
                inner = wide * (4 if bottleneck else 1)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*made))
        self.fc = nn.Linear(inner, num_classes)

    def features(self, x):
        x = functional.relu(self.bn1(self.conv1(x)))
        if self.stem == "imagenet":
            x = functional.max_pool2d(x, 3, 2, 1)
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return x.mean((2, 3))

    def forward(self, x):
        return self.fc(self.features(x))


def network(name: str, width: int, num_classes: int, **fields: Any) -> Network:
    """Make a network with torch's initial weights and random batch-norm values."""
    torch.manual_seed(0)
    made = Network(name, width, num_classes, **fields)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.uniform_(-0.2, 0.2)
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return made


def state(module: nn.Module) -> dict[str, Any]:
    """Return the state dict as NumPy arrays."""
    return {name: t.detach().numpy().copy() for name, t in module.state_dict().items()}
