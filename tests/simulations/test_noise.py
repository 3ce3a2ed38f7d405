import numpy as np
import pytest
import torch

from fedcurv.losses import GeneralizedCrossEntropy, MeanAbsoluteError
from fedcurv.simulations.build import load_data
from fedcurv.simulations.configuration import composed, resolve
from fedcurv.simulations.parts.label_noise import (
    KINDS,
    Labelled,
    check_noise,
    noisy_labels,
    noisy_validation,
)
from fedcurv.simulations.parts.losses import LOSSES, make_loss

LABELS = torch.arange(1000) % 10
INPUTS = torch.randn(1000, 1, 4, 4)
CLIENTS = 10
# of whom people took every fifth for the next
WORSE = torch.where(torch.arange(1000) % 5 == 0, (LABELS + 1) % 10, LABELS)
SAMPLES = Labelled(INPUTS, LABELS, 10, {"worse": WORSE, "aggre": LABELS.clone()})


def noisy(client: int = 0, seed: int = 1, **noise):
    return noisy_labels(SAMPLES, described(**noise), client=client, num_clients=CLIENTS, seed=seed)


def described(**noise):
    kind = noise.get("kind", "symmetric")
    labels = "worse" if kind == "human" else None
    rate = None if kind in ("none", "human") else 0.4
    return {"kind": kind, "rate": rate, "labels": labels, "clients": 1.0, **noise}


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
        ({"rate": 1.5}, r"data.noise.rate must be in \[0, 1\], or null for 0.4, got 1.5"),
        ({"rate": "much"}, "data.noise.rate must be"),
        ({"clients": 2.0}, "data.noise.clients must be a share"),
        ({"clients": [10]}, r"a list of numbers below 10, got \[10\]"),
        ({"labels": "worse"}, "labels=worse is for data.noise.kind=human, got symmetric; use null"),
        (
            {"kind": "none", "rate": 0.2},
            "rate=0.2 has no meaning for data.noise.kind=none",
        ),
        ({"kind": "human", "rate": 0.2}, "rate=0.2 has no meaning for data.noise.kind=human"),
        ({"kind": "none", "validation": True}, "validation=true needs a data.noise.kind other"),
        ({"kind": "human"}, r"have none \(arrays human_NAME\), got 'worse'"),
    ],
)
def test_bad_descriptions_of_noise(noise, message):
    with pytest.raises(ValueError, match=message):
        check_noise(described(**noise), CLIENTS)


def test_without_a_rate_two_of_five_labels_are_wrong():
    assert torch.equal(noisy(rate=None).labels, noisy(rate=0.4).labels)


def test_human_labels_are_those_that_people_gave():
    human = noisy(kind="human")
    assert torch.equal(human.labels, WORSE) and human.rate == 0.2
    assert noisy(kind="human", labels="aggre").rate == 0.0
    assert torch.equal(noisy(kind="human", clients=[1]).labels, LABELS)
    with pytest.raises(ValueError, match="gave the training samples, worse, aggre, got None"):
        noisy(kind="human", labels=None)


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_labels_are_as_wrong_as_a_noisy_clients_and_the_same_for_every_seed(kind):
    first = noisy_validation(SAMPLES, described(kind=kind, clients=[0]), CLIENTS)
    assert torch.equal(first.labels, noisy_validation(SAMPLES, described(kind=kind), 2).labels)
    assert first.rate == pytest.approx(noisy(kind=kind).rate, abs=0.06)


def with_human_labels(folder, **others):
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(60, 5)).astype(np.float32), rng.integers(0, 3, 60)
    human = {"human_worse": (targets + (np.arange(60) % 3 == 0)) % 3, **others}
    path = folder / "data.npz"
    np.savez(
        path,
        train_inputs=inputs,
        train_targets=targets,
        test_inputs=inputs[:9],
        test_targets=targets[:9],
        **human,
    )
    return path, targets, human["human_worse"]


def resolved(path, *words):
    chosen = ["data=arrays", f"data.file={path}", "partition=iid", "num_clients=4", *words]
    return resolve(composed(chosen))


def places(inputs, path):
    """Return where in the file's training samples each of these is."""
    all_of_them = np.load(path)["train_inputs"]
    return [int(np.flatnonzero((one == all_of_them).all(1))[0]) for one in inputs.numpy()]


def test_people_s_labels_of_a_file_train_the_clients_and_not_the_test_set(tmp_path):
    path, targets, human = with_human_labels(tmp_path)
    words = ["data.noise.kind=human", "data.noise.labels=worse", "data.validation_samples=20"]
    config = resolved(path, *words, "data.evaluate_on=validation", "data.noise.validation=true")
    data = load_data(config)
    rows, held = places(data.train_inputs, path), places(data.test_inputs, path)
    assert np.array_equal(data.human_labels["worse"], human[rows])
    assert np.array_equal(data.train_targets, targets[rows])
    of_client = data.human_labels_of(np.array([3, 1]))["worse"]
    assert np.array_equal(of_client, human[[rows[3], rows[1]]])
    assert np.array_equal(data.test_targets, human[held])
    clean = load_data(resolved(path, *words, "data.evaluate_on=validation"))
    assert np.array_equal(clean.test_targets, targets[held])
    assert np.array_equal(load_data(resolved(path, *words)).test_targets, targets[:9])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(59, dtype=int), r"human_other: expected a class for each of 60 samples"),
        (np.full(60, 3), "human_other: expected .*3"),
        (np.full(60, 0.5), "human_other: expected .*"),
    ],
)
def test_people_s_labels_must_be_classes_of_the_samples(labels, message, tmp_path):
    path, *_ = with_human_labels(tmp_path, human_other=labels)
    with pytest.raises(ValueError, match=message):
        resolved(path)


def test_labels_that_the_file_has_not_are_refused_with_those_that_it_has(tmp_path):
    path, *_ = with_human_labels(tmp_path)
    with pytest.raises(ValueError, match="training samples, worse, got 'aggre'"):
        resolved(path, "data.noise.kind=human", "data.noise.labels=aggre")


def test_wrong_validation_labels_need_validation_samples(tmp_path):
    path, *_ = with_human_labels(tmp_path)
    with pytest.raises(ValueError, match=r"validation=true needs data.validation_samples > 0"):
        resolved(path, "data.noise.kind=symmetric", "data.noise.validation=true")


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
