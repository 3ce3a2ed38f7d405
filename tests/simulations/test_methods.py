"""Published methods by their names in the configuration, in the runners of one process."""

import pytest

from fedcurv.simulations.commands.simulate import simulate
from fedcurv.simulations.configuration import resolve
from tests.simulations.test_run import configuration, rows_of

METHODS = ["fednova", "scaffold", "feddyn"]
SMALL = ["num_rounds=2", "num_clients=4", "client.epochs=1", "data.train_samples=120"]


def test_methods_run_by_name_and_runners_agree(tmp_path):
    """Those that cannot be stacked are trained one by one, as local does."""
    names, found = [*METHODS, "fedavgm"], []
    for runner in ("local", "batched"):
        chosen = [f"strategy=[{','.join(names)}]", f"runner={runner}", *SMALL]
        config = configuration("client.stragglers.share=0.5", *chosen)
        simulate(config, tmp_path / runner, command="")
        found.append(rows_of(tmp_path / runner / "metrics.csv"))
    assert {row["strategy"] for row in found[0]} == set(names)
    for one, other in zip(*found, strict=True):
        assert float(one["loss"]) == pytest.approx(float(other["loss"]), rel=1e-4)
    last = {row["strategy"]: row["loss"] for row in found[0]}
    assert len(set(last.values())) == len(names)


REFUSED = {
    "scaffold": {
        "client=adam": "strategy.scaffold: scaffold holds for SGD without momentum, got client.opt",
        "client.momentum=0.9": "got client.optimizer=sgd with momentum",
        "client.trainer=lasgd": "the steps of a site's workers are not one optimizer's",
        "strategy.scaffold.num_clients=0": "num_clients must be an integer >= 1, got 0",
    },
    "fednova": {
        "client=adam": "strategy.fednova: fednova holds for SGD, got client.optimizer=adam",
        "client.trainer=lasgd": "the steps of a site's workers are not one optimizer's",
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_training_for_which_a_method_does_not_hold_is_refused_before_it_starts(name):
    for override, reason in REFUSED[name].items():
        with pytest.raises(ValueError, match=reason):
            resolve(configuration(f"strategy={name}", override))
