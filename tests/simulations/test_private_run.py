"""Simulations under differential privacy."""

import pytest

from tests.simulations.test_run import rows_of, run

pytest.importorskip("opacus", reason="needs the extra privacy")


@pytest.mark.usefixtures("quick_pictures")
@pytest.mark.parametrize("runner", ["local", "batched"])
def test_the_budget_is_told_in_every_round(tmp_path, capsys, runner):
    run(
        tmp_path,
        "data.train_samples=240",  # 40 each
        f"runner={runner}",
        "strategy=[private_fedavg,private_fedcurv]",
        "strategy.private_fedavg.strategy.noise_multiplier=2",
        "strategy.private_fedcurv.strategy.noise_multiplier=2",
        "strategy.private_fedcurv.private_sums.noise_multiplier=2",
        "num_rounds=2",
    )
    told = capsys.readouterr().out
    rows = [r for r in rows_of(tmp_path / "metrics.csv") if r["round"] != "0"]
    # of Gaussian releases with the noise multiplier 2, of which FedCurv makes two a round
    one, two, four = (1.993, 2.943, 4.377)
    expected = [one, two, two, four]
    assert [float(r["epsilon"]) for r in rows] == pytest.approx(expected, abs=0.03)
    assert told.count(", epsilon ") == 4
