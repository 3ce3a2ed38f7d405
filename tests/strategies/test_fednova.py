"""FedNova as published, whoever steps how often, and what it refuses."""

import math
import re

import pytest
import torch
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedMedian,
    FedProx,
    QFedAvg,
)

from fedcurv.strategies import FedCurv, FedNova, RoundFailed
from fedcurv.strategies.wire.methods import METHOD
from tests.federation import crash, options, same_bits
from tests.oracles import methods as oracle
from tests.two_sided import UNEQUAL, Methods, client, first_vector, vector

ROUNDS = 4


def assert_as_published(federation, result):
    expected = oracle.fednova(first_vector(), federation.clients, federation.participants())[-1]
    torch.testing.assert_close(vector(result.arrays), expected, rtol=1e-4, atol=1e-5)


def unequal(**more):
    return Methods([{**one, **more} for one in UNEQUAL])


@pytest.mark.parametrize("own_loop", [False, True])
def test_rounds_are_those_of_the_definition(own_loop):
    federation = unequal()
    result = federation.run(FedNova(**options()), own_loop=own_loop)
    assert_as_published(federation, result)


def test_it_makes_a_difference_where_clients_step_unequally_often():
    plain = unequal().run(FedAvg(**options()))
    nova = unequal().run(FedNova(**options()))
    assert (vector(plain.arrays) - vector(nova.arrays)).norm() > 1e-2


@pytest.mark.parametrize(
    "more",
    [{"momentum": 0.9}, {"momentum": 0.5, "nesterov": True}, {"decay": 0.3}],
    ids=["momentum", "nesterov", "weight decay"],
)
def test_steps_with_momentum_and_decay_count_as_the_paper_says(more):
    federation = unequal(**more)
    assert_as_published(federation, federation.run(FedNova(**options())))


class Momenta:
    """Steps that are taken by several optimizers, each with momentum of its own."""

    def __init__(self, model, how):
        self.optimizers = {which: Methods.sgd(model, how) for which in how["momenta"]}
        self.order = iter(how["momenta"])

    def zero_grad(self):
        self.now = self.optimizers[next(self.order)]
        self.now.zero_grad()

    def step(self):
        self.now.step()


