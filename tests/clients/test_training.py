import math

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from torch import nn

from fedcurv.clients import LocalTask, TrainingSettings, client_app, evaluate, train
from fedcurv.clients.terms import attach_proximal_term
from fedcurv.clients.training import InMemoryBatches
from fedcurv.strategies.flower_private import task_identity
from tests.federation import CLASSES, FEATURES, new_model, samples


class Fixed(nn.Module):
    """Gives the outputs that it was made with, for samples by their number."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = nn.Parameter(outputs)

    def forward(self, numbers):
        return self.outputs[numbers[:, 0].long()]


def of_each(name, outputs, targets):
    """Return loss and accuracy, number by number."""
    losses, rights = [], []
    if name == "classes":
        for logits, label in zip(outputs.tolist(), targets.tolist(), strict=True):
            for place in range(len(label)) if isinstance(label, list) else [None]:
                mine = logits if place is None else [row[place] for row in logits]
                wanted = label if place is None else label[place]
                if wanted != -100:
                    losses.append(math.log(sum(map(math.exp, mine))) - mine[wanted])
                    rights.append(mine[wanted] == max(mine))
    else:
        pairs = zip(outputs.flatten().tolist(), targets.flatten().tolist(), strict=True)
        for out, wanted in pairs:
            p = 1 / (1 + math.exp(-out))
            of_label = -math.log(p if wanted else 1 - p)
            losses.append((out - wanted) ** 2 if name == "numbers" else of_label)
            rights.append((out > 0) == (wanted == 1))
    return sum(losses) / len(losses), sum(rights) / len(rights), len(losses)


@pytest.mark.parametrize(
    ("likelihood", "name", "outputs", "targets"),
    [
        ("categorical", "classes", (6, 3), torch.tensor([0, 1, 2, 1, 0, 2])),
        ("categorical", "classes", (6, 3, 2), torch.tensor([[0, -100], [1, 2]] * 3)),
        (nn.CrossEntropyLoss(), "classes", (6, 3), torch.tensor([0, 1, 2, 1, 0, 2])),
        ("bernoulli", "labels", (6, 1), torch.tensor([[0.0], [1.0]] * 3)),
        ("multilabel", "labels", (6, 2), torch.tensor([[0.0, 1.0], [1.0, 1.0]] * 3)),
        ("gaussian", "numbers", (6, 2), torch.tensor([[0.5, 1.0], [-1.0, 2.0]] * 3)),
    ],
)
def test_a_client_evaluates_every_kind_of_task(likelihood, name, outputs, targets):
    torch.manual_seed(0)
    model, numbers = Fixed(torch.randn(outputs)), torch.arange(6)[:, None]
    samples = (numbers, targets)
    task = LocalTask(model, samples, test_samples=samples, likelihood=likelihood)
    arrays = ArrayRecord(model.state_dict())
    metrics = dict(send("evaluate", task, arrays=arrays).content["metrics"])
    loss, accuracy, number = of_each(name, model.outputs.detach(), targets)
    assert metrics.pop("num-examples") == number
    assert metrics.pop("loss") == pytest.approx(loss, rel=1e-5)
    assert metrics == ({} if name == "numbers" else {"accuracy": pytest.approx(accuracy)})


def test_a_likelihood_of_ones_own_needs_an_evaluation_of_ones_own():
    numbers = torch.zeros(4, 1)
    task = LocalTask(
        new_model(), (numbers, numbers), test_samples=(numbers, numbers), likelihood=nn.L1Loss()
    )
    with pytest.raises(ValueError, match=r"likelihood by its name .* got L1Loss; use fraction"):
        send("evaluate", task)


def test_training_is_plain_sgd_over_the_batches():
    inputs, targets = samples(0)
    model, by_hand = new_model(), new_model()
    batches = [(inputs[:5], targets[:5]), (inputs[5:], targets[5:])]
    loss = train(model, batches, torch.optim.SGD(model.parameters(), lr=0.3), epochs=2)
    losses = []
    for epoch in range(2):
        for x, y in batches:
            batch_loss = nn.functional.cross_entropy(by_hand(x), y)
            gradients = torch.autograd.grad(batch_loss, by_hand.parameters())
            with torch.no_grad():
                for parameter, gradient in zip(by_hand.parameters(), gradients, strict=True):
                    parameter -= 0.3 * gradient
            losses += [batch_loss.item() * len(x)] * epoch
    for a, b in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert loss == pytest.approx(sum(losses) / len(inputs))


class Returns(nn.Module):
    """A loss of one's own, from the mean cross-entropy."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, logits, targets):
        return self.change(nn.functional.cross_entropy(logits, targets))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda loss: loss.expand(5),
            r"got shape \(5,\) and requires_grad=True; reduce it by .mean",
        ),
        (lambda loss: loss.reshape(1), r"got shape \(1,\) and requires_grad=True"),
        (lambda loss: loss.detach(), r"got shape \(\) and requires_grad=False; compute it from"),
        (lambda loss: loss.item(), "got float; return such a tensor"),
        (lambda loss: None, "got NoneType"),
        (lambda loss: loss * math.nan, "expected a finite loss of the first batch, got nan"),
        (lambda loss: loss / 0, "got inf; look for logarithms of 0"),
    ],
)
def test_a_loss_that_cannot_be_trained_by_is_named_before_a_step(change, says):
    model = new_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=rf"^client\.loss \(Returns\): .*{says}") as told:
        train(model, [samples(0)], optimizer, criterion=Returns(change))
    assert "\n" not in str(told.value)
    assert torch.equal(model.weight, new_model().weight)


