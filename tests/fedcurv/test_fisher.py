import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fedcurv import fisher_diagonal
from fedcurv.per_sample.rules.linear import Linear
from tests.oracles import fisher as oracle
from tests.zoo import CLASSES, ZOO, inputs_for


def problem(name: str, dtype: torch.dtype = torch.float64):
    make, shape = ZOO[name]
    torch.manual_seed(0)
    return make().to(dtype), inputs_for(name, dtype), torch.randint(0, CLASSES, shape[:1])


def assert_same(got, expected, rtol=1e-9):
    assert got.keys() == expected.keys()
    for name, tensor in got.items():
        torch.testing.assert_close(tensor.double(), expected[name].double(), rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("name", ZOO)
def test_empirical_fisher_is_the_mean_of_single_sample_squares(name):
    model, inputs, labels = problem(name)
    assert_same(fisher_diagonal(model, [(inputs, labels)]), oracle.empirical(model, inputs, labels))


@pytest.mark.parametrize("name", ZOO)
def test_exact_fisher_is_the_expectation_over_the_models_own_classes(name):
    model, inputs, labels = problem(name)
    got = fisher_diagonal(model, [(inputs, labels)], kind="exact")
    assert_same(got, oracle.exact(model, inputs))


@pytest.mark.parametrize("name", ZOO)
def test_float32_is_within_1e_5_of_the_float64_oracle(name):
    model, inputs, labels = problem(name, torch.float32)
    got = fisher_diagonal(model, [(inputs, labels)])
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    expected = oracle.empirical(model.double(), inputs, labels)
    # a bias before a normalisation has a gradient of nothing but rounding
    smallest = 1e-7 * max(tensor.norm() for tensor in expected.values())
    for parameter, tensor in got.items():
        scale = expected[parameter].norm().clamp(min=smallest)
        assert (tensor.double() - expected[parameter]).norm() / scale <= 1e-5
        assert tensor.dtype == torch.float32


@pytest.mark.parametrize("kind", ["exact", "sampled"])
def test_the_models_own_labels_do_not_depend_on_the_kind_of_targets(kind):
    """Targets may be class probabilities, of shape (N, C); these kinds do not look at them."""
    model, inputs, labels = problem("linear")
    soft = torch.rand(len(inputs), CLASSES, dtype=torch.float64).softmax(1)
    one, other = (
        fisher_diagonal(model, [(inputs, t)], kind=kind, generator=torch.Generator().manual_seed(0))
        for t in (labels, soft)
    )
    assert_same(one, other)


def test_sampled_fisher_takes_the_labels_that_the_generator_draws():
    model, inputs, labels = problem("linear")
    generator = torch.Generator().manual_seed(3)
    got = fisher_diagonal(model, [(inputs, labels)], kind="sampled", generator=generator)
    probabilities = torch.softmax(model(inputs), 1)
    drawn = torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(3))[:, 0]
    assert_same(got, oracle.empirical(model, inputs, drawn))


def test_sampled_fisher_is_the_exact_one_on_average():
    model, inputs, labels = problem("linear")
    many = inputs.repeat(4000, 1)
    got = fisher_diagonal(
        model,
        [(many, labels.repeat(4000))],
        kind="sampled",
        generator=torch.Generator().manual_seed(0),
    )
    for name, expected in oracle.exact(model, inputs).items():
        # 20,000 draws: the standard error is below 1 % of the norm
        assert (got[name] - expected).norm() <= 0.04 * expected.norm()


@pytest.mark.parametrize("kind", ["empirical", "exact"])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("chunk_size", [1, 3, 64])
def test_fisher_does_not_depend_on_batch_or_chunk_size(kind, batch_size, chunk_size):
    model, inputs, labels = problem("conv2d")
    batches = zip(inputs.split(batch_size), labels.split(batch_size), strict=True)
    got = fisher_diagonal(model, batches, kind=kind, chunk_size=chunk_size)
    assert_same(got, fisher_diagonal(model, [(inputs, labels)], kind=kind))


def test_fisher_is_not_the_square_of_the_batch_gradient():
    model, inputs, labels = problem("linear")
    loss = nn.functional.cross_entropy(model(inputs), labels)
    gradients = torch.autograd.grad(loss, model.parameters())
    got = fisher_diagonal(model, [(inputs, labels)])
    for tensor, gradient in zip(got.values(), gradients, strict=True):
        assert tensor.sum() > 1.5 * gradient.square().sum()


