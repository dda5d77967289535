"""Blocks that networks are made of, as torchvision and timm write them."""

import torch
import torch.nn.functional as F
from torch import nn

WIDTH = 12
SIDE = (7, 9)


class Does(nn.Module):
    """A function as a module, with parameters by name."""

    def __init__(self, function, **parameters):
        super().__init__()
        self.function = function
        for name, value in parameters.items():
            own = isinstance(value, torch.Tensor)
            setattr(self, name, nn.Parameter(value) if own else value)

    def forward(self, x):
        return self.function(self, x)


def does(function, **parameters):
    return Does(lambda self, x: function(x), **parameters)


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


class Blur(nn.Module):
    """A fixed filter for every channel."""

    def __init__(self, stride, dilation):
        super().__init__()
        self.stride, self.dilation = stride, dilation
        self.register_buffer("filter", random(1, 1, 3, 3))

    def forward(self, x):
        weight = self.filter.expand(x.shape[1], -1, -1, -1)
        x = F.pad(x, (1, 1, 1, 1), "reflect")
        return F.conv2d(x, weight, stride=self.stride, dilation=self.dilation, groups=x.shape[1])


class ConvMlp(nn.Module):
    """As timm's, which is known by its name."""

    def __init__(self, least):
        super().__init__()
        self.input_kernel_size = least
        self.fc1, self.fc2 = nn.Conv2d(WIDTH, 6, 3), nn.Conv2d(6, 4, 1)
        self.act1, self.act2, self.drop = nn.ReLU(True), nn.SiLU(True), nn.Dropout(0.2)

    def forward(self, x):
        size = [max(self.input_kernel_size, s) for s in x.shape[2:]]
        x = self.act1(self.fc1(F.adaptive_avg_pool2d(x, size)))
        return self.act2(self.fc2(self.drop(x)))


class Conv2dSame(nn.Conv2d):
    """As timm's: TensorFlow's padding."""

    def forward(self, x):
        x = padded_same(x, self.kernel_size, self.stride, self.dilation)
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class MaxPool2dSame(nn.MaxPool2d):
    """As timm's."""

    def forward(self, x):
        kernel, stride = (self.kernel_size,) * 2, (self.stride,) * 2
        return F.max_pool2d(padded_same(x, kernel, stride, (1, 1), -torch.inf), kernel, stride)


ConvMlp.__module__ = "timm.models.vgg"  # another of that name is in timm.layers
Conv2dSame.__module__ = MaxPool2dSame.__module__ = "timm.layers"


def padded_same(x, kernel, stride, dilation, value=0.0):
    """As many places as ceil(size / stride) needs, one by one."""
    for axis in (2, 3):
        k, s, d = (each[axis - 2] for each in (kernel, stride, dilation))
        size, before = x.shape[axis], True
        while (size - d * (k - 1) - 1) // s + 1 < -(-x.shape[axis] // s):
            size += 1
        for _ in range(size - x.shape[axis]):
            before = not before
            fill = x.narrow(axis, 0, 1).clone().fill_(value)
            x = torch.cat([fill, x] if before else [x, fill], axis)
    return x


class Squeeze(nn.Module):
    """Squeeze-and-excitation, by convolutions or by Linear layers, with any gate."""

    def __init__(self, linear, gate, keepdim):
        super().__init__()
        make = nn.Linear if linear else lambda i, o: nn.Conv2d(i, o, 1)
        self.linear, self.keepdim = linear, keepdim
        self.down, self.up, self.gate = make(WIDTH, 4), make(4, WIDTH), gate

    def forward(self, x):
        if self.linear:
            s = x.mean((2, 3))
            s = self.gate(self.up(torch.relu(self.down(s))))
            return x * s.view(x.size(0), -1, 1, 1) if self.keepdim else x * s[:, :, None, None]
        s = x.mean((2, 3), keepdim=True) if self.keepdim else F.adaptive_avg_pool2d(x, 1)
        return self.gate(self.up(torch.relu(self.down(s)))) * x


class Next(nn.Module):
    """A block of ConvNeXt: Linear layers and a norm on [N, H, W, C], scaled by a parameter."""

    def __init__(self, scaled):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)
        self.gamma = nn.Parameter(random(WIDTH) if scaled else torch.ones(()))

    def forward(self, x):
        y = self.norm(x.permute(0, 2, 3, 1))
        y = self.gamma * self.down(F.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)
