"""Numbers in 4 or 8 bits, against a list of levels and a reader that takes one number at a time."""

import math

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcurv.strategies.wire import coded_arrays, codes
from fedcurv.strategies.wire.coded_arrays import (
    Bounds,
    is_coded,
    pack_coded,
    rounding,
    unpack_coded,
)
from tests.oracles import codes as oracle

BITS = (4, 8)
KINDS = ("precision", "distance")
LEVELS = {"precision": oracle.precision_levels, "distance": oracle.distance_levels}
# of one division and one product in float32
ROUNDING = 1e-6


@pytest.fixture(autouse=True, scope="module")
def small_tensors_have_codes_too():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coded_arrays, "_FEWEST_NUMBERS", 0)
        yield


def one(tensor: torch.Tensor, kind: str, bits: int, *who: object) -> Array:
    return pack_coded({"w": tensor}, kind, bits, rounding(*who))["w"]


def decoded(array: Array, kind: str) -> torch.Tensor:
    return unpack_coded(ArrayRecord({"w": array}), kind)["w"]


def wide(shape: tuple[int, ...], kind: str, seed: int = 0) -> torch.Tensor:
    """Numbers over some forty octaves, zeros among them."""
    generator = torch.Generator().manual_seed(seed)
    numbers = 2 ** (40 * torch.rand(shape, generator=generator) - 30)
    numbers *= torch.rand(shape, generator=generator) > 0.2
    if kind == "distance":
        numbers *= torch.randn(shape, generator=generator).sign()
    return numbers


def assert_between_neighbours(before: torch.Tensor, after: torch.Tensor, levels: list[float]):
    """Each number of a block became one of the two levels that it lies between."""
    scale = before.abs().max().item()
    for number, got in zip(before.tolist(), after.tolist(), strict=True):
        if scale == 0:
            assert got == 0
            continue
        low, high = oracle.neighbours(levels, number / scale)
        assert any(math.isclose(got, scale * x, rel_tol=ROUNDING) for x in (low, high)), number


def assert_read(got: torch.Tensor, expected: list[float], kind: str):
    """Bit for bit; a distance's levels are sevenths, which float32 rounds."""
    close = 0.0 if kind == "precision" else 2e-7
    np.testing.assert_allclose(got.numpy(), np.array(expected, np.float32), rtol=close, atol=0)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    exponent=st.integers(-30, 30),
    seed=st.integers(0, 99),
)
def test_every_number_becomes_a_level_next_to_it(kind, bits, shape, exponent, seed):
    before = wide(tuple(shape), kind, seed) * 2.0**exponent
    after = decoded(one(before, kind, bits, seed), kind)
    assert after.shape == before.shape and after.dtype == torch.float32
    pairs = zip(before.flatten().split(256), after.flatten().split(256), strict=True)
    for block, coded in pairs:
        assert_between_neighbours(block, coded, LEVELS[kind](bits))
        assert torch.equal(coded[block == 0], torch.zeros(int((block == 0).sum())))
        largest = block.abs().argmax()
        torch.testing.assert_close(coded[largest], block[largest], rtol=ROUNDING, atol=0)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [1, 2, 255, 256, 257, 300, 1001])
