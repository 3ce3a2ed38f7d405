"""The signed kind: the exact one on average, by one backward pass."""

import math

import pytest
import torch
from torch import nn

from fedcurv import fisher_diagonal
from fedcurv.categories import signed
from fedcurv.likelihoods import Categorical, categorical
from tests.oracles import fisher as oracle

DOUBLE = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def fisher_of_logits(logits):
    """Return diag(p) − p pᵀ."""
    p = logits.softmax(-1)
    return torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)


def all_signs(logits):
    """Return every v that there can be."""
    choices = logits.shape[-1] - 1
    found = {}
    for seed in range(40 * 2**choices):
        v = signed(categorical, logits[None], torch.zeros(1, dtype=torch.long), seeded(seed))[0]
        found.setdefault(tuple(round(float(x), 12) for x in v), v)
    return torch.stack(list(found.values()))


@pytest.mark.parametrize(
    "logits", [[0.3, -0.2], [1.0, 0.0, -2.0], [0.0, 5.0, 4.0, -3.0], [0.0, 0.0, 0.0]]
)
def test_the_mean_square_over_all_signs_is_the_fisher_matrix_of_the_logits(logits):
    logits = torch.tensor(logits, dtype=DOUBLE)
    vs = all_signs(logits)
    assert len(vs) == 2 ** (len(logits) - 1)
    mean = (vs.unsqueeze(-1) * vs.unsqueeze(-2)).mean(0)
    torch.testing.assert_close(mean, fisher_of_logits(logits), rtol=1e-12, atol=1e-14)


def classifier(classes=5, scale=1.0, samples=6):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, classes)).to(DOUBLE)
    with torch.no_grad():
        model[2].weight.mul_(scale)
    return model, torch.randn(samples, 3, dtype=DOUBLE)


def many_times(model, x, targets, times, **options):
    """Return the mean and the deviation of one estimate, by parameter."""
    results = [
        fisher_diagonal(model, [(x, targets)], generator=seeded(seed), self_check=False, **options)
        for seed in range(times)
    ]
    stacked = {name: torch.stack([one[name] for one in results]) for name in results[0]}
    return {n: s.mean(0) for n, s in stacked.items()}, {n: s.std(0) for n, s in stacked.items()}


def test_it_is_the_exact_kind_on_average():
    model, x = classifier()
    expected, times = oracle.exact(model, x), 600
    means, deviations = many_times(model, x, torch.zeros(6).long(), times, kind="signed")
    for name, one in expected.items():
        assert bool(((means[name] - one).abs() < 4.5 * deviations[name] / math.sqrt(times)).all())
        assert bool((deviations[name] / math.sqrt(times) < 0.06 * one).all())


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_of_one_sample_it_deviates_by_no_more_than_the_root_of_two(scale):
    """Var (Σ_k s_k g_k)² = 2 ((Σ_k g_k²)² − Σ_k g_k⁴)."""
    model, x = classifier(scale=scale, samples=1)
    expected = oracle.exact(model, x)
    _, deviations = many_times(model, x, torch.zeros(1).long(), 400, kind="signed")
    for name, one in expected.items():
        assert bool((deviations[name] <= 1.1 * math.sqrt(2) * one).all())


def test_it_varies_far_less_than_the_sampled_kind_where_the_model_is_sure():
    """There the labels that are drawn hardly ever differ, and then by much."""
    model, x = classifier(scale=30.0)
    labels = torch.zeros(6).long()
    _, of_signs = many_times(model, x, labels, 200, kind="signed")
    _, of_labels = many_times(model, x, labels, 200, kind="sampled")
    assert float(of_signs["0.weight"].norm() / of_labels["0.weight"].norm()) < 0.3


