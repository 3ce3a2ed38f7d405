"""Convolutional networks that a machine without an accelerator can train."""

from torch import Tensor, nn

from fedcurv.simulations.parts.models.pictures import shape_of_picture
from fedcurv.simulations.parts.models.registry import Shape, register_model

_SMALLEST_OF_LENET = 16


@register_model("lenet")
def lenet(shape: Shape, num_classes: int) -> nn.Module:
    """Return LeNet-5 with rectifiers and largest values in its pools: 62 thousand parameters.

    Two 5x5 convolutions of 6 and 16 channels, then layers of 120 and 84; benchmarks of federated
    learning take it for CIFAR-10.

    Raises:
        ValueError: if inputs are no pictures, or smaller than 16x16.
    """
    channels, height, width = shape_of_picture("lenet", shape)
    if min(height, width) < _SMALLEST_OF_LENET:
        raise ValueError(
            f"model=lenet takes pictures of at least {_SMALLEST_OF_LENET} a side, got "
            f"{height}x{width}; use model=cnn"
        )
    sides = [((side - 4) // 2 - 4) // 2 for side in (height, width)]
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * sides[0] * sides[1], 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, num_classes),
    )


@register_model("small_resnet")
def small_resnet(
    shape: Shape, num_classes: int, *, depth: int = 8, width: int = 16, groups: int = 8
) -> nn.Module:
    """Return a residual network for small pictures, with GroupNorm, in three stages.

    The stages have ``width`` channels, twice and four times as many, and each as many blocks of two
    3x3 convolutions. With a depth of 8 and 16 channels it has 78 thousand parameters, with a depth
    of 20 those of He et al.'s ResNet-20.

    Args:
        shape: of a picture.
        num_classes: how many outputs.
        depth: layers with weights, 6n + 2 for n >= 1 blocks a stage.
        width: channels of the first stage.
        groups: of GroupNorm; divides ``width``.

    Raises:
        ValueError: if inputs are no pictures, or for such a depth or number of groups as cannot be.
    """
    channels, _, _ = shape_of_picture("small_resnet", shape)
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"model.depth must be 6n + 2, such as 8, 14 or 20, got {depth!r}")
    if width % groups:
        raise ValueError(
            f"model.groups must divide model.width={width} for model=small_resnet, got {groups!r}"
        )
    layers: list[nn.Module] = [*_convolution(channels, width, 1, groups), nn.ReLU()]
    inputs = width
    for stage in range(3):
        outputs = width * 2**stage
        for block in range(depth // 6):
            stride = 2 if stage and not block else 1
            layers.append(_Block(inputs, outputs, stride, groups))
            inputs = outputs
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, num_classes)]
    return nn.Sequential(*layers)


class _Block(nn.Module):
    """Two convolutions beside a way past them, which is one of 1x1 where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *_convolution(inputs, outputs, stride, groups),
            nn.ReLU(),
            *_convolution(outputs, outputs, 1, groups),
        )
        self.past: nn.Module = nn.Identity()
        if inputs != outputs:
            self.past = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.GroupNorm(groups, outputs)
            )

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the block's outputs."""
        outputs: Tensor = self.residual(pictures) + self.past(pictures)
        return outputs.relu()


def _convolution(inputs: int, outputs: int, stride: int, groups: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return convolution, nn.GroupNorm(groups, outputs)
