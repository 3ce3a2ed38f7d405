import statistics

import pytest

from fedcurv.simulations.experiments.comparisons import CAPTION, line, pairs, table
from fedcurv.simulations.experiments.report import at_edges
from fedcurv.simulations.experiments.runs import Plan, Run
from fedcurv.simulations.experiments.tuning import at_edge, check_more_trials, next_point, tune
from fedcurv.simulations.parts.metrics import ACCURACY

SEEDS = range(6)
# rounds to 80 %, by seed
SLOW, FAST = [6, 5, 8, 4, 6, 7], [3, 3, 4, 2, 3, 5]


def run(method, seed, rounds, megabytes, seconds, *, failure="", number=10, settings=None):
    """A run that reaches 80 % in a round, and 90 % in the next; each round costs the same."""
    scores = [0.1] + [0.5 if r < rounds else 0.8 if r == rounds else 0.9 for r in range(1, number)]
    costs = [[each * r for r in range(number)] for each in (megabytes, seconds)]
    plan = Plan({"client.epochs": 5}, method, settings or {}, seed, "test")
    return Run(plan, scores, *costs, failure=failure)


def two_methods():
    slow = [run("slow", seed, SLOW[seed], 1.0, 2.0) for seed in SEEDS]
    fast = [run("fast", seed, FAST[seed], 3.0, 1.0) for seed in SEEDS]
    return [*slow, *fast]


def test_a_method_is_set_beside_another_by_rounds_bytes_and_seconds():
    forth, back = pairs(two_methods(), 0.8)
    assert [(pair.method, pair.against) for pair in (forth, back)] == [
        ("slow", "fast"),
        ("fast", "slow"),
    ]
    ratio = statistics.mean(FAST) / statistics.mean(SLOW)
    assert back.rounds.value == pytest.approx(ratio)
    assert back.megabytes.value == pytest.approx(3 * ratio)
    assert back.seconds.value == pytest.approx(ratio / 2)
    assert forth.rounds.value == pytest.approx(1 / ratio)
    assert back.rounds.low < ratio < back.rounds.high < 1
    # one sign of 64 flips, and its mirror image
    assert back.p == pytest.approx(2 / 2**6)


def test_at_equal_cost_each_has_what_the_smaller_budget_pays_for():
    # nine rounds at 1 MB pay for three at 3 MB: then there are 50 % until round 3
    within = [0.5 if r > 3 else 0.8 if r == 3 else 0.9 for r in FAST]
    _, back = pairs(two_methods(), 0.8)
    assert back.equal_megabytes.value == pytest.approx(statistics.mean(within) - 0.9)
    # nine rounds at a second pay for four at two
    paid = [0.5 if r > 4 else 0.8 if r == 4 else 0.9 for r in SLOW]
    assert back.equal_seconds.value == pytest.approx(0.9 - statistics.mean(paid))


def test_the_table_is_against_one_method_with_p_corrected_for_its_rows():
    third = [run("third", seed, FAST[seed], 1.0, 1.0) for seed in SEEDS]
    header, *rows = table(pairs([*two_methods(), *third], 0.8), "slow", ACCURACY)
    assert header[:4] == ["cell", "method", "rounds / slow's", "p"]
    assert [row[:2] for row in rows] == [["epochs 5", "fast"], ["epochs 5", "third"]]
    assert rows[0][2].startswith("0.56 [0.")
    assert [row[3] for row in rows] == ["0.062", "0.062"]  # twice 2 / 2^6
    assert rows[0][6].startswith(("+", "-")) and "[" in rows[0][6]
    assert "5 seeds" in CAPTION


@pytest.mark.parametrize(
    ("scores", "final"), [([0.1, 0.9], 0.9), ([0.1, 0.8, 0.9], 0.85), ([0.0] * 3 + [1.0] * 5, 1.0)]
)
def test_the_untrained_models_score_is_in_no_final_one(scores, final):
    costs = [0.0] * len(scores)
    one = Run(Plan({}, "fast", {}, 1, "test"), scores, costs, costs)
    assert one.final == pytest.approx(final)