def test_a_training_that_diverges_in_a_round_is_no_fault_of_the_loss():
    model = new_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e38)
    assert not math.isfinite(train(model, [samples(0)] * 3, optimizer, epochs=3))


def test_batches_hold_every_sample_once_and_are_reshuffled():
    inputs = torch.arange(10).unsqueeze(1)
    batches = InMemoryBatches(inputs, inputs[:, 0], 4, torch.Generator().manual_seed(0))
    first, second = ([int(i) for x, _ in batches for i in x] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    ordered = InMemoryBatches(inputs, inputs[:, 0], 4)
    assert [len(x) for x, _ in ordered] == [4, 4, 2]
    assert [int(i) for x, _ in ordered for i in x] == list(range(10))


@pytest.mark.parametrize("mu", [0.0, 0.7])
def test_fedprox_term_is_the_squared_norm_recomputed_at_each_step(mu):
    inputs, targets = samples(0)
    model, by_autograd = new_model().double(), new_model().double()
    inputs = inputs.double()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, by_autograd)]
    attach_proximal_term(optimizers[0], model, mu)
    start = [p.detach().clone() for p in by_autograd.parameters()]
    for _ in range(6):
        for m, optimizer in zip((model, by_autograd), optimizers, strict=True):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(m(inputs), targets)
            if m is by_autograd:
                weights = torch.cat([p.flatten() for p in m.parameters()])
                anchor = torch.cat([p.flatten() for p in start])
                loss = loss + mu / 2 * torch.linalg.vector_norm(weights - anchor) ** 2
            loss.backward()
            optimizer.step()
    for a, b in zip(model.parameters(), by_autograd.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def pulled_back(maximize=False, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights after steps with FedProx's term, and as worked out by hand."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1, bias=False).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, maximize=maximize, **options)
    attach_proximal_term(optimizer, model, 0.7)
    start = model.weight.detach().clone()
    expected = start.clone()
    for _ in range(20):
        optimizer.zero_grad()
        model.weight.sin().sum().backward()
        optimizer.step()
        downhill = -expected.cos() if maximize else expected.cos()
        expected = expected - 0.1 * (downhill + 0.7 * (expected - start))
    return model.weight.detach(), expected


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}])
def test_fedprox_pulls_back_whichever_way_the_optimizer_goes(maximize, options):
    torch.testing.assert_close(*pulled_back(maximize, **options))


def test_fedprox_leaves_what_is_frozen_and_what_the_optimizer_does_not_hold():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    held = [*model[0].parameters(), *model[1].parameters()]
    optimizer = torch.optim.SGD(held, lr=0.1)
    attach_proximal_term(optimizer, model, 0.7)
    model[1].requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    moved = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    same = [torch.equal(p, m) for p, m in zip(model.parameters(), moved, strict=True)]
    assert same == [False, False, True, True, True, True]
    assert all(p.grad is None for p in [*model[1].parameters(), *model[2].parameters()])


def test_fedprox_pulls_every_row_of_a_sparse_gradient():
    torch.manual_seed(0)
    model = nn.Embedding(5, 2, sparse=True).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach_proximal_term(optimizer, model, 0.7)
    start = model.weight.detach().clone()
    expected = start.clone()
    for row in (1, 1, 3):
        optimizer.zero_grad()
        model(torch.tensor([row])).sum().backward()
        optimizer.step()
        step = 0.7 * (expected - start)
        step[row] += 1
        expected = expected - 0.1 * step
    torch.testing.assert_close(model.weight.detach(), expected)
    with pytest.raises(TypeError, match=r"SparseAdam for weight.*take SGD or Adagrad"):
        attach_proximal_term(torch.optim.SparseAdam(model.parameters()), model, 0.7)


