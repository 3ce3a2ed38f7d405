"""Recurrent layers by their projections against torch's own, and their Fisher information."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from fedcurv import fisher_diagonal
from fedcurv.per_sample import check
from fedcurv.per_sample.recurrent import RecurrentByProjections
from fedcurv.per_sample.replay import Replay
from tests.oracles import fisher as oracle

N, STEPS, INPUTS, HIDDEN, CLASSES = 5, 4, 3, 6, 3
DOUBLE = torch.float64

MODULES = {
    "lstm": lambda **o: nn.LSTM(INPUTS, HIDDEN, **o),
    "gru": lambda **o: nn.GRU(INPUTS, HIDDEN, **o),
    "tanh": lambda **o: nn.RNN(INPUTS, HIDDEN, **o),
    "relu": lambda **o: nn.RNN(INPUTS, HIDDEN, nonlinearity="relu", **o),
}
OPTIONS = {
    "plain": {"batch_first": True},
    "time first": {},
    "two layers": {"batch_first": True, "num_layers": 2},
    "both ways": {"batch_first": True, "bidirectional": True},
    "two layers both ways, time first": {"num_layers": 2, "bidirectional": True, "dropout": 0.5},
    "no bias": {"batch_first": True, "bias": False},
}


def made(name, options):
    torch.manual_seed(0)
    return MODULES[name](**OPTIONS[options]).to(DOUBLE).eval()


def tensors(value):
    return [value] if isinstance(value, torch.Tensor) else [t for v in value for t in tensors(v)]


def states_for(module, samples=N):
    layers = module.num_layers * (1 + module.bidirectional)
    state = torch.randn(layers, samples, HIDDEN, dtype=DOUBLE)
    return (state, torch.randn_like(state)) if isinstance(module, nn.LSTM) else state


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", MODULES)
def test_outputs_states_and_all_gradients_are_the_modules_own(name, options, given):
    module = made(name, options)
    shape = (N, STEPS) if module.batch_first else (STEPS, N)
    x = torch.randn(*shape, INPUTS, dtype=DOUBLE, requires_grad=True)
    states = states_for(module) if given else None
    leaves = [x, *module.parameters()]
    for state in tensors(states) if given else []:
        leaves.append(state.requires_grad_())

    def results():
        values = tensors(module(x, states) if given else module(x))
        loss = sum((value * value.detach().cos()).sum() for value in values)
        return values, torch.autograd.grad(loss, leaves)

    expected = results()
    with RecurrentByProjections(module).in_place():
        got = results()
    for one, other in zip(tensors(got), tensors(expected), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", MODULES)
def test_what_has_no_axis_of_samples_or_is_packed_is_left_to_the_module(name):
    module = made(name, "plain")
    sequences = torch.randn(2, STEPS, INPUTS, dtype=DOUBLE)
    packed = pack_padded_sequence(sequences, torch.tensor([4, 2]), batch_first=True)
    for x in (sequences[0], packed):
        expected = module(x)[0]
        with RecurrentByProjections(module).in_place():
            got = module(x)[0]
        assert torch.equal(*(o.data for o in (got, expected)))


def test_what_it_does_not_compute_is_not_replaced():
    class Subclass(nn.LSTM):
        pass

    normed = nn.utils.parametrizations.weight_norm(nn.LSTM(2, 3), "weight_hh_l0")
    patched = nn.GRU(2, 3)
    patched.forward = lambda *_: None
    others = (nn.LSTM(4, 3, proj_size=2), Subclass(2, 3), normed, patched, nn.LSTMCell(2, 3))
    for module in others:
        assert not RecurrentByProjections.fits(module)
    assert RecurrentByProjections.fits(nn.LSTM(2, 3))


class Reader(nn.Module):
    """Classifies by what ``read`` makes of a recurrent module's result."""

    def __init__(self, module, read):
        super().__init__()
        self.recurrent, self.read = module, read
        self.head = nn.Linear(HIDDEN * (1 + module.bidirectional), CLASSES)

    def forward(self, x):
        x = x if self.recurrent.batch_first else x.transpose(0, 1)
        return self.head(self.read(self.recurrent, x))


def mean_of_outputs(recurrent, x):
    return recurrent(x)[0].mean(1 if recurrent.batch_first else 0)


def last_state(recurrent, x):
    last = recurrent(x)[1]
    last = last[0] + last[1].sin() if isinstance(last, tuple) else last
    ways = 1 + recurrent.bidirectional
    return last[-ways:].transpose(0, 1).flatten(1)


def twice(recurrent, x):
    outputs, state = recurrent(x)
    return recurrent(x.flip(1), state)[0][:, -1] + outputs.mean(1)


def assert_right(model, samples=N, steps=STEPS, **options):
    x = torch.randn(samples, steps, INPUTS, dtype=DOUBLE)
    labels = torch.randint(0, CLASSES, (samples,))
    got = fisher_diagonal(model, [(x, labels)], **options)
    exact = options.get("kind") == "exact"
    expected = oracle.exact(model, x) if exact else oracle.empirical(model, x, labels)
    assert got.keys() == expected.keys()
    for name, one in expected.items():
        torch.testing.assert_close(got[name], one, rtol=1e-5, atol=1e-12)
    assert any(one.any() for one in expected.values())


