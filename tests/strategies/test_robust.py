"""Sums that no single client decides: trimmed, of what is selected, and bounded by the cohort."""

import math
import random

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Bulyan, FedAvg, FedMedian, FedTrimmedAvg, Krum, MultiKrum

from fedcurv.curvature import Curvature
from fedcurv.strategies import FedCurv
from fedcurv.strategies.robust.cohort import Cohort
from fedcurv.strategies.robust.rules import rule_for
from fedcurv.strategies.robust.trimmed import Term, trimmed_sums
from fedcurv.strategies.wire.arrays import pack_tensors
from fedcurv.strategies.wire.records import PRECISION
from tests.federation import Federation, new_model, options, same_bits, samples
from tests.oracles import fisher as fisher_oracle
from tests.oracles import robust as oracle

STRENGTH = 0.3


def terms(number: int, seed: int = 0, size: int = 40) -> list[Term]:
    """Return statistics of which many are zero and many solutions are equal, as of idle units."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(number):
        precision = torch.rand(size, generator=generator) ** 4
        precision[torch.rand(size, generator=generator) < 0.3] = 0
        solution = torch.randn(size, generator=generator)
        solution[torch.rand(size, generator=generator) < 0.3] = 0.5
        found.append(Term({"w": precision.view(5, -1)}, {"w": solution.view(5, -1)}))
    return found


def numbers_of(some: list[Term]) -> tuple[np.ndarray, np.ndarray]:
    """Return P_j and θ̂_j as arrays (clients, numbers) in float64."""
    p, theta = ([getattr(t, kind)["w"] for t in some] for kind in ("precision", "solution"))
    return torch.stack(p).flatten(1).double().numpy(), torch.stack(theta).flatten(
        1
    ).double().numpy()


def numbers_in(sums: Curvature) -> tuple[np.ndarray, np.ndarray]:
    p, q = sums.precision["w"], sums.weighted_parameters["w"]
    return p.flatten().double().numpy(), q.flatten().double().numpy()


CUTS = [(3, 1), (4, 1), (5, 1), (5, 2), (8, 3), (10, 2)]


@pytest.mark.parametrize(("number", "cut"), CUTS)
def test_trimmed_sums_are_those_of_the_definition(number, cut):
    some = terms(number, seed=number)
    sums = trimmed_sums(some, cut)
    p, theta = numbers_of(some)
    expected = [oracle.trimmed(list(p[:, i]), list(theta[:, i]), cut) for i in range(p.shape[1])]
    for got, column in ((sums.precision, 0), (sums.weighted_parameters, 1)):
        wanted = torch.tensor([pair[column] for pair in expected], dtype=torch.float64).view(5, -1)
        # one rounding to float32
        torch.testing.assert_close(got["w"].double(), wanted, rtol=1e-6, atol=1e-30)
    assert (sums.precision["w"] > 0).any()


def test_nothing_pulls_where_the_middle_knows_nothing():
    """Who alone knows a number, and has moved it, cannot be told from a liar."""
    idle = Term({"w": torch.zeros(2)}, {"w": torch.zeros(2)})
    knows = Term({"w": torch.tensor([3.0, 3.0])}, {"w": torch.ones(2)})
    sums = trimmed_sums([idle, idle, knows], 1)
    assert torch.equal(sums.precision["w"], torch.zeros(2))
    assert torch.equal(sums.weighted_parameters["w"], torch.zeros(2))


@pytest.mark.parametrize(("number", "cut"), CUTS)
def test_whoever_is_left_out_what_he_is_pulled_to_lies_among_the_others(number, cut):
    """So nobody need take his own terms off, and nobody can pull himself, nor anybody, away.

    It holds for each client as the liar too: the others' values bound what he can do.
    """
    some = terms(number, seed=1)
    liar = Term({"w": some[0].precision["w"] * 1e6}, {"w": some[0].solution["w"] + 100})
    for replies in (some, [liar, *some[1:]]):
        sums = trimmed_sums(replies, cut)
        p, q = (
            kind["w"].flatten().double().numpy()
            for kind in (sums.precision, sums.weighted_parameters)
        )
        all_p, all_theta = numbers_of(replies)
        for left_out in range(number):
            others = np.arange(number) != left_out
            least, most = all_p[others].min(0), all_p[others].max(0)
            assert np.all((p == 0) | (p >= (number - 1) * least * (1 - 1e-6)))
            assert np.all(p <= (number - 1) * most * (1 + 1e-6))
            centre = q[p > 0] / p[p > 0]
            low, high = all_theta[others].min(0)[p > 0], all_theta[others].max(0)[p > 0]
            assert np.all((centre >= low - 1e-5) & (centre <= high + 1e-5))
        assert np.all(q[p == 0] == 0)


@pytest.mark.parametrize(("number", "cut"), CUTS)
def test_as_many_liars_as_are_cut_off_cannot_leave_the_honest_range(number, cut):
    honest = terms(number - cut, seed=2)
    p, theta = numbers_of(honest)
    for factor, shift in ((1e6, 0.0), (0.0, 5.0), (1.0, -5.0), (1e30, 1e6)):
        liars = [
            Term({"w": t.precision["w"] * factor}, {"w": t.solution["w"] + shift})
            for t in honest[:1] * cut
        ]
        sums = trimmed_sums([*liars, *honest], cut)
        total, weighted = numbers_in(sums)
        assert np.all(total <= (number - 1) * p.max(0) * (1 + 1e-6))
        known = total > 0
        centre = weighted[known] / total[known]
        assert np.all(centre >= theta.min(0)[known] - 1e-5)
        assert np.all(centre <= theta.max(0)[known] + 1e-5)


def test_the_order_of_replies_changes_no_bit_of_trimmed_sums():
    some = terms(9, seed=3)
    first = trimmed_sums(some, 2)
    for seed in range(5):
        random.Random(seed).shuffle(some)
        other = trimmed_sums(some, 2)
        assert torch.equal(first.precision["w"], other.precision["w"])
        assert torch.equal(first.weighted_parameters["w"], other.weighted_parameters["w"])


def test_a_product_that_a_client_sends_stands_for_its_solution():
    some = terms(5, seed=4)
    products = [
        Term(t.precision, {}, Curvature(t.precision, {"w": t.precision["w"] * t.solution["w"]}))
        for t in some
    ]
    known = torch.stack([t.precision["w"] > 0 for t in some]).all(0)
    one, other = trimmed_sums(some, 1), trimmed_sums(products, 1)
    for kind in ("precision", "weighted_parameters"):
        a, b = (getattr(sums, kind)["w"][known] for sums in (one, other))
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("cut", [0, 3])
def test_less_than_half_can_be_cut_off_and_at_least_one(cut):
    with pytest.raises(ValueError, match="expected to cut off 1 to less than half of 5 terms"):
        trimmed_sums(terms(5), cut)


# ---- what clients are told


def statistics(federation: Federation, server_round: int):
    """Return by partition each client's P_j and θ̂_j of a round, by the oracle."""
    found = {}
    for visit in federation.visits:
        if visit.server_round == server_round:
            model = new_model().double()
            model.load_state_dict(visit.solution)
            inputs, targets = samples(visit.partition)
            fisher = fisher_oracle.empirical(model, inputs.double(), targets)
            found[visit.partition] = fisher, {n: t.double() for n, t in visit.solution.items()}
    return found


