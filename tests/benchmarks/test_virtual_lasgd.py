"""LASGD in virtual time beside real processes whose steps sleep as long.

Four workers, the first four times slower, a sum of 0.2 s; the samples, the model and the settings
are those of ``tests.benchmarks.lasgd``. Virtual time must foretell the share of the sum of speeds,
the pace, and the time and the steps to the target loss.
"""

import pytest
import torch
from torch import nn

from fedcurv.lasgd.virtual import Link, Outcome, Plan, Problem, Site, straggler
from tests.benchmarks import lasgd as real
from tests.benchmarks.lasgd import BATCH, STEP_S, SYNC_EVERY, TARGET_LOSS, WORKERS, Case

pytestmark = pytest.mark.benchmark_suite
COST_S, SECONDS = 0.2, 12


def problem() -> Problem:
    training, test = real.digits()
    return Problem(
        lambda: real.make_model(0),
        lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        nn.functional.cross_entropy,
        training.tensors,
        test.tensors,
        BATCH,
    )


def foretold(method: str) -> Outcome:
    overlap = method == "lasgd"
    plan = Plan(WORKERS, SYNC_EVERY[COST_S] if overlap else 52, overlap=overlap)
    return Site(problem(), plan, straggler(STEP_S, 4.0), Link(COST_S)).run(seconds=SECONDS)


@pytest.mark.parametrize("method", ["lasgd", "lasgd-blocking"])
def test_virtual_time_foretells_what_real_processes_do(method):
    traces = real.run(Case(method, "fixed", COST_S, SECONDS, 0))
    seen = real.judge(Case(method, "fixed", COST_S, SECONDS, 0), traces)
    pace = sum(trace.steps / trace.wall_s for trace in traces)
    virtual = foretold(method)
    reached = virtual.first_below(TARGET_LOSS)
    print(f"\n{method}: real / virtual")
    print(f"share {seen.share:.3f} / {virtual.share:.3f}")
    print(f"steps a second {pace:.2f} / {virtual.steps / virtual.seconds:.2f}")
    print(f"seconds to the loss {seen.seconds_to_target:.2f} / {reached.seconds:.2f}")
    print(f"steps to the loss {seen.steps_to_target} / {reached.steps}")
    print(f"in flight {seen.in_flight:.2f} / {virtual.steps_in_flight:.2f}")
    assert virtual.share == pytest.approx(seen.share, rel=0.05)
    assert virtual.steps / virtual.seconds == pytest.approx(pace, rel=0.05)