def test_fedprox_pulls_complex_weights_as_two_real_ones():
    start = torch.tensor([1 + 2j, -0.5 + 1j], dtype=torch.complex128)
    model = nn.Module()
    model.weight = nn.Parameter(start.clone())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach_proximal_term(optimizer, model, 0.7)
    expected, anchor = torch.view_as_real(start).clone(), torch.view_as_real(start)
    for _ in range(5):
        optimizer.zero_grad()
        (model.weight.abs() ** 2).sum().backward()
        optimizer.step()
        expected = expected - 0.1 * (2 * expected + 0.7 * (expected - anchor))
    torch.testing.assert_close(torch.view_as_real(model.weight.detach()), expected)


@pytest.mark.parametrize("fused", [False, True])
def test_gradient_scaling_does_not_scale_fedproxs_term(fused):
    results = []
    for scaled in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
        attach_proximal_term(optimizer, model, 0.7)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(model.weight.sin().sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        results.append(model.weight.detach().clone())
    torch.testing.assert_close(*results)


def test_fedprox_refuses_what_would_erase_its_term():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach_proximal_term(optimizer, model, 0.7)
    with pytest.raises(RuntimeError, match="without a closure while FedProx's term is attached"):
        optimizer.step(lambda: 0.0)
    with pytest.raises(TypeError, match="one gradient per step, got LBFGS"):
        attach_proximal_term(torch.optim.LBFGS(model.parameters()), model, 0.7)


@pytest.mark.parametrize("mu", [-1.0, math.nan, math.inf])
def test_mu_must_be_finite_and_not_negative(mu):
    model = new_model()
    with pytest.raises(ValueError, match="proximal-mu must be finite and >= 0"):
        attach_proximal_term(torch.optim.SGD(model.parameters(), lr=0.1), model, mu)


def test_evaluation_counts_and_leaves_the_mode():
    inputs, targets = samples(0)
    model = new_model().train()
    loss, accuracy, number = evaluate(model, [(inputs[:5], targets[:5]), (inputs[5:], targets[5:])])
    assert number == len(inputs)
    assert accuracy == pytest.approx((model(inputs).argmax(1) == targets).double().mean().item())
    assert loss == pytest.approx(nn.functional.cross_entropy(model(inputs), targets).item())
    assert model.training


def test_no_samples_are_an_error():
    model = new_model()
    with pytest.raises(ValueError, match="expected training samples, got none"):
        train(model, [], torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="expected samples to evaluate on, got none"):
        evaluate(model, [])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs must be an integer >= 1, got 0"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1"),
        ({"optimizer": "lion"}, "optimizer: expected one of .*AdamW.*, got 'lion'"),
        ({"lr": math.nan}, "lr must be > 0 and finite"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\)"),
        ({"weight_decay": -1}, "weight_decay must be >= 0"),
        ({"penalty_mode": "both"}, "penalty_mode must be gradient or proximal"),
        ({"fisher_samples": 0}, "fisher_samples must be an integer >= 1, auto or all, got 0"),
        (
            {"fisher_samples": "some"},
            "integer >= 1, auto or all, got 'some'",
        ),
        ({"fisher_kind": "batch"}, "fisher_kind must be empirical, exact, sampled or signed"),
        ({"num_threads": 0}, "num_threads must be an integer >= 1"),
        ({"lr": "fast"}, "lr must be > 0 and finite, got 'fast'"),
        ({"epochs": 1.5}, "epochs must be an integer >= 1, got 1.5"),
        ({"device": "abacus"}, "device must be auto or a device that torch knows, got 'abacus'"),
        ({"epochs": 0, "lr": 0}, "client.epochs must be .*; client.lr must be"),
    ],
)
def test_settings_out_of_range_are_all_named(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**settings)


def test_optimizers():
    model = new_model()
    sgd = TrainingSettings(lr=0.3, momentum=0.5, weight_decay=0.1).make_optimizer(model)
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["lr"], sgd.defaults["momentum"]) == (0.3, 0.5)
    adam = TrainingSettings(optimizer="adam", lr=0.01).make_optimizer(model)
    assert isinstance(adam, torch.optim.Adam)