class Cleared(Momenta):
    """One optimizer whose state is cleared where another momentum follows."""

    def __init__(self, model, how):
        self.optimizer, self.which = Methods.sgd(model, how), 0
        self.order = iter(how["momenta"])

    def zero_grad(self):
        before, self.which = self.which, next(self.order)
        if before != self.which:
            self.optimizer.state.clear()
        self.optimizer.zero_grad()

    def step(self):
        self.optimizer.step()


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(
    ("optimizer", "which"),
    [(Momenta, lambda k: k // 3), (Momenta, lambda k: k % 2), (Cleared, lambda k: k // 3)],
    ids=["an optimizer made anew", "two in turn", "a state that is cleared"],
)
def test_momentum_that_begins_anew_within_the_round_counts_so(optimizer, which, nesterov):
    clients = [
        {**one, "momenta": [which(k) for k in range(one["steps"])], "optimizer": optimizer}
        for one in UNEQUAL
    ]
    federation = Methods([{**one, "momentum": 0.9, "nesterov": nesterov} for one in clients])
    assert_as_published(federation, federation.run(FedNova(**options())))


class Without:
    """Takes the gradients of some parameters away before some steps, or makes them 0."""

    def __init__(self, model, how):
        self.model, self.how, self.steps = model, how, 0
        self.optimizer = torch.optim.SGD(
            model.parameters(), lr=0.1, momentum=how["momentum"], dampening=how["dampening"]
        )

    def zero_grad(self):
        self.optimizer.zero_grad()

    def step(self):
        if self.steps in self.how["without"]:
            for name in self.how["names"]:
                self.model.get_parameter(name).grad.zero_()
                if not self.how["zeros"]:
                    self.model.get_parameter(name).grad = None
        self.optimizer.step()
        self.steps += 1


def some_without(momentum, without, zeros=False, dampening=0.0, names=("bias",), mu=0.0):
    """Return a federation one of whose clients has no gradients in some of its steps."""
    how = {"without": without, "zeros": zeros, "dampening": dampening, "names": names, "mu": mu}
    return Methods(
        [client(0, 12), client(1, 5, steps=6, momentum=momentum, optimizer=Without, **how)]
    )


@pytest.mark.parametrize(
    ("momentum", "without"),
    [(0.0, {1, 3, 5}), (0.0, {0}), (0.9, {0, 1}), (0.9, set(range(6)))],
    ids=["in turn", "the first", "the first, with momentum", "all, with momentum"],
)
def test_no_gradient_is_a_gradient_of_zero(momentum, without):
    none, zero = (
        some_without(momentum, without, zeros).run(FedNova(**options())) for zeros in (False, True)
    )
    assert same_bits(none.arrays, zero.arrays)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_steps_without_any_gradient_are_none(momentum):
    federation = some_without(momentum, {0, 3}, names=("weight", "bias"))
    result = federation.run(FedNova(**options()))
    federation.clients[1]["steps"] = 4
    assert_as_published(federation, result)


@pytest.mark.parametrize(
    ("how", "mu", "reason"),
    [
        ({"momentum": 0.9, "without": {3}}, 0.0, "with momentum expected gradients of the same"),
        ({"momentum": 0.0, "without": {3}, "mu": 1.0}, 1.0, "with FedProx's term expected grad"),
        (
            {"momentum": 0.9, "without": {0}, "dampening": 0.5},
            0.0,
            "begins in the same step, got none yet for bias; call zero_grad.set_to_none=False",
        ),
    ],
)
def test_parameters_that_rest_while_others_are_pulled_on_are_refused(how, mu, reason):
    strategy = FedNova(FedProx(proximal_mu=mu, **options()))
    federation = some_without(**how)
    federation.run(strategy, num_rounds=1)
    assert re.search(reason, federation.reasons(1)["1"])
    federation = some_without(**how, zeros=True)
    federation.run(FedNova(FedProx(proximal_mu=mu, **options())), num_rounds=1)
    assert not federation.reasons(1)


def given_a_state(model, how):
    """Return an optimizer that goes on with another's momentum."""
    other = torch.nn.Linear(4, 3)
    other.weight.grad, other.bias.grad = torch.ones(3, 4), torch.ones(3)
    before, optimizer = Methods.sgd(other, how), Methods.sgd(model, how)
    before.step()
    optimizer.load_state_dict(before.state_dict())
    return optimizer


def partly_cleared(model, how):
    class Partly(torch.optim.SGD):
        def zero_grad(self, set_to_none=True):
            super().zero_grad(set_to_none)
            self.state.pop(model.bias, None)

    return Partly(model.parameters(), lr=0.1, momentum=how["momentum"])


@pytest.mark.parametrize(
    ("optimizer", "reason"),
    [
        (given_a_state, "expected an optimizer whose momentum begins within the round"),
        (partly_cleared, "momentum of all parameters that begins in the same step, got none yet"),
    ],
)
def test_momentum_that_nobody_has_counted_is_refused(optimizer, reason):
    federation = Methods([client(0, momentum=0.9, optimizer=optimizer)])
    with pytest.raises(RoundFailed, match=reason):
        federation.run(FedNova(**options()), num_rounds=1)


def test_a_state_that_is_loaded_within_the_round_is_refused():
    class Loads(torch.optim.SGD):
        def zero_grad(self, set_to_none=True):
            super().zero_grad(set_to_none)
            self.load_state_dict(self.state_dict())

    def loads(model, how):
        return Loads(model.parameters(), lr=0.1, momentum=0.9)

    with pytest.raises(RoundFailed, match="or that was given a state"):
        Methods([client(0, optimizer=loads)]).run(FedNova(**options()), num_rounds=1)


def test_fedproxs_term_counts_in_what_is_normalised():
    federation = unequal(mu=1.5)
    strategy = FedNova(FedProx(proximal_mu=1.5, **options()))
    assert_as_published(federation, federation.run(strategy))


@pytest.mark.parametrize("seed", range(3))
def test_partial_participation_is_that_of_the_definition(seed):
    federation = Methods([*UNEQUAL, client(4, 7, steps=2), client(5, 16, steps=5)])
    result = federation.run(FedNova(**options(fraction_train=0.5)), seed=seed)
    assert len({tuple(nodes) for nodes in federation.participants()}) > 1
    assert_as_published(federation, result)


def test_learning_rates_may_differ():
    """Half as many steps of twice the size go as far where gradients hardly change."""
    small = {"lr": 1e-4, "steps": 6}
    one = Methods([client(0, 12, **small), client(1, 5, **small)])
    other = Methods([client(0, 12, **small), client(1, 5, lr=2e-4, steps=3)])
    got = [vector(f.run(FedNova(**options()), num_rounds=1).arrays) for f in (one, other)]
    moved = (got[0] - first_vector()).norm()
    assert (got[0] - got[1]).norm() < 1e-2 * moved


def test_equal_steps_are_the_wrapped_strategy_bit_for_bit():
    equal = [client(i, n) for i, n in enumerate((12, 5, 20))]
    for make in (FedAvg, FedAdam, FedMedian):
        plain, nova = (
            Methods(equal).run(s) for s in (make(**options()), FedNova(make(**options())))
        )
        assert same_bits(plain.arrays, nova.arrays)


def with_report(**changes):
    def change(content):
        for name, value in changes.items():
            content[METHOD][name.replace("_", "-")] = value

    return change


def poison(content):
    content["arrays"] = ArrayRecord({n: torch.full((1,), math.nan) for n in ("weight", "bias")})


def without_record(content):
    del content[METHOD]


WRONG = {
    "another shape": (poison, "the reply"),
    "no record": (without_record, r"expected the record 'fedcurv.method'.*make a ClientTerm"),
    "another message": (with_report(message_id="old"), "an answer to this message"),
    "no way": (with_report(progress=0.0), "a way > 0"),
    "NaN": (with_report(progress=math.nan), "a way > 0"),
    "a way too short": (with_report(progress=1e-9), "within 1000 times the round's middle one"),
    "a way too long": (with_report(progress=1e9), "within 1000 times the round's middle one"),
    "unknown parameters": (with_report(parameters=["other"]), "among the arrays that were sent"),
    "fewer parameters": (with_report(parameters=["bias"]), "trained parameters of the same names"),
    "another version": (with_report(wire_version=7), "in version 1, got 7"),
    "a number of another type": (with_report(progress=1), "expected float for 'progress'"),
    "another client's name": (lambda c: c["fedcurv"].update({"client-id": "0"}), "client 0"),
    "no weight": (lambda c: c.__setitem__("metrics", MetricRecord({"loss": 1.0})), "num-examples"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_fit_for_use_is_refused_by_name_and_the_round_goes_on(name):
    spoil, reason = WRONG[name]
    federation = Methods(UNEQUAL, spoil={(2, 3): spoil})
    result = federation.run(FedNova(**options()))
    assert [*federation.reasons(2)] == ["3"]
    assert re.search(reason, federation.reasons(2)["3"])
    expected = oracle.fednova(
        first_vector(), federation.clients, [[0, 1, 2, 3], [0, 1, 2], *2 * [[0, 1, 2, 3]]]
    )[-1]
    torch.testing.assert_close(vector(result.arrays), expected, rtol=1e-4, atol=1e-5)


def test_a_client_that_fails_is_left_out():
    federation = Methods(UNEQUAL, spoil={(1, 0): crash})
    federation.run(FedNova(**options()), num_rounds=1)
    assert "lost" in federation.reasons(1)["0"]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"optimizer": lambda m, how: torch.optim.Adam(m.parameters())}, "holds for SGD, got Adam"),
        ({"lr": 0.0}, "took 3 steps with learning rates that are 0"),
        ({"steps": 0}, "took 0 steps"),
        (
            {"optimizer": lambda m, how: torch.optim.SGD([m.weight], lr=0.1)},
            "expected one optimizer of all trainable parameters, got one without .'bias'",
        ),
        (
            {
                "optimizer": lambda m, how: torch.optim.SGD(
                    [{"params": [m.weight]}, {"params": [m.bias], "lr": 0.2}], lr=0.1
                )
            },
            "holds for one learning rate",
        ),
        (
            {"optimizer": lambda m, how: torch.optim.SGD(m.parameters(), lr=0.1, maximize=True)},
            "maximize=True",
        ),
    ],
)
def test_training_for_which_it_does_not_hold_is_refused_with_the_reason(more, reason):
    with pytest.raises(RoundFailed, match=reason):
        Methods([client(0, **more)]).run(FedNova(**options()), num_rounds=1)


