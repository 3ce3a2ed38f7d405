"""Pieces of secure sums: shares, masks, whole numbers, neighbours."""

import hashlib
import hmac
import itertools
import json
import os
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcurv.strategies.wire.secure.fixed_point import LARGEST, Scale, from_parts, in_parts
from fedcurv.strategies.wire.secure.form import Form
from fedcurv.strategies.wire.secure.keys import KeyPair, agreed_key, derived_key, seal, unseal
from fedcurv.strategies.wire.secure.neighbours import (
    neighbours,
    number_of_neighbours,
    require_majority,
    shares_needed,
)
from fedcurv.strategies.wire.secure.plan import (
    ARRAYS,
    PRECISION_SUMS,
    Plan,
    bounds_after,
    wide_after,
)
from fedcurv.strategies.wire.secure.shamir import (
    PRIME,
    combine,
    combine_all_but_one,
    recovered,
    split,
)
from fedcurv.strategies.wire.secure.words import Words
from tests.oracles import secure as oracle

# of RFC 7748, section 6.1
BOBS_PRIVATE = "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"
BOBS_PUBLIC = "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
ALICES_PUBLIC = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
SHARED = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"


def test_the_prime_is_a_mersenne_prime_by_lucas_and_lehmer():
    value = 4
    for _ in range(521 - 2):
        value = (value * value - 2) % PRIME
    assert value == 0


@settings(max_examples=30, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.integers(1, 7), st.integers(0, 4), st.data())
def test_any_threshold_of_shares_gives_the_secret(secret, threshold, more, data):
    points = data.draw(st.permutations(range(1, threshold + more + 1)))
    shares = split(secret, points, threshold)
    chosen = points[:threshold]
    assert combine({p: shares[p] for p in chosen}) == secret
    assert combine(shares) == secret
    values = {p: int.from_bytes(shares[p], "big") for p in chosen}
    assert oracle.secret_at_zero(values, PRIME) == int.from_bytes(secret, "big")


def test_shares_of_a_line_by_hand(monkeypatch):
    monkeypatch.setattr("secrets.randbelow", lambda bound: PRIME - 3)
    shares = split((10).to_bytes(32, "big"), [1, 2, 5], 2)
    values = [int.from_bytes(share, "big") for share in shares.values()]
    assert values == [7, 4, PRIME - 5]


def test_fewer_shares_than_the_threshold_fit_any_secret():
    secret = os.urandom(32)
    shares = split(secret, [1, 2, 3], 3)
    two = {p: int.from_bytes(shares[p], "big") for p in (1, 2)}
    other = int.from_bytes(os.urandom(32), "big")
    # a third share can be made with which the same two give any other secret
    through = {0: other, **two}

    def at(x):
        return sum(
            y
            * np.prod([(x - j) for j in through if j != i], dtype=object)
            * pow(int(np.prod([(i - j) for j in through if j != i], dtype=object)), -1, PRIME)
            for i, y in through.items()
        )

    made = {p: shares[p] for p in (1, 2)} | {3: (at(3) % PRIME).to_bytes(66, "big")}
    assert int.from_bytes(combine(made), "big") == other != int.from_bytes(secret, "big")


@pytest.mark.parametrize(
    ("secret", "points", "threshold", "says"),
    [
        (bytes(31), [1, 2], 2, "secret of 32 bytes, got 31"),
        (bytes(32), [1, 1], 2, "different points"),
        (bytes(32), [0, 1], 2, "points >= 1"),
        (bytes(32), [1, 2], 3, "threshold must be from 1 to 2, got 3"),
        (bytes(32), [1, 2], 0, "threshold must be from 1 to 2, got 0"),
    ],
)
def test_what_cannot_be_shared_is_refused(secret, points, threshold, says):
    with pytest.raises(ValueError, match=says):
        split(secret, points, threshold)


def test_what_are_no_shares_is_refused():
    shares = split(os.urandom(32), [1, 2], 2)
    with pytest.raises(ValueError, match="no shares of one secret"):
        combine({1: shares[1], 3: shares[2]})
    with pytest.raises(ValueError, match="66 bytes"):
        combine({1: shares[1], 2: shares[2][:-1]})
    with pytest.raises(ValueError, match="points >= 1"):
        combine({})