@pytest.mark.parametrize("kind", ["empirical", "exact"])
@pytest.mark.parametrize("read", [mean_of_outputs, last_state])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", MODULES)
def test_the_fisher_information_is_by_closed_forms(name, options, read, kind, replayed):
    assert_right(Reader(made(name, options), read).to(DOUBLE), kind=kind)
    assert not replayed


@pytest.mark.parametrize("self_check", [True, False])
@pytest.mark.parametrize(("samples", "steps"), [(1, STEPS), (N, 1), (1, 1), (STEPS, STEPS)])
@pytest.mark.parametrize("name", MODULES)
def test_any_number_of_samples_and_steps(name, samples, steps, self_check):
    model = Reader(made(name, "plain"), mean_of_outputs).to(DOUBLE)
    assert_right(model, samples, steps, self_check=self_check)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_that_is_used_twice(name):
    assert_right(Reader(made(name, "plain"), twice).to(DOUBLE))


@pytest.mark.parametrize("name", MODULES)
def test_learned_first_states(name, monkeypatch):
    class Learned(Reader):
        def __init__(self, module):
            super().__init__(module, None)
            shape = [s.shape[0] for s in tensors(states_for(module))]
            self.first = nn.ParameterList(nn.Parameter(torch.randn(n, 1, HIDDEN)) for n in shape)

        def forward(self, x):
            states = tuple(p.expand(-1, len(x), -1).contiguous() for p in self.first)
            states = states if isinstance(self.recurrent, nn.LSTM) else states[0]
            return self.head(self.recurrent(x, states)[0].mean(1))

    model = Learned(made(name, "two layers")).to(DOUBLE)
    assert_right(model)

    looped = []
    original = Replay._one_by_one
    monkeypatch.setattr(
        Replay, "_one_by_one", lambda *given: looped.append(given) or original(*given)
    )

    def by_loop():
        looped.clear()
        monkeypatch.setattr(check, "_remembered", {})
        fisher_diagonal(model, [(torch.randn(N, STEPS, INPUTS), torch.zeros(N).long())])
        return bool(looped)

    model.float()
    with_stand_in = by_loop()
    model.recurrent.__class__ = type("Subclass", (type(model.recurrent),), {})
    assert with_stand_in == by_loop()  # vmap is as far as without one


def test_dropout_that_a_forward_turns_on_is_drawn():
    def training(recurrent, x):
        recurrent.train()
        torch.manual_seed(0)
        return recurrent(x)[0].mean(0)

    module = nn.LSTM(INPUTS, HIDDEN, num_layers=2, dropout=0.5)
    assert_right(Reader(module, training).to(DOUBLE), samples=1)


def test_what_the_module_refuses_is_refused_in_its_words():
    def stated(recurrent, x):
        return recurrent(x, torch.zeros(1, 1, HIDDEN))[0].mean(1)

    model, labels = Reader(MODULES["gru"](batch_first=True), stated), torch.zeros(N).long()
    with pytest.raises(RuntimeError, match=r"Expected hidden size \(1, 5, 6\), got \[1, 1, 6\]"):
        fisher_diagonal(model, [(torch.zeros(N, STEPS, INPUTS), labels)], self_check=False)
    model.read = mean_of_outputs
    with pytest.raises(RuntimeError, match="sequence length to be larger than 0"):
        fisher_diagonal(model, [(torch.zeros(N, 0, INPUTS), labels)])


@pytest.mark.parametrize("kind", ["empirical", "exact"])
@pytest.mark.parametrize("name", MODULES)
def test_half_precision_is_right_to_its_rounding(name, kind):
    model = Reader(made(name, "two layers"), mean_of_outputs).float()
    x, labels = torch.randn(N, STEPS, INPUTS), torch.randint(0, CLASSES, (N,))
    expected = fisher_diagonal(model, [(x, labels)], kind=kind)
    if name == "lstm" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("torch has no LSTM in bfloat16 on this processor")
    with torch.autocast("cpu", torch.bfloat16):
        results = [fisher_diagonal(model, [(x, labels)], kind=kind)]
    half = model.bfloat16()
    results.append(fisher_diagonal(half, [(x.bfloat16(), labels)], kind=kind))
    for got in results:
        for parameter, one in expected.items():
            assert (got[parameter] - one).norm() < 0.1 * one.norm()


def test_frozen_weights_and_tied_weights():
    model = Reader(made("lstm", "two layers"), mean_of_outputs).to(DOUBLE)
    model.recurrent.weight_hh_l0.requires_grad_(False)
    model.recurrent.bias_ih_l1 = model.recurrent.bias_hh_l1
    assert_right(model)
    assert not model.recurrent.weight_hh_l0.requires_grad


def test_the_module_is_as_before_afterwards():
    model = Reader(made("lstm", "plain"), mean_of_outputs).to(DOUBLE)
    assert_right(model)
    assert "forward" not in vars(model.recurrent)
