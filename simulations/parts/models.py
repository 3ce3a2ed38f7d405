"""The experiments' models, by name; none has batch statistics, which non-IID clients spoil."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]

# of pictures: grey, colour, and colour with alpha
_CHANNELS = (1, 3, 4)


def mlp(shape: Shape, num_classes: int, *, hidden: Sequence[int] = (200, 200)) -> nn.Module:
    """Return a multilayer perceptron; with the default layers McMahan et al.'s "2NN"."""
    sizes = [math.prod(shape), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], num_classes))


def cnn(shape: Shape, num_classes: int, *, padding: int = 2) -> nn.Module:
    """Return two 5x5 convolutions with pooling and a layer of 512.

    On 28x28 pictures it has 1.66 million parameters with ``padding=2`` (McMahan et al.'s CNN) and
    582 thousand with ``padding=0``.

    Raises:
        ValueError: if inputs are no pictures, or too small for two convolutions without padding.
    """
    channels, height, width = _of_picture("cnn", shape)
    sides = [((side + 2 * padding - 4) // 2 + 2 * padding - 4) // 2 for side in (height, width)]
    if min(sides) < 1:
        raise ValueError(
            f"model=cnn: {channels} channels of {height}x{width} are too small for "
            f"model.padding={padding}; use a larger one"
        )
    return nn.Sequential(
        nn.Conv2d(channels, 32, 5, padding=padding),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=padding),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * sides[0] * sides[1], 512),
        nn.ReLU(),
        nn.Linear(512, num_classes),
    )


def resnet18(shape: Shape, num_classes: int, *, groups: int = 32) -> nn.Module:
    """Return torchvision's ResNet-18 with GroupNorm and a stem for small pictures.

    Raises:
        ImportError: if torchvision is not installed.
        ValueError: if inputs are no pictures.
    """
    channels, _, _ = _of_picture("resnet18", shape)
    try:
        import torchvision  # here, since it takes longer to load than all else on a device
    except ImportError as error:
        raise ImportError(
            "model=resnet18 is torchvision's: pip install torchvision, or use model=cnn"
        ) from error

    model: nn.Module = torchvision.models.resnet18(
        num_classes=num_classes, norm_layer=lambda width: nn.GroupNorm(groups, width)
    )
    model.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def lstm(
    shape: Shape,
    num_classes: int,
    *,
    embedding: int = 8,
    width: int = 256,
    layers: int = 2,
    every_position: bool = False,
) -> nn.Module:
    """Return an LSTM over tokens that predicts the one after them, from as many as there are.

    Args:
        shape: the number of tokens of an input, each from 0 to ``num_classes - 1``.
        num_classes: how many different tokens there are.
        embedding: numbers for a token.
        width: of a layer.
        layers: how many of them.
        every_position: give logits for the token after each one, (N, T, C), not after all of them.
    """
    _require_tokens("lstm", shape)
    return _TokenLSTM(num_classes, embedding, width, layers, every_position)


def transformer(
    shape: Shape,
    num_classes: int,
    *,
    width: int = 64,
    heads: int = 4,
    layers: int = 2,
    every_position: bool = False,
) -> nn.Module:
    """Return a transformer over tokens that predicts the one after them, from as many as there are.

    Layer normalisation comes first in each layer, and there is no dropout.

    Args:
        shape: the number of tokens of an input, each from 0 to ``num_classes - 1``.
        num_classes: how many different tokens there are.
        width: numbers for a token, a multiple of ``heads``.
        heads: of a layer's attention.
        layers: how many of them.
        every_position: give logits for the token after each one, (N, T, C), from what is before it;
            not after all of them.
    """
    _require_tokens("transformer", shape)
    return _TokenTransformer(num_classes, shape[0], width, heads, layers, every_position)


class _TokenLSTM(nn.Module):
    def __init__(
        self, tokens: int, embedding: int, width: int, layers: int, every_position: bool
    ) -> None:
        super().__init__()
        self.every_position = every_position
        self.embedding = nn.Embedding(tokens, embedding)
        self.lstm = nn.LSTM(embedding, width, layers, batch_first=True)
        self.output = nn.Linear(width, tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.lstm(self.embedding(tokens))
        logits: Tensor = self.output(states if self.every_position else states[:, -1])
        return logits


class _TokenTransformer(nn.Module):
    def __init__(
        self, tokens: int, length: int, width: int, heads: int, layers: int, every_position: bool
    ) -> None:
        super().__init__()
        self.every_position = every_position
        self.embedding = nn.Embedding(tokens, width)
        self.position = nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.output = nn.Linear(width, tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        states = self.embedding(tokens) + self.position(places)
        logits: Tensor
        if not self.every_position:
            logits = self.output(self.layers(states)[:, -1])
            return logits
        length = tokens.shape[1]  # no position may see the token that it is to predict
        later = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(1)
        logits = self.output(self.layers(states, mask=later))
        return logits


def _of_picture(name: str, shape: Shape) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise ValueError(
            f"model={name} takes pictures of shape (channels, height, width), got inputs of shape "
            f"{tuple(shape)}; use model=mlp or a function of your own"
        )
    if seems_channels_last(shape):
        raise ValueError(
            f"model={name} takes pictures of shape (channels, height, width), got {tuple(shape)}, "
            "whose channels seem to be the last axis; use data.channels_last=true, or move them"
        )
    channels, height, width = shape
    return channels, height, width


def seems_channels_last(shape: Shape) -> bool:
    """Return whether a picture's last axis is its channels, as grey, colour and alpha have them."""
    return shape[-1] in _CHANNELS and shape[0] not in _CHANNELS


def _require_tokens(name: str, shape: Shape) -> None:
    if len(shape) != 1:
        raise ValueError(
            f"model={name} takes rows of tokens, inputs of shape (length,), got {tuple(shape)}"
        )


MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "cnn": cnn,
    "resnet18": resnet18,
    "lstm": lstm,
    "transformer": transformer,
}