def test_the_bytes_are_what_a_reader_of_single_numbers_makes_of_them(kind, bits, number):
    array = one(wide((number,), kind), kind, bits)
    blocks = math.ceil(number / 256)
    assert len(array.data) == 4 * blocks + math.ceil(number * bits / 8)
    expected = oracle.read(array.data, number, bits, LEVELS[kind](bits))
    assert_read(decoded(array, kind), expected, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_random_nibbles_are_read_bit_for_bit(kind):
    rng = np.random.default_rng(0)
    scales = rng.random(40, np.float32)
    data = scales.astype("<f4").tobytes() + rng.bytes(40 * 128)
    array = Array("float32", (40, 256), f"fedcurv.{kind}-4", data)
    expected = oracle.read(data, 40 * 256, 4, LEVELS[kind](4))
    assert_read(decoded(array, kind).flatten(), expected, kind)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_over_the_rounding_is_the_number(kind, bits):
    """Also below the smallest level. Five deviations of the mean, and the steps of randomness."""
    repeats = 20_000
    row = torch.linspace(0, 1, 200)
    row = torch.cat([row, 2.0 ** -torch.arange(8, 24), torch.tensor([3e-5, 1e-5]), torch.zeros(38)])
    if kind == "distance":
        row[::3] *= -1
    after = decoded(one(row.expand(repeats, 256), kind, bits), kind).double()
    levels = LEVELS[kind](bits)
    for number, mean in zip(row.tolist(), after.mean(0).tolist(), strict=True):
        low, high = oracle.neighbours(levels, number)
        deviation = math.sqrt(oracle.variance(levels, number) / repeats)
        assert abs(mean - number) <= 5 * deviation + (high - low) * 2**-16 + 1e-9, number


@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_are_rounded_independently(kind):
    """Halfway between two levels, half of the pairs agree: five deviations."""
    levels = LEVELS[kind](4)
    row = torch.full((20_000, 256), (levels[-1] + levels[-2]) / 2)
    row[:, 0] = 1
    up = decoded(one(row, kind, 4), kind)[:, 1:] > row[0, 1]
    for one_place, other in ((up[:, :-1], up[:, 1:]), (up[:-1], up[1:])):
        agree = (one_place == other).double().mean().item()
        assert abs(agree - 0.5) <= 5 * 0.5 / math.sqrt(one_place.numel())


@pytest.mark.parametrize("bits", BITS)
@settings(max_examples=30, deadline=None)
@given(exponent=st.integers(-20, 20), seed=st.integers(0, 99))
def test_a_precision_was_between_the_levels_beside_its_own(bits, exponent, seed):
    before = wide((3, 300), "precision", seed) * 2.0**exponent
    record = pack_coded({"w": before}, "precision", bits, rounding(seed))
    after, bounds = unpack_coded(record, "precision")["w"], Bounds(record)
    least, most = bounds.least["w"], bounds.most["w"]
    assert bool((least <= before).all()) and bool((before <= most).all())
    levels = oracle.precision_levels(bits)
    for block, *rest in zip(
        *(t.flatten().split(256) for t in (before, after, least, most)), strict=True
    ):
        scale = block.max().item()
        for level, low, high in zip(*((t / scale).tolist() for t in rest), strict=True):
            index = min(range(len(levels)), key=lambda i: abs(levels[i] - level))
            next_level = levels[min(index + 1, len(levels) - 1)]
            assert math.isclose(high, next_level, rel_tol=ROUNDING)
            assert math.isclose(low, levels[max(index - 1, 0)], rel_tol=ROUNDING)


def test_the_same_sender_and_round_give_the_same_bits_and_others_give_others():
    tensor = wide((2000,), "precision")
    same = [one(tensor, "precision", 4, "client 3", 7).data for _ in range(2)]
    assert same[0] == same[1]
    others = [("client 4", 7), ("client 3", 8), ("client 37",)]
    assert len({same[0], *(one(tensor, "precision", 4, *who).data for who in others)}) == 4
    twice = pack_coded({"a": tensor, "b": tensor}, "precision", 4, rounding(1))
    assert twice["a"].data != twice["b"].data


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_a_records_arrays_changes_no_code(kind):
    """Flower's engine and this process hand them over in different orders."""
    tensors = {name: wide((300,), kind, seed) for seed, name in enumerate("abc")}
    one_way = pack_coded(tensors, kind, 4, rounding())
    other = pack_coded(dict(reversed(tensors.items())), kind, 4, rounding())
    assert list(other) == ["c", "b", "a"]
    assert all(one_way[name].data == other[name].data for name in tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_the_global_random_state_is_left_alone(kind):
    before = torch.get_rng_state()
    one(wide((999,), kind), kind, 4)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_the_other_tensors_of_a_record_do_not_matter_to_what_is_read(kind):
    """Small ones are coded together, large ones alone; each keeps its name, shape and place."""
    shapes = {"a": (3,), "b": (70_000,), "none": (0, 4), "c": (257, 2), "one": (1,), "d": (65_536,)}
    tensors = {name: wide(shape, kind) for name, shape in shapes.items()}
    record = pack_coded(tensors, kind, 4, rounding())
    assert list(record) == list(shapes)
    together = unpack_coded(record, kind)
    for name, tensor in together.items():
        assert tensor.shape == shapes[name]
        alone = unpack_coded(ArrayRecord({name: record[name]}), kind)[name]
        assert torch.equal(tensor, alone)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_that_lies_otherwise_in_memory_has_the_same_codes(kind):
    tensor = wide((4, 6, 5, 7), kind)
    for other in (tensor.contiguous(memory_format=torch.channels_last), tensor.mT.contiguous().mT):
        assert not other.is_contiguous()
        assert one(other, kind, 4).data == one(tensor, kind, 4).data


def test_numbers_of_other_types_have_the_codes_of_float32():
    tensor = wide((500,), "precision").half()
    assert one(tensor.double(), "precision", 4).data == one(tensor.float(), "precision", 4).data
    assert one(tensor, "precision", 4).data == one(tensor.float(), "precision", 4).data


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_of_fewer_numbers_than_a_block_stays_as_it_is(kind, monkeypatch):
    monkeypatch.setattr(coded_arrays, "_FEWEST_NUMBERS", codes.BLOCK)
    tensors = {"w": torch.tensor(0.3), "v": torch.rand(255).double(), "u": torch.rand(16, 16)}
    record = pack_coded(tensors, kind, 4, rounding())
    read = unpack_coded(record, kind)
    for name in "wv":
        assert record[name].stype == "numpy.ndarray" and record[name].dtype == "float32"
        assert torch.equal(read[name], tensors[name].float())
        bounds = Bounds(ArrayRecord({name: record[name]}))
        assert torch.equal(bounds.least[name], read[name])
        assert torch.equal(bounds.most[name], read[name])
    assert record["u"].stype == f"fedcurv.{kind}-4"
    assert is_coded(record) and not is_coded(ArrayRecord({"w": record["w"]}))


def test_a_number_without_a_shape_has_codes_too():
    assert decoded(one(torch.tensor(0.3), "precision", 4), "precision") == torch.tensor(0.3)


@pytest.mark.parametrize("bits", BITS)
def test_one_huge_number_leaves_its_block_its_mean_and_the_others_alone(bits):
    tensor = torch.ones(2, 256)
    tensor[0, 5] = 2.0**100
    after = decoded(one(tensor, "precision", bits), "precision")
    assert after[0, 5] == 2.0**100 and torch.equal(after[1], tensor[1])
    smallest = oracle.precision_levels(bits)[1] * 2.0**100
    assert set(after[0].tolist()) <= {0.0, smallest, 2.0**100}


@pytest.mark.parametrize("kind", KINDS)
def test_the_smallest_and_the_largest_of_float32_have_codes(kind):
    limits = torch.finfo(torch.float32)
    for number in (limits.tiny, limits.smallest_normal / 2**20, limits.max):
        tensor = torch.tensor([number, number / 2, 0.0])
        after = decoded(one(tensor, kind, 8), kind)
        torch.testing.assert_close(after, tensor, rtol=0.07, atol=1e-45)


def test_a_record_may_mix_codes_with_plain_numbers():
    """Of whoever knows no codes, parameter by parameter."""
    coded = pack_coded({"a": torch.ones(3)}, "precision", 8, rounding())
    record = ArrayRecord({"b": Array(np.full(2, 0.3)), "a": coded["a"]})
    read = unpack_coded(record, "precision")
    assert list(read) == ["b", "a"]
    assert torch.equal(read["a"], torch.ones(3)) and read["b"].dtype == torch.float64


FIELDS = {
    "dtype": "float32",
    "shape": (300,),
    "stype": "fedcurv.precision-4",
    "data": bytes(8) + bytes(150),
}


def scaled(scale: float) -> bytes:
    return np.array([scale, 1], "<f4").tobytes() + bytes(150)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": bytes(157)}, r"'w' cannot be read: expected 158 bytes .* got 157"),
        ({"data": b""}, "expected 158 bytes .* got 0"),
        ({"shape": (301,)}, "expected 159 bytes"),
        ({"shape": (2**40, 2**40)}, "got 158"),
        ({"shape": (-300, -1)}, "expected a shape of sizes >= 0"),
        ({"shape": ()}, "expected 5 bytes"),
        ({"dtype": "float64"}, "expected codes for float32, got 'float64'"),
        ({"stype": "fedcurv.precision-3"}, "expected one of the formats"),
        ({"stype": "fedcurv.distance-4"}, "got 'fedcurv.distance-4'"),
        ({"stype": "numpy.ndarray"}, "'w' cannot be read"),
        ({"data": scaled(math.nan)}, "expected scales that are finite and >= 0, got nan to nan"),
        ({"data": scaled(-1e-3)}, "finite and >= 0, got -0.001 to 1"),
        ({"data": scaled(math.inf)}, "finite and >= 0, got 1 to inf"),
    ],
)
def test_what_is_no_code_is_refused_with_the_arrays_name(change, message):
    assert torch.equal(decoded(Array(**FIELDS), "precision"), torch.zeros(300))
    bad = Array(**{**FIELDS, **change})
    with pytest.raises(ValueError, match=message):
        decoded(bad, "precision")


def test_any_code_stands_for_a_number_that_its_scale_bounds():
    for kind, bits in ((kind, bits) for kind in KINDS for bits in BITS):
        every = bytes(range(256)) * (bits // 4)
        data = np.array([3.0], "<f4").tobytes() + every[: 32 * bits]
        got = decoded(Array("float32", (256,), f"fedcurv.{kind}-{bits}", data), kind)
        assert got.abs().max() <= 3.4286 and (kind == "distance" or got.min() >= 0)


def test_blocks_are_coded_alike_however_many_there_are():
    blocks = wide((5, 256), "precision")
    scales, packed = codes.encode_precision(blocks, 4, rounding())
    assert scales.shape == (5,) and packed.shape == (5, 128) and packed.dtype == torch.uint8
    none, empty = codes.encode_precision(blocks[:0], 4, rounding())
    assert none.shape == (0,) and codes.decode_precision(none, empty, 4).shape == (0, 256)
