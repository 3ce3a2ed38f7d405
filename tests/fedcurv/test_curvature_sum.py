"""Running sums against sums in fractions, which know no rounding."""

from fractions import Fraction

import pytest
import torch

from fedcurv import Curvature
from fedcurv.curvature_sum import PARTS_AT_ONCE, CurvatureSum

U = Fraction(1, 2**24)
NUMBERS = 40


def parts_of(number: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return P_j and θ̂_j in float32, of scales that differ by up to twelve powers of ten."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(number):
        scale = 10.0 ** float(torch.randint(-8, 5, (), generator=generator))
        precision = scale * torch.rand(NUMBERS, generator=generator)
        found.append((precision, torch.randn(NUMBERS, generator=generator)))
    return found


def fractions(tensor: torch.Tensor) -> list[Fraction]:
    return [Fraction(value) for value in tensor.tolist()]


def sum_of(parts, *, as_products: bool) -> CurvatureSum:
    running = CurvatureSum()
    for precision, solution in parts:
        if as_products:
            running.add_at({"w": solution}, {"w": precision})
        else:
            running.add(Curvature({"w": precision}, {"w": precision * solution}))
    return running


@pytest.mark.parametrize("as_products", [True, False])
@pytest.mark.parametrize(
    "number", [1, 2, PARTS_AT_ONCE - 1, PARTS_AT_ONCE, PARTS_AT_ONCE + 1, 3 * PARTS_AT_ONCE + 5]
)
def test_the_error_is_within_what_is_said(number, as_products):
    parts = parts_of(number, seed=number)
    got = sum_of(parts, as_products=as_products).total(torch.float64)
    terms = [(fractions(precision), fractions(solution)) for precision, solution in parts]
    # of second order in u, and of float64
    more = Fraction(1 + 1e-5)
    for i in range(NUMBERS):
        exact_p = sum(p[i] for p, _ in terms)
        exact_q = sum(p[i] * x[i] for p, x in terms)
        size = sum(abs(p[i] * x[i]) for p, x in terms)
        error_p = abs(Fraction(got.precision["w"][i].item()) - exact_p)
        error_q = abs(Fraction(got.weighted_parameters["w"][i].item()) - exact_q)
        assert error_p <= (PARTS_AT_ONCE - 1) * U * more * exact_p
        assert error_q <= PARTS_AT_ONCE * U * more * size


def test_many_parts_are_not_added_up_in_float32():
    """There a sum of 2^24 stands still: one to be added is half a unit of its last place."""
    running = CurvatureSum()
    for value in (2.0**24, *[1.0] * 40):
        one = {"w": torch.tensor([value])}
        running.add(Curvature(one, one))
    assert running.total(torch.float64).precision["w"].item() >= 2.0**24 + 40 - PARTS_AT_ONCE


@pytest.mark.parametrize("seed", range(20))
def test_no_sum_is_less_than_one_of_its_parts(seed):
    parts = parts_of(3 * PARTS_AT_ONCE + 1, seed)
    total = sum_of(parts, as_products=True).total(torch.float32)
    for precision, solution in parts:
        own = Curvature({"w": precision}, {"w": precision * solution})
        assert bool(((total - own).precision["w"] >= 0).all())


@pytest.mark.parametrize("place", [0, 1, PARTS_AT_ONCE - 1, PARTS_AT_ONCE])
def test_what_is_added_to_zeros_is_exact(place):
    nothing = torch.zeros(NUMBERS)
    ((precision, solution),) = parts_of(1, seed=place)
    parts = [(nothing, torch.ones(NUMBERS))] * (2 * PARTS_AT_ONCE)
    parts[place] = precision, solution
    total = sum_of(parts, as_products=True).total(torch.float32)
    assert torch.equal(total.precision["w"], precision)
    assert torch.equal(total.weighted_parameters["w"], precision * solution)


def test_parts_in_float64_are_added_in_float64_and_changed_by_nothing():
    parts = [(p.double(), x.double()) for p, x in parts_of(20, seed=1)]
    before = [p.clone() for p, _ in parts]
    running = sum_of(parts, as_products=True)
    total = running.total(torch.float64)
    expected_p = torch.zeros(NUMBERS, dtype=torch.float64)
    expected_q = torch.zeros(NUMBERS, dtype=torch.float64)
    for precision, solution in parts:
        expected_p, expected_q = expected_p + precision, expected_q + precision * solution
    assert torch.equal(total.precision["w"], expected_p)
    assert torch.equal(total.weighted_parameters["w"], expected_q)
    assert all(torch.equal(p, b) for (p, _), b in zip(parts, before, strict=True))


def test_a_sum_goes_on_after_it_was_asked_for():
    parts = parts_of(5, seed=2)
    running = sum_of(parts[:3], as_products=True)
    assert running.total(torch.float32).precision["w"].dtype == torch.float32
    for precision, solution in parts[3:]:
        running.add_at({"w": solution}, {"w": precision})
    expected = sum(p.double() for p, _ in parts)
    torch.testing.assert_close(running.total(torch.float64).precision["w"], expected)


def test_parts_must_fit():
    with pytest.raises(ValueError, match="expected at least one part"):
        CurvatureSum().total(torch.float32)
    running = sum_of(parts_of(1, seed=0), as_products=False)
    other = {"v": torch.ones(NUMBERS)}
    with pytest.raises(ValueError, match="'v' is not in the sum"):
        running.add(Curvature(other, other))
    with pytest.raises(ValueError, match="'w' is missing in the solution"):
        running.add_at(other, {"w": torch.ones(NUMBERS)})
