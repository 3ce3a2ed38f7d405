"""Exact and sampled kinds for several predictions a sample; criteria of torch as likelihoods."""

import itertools
import math

import pytest
import torch
from torch import nn

from fedcurv import fisher_diagonal
from fedcurv.losses import CrossEntropy, GeneralizedCrossEntropy
from tests.zoo import MeanOverSequence

SAMPLES, STEPS, CLASSES = 4, 4, 3
DOUBLE = torch.float64


class Tagger(nn.Module):
    """A label for each step; classes along the second or the last axis."""

    def __init__(self, classes_last: bool) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(2, 4), nn.Linear(4, CLASSES)
        self.factor = nn.Parameter(torch.rand(CLASSES))  # without a closed form
        self.classes_last = classes_last

    def forward(self, x):
        logits = self.head(self.body(x).tanh() + self.body(x).mean(1, keepdim=True)) * self.factor
        return logits if self.classes_last else logits.movedim(-1, 1)


def problem(classes_last=True):
    torch.manual_seed(0)
    model = Tagger(classes_last).to(DOUBLE)
    x = torch.randn(SAMPLES, STEPS, 2, dtype=DOUBLE)
    labels = torch.randint(0, CLASSES, (SAMPLES, STEPS))
    labels[0, 1] = labels[2, 0] = labels[2, 2] = -100
    return model, x, labels


def squares(model, loss):
    gradients = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    return [gradient.square() for gradient in gradients]


def by_enumeration(model, x, labels):
    """Return Σ over all assignments of classes to a sample's known positions, by probability."""
    total = [torch.zeros_like(p) for p in model.parameters()]
    for x_n, y_n in zip(x, labels, strict=True):
        logits = model(x_n[None])
        log_p = (logits if model.classes_last else logits.movedim(1, -1))[0].log_softmax(-1)
        known = [t for t in range(STEPS) if y_n[t] != -100]
        for assigned in itertools.product(range(CLASSES), repeat=len(known)):
            log_joint = sum(log_p[t, c] for t, c in zip(known, assigned, strict=True))
            for sums, square in zip(total, squares(model, log_joint), strict=True):
                sums += log_joint.exp().detach() * square / len(x)
    return dict(zip([name for name, _ in model.named_parameters()], total, strict=True))


def assert_same(got, expected, rtol=1e-5):
    for name, one in expected.items():
        torch.testing.assert_close(got[name], one, rtol=rtol, atol=1e-12)
        assert one.any()


@pytest.mark.parametrize("classes_last", [True, False])
def test_the_exact_kind_is_the_expectation_over_all_assignments_of_labels(classes_last):
    model, x, labels = problem(classes_last)
    got = fisher_diagonal(model, [(x, labels)], kind="exact")
    assert_same(got, by_enumeration(model, x, labels))


@pytest.mark.parametrize("classes_last", [True, False])
def test_the_sampled_kind_has_it_as_its_mean(classes_last):
    model, x, labels = problem(classes_last)
    generator = torch.Generator().manual_seed(0)
    times = 4000
    batches = [(x.repeat(times, 1, 1), labels.repeat(times, 1))]
    got = fisher_diagonal(model, batches, kind="sampled", generator=generator)
    for name, expected in by_enumeration(model, x, labels).items():
        error = (got[name] - expected).norm() / expected.norm()
        assert error < 10 / math.sqrt(SAMPLES * times), (name, error)


def test_positions_in_more_than_one_axis():
    torch.manual_seed(0)
    model = nn.Conv2d(2, CLASSES, 3, padding=1).to(DOUBLE)
    x, labels = torch.randn(2, 2, 2, 3, dtype=DOUBLE), torch.randint(0, CLASSES, (2, 2, 3))
    got = fisher_diagonal(model, [(x, labels)], kind="exact")
    total = [torch.zeros_like(p) for p in model.parameters()]
    for n, i, j, c in itertools.product(range(2), range(2), range(3), range(CLASSES)):
        log_p = model(x[n : n + 1])[0, :, i, j].log_softmax(0)[c]
        for sums, square in zip(total, squares(model, log_p), strict=True):
            sums += log_p.exp().detach() * square / 2
    assert_same(got, dict(zip(["weight", "bias"], total, strict=True)))


def test_many_backward_passes_are_told_with_their_number(caplog):
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 60))
    tokens, labels = torch.zeros(1, 20).long(), torch.zeros(1, 20).long()
    fisher_diagonal(model, [(tokens, labels)], kind="exact")
    assert "takes 1180 backward passes for a batch, 59 for each of 20 positions" in caplog.text


