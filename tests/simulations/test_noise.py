import pytest
import torch

from fedcurv.losses import GeneralizedCrossEntropy, MeanAbsoluteError
from fedcurv.simulations.parts.label_noise import KINDS, check_noise, noisy_labels
from fedcurv.simulations.parts.losses import LOSSES, make_loss

LABELS = torch.arange(1000) % 10
INPUTS = torch.randn(1000, 1, 4, 4)
CLIENTS = 10


def noisy(client: int = 0, seed: int = 1, **noise):
    description = {"kind": "symmetric", "rate": 0.4, "clients": 1.0, **noise}
    return noisy_labels(
        INPUTS, LABELS, 10, description, client=client, num_clients=CLIENTS, seed=seed
    )


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_made_and_stays_the_same(kind):
    one, same = noisy(kind=kind), noisy(kind=kind)
    assert torch.equal(one.labels, same.labels)
    assert (one.rate == 0) == (kind == "none")


def test_clients_and_seeds_differ():
    assert not torch.equal(noisy().labels, noisy(client=1).labels)
    assert not torch.equal(noisy().labels, noisy(seed=2).labels)


def test_only_the_named_clients_are_noisy():
    rates = [noisy(client, clients=[0, 3]).rate for client in range(CLIENTS)]
    assert [i for i, rate in enumerate(rates) if rate] == [0, 3]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_the_clients_is_noisy(share):
    def who(seed: int) -> list[int]:
        return [c for c in range(CLIENTS) if noisy(c, seed, clients=share).rate]

    assert len(who(1)) == share * CLIENTS
    assert who(1) == who(1)
    if share == 0.3:
        assert len({tuple(who(seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        ({"kind": "uniform"}, "data.noise.kind must be one of none, symmetric"),
        ({"rate": 1.5}, r"data.noise.rate must be in \[0, 1\], got 1.5"),
        ({"rate": "much"}, "data.noise.rate must be"),
        ({"clients": 2.0}, "data.noise.clients must be a share"),
        ({"clients": [10]}, r"a list of numbers below 10, got \[10\]"),
    ],
)
def test_bad_descriptions_of_noise(noise, message):
    with pytest.raises(ValueError, match=message):
        check_noise({"kind": "symmetric", "rate": 0.4, "clients": 1.0, **noise}, CLIENTS)


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_has_a_name(name):
    logits = torch.randn(3, 10, requires_grad=True)
    make_loss(name)(logits, LABELS[:3]).backward()
    assert logits.grad.norm() > 0


def test_settings_stand_beside_the_name():
    loss = make_loss({"name": "gce", "q": 0.5})
    assert isinstance(loss, GeneralizedCrossEntropy) and loss.q == 0.5
    assert make_loss({"name": "entropy", "strength": 3.0}).strength == 3
    assert isinstance(make_loss("nce+mae").passive, MeanAbsoluteError)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("hinge", "client.loss must be one of cross_entropy, .*, got 'hinge'"),
        ({"q": 0.5}, "got None"),
        ({"name": "gce", "r": 1}, "client.loss: 'gce' has no such setting: .*'r'"),
        ({"name": "gce", "q": 7}, r"q must be finite and in \(0, 1\], got 7"),
    ],
)
def test_bad_descriptions_of_losses(loss, message):
    with pytest.raises(ValueError, match=message):
        make_loss(loss)