@pytest.mark.parametrize("threshold", [1, 2, 5])
def test_one_left_out_at_a_time_is_what_the_others_give(threshold):
    secret = os.urandom(32)
    shares = split(secret, [2, 3, 7, 11, 12, 40][: threshold + 1], threshold)
    assert combine_all_but_one(shares) == dict.fromkeys(shares, secret)
    shares[3] = (int.from_bytes(shares[3], "big") ^ 1).to_bytes(66, "big")
    found = combine_all_but_one(shares)
    assert found[3] == secret
    for point in shares:
        others = {p: int.from_bytes(y, "big") for p, y in shares.items() if p != point}
        expected = oracle.secret_at_zero(others, PRIME)
        assert point not in found or int.from_bytes(found[point], "big") == expected
        assert point in found or expected >= 2**256


def test_a_wrong_share_is_found_if_another_is_to_spare():
    secret = os.urandom(32)
    shares = split(secret, range(1, 6), 3)
    assert recovered(shares, 3, secret.__eq__) == (secret, None)
    shares[2] = bytes(66)
    assert recovered(shares, 3, secret.__eq__) == (secret, 2)
    for few in ((1, 2, 3), (1, 2)):
        with pytest.raises(ValueError, match="do not fit"):
            recovered({p: shares[p] for p in few}, 3, secret.__eq__)
    shares[1] = bytes(66)
    with pytest.raises(ValueError, match="do not fit"):
        recovered(shares, 3, secret.__eq__)
    assert recovered({p: shares[p] for p in (3, 4, 5, 1, 2)}, 3, secret.__eq__) == (secret, None)


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ([2**36] * 60_000, "at most 64 sizes"),
        ([1] * 65, "at most 64 sizes"),
        ([2**18, 2**19], "a number of numbers"),
        ([2**36, 2, 0], "a number of numbers"),
        ([-1], "a number of numbers"),
        ("12", "a shape"),
    ],
)
def test_forms_of_absurd_shapes_are_refused_at_once(shape, says):
    text = json.dumps({"metrics": {}, "statistics": {"w": shape}}, sort_keys=True)
    began = time.process_time()
    with pytest.raises(ValueError, match=says):
        Form.from_text(text)
    assert time.process_time() - began < 1


def test_a_form_is_read_back():
    form = Form({"loss": 0, "by-class": 10}, {"w": (3, 0, 5), "b": (), "last": (2**36,)})
    assert Form.from_text(form.to_text()) == form


def test_two_nodes_agree_on_a_key_and_another_purpose_is_another_key():
    one, other = KeyPair.new(), KeyPair.new()
    key = agreed_key(one.private, other.public, b"purpose")
    assert key == agreed_key(other.private, one.public, b"purpose")
    assert key != agreed_key(one.private, other.public, b"another")
    assert key != agreed_key(one.private, KeyPair.new().public, b"purpose")
    assert len(key) == 32


def test_keys_are_those_of_rfc_7748():
    bob = KeyPair.of(bytes.fromhex(BOBS_PRIVATE))
    assert bob.public.hex() == BOBS_PUBLIC
    agreed = agreed_key(bob.private, bytes.fromhex(ALICES_PUBLIC), b"purpose")
    assert agreed == derived_key(bytes.fromhex(SHARED), b"purpose")


def test_keys_are_derived_as_in_rfc_5869():
    """Its expand step, with an extract step whose salt is zeros."""
    secret = hmac.digest(bytes(32), b"secret", "sha256")
    assert derived_key(b"secret", b"purpose") == hmac.digest(secret, b"purpose\x01", "sha256")


def test_a_public_key_with_which_every_secret_is_one_is_refused():
    with pytest.raises(ValueError, match="public key of X25519"):
        agreed_key(KeyPair.new().private, bytes(32), b"")


