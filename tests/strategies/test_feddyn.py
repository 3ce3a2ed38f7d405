"""FedDyn as published, with clients that are absent, fail and forget, and what it refuses."""

import logging
import math
import pickle

import pytest
import torch
from flwr.app import ArrayRecord, Context, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedMedian, FedProx

from fedcurv.clients import TrainingSettings
from fedcurv.clients.methods.feddyn import FedDynTerm
from fedcurv.strategies import FedCurv, FedDyn, RoundFailed, SecureSums
from fedcurv.strategies.wire.methods import METHOD, State, Told, pack_told
from tests.federation import crash, message_with, new_model, options
from tests.oracles import methods as oracle
from tests.two_sided import UNEQUAL, Methods, client, first_vector, vector

ALPHA = 0.7
SIX = [*UNEQUAL, client(4, 7, steps=2), client(5, 16, steps=5)]


def assert_as_published(federation, result, participants=None, **more):
    rounds = participants or federation.participants(max(federation.seen))
    start, clients = first_vector(), federation.clients
    expected = oracle.feddyn(start, clients, rounds, alpha=ALPHA, **more)[-1]
    torch.testing.assert_close(vector(result.arrays), expected, rtol=1e-4, atol=1e-5)


def dynamic(**more):
    return FedDyn(alpha=ALPHA, **options(**more))


@pytest.mark.parametrize("own_loop", [False, True])
@pytest.mark.parametrize("more", [{}, {"momentum": 0.9}, {"decay": 0.3}])
def test_rounds_are_those_of_the_definition(own_loop, more):
    federation = Methods([{**one, **more} for one in UNEQUAL])
    result = federation.run(dynamic(), num_rounds=6, own_loop=own_loop)
    assert_as_published(federation, result)


@pytest.mark.parametrize("seed", range(3))
def test_partial_participation_is_that_of_the_definition(seed, tmp_path):
    federation = Methods(SIX, state_dir=tmp_path if seed == 0 else None)
    result = federation.run(dynamic(fraction_train=0.5), num_rounds=8, seed=seed)
    assert len({tuple(nodes) for nodes in federation.participants(8)}) > 1
    assert_as_published(federation, result)


def test_a_reply_that_is_not_used_leaves_the_client_where_the_server_thinks_it_is():
    def poison(content):
        nan = torch.full((3, 4), math.nan)
        content["arrays"] = ArrayRecord({"weight": nan, "bias": nan[:, 0].clone()})

    federation = Methods(UNEQUAL, spoil={(1, 2): poison, (3, 3): crash})
    result = federation.run(dynamic(), num_rounds=5)
    whole = [0, 1, 2, 3]
    assert_as_published(federation, result, [[0, 1, 3], whole, [0, 1, 2], whole, whole])


def test_a_client_that_forgets_is_named_and_all_begin_anew(caplog):
    federation = Methods(UNEQUAL, forgetful=frozenset({(4, 1)}))
    with caplog.at_level(logging.WARNING, "fedcurv"):
        result = federation.run(dynamic(), num_rounds=7)
    assert_as_published(federation, result, lost={4: [1]})
    assert "round 4: client 1 has lost what it remembered" in caplog.text


def test_it_costs_fedavgs_bytes_but_for_a_few_words():
    plain, own = Methods(UNEQUAL), Methods(UNEQUAL)
    plain.run(FedAvg(**options()))
    own.run(dynamic())
    for one, other in zip(plain.rounds[3].clients, own.rounds[3].clients, strict=True):
        assert other.bytes_up - one.bytes_up < 500 and other.bytes_down - one.bytes_down < 500


def test_all_clients_come_to_one_optimum():
    """There the gradient of the mean of their losses is next to nought."""
    clients = [{**one, "decay": 0.1, "steps": 30, "lr": 0.05} for one in UNEQUAL]
    result = Methods(clients).run(FedDyn(alpha=1.0, **options()), num_rounds=20)
    slopes = [
        sum(oracle.gradient(theta, one) for one in clients).norm() / len(clients)
        for theta in (first_vector(), vector(result.arrays))
    ]
    assert slopes[1] < 0.03 < slopes[0]


