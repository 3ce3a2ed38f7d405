import pytest
from flwr.app import MetricRecord
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedYogi

from fedcurv.clients import ClientCurvature
from fedcurv.strategies import EarlyStopping, FedCurv
from fedcurv.strategies import checkpoint as checkpoint_module
from tests.federation import Federation, options, same_bits

MAKE = {
    "FedAvg": lambda: FedAvg(**options(fraction_train=0.5)),
    "FedAdam": lambda: FedAdam(**options()),
    "FedYogi": lambda: FedYogi(**options()),
    "FedAvgM": lambda: FedAvgM(server_momentum=0.9, **options()),
    "FedCurv": lambda: FedCurv(strength=0.3, **options(fraction_train=0.5)),
    "FedCurv around FedAdam": lambda: FedCurv(FedAdam(**options()), strength=0.3),
}


@pytest.fixture(autouse=True)
def clients_remember_on_disk(tmp_path, monkeypatch):
    """As nodes do that outlive the server; a LocalGrid's own contexts end with it."""
    original = ClientCurvature.__init__

    def on_disk(self, *args, **more):
        original(self, *args, **more, state_dir=tmp_path / "nodes")

    monkeypatch.setattr(ClientCurvature, "__init__", on_disk)


def accuracy(server_round, arrays):
    return MetricRecord({"accuracy": float(arrays.to_torch_state_dict()["weight"].norm())})


class PowerCut(Exception):
    pass


def run(name: str, federation: Federation | None = None, **more):
    federation = federation or Federation(num_nodes=6)
    return federation.run(MAKE[name](), num_rounds=5, seed=4, evaluate_fn=accuracy, **more)


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("cut", [1, 3])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(name, cut, tmp_path):
    expected = run(name)
    seen = []

    def stop(record):
        seen.append(record.server_round)
        if record.server_round == cut:
            raise PowerCut

    with pytest.raises(PowerCut):
        run_with(name, stop, tmp_path / "run")
    resumed_rounds = []
    resumed = run_with(
        name, lambda r: resumed_rounds.append(r.server_round), tmp_path / "run", resume=True
    )
    assert seen == list(range(cut + 1))
    assert resumed_rounds == list(range(cut + 1, 6))
    assert same_bits(expected.arrays, resumed.arrays)
    assert expected.train_metrics_clientapp == resumed.train_metrics_clientapp
    assert expected.evaluate_metrics_serverapp == resumed.evaluate_metrics_serverapp


def run_with(name, on_round, folder, **more):
    federation = Federation(num_nodes=6)

    class Rounds(list):
        def append(self, record):
            on_round(record)

    federation.rounds = Rounds()
    return run(name, federation, checkpoint=folder, **more)


def test_resuming_without_a_checkpoint_starts_at_the_beginning(tmp_path):
    rounds = []
    result = run_with("FedAvg", lambda r: rounds.append(r.server_round), tmp_path, resume=True)
    assert rounds == [0, 1, 2, 3, 4, 5]
    assert same_bits(result.arrays, run("FedAvg").arrays)


def test_a_finished_run_is_returned_as_it_ended(tmp_path):
    first = run_with("FedAdam", lambda r: None, tmp_path)
    rounds = []
    again = run_with("FedAdam", lambda r: rounds.append(r), tmp_path, resume=True)
    assert rounds == []
    assert same_bits(first.arrays, again.arrays)


def test_options_may_change_between_the_runs(tmp_path):
    """What the constructor was given is the caller's; what the strategy learned is the file's."""
    first = FedAdam(eta=0.1, **options())
    Federation().run(first, num_rounds=2, checkpoint=tmp_path)
    second = FedAdam(eta=0.01, **options())
    Federation().run(second, num_rounds=3, checkpoint=tmp_path, resume=True)
    assert second.eta == 0.01
    assert second.m_t is not None


def test_a_checkpoint_of_another_strategy_is_refused(tmp_path):
    run_with("FedAvg", lambda r: None, tmp_path)
    with pytest.raises(ValueError, match=r"is the checkpoint of FedAvg, expected one of FedAdam"):
        run_with("FedAdam", lambda r: None, tmp_path, resume=True)


def test_a_damaged_checkpoint_is_refused_and_not_overwritten(tmp_path):
    run_with("FedAvg", lambda r: None, tmp_path)
    path = tmp_path / "checkpoint.npz"
    damaged = path.read_bytes()[:-100]
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"checkpoint\.npz cannot be read"):
        run_with("FedAvg", lambda r: None, tmp_path, resume=True)
    assert path.read_bytes() == damaged


def test_an_earlier_runs_checkpoint_is_not_overwritten(tmp_path):
    run_with("FedAvg", lambda r: None, tmp_path)
    before = (tmp_path / "checkpoint.npz").read_bytes()
    with pytest.raises(FileExistsError, match="go on from it with resume=True, or choose another"):
        run_with("FedAvg", lambda r: None, tmp_path)
    assert (tmp_path / "checkpoint.npz").read_bytes() == before


def test_a_failed_save_leaves_the_checkpoint_before_it(tmp_path, monkeypatch):
    Federation().run(MAKE["FedAvg"](), num_rounds=2, checkpoint=tmp_path)
    before = (tmp_path / "checkpoint.npz").read_bytes()

    def full_disk(*_args, **_options):
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint_module, "write_archive", full_disk)
    with pytest.raises(OSError, match="No space left"):
        Federation().run(MAKE["FedAvg"](), num_rounds=3, checkpoint=tmp_path, resume=True)
    assert (tmp_path / "checkpoint.npz").read_bytes() == before


def test_resume_needs_a_folder():
    with pytest.raises(ValueError, match="resume needs a checkpoint"):
        run("FedAvg", resume=True)


# ---- early stopping


def run_with_values(values, stopping, **more):
    """Run with these server metrics, the first before round 1; return the number of rounds."""
    federation = Federation(num_nodes=2)
    federation.run(
        FedAvg(**options()),
        num_rounds=len(values) - 1,
        evaluate_fn=lambda r, arrays: MetricRecord({"accuracy": values[r], "loss": -values[r]}),
        early_stopping=stopping,
        **more,
    )
    return federation.rounds[-1].server_round


@pytest.mark.parametrize(
    ("stopping", "expected"),
    [
        (EarlyStopping(target=0.8), 3),
        (EarlyStopping(target=0.95), 7),
        (EarlyStopping("loss", mode="min", target=-0.8), 3),
        (EarlyStopping(patience=2), 5),
        (EarlyStopping(patience=3), 6),
        (EarlyStopping(patience=4), 7),
        (EarlyStopping(patience=1, min_delta=0.2), 2),
        (EarlyStopping("loss", mode="min", patience=2), 5),
        (EarlyStopping(patience=9, target=0.5), 2),
    ],
)
def test_early_stopping(stopping, expected):
    assert run_with_values([0.1, 0.4, 0.5, 0.8, 0.7, 0.6, 0.75, 0.79], stopping) == expected


def test_a_missing_metric_is_an_error():
    with pytest.raises(ValueError, match="no evaluation has a metric 'f1'; give evaluate_fn"):
        run_with_values([0.1, 0.2, 0.3], EarlyStopping("f1", patience=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "expected patience or target, got neither"),
        ({"patience": 0}, "patience must be >= 1, got 0"),
        ({"target": 1, "mode": "up"}, "mode must be max or min, got 'up'"),
        ({"target": 1, "min_delta": -1}, "min_delta must be >= 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        EarlyStopping(**settings)
