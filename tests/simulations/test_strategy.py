import pytest
from flwr.serverapp.strategy import FedAvg
from omegaconf import OmegaConf

from fedcurv.simulations.parts.strategies import fedcurv_in, make_strategy
from fedcurv.strategies import FedCurv


def test_auto_is_a_rule_with_the_clients_settings_and_needs_none_of_their_data(monkeypatch):
    made = {}
    monkeypatch.setattr(
        "fedcurv.strategies.AutoStrength", lambda **options: made.update(options) or 0.5
    )
    node = OmegaConf.create({"_target_": "fedcurv.strategies.FedCurv", "strength": "auto"})
    client = {"lr": 0.2, "epochs": 3, "batch_size": 16}
    config = {"client": {**client, "penalty_mode": "proximal"}, "data": {"name": "device"}}
    strategy = make_strategy(node, config)
    assert isinstance(strategy, FedCurv)
    assert strategy.strength == 0.5
    assert made == {**client, "mode": "proximal"}
    assert node.strength == "auto"


def test_what_is_no_strategy_is_told_as_a_mistake_of_the_configuration():
    node = OmegaConf.create({"_target_": "datetime.timedelta"})
    with pytest.raises(ValueError, match=r"datetime\.timedelta: expected a strategy of flwr"):
        make_strategy(node, {"client": {}})


def test_auto_is_found_in_a_wrapped_strategy_too():
    inner = {"_target_": "fedcurv.strategies.FedCurv", "strength": "auto", "secure_sums": True}
    node = OmegaConf.create({"_target_": "fedcurv.strategies.SecureSums", "strategy": inner})
    client = {"lr": 0.2, "epochs": 3, "batch_size": 16, "penalty_mode": "proximal"}
    strategy = make_strategy(node, {"client": client})
    assert strategy.strength is None
    assert fedcurv_in(strategy) is strategy.strategy
    assert node.strategy.strength == "auto"
    assert fedcurv_in(FedAvg()) is None
