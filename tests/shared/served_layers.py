"""Every kind of layer, over its settings: what must do as the module does between convolutions."""

import operator

import torch
import torch.nn.functional as F
import torchvision
from hypothesis import strategies as st
from served_modules import (
    SIDE,
    WIDTH,
    Blur,
    Conv2dSame,
    ConvMlp,
    Does,
    MaxPool2dSame,
    Next,
    Squeeze,
    does,
    random,
)
from torch import nn

ONE = st.just(1)
pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
positive = st.floats(0.1, 3)
odd = st.sampled_from([1, 3])


def shuffle(x, groups):
    n, c, h, w = x.shape
    x = x.view(n, groups, c // groups, h, w)
    return torch.transpose(x, 1, 2).contiguous().view(n, -1, h, w)


def grouped_sums(x, parts):
    """Split attention: parts of the channels weighted by a softmax over parts, then summed."""
    n, c, h, w = x.shape
    y = x.reshape(n, parts, c // parts, h, w)
    weights = torch.softmax(y.mean((3, 4), keepdim=True), dim=1)
    return (y * weights).sum(dim=1)


def size_of(x, body):
    return F.interpolate(F.max_pool2d(x, 2), size=x.shape[2:], mode=body)


CONV = nn.Conv2d
SERVED = {
    "relu": st.sampled_from([nn.ReLU(), nn.ReLU(inplace=True), does(lambda x: x.relu_())]),
    "relu6": st.builds(nn.ReLU6),
    "silu": st.sampled_from([nn.SiLU(), nn.SiLU(True), does(F.silu)]),
    "hardswish": st.sampled_from([nn.Hardswish(), does(F.hardswish)]),
    "hardsigmoid": st.sampled_from([nn.Hardsigmoid(), does(F.hardsigmoid)]),
    "sigmoid": st.sampled_from([nn.Sigmoid(), does(torch.sigmoid), does(lambda x: x.sigmoid())]),
    "logsigmoid": st.builds(nn.LogSigmoid),
    "tanh": st.sampled_from([nn.Tanh(), does(torch.tanh), does(lambda x: x.tanh())]),
    "gelu": st.builds(nn.GELU, st.sampled_from(["none", "tanh"]))
    | st.sampled_from([does(F.gelu), does(lambda x: F.gelu(x, approximate="tanh"))]),
    "elu": st.builds(nn.ELU, positive),
    "celu": st.builds(nn.CELU, positive),
    "selu": st.builds(nn.SELU),
    "leaky_relu": st.builds(nn.LeakyReLU, positive) | st.builds(lambda: nn.PReLU()),
    "prelu": st.builds(lambda: nn.PReLU(WIDTH)),
    "softplus": st.builds(nn.Softplus, positive, st.floats(1, 20)),
    "softsign": st.builds(nn.Softsign),
    "mish": st.sampled_from([nn.Mish(), does(F.mish)]),
    "hardtanh": st.builds(lambda low, more: nn.Hardtanh(low, low + more), positive, positive),
    "threshold": st.builds(nn.Threshold, positive, positive),
    "clamp": st.builds(lambda low: does(lambda x: torch.clamp(x, -low, low)), positive)
    | st.builds(lambda low: does(lambda x: x.clamp(min=low)), positive),
    "abs": st.just(does(torch.abs)),
    "exp": st.just(does(torch.exp)),
    "log": st.just(does(lambda x: torch.log(x.square() + 0.1))),
    "sqrt": st.just(does(lambda x: torch.sqrt(x.abs() + 0.1))),
    "rsqrt": st.just(does(lambda x: (x.square() + 0.1).rsqrt())),
    "reciprocal": st.just(does(lambda x: torch.reciprocal(x.square() + 1))),
    "square": st.just(does(torch.square)),
    "batchnorm": st.builds(nn.BatchNorm2d, st.just(WIDTH), positive)
    | st.builds(lambda: torchvision.ops.FrozenBatchNorm2d(WIDTH)),
    "layernorm": st.builds(Next, st.booleans())
    | st.builds(
        lambda affine, eps: torchvision.models.convnext.LayerNorm2d(
            WIDTH, eps=eps, elementwise_affine=affine
        ),
        st.booleans(),
        positive,
    ),
    "layernorm_behind": st.builds(lambda: nn.LayerNorm((WIDTH, *SIDE)))
    | st.builds(lambda: nn.LayerNorm(SIDE[1])),
    "rmsnorm": st.builds(
        lambda eps: Does(
            lambda self, x: F.rms_norm(x.permute(0, 2, 3, 1), (WIDTH,), self.w, eps).permute(
                0, 3, 1, 2
            ),
            w=random(WIDTH),
        ),
        positive,
    ),
    "groupnorm": st.builds(nn.GroupNorm, st.sampled_from([1, 3, 4, 12]), st.just(WIDTH), positive),
    "instancenorm": st.builds(nn.InstanceNorm2d, st.just(WIDTH), positive, affine=st.booleans()),
    "localresponse": st.builds(nn.LocalResponseNorm, st.integers(1, 5), positive, positive),
    "maxpool": st.builds(
        nn.MaxPool2d,
        st.integers(2, 3),
        pair,
        ONE,
        st.integers(1, 2),
        ceil_mode=st.booleans(),
    ),
    "avgpool": st.builds(nn.AvgPool2d, st.integers(2, 3), pair, ONE, st.booleans(), st.booleans())
    | st.builds(lambda k: does(lambda x: F.avg_pool2d(x, k, stride=2)), st.integers(1, 3)),
    "adaptive_avgpool": st.builds(nn.AdaptiveAvgPool2d, st.integers(1, 11) | pair)
    | st.builds(lambda n: nn.AdaptiveAvgPool2d((n, None)), st.integers(1, 4)),
    "adaptive_maxpool": st.builds(nn.AdaptiveMaxPool2d, st.integers(1, 5) | pair),
    "at_least": st.builds(ConvMlp, st.integers(3, 9)),
    "pad": st.builds(nn.ZeroPad2d, st.integers(0, 2) | st.tuples(*[st.integers(0, 3)] * 4))
    | st.builds(nn.ReflectionPad2d, st.integers(0, 2))
    | st.builds(lambda n: does(lambda x: F.pad(x, (n, 1, 0, n), value=0.3)), st.integers(0, 2))
    | st.builds(
        lambda k, mode: CONV(WIDTH, 4, k, padding="same", padding_mode=mode),
        st.integers(2, 4),
        st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    ),
    "pad_channels": st.builds(
        lambda n: does(lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, n, n))), st.integers(1, 3)
    ),
    "pad_same": st.builds(
        Conv2dSame,
        st.just(WIDTH),
        st.just(6),
        st.integers(1, 4) | pair,
        st.integers(1, 3),
        dilation=st.integers(1, 2),
        groups=st.sampled_from([1, 3]),
    )
    | st.builds(MaxPool2dSame, st.integers(1, 4), st.integers(1, 3)),
    "interpolate": st.builds(
        nn.Upsample,
        scale_factor=st.sampled_from([0.5, 2, 1.7]),
        mode=st.sampled_from(["nearest", "bilinear", "bicubic"]),
    )
    | st.builds(
        lambda mode: does(lambda x: size_of(x, mode)), st.sampled_from(["nearest", "bilinear"])
    ),
    "filter": st.builds(Blur, st.integers(1, 2), st.integers(1, 2)),
    "across": st.builds(
        lambda k: Does(
            lambda self, x: (
                x
                * torch.sigmoid(
                    self.conv(x.mean((2, 3)).view(x.shape[0], 1, -1)).view(x.shape[0], -1, 1, 1)
                ).expand_as(x)
            ),
            conv=nn.Conv1d(1, 1, k, padding=k // 2, bias=False),
        ),
        odd,
    ),
    "add": st.builds(lambda a: does(lambda x: torch.add(x, F.relu(x), alpha=a)), positive),
    "subtract": st.just(does(lambda x: torch.tanh(x) - x))
    | st.builds(lambda a: does(lambda x: torch.sub(x, F.relu(x), alpha=a)), positive),
    "multiply": st.builds(
        Squeeze, st.booleans(), st.sampled_from([nn.Sigmoid(), nn.Hardsigmoid()]), st.booleans()
    )
    | st.sampled_from(
        [
            does(lambda x: x * x),
            does(lambda x: x.relu().mul(x.sigmoid())),
            does(lambda x: x * torch.relu(x[:, :1])),  # one channel for all
            does(lambda x: x * x.relu().amax(1, keepdim=True)),
        ]
    ),
    "divide": st.just(does(lambda x: x / (1 + x.exp()))),
    "raise": st.just(does(lambda x: (1 + x.square()) ** torch.tanh(x))),
    "maximum": st.just(does(lambda x: torch.maximum(x, 0.3 * x))),
    "minimum": st.just(does(lambda x: torch.minimum(x, 0.3 * x))),
    "with_number": st.builds(
        lambda how, n: does(lambda x: how(how(x, n), 2.0)),
        st.sampled_from([operator.add, operator.sub, operator.mul, operator.truediv]),
        positive,
    )
    | st.sampled_from(
        [
            does(lambda x: 1 - x),
            does(lambda x: -x),
            does(lambda x: x**2),
            does(lambda x: 1 / (2 + x**2)),
            does(lambda x: x.sum((2, 3), keepdim=True).expand_as(x) / (x.shape[2] * x.shape[3])),
            does(lambda x: x.mul_(0.3).add_(1.0)),
        ]
    ),
    "with_channels": st.builds(
        lambda how: Does(lambda self, x: how(x, self.gamma), gamma=random(WIDTH, 1, 1)),
        st.sampled_from([operator.add, operator.sub, operator.mul]),
    )
    | st.builds(lambda: Does(lambda self, x: self.g.exp() - x, g=random(1, WIDTH, 1, 1))),
    "with_tensor": st.builds(lambda: Does(lambda self, x: x + self.place, place=random(*SIDE))),
    "mean": st.booleans().map(
        lambda keep: does(
            lambda x: x.mean([2, 3], keepdim=True) if keep else x.mean((-1, -2))[:, :, None, None]
        )
    ),
    "reduced": st.builds(
        lambda how, dim: does(lambda x: how(x, dim, keepdim=True)),
        st.sampled_from([torch.sum, torch.amax, torch.amin, torch.var, torch.mean, torch.std]),
        st.sampled_from([2, 3, (2, 3)]),
    )
    | st.just(does(lambda x: x.norm(p=2, dim=(2, 3), keepdim=True))),
    "reduced_channels": st.builds(
        lambda how, dim: does(lambda x: how(x, dim, keepdim=True)),
        st.sampled_from([torch.sum, torch.amax, torch.mean]),
        st.sampled_from([1, (1, 2, 3), (1, 3)]),
    )
    | st.builds(lambda n: does(lambda x: grouped_sums(x, n)), st.sampled_from([2, 3])),
    "softmax": st.sampled_from([nn.Softmax(3), does(lambda x: F.softmax(x, dim=2))]),
    "softmax_channels": st.sampled_from([nn.Softmax(1), does(lambda x: x.softmax(1) * x)]),
    "flatten": st.sampled_from(
        [
            does(lambda x: torch.flatten(x.mean((2, 3), keepdim=True), 1)[:, :, None, None]),
            does(lambda x: F.adaptive_avg_pool2d(x, 2).flatten(1)[..., None, None]),
            does(lambda x: F.adaptive_avg_pool2d(x, 2).reshape(x.size(0), -1)[..., None, None]),
        ]
    ),
    "cat": st.sampled_from(
        [
            does(lambda x: torch.cat([x.relu(), x, x.exp()], 1)),
            does(lambda x: torch.cat(x.chunk(3, dim=1)[::2], dim=1)),
        ]
    ),
    "joined": st.builds(lambda d: does(lambda x: torch.cat([x, x.relu()], d)), st.integers(2, 3)),
    "arranged": st.just(does(lambda x: x.permute(0, 2, 3, 1).softmax(2).permute(0, 3, 1, 2)))
    | st.builds(
        lambda g: does(lambda x: x.unflatten(1, (g, -1)).amax(2)),
        st.sampled_from([2, 4]),
    ),
    "shuffled": st.builds(nn.ChannelShuffle, st.sampled_from([2, 3, 4]))
    | st.builds(lambda g: does(lambda x: shuffle(x, g)), st.sampled_from([1, 2, 3, 4])),
    "channels": st.builds(
        lambda a, n, k: does(lambda x: x[:, a : a + n : k]),
        st.integers(0, 6),
        st.integers(1, 9),
        st.integers(1, 2),
    )
    | st.sampled_from(
        [
            does(lambda x: x.split([5, 7], 1)[1]),
            does(lambda x: x.chunk(2, 1)[1].relu() + x.split(6, dim=1)[0]),
            does(lambda x: torch.stack(x.unflatten(1, (3, 4)).unbind(1), 1)[:, 1]),
        ]
    ),
    "reshaped": st.just(does(lambda x: x.reshape(x.shape[0], 3 * x.shape[2], 4, x.shape[3]))),
    "reshaped_places": st.just(does(lambda x: x.flatten(2).view_as(x).mean(-1)[..., None])),
    "indexed": st.just(does(lambda x: torch.cat([x[:, 3].unsqueeze(1) * 2 + 1, x], 1))),
    "indexed_places": st.builds(lambda a: does(lambda x: x[:, :, a:, ::2]), st.integers(0, 3))
    | st.just(does(lambda x: x[:, :, :, x.shape[3] // 2].unsqueeze(3) + x)),
    "permuted": st.just(does(lambda x: x.permute(0, 2, 1, 3).relu().transpose(1, 2))),
    "permuted_places": st.just(does(lambda x: x.transpose(2, 3))),
    "expanded": st.just(does(lambda x: x.mean(1, keepdim=True).expand(-1, 3, -1, -1))),
    "expanded_places": st.just(does(lambda x: x.mean((2, 3), True).expand(-1, -1, 4, 3))),
    "repeated": st.builds(lambda n: does(lambda x: x.repeat(1, n, 1, 2)), st.integers(1, 2)),
    "pixel_shuffle": st.just(nn.PixelShuffle(2)),
    "pixel_unshuffle": st.just(does(lambda x: F.pixel_unshuffle(x[:, :, :6, :6], 3))),
    "flipped": st.just(does(lambda x: torch.flip(x, [2, 3]))),
    "rolled": st.builds(lambda n: does(lambda x: torch.roll(x, n, 2)), st.integers(-2, 2)),
}