def test_a_sealed_text_opens_for_its_key_and_what_it_is_bound_to_alone():
    key = os.urandom(32)
    sealed = seal(key, b"text", b"bound")
    assert unseal(key, sealed, b"bound") == b"text"
    for bad in (
        (os.urandom(32), sealed, b"bound"),
        (key, sealed, b"other"),
        (key, sealed[:-1] + bytes([sealed[-1] ^ 1]), b"bound"),
        (key, b"", b"bound"),
    ):
        with pytest.raises(ValueError, match="sealed text of this round"):
            unseal(*bad)


def test_a_mask_is_the_keystream_of_aes_in_counter_mode():
    """The first block of the key of zeros is AES-256 of a block of zeros (NIST's KAT)."""
    words = Words.zeros(1, 2)
    words.add_mask(bytes(32))
    assert words.to_bytes().hex() == "dc95c078a2408989ad48a21492842087"


@pytest.mark.parametrize("sizes", [(0, 0), (1, 0), (0, 1), (70_000, 3), (3, 200_001)])
def test_masks_cancel_and_leave_the_numbers_to_the_bit(sizes):
    generator = np.random.default_rng(0)
    words = Words(
        generator.integers(0, 2**64, sizes[0], np.uint64, endpoint=False),
        generator.integers(0, 2**32, sizes[1], np.uint32, endpoint=False),
    )
    before = words.to_bytes()
    words = Words.from_bytes(before, *sizes)
    total = Words.zeros(*sizes)
    total.add(words)
    total.add_mask(b"k" * 32)
    if sum(sizes):
        assert total.to_bytes() != before
    total.subtract_mask(b"k" * 32)
    assert total.to_bytes() == before
    with pytest.raises(ValueError, match="bytes of masked numbers"):
        Words.from_bytes(before + b"1", *sizes)


def chi_square(data: bytes) -> float:
    counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
    expected = len(data) / 256
    return float(((counts - expected) ** 2 / expected).sum())


def test_a_masked_vector_is_noise_and_changes_wholly_with_one_bit_of_the_key():
    key = hashlib.sha256(b"a key").digest()
    flipped = bytes([key[0] ^ 1]) + key[1:]
    masked = []
    for one in (key, flipped):
        words = Words.zeros(10_000, 100_000)
        words.add_mask(derived_key(one, b"mask"))
        masked.append(words.to_bytes())
    # 255 degrees of freedom: 400 is beyond the 1 - 1e-7 quantile
    assert all(chi_square(data) < 400 for data in masked)
    bits = [np.unpackbits(np.frombuffer(data, np.uint8)) for data in masked]
    differ = np.count_nonzero(bits[0] != bits[1]) / len(bits[0])
    assert abs(differ - 0.5) < 0.005


numbers = st.floats(-(2.0**20), 2.0**20, width=32)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=1, max_size=6),
    st.sampled_from([32, 64]),
    st.floats(2.0**-10, 2.0**21),
)
def test_sums_of_words_are_the_sums_of_whole_numbers(clients, bits, largest):
    scale = Scale.up_to(largest, len(clients), bits)
    words, plain = [], []
    for values in clients:
        whole, clipped = scale.whole(np.array(values))
        expected = [oracle.whole(v, scale.exponent, scale.limit) for v in values]
        assert whole.tolist() == expected
        unclipped = [oracle.whole(v, scale.exponent, 2**200) for v in values]
        assert clipped == sum(abs(u) > scale.limit for u in unclipped)
        words.append(whole.astype(np.uint32 if bits == 32 else np.uint64))
        plain.append(expected)
    total = np.sum(words, axis=0, dtype=words[0].dtype)
    assert scale.signed(total).tolist() == oracle.sum_modulo(plain, bits)
    exact = [sum(column) for column in zip(*plain, strict=True)]
    assert scale.signed(total).tolist() == exact, "no sum leaves the range of its words"


@settings(max_examples=60, deadline=None)
@given(st.floats(2.0**-60, 2.0**60), st.integers(1, 10_000), st.sampled_from([32, 64]))
def test_a_scale_reaches_its_bound_and_makes_use_of_a_quarter_of_its_words(largest, clients, bits):
    scale = Scale.up_to(largest, clients, bits)
    whole, clipped = scale.whole(np.array([largest, -largest]))
    assert clipped == 0
    assert abs(int(whole[0])) * 4 > scale.limit
    assert scale.limit * clients < 2 ** (bits - 1)