def test_all_batches_count_not_only_the_last():
    model, inputs, labels = problem("linear")
    got = fisher_diagonal(model, [(inputs[:4], labels[:4]), (inputs[4:], labels[4:])])
    last = fisher_diagonal(model, [(inputs[4:], labels[4:])])
    assert_same(got, oracle.empirical(model, inputs, labels))
    assert not torch.allclose(got["0.weight"], last["0.weight"])


def test_one_sample():
    model, inputs, labels = problem("linear")
    one = inputs[:1], labels[:1]
    assert_same(fisher_diagonal(model, [one]), oracle.empirical(model, *one))


@pytest.mark.parametrize("kind", ["empirical", "exact", "sampled"])
@pytest.mark.parametrize("targets", [torch.zeros(3, dtype=torch.long), torch.rand(3, 1)])
def test_one_class_is_refused_and_the_remedy_named(kind, targets):
    model = nn.Sequential(nn.Linear(4, 1), nn.Sigmoid())
    with pytest.raises(ValueError, match=r"batch 0: .*\(3, 1\).* use likelihood='bernoulli'"):
        fisher_diagonal(model, [(torch.randn(3, 4), targets)], kind=kind)


def test_frozen_parameters_and_buffers_take_no_part():
    model, inputs, labels = problem("frozen parameters")
    assert "0.weight" not in fisher_diagonal(model, [(inputs, labels)])
    model, inputs, labels = problem("batch norm")
    assert set(fisher_diagonal(model, [(inputs, labels)])) == dict(model.named_parameters()).keys()


def test_likelihood_of_a_sample_is_summed_over_its_positions():
    torch.manual_seed(0)
    model = nn.Conv1d(2, CLASSES, 1).double()
    inputs = torch.randn(4, 2, 5, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (4, 5))
    expected = torch.zeros_like(model.weight)
    for x, y in zip(inputs, labels, strict=True):
        log_p = torch.log_softmax(model(x[None]), 1)[0]
        likelihood = sum(log_p[int(label), position] for position, label in enumerate(y))
        expected += torch.autograd.grad(likelihood, model.weight)[0] ** 2 / 4
    got = fisher_diagonal(model, [(inputs, labels)])
    torch.testing.assert_close(got["weight"], expected)


@pytest.mark.parametrize("shape", [(5,), (5, 2), (5, 3, 2)])
@pytest.mark.parametrize("covered", [True, False])
def test_gaussian_likelihood_is_half_the_squared_error(shape, covered):
    torch.manual_seed(0)
    size = int(np.prod(shape[1:]))
    layer = nn.Linear(6, size).double()
    head = nn.Sequential(layer) if covered else nn.utils.parametrizations.weight_norm(layer)
    model = nn.Sequential(head, nn.Unflatten(1, shape[1:]) if len(shape) > 1 else nn.Flatten(0))
    inputs, targets = torch.randn(5, 6).double(), torch.randn(shape).double()
    got = fisher_diagonal(model, [(inputs, targets)], likelihood="gaussian")
    for name, parameter in model.named_parameters():
        expected = torch.zeros_like(parameter)
        for x, y in zip(inputs, targets, strict=True):
            loss = ((model(x[None]).reshape(y.shape) - y) ** 2).sum() / 2
            expected += torch.autograd.grad(loss, parameter)[0] ** 2 / 5
        torch.testing.assert_close(got[name], expected)


def test_any_loss_with_a_value_per_sample_is_accepted():
    model, inputs, labels = problem("linear")

    def by_hand(outputs, targets):
        return -torch.log_softmax(outputs, 1).gather(1, targets[:, None])[:, 0]

    got = fisher_diagonal(model, [(inputs, labels)], likelihood=by_hand)
    assert_same(got, oracle.empirical(model, inputs, labels))


def state_of(model: nn.Module):
    return (
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None},
        [module.training for module in model.modules()],
        torch.get_rng_state(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
    )


def assert_same_state(before, after):
    for tensors, expected in zip(after[:2], before[:2], strict=True):
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert after[2] == before[2]
    assert torch.equal(after[3], before[3])
    assert after[4:] == before[4:]


