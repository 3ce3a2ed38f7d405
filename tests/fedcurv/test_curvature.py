import pytest
import torch
from torch import nn

from fedcurv import Curvature, fisher_diagonal


def curvature(seed: int, scale: float = 1.0) -> Curvature:
    generator = torch.Generator().manual_seed(seed)
    precision = scale * torch.rand(50, generator=generator)
    return Curvature({"w": precision}, {"w": precision * torch.randn(50, generator=generator)})


def test_information_is_precision_times_the_parameters():
    model = nn.Linear(2, 2)
    fisher = fisher_diagonal(model, [(torch.randn(4, 2), torch.tensor([0, 1, 1, 0]))])
    mine = Curvature.at(model, fisher)
    assert torch.equal(mine.precision["weight"], fisher["weight"])
    assert torch.equal(mine.weighted_parameters["weight"], fisher["weight"] * model.weight.detach())
    assert not mine.weighted_parameters["weight"].requires_grad


def test_a_model_that_trains_on_does_not_change_its_statistics():
    model = nn.Linear(2, 2)
    mine = Curvature.at(model, {"weight": torch.ones(2, 2), "bias": torch.ones(2)})
    before = mine.weighted_parameters["bias"].clone()
    with torch.no_grad():
        model.bias.add_(1)
    assert torch.equal(mine.weighted_parameters["bias"], before)


def test_subtracting_leaves_the_shared_sum_alone():
    parts = [curvature(seed) for seed in range(3)]
    total = Curvature.sum(parts)
    before = total.precision["w"].clone(), total.weighted_parameters["w"].clone()
    for own in parts:
        rest = total - own
        others = [p for p in parts if p is not own]
        torch.testing.assert_close(rest.precision["w"], sum(p.precision["w"] for p in others))
        torch.testing.assert_close(
            rest.weighted_parameters["w"], sum(p.weighted_parameters["w"] for p in others)
        )
    assert torch.equal(total.precision["w"], before[0])
    assert torch.equal(total.weighted_parameters["w"], before[1])


@pytest.mark.parametrize("seed", range(20))
def test_rounding_never_makes_a_difference_negative(seed):
    generator = torch.Generator().manual_seed(seed)
    scales = 10.0 ** torch.randint(-12, 6, (30,), generator=generator)
    parts = [curvature(1000 * seed + i, float(scale)) for i, scale in enumerate(scales)]
    exact = Curvature.sum(part.to(torch.float64) for part in parts).to(torch.float32)
    rounded = Curvature.sum(parts)
    for own in parts:
        assert bool(((exact - own).precision["w"] >= 0).all())
        assert bool(((rounded - own).precision["w"] >= 0).all())


def test_no_pull_remains_where_no_curvature_remains():
    own = Curvature({"w": torch.tensor([1.0, 1.0])}, {"w": torch.tensor([0.3, 0.3])})
    total = Curvature({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([0.3000001, 0.5])})
    rest = total - own
    assert rest.precision["w"].tolist() == [0.0, 1.0]
    assert rest.weighted_parameters["w"][0] == 0.0
    assert rest.weighted_parameters["w"][1] == pytest.approx(0.2)


def test_terms_that_are_not_in_the_sum_cannot_be_taken_off():
    with pytest.raises(ValueError, match="not in that sum, so subtract nothing"):
        curvature(0) - curvature(1, scale=10)


@pytest.mark.parametrize(
    ("precision", "weighted", "message"),
    [
        ([-1e-9, 1.0], [0.0, 0.0], "precision of 'w' is negative"),
        ([float("nan"), 1.0], [0.0, 0.0], "precision of 'w' is not finite"),
        ([1.0, 1.0], [float("inf"), 0.0], "weighted parameters of 'w' is not finite"),
    ],
)
def test_check_names_what_is_wrong(precision, weighted, message):
    with pytest.raises(ValueError, match=message):
        Curvature({"w": torch.tensor(precision)}, {"w": torch.tensor(weighted)}).check()


def test_names_and_shapes_must_fit():
    w = torch.ones(2)
    with pytest.raises(ValueError, match="'w' is missing in weighted parameters"):
        Curvature({"w": w}, {})
    with pytest.raises(ValueError, match=r"'w' has shape \(2,\) in precision and \(1,\)"):
        Curvature({"w": w}, {"w": w[:1]})
    with pytest.raises(ValueError, match="'v' is not in the left-hand side"):
        Curvature({"w": w}, {"w": w}) + Curvature({"w": w, "v": w}, {"w": w, "v": w})
    with pytest.raises(ValueError, match="'bias' is missing in fisher"):
        Curvature.at(nn.Linear(1, 2), {"weight": torch.ones(2, 1)})


def test_moves_to_another_precision():
    assert curvature(0).to(torch.float64).precision["w"].dtype == torch.float64
    assert curvature(0).to(torch.device("cpu")).precision["w"].dtype == torch.float32
