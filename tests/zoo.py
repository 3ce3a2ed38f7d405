"""Models with one construct each, and the shape of inputs that fit them."""

from collections.abc import Callable

import torch
from torch import nn

CLASSES = 3


class Residual(nn.Module):
    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.relu, self.head = nn.ReLU(inplace=inplace), nn.Linear(6, CLASSES)
        self.inplace = inplace

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.second(self.relu(self.first(x)))
        if self.inplace:
            hidden += x
        else:
            hidden = hidden + x
        return self.head(self.relu(hidden))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, CLASSES)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(torch.tanh(self.first(x))))


class UsedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(torch.tanh(self.layer(x))))


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.idle, self.head = nn.Linear(6, 6), nn.Linear(6, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, CLASSES)
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x * self.scale, self.layer.weight, self.layer.bias)


class Attention(nn.Module):
    """Self-attention, or attention to other keys and values of sizes of their own."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True, **options)
        self.keys = nn.Linear(6, self.attention.kdim) if "kdim" in options else nn.Identity()
        self.values = nn.Linear(6, self.attention.vdim) if "vdim" in options else nn.Identity()
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attended, _ = self.attention(x, self.keys(x), self.values(x), need_weights=False)
        return self.head(attended.mean(1))


class Recurrent(nn.Module):
    """Reads both the outputs and the last hidden state."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.lstm, self.head = nn.LSTM(6, 5, batch_first=batch_first), nn.Linear(5, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs, (hidden, _) = self.lstm(x if self.batch_first else x.transpose(0, 1))
        return self.head(outputs.mean(int(self.batch_first)) + hidden[-1])


class VisionTransformer(nn.Module):
    """Raw parameters: a class token and positions, beside a layer scale in a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2, 6, 2, stride=2)
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.positions = nn.Parameter(torch.randn(1, 10, 6))
        self.layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, norm_first=True)
        self.scale, self.head = LayerScale(6), nn.Linear(6, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = self.patches(x).flatten(2).mT
        tokens = torch.cat([self.token.expand(len(x), -1, -1), patches], 1) + self.positions
        return self.head(self.scale(self.layer(tokens))[:, 0])


class LayerScale(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.randn(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


class TimeFirstTransformer(nn.Module):
    """PyTorch's own default: positions before samples."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(6, 2, 8)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(6, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x.transpose(0, 1)).mean(0))


class Language(nn.Module):
    """An embedding whose table is the last layer's weight too."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(7, 5), nn.Linear(5, 5)
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.layer(self.table(x))).mean(1))


class ReadsAValue(Functional):
    """Looks at its numbers from outside, which no vectorising transform can follow."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x.sum().item()
        return super().forward(x)


class MeanOverSequence(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(1)


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, CLASSES))
    model[0].weight.requires_grad_(False)
    return model


def batch_norm() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    return nn.Sequential(model, nn.Linear(4 * 16, CLASSES))


def conv(layer: nn.Module, features: int, *after: nn.Module) -> nn.Module:
    return nn.Sequential(layer, *after, nn.Tanh(), nn.Flatten(), nn.Linear(features, CLASSES))


def embedding(padding_idx: int | None) -> nn.Module:
    return nn.Sequential(
        nn.Embedding(7, 5, padding_idx=padding_idx), MeanOverSequence(), nn.Linear(5, CLASSES)
    )


def resnet18(norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Module:
    import torchvision

    return torchvision.models.resnet18(num_classes=CLASSES, norm_layer=norm)


def inputs_for(name: str, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    shape = ZOO[name][1]
    if shape == TOKENS:
        return torch.randint(0, 7, shape)
    return torch.randn(shape, dtype=dtype)


FLAT, SEQUENCE, SIGNAL, TOKENS = (5, 6), (5, 4, 6), (5, 2, 9), (5, 4)
PICTURE = (2, 3, 32, 32)
IMAGE, VOLUME = (5, 2, 6, 6), (4, 2, 4, 4, 4)

ZOO: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, CLASSES)), FLAT),
    "linear on sequences": (
        lambda: nn.Sequential(
            nn.Linear(6, 4), nn.Tanh(), MeanOverSequence(), nn.Linear(4, CLASSES)
        ),
        SEQUENCE,
    ),
    "conv1d": (lambda: conv(nn.Conv1d(2, 4, 3, stride=2), 16), SIGNAL),
    "conv2d": (lambda: conv(nn.Conv2d(2, 4, 3, padding=1), 144), IMAGE),
    "conv2d, groups, stride and dilation": (
        lambda: conv(nn.Conv2d(2, 4, 2, groups=2, stride=2, dilation=2), 16),
        IMAGE,
    ),
    "conv2d, same and reflect": (
        lambda: conv(nn.Conv2d(2, 4, 3, padding="same", padding_mode="reflect"), 144),
        IMAGE,
    ),
    "conv3d": (lambda: conv(nn.Conv3d(2, 3, 3), 24), VOLUME),
    "transposed convolution": (lambda: conv(nn.ConvTranspose2d(2, 3, 2), 147), IMAGE),
    "layer norm": (lambda: conv(nn.LayerNorm(6), 6), FLAT),
    "rms norm": (lambda: conv(nn.RMSNorm(6), 6), FLAT),
    "group norm": (lambda: conv(nn.Conv2d(2, 4, 3), 64, nn.GroupNorm(2, 4)), IMAGE),
    "instance norm": (
        lambda: conv(nn.Conv2d(2, 4, 3), 64, nn.InstanceNorm2d(4, affine=True)),
        IMAGE,
    ),
    "batch norm": (batch_norm, IMAGE),
    "prelu": (lambda: nn.Sequential(nn.Linear(6, 6), nn.PReLU(6), nn.Linear(6, CLASSES)), FLAT),
    "attention": (Attention, SEQUENCE),
    "attention without biases": (lambda: Attention(bias=False), SEQUENCE),
    "attention to other sizes": (lambda: Attention(kdim=3, vdim=5), SEQUENCE),
    "attention with more keys": (lambda: Attention(add_bias_kv=True), SEQUENCE),
    "transformer layer": (
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(6, 2, 8, batch_first=True),
            MeanOverSequence(),
            nn.Linear(6, CLASSES),
        ),
        SEQUENCE,
    ),
    "transformer, time first": (TimeFirstTransformer, SEQUENCE),
    "vision transformer": (VisionTransformer, IMAGE),
    "lstm": (Recurrent, SEQUENCE),
    "lstm, time first": (lambda: Recurrent(batch_first=False), SEQUENCE),
    "embedding": (lambda: embedding(None), TOKENS),
    "embedding with padding": (lambda: embedding(2), TOKENS),
    "language": (Language, TOKENS),
    "weight norm": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, CLASSES))),
        FLAT,
    ),
    "resnet18": (resnet18, PICTURE),
    "resnet18, group norm": (lambda: resnet18(lambda size: nn.GroupNorm(8, size)), PICTURE),
    "residual": (lambda: Residual(inplace=False), FLAT),
    "residual, in place": (lambda: Residual(inplace=True), FLAT),
    "tied weights": (Tied, FLAT),
    "module used twice": (UsedTwice, FLAT),
    "unused parameters": (Unused, FLAT),
    "functional use and a raw parameter": (Functional, FLAT),
    "frozen parameters": (frozen, FLAT),
    "a value that is read": (ReadsAValue, FLAT),
}
