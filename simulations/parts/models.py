"""The experiments' models, by name; none has batch statistics, which non-IID clients spoil."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

Shape = tuple[int, int, int]


def mlp(shape: Shape, num_classes: int, *, hidden: Sequence[int] = (200, 200)) -> nn.Module:
    """Return a multilayer perceptron; with the default layers McMahan et al.'s "2NN"."""
    channels, height, width = shape
    sizes = [channels * height * width, *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], num_classes))


def cnn(shape: Shape, num_classes: int, *, padding: int = 2) -> nn.Module:
    """Return two 5x5 convolutions with pooling and a layer of 512.

    On 28x28 pictures it has 1.66 million parameters with ``padding=2`` (McMahan et al.'s CNN) and
    582 thousand with ``padding=0``.

    Raises:
        ValueError: if the pictures are too small for two convolutions without padding.
    """
    channels, height, width = shape
    sides = [((side + 2 * padding - 4) // 2 + 2 * padding - 4) // 2 for side in (height, width)]
    if min(sides) < 1:
        raise ValueError(
            f"model=cnn: pictures of {height}x{width} are too small for padding={padding}; use 2"
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
    """
    try:
        import torchvision  # here, since it takes longer to load than all else on a device
    except ImportError as error:
        raise ImportError(
            "model=resnet18 is torchvision's: pip install torchvision, or use model=cnn"
        ) from error

    model: nn.Module = torchvision.models.resnet18(
        num_classes=num_classes, norm_layer=lambda channels: nn.GroupNorm(groups, channels)
    )
    model.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


MODELS: dict[str, Callable[..., nn.Module]] = {"mlp": mlp, "cnn": cnn, "resnet18": resnet18}