class Restless(nn.Module):
    """Dropout, batch statistics, and random numbers in every mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        random.random()
        np.random.rand()
        return self.head(self.body(x) + 0.1 * torch.randn(8))


@pytest.mark.parametrize("kind", ["empirical", "exact", "sampled"])
def test_estimating_changes_nothing(kind):
    torch.manual_seed(0)
    model = Restless()
    data = TensorDataset(torch.randn(12, 6), torch.randint(0, CLASSES, (12,)))
    nn.functional.cross_entropy(model(data.tensors[0]), data.tensors[1]).backward()
    model.train()
    model.body[1].eval()
    before = state_of(model)
    fisher_diagonal(model, DataLoader(data, batch_size=4, shuffle=True), kind=kind)
    assert_same_state(before, state_of(model))


def test_a_failed_estimate_changes_nothing_either():
    model = Restless().train()
    before = state_of(model)
    with pytest.raises(ValueError, match="batch 1"):
        fisher_diagonal(model, [GOOD, 7])
    assert_same_state(before, state_of(model))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_switched_off(context):
    model, inputs, labels = problem("linear")
    with context():
        got = fisher_diagonal(model, [(inputs, labels)])
    assert_same(got, oracle.empirical(model, inputs, labels))


GOOD = (torch.randn(3, 6), torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize(
    ("model", "batches", "options", "message"),
    [
        (nn.ReLU(), [GOOD], {}, "ReLU in which none"),
        (nn.Linear(6, 3), [], {}, "expected at least one sample, got none"),
        (nn.Linear(6, 3), iter([]), {}, "a generator that was used up"),
        (nn.Linear(6, 3), [GOOD, GOOD[0]], {}, r"batch 1: expected a pair .*got float32 \(3, 6\)"),
        (nn.Linear(6, 3), [(*GOOD, GOOD[1])], {}, "got tuple of 3 items"),
        (nn.Linear(6, 3), [{"x": 1}], {}, "got dict with 'x'"),
        (nn.Linear(6, 3), [(GOOD[0], GOOD[1][:2])], {}, "2 targets for 3 inputs"),
        (nn.Linear(6, 3), [GOOD, (GOOD[0] * torch.nan, GOOD[1])], {}, "batch 1: .*NaN or inf"),
        (
            nn.Linear(6, 3),
            [GOOD],
            {"kind": "batch"},
            "exact, sampled, signed, got 'batch'",
        ),
        (
            nn.Linear(6, 3),
            [GOOD],
            {"likelihood": "poisson"},
            "categorical, bernoulli, multilabel, gaussian, a criterion of torch, or a function",
        ),
        (
            nn.Linear(6, 3),
            [GOOD],
            {"likelihood": nn.functional.cross_entropy},
            r"shape \(3,\), got shape \(\)",
        ),
        (
            nn.Linear(6, 3),
            [GOOD],
            {"likelihood": "gaussian"},
            r"shape of the outputs, \(3, 3\), got",
        ),
        (
            nn.Linear(6, 3),
            [GOOD],
            {"likelihood": "gaussian", "kind": "exact"},
            r"shape of the outputs, \(3, 3\), got",
        ),
        (
            nn.Linear(6, 3),
            [GOOD],
            {"likelihood": lambda outputs, targets: outputs.sum(1), "kind": "exact"},
            "kind='exact' needs one of the likelihoods categorical, .* got a function",
        ),
        (nn.Linear(6, 3), [GOOD], {"chunk_size": 0}, "chunk_size must be an integer >= 1, got 0"),
        (nn.LSTM(6, 3), [GOOD], {}, r"one tensor, or .* got tuple from LSTM; .*forward=lambda"),
        (
            nn.Linear(6, 3),
            [GOOD],
            {"likelihood": lambda outputs, targets: targets.float()},
            "a loss that depends on the outputs",
        ),
    ],
)
def test_bad_input(model, batches, options, message):
    with pytest.raises(ValueError, match=message):
        fisher_diagonal(model, batches, **options)


def test_the_exact_kind_multiplies_once_whatever_the_number_of_classes(monkeypatch):
    """The input is the same for every class: squared gradients are summed before the product."""
    products = []
    add_summed = Linear.add_summed

    def counted(rule, x, summed, totals):
        products.append(x.shape)
        add_summed(rule, x, summed, totals)

    monkeypatch.setattr(Linear, "add_summed", counted)
    model, inputs, labels = problem("linear")
    linears = sum(isinstance(module, nn.Linear) for module in model.modules())
    fisher_diagonal(model, [(inputs, labels)], self_check=False, kind="exact")
    assert len(products) == linears > 0


@pytest.mark.parametrize("kind", ["empirical", "exact"])
def test_the_result_keeps_no_graph(kind):
    model, inputs, labels = problem("linear")
    fisher = fisher_diagonal(model, [(inputs, labels)], kind=kind)
    assert not any(tensor.requires_grad for tensor in fisher.values())


class WithHooks(nn.Module):
    """Multiplies by a weight itself, so that the loop over single samples is needed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(6, 6)), nn.Linear(6, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(x @ self.weight) if float(x.detach().sum()) < 1e9 else x)