def test_of_two_classes_it_is_the_exact_kind():
    model, x = classifier(classes=2)
    got = fisher_diagonal(model, [(x, torch.zeros(6).long())], kind="signed")
    for name, one in oracle.exact(model, x).items():
        torch.testing.assert_close(got[name], one, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("classes_last", [True, False])
def test_positions_have_signs_of_their_own(classes_last):
    """So that the products of two positions vanish on average."""
    torch.manual_seed(0)

    class Tagger(nn.Linear):
        def forward(self, x):
            logits = super().forward(x + x.mean(1, keepdim=True))
            return logits if classes_last else logits.movedim(-1, 1)

    model, x = Tagger(2, 3).to(DOUBLE), torch.randn(3, 4, 2, dtype=DOUBLE)
    labels = torch.randint(0, 3, (3, 4))
    labels[0, 1] = -100
    expected = fisher_diagonal(model, [(x, labels)], kind="exact")
    times = 800
    means, deviations = many_times(model, x, labels, times, kind="signed")
    for name, one in expected.items():
        assert bool(((means[name] - one).abs() < 4.5 * deviations[name] / math.sqrt(times)).all())


@pytest.mark.parametrize("likelihood", ["multilabel", "gaussian", "bernoulli"])
def test_the_other_likelihoods_have_it_too(likelihood):
    outputs = 1 if likelihood == "bernoulli" else 4
    model, x = classifier(classes=outputs)
    targets = torch.zeros(6, outputs, dtype=DOUBLE)
    options = {"likelihood": likelihood}
    expected = fisher_diagonal(model, [(x, targets)], kind="exact", **options)
    times = 600
    means, deviations = many_times(model, x, targets, times, kind="signed", **options)
    for name, one in expected.items():
        if likelihood == "bernoulli":  # of one output the sign is of no account
            torch.testing.assert_close(means[name], one)
        else:
            error = (means[name] - one).abs()
            assert bool((error <= 4.5 * deviations[name] / math.sqrt(times) + 1e-12).all())


def test_weights_and_ignored_labels_count_as_in_the_exact_kind():
    model, x = classifier(classes=2)
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0], dtype=DOUBLE))
    labels = torch.tensor([0, 1, -100, 1, 0, 0])
    one, other = (
        fisher_diagonal(model, [(x, labels)], kind=kind, likelihood=criterion)
        for kind in ("signed", "exact")
    )
    for name in one:
        torch.testing.assert_close(one[name], other[name])


def test_logits_far_apart_equal_or_excluded_lose_nothing():
    inf = math.inf
    rows = [
        [90.0, 0.0, -90.0],
        [0.0, 0.0, -1e9],
        [-inf, 0.0, 1.0],
        [3.0, 3.0, 3.0],
        [-inf, -inf, 0.0],
    ]
    logits = torch.tensor(rows)
    for seed in range(8):
        v = signed(categorical, logits, torch.zeros(5, dtype=torch.long), seeded(seed))
        assert bool(v.isfinite().all())
        # the most probable class is squared as it is, all others together
        sure = math.exp(-45)
        torch.testing.assert_close(v[0, 0].abs(), torch.tensor(sure), rtol=1e-5, atol=0)
        assert not v[4].any()
    broken = torch.tensor([[math.nan, 0.0, 1.0]])
    assert not signed(categorical, broken, torch.zeros(1, dtype=torch.long), None).isfinite().any()


def test_the_generator_or_the_global_seed_decides_and_neither_is_disturbed():
    model, x = classifier()
    batches = [(x, torch.zeros(6).long())]
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = fisher_diagonal(model, batches, kind="signed")
    assert torch.equal(torch.get_rng_state(), before)
    same = fisher_diagonal(model, batches, kind="signed", generator=seeded(3))
    other = fisher_diagonal(model, batches, kind="signed", generator=seeded(4))
    assert torch.equal(first["0.weight"], same["0.weight"])
    assert not torch.equal(first["0.weight"], other["0.weight"])


def test_signed_needs_a_likelihood_with_a_known_expectation():
    model, x = classifier()
    with pytest.raises(ValueError, match="kind='signed' needs one of the likelihoods"):
        fisher_diagonal(
            model, [(x, torch.zeros(6).long())], kind="signed", likelihood=lambda z, y: z.sum(1)
        )


def test_smoothing_is_of_no_account_as_in_the_exact_kind():
    logits = torch.randn(4, 3, generator=seeded(), dtype=DOUBLE)
    labels = torch.zeros(4, dtype=torch.long)
    smooth = Categorical(smoothing=0.2)
    assert torch.equal(
        signed(smooth, logits, labels, seeded()), signed(categorical, logits, labels, seeded())
    )
