"""What FedCurv wraps stays within reach, and what it cannot honour it refuses."""

import copy
import inspect
import pickle

import pytest
from flwr.server.strategy import FedAvg as LegacyFedAvg
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    Strategy,
)

from fedcurv.strategies import FedCurv
from fedcurv.strategies.legacy import _NOW
from tests.federation import Federation, options


class CustomFedAvg(FedAvg):
    """As in Flower's own examples: with methods and attributes of its own."""

    def __init__(self, **options):
        super().__init__(**options)
        self.save_path = "here"

    def set_save_path(self, path):
        self.save_path = path


class WithItsOwnStart(FedAvg):
    def start(self, *args, **kwargs):
        return super().start(*args, **kwargs)


def test_a_wrapped_strategys_own_methods_and_attributes_are_reached():
    strategy = FedCurv(CustomFedAvg(**options()), strength=0.1)
    strategy.set_save_path("there")
    assert strategy.save_path == strategy.strategy.save_path == "there"
    assert strategy.fraction_train == 1.0
    with pytest.raises(AttributeError, match="no attribute 'set_load_path'"):
        strategy.set_load_path("")


def test_what_is_set_reaches_the_strategy_that_has_it():
    strategy = FedCurv(CustomFedAvg(**options()), strength=0.1)
    strategy.fraction_train = 0.5
    strategy.note = "mine"
    assert strategy.strategy.fraction_train == 0.5
    assert not hasattr(strategy.strategy, "note")
    assert "fraction_train" not in vars(strategy)


@pytest.mark.parametrize("make_copy", [copy.copy, copy.deepcopy, lambda s: _pickled(s)])
def test_a_copy_reaches_its_own(make_copy):
    strategy = make_copy(FedCurv(CustomFedAvg(**options()), strength=0.1))
    assert strategy.save_path == "here"
    with pytest.raises(AttributeError):
        FedCurv.__new__(FedCurv).anything  # noqa: B018, as copy and pickle ask before there is one


def _pickled(strategy):
    return pickle.loads(pickle.dumps(strategy))


def test_an_own_start_is_refused_around_which_it_would_not_be_called(caplog):
    with pytest.raises(TypeError, match=r"overrides start.*class WithItsOwnStart\(FedCurv\)"):
        FedCurv(WithItsOwnStart(), strength=0.1)
    Federation().run(WithItsOwnStart(**options()), num_rounds=1)
    assert "WithItsOwnStart overrides start, which is not called here" in caplog.text


def test_a_class_derived_from_fedcurv_keeps_its_start():
    called = []

    class Custom(FedCurv):
        def start(self, *args, **kwargs):
            called.append("start")
            return super().start(*args, **kwargs)

    Federation().run(Custom(strength=0.1, **options()), num_rounds=1, own_loop=True)
    assert called == ["start"]


@pytest.mark.parametrize(
    ("strategy", "says"),
    [
        (LegacyFedAvg(), r"expected a strategy of flwr.serverapp.strategy, got .*FedAvg"),
        (FedAvg, "got the class FedAvg; construct it"),
    ],
)
def test_what_is_no_strategy_of_the_message_api_is_refused(strategy, says):
    with pytest.raises(TypeError, match=says):
        FedCurv(strategy, strength=0.1)
    with pytest.raises(TypeError, match=says):
        Federation().run(strategy)


def test_fedcurv_around_fedcurv_is_refused():
    with pytest.raises(TypeError, match="a strategy that is not FedCurv itself"):
        FedCurv(FedCurv(strength=0.1), strength=0.1)


@pytest.mark.parametrize(
    ("word", "now"),
    [
        ("fraction_fit", "fraction_train"),
        ("min_fit_clients", "min_train_nodes"),
        ("min_available_clients", "min_available_nodes"),
        ("evaluate_fn", r"evaluate_fn of start\(strategy, grid, arrays, evaluate_fn=...\)"),
        ("on_fit_config_fn", r"train_config of start"),
        ("initial_parameters", r"the arrays of start"),
        ("fit_metrics_aggregation_fn", "train_metrics_aggr_fn"),
    ],
)
def test_words_of_the_legacy_api_are_answered_with_todays(word, now):
    with pytest.raises(TypeError, match=f"'{word}' is now {now}"):
        FedCurv(strength=0.1, **{word: None})


def test_every_word_of_the_legacy_fedavg_that_is_gone_is_known():
    legacy = set(inspect.signature(LegacyFedAvg.__init__).parameters)
    todays = set(inspect.signature(FedAvg.__init__).parameters)
    assert legacy - todays <= set(_NOW)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("fraction_trian", "is fraction_train"),
        ("secure_sum", "is secure_sums meant"),
        ("max_example", "is max_examples or max_trace meant"),
        ("xyz", "FedAvg's are fraction_train, fraction_evaluate, min_train_nodes"),
    ],
)
def test_an_unknown_word_is_answered_with_near_ones(word, says):
    with pytest.raises(TypeError, match=f"no option '{word}'; {says}") as told:
        FedCurv(strength=0.1, **{word: 1})
    assert "\n" not in str(told.value)


WRAPPERS = {
    "server, fixed": lambda s: DifferentialPrivacyServerSideFixedClipping(s, 0.1, 1.0, 4),
    "client, fixed": lambda s: DifferentialPrivacyClientSideFixedClipping(s, 0.1, 1.0, 4),
    "server, adaptive": lambda s: DifferentialPrivacyServerSideAdaptiveClipping(s, 0.1, 4),
    "client, adaptive": lambda s: DifferentialPrivacyClientSideAdaptiveClipping(s, 0.1, 4),
}


class Between(Strategy):
    """Hands everything on."""

    def __init__(self, strategy):
        self.strategy = strategy

    def configure_train(self, *args):
        return self.strategy.configure_train(*args)

    def aggregate_train(self, *args):
        return self.strategy.aggregate_train(*args)

    def configure_evaluate(self, *args):
        return self.strategy.configure_evaluate(*args)

    def aggregate_evaluate(self, *args):
        return self.strategy.aggregate_evaluate(*args)

    def summary(self):
        self.strategy.summary()


@pytest.mark.parametrize("own_loop", [False, True])
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_differential_privacy_around_fedcurv_ends_the_run_before_anything_is_sent(wrap, own_loop):
    for between in (lambda s: s, Between):
        federation = Federation()
        with pytest.raises(TypeError, match="FedCurv without differential privacy, got it inside"):
            federation.run(wrap(between(FedCurv(strength=0.1, **options()))), own_loop=own_loop)
        assert federation.visits == []


def test_a_wrapper_without_differential_privacy_is_none():
    federation = Federation()
    federation.run(Between(FedCurv(strength=0.1, **options())), num_rounds=2)
    assert set(federation.statuses(2).values()) == {"ok"}
    assert all(v.precision is not None for v in federation.visits if v.server_round == 2)