def test_optimizers_that_step_in_the_backward_pass_do_not_step():
    torch.manual_seed(0)
    model = WithHooks().double()
    inputs, labels = torch.randn(5, 6, dtype=torch.float64), torch.arange(5) % CLASSES
    expected = oracle.empirical(model, inputs, labels)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    steps: list[torch.Tensor] = []
    optimizers = {p: torch.optim.SGD([p], lr=1.0) for p in model.parameters()}

    def step(parameter: torch.Tensor) -> None:
        steps.append(parameter)
        optimizers[parameter].step()

    handles = [p.register_post_accumulate_grad_hook(step) for p in model.parameters()]
    assert_same(fisher_diagonal(model, [(inputs, labels)]), expected)
    assert not steps
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
    model(inputs).sum().backward()
    assert len(steps) == 3
    for handle in handles:
        handle.remove()


def test_hooks_that_mask_gradients_are_not_called_and_told(caplog):
    torch.manual_seed(0)
    model = WithHooks().double()
    inputs, labels = torch.randn(5, 6, dtype=torch.float64), torch.arange(5) % CLASSES
    expected = oracle.empirical(model, inputs, labels)
    model.weight.register_hook(torch.zeros_like)
    assert_same(fisher_diagonal(model, [(inputs, labels)]), expected)
    assert caplog.text.count("hooks on the gradients of weight are not called") == 1
    model(inputs).sum().backward()
    assert not model.weight.grad.any()


class Remembering(nn.Linear):
    """Has buffers that a forward pass makes, lengthens, replaces and removes."""

    def __init__(self) -> None:
        super().__init__(6, CLASSES, dtype=torch.float64)
        self.register_buffer("made", None)
        self.register_buffer("longer", torch.zeros(0, 6))
        self.register_buffer("resized", torch.zeros(2))
        self.register_buffer("replaced", torch.zeros(6))
        self.register_buffer("removed", torch.ones(6))
        with torch.inference_mode():
            self.register_buffer("without_version", torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.made = x.detach()[0]
        self.longer = torch.cat([self.longer, x.detach()])
        self.resized.resize_(len(x) + 2).fill_(3)
        self.replaced = self.replaced + 1
        self.removed = None
        return super().forward(x)


def test_buffers_that_a_forward_pass_replaces_are_put_back():
    model, buffers = Remembering(), dict(Remembering().named_buffers())
    objects = dict(model.named_buffers())
    inputs, labels = torch.randn(5, 6, dtype=torch.float64), torch.arange(5) % CLASSES
    fisher_diagonal(model, [(inputs, labels)])
    assert model.made is None
    assert dict(model.named_buffers()).keys() == buffers.keys()
    for name, buffer in model.named_buffers():
        assert buffer is objects[name]
        assert torch.equal(buffer, buffers[name])


def test_tables_that_are_scaled_in_the_forward_pass_are_put_back():
    model = nn.Sequential(nn.Embedding(9, 6, max_norm=0.5), nn.Flatten(), nn.Linear(12, CLASSES))
    before = model[0].weight.detach().clone()
    fisher_diagonal(model, [(torch.randint(9, (4, 2)), torch.arange(4) % CLASSES)])
    assert torch.equal(model[0].weight, before)


def test_a_forward_pass_that_changes_parameters_is_told(caplog):
    class Clamping(nn.Linear):
        def forward(self, x):
            with torch.no_grad():
                self.weight.clamp_(-0.1, 0.1)
            return super().forward(x)

    fisher_diagonal(Clamping(6, 3), [(torch.randn(4, 6), torch.arange(4) % 3)])
    assert caplog.text.count("has changed its own parameters weight, which stay changed") == 1


@pytest.mark.parametrize("options", [{"chunk_size": 2.5}, {"chunk_size": "8"}, {"likelihood": 5}])
def test_options_of_other_types_are_refused(options):
    batch = torch.randn(2, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be .*got"):
        fisher_diagonal(nn.Linear(3, 2), [batch], **options)