def test_sums_of_statistics_are_exact_in_float64():
    scale = Plan(100, "n").scale((PRECISION_SUMS, "w"))
    assert scale.limit * 100 < 2**53
    values = np.random.default_rng(0).random((100, 5)) * 100
    whole = [scale.whole(v)[0] for v in values]
    total = scale.numbers(np.sum(whole, axis=0))
    rest = total - scale.numbers(whole[0])
    np.testing.assert_array_equal(rest, scale.numbers(np.sum(whole[1:], axis=0)))


def test_a_plan_is_read_back_and_one_whose_sums_would_not_fit_is_refused():
    sizes = {(ARRAYS, "w"): 1000, (ARRAYS, "b"): 10, (PRECISION_SUMS, "w"): 1000}
    plan = Plan.from_bounds(7, "num-examples", dict.fromkeys(sizes, 3.0), sizes)
    assert Plan.from_text(plan.to_text()) == plan
    assert [plan.scale(place).bits for place in sizes] == [32, 64, 32]
    with pytest.raises(ValueError, match="sum would not fit"):
        Plan.from_text(plan.to_text().replace('"clients": 7', '"clients": 8'))
    with pytest.raises(ValueError, match="plan of a secure sum"):
        Plan.from_text("[]")


def test_the_next_rounds_bound_holds_what_doubles():
    assert bounds_after({(ARRAYS, "w"): 6.0, (ARRAYS, "b"): 0.0}, 3) == {(ARRAYS, "w"): 12.0}
    assert bounds_after({(ARRAYS, "w"): 100.0}, 100) == {(ARRAYS, "w"): 32.0}


def test_where_numbers_were_clipped_the_next_bound_holds_the_heaviest_and_among_many_it_stays_so():
    place, other = (ARRAYS, "w"), (ARRAYS, "b")
    assert wide_after([place], [], 3) == {place}
    assert wide_after([], [place], 16) == set()
    assert wide_after([other], [place], 17) == {place, other}
    assert bounds_after({place: 100.0}, 100, [place]) == {place: 51200.0}
    plan = Plan.from_bounds(100, "n", {place: 1.0}, {place: 1000}, [place])
    assert plan.scale(place).bits == 64


whatever = st.floats(-LARGEST, LARGEST) | st.floats(-1e-6, 1e-6) | st.just(LARGEST)


@settings(max_examples=60, deadline=None)
@given(st.lists(whatever, min_size=1, max_size=9))
def test_sums_of_numbers_in_parts_are_the_sums_of_the_numbers(numbers):
    parts = in_parts(np.array(numbers))
    assert np.abs(parts).max() <= 2**42, "2^20 clients' sums fit into words of 64 bits"
    exact = float(sum(map(Fraction, numbers)))
    largest = max(map(abs, numbers))
    found = float(from_parts(parts.sum(axis=0)))
    assert found == pytest.approx(exact, rel=1e-15, abs=len(numbers) * (2**-63 + largest * 2**-53))


@pytest.mark.parametrize(("members", "number"), list(itertools.product((5, 20, 70), (4, 16, 64))))
def test_neighbours_are_mutual_and_as_many_as_wanted(members, number):
    found = neighbours(members, number, b"seed")
    assert found == neighbours(members, number, b"seed")
    for one, others in enumerate(found):
        assert len(others) == len(set(others)) == number_of_neighbours(members, number)
        assert one not in others
        assert all(one in found[other] for other in others)
    if number < members - 1:
        assert found != neighbours(members, number, b"other")


def test_a_threshold_without_a_majority_of_two_is_refused():
    assert shares_needed(9, 2 / 3) == 6
    assert shares_needed(2, 0.6) == 2
    require_majority(6, 9)
    for needed, number in ((4, 9), (1, 1), (10, 9), (5, 10)):
        with pytest.raises(ValueError, match="more than half"):
            require_majority(needed, number)
