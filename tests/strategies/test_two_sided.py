"""What methods with two sides share: buffers, tied parameters, checkpoints, ready-made clients."""

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, FedProx
from torch import nn

from fedcurv.clients import ClientTerm, LocalTask, LocalTerm, TrainingSettings, client_app
from fedcurv.clients.methods.term import MethodTerm
from fedcurv.global_state import seeded
from fedcurv.simulations.runners.local import LocalGrid
from fedcurv.strategies import FedDyn, FedNova, RoundFailed, Scaffold
from fedcurv.strategies.wire.methods import METHOD, Told, pack_told
from tests.federation import (
    CLASSES,
    FEATURES,
    context_of,
    message_with,
    new_model,
    options,
    same_bits,
    samples,
)
from tests.two_sided import UNEQUAL, Methods

MAKE = {
    "fednova": lambda **more: FedNova(**options(**more)),
    "scaffold": lambda **more: Scaffold(**options(**more)),
    "feddyn": lambda **more: FedDyn(alpha=0.1, **options(**more)),
}


# options beside those of the strategy that is wrapped
OWN = {"feddyn": {"alpha": 0.1}}


class Normalised(nn.Module):
    """With BatchNorm, whose counter is 64 bits long, and a parameter under two names."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(FEATURES)
        self.first = nn.Linear(FEATURES, FEATURES)
        self.second = nn.Linear(FEATURES, FEATURES)
        self.second.weight = self.first.weight
        self.head = nn.Linear(FEATURES, CLASSES)
        self.register_buffer("large", torch.tensor([2**60 + 1]))

    def forward(self, x):
        return self.head(self.second(torch.tanh(self.first(self.norm(x)))))


class OfNormalised(Methods):
    @staticmethod
    def make_model():
        with seeded(0):
            return Normalised()


@pytest.mark.parametrize("name", MAKE)
def test_buffers_are_averaged_and_tied_parameters_stay_tied(name):
    federation = OfNormalised(UNEQUAL[:2])
    result = federation.run(MAKE[name](), num_rounds=1).arrays.to_torch_state_dict()
    assert torch.equal(result["first.weight"], result["second.weight"])
    assert (result["first.weight"] - federation.make_model().first.weight).norm() > 1e-3
    assert result["large"].item() == 2**60 + 1
    means = []
    for i, one in enumerate(UNEQUAL[:2]):
        model = federation.make_model()
        for _ in range(one["steps"]):
            model(samples(i, len(one["inputs"]))[0])
        means.append(model.norm.running_mean)
    weights = [12, 5] if name == "fednova" else [1, 1]
    expected = sum(w * m for w, m in zip(weights, means, strict=True)) / sum(weights)
    torch.testing.assert_close(result["norm.running_mean"], expected)
    assert result["norm.num_batches_tracked"].dtype == torch.int64


class PowerCut(Exception):
    pass


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("every", [1, 2])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(name, every, tmp_path):
    def run(folder, stop=None, **more):
        federation = Methods(UNEQUAL, state_dir=tmp_path / "nodes" / folder)

        class Rounds(list):
            def append(self, record):
                if record.server_round == stop:
                    raise PowerCut

        federation.rounds = Rounds()
        strategy = MAKE[name](fraction_train=0.5)
        more = {"num_rounds": 6, "seed": 4, "checkpoint_every": every, **more}
        return federation.run(strategy, checkpoint=tmp_path / folder, **more)

    expected = run("whole")
    with pytest.raises(PowerCut):
        run("cut", stop=3)
    resumed = run("cut", resume=True)
    assert same_bits(expected.arrays, resumed.arrays)


def ready_made(strategy, *, settings=None, terms=None, num_rounds=3, **more):
    """Run the ready-made ClientApp on unequal clients."""
    sizes = [12, 5, 20]

    def make_task(message, context):
        partition = int(context.node_config["partition-id"])
        return LocalTask(
            Methods.make_model(),
            samples(partition, sizes[partition]),
            settings=settings or TrainingSettings(batch_size=4),
            terms=terms or {},
        )

    federation = Methods([{}] * 3)
    grid = LocalGrid(client_app(make_task), 3)
    return federation, federation.run(strategy, num_rounds=num_rounds, grid=grid, **more)


@pytest.mark.parametrize("name", MAKE)
def test_the_ready_made_client_has_the_term_by_name(name):
    federation, result = ready_made(MAKE[name]())
    assert {c.local_term for c in federation.rounds[3].clients} == {name}
    assert {c.status for c in federation.rounds[3].clients} == {"ok"}
    _, plain = ready_made(FedAvg(**options()))
    assert not same_bits(result.arrays, plain.arrays)


class Other(LocalTerm):
    def attach(self, model, optimizer, settings):
        return None


class WithItsOwnTerm(FedAvg):
    def configure_train(self, server_round, arrays, config, grid):
        return super().configure_train(
            server_round, arrays, ConfigRecord({**config, "local-term": "other"}), grid
        )


@pytest.mark.parametrize("name", MAKE)
def test_a_term_of_the_wrapped_strategys_own_is_refused(name):
    wrapping = type(MAKE[name]())(WithItsOwnTerm(**options()), **OWN.get(name, {}))
    with pytest.raises(RuntimeError, match="got WithItsOwnTerm with 'other'; wrap another"):
        ready_made(wrapping, terms={"other": lambda *_: Other()})


class ProximalInDisguise(FedAvg):
    def configure_train(self, server_round, arrays, config, grid):
        return super().configure_train(
            server_round, arrays, ConfigRecord({**config, "proximal-mu": 0.5}), grid
        )


def test_fedproxs_term_counts_in_the_ready_made_client_too():
    one = ready_made(FedNova(FedProx(proximal_mu=0.5, **options())))[1]
    other = ready_made(FedNova(ProximalInDisguise(**options())))[1]
    assert same_bits(one.arrays, other.arrays)


@pytest.mark.parametrize("name", MAKE)
def test_arrays_of_other_names_than_parameters_are_refused(name):
    class Loads(nn.Linear):
        def load_state_dict(self, *args, **kwargs):
            return None

    federation = Methods(UNEQUAL)
    federation.make_model = lambda: Loads(FEATURES, CLASSES)
    arrays = ArrayRecord({"a": torch.zeros(3), "b": torch.zeros(2)})
    with pytest.raises(RoundFailed, match=r"expected arrays named like the model's parameters"):
        federation.run(MAKE[name](), num_rounds=1, arrays=arrays)


@pytest.mark.parametrize("name", MAKE)
def test_a_term_that_is_made_before_the_model_has_its_weights_is_refused(name):
    class Loads(nn.Linear):
        def load_state_dict(self, *args, **kwargs):
            return None

    federation = Methods(UNEQUAL)
    federation.make_model = lambda: Loads(FEATURES, CLASSES)
    arrays = ArrayRecord(new_model(seed=5).state_dict())
    with pytest.raises(RoundFailed, match=r"make the ClientTerm after model.load_state_dict"):
        federation.run(MAKE[name](), num_rounds=1, arrays=arrays)


def term_of(model, sent):
    """Return the term of a client with this model, to which these arrays were sent."""
    message = message_with(None)
    message.content["arrays"] = ArrayRecord(sent)
    message.content[METHOD] = pack_told(Told("feddyn", 1, number=0.1))
    return ClientTerm(message, context_of(0), model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_are_compared_in_the_models_own_type(dtype):
    sent = {"weight": torch.randn(CLASSES, FEATURES), "bias": torch.tensor([torch.nan, 0.1, 1e9])}
    model = new_model().to(dtype)
    model.load_state_dict(sent)
    assert term_of(model, sent).method == "feddyn"
    with torch.no_grad():
        model.bias[1] = torch.nextafter(sent["bias"][1].to(dtype), torch.ones((), dtype=dtype))
    with pytest.raises(ValueError, match="expected a model with the message's weights, got anoth"):
        term_of(model, sent)


def test_a_compiled_model_has_its_term_under_the_names_that_travel():
    model = new_model()
    compiled = torch.compile(model, backend="eager")
    term = term_of(compiled, model.state_dict())
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.1)
    torch.nn.functional.cross_entropy(compiled(samples(0)[0]), samples(0)[1]).backward()
    optimizer.step()
    content = RecordDict({"arrays": ArrayRecord(model.state_dict())})
    assert METHOD in term.report(content, compiled)


def test_weights_of_another_shape_are_not_the_models():
    sent = {"weight": torch.zeros(1, FEATURES), "bias": torch.zeros(CLASSES)}
    model = new_model()
    nn.init.zeros_(model.weight)
    with pytest.raises(ValueError, match="got another 'weight'"):
        term_of(model, sent)


def test_parameters_that_are_not_sent_are_the_clients_own():
    assert term_of(new_model(), {"bias": new_model().bias.detach()}).method == "feddyn"


@pytest.mark.parametrize("name", MAKE)
def test_the_ready_made_client_does_not_compare_what_it_has_just_loaded(name, monkeypatch):
    monkeypatch.delattr(MethodTerm, "require_weights_of")
    federation, _ = ready_made(MAKE[name](), num_rounds=1)
    assert {c.status for c in federation.rounds[1].clients} == {"ok"}


@pytest.mark.parametrize("name", MAKE)
def test_nodes_that_tell_no_id_take_part(name):
    federation = Methods(UNEQUAL, asks_for_ids=False)
    federation.run(MAKE[name](), num_rounds=2)
    assert {c.status for c in federation.rounds[2].clients} == {"ok"}
