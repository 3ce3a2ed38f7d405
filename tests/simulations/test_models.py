import pytest
import torch
from torch import nn

from fedcurv import fisher_diagonal
from fedcurv.simulations.parts.models import (
    MODELS,
    cnn,
    lenet,
    lstm,
    mlp,
    resnet18,
    small_resnet,
    transformer,
)

OF_TOKENS = {"lstm": lstm, "transformer": transformer}


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", sorted(MODELS.keys() - OF_TOKENS.keys()))
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_models_fit_every_data_set(name, shape):
    if (name, shape) == ("lenet", (1, 8, 8)):
        pytest.skip("its pictures have at least 16 a side")
    assert MODELS[name](shape, 10)(torch.zeros(2, *shape)).shape == (2, 10)


def test_sizes_are_those_of_the_literature():
    assert size(mlp((1, 28, 28), 10)) == 199_210
    assert size(cnn((1, 28, 28), 10)) == 1_663_370
    assert size(cnn((1, 28, 28), 10, padding=0)) == 582_026
    assert size(lenet((3, 32, 32), 10)) == 62_006
    assert size(small_resnet((3, 32, 32), 10)) == 78_042
    # its 269,722, and the two ways past the blocks by 1x1 instead of zeros
    past = sum(inputs * 2 * inputs + 4 * inputs for inputs in (16, 32))
    assert size(small_resnet((3, 32, 32), 10, depth=20)) == 269_722 + past


def test_resnet_has_group_norm_and_no_batch_statistics():
    model = resnet18((3, 32, 32), 10)
    assert not list(model.buffers())
    assert sum(isinstance(module, nn.GroupNorm) for module in model.modules()) == 20


def test_a_small_resnet_has_group_norm_and_its_fisher_information_is_right():
    """Against a loop over single samples."""
    torch.manual_seed(0)
    model = small_resnet((3, 9, 8), 4, width=4, groups=2).double()
    assert not list(model.buffers())
    x, y = torch.randn(4, 3, 9, 8).double(), torch.arange(4)
    expected = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for one, target in zip(x, y, strict=True):
        model.zero_grad()
        nn.functional.cross_entropy(model(one[None]), target[None]).backward()
        for n, p in model.named_parameters():
            expected[n] += p.grad.square() / 4
    torch.testing.assert_close(fisher_diagonal(model, [(x, y)]), expected, rtol=1e-9, atol=1e-15)


def test_a_picture_that_is_too_small_is_named():
    with pytest.raises(ValueError, match="model=lenet takes pictures of at least 16 a side, got 8"):
        lenet((1, 8, 8), 10)
    with pytest.raises(ValueError, match=r"1 channels of 8x8 are too small for model\.padding=0"):
        cnn((1, 8, 8), 10, padding=0)


def test_channels_that_stand_last_unsaid_are_hinted_at():
    for model in (cnn, resnet18):
        for shape in ((32, 32, 3), (19, 23, 1), (5, 3, 4)):
            with pytest.raises(ValueError, match=r"whose channels seem .* data\.channels_last"):
                model(shape, 10)
        model((3, 32, 32), 10)
        model((3, 28, 4), 10)


def test_sizes_of_a_small_resnet_that_cannot_be_are_named():
    with pytest.raises(ValueError, match=r"model.depth must be 6n \+ 2, such as .* got 10"):
        small_resnet((3, 32, 32), 10, depth=10)
    with pytest.raises(ValueError, match=r"model.groups must divide model.width=16 .* got 3"):
        small_resnet((3, 32, 32), 10, groups=3)


@pytest.mark.parametrize("name", OF_TOKENS)
def test_models_of_tokens_predict_the_next_and_their_fisher_information_is_right(name):
    """Against a loop over single samples."""
    torch.manual_seed(0)
    model = OF_TOKENS[name]((6,), 9, width=8).eval()
    tokens, targets = torch.randint(0, 9, (5, 6)), torch.randint(0, 9, (5,))
    assert model(tokens).shape == (5, 9)
    expected = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for one, target in zip(tokens, targets, strict=True):
        model.zero_grad()
        nn.functional.cross_entropy(model(one[None]), target[None]).backward()
        for n, p in model.named_parameters():
            expected[n] += p.grad.square() / 5
    got = fisher_diagonal(model, [(tokens, targets)], kind="empirical")
    for n, value in expected.items():
        torch.testing.assert_close(got[n], value, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("cnn", (5,), r"model=cnn takes pictures of shape .*, got inputs of shape \(5,\)"),
        ("resnet18", (5,), "model=resnet18 takes pictures"),
        ("lstm", (1, 8, 8), r"model=lstm takes rows of tokens.*got \(1, 8, 8\)"),
        ("transformer", (1, 8, 8), "model=transformer takes rows of tokens"),
    ],
)
def test_inputs_that_a_model_does_not_take_are_named(name, shape, message):
    with pytest.raises(ValueError, match=message):
        MODELS[name](shape, 10)