def test_an_ignored_label_counts_nothing_in_any_kind():
    torch.manual_seed(0)
    model, x = nn.Linear(2, CLASSES).to(DOUBLE), torch.randn(4, 2, dtype=DOUBLE)
    labels = torch.tensor([0, -100, 2, -100])
    for kind in ("empirical", "exact"):
        got = fisher_diagonal(model, [(x, labels)], kind=kind)
        known = fisher_diagonal(model, [(x[::2], labels[::2])], kind=kind)
        assert_same(got, {name: one / 2 for name, one in known.items()})


def test_a_label_in_eight_bits_is_not_taken_for_the_ignored_one():
    """−100 is 156 there."""
    torch.manual_seed(0)
    model, x = nn.Linear(2, 160).to(DOUBLE), torch.randn(2, 2, dtype=DOUBLE)
    few = torch.tensor([156, 3], dtype=torch.uint8)
    for kind in ("empirical", "exact"):
        got = fisher_diagonal(model, [(x, few)], kind=kind)
        assert_same(got, fisher_diagonal(model, [(x, few.long())], kind=kind), rtol=0)


def test_sequences_of_one_step_may_have_their_classes_last():
    model, x, _ = problem()
    labels = torch.tensor([[0], [2], [1], [-100]])
    for kind in ("empirical", "exact"):
        got = fisher_diagonal(model, [(x[:, :1], labels)], kind=kind)
        model.classes_last = False
        assert_same(got, fisher_diagonal(model, [(x[:, :1], labels)], kind=kind))
        model.classes_last = True


@pytest.mark.parametrize("kind", ["empirical", "exact", "sampled"])
def test_probabilities_by_position_say_where_the_classes_are(kind):
    model, x, _ = problem(classes_last=True)
    shares = torch.rand(SAMPLES, STEPS, CLASSES, dtype=DOUBLE).softmax(-1)
    with pytest.raises(ValueError, match="class probabilities, >= 0 with sum 1 over axis 1"):
        fisher_diagonal(model, [(x, shares)], kind=kind)
    model.classes_last = False
    assert any(f.any() for f in fisher_diagonal(model, [(x, shares.mT)], kind=kind).values())


def test_what_is_no_label_of_a_class_says_nothing_of_what_is_ignored():
    model, x, _ = classifier()
    shares = torch.full((6, CLASSES), 1 / CLASSES, dtype=DOUBLE)
    criterion = nn.CrossEntropyLoss(ignore_index=0)
    got = fisher_diagonal(model, [(x, shares)], kind="exact", likelihood=criterion)
    assert_same(got, fisher_diagonal(model, [(x, shares)], kind="exact"))


@pytest.mark.parametrize(
    ("likelihood", "bad"),
    [
        ("categorical", math.nan),
        ("categorical", math.inf),
        ("multilabel", math.nan),
        ("gaussian", math.nan),
        ("gaussian", math.inf),
    ],
)
def test_the_exact_kind_refuses_outputs_that_are_not_finite(likelihood, bad):
    model, x, labels = classifier()
    with torch.no_grad():
        model[2].bias[1] = bad
    targets = labels if likelihood == "categorical" else torch.zeros(6, CLASSES, dtype=DOUBLE)
    with pytest.raises(ValueError, match="batch 0: expected finite losses and gradients"):
        fisher_diagonal(model, [(x, targets)], kind="exact", likelihood=likelihood)


def test_the_exact_kind_takes_classes_that_a_mask_excludes():
    class Masked(nn.Sequential):
        def forward(self, x):
            return super().forward(x).index_fill(1, torch.tensor([1]), -math.inf)

    model, x, _ = classifier()
    got = fisher_diagonal(Masked(*model), [(x, torch.zeros(6).long())], kind="exact")
    two = nn.Sequential(*model[:2], nn.Linear(4, 2)).to(DOUBLE)
    with torch.no_grad():
        two[2].weight.copy_(model[2].weight[::2])
        two[2].bias.copy_(model[2].bias[::2])
    assert_same(
        got,
        {"0.weight": fisher_diagonal(two, [(x, torch.zeros(6).long())], kind="exact")["0.weight"]},
    )


# ---- criteria of torch


def classifier():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, CLASSES)).to(DOUBLE)
    return model, torch.randn(6, 2, dtype=DOUBLE), torch.tensor([0, 1, 2, 1, 0, 2])