def test_what_did_not_reach_the_target_has_no_ratio():
    runs = two_methods()
    runs[0] = run("slow", 0, 99, 1.0, 2.0)
    _, back = pairs(runs, 0.8)
    assert back.rounds is back.megabytes is back.seconds is back.p is None
    assert back.final is not None
    runs[0] = run("slow", 0, 5, 1.0, 2.0, failure="diverged")
    _, back = pairs(runs, 0.8)
    assert back.rounds is back.equal_megabytes is back.equal_seconds is None
    _, row = table([back], "slow", ACCURACY)
    assert row[2:6] == ["-"] * 4 and row[7:] == ["-", "-"]
    assert line(back)["rounds_ratio"] == line(back)["p_of_rounds"] == ""
    assert line(back)["method"] == "fast"


def test_seeds_are_paired_by_their_number():
    runs = two_methods()
    mixed = [*runs[:6], *reversed(runs[6:])]
    assert pairs(mixed, 0.8) == pairs(runs, 0.8)


# ---- tuning


def test_a_best_number_at_the_edge_of_what_was_tried_is_told():
    trials = [
        run(method, 11, 3, 1.0, 1.0, settings=settings)
        for method in ("a", "b")
        for settings in ({"client.lr": 0.1}, {"client.lr": 0.3}, {"client.lr": 1.0})
    ]
    runs = [
        run("a", 1, 3, 1.0, 1.0, settings={"client.lr": 1.0}),
        run("b", 1, 3, 1.0, 1.0, settings={"client.lr": 0.3}),
    ]
    (said,) = at_edges(runs, trials)
    assert said.endswith("may do better: a (epochs 5): lr 1.")
    assert at_edges(runs[1:], trials) == at_edges(runs, []) == []


def test_nothing_would_be_tried_below_0_which_is_therefore_no_edge():
    tried = [{"strategy.proximal_mu": mu} for mu in (0.0, 0.1)]
    assert at_edge(tried[0], tried) == []
    assert at_edge(tried[1], tried) == ["strategy.proximal_mu"]


@pytest.mark.parametrize(
    ("best", "tried", "following"),
    [
        # beyond the largest and the smallest, as far as the neighbour is on the other side
        (0.3, [0.03, 0.1, 0.3], 0.9),
        (0.03, [0.03, 0.1, 0.3], 0.009),
        (1, [1, 10], 0.1),
        # else halfway to the farther neighbour
        (0.1, [0.02, 0.1, 0.3], 0.045),
        (0.1, [0.1], 0.05),
        (0.0, [0.0, 0.1], 0.05),
        (0.1, [0.0, 0.1], 0.05),
    ],
)
def test_the_point_that_follows_is_found_by_one_rule(best, tried, following):
    settings = [{"client.lr": value} for value in tried]
    point = next_point({"client.lr": best}, settings, lambda point: True)
    assert point == {"client.lr": pytest.approx(following)}


def test_what_cannot_be_run_is_not_tried():
    tried = [{"client.epochs": n, "kind": "a"} for n in (1, 4)]
    fits = {}

    def whole(point):
        fits[point["client.epochs"]] = isinstance(point["client.epochs"], int)
        return fits[point["client.epochs"]]

    # 16, beyond; then 2, between
    assert next_point(tried[1], tried, whole) == {"client.epochs": 16, "kind": "a"}
    assert next_point(tried[0], tried, whole) == {"client.epochs": 2, "kind": "a"}
    assert fits[0.25] is False
    with pytest.raises(ValueError, match="nothing is left to try beside"):
        next_point(tried[0], tried, lambda point: False)


def test_every_method_gets_as_many_further_trials():
    def tried(point):
        rounds = round(40 * abs(point["lr"] - 2.7)) + 1
        return [run("a", 11, rounds, 1.0, 1.0, number=400, settings=point)]

    tuning = tune([{"lr": 0.1}, {"lr": 0.3}], 3, 0.8, tried, lambda point: True)
    assert [runs[0].plan.settings["lr"] for runs in tuning] == [0.1, 0.3, 0.9, 2.7, 8.1]
    check_more_trials(2, {"a": {"grid": {"client.lr": [0.1]}}})
    for number in (-1, 1.5, True):
        with pytest.raises(ValueError, match="more_trials must be an integer >= 0"):
            check_more_trials(number, {})
    with pytest.raises(ValueError, match=r"a number in the grid of every method, got none .* b$"):
        check_more_trials(1, {"a": {"grid": {"lr": [1]}}, "b": {"grid": {"strength": ["auto"]}}})
