import pytest
import torch
from torch import nn

from fedcurv import fisher_diagonal
from fedcurv.simulations.parts.models import MODELS, cnn, lstm, mlp, resnet18, transformer

OF_TOKENS = {"lstm": lstm, "transformer": transformer}


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", MODELS.keys() - OF_TOKENS.keys())
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
    with pytest.raises(ValueError, match=r"1 channels of 8x8 are too small for model\.padding=0"):
        cnn((1, 8, 8), 10, padding=0)


def test_channels_that_stand_last_unsaid_are_hinted_at():
    for model in (cnn, resnet18):
        for shape in ((32, 32, 3), (19, 23, 1), (5, 3, 4)):
            with pytest.raises(ValueError, match=r"whose channels seem .* data\.channels_last"):
                model(shape, 10)
        model((3, 32, 32), 10)
        model((3, 28, 4), 10)


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