def by_sample(model, losses):
    """Return the mean of the losses' squared gradients."""
    total = [torch.zeros_like(p) for p in model.parameters()]
    for loss in losses:
        for sums, square in zip(total, squares(model, loss), strict=True):
            sums += square / len(losses)
    return dict(zip([name for name, _ in model.named_parameters()], total, strict=True))


@pytest.mark.parametrize("kind", ["empirical", "exact", "sampled"])
@pytest.mark.parametrize(
    ("criterion", "name", "targets"),
    [
        (nn.CrossEntropyLoss(), "categorical", torch.tensor([0, 1, 2, 1, 0, 2])),
        (CrossEntropy(), "categorical", torch.tensor([0, 1, 2, 1, 0, 2])),
        (nn.CrossEntropyLoss(reduction="sum"), "categorical", torch.tensor([0, 1, 2, 1, 0, 2])),
        (nn.CrossEntropyLoss(reduction="none"), "categorical", torch.tensor([0, 1, 2, 1, 0, 2])),
        (nn.MSELoss(), "gaussian", torch.rand(6, CLASSES, dtype=DOUBLE)),
        (nn.BCEWithLogitsLoss(), "multilabel", torch.rand(6, CLASSES, dtype=DOUBLE)),
    ],
)
def test_a_criterion_is_the_likelihood_that_it_stands_for(criterion, name, targets, kind):
    model, x, _ = classifier()
    results = [
        fisher_diagonal(
            model,
            [(x, targets)],
            kind=kind,
            likelihood=likelihood,
            generator=torch.Generator().manual_seed(1),
        )
        for likelihood in (criterion, name)
    ]
    for name, one in results[0].items():
        assert torch.equal(one, results[1][name])


def test_binary_cross_entropy_of_one_logit_is_bernoulli():
    torch.manual_seed(0)
    model, x = nn.Linear(2, 1).to(DOUBLE), torch.randn(6, 2, dtype=DOUBLE)
    targets = torch.rand(6, 1, dtype=DOUBLE)
    for kind in ("empirical", "exact"):
        got = fisher_diagonal(model, [(x, targets)], kind=kind, likelihood=nn.BCEWithLogitsLoss())
        expected = fisher_diagonal(model, [(x, targets)], kind=kind, likelihood="bernoulli")
        assert_same(got, expected)


@pytest.mark.parametrize("kind", ["empirical", "exact"])
def test_a_sample_counts_as_often_as_its_class_weighs(kind):
    model, x, labels = classifier()
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
    got = fisher_diagonal(model, [(x, labels)], kind=kind, likelihood=criterion)
    often = torch.cat([torch.full((int(y) + 1,), n) for n, y in enumerate(labels)])
    repeated = fisher_diagonal(model, [(x[often], labels[often])], kind=kind)
    assert_same(got, {name: one * len(often) / len(x) for name, one in repeated.items()})


def test_weights_by_position():
    model, x, labels = problem()
    weight = torch.tensor([1.0, 0.5, 4.0], dtype=DOUBLE)
    got = fisher_diagonal(
        model, [(x, labels)], kind="exact", likelihood=nn.CrossEntropyLoss(weight=weight)
    )
    total = [torch.zeros_like(p) for p in model.parameters()]
    for n, t, c in itertools.product(range(SAMPLES), range(STEPS), range(CLASSES)):
        if labels[n, t] != -100:
            log_p = model(x[n : n + 1])[0, t].log_softmax(0)[c]
            for sums, square in zip(total, squares(model, log_p), strict=True):
                sums += weight[labels[n, t]] * log_p.exp().detach() * square / SAMPLES
    assert_same(got, dict(zip([name for name, _ in model.named_parameters()], total, strict=True)))


@pytest.mark.parametrize("ignored", [-1, 1])
def test_the_criterions_own_ignored_label(ignored):
    model, x, labels = classifier()
    labels = torch.where(labels == 1, ignored, labels)
    criterion = nn.CrossEntropyLoss(ignore_index=ignored)
    for kind in ("empirical", "exact"):
        got = fisher_diagonal(model, [(x, labels)], kind=kind, likelihood=criterion)
        known = labels != ignored
        expected = fisher_diagonal(model, [(x[known], labels[known])], kind=kind)
        assert_same(got, {n: one * int(known.sum()) / len(x) for n, one in expected.items()})