def pulls(federation: Federation, server_round: int):
    return {v.partition: v for v in federation.visits if v.server_round == server_round}


@pytest.mark.parametrize(("robust", "cut"), [("median", 2), (0.3, 1)])
def test_clients_get_the_trimmed_sums_of_the_definition(robust, cut):
    federation = Federation(num_nodes=5)
    federation.run(FedCurv(FedMedian(**options()), strength=STRENGTH, robust=robust), num_rounds=3)
    before = statistics(federation, 2)
    for visit in pulls(federation, 3).values():
        for name in ("weight", "bias"):
            p = torch.stack([fisher[name].flatten() for fisher, _ in before.values()])
            theta = torch.stack([solution[name].flatten() for _, solution in before.values()])
            for i in range(p.shape[1]):
                total, weighted = oracle.trimmed(p[:, i].tolist(), theta[:, i].tolist(), cut)
                assert visit.precision[name].flatten()[i] == pytest.approx(total, rel=1e-3)
                got = float(visit.weighted_parameters[name].flatten()[i])
                assert got == pytest.approx(weighted, rel=1e-3, abs=1e-6)


def near_the_middle(before, federation: Federation, server_round: int) -> set[int]:
    """Return the clients whose replies in a round are near its middle, by the oracle."""
    starts = {v.partition: v.start for v in federation.visits if v.server_round == server_round}
    distances = {
        i: math.hypot(*(float((t - starts[i][n].double()).norm()) for n, t in solution.items()))
        for i, (_, solution) in before.items()
    }
    traces = {i: sum(float(f.sum()) for f in fisher.values()) for i, (fisher, _) in before.items()}
    return oracle.near(distances, traces)


