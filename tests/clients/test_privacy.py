"""FedCurv at clients that train by DP-SGD: refused, or a release that the accountant counts."""

import math

import pytest
import torch
from flwr.app import ArrayRecord, RecordDict
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fedcurv.clients import ClientCurvature
from fedcurv.private_fisher import without_opacus
from fedcurv.strategies.wire.records import PRECISION, Instruction
from tests.federation import context_of, message_with, new_model, samples

opacus = pytest.importorskip("opacus", reason="needs the extra dev-apps")
DELTA = 1e-5


def client(model, partition=0):
    message = message_with(Instruction(0.1, 1))
    message.content["arrays"] = ArrayRecord(model.state_dict())
    return ClientCurvature(message, context_of(partition), model)


def trained(model, noise_multiplier=1.0):
    """Return the accountant of one epoch of DP-SGD, and batches."""
    inputs, targets = samples(0)
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=4)
    engine = opacus.PrivacyEngine(accountant="rdp")
    private, optimizer, private_loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=loader,
        noise_multiplier=noise_multiplier,
        max_grad_norm=1.0,
    )
    for x, y in private_loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(private(x), y).backward()
        optimizer.step()
    return engine.accountant, loader


def test_the_fisher_information_of_a_private_model_is_refused_with_the_remedy():
    model = new_model()
    curvature = client(model)
    _, loader = trained(model)
    content = RecordDict({"arrays": ArrayRecord(model.state_dict())})
    with pytest.raises(ValueError, match=r"differential privacy, which would not hold .*clip"):
        curvature.report(content, model, loader)
    assert PRECISION not in content


def test_the_accountant_counts_the_release_with_the_training():
    model = new_model()
    curvature = client(model)
    accountant, loader = trained(model)
    (before,) = accountant.history
    content = RecordDict({"arrays": ArrayRecord(model.state_dict())})
    curvature.report(content, model, loader, private_fisher=(0.5, 3.0), accountant=accountant)
    assert content[PRECISION]
    assert accountant.history == [before, (3.0, 1.0, 1)]
    # one Gaussian mechanism over all samples costs α / 2σ² at every order
    only_this = opacus.accountants.RDPAccountant()
    only_this.history = accountant.history[1:]
    orders = only_this.DEFAULT_ALPHAS
    expected = min(
        a / (2 * 3.0**2) + math.log((a - 1) / a) - (math.log(DELTA) + math.log(a)) / (a - 1)
        for a in orders
    )
    assert only_this.get_epsilon(DELTA) == pytest.approx(expected, rel=1e-6)
    assert accountant.get_epsilon(DELTA) > expected


def test_a_release_that_nobody_counts_is_told(caplog):
    model = new_model()
    curvature = client(model)
    _, loader = trained(model)
    content = RecordDict({"arrays": ArrayRecord(model.state_dict())})
    curvature.report(content, model, loader, private_fisher=(0.5, 3.0))
    assert "a release that no accountant counts" in caplog.text
    assert content[PRECISION]


@pytest.mark.parametrize("private_fisher", [0.5, (1.0,), (1.0, 2.0, 3.0), "ab c"])
def test_a_pair_is_wanted(private_fisher):
    model = new_model()
    curvature = client(model)
    with pytest.raises(ValueError, match=r"must be a pair \(clip, noise_multiplier\), got"):
        curvature.report(RecordDict(), model, [samples(0)], private_fisher=private_fisher)


def test_opacus_hooks_are_as_they_were_afterwards():
    model = new_model()
    trained(model)
    hooks = [dict(m._forward_hooks) | dict(m._backward_hooks) for m in model.modules()]
    assert any(hooks)
    with without_opacus(model):
        assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())
    assert hooks == [dict(m._forward_hooks) | dict(m._backward_hooks) for m in model.modules()]


def test_hooks_of_ones_own_stay():
    model = new_model()
    model.register_forward_hook(lambda *_: None)
    with without_opacus(model):
        assert len(model._forward_hooks) == 1