@pytest.mark.parametrize(
    ("mu", "more", "reason"),
    [
        (1.0, {"momentum": 0.9}, "does not hold for FedProx's term and momentum together"),
        (20.0, {}, "expected lr·μ <= 1, got 2"),
    ],
)
def test_proximal_terms_under_which_gradients_act_uphill_are_refused(mu, more, reason):
    federation = Methods([client(0, mu=mu, **more)])
    with pytest.raises(RoundFailed, match=reason):
        federation.run(FedNova(FedProx(proximal_mu=mu, **options())), num_rounds=1)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: FedNova(QFedAvg(0.1)), "does not hold around QFedAvg: it weighs clients"),
        (lambda: FedNova(FedCurv(strength=1)), "got FedCurv inside FedNova"),
        (lambda: FedNova(FedNova()), "got FedNova inside FedNova"),
        (lambda: FedNova(FedAvg(), fraction_train=0.5), "give them to FedAvg"),
        (lambda: FedNova(fraction_fit=0.5), "'fraction_fit' is now fraction_train"),
        (lambda: FedNova(fraction_trian=0.5), "FedNova and FedAvg have no option 'fraction_trian'"),
    ],
)
def test_what_it_cannot_stand_around_is_refused(make, says):
    with pytest.raises(TypeError, match=says):
        make()


def test_differential_privacy_around_it_is_refused():
    private = DifferentialPrivacyServerSideFixedClipping(
        FedNova(**options()), noise_multiplier=0.1, clipping_norm=1.0, num_sampled_clients=2
    )
    with pytest.raises(TypeError, match="FedNova without differential privacy, got it inside"):
        Methods(UNEQUAL).run(private)


def test_clients_know_other_servers():
    """One app serves a server with FedNova and one without."""
    plain = Methods(UNEQUAL, plain=frozenset(range(4))).run(FedAvg(**options()))
    aware = Methods(UNEQUAL).run(FedAvg(**options()))
    assert same_bits(plain.arrays, aware.arrays)


def test_it_costs_fedavgs_bytes_but_for_a_few_words():
    plain, nova = Methods(UNEQUAL), Methods(UNEQUAL)
    plain.run(FedAvg(**options()))
    nova.run(FedNova(**options()))
    for one, other in zip(plain.rounds[2].clients, nova.rounds[2].clients, strict=True):
        assert other.up["arrays"] == one.up["arrays"] and other.down["arrays"] == one.down["arrays"]
        assert other.bytes_up - one.bytes_up < 400 and other.bytes_down - one.bytes_down < 400