def adam(model, how):
    return torch.optim.Adam(model.parameters(), lr=0.05)


def uphill(model, how):
    return torch.optim.SGD(model.parameters(), lr=0.0, maximize=True)


@pytest.mark.parametrize("optimizer", [adam, uphill])
def test_any_optimizer_may_minimise(optimizer):
    federation = Methods([client(i, 12, optimizer=optimizer) for i in range(2)])
    result = federation.run(dynamic(), num_rounds=3)
    assert vector(result.arrays).isfinite().all()
    assert {c.status for c in federation.rounds[3].clients} == {"ok"}


def made_term(linear):
    """Return a term whose client remembers this, and the model of its round."""
    message, model = message_with(None), new_model()
    state = RecordDict()
    context = Context(1, 2, {"partition-id": 0}, state, {})
    message.content["arrays"] = ArrayRecord(model.state_dict())
    known = None
    if linear is not None:
        message.content[METHOD] = pack_told(Told("feddyn", 1, number=ALPHA))
        term = FedDynTerm(message, context, model)
        term._remember(linear)
        known = State(1, message.metadata.message_id)
    message.content[METHOD] = pack_told(Told("feddyn", 2, number=ALPHA, known=known))
    return FedDynTerm(message, context, model), model


@pytest.mark.parametrize("remembers", [False, True])
def test_workers_feel_what_this_process_feels(remembers):
    linear = {n: torch.full_like(p, 0.5) for n, p in new_model().named_parameters()}
    moved = []
    for for_workers in (False, True):
        term, model = made_term(linear if remembers else None)
        if for_workers:
            term = pickle.loads(pickle.dumps(term.for_workers()))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        before = vector(ArrayRecord(model.state_dict()))
        term.attach(model, optimizer, TrainingSettings())
        for _ in range(2):
            for p in model.parameters():
                p.grad = torch.ones_like(p)
            optimizer.step()
        moved.append(vector(ArrayRecord(model.state_dict())) - before)
    assert torch.equal(*moved)
    slope = 1.0 - (0.5 if remembers else 0.0)
    expected = -0.1 * slope * (2 - 0.1 * ALPHA)
    torch.testing.assert_close(moved[0], torch.full_like(moved[0], expected), rtol=1e-5, atol=1e-6)


def test_no_steps_are_refused_with_the_reason():
    with pytest.raises(RoundFailed, match="took no steps"):
        Methods([client(0, steps=0)]).run(dynamic(), num_rounds=1)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: FedDyn(alpha=0.0), ValueError, "alpha must be > 0 and finite, got 0.0"),
        (lambda: FedDyn(alpha=math.nan), ValueError, "alpha must be > 0 and finite, got nan"),
        (lambda: FedDyn(alpha="0.1"), ValueError, "alpha must be > 0 and finite"),
        (lambda: FedDyn(FedAdam(), alpha=1), TypeError, "around FedAdam: its own step"),
        (lambda: FedDyn(FedAvgM(), alpha=1), TypeError, "around FedAvgM: its own step"),
        (lambda: FedDyn(FedMedian(), alpha=1), TypeError, "around FedMedian: it leaves clients"),
        (lambda: FedDyn(FedProx(), alpha=1), TypeError, "its term would enter"),
        (lambda: FedCurv(FedDyn(alpha=1), strength=1), TypeError, "got FedDyn inside FedCurv"),
        (lambda: FedDyn(FedCurv(strength=1), alpha=1), TypeError, "got FedCurv inside FedDyn"),
        (lambda: FedDyn(SecureSums(FedAvg()), alpha=1), TypeError, "got SecureSums inside FedDyn"),
        (lambda: SecureSums(FedDyn(alpha=1)), TypeError, "FedDyn, which must see single replies"),
    ],
)
def test_what_cannot_be_right_is_refused(make, error, says):
    with pytest.raises(error, match=says):
        make()
