"""``client.optimizer`` and ``client.schedule`` of a simulation, from configuration to files."""

import json

import pytest
import yaml

from fedcurv.simulations.configuration import check_simulation, resolve
from fedcurv.simulations.federation.task_description import describe_task
from tests.simulations.test_run import FEW, configuration, rows_of, run

pytestmark = pytest.mark.usefixtures("quick_pictures")

ADAMW = "client.optimizer={name: adamw, betas: [0.8, 0.99], weight_decay: 0.01}"
COSINE = "client.schedule={name: CosineAnnealingLR, T_max: '${num_rounds}', warm_up: 1}"


def test_a_run_has_its_optimizer_and_records_every_rounds_rate(tmp_path):
    small = ["num_rounds=3", "strategy=[fedavg,fedcurv]", FEW, "client.lr=0.01", "client=adam"]
    run(tmp_path / "out", *small, "strategy.fedcurv.strength=auto", ADAMW, COSINE)
    rates = [0.005, 0.01, 0.01 * (1 + 0.5) / 2]  # (1 + cos(pi / 3)) / 2
    for row in rows_of(tmp_path / "out" / "clients.csv"):
        assert float(row["lr"]) == pytest.approx(rates[int(row["round"]) - 1])
    rows = rows_of(tmp_path / "out" / "metrics.csv")
    assert [row["lr"] for row in rows][:1] == [""]  # nobody has trained yet
    assert [float(row["lr"]) for row in rows if row["lr"]] == pytest.approx(rates * 2)
    client = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["client"]
    assert client["optimizer"] == {"name": "adamw", "betas": [0.8, 0.99], "weight_decay": 0.01}
    assert client["schedule"] == {"name": "CosineAnnealingLR", "T_max": 3, "warm_up": 1}
    run(tmp_path / "other", *small, "strategy=fedavg", COSINE)
    other = rows_of(tmp_path / "other" / "metrics.csv")
    assert [row["loss"] for row in other] != [row["loss"] for row in rows[:4]]


def test_names_and_numbers_travel_and_nothing_else():
    config = resolve(configuration(ADAMW, COSINE, FEW))
    ((_, text),) = describe_task(config).items()
    client = json.loads(str(text))["client"]
    assert client["optimizer"]["name"] == "adamw"
    assert client["schedule"] == {"name": "CosineAnnealingLR", "T_max": 30, "warm_up": 1}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["client.optimizer=lbfgs"], "optimizer: LBFGS cannot be used"),
        (["client.optimizer=muon"], "optimizer: .*Muon.*, got 'muon'|optimizer: Muon refuses this"),
        (["client=adam", "+client.momentum=0.9"], "optimizer: Adam has no momentum"),
        (["client.schedule=LambdaLR"], "schedule: LambdaLR cannot be used"),
        (
            ["client.schedule={name: PolynomialLR, total_iters: 20}"],
            "schedule: round 21 has the learning rate 0, expected one > 0",
        ),
        (
            ["client.optimizer=rprop", "strategy=[fedavg,fedcurv]"],
            r"Rprop finds .* use client\.penalty_mode=gradient",
        ),
        (
            ["client.optimizer=rprop", "strategy=fedcurv_fedadam"],
            r"Rprop finds .* use client\.penalty_mode=gradient",
        ),
    ],
)
def test_what_cannot_be_is_found_before_anything_trains(overrides, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "out", FEW, "num_rounds=30", *overrides)
    assert not (tmp_path / "out").exists()


def test_what_fedcurv_cannot_have_others_can():
    settings = resolve(configuration("strategy=fedavg", "client.optimizer=rprop", FEW))
    check_simulation(settings)