def test_label_smoothing_changes_the_given_labels_and_not_the_expectation():
    model, x, labels = classifier()
    criterion = nn.CrossEntropyLoss(label_smoothing=0.2)
    losses = [criterion(model(x[n : n + 1]), labels[n : n + 1]) for n in range(len(x))]
    got = fisher_diagonal(model, [(x, labels)], likelihood=criterion)
    assert_same(got, by_sample(model, losses))
    exact = fisher_diagonal(model, [(x, labels)], kind="exact", likelihood=criterion)
    assert_same(exact, fisher_diagonal(model, [(x, labels)], kind="exact"))


def test_log_probabilities_are_logits():
    model, x, labels = classifier()
    with_log = nn.Sequential(*model, nn.LogSoftmax(1))
    for kind in ("empirical", "exact"):
        got = fisher_diagonal(with_log, [(x, labels)], kind=kind, likelihood=nn.NLLLoss())
        assert_same(got, fisher_diagonal(model, [(x, labels)], kind=kind))


def test_a_criterion_without_a_reduction_is_a_function():
    model, x, _ = classifier()
    targets = torch.rand(6, CLASSES, dtype=DOUBLE)

    class Halved(nn.Module):
        def forward(self, outputs, targets):
            return 0.5 * (outputs - targets).square().sum(1)

    got = fisher_diagonal(model, [(x, targets)], likelihood=Halved())
    assert_same(got, fisher_diagonal(model, [(x, targets)], likelihood="gaussian"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"likelihood": nn.BCELoss()}, "BCELoss takes probabilities, expected logits; .*\\.logit"),
        ({"likelihood": nn.HuberLoss()}, r"is a likelihood \(CrossEntropy.*got HuberLoss; give"),
        ({"likelihood": GeneralizedCrossEntropy()}, "got GeneralizedCrossEntropy; give that of"),
        (
            {"likelihood": nn.BCEWithLogitsLoss(pos_weight=torch.ones(3))},
            "BCEWithLogitsLoss with pos_weight is no likelihood",
        ),
        (
            {"likelihood": nn.CrossEntropyLoss(weight=torch.ones(2))},
            "a weight for each of 3 classes, got 2",
        ),
        (
            {"likelihood": nn.CrossEntropyLoss(weight=torch.tensor([1.0, -1.0, 2.0]))},
            r"a finite weight >= 0 for each class, got float32 \(3,\) from -1 to 2",
        ),
        (
            {"likelihood": nn.CrossEntropyLoss(weight=torch.ones(3, 3))},
            r"weight >= 0 for each class, got float32 \(3, 3\)",
        ),
        ({"likelihood": nn.CrossEntropyLoss}, r"got its class; give CrossEntropyLoss\(\) inst"),
        ({"likelihood": 3}, "a criterion of torch, or a function, got 3"),
        ({"likelihood": "huber"}, "a criterion of torch, or a function, got 'huber'"),
        (
            {"likelihood": nn.HuberLoss(reduction="none"), "kind": "exact"},
            "kind='exact' needs one of the likelihoods",
        ),
    ],
)
def test_what_is_no_likelihood_is_refused(options, message):
    model, x, labels = classifier()
    with pytest.raises(ValueError, match=message) as error:
        fisher_diagonal(model, [(x, labels)], **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["empirical", "exact", "sampled"])
def test_weights_of_classes_need_labels(kind):
    model, x, labels = classifier()
    targets = torch.full((6, CLASSES), 1 / CLASSES, dtype=DOUBLE)
    criterion = nn.CrossEntropyLoss(weight=torch.ones(CLASSES))
    with pytest.raises(ValueError, match="expected integer labels for a cross-entropy with"):
        fisher_diagonal(model, [(x, targets)], kind=kind, likelihood=criterion)
    with pytest.raises(ValueError, match="take their second axis away"):
        fisher_diagonal(model, [(x, labels[:, None])], kind=kind, likelihood=criterion)


def test_a_summary_of_a_sequence_has_one_position():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, CLASSES), MeanOverSequence()).to(DOUBLE)
    x = torch.randn(SAMPLES, STEPS, 2, dtype=DOUBLE)
    labels = torch.randint(0, CLASSES, (SAMPLES,))
    got = fisher_diagonal(model, [(x, labels)], kind="exact")
    total = [torch.zeros_like(p) for p in model.parameters()]
    for n, c in itertools.product(range(SAMPLES), range(CLASSES)):
        log_p = model(x[n : n + 1])[0].log_softmax(0)[c]
        for sums, square in zip(total, squares(model, log_p), strict=True):
            sums += log_p.exp().detach() * square / SAMPLES
    assert_same(got, dict(zip(["0.weight", "0.bias"], total, strict=True)))
