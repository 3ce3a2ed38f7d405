"""Models of pictures, and of inputs of any shape; none has batch statistics."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from fedcurv.simulations.parts.models.registry import Shape, register_model

# of pictures: grey, colour, and colour with alpha
_CHANNELS = (1, 3, 4)


@register_model("mlp")
def mlp(shape: Shape, num_classes: int, *, hidden: Sequence[int] = (200, 200)) -> nn.Module:
    """Return a multilayer perceptron; with the default layers McMahan et al.'s "2NN"."""
    sizes = [math.prod(shape), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], num_classes))


@register_model("cnn")
def cnn(shape: Shape, num_classes: int, *, padding: int = 2) -> nn.Module:
    """Return two 5x5 convolutions with pooling and a layer of 512.

    On 28x28 pictures it has 1.66 million parameters with ``padding=2`` (McMahan et al.'s CNN) and
    582 thousand with ``padding=0``.

    Raises:
        ValueError: if inputs are no pictures, or too small for two convolutions without padding.
    """
    channels, height, width = shape_of_picture("cnn", shape)
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


@register_model("resnet18")
def resnet18(shape: Shape, num_classes: int, *, groups: int = 32) -> nn.Module:
    """Return torchvision's ResNet-18 with GroupNorm and a stem for small pictures.

    Raises:
        ImportError: if torchvision is not installed.
        ValueError: if inputs are no pictures.
    """
    channels, _, _ = shape_of_picture("resnet18", shape)
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


def shape_of_picture(name: str, shape: Shape) -> tuple[int, int, int]:
    """Return a picture's channels, height and width.

    Raises:
        ValueError: for what is no picture, or seems to have its channels last.
    """
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