def points_of(before) -> list[list[float]]:
    return [
        torch.cat([before[i][1][name].flatten() for name in ("weight", "bias")]).tolist()
        for i in range(len(before))
    ]


def assert_pulled_to(federation: Federation, before, contributors: set[int]) -> None:
    """In round 3 each client feels the contributors of round 2 less itself."""
    for partition, visit in pulls(federation, 3).items():
        others = contributors - {partition}
        if not others:
            assert visit.precision is None
            continue
        for name in ("weight", "bias"):
            p = sum(before[i][0][name] for i in others)
            q = sum(before[i][0][name] * before[i][1][name] for i in others)
            got_p, got_q = visit.precision[name], visit.weighted_parameters[name]
            torch.testing.assert_close(got_p.double(), p, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(got_q.double(), q, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chosen", [1, 3, 5])
def test_on_demand_clients_get_the_sums_of_what_krum_selects_less_their_own(chosen):
    federation = Federation(num_nodes=6)
    wrapped = MultiKrum(num_malicious_nodes=1, num_nodes_to_select=chosen, **options())
    federation.run(FedCurv(wrapped, strength=STRENGTH, robust="selection"), num_rounds=3)
    before = statistics(federation, 2)
    selected = oracle.krum(points_of(before), 1, chosen)
    assert_pulled_to(federation, before, selected & near_the_middle(before, federation, 2))


def test_on_demand_clients_get_the_sums_of_what_bulyan_selects_less_their_own():
    federation = Federation(num_nodes=7)
    wrapped = Bulyan(num_malicious_nodes=1, **options())
    federation.run(FedCurv(wrapped, strength=STRENGTH, robust="selection"))
    before = statistics(federation, 2)
    selected = oracle.krum(points_of(before), 1, 5)
    assert_pulled_to(federation, before, selected & near_the_middle(before, federation, 2))


@pytest.mark.parametrize("make", [FedMedian, FedTrimmedAvg, Krum])
@pytest.mark.parametrize("seed", [1, 2])
def test_around_robust_strategies_clients_get_the_sums_of_what_is_near_the_middle(make, seed):
    """Also where some take no part in a round."""
    spoil = {(2, 2): spoilt_precision(10.0), (2, 3): spoilt_model(3.0)}
    federation = Federation(num_nodes=8, spoil=spoil)
    strategy = FedCurv(make(**options(fraction_train=0.8)), strength=STRENGTH)
    federation.run(strategy, num_rounds=3, seed=seed)
    before = statistics(federation, 2)
    for i, factor, shift in ((2, 10.0, 0.0), (3, 1.0, 3.0)):
        if i in before:
            fisher, solution = before[i]
            before[i] = (
                {name: f * factor for name, f in fisher.items()},
                {name: t + shift for name, t in solution.items()},
            )
    near = near_the_middle(before, federation, 2)
    assert near < before.keys()
    assert_pulled_to(federation, before, near)


def test_a_strategy_of_the_users_own_says_what_it_selects():
    class LastTwo(FedAvg):
        def aggregate_train(self, server_round, replies):
            return super().aggregate_train(server_round, list(replies)[-2:])

    federation = Federation(num_nodes=4)
    federation.run(FedCurv(LastTwo(**options()), strength=STRENGTH, robust="selection"))
    before = statistics(federation, 2)
    assert_pulled_to(federation, before, {2, 3} & near_the_middle(before, federation, 2))


def test_bulyan_with_too_few_replies_makes_no_model_and_no_sums_of_what_it_selects():
    federation = Federation(num_nodes=4)
    wrapped = Bulyan(num_malicious_nodes=1, **options())
    federation.run(FedCurv(wrapped, strength=STRENGTH, robust="selection"))
    assert all(visit.precision is None for visit in federation.visits)


def spoilt_precision(factor: float):
    def spoil(content) -> None:
        tensors = content[PRECISION].to_torch_state_dict()
        content[PRECISION] = pack_tensors({n: t * factor for n, t in tensors.items()})

    return spoil


def spoilt_model(shift: float):
    def spoil(content) -> None:
        arrays = content["arrays"].to_torch_state_dict()
        content["arrays"] = ArrayRecord({n: t + shift for n, t in arrays.items()})

    return spoil


def test_a_selected_reply_with_an_outlying_precision_is_left_out_of_the_sums(caplog):
    """Krum looks at the model alone."""
    federation = Federation(num_nodes=4, spoil={(2, 3): spoilt_precision(50.0)})
    wrapped = MultiKrum(num_malicious_nodes=1, num_nodes_to_select=4, **options())
    federation.run(FedCurv(wrapped, strength=STRENGTH), num_rounds=3)
    assert "round 2: left out the statistics of client 3: expected a trace" in caplog.text
    assert set(federation.statuses(2).values()) == {"ok"}


# ---- bounds relative to the cohort


def test_a_model_too_far_off_is_refused_by_name(caplog):
    federation = Federation(num_nodes=6, spoil={(2, 0): spoilt_model(1e4)})
    strategy = FedCurv(strength=STRENGTH, **options())
    federation.run(strategy, num_rounds=2)
    assert federation.statuses(2) == {"0": "refused", **{str(i): "ok" for i in range(1, 6)}}
    assert "times the round's middle one" in federation.reasons(2)["0"]
    assert len(strategy.refused) == 1
    assert "round 2: refused the reply of client 0: expected a distance from the" in caplog.text


@pytest.mark.parametrize("liar", [0, 5])
def test_statistics_too_heavy_are_left_out_by_name_and_the_model_is_averaged(liar, caplog):
    federation = Federation(num_nodes=6, spoil={(2, liar): spoilt_precision(1e6)})
    strategy = FedCurv(strength=STRENGTH, **options())
    told = []
    federation.run(
        strategy,
        num_rounds=3,
        on_round=[federation.rounds.append, lambda r: told.append(len(strategy.left_out))],
    )
    assert set(federation.statuses(2).values()) == {"ok"}
    assert told == [0, 0, 1, 0]
    said = f"round 2: left out the statistics of client {liar}: expected a trace of the precision"
    assert said in caplog.text
    before = statistics(federation, 2)
    for partition, visit in pulls(federation, 3).items():
        wanted = sum(before[i][0]["weight"] for i in set(range(6)) - {liar, partition})
        torch.testing.assert_close(visit.precision["weight"].double(), wanted, rtol=1e-4, atol=1e-6)


def test_honest_runs_keep_every_bit():
    unbounded = {"max_distance": math.inf, "max_trace": math.inf}
    one = Federation(num_nodes=7).run(FedCurv(strength=STRENGTH, **options()))
    other = Federation(num_nodes=7).run(FedCurv(strength=STRENGTH, **options(**unbounded)))
    assert same_bits(one.arrays, other.arrays)


def note(cohort: Cohort, message_id: str, arrays, precision) -> None:
    cohort.note(message_id, arrays, precision, cohort.distances(arrays))


def cohort_of(distances: list[float], cohort: Cohort) -> list[str]:
    """Return whose distance is refused in a round of replies at these distances from 0."""
    cohort.begin(ArrayRecord({"w": torch_array(0.0)}))
    for i, distance in enumerate(distances):
        note(cohort, str(i), {"w": torch.tensor([distance])}, {})
    outside = list(cohort.too_far())
    cohort.end(outside)
    return outside


def torch_array(value: float):
    return ArrayRecord({"w": torch.tensor([value])})["w"]


def test_the_bound_is_the_middle_times_a_number():
    assert cohort_of([1.0, 1.0, 49.9], Cohort(50.0, 100.0)) == []
    assert cohort_of([1.0, 1.0, 50.1], Cohort(50.0, 100.0)) == ["2"]
    assert cohort_of([0.01, 1.0, 2.0, 49.9], Cohort(50.0, 100.0)) == []  # the greater of two
    assert cohort_of([1.0, 1.0, 1e9, 1e9, 1.0], Cohort(50.0, 100.0)) == ["2", "3"]
    assert cohort_of([1.0, 1.0, 1e9], Cohort(math.inf, math.inf)) == []
    assert cohort_of([0.0, 0.0, 1e9], Cohort(50.0, 100.0)) == []  # the middle says nothing


@pytest.mark.parametrize("kind", [torch.float16, torch.float32, torch.float64, torch.complex64])
def test_a_distance_is_over_what_is_finite_whatever_the_type(kind):
    before = {"w": torch.zeros(40000, dtype=kind), "mask": torch.full((2,), -math.inf)}
    cohort = Cohort(50.0, 100.0)
    cohort.begin(ArrayRecord(before))
    for i, shift in enumerate((2.0, 3.0, 151.0)):
        note(cohort, str(i), {**before, "w": before["w"] + shift}, {})
    assert "middle one, 600, got 3.02e+04" in cohort.too_far()["2"]


def test_a_distance_whose_square_is_beyond_float32_is_a_number():
    cohort = Cohort(50.0, 100.0)
    # more than are subtracted at once
    cohort.begin(ArrayRecord({"w": torch.zeros(2**18 + 2**17)}))
    for i, value in enumerate((1e18, 1e18, 1e12)):
        note(cohort, str(i), {"w": torch.full((2**18 + 2**17,), value)}, {})
    expected = 1e18 * math.sqrt(2**18 + 2**17)
    cohort.end(["2"])
    assert cohort.state_dict()["distance"] == pytest.approx([expected, expected], rel=1e-6)


def test_a_federation_at_rest_takes_what_its_first_rounds_would_have_taken():
    cohort = Cohort(50.0, 100.0)
    for scale in (1.0, 0.1, 0.01, 0.001):
        assert cohort_of([scale, scale, 2 * scale], cohort) == []
    # of the first round's middle, 1.0, four times are within, though 3,900 times the present one
    assert cohort_of([0.001, 0.001, 3.9], cohort) == []
    again = Cohort(50.0, 100.0)
    again.load_state_dict(cohort.state_dict())
    for one in (cohort, again):
        assert cohort_of([0.001, 0.001, 4.1], one) == ["2"]
    cohort.begin(ArrayRecord({"w": torch_array(0.0)}))
    for i, distance in enumerate((0.001, 0.001, 4.1)):
        note(cohort, str(i), {"w": torch.tensor([distance])}, {})
    assert "4 times the greatest middle one of earlier rounds, 1, got 4.1" in cohort.too_far()["2"]


def left_out(traces: list[float], cohort: Cohort, strength: float | None) -> dict[str, str]:
    """Return what is said of the statistics that are left out in a round of these traces."""
    cohort.begin(ArrayRecord({"w": torch_array(0.0)}), strength)
    for i, trace in enumerate(traces):
        note(cohort, str(i), {"w": torch.tensor([1.0])}, {"w": torch.tensor([trace])})
    return cohort.out_of_sums()


def test_a_trace_that_holds_nobody_counts_however_little_the_others_are():
    """As of who still learns among clients that have fitted their data to the end."""
    assert left_out([1e-20, 1e-20, 4e-6], Cohort(50.0, 100.0), 30.0) == {}
    said = left_out([1e-20, 1e-20, 0.034], Cohort(50.0, 100.0), 30.0)
    assert list(said) == ["2"] and "of at most 1/λ, 0.0333, got 0.034" in said["2"]
    assert list(left_out([1e-20, 1e-20, 4e-6], Cohort(50.0, 100.0), None)) == ["2"]
    near = Cohort(50.0, 100.0, near=True)
    assert left_out([1e-20, 1e-20, 4e-6], near, 30.0) == {}
    assert list(left_out([1e-20, 1e-20, 0.034], near, 30.0)) == ["2"]
    assert list(left_out([0.1, 0.1, 0.31], near, 30.0)) == ["2"]


def test_robust_sums_are_of_what_is_near_the_present_middle():
    cohort = Cohort(50.0, 100.0, near=True)
    for scale in (1.0, 0.001):
        assert cohort_of([scale, scale, 2 * scale], cohort) == []
    cohort.begin(ArrayRecord({"w": torch_array(0.0)}))
    for i, distance in enumerate((0.001, 0.001, 0.5)):
        note(cohort, str(i), {"w": torch.tensor([distance])}, {})
    assert cohort.too_far() == {} and list(cohort.out_of_sums()) == ["2"]


def test_rounds_of_one_or_two_replies_are_held_against_those_that_were_accepted():
    cohort = Cohort(50.0, 100.0)
    assert cohort_of([1.0], cohort) == []
    assert cohort_of([1e6], Cohort(50.0, 100.0)) == []  # nothing to hold it against
    assert cohort_of([2.0, 1.0], cohort) == []
    assert cohort_of([1e6, 1.0], cohort) == ["0"]
    assert cohort_of([1e6], cohort) == ["0"]
    again = Cohort(50.0, 100.0)
    again.load_state_dict(cohort.state_dict())
    assert cohort_of([1e6], again) == ["0"]


@pytest.mark.parametrize("state", [{"distance": [math.nan]}, {"trace": "x"}, [1.0]])
def test_a_saved_cohort_that_is_none_is_refused(state):
    strategy = FedCurv(strength=1.0)
    saved = strategy.state_dict()
    with pytest.raises(ValueError, match="expected distances and traces >= 0"):
        strategy.load_state_dict({**saved, "cohort": state})
    strategy.load_state_dict({name: value for name, value in saved.items() if name != "cohort"})


def test_only_the_first_few_replies_and_odd_ones_wait_for_the_last(monkeypatch):
    from fedcurv.strategies.sums import RoundSums

    waiting = []
    add = RoundSums.add

    def counted(self, *args):
        add(self, *args)
        waiting.append(len(self._waiting))

    monkeypatch.setattr(RoundSums, "add", counted)
    spoil = {(2, 3): spoilt_precision(1e6)}
    Federation(num_nodes=9, spoil=spoil).run(FedCurv(strength=STRENGTH, **options()), num_rounds=2)
    assert waiting[:9] == [1, 2, 3, 4, 0, 0, 0, 0, 0]
    assert waiting[9:] == [1, 2, 3, 4, 1, 1, 1, 1, 1]


def test_a_round_whose_first_replies_all_lie_has_no_sums(caplog):
    spoil = {(2, i): spoilt_precision(1e9) for i in range(5)}
    federation = Federation(num_nodes=12, spoil=spoil)
    federation.run(FedCurv(strength=STRENGTH, **options()), num_rounds=3)
    assert "this round has no sums" in caplog.text
    assert all(visit.precision is None for visit in pulls(federation, 3).values())


# ---- partial participation, codes, resuming


def test_a_resumed_robust_run_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    """Also where clients have lost all state: nobody's own terms are in trimmed sums."""

    def run(folder, *rounds: int):
        for num_rounds in rounds:
            wrapped = FedMedian(**options(fraction_train=0.7))
            strategy = FedCurv(wrapped, strength=STRENGTH, robust="median")
            checkpoint = tmp_path / folder
            result = Federation(num_nodes=7).run(
                strategy, num_rounds, seed=3, checkpoint=checkpoint, resume=True
            )
        return result.arrays

    assert same_bits(run("whole", 5), run("in two", 3, 5))


@pytest.mark.parametrize("bits", [4, 8])
def test_trimmed_sums_travel_in_codes_too(bits, monkeypatch):
    monkeypatch.setattr("fedcurv.strategies.wire.coded_arrays._FEWEST_NUMBERS", 1)
    exact, coded = Federation(num_nodes=5), Federation(num_nodes=5)
    for federation, number in ((exact, 32), (coded, bits)):
        strategy = FedCurv(FedMedian(**options()), strength=STRENGTH, robust="median", bits=number)
        federation.run(strategy, num_rounds=2)
    for partition, visit in pulls(exact, 2).items():
        other = pulls(coded, 2)[partition]
        largest = float(visit.precision["weight"].max())
        apart = (visit.precision["weight"] - other.precision["weight"]).abs().max()
        assert 0 < float(apart) < largest * 2.0 ** (5 - bits)


# ---- options


BAD = [
    ({"robust": "krum"}, r"robust must be 'auto', 'none', 'near'.*got 'krum'"),
    ({"robust": 0.5}, "share in \\(0, 0.5\\).*got 0.5"),
    ({"robust": True}, "got True"),
    ({"robust": None}, "got None"),
    ({"robust": "median", "secure_sums": True}, "secure_sums=True needs robust='none'"),
    ({"max_distance": 1.0}, "max_distance must be > 1"),
    ({"max_trace": math.nan}, "max_trace must be > 1"),
    ({"max_trace": "x"}, "max_trace must be > 1"),
    ({"max_trace": 10.0, "secure_sums": True}, "needs max_trace=math.inf"),
]


@pytest.mark.parametrize(("given", "says"), BAD)
def test_an_option_that_cannot_be_meant_is_one_clear_line(given, says):
    with pytest.raises(ValueError, match=says) as told:
        FedCurv(strength=1.0, **given)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("make", [FedMedian, FedTrimmedAvg, Krum, MultiKrum, Bulyan])
def test_a_robust_strategy_with_secure_sums_is_refused(make):
    with pytest.raises(ValueError, match=f"around {make.__name__}: robust sums are formed of"):
        FedCurv(make(), strength=1.0, secure_sums=True)
    FedCurv(make(), strength=1.0, secure_sums=True, robust="none")


def test_robust_sums_can_be_lifted_with_a_word_of_warning(caplog):
    assert rule_for("none", FedMedian(), secure_sums=False) is None
    assert "a single client can undo it" in caplog.text
    caplog.clear()
    FedCurv(strength=1.0, robust="none")
    assert not caplog.records


def test_a_robust_strategy_inside_another_is_found():
    class Around(FedAvg):
        def __init__(self, strategy):
            super().__init__()
            self.strategy = strategy

    found = rule_for("auto", Around(FedMedian()), secure_sums=False)
    assert found is not None and found.near and not found.holds
    assert rule_for("auto", Around(FedAvg()), secure_sums=False) is None