def test_the_device_is_chosen_by_itself():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert TrainingSettings().make_device().type == expected
    assert TrainingSettings(device="cpu").make_device().type == "cpu"


@pytest.mark.parametrize("device", ["cuda:99", "meta", "privateuseone"])
def test_a_device_that_the_machine_does_not_have_is_told_in_one_line(device):
    with pytest.raises(
        ValueError, match=f"client.device={device}: torch has no .*use auto"
    ) as told:
        TrainingSettings(device=device).make_device()
    assert "\n" not in str(told.value)


# ---- the ready-made ClientApp


def send(
    message_type: str,
    task: LocalTask,
    server_round: int = 1,
    partition: int = 3,
    arrays: ArrayRecord | None = None,
) -> Message:
    app = client_app(lambda message, context: task)
    content = RecordDict(
        {
            "arrays": arrays or ArrayRecord(new_model(9).state_dict()),
            "config": ConfigRecord({"server-round": server_round}),
        }
    )
    with task_identity(run_id=1, node_id=1):
        message = Message(content, dst_node_id=5, message_type=message_type)
    node = {"partition-id": partition, "send-errors": True}
    return app(message, Context(1, 5, node, RecordDict(), {}))


def test_training_starts_from_the_servers_weights_and_reports():
    inputs, targets = samples(0)
    settings = TrainingSettings(epochs=2, batch_size=5, lr=0.1)
    reply = send("train", LocalTask(new_model(), (inputs, targets), settings=settings))
    metrics = reply.content["metrics"]
    assert metrics["num-examples"] == len(inputs)
    assert metrics["train-loss"] > 0
    assert not torch.equal(
        reply.content["arrays"].to_torch_state_dict()["weight"], new_model(9).weight
    )


@pytest.mark.parametrize("message_type", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"weight": torch.zeros(CLASSES, FEATURES)}, "'bias' is missing in the server's weights"),
        ({"weight": torch.zeros(2, 2), "bias": torch.zeros(CLASSES)}, r"'weight'.*\(2, 2\)"),
    ],
)
def test_weights_of_another_model_are_told_in_one_line(message_type, arrays, message):
    task = LocalTask(new_model(), samples(0), test_samples=samples(1))
    with pytest.raises(ValueError, match=message) as told:
        send(message_type, task, arrays=ArrayRecord(arrays))
    assert "\n" not in str(told.value)


def test_seed_client_and_round_decide_the_order_and_nothing_else_does():
    model = nn.Sequential(nn.Linear(FEATURES, 8), nn.Dropout(0.5), nn.Linear(8, CLASSES))
    arrays = ArrayRecord(model.state_dict())

    def weights(seed=0, server_round=1, partition=3) -> torch.Tensor:
        task = LocalTask(model, samples(0), settings=TrainingSettings(epochs=2), seed=seed)
        reply = send("train", task, server_round, partition, arrays)
        return reply.content["arrays"].to_torch_state_dict()["0.weight"]

    first = weights()
    torch.manual_seed(1234)  # whatever happened in the process before
    state = torch.get_rng_state()
    assert torch.equal(weights(), first)
    assert torch.equal(torch.get_rng_state(), state)
    for change in ({"seed": 1}, {"server_round": 2}, {"partition": 4}):
        assert not torch.equal(weights(**change), first)


def test_threads_are_those_of_the_settings_and_afterwards_as_before():
    before = torch.get_num_threads()
    seen = []

    class Spy(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            return super().forward(x)

    send("train", LocalTask(Spy(FEATURES, CLASSES), samples(0)))
    assert set(seen) == {1}
    assert torch.get_num_threads() == before


def test_evaluation_on_the_client():
    task = LocalTask(new_model(), samples(0), test_samples=samples(1))
    metrics = send("evaluate", task).content["metrics"]
    inputs, targets = samples(1)
    expected = (new_model(9)(inputs).argmax(1) == targets).double().mean().item()
    assert metrics["accuracy"] == pytest.approx(expected)
    with pytest.raises(ValueError, match="client 3 has no test samples"):
        send("evaluate", LocalTask(new_model(), samples(0)))


def test_a_client_with_an_empty_shard_says_so():
    empty = torch.empty(0, FEATURES), torch.empty(0, dtype=torch.long)
    with pytest.raises(ValueError, match="client 3 has no training samples"):
        send("train", LocalTask(new_model(), empty))


def test_the_client_tells_its_stable_id():
    reply = send("query.client_id", LocalTask(new_model(), samples(0)))
    assert reply.content["fedcurv"]["client-id"] == "3"
