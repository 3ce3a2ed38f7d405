import pickle

import pytest
import torch
from flwr.app import ConfigRecord, Context, RecordDict
from torch import nn

from fedcurv.clients import LocalTask, LocalTerm, TrainingSettings
from fedcurv.clients.local_round import begin_round
from fedcurv.clients.terms import CurvatureTerm, ProximalTerm, PullTerm, attach_proximal_term
from fedcurv.curvature import Curvature
from fedcurv.strategies.wire.records import Instruction
from tests.federation import message_with


def model():
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def begun(config=None, instruction=None, **task):
    from flwr.app import ArrayRecord

    message = message_with(instruction)
    message.content["arrays"] = ArrayRecord(model().state_dict())
    message.content["config"] = ConfigRecord(config or {})
    samples = (torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))
    context = Context(1, 2, {"partition-id": 0}, RecordDict(), {})
    return begin_round(LocalTask(model(), samples, **task), message, context)


def ones(value):
    return {name: torch.full_like(p, value) for name, p in model().named_parameters()}


PULLED = Instruction(
    0.5, sums_round=1, contributors=["a", "b"], sums=Curvature(ones(2.0), ones(6.0))
)


def test_fedprox_and_fedcurv_are_terms_of_a_round():
    local = begun({"proximal-mu": 0.3}, PULLED)
    assert [type(term) for term in local.terms] == [ProximalTerm, CurvatureTerm]
    assert begun().terms == []


def test_workers_feel_what_this_process_feels():
    """The others' optimum is 3 everywhere, with precision 2: one step of lr on each."""
    local = begun({"proximal-mu": 0.3}, PULLED)
    moved = []
    for terms in (local.terms, [pickle.loads(pickle.dumps(t.for_workers())) for t in local.terms]):
        trained = local.model if terms is local.terms else begun().model
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
        start = [p.detach().clone() for p in trained.parameters()]
        for term in terms:
            term.attach(trained, optimizer, TrainingSettings(penalty_mode="gradient"))
        for p in trained.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        for p, before in zip(trained.parameters(), start, strict=True):
            torch.testing.assert_close(p.detach(), before - 0.1 * 2 * 0.5 * 2.0 * (before - 3.0))
        moved.append([p.detach().clone() for p in trained.parameters()])
    torch.testing.assert_close(moved[0], moved[1])


class Noted(LocalTerm):
    def __init__(self, message, context, model):
        self.config = message.content.config_records["config"]

    def attach(self, model, optimizer, settings):
        return None


def test_a_strategy_finds_its_term_by_name():
    terms = {"mine": Noted, "other": lambda *_: None}
    local = begun({"local-term": "mine", "its-strength": 2.0}, terms=terms)
    (term,) = local.terms
    assert term.config["its-strength"] == 2.0
    assert begun({"local-term": "other"}, terms=terms).terms == []


def test_a_term_that_a_client_does_not_have_is_named():
    message = "wants the local term 'theirs', client 0 has mine; give its LocalTask terms="
    with pytest.raises(ValueError, match=message):
        begun({"local-term": "theirs"}, terms={"mine": Noted})


def test_a_term_must_attach_itself():
    with pytest.raises(NotImplementedError):
        LocalTerm().attach(model(), torch.optim.SGD(model().parameters()), TrainingSettings())


def test_the_pull_alone_travels_to_workers():
    (term,) = begun(None, PULLED).terms
    assert isinstance(term.for_workers(), PullTerm)
    assert term.for_workers().strength == 0.5


def test_a_worker_tells_of_steps_that_diverge_once_a_run(caplog):
    said = []
    for server_round in range(4):
        caplog.clear()
        run = "one" if server_round < 2 else "another"
        # as the strength is found anew in every round
        term = PullTerm(Curvature(ones(1.0), ones(1.0)), 100.0 + server_round, run)
        trained = model()
        settings = TrainingSettings(penalty_mode="gradient")
        term.attach(trained, torch.optim.SGD(trained.parameters(), lr=0.1), settings)
        said.append([r.getMessage().partition(" at")[0] for r in caplog.records])
    assert said == [["strength=100"], [], ["strength=102"], []]


class Subclass(torch.optim.SGD):
    def step(self, closure=None):
        return super().step(closure)


def test_fedproxs_term_is_felt_once_by_an_optimizer_that_steps_by_its_parent():
    moved = []
    for kind in (torch.optim.SGD, Subclass):
        trained = model()
        optimizer = kind(trained.parameters(), lr=0.1)
        attach_proximal_term(optimizer, trained, 0.5)
        for _ in range(3):
            for p in trained.parameters():
                p.grad = torch.ones_like(p)
            optimizer.step()
        moved.append(trained.weight.detach())
    assert torch.equal(moved[0], moved[1])
