import pytest
import torch
from torch import nn

from fedcurv.simulations.parts.models import MODELS, cnn, mlp, resnet18


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_models_fit_every_data_set(name, shape):
    assert MODELS[name](shape, 10)(torch.zeros(2, *shape)).shape == (2, 10)


def test_sizes_are_those_of_the_literature():
    assert size(mlp((1, 28, 28), 10)) == 199_210
    assert size(cnn((1, 28, 28), 10)) == 1_663_370
    assert size(cnn((1, 28, 28), 10, padding=0)) == 582_026


def test_resnet_has_group_norm_and_no_batch_statistics():
    model = resnet18((3, 32, 32), 10)
    assert not list(model.buffers())
    assert sum(isinstance(module, nn.GroupNorm) for module in model.modules()) == 20


def test_a_picture_that_is_too_small_is_named():
    with pytest.raises(ValueError, match="pictures of 8x8 are too small for padding=0; use 2"):
        cnn((1, 8, 8), 10, padding=0)
